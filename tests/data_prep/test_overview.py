"""The overview: every number held against a plain loop, leakage found and told by the exit code, bad input in one
message."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.__main__ import main
from data_prep.overview.counts import GRADES, _is_significant, count
from data_prep.overview.leakage import equal_reports, equal_videos, patients_in_two_splits
from data_prep.overview.pixels import measure_intensities, sample, view_name
from data_prep.overview.tables import flat_findings, read_prepared
from deepcoro.data.schema import QUARANTINE_SCHEMA, SPLITS, STUDIES_SCHEMA, VIDEOS_SCHEMA
from deepcoro.errors import DataError
from deepcoro.reports.vocabulary import SEGMENTS, grade, is_significant


def run(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of ``python -m data_prep overview ...``."""
    monkeypatch.setattr(sys, "argv", ["data_prep", "overview", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    told = capsys.readouterr()
    return code, told.out, told.err


def tables_only(folder, studies, videos):
    """A dataset whose videos are rows and no files."""
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {"num_frames": 30, "height": 512, "width": 512, "fps": 15.0, "partial": False}
    videos = [defaults | {"video_id": f"v{n}", "uri": f"videos/v{n}.avi"} | row for n, row in enumerate(videos)]
    pq.write_table(pa.Table.from_pylist(studies, schema=STUDIES_SCHEMA), folder / "studies.parquet")
    pq.write_table(pa.Table.from_pylist(videos, schema=VIDEOS_SCHEMA), folder / "videos.parquet")
    (folder / "dataset.json").write_text(json.dumps({"fingerprint": "made-up"}))
    return folder


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 32, 32), dtype=np.uint8)


@pytest.fixture
def sound(tmp_path, make_dataset, write_video):
    """A patient in each split; four different videos, one of train without a tree."""
    (tmp_path / "d" / "videos").mkdir(parents=True)
    for number in range(4):
        write_video(tmp_path / "d" / "videos" / f"v{number}.avi", noise(number))
    studies = [
        {"study_id": "s-a", "split": "train", "report": "Normal coronary arteries."},
        {"study_id": "s-b", "split": "val", "report": "Mid LAD: 80% stenosis."},
        {"study_id": "s-c", "split": "test", "report": "Normal  coronary arteries. "},
    ]
    videos = [
        {"study_id": "s-a", "coronary_tree": "left", "num_frames": 8},
        {"study_id": "s-a", "num_frames": 8},
        {"study_id": "s-b", "coronary_tree": "right", "num_frames": 8},
        {"study_id": "s-c", "coronary_tree": "left", "num_frames": 8},
    ]
    return Path(make_dataset(tmp_path / "d", studies, videos))


def change(folder, name, **columns):
    """Set columns of some rows: ``column={row: value}``."""
    path = folder / f"{name}.parquet"
    rows = pq.read_table(path).to_pylist()
    for column, values in columns.items():
        for row, value in values.items():
            rows[row][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema={"studies": STUDIES_SCHEMA, "videos": VIDEOS_SCHEMA}[name]), path)


BOX = {"segment": "d1", "frame": 0, "x0": 0.0, "y0": 0.0, "x1": 0.5, "y1": 0.5}
FINDING = st.fixed_dictionaries(
    {
        "segment": st.sampled_from(SEGMENTS),
        "stenosis": st.none() | st.integers(0, 100),
        "occlusion": st.sampled_from([None, "none", "total", "cto"]),
        "calcification": st.sampled_from([None, "none", "severe"]),
        "thrombus": st.sampled_from([None, False, True]),
        "stent": st.sampled_from([None, False, True]),
        "in_stent_restenosis": st.sampled_from([None, 0, 35]),
        "medina": st.sampled_from([None, "1,1,0"]),
    }
)
STUDY = st.fixed_dictionaries(
    {
        "patient_id": st.sampled_from("abcdef"),
        "split": st.sampled_from(SPLITS),
        "dominance": st.sampled_from([None, "left", "right", "balanced"]),
        "report": st.sampled_from([None, "", "one", "two words", "three more  words"]),
        "findings": st.none() | st.lists(FINDING, max_size=4),
        "lvef": st.none() | st.integers(20, 70),
    }
)
VIDEO = st.fixed_dictionaries(
    {
        "study": st.integers(0, 5),
        "coronary_tree": st.sampled_from([None, "left", "right"]),
        "acquisition": st.sampled_from([None, "diagnostic", "pci"]),
        "fps": st.sampled_from([7.5, 15.0, 30.0]),
        "num_frames": st.integers(1, 90),
        "boxes": st.none() | st.integers(0, 3).map(lambda n: [BOX] * n),
        "attributes": st.none() | st.dictionaries(st.sampled_from("xyz"), st.sampled_from(["1", "2"])),
    }
)


