"""Annotations: every one is used or left out with its reason, boxes and masks lie where they were drawn, and the
dataset changes wholly or not at all."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.__main__ import main
from data_prep.annotations.annotate import annotate
from data_prep.annotations.match import Videos, read_categories
from data_prep.annotations.reasons import REASONS, LeftOut
from data_prep.dicom.dataset import Tables, write_tables
from data_prep.update import read_rows
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError
from deepcoro.reports.vocabulary import SEGMENTS

BOX = [64, 128, 32, 16]  # x, y, width, height of a picture of 512 x 256
FRACTIONS = {"x0": 0.125, "y0": 0.5, "x1": 0.1875, "y1": 0.5625}


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "prepared"
    folder.mkdir()
    write_dataset(folder)
    return folder


def write_dataset(folder):
    """Three videos of 24 frames, 512 wide and 256 high; tables and no files, written as the DICOM door does."""
    study = {"study_id": "s", "patient_id": "p", "split": "train", "attributes": []}
    videos = [
        {
            "video_id": name,
            "study_id": "s",
            "uri": f"videos/{name[:2]}/{name}.avi",
            "num_frames": 24,
            "height": 256,
            "width": 512,
            "fps": 15.0,
            "partial": False,
            "boxes": [{"segment": "d1", "frame": 0, "x0": 0.0, "y0": 0.0, "x1": 0.5, "y1": 0.5}]
            if name == "bb"
            else None,
            "attributes": [("modality", "XA")],
        }
        for name in ("aa", "bb", "cc")
    ]
    quarantine = [{"source": "q", "reason": "empty", "detail": None}]
    sums = defaultdict(Counter, {"train": Counter(count=10, total=1000, squares=101000)})
    write_tables(folder, Tables([study], videos, quarantine, sums), {"made_by": "a test"})


@pytest.fixture
def sources(tmp_path):
    path = tmp_path / "prepared.sources.csv"
    path.write_text(
        "source,path,video_id,reason\n"
        "1,P1/1.2.840.1/1.dcm,aa,\n"
        "2,P1/1.2.840.1/2.dcm,bb,\n"
        "3,P2/1.2.840.2/1.dcm,cc,\n"
        "4,P2/1.2.840.2/9.dcm,,colour\n"
    )
    return path


def coco(tmp_path, images, annotations, categories=None, **more):
    """A COCO file; images and annotations are numbered from 1 where they have no id."""
    images = [{"id": number, "width": 512, "height": 256} | image for number, image in enumerate(images, 1)]
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": BOX} | a if isinstance(a, dict) else a
        for number, a in enumerate(annotations, 1)
    ]
    categories = categories or [{"id": 1, "name": "mid_lad"}]
    path = tmp_path / "lesions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories} | more))
    return path


def row(folder, video_id):
    return next(row for row in read_rows(folder, "videos") if row["video_id"] == video_id)


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["data_prep", "annotations", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    told = capsys.readouterr()
    return code, told.out, told.err


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


def test_a_box_becomes_fractions_of_its_frame(dataset, tmp_path):
    file = coco(tmp_path, [{"video_id": "aa", "frame_index": 7}], [{}])
    annotate(file, str(dataset))
    (box,) = row(dataset, "aa")["boxes"]
    assert box == {"segment": "mid_lad", "frame": 7, **FRACTIONS}
    assert row(dataset, "cc")["boxes"] is None


def test_a_box_drawn_on_a_larger_picture_lies_on_the_same_place(dataset, tmp_path):
    image = {"video_id": "aa", "frame_index": 7, "width": 1024, "height": 512}
    annotate(coco(tmp_path, [image], [{"bbox": [2 * n for n in BOX]}]), str(dataset))
    assert row(dataset, "aa")["boxes"] == [{"segment": "mid_lad", "frame": 7, **FRACTIONS}]


def test_the_frame_has_the_boxes_of_the_file_and_other_frames_keep_theirs(dataset, tmp_path):
    images = [{"video_id": "bb", "frame_index": 3}, {"video_id": "bb", "frame_index": 2}]
    annotate(
        coco(tmp_path, images, [{"image_id": 1}, {"image_id": 2}, {"image_id": 1, "bbox": [0, 0, 9, 9]}]), str(dataset)
    )
    assert [(box["segment"], box["frame"]) for box in row(dataset, "bb")["boxes"]] == [
        ("d1", 0),
        ("mid_lad", 2),
        ("mid_lad", 3),
        ("mid_lad", 3),
    ]
    annotate(coco(tmp_path, [{"video_id": "bb", "frame_index": 0}], [{}]), str(dataset))
    assert [box["segment"] for box in row(dataset, "bb")["boxes"]] == ["mid_lad"] * 4


def test_the_fingerprint_changes_with_the_boxes_and_only_with_them(dataset, tmp_path):
    card = json.loads((dataset / "dataset.json").read_text())
    file = coco(tmp_path, [{"video_id": "aa", "frame_index": 7}], [{}])
    before, after = annotate(file, str(dataset)).fingerprint
    assert before == card["fingerprint"] != after
    changed = json.loads((dataset / "dataset.json").read_text())
    assert changed == card | {"fingerprint": after}  # pixel statistics and counts are as they were
    assert annotate(file, str(dataset)).fingerprint == (after, after)
    assert PreparedDataset.open(str(dataset)).card["fingerprint"] == after


def test_the_fingerprint_is_the_one_that_the_door_would_write(dataset, tmp_path):
    annotate(coco(tmp_path, [{"video_id": "aa", "frame_index": 7}], [{}]), str(dataset))
    rows = [read_rows(dataset, name) for name in ("studies", "videos", "quarantine")]
    (tmp_path / "again").mkdir()
    again = write_tables(tmp_path / "again", Tables(*rows, defaultdict(Counter)), {})
    assert again["fingerprint"] == json.loads((dataset / "dataset.json").read_text())["fingerprint"]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({"file_name": "P1/1.2.840.1/2.dcm", "frame_index": 5}, ("bb", 5)),
        ({"file_name": "/archive/in/P1/1.2.840.1/2.dcm", "frame_index": 5}, ("bb", 5)),
        ({"file_name": "1.2.840.2\\1.dcm", "frame_index": 5}, ("cc", 5)),
        ({"file_name": "P1/1.2.840.1/2_0005.png"}, ("bb", 5)),
        ({"file_name": "frames/P1/1.2.840.1/2/frame_05.png"}, ("bb", 5)),
        ({"file_name": "./P1//1.2.840.1/2/5.jpg"}, ("bb", 5)),
        ({"file_name": "videos/aa/aa.avi", "frame_index": 0}, ("aa", 0)),
        ({"file_name": "aa_12.png"}, ("aa", 12)),
        ({"video_id": "aa", "file_name": "anything-12.png"}, ("aa", 12)),
        ({"video_id": 7, "frame_id": 3}, ("bb", 3)),
        ({"file_name": "2.dcm", "frame_index": 5}, ("bb", 5)),
        ({"file_name": "1.dcm", "frame_index": 5}, "ambiguous_video"),
        ({"file_name": "P1/1.2.840.1/3.dcm", "frame_index": 5}, "unknown_video"),
        ({"file_name": "P3/1.2.840.1/2.dcm", "frame_index": 5}, "unknown_video"),
        ({"file_name": "P2/1.2.840.2/9.dcm", "frame_index": 5}, "set_aside"),
        ({"video_id": 1, "frame_index": 5}, "unknown_video"),
        ({"video_id": ["aa"], "frame_index": 5}, "unknown_video"),
        ({"frame_index": 5}, "unknown_video"),
        ({"video_id": "aa"}, "no_frame"),
        ({"video_id": "aa", "frame_index": "5"}, "no_frame"),
        ({"file_name": "P1/1.2.840.1/2.dcm"}, ("1.2.840.1", "unknown")),
        ({"video_id": "aa", "frame_index": 24}, "frame_out_of_range"),
        ({"video_id": "aa", "frame_index": -1}, "frame_out_of_range"),
    ],
)
def test_which_frame_of_which_video_an_image_is(dataset, sources, image, expected):
    videos = Videos(read_rows(dataset, "videos"), sources, {7: "P1/1.2.840.1/2.dcm"})
    if isinstance(expected, tuple) and expected[1] != "unknown":
        found, frame = videos.find(image, 0)
        assert (found["video_id"], frame) == expected
    else:
        with pytest.raises(LeftOut) as caught:
            videos.find(image, 0)
        # A file name without a frame is read as NAME/FRAME, and no file is called like its folder.
        assert caught.value.reason == (expected if isinstance(expected, str) else "unknown_video")


def test_frames_may_be_counted_from_one(dataset, tmp_path):
    images = [{"video_id": "aa", "frame_index": frame} for frame in (1, 24, 0)]
    file = coco(tmp_path, images, [{"image_id": 1}, {"image_id": 2}, {"image_id": 3}])
    summary = annotate(file, str(dataset), first_frame=1)
    assert [box["frame"] for box in row(dataset, "aa")["boxes"]] == [0, 23]
    assert summary.left_out == [(3, 3, "frame_out_of_range")]


def test_every_annotation_is_used_or_left_out_with_its_reason(dataset, tmp_path):
    images = [{"video_id": "aa", "frame_index": 7}, {"video_id": "nobody", "frame_index": 7}]
    images += [{"video_id": "aa", "frame_index": 8, "width": 256}, {"video_id": "aa", "frame_index": 99}]
    bad = {
        "duplicate": [{}],
        "malformed": ["text", {"category_id": {}}, {"image_id": []}],
        "unknown_image": [{"image_id": 77}],
        "unknown_video": [{"image_id": 2}],
        "other_shape": [{"image_id": 3}],
        "frame_out_of_range": [{"image_id": 4}],
        "unknown_category": [{"category_id": 2}, {"category_id": 99}],
        "no_box": [{"bbox": None}, {"bbox": []}],
        "bad_box": [{"bbox": [1, 2, 3]}, {"bbox": [1, 2, 0, 3]}, {"bbox": "1234"}, {"bbox": [1, 2, 3, float("nan")]}],
        "box_outside": [{"bbox": [500, 0, 14, 10]}, {"bbox": [-3, 0, 14, 10]}, {"bbox": [512, 0, 0.5, 10]}],
        "bad_segmentation": [{"segmentation": [[1, 2]]}],
    }
    bad["bad_box"].append({"bbox": [1, 2, 3, 10**400]})
    used = [{}, {"bbox": [-0.5, 0, 10, 10]}, {"bbox": [500, 250, 12.9, 6.9]}]
    annotations = used + [case for cases in bad.values() for case in cases]
    categories = [{"id": 1, "name": "mid_lad"}, {"id": 2, "name": "aorta"}]
    summary = annotate(coco(tmp_path, images, annotations, categories), str(dataset))
    assert summary.reasons == {reason: len(cases) for reason, cases in bad.items()}
    assert summary.num_boxes == 3
    assert summary.num_boxes + len(summary.left_out) == summary.num_annotations == len(annotations)
    for box in row(dataset, "aa")["boxes"]:
        assert 0 <= box["x0"] < box["x1"] <= 1 and 0 <= box["y0"] < box["y1"] <= 1


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "aa", "aa_3", "61X1", "mid_lad"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["counts", "size", "id"]), inner),
    max_leaves=6,
)
SOUND = {
    "image": {"id": 1, "video_id": "aa", "frame_index": 3, "width": 512, "height": 256, "file_name": "aa_3.png"},
    "annotation": {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "segmentation": [[0, 0, 9, 0, 9, 9]]},
    "category": {"id": 1, "name": "mid_lad"},
}


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    write_dataset(folder)
    return folder


@given(data=st.data())
def test_no_file_breaks_it_and_none_loses_an_annotation(unchanged, data):
    """Any values in place of any fields: each annotation is used or left out, or the file is refused as a whole."""
    broken = {}
    for part, fields in SOUND.items():
        names = data.draw(st.sets(st.sampled_from(sorted(fields)), max_size=2))
        broken[part] = fields | {name: data.draw(ANYTHING) for name in names}
    content = {
        "images": [broken["image"], SOUND["image"] | {"id": "other"}],
        "annotations": [broken["annotation"], SOUND["annotation"] | {"id": 2, "image_id": "other"}],
        "categories": [broken["category"]],
    }
    (unchanged / "fuzz.json").write_text(json.dumps(content))
    try:
        summary = annotate(unchanged / "fuzz.json", str(unchanged), dry_run=True)
    except DataError:
        return
    assert summary.num_boxes + summary.num_masks + len(summary.left_out) == 2


def test_a_mask_is_a_png_of_segments(dataset, tmp_path):
    images = [{"video_id": "aa", "frame_index": 7, "width": 1024, "height": 512}, {"video_id": "aa", "frame_index": 9}]
    square = [[100, 40, 120, 40, 120, 60, 100, 60]]
    inner = {"counts": [0, 256 * 2, 256 * 510], "size": [256, 512]}  # the two columns at the left
    annotations = [{"segmentation": square}, {"image_id": 2, "segmentation": inner, "category_id": 2}]
    annotations += [{"image_id": 2, "segmentation": [[1, 0, 4, 0, 4, 256, 1, 256]], "category_id": 3}]
    categories = [{"id": 1, "name": "Proximal LAD"}, {"id": 2, "name": "mid-RCA"}, {"id": 3, "name": "vessel"}]
    summary = annotate(coco(tmp_path, images, annotations, categories), str(dataset), categories=["vessel=unnamed"])
    assert (summary.num_masks, summary.num_boxes, summary.left_out) == (3, 0, [])
    assert summary.num_overlapping == 256
    first = np.asarray(Image.open(dataset / "masks" / "aa" / "7.png"))
    expected = np.zeros((256, 512), np.uint8)
    expected[20:30, 50:60] = 1 + SEGMENTS.index("prox_lad")
    assert first.dtype == np.uint8 and (first == expected).all()
    second = np.asarray(Image.open(dataset / "masks" / "aa" / "9.png"))
    assert set(np.unique(second)) == {0, 1 + SEGMENTS.index("mid_rca"), 255}
    assert (second[:, 0] == 1 + SEGMENTS.index("mid_rca")).all() and (second[:, 1:4] == 255).all()
    assert dict(row(dataset, "aa")["attributes"]) == {"modality": "XA", "mask_frames": "7 9"}
    assert row(dataset, "aa")["boxes"] is None


def test_what_is_taken_of_an_annotation_that_has_both(dataset, tmp_path):
    both = {"segmentation": [[0, 0, 9, 0, 9, 9]]}
    file = coco(tmp_path, [{"video_id": "aa", "frame_index": 7}], [both, {"bbox": [1, 1, 5, 5]}])
    kinds = {kind: annotate(file, str(dataset), kind=kind, dry_run=True) for kind in ("auto", "boxes", "masks")}
    assert {kind: (s.num_boxes, s.num_masks, s.reasons) for kind, s in kinds.items()} == {
        "auto": (1, 1, {}),
        "boxes": (2, 0, {}),
        "masks": (0, 1, {"no_segmentation": 1}),
    }


def test_categories_are_segments_by_name_or_as_told():
    names = ["prox_lad", "Proximal LAD", "MID-RCA", "5", "stenosis", "aorta", "a=b"]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    told = ["5=left_main", "stenosis=unnamed", "a=b=skip", "MID-RCA=dist_rca"]
    expected = {0: "prox_lad", 1: "prox_lad", 2: "dist_rca", 3: "left_main", 4: "unnamed", 6: "skip"}
    assert read_categories(categories, told) == expected
    for wrong in ("nobody=d1", "5=aorta", "5", "=d1"):
        with pytest.raises(DataError, match="--category"):
            read_categories(categories, [wrong])


def test_the_exit_code_tells_and_the_list_names_no_file(dataset, sources, tmp_path, monkeypatch, capsys):
    images = [
        {"file_name": "P1/1.2.840.1/1.dcm", "frame_index": 1},
        {"file_name": "SMITH/JOHN/1.dcm", "frame_index": 1},
    ]
    file = coco(tmp_path, images, [{}, {"image_id": 2}])
    arguments = ("--coco", file, "--dataset", dataset, "--sources", sources)
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 1 and "unknown_video" in out and "fingerprint" in out
    listing = list(csv.reader(Path(f"{file}.left_out.csv").read_text().splitlines()))
    assert listing == [["annotation_id", "image_id", "reason"], ["2", "2", "unknown_video"]]
    assert "SMITH" not in out + err + str(listing) + str(contents(dataset))

    code, out, _ = run(monkeypatch, capsys, "--coco", coco(tmp_path, images, [{}]), *arguments[2:])
    assert code == 0 and "left out            0" in out
    assert run(monkeypatch, capsys, "--coco", coco(tmp_path, images, [{"image_id": 2}]), *arguments[2:])[0] == 2


def test_skipped_categories_are_counted_and_no_fault(dataset, tmp_path, monkeypatch, capsys):
    categories = [{"id": 1, "name": "mid_lad"}, {"id": 2, "name": "catheter"}]
    file = coco(tmp_path, [{"video_id": "aa", "frame_index": 1}], [{}, {"category_id": 2}], categories)
    code, out, _ = run(monkeypatch, capsys, "--coco", file, "--dataset", dataset, "--category", "catheter=skip")
    assert code == 0 and "skipped             1" in out


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"images": [], "annotations": []}',
        '{"images": [{}], "annotations": [], "categories": []}',
        "[" * 99999,
    ],
)
def test_a_file_that_is_no_coco_file_changes_nothing(dataset, tmp_path, monkeypatch, capsys, text):
    (tmp_path / "x.json").write_text(text)
    before = contents(dataset)
    code, _, err = run(monkeypatch, capsys, "--coco", tmp_path / "x.json", "--dataset", dataset)
    assert code == 2 and "x.json" in err and contents(dataset) == before


def test_a_dry_run_changes_nothing(dataset, tmp_path, monkeypatch, capsys):
    before = contents(dataset)
    file = coco(tmp_path, [{"video_id": "aa", "frame_index": 1}], [{}, {"segmentation": [[0, 0, 9, 0, 9, 9]]}])
    code, out, _ = run(monkeypatch, capsys, "--coco", file, "--dataset", dataset, "--dry-run")
    assert code == 0 and "nothing was written" in out and contents(dataset) == before


def test_every_reason_has_a_sentence():
    assert all(REASONS.values())
    with pytest.raises(ValueError, match="none of the reasons"):
        LeftOut("because")