@given(studies=st.lists(STUDY, min_size=6, max_size=8), videos=st.lists(VIDEO, min_size=1, max_size=12))
def test_every_count_is_that_of_a_plain_loop(tmp_path_factory, studies, videos):
    studies = [row | {"study_id": f"s{number}"} for number, row in enumerate(studies)]
    split_of = {row["study_id"]: row["split"] for row in studies}
    videos = [{k: v for k, v in row.items() if k != "study"} | {"study_id": f"s{row['study']}"} for row in videos]
    videos = [row | {"attributes": list(row["attributes"].items())} if row["attributes"] else row for row in videos]
    folder = tmp_path_factory.mktemp("t")
    counts = count(read_prepared(str(tables_only(folder, studies, videos))))
    shutil.rmtree(folder)

    def by_split(splits):
        found = Counter(splits)
        return {split: found[split] for split in SPLITS}

    assert counts.totals["patients"] == by_split(s for _, s in {(r["patient_id"], r["split"]) for r in studies})
    assert counts.totals["studies"] == by_split(r["split"] for r in studies)
    assert counts.totals["  with a report"] == by_split(r["split"] for r in studies if r["report"])
    assert counts.totals["  with findings"] == by_split(r["split"] for r in studies if r["findings"] is not None)
    assert counts.totals["    without disease"] == by_split(r["split"] for r in studies if r["findings"] == [])
    assert counts.totals["    significant disease"] == by_split(
        r["split"]
        for r in studies
        if any(is_significant(f["segment"], f["stenosis"], f["occlusion"] or "none") for f in r["findings"] or [])
    )
    assert counts.totals["  with boxes"] == by_split(split_of[r["study_id"]] for r in videos if r["boxes"])
    assert counts.spreads["boxes a video"].num == sum(bool(r["boxes"]) for r in videos)
    for name, column, rows in (
        ("coronary tree", "coronary_tree", [r | {"split": split_of[r["study_id"]]} for r in videos]),
        ("acquisition", "acquisition", [r | {"split": split_of[r["study_id"]]} for r in videos]),
        ("dominance", "dominance", studies),
    ):
        plain = {v: by_split(r["split"] for r in rows if r[column] == v) for v in {r[column] for r in rows}}
        assert counts.categories[name] == {v or "unknown": numbers for v, numbers in plain.items()}
    findings = [(r["split"], f) for r in studies for f in r["findings"] or []]
    for segment in SEGMENTS:
        own = [(split, f) for split, f in findings if f["segment"] == segment]
        assert counts.segments[segment] == by_split(split for split, _ in own)
        words = Counter(
            f["occlusion"]
            if f["occlusion"] in ("total", "cto")
            else "no grade"
            if f["stenosis"] is None
            else grade(f["stenosis"])
            for _, f in own
        )
        signs = {
            "stent": sum(f["stent"] is True for _, f in own),
            "restenosis": sum((f["in_stent_restenosis"] or 0) > 0 for _, f in own),
            "calcified": sum(f["calcification"] == "severe" for _, f in own),
            "thrombus": sum(f["thrombus"] is True for _, f in own),
            "Medina": sum(f["medina"] is not None for _, f in own),
        }
        assert counts.signs[segment] == dict.fromkeys(("collaterals", "PCI", "iFR"), 0) | signs
        assert counts.grades[segment] == {kind: words[kind] for kind in GRADES}
    seconds = [r["num_frames"] / r["fps"] for r in videos]
    assert counts.spreads["duration, s"].quantiles == pytest.approx(np.quantile(seconds, [0, 0.05, 0.5, 0.95, 1]))
    words = [len(r["report"].split()) for r in studies if r["report"]]
    assert counts.spreads["report, words"].num == len(words)
    if words:
        assert counts.spreads["report, words"].quantiles[2] == np.median(words)
    assert counts.reports == (len(words), len({r["report"] for r in studies if r["report"]}))
    assert counts.rates == {f"{f:g}": n for f, n in Counter(r["fps"] for r in videos).items()}
    pairs = Counter(pair for r in videos for pair in r["attributes"] or [])
    assert {(k, v): n for k, values in counts.attributes.items() for v, n in values.items()} == pairs


@given(st.lists(FINDING, min_size=1, max_size=30))
def test_significant_disease_is_what_the_vocabulary_says(findings):
    table = flat_findings(
        pa.Table.from_pylist([{"split": "train", "findings": findings}], _schema("split", "findings"))
    )
    plain = [is_significant(f["segment"], f["stenosis"], f["occlusion"] or "none") for f in findings]
    assert _is_significant(table).tolist() == plain


def _schema(*names):
    return pa.schema([STUDIES_SCHEMA.field(name) for name in names])


def test_a_sound_dataset_ends_with_zero_and_tells_of_equal_reports(sound, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, sound)
    assert code == 0
    assert "each stands in one split" in out and "none is equal to one of another split (4 files" in out
    assert "1 of 2 in val and test (50%) stand in train too" in out  # spacing does not tell texts apart
    assert "LEAKAGE" not in out


def test_a_patient_in_two_splits_is_leakage(sound, monkeypatch, capsys):
    change(sound, "studies", patient_id={0: "same", 2: "same"})
    code, out, _ = run(monkeypatch, capsys, sound, "--no-pixels")
    assert code == 1
    assert "LEAKAGE: 1 patients stand in two splits: same" in out
    assert patients_in_two_splits(pq.read_table(sound / "studies.parquet")) == {"same": ["train", "test"]}
    assert re.search(r"studies +1 +1 +1 +3", out)  # everything else is told all the same


def test_equal_videos_are_leakage_across_splits_and_a_warning_within_one(sound, monkeypatch, capsys):
    videos = sound / "videos"
    shutil.copy(videos / "v0.avi", videos / "v1.avi")  # both train
    code, out, _ = run(monkeypatch, capsys, sound)
    assert code == 0 and "warning: 1 videos repeat another of the same split, as v0 is" in out
    shutil.copy(videos / "v0.avi", videos / "v3.avi")  # test
    code, out, _ = run(monkeypatch, capsys, sound)
    assert code == 1 and "LEAKAGE: 3 videos are equal to one of another split, in 1 groups: v0 = v1 = v3" in out
    code, out, _ = run(monkeypatch, capsys, sound, "--no-pixels")
    assert code == 0 and "not compared (--no-pixels)" in out


def test_videos_of_one_size_and_another_content_are_not_equal(sound):
    data = bytearray((sound / "videos" / "v0.avi").read_bytes())
    data[-1] ^= 1
    (sound / "videos" / "v3.avi").write_bytes(data)
    found = equal_videos(read_prepared(str(sound)))
    assert (found.across, found.within) == ([], []) and found.num_hashed >= 2


def test_a_report_is_counted_where_another_split_has_it():
    rows = [("train", "a b"), ("train", "a b"), ("train", "c"), ("val", "a  b\n"), ("val", None), ("test", "d")]
    table = pa.Table.from_pylist([{"split": s, "report": r} for s, r in rows], _schema("split", "report"))
    found = equal_reports(table)
    assert found.num_texts == 1 and found.held_out == (1, 2)
    assert found.repeated == {"train": (2, 3), "val": (1, 1), "test": (0, 1)}


def test_a_missing_or_damaged_video_ends_with_two(sound, monkeypatch, capsys):
    (sound / "videos" / "v2.avi").unlink()
    code, out, err = run(monkeypatch, capsys, sound)
    assert code == 2 and "1 videos that were opened cannot be read, the first v2" in err
    assert "what the splits share" in out
    assert run(monkeypatch, capsys, sound, "--no-pixels")[0] == 0
    (sound / "videos" / "v2.avi").write_bytes((sound / "videos" / "v1.avi").read_bytes()[:900])
    assert run(monkeypatch, capsys, sound)[0] == 2


def test_everything_wrong_with_the_tables_is_one_message(sound, monkeypatch, capsys, tmp_path):
    code, _, err = run(monkeypatch, capsys, tmp_path / "nothing")
    assert code == 2
    for name in ("studies.parquet is missing", "videos.parquet is missing", "dataset.json is missing"):
        assert name in err
    (sound / "dataset.json").write_text("{")
    (sound / "studies.parquet").write_bytes(b"no table")
    code, _, err = run(monkeypatch, capsys, sound)
    assert code == 2 and "dataset.json cannot be read" in err and "studies.parquet is not a Parquet file" in err
    assert err.count("error:") == 1


@pytest.mark.parametrize(
    ("name", "columns", "words"),
    [
        ("studies", {"split": {0: "training"}}, "split must be one of"),
        ("studies", {"study_id": {0: "s-b"}}, "study_id must be unique"),
        ("studies", {"findings": {0: [{"segment": "aorta"}]}}, "unknown segments 'aorta'"),
        ("studies", {"findings": {0: [{"segment": "d1", "stenosis": 140}]}}, "0 to 100 percent, and is not in 1"),
        ("videos", {"study_id": {1: "nobody"}}, "1 videos name a study_id"),
        ("videos", {"video_id": {1: "v0"}}, "video_id must be unique"),
        ("videos", {"fps": {1: 0.0}}, "fps must be above 0, and is not in 1 rows"),
        ("videos", {"coronary_tree": {1: "middle"}}, "coronary_tree must be one of"),
    ],
)
def test_rows_that_training_would_refuse_are_refused(sound, name, columns, words):
    change(sound, name, **columns)
    with pytest.raises(DataError, match=re.escape(words)):
        read_prepared(str(sound))


def test_the_order_of_the_rows_changes_nothing(sound, monkeypatch, capsys):
    before = run(monkeypatch, capsys, sound, "--sheet", sound / "a.png")
    for name in ("studies", "videos"):
        table = pq.read_table(sound / f"{name}.parquet")
        pq.write_table(table.take(list(range(len(table)))[::-1]), sound / f"{name}.parquet", row_group_size=1)
    after = run(monkeypatch, capsys, sound, "--sheet", sound / "b.png")
    assert after[1].replace("b.png", "a.png") == before[1]
    assert (sound / "a.png").read_bytes() == (sound / "b.png").read_bytes()


def test_a_uri_is_read_like_a_folder(sound, monkeypatch, capsys):
    here = run(monkeypatch, capsys, sound)
    there = run(monkeypatch, capsys, sound.as_uri())
    assert there[0] == 0 and there[1].replace(sound.as_uri(), str(sound)) == here[1]


def test_quarantine_is_counted_by_reason(sound, monkeypatch, capsys):
    rows = [{"source": str(n), "reason": reason} for n, reason in enumerate(("empty", "colour", "empty"))]
    pq.write_table(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA), sound / "quarantine.parquet")
    _, out, _ = run(monkeypatch, capsys, sound, "--no-pixels")
    assert re.search(r"3 files left out\n  empty +2\n  colour +1\n", out)


def test_grey_levels_are_those_of_the_frames(tmp_path, make_dataset, write_video):
    frames = np.zeros((4, 32, 32), np.uint8)
    frames[:, :, 16:] = 200  # blocks of 8 and 16 pixels: MJPEG keeps flat ones
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "v0.avi", frames)
    prepared = read_prepared(make_dataset(tmp_path, [{"study_id": "s"}], [{"study_id": "s", "num_frames": 4}]))
    grey = measure_intensities(prepared, 8)
    assert grey.mean == pytest.approx(100, abs=1) and grey.std == pytest.approx(100, abs=1)
    assert grey.still == 1 and grey.white == 0 and grey.black == pytest.approx(0.5, abs=0.05)


def test_the_sheet_shows_middle_frames_and_names_nobody(tmp_path, make_dataset, monkeypatch, capsys):
    studies = [{"study_id": "s", "split": "train"}, {"study_id": "t", "split": "test"}]
    videos = [{"study_id": "s", "coronary_tree": "left"}] * 12 + [{"study_id": "t", "coronary_tree": "right"}]
    folder = Path(make_dataset(tmp_path / "d", studies, videos))  # each frame t has grey 20 + 6 t
    assert run(monkeypatch, capsys, folder, "--sheet", tmp_path / "sheet.png")[0] == 1  # all ramps are equal
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and not sheet.info
        pixels = np.asarray(sheet)
    tiles = [pixels[row * 182 + 80, 120 + column * 164 + 80] for row in range(2) for column in range(8)]
    middle = 20 + 6 * 12  # of 24 frames
    assert np.abs(np.array(tiles[:9]) - float(middle)).max() <= 2  # eight of train, one of test
    assert set(tiles[9:]) == {255}


def test_views_are_named_as_in_the_laboratory():
    assert view_name(30.4, -20.0) == "LAO 30 CAU 20"
    assert view_name(-1.0, 25.0) == "RAO 1 CRA 25"
    assert view_name(None, None) == "view unknown"


def test_a_sample_is_spread_evenly_and_has_no_row_twice():
    table = pa.table({"video_id": [f"{n:04}" for n in np.random.default_rng(0).permutation(1000)]})
    rows = sample(table, 64)
    ids = np.sort(np.array(table["video_id"].to_pylist(), int)[rows])
    assert len(set(rows.tolist())) == 64 and ids[0] == 0 and ids[-1] == 999
    assert set(np.diff(ids)) <= {15, 16}
    assert len(sample(table, 2000)) == 1000


def test_sheet_without_pixels_is_refused(sound, monkeypatch, capsys):
    assert run(monkeypatch, capsys, sound, "--no-pixels", "--sheet", sound / "x.png")[0] == 2


def test_made_up_tables_are_counted_as_pandas_counts_them(tmp_path):
    """What the benchmark compares, small: both ways to every number."""
    from experiments.bench.overview import add_attributes, with_overview, with_pandas
    from experiments.bench.tables import make_tables

    make_tables(tmp_path / "prepared", 400)
    add_attributes(tmp_path / "prepared")
    ours, theirs = (by(str(tmp_path / "prepared"))["numbers"] for by in (with_overview, with_pandas))
    assert ours == theirs
    assert sum(ours["videos"].values()) == 3200 and ours["leaking"] == 0
