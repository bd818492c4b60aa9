"""What captioning is asked for: a report, or a finding and where the clip shows it, after crop and frame sampling."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.config import Config
from deepcoro.data.augment import Crop
from deepcoro.data.caption_tasks import (
    TASKS,
    WORDS,
    Region,
    check_words,
    choose_caption,
    prompt_ids,
    read_region,
    regions_in_view,
    write_region,
)
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import ConfigError
from deepcoro.reports.grammar import parse_report

FINDINGS = [
    {"segment": "prox_lad", "stenosis": 80, "occlusion": "none", "ifr": 0.89},
    {"segment": "mid_rca", "stenosis": 100, "occlusion": "cto", "timi": 0},
]
LAD, RCA = "Proximal LAD: 80% stenosis (severe), iFR 0.89.", "Mid RCA: chronic total occlusion (100%), TIMI 0 flow."
REGION = Region("prox_lad", 3, (0.24, 0.088, 0.36, 0.194))
EVEN = Config(captioning={"tasks": {"report": 1, "aref": 1, "gcap": 1}, "parallel_share": 0.25}).captioning


def box(segment, frame, *edges):
    return {"segment": segment, "frame": frame} | dict(zip(("x0", "y0", "x1", "y1"), edges, strict=True))


def test_regions_by_hand():
    crop = Crop(x0=50.0, y0=0.0, side=100.0)  # of a video of 100 x 200 pixels (height x width): pixels 50 to 150
    boxes = [
        box("d1", 8, 0.5, 0.2, 0.6, 0.4),  # pixels 100 to 120: inside
        box("d2", 8, 0.2, 0.0, 0.3, 0.5),  # pixels 40 to 60: half of it
        box("om1", 8, 0.19, 0.0, 0.30, 0.5),  # pixels 38 to 60: 10 of 22
        box("om2", 8, 0.0, 0.0, 0.2, 1.0),  # outside
        box("pda", 5, 0.5, 0.2, 0.6, 0.4),  # on no frame of the clip
        box("bx", 12, 0.625, 0.9, 0.875, 1.0),  # pixels 125 to 175: half
        box("d1", 12, 0.65, 0.9, 0.9, 1.0),  # pixels 130 to 180: 20 of 50
    ]
    found = regions_in_view(np.array([4, 8, 8, 12]), boxes, 100, 200, crop)
    assert [(region.segment, region.frame) for region in found] == [("d1", 1), ("d2", 1), ("bx", 3)]
    wanted = [(0.5, 0.2, 0.7, 0.4), (0.0, 0.0, 0.1, 0.5), (0.75, 0.9, 1.0, 1.0)]
    assert np.allclose([region.box for region in found], wanted)
    assert regions_in_view(np.array([4]), [], 100, 200, crop) == []


def test_a_box_without_area_is_not_there():
    assert regions_in_view(np.array([0]), [box("d1", 0, 0.5, 0.2, 0.5, 0.4)], 100, 100, Crop(0, 0, 100)) == []


def test_a_region_is_written_in_whole_numbers_of_500():
    assert write_region(REGION) == "Frame 3: 120 44 180 97."
    assert read_region("GCap: frame 3: 120 44 180 97. Proximal LAD: 80%") == (3, (0.24, 0.088, 0.36, 0.194))
    assert write_region(Region("d1", 0, (0.0, 0.0, 1.0, 1.0))) == "Frame 0: 0 0 500 500."


@pytest.mark.parametrize("text", ["", "Frame 3: 120 44 180.", "Frame 3: 180 44 120 97.", "Frame 3: 120 44 180 501."])
def test_what_is_no_region_is_none(text):
    assert read_region(text) is None


@given(st.integers(0, 99), *[st.floats(0, 0.9) for _ in range(2)], *[st.floats(0.01, 0.1) for _ in range(2)])
def test_a_region_comes_back_to_a_thousandth(frame, x0, y0, width, height):
    edges = (x0, y0, x0 + width, y0 + height)
    found = read_region(write_region(Region("d1", frame, edges)))
    assert found[0] == frame
    assert np.abs(np.subtract(found[1], edges)).max() <= 0.001 + 1e-9


def caption(*chance, report="Report.", regions=(REGION,), part=EVEN, findings=FINDINGS):
    return choose_caption(part, report, regions, findings, np.array([*chance, 0.0, 0.0, 0.0][:4]))


def test_a_task_is_drawn_by_its_share():
    assert [caption(x).task for x in (0.0, 0.33, 0.34, 0.66, 0.67, 0.999)] == [
        "report", "report", "aref", "aref", "gcap", "gcap",
    ]  # fmt: skip
    only = Config(captioning={"tasks": {"report": 0, "aref": 0.2}}).captioning
    assert {caption(x, part=only).task for x in (0.0, 0.5, np.nextafter(1, 0))} == {"aref"}
    assert {caption(x, part=Config().captioning).task for x in (0.0, 0.5, 0.999)} == {"report"}


def test_texts_by_hand():
    assert caption(0.0).text == "Report."
    assert caption(0.5).text == f"{LAD} Frame 3: 120 44 180 97."
    assert caption(0.9).text == f"Frame 3: 120 44 180 97. {LAD}"


def test_what_cannot_be_asked_for_stays_a_report():
    assert caption(0.5, regions=()).task == "report"
    assert caption(0.5, regions=[Region("d1", 0, REGION.box)]).task == "report"  # a box of which nothing is said
    assert caption(0.5, findings=None).task == "report"
    without = caption(0.5, report=None, regions=())
    assert (without.task, without.text) == ("report", None)


def test_without_a_report_boxes_are_asked_for_all_the_same():
    assert [caption(x, report=None).task for x in (0.0, 0.49, 0.51, 0.999)] == ["aref", "aref", "gcap", "gcap"]
    assert caption(0.0, report=None).text == f"{LAD} Frame 3: 120 44 180 97."
    alone = caption(0.0, report=None, part=Config(captioning={"parallel_share": 0.5}).captioning)
    assert (alone.task, alone.text) == ("report", None)  # nothing but reports is learnt there


def test_one_region_is_drawn_segment_first():
    regions = [Region("prox_lad", t, REGION.box) for t in range(4)] + [Region("mid_rca", 7, REGION.box)]
    told = [caption(0.5, 0.0, x, y, regions=regions).text for x, y in ((0.0, 0.0), (0.49, 0.99), (0.5, 0.6))]
    assert [text[: text.index("Frame")].strip() for text in told] == [LAD, LAD, RCA]
    assert [read_region(text)[0] for text in told] == [0, 3, 7]


def test_only_reports_are_predicted_in_parallel_and_by_their_share():
    assert [caption(0.0, x).parallel for x in (0.0, 0.24, 0.25, 0.9)] == [True, True, False, False]
    assert not caption(0.5, 0.0).parallel
    assert not caption(0.9, 0.0).parallel
    assert caption(0.5, 0.0, regions=()).parallel


def test_a_tokenizer_has_to_know_the_words(task_tokenizer):
    from transformers import BertTokenizerFast

    check_words(task_tokenizer, "ours")
    few = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Normal", "."))}
    theirs = ReportTokenizer.from_pretrained(BertTokenizerFast(vocab=few, do_lower_case=False), 64)
    with pytest.raises(ConfigError, match=r"'theirs' makes .* of 'Cap:'.*WORDS"):
        check_words(theirs, "theirs")
    assert len({tuple(task_tokenizer.prompt(text)) for text in WORDS}) == 4


def test_a_tokenizer_has_to_know_every_number():
    """Word pieces know a digit at the head of a number, and apart from that behind another."""
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Cap", "ARef", "GCap", "Frame", ":", ".", *"0123456789"]

    def tokenizer(behind):
        vocab = {word: number for number, word in enumerate([*words, *(f"##{digit}" for digit in behind)])}
        return ReportTokenizer.from_pretrained(BertTokenizerFast(vocab=vocab, do_lower_case=False), 64)

    check_words(tokenizer("0123456789"), "theirs")
    learnt = set(re.findall(r"(?<=\d)\d", " ".join(WORDS)))
    assert learnt == set("0123456789")  # so that who learns WORDS knows all
    for digit in "0123456789":
        with pytest.raises(ConfigError, match=r"'theirs' makes .*WORDS"):
            check_words(tokenizer(sorted(learnt - {digit})), "theirs")


def test_numbers_survive_the_tokenizer(task_tokenizer):
    for number in range(501):
        text = f"{LAD} Frame {number % 16}: {number} 0 500 {500 - number}."
        assert task_tokenizer.decode(task_tokenizer.prompt(text)[1:]) == text


def test_a_prompt_is_the_beginning_of_a_row(task_tokenizer):
    part, words = EVEN, task_tokenizer
    place = write_region(REGION)
    for task, given_text, text in (
        ("report", "", "Left coronary tree."),
        ("aref", "", f"{LAD} {place}"),
        ("aref", LAD, f"{LAD} {place}"),
        ("gcap", place, f"{place} {LAD}"),
    ):
        row = words.encode_after([TASKS[task]], [text])
        prompt = prompt_ids(words, part, task, given_text)
        assert row.ids[0, : len(prompt)].tolist() == prompt
        if not given_text:
            assert len(prompt) == row.prefix_length[0]
            assert words.decode(prompt[1:]) == TASKS[task]
        assert words.decode(row.ids[0, len(prompt) :].tolist()) == text.removeprefix(given_text).strip()
    assert prompt_ids(words, Config().captioning) == [words.start_id]  # as runs without tasks were trained
    with pytest.raises(ConfigError, match="not trained on the task 'gcap'"):
        prompt_ids(words, Config(captioning={"tasks": {"aref": 1}}).captioning, "gcap")


def test_a_prefix_takes_no_token_of_the_text_and_the_end_stays(task_tokenizer):
    texts = ["Mid LAD: normal.", "normal " * 200, "normal " * 60, None]
    alone, lengths = task_tokenizer.encode(texts)
    row = task_tokenizer.encode_after(["Cap:"] * 4, texts)
    assert row.prefix_length.tolist() == [3, 3, 3, 1]
    assert row.ids[0, 3 : row.length[0]].tolist() == alone[0, 1 : lengths[0]].tolist()
    assert row.cut.tolist() == [False, True, lengths[2] + 2 > 64, False]
    for place in range(4):
        assert row.length[place] <= 64
        assert row.ids[place, row.length[place] - 1] == task_tokenizer.end_id


@pytest.fixture(scope="module")
def squares(make_dataset, write_video, tmp_path_factory):
    """A study of two cines of 24 frames of 64 x 64, in which a square moves and grows brighter; it is boxed on each."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "videos").mkdir()
    videos = []
    for number, (tree, segment, x, y) in enumerate((("left", "prox_lad", 12, 20), ("right", "mid_rca", 34, 26))):
        frames, boxes = np.full((24, 64, 64), 60, np.uint8), []
        for frame in range(24):
            left, upper = x + frame // 3, y
            frames[frame, upper : upper + 16, left : left + 16] = 80 + 6 * frame
            boxes.append(box(segment, frame, left / 64, upper / 64, (left + 16) / 64, (upper + 16) / 64))
        write_video(folder / "videos" / f"v{number}.avi", frames)
        videos.append({"study_id": "a", "coronary_tree": tree, "height": 64, "width": 64, "boxes": boxes})
    study = {"study_id": "a", "dominance": "right", "findings": FINDINGS}
    return make_dataset(folder, [study], videos)


STUDY = ("data.unit=study", "data.num_videos=2", "captioning.level=clip")
WIDE = (
    "data.crop_scale=[0.5, 1.0]",
    "data.frame_size=48",
    "data.intensity_jitter=0",
    "video_encoder.tubelet=[2, 8, 8]",
)


def reader_of(folder, config, words, training=True):
    return UnitReader(config, PreparedDataset.open(folder).units("train", config.data.unit), words, training)


def captions_of(batch, words, of_clips=""):
    ids, length = (batch[f"{of_clips}caption_{name}"] for name in ("ids", "length"))
    rows = zip(ids.reshape(-1, ids.shape[-1]).tolist(), length.reshape(-1).tolist(), strict=True)
    return [words.decode(row[1:n]) for row, n in rows]


def test_the_text_tells_where_the_clip_shows_it(squares, task_config, task_tokenizer):
    """The box that a row's text names holds the square, in the frame that it names, whatever was cropped."""
    config = task_config(*WIDE)
    batch = reader_of(squares, config, task_tokenizer).read(np.arange(120), np.arange(120) % 2)
    texts, seen = captions_of(batch, task_tokenizer), dict.fromkeys(TASKS, 0)
    for row, text in enumerate(texts):
        task = [*TASKS][batch["task"][row]]
        seen[task] += 1
        assert text.startswith(TASKS[task])
        assert task_tokenizer.decode(batch["caption_ids"][row, 1 : batch["prefix_length"][row]].tolist()) == TASKS[task]
        report = task_tokenizer.decode(batch["input_ids"][row].tolist())
        if task == "report":
            assert text == f"Cap: {report}"
            continue
        told = (LAD, RCA)[row % 2]
        assert told in text
        assert told in report
        frame, edges = read_region(text)
        x0, y0, x1, y1 = np.round(np.array(edges) * 48).astype(int)
        clip = batch["clip"][row, 0].astype(int)
        outside = np.ones((48, 48), bool)
        outside[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = False
        assert clip[frame][outside].max() < 70  # nothing bright elsewhere: the square was not larger than the box
        inside = np.median(clip[frame, y0 + 1 : max(y1 - 1, y0 + 2), x0 + 1 : max(x1 - 1, x0 + 2)])
        levels = [c[~outside].max() for c in clip]
        assert abs(levels[frame] - inside) < 12  # and it is that frame's
        assert levels == sorted(levels)
    assert min(seen.values()) > 20
    assert abs(seen["aref"] - seen["gcap"]) < 30


def test_a_clip_whose_box_is_cropped_away_is_asked_for_its_report(make_dataset, tmp_path, task_config, task_tokenizer):
    boxes = [box("prox_lad", frame, 0.0, 0.0, 0.06, 0.06) for frame in range(24)]  # in the corner
    video = {"study_id": "a", "coronary_tree": "left", "boxes": boxes}
    folder = make_dataset(tmp_path, [{"study_id": "a", "findings": FINDINGS}], [video])
    config = task_config("captioning.tasks.report=0", "data.crop_scale=[0.5, 0.5]")
    batch = reader_of(folder, config, task_tokenizer).read(np.arange(30), np.zeros(30, int))
    in_view = ~np.isnan(batch["boxes"][:, 0, 0, 0])
    assert (batch["task"][~in_view] == 0).all()
    assert (batch["task"] == 0).sum() > 20
    whole = reader_of(folder, task_config("captioning.tasks.report=0", "data.crop_scale=[1, 1]"), task_tokenizer)
    assert (whole.read(np.arange(30), np.zeros(30, int))["task"] > 0).all()


def test_a_row_is_the_same_in_any_company_and_its_clip_that_of_a_run_without_tasks(
    squares, task_config, task_tokenizer
):
    config = task_config(*WIDE, "captioning.parallel_share=0.5")
    positions, reader = np.arange(40), reader_of(squares, config, task_tokenizer)
    together = reader.read(positions, positions % 2)
    texts = captions_of(together, task_tokenizer)
    assert set(together["parallel"].tolist()) == {False, True}
    assert not together["parallel"][together["task"] > 0].any()
    for first in range(0, 40, 8):
        some = positions[first : first + 8]
        apart = reader.read(some, some % 2)
        assert captions_of(apart, task_tokenizer) == texts[first : first + 8]
        for key in ("task", "prefix_length", "caption_length", "parallel"):
            assert np.array_equal(apart[key], together[key][first : first + 8])
    plain = reader_of(squares, task_config(*WIDE, "captioning.tasks.aref=0", "captioning.tasks.gcap=0"), task_tokenizer)
    without = plain.read(positions, positions % 2)
    assert without.keys() == together.keys() - {"caption_ids", "caption_length", "has_caption", "parallel"}
    for key in without.keys() - {"task", "prefix_length", "unit_id", "problem"}:
        assert np.array_equal(without[key], together[key], equal_nan=without[key].dtype.kind == "f"), key
    assert (without["task"] == 0).all()
    assert (without["prefix_length"] == 1).all()
    other = reader_of(squares, task_config(*WIDE, "seed=1"), task_tokenizer).read(positions, positions % 2)
    assert captions_of(other, task_tokenizer) != texts


def test_evaluation_asks_for_reports(squares, task_config, task_tokenizer):
    config = task_config(*WIDE, "captioning.tasks.report=0", "captioning.parallel_share=0.9")
    batch = reader_of(squares, config, task_tokenizer, training=False).read(np.arange(2), np.arange(2))
    assert batch["task"].tolist() == [0, 0]
    assert "parallel" not in batch
    for row, text in enumerate(captions_of(batch, task_tokenizer)):
        assert text == f"Cap: {task_tokenizer.decode(batch['input_ids'][row].tolist())}"


def test_clips_of_a_study_have_tasks_of_their_own(squares, task_config, task_tokenizer):
    config = task_config(*STUDY, *WIDE, "captioning.parallel_share=0.5")
    batch = reader_of(squares, config, task_tokenizer).read(np.arange(60), np.zeros(60, int))
    tasks = batch["clip_task"]
    assert tasks.shape == batch["clip_parallel"].shape == (60, 2)
    assert (tasks[:, 0] != tasks[:, 1]).sum() > 20
    assert (batch["task"] == 0).all()
    assert "caption_ids" not in batch
    texts = np.array(captions_of(batch, task_tokenizer, "clip_")).reshape(60, 2)
    for view, told in enumerate((LAD, RCA)):
        for text, task in zip(texts[:, view], tasks[:, view], strict=True):
            assert text.startswith([*TASKS.values()][task])
            assert told in text
    whole = task_tokenizer.decode(batch["input_ids"][0].tolist())  # contrastive compares studies here
    assert {f.segment for f in parse_report(whole).findings} == {"prox_lad", "mid_rca"}


def test_a_whole_study_has_no_frames_to_name(task_config):
    with pytest.raises(ConfigError, match=r"captioning.level=clip"):
        task_config("data.unit=study", "data.num_videos=2")
    task_config(*STUDY)


def test_texts_that_lose_their_end_are_counted(make_dataset, tmp_path, task_config, task_tokenizer):
    long = "Normal coronary arteries. " * 30
    studies = [{"study_id": "a", "report": long}, {"study_id": "b", "report": "Normal."}, {"study_id": "c"}]
    videos = [{"study_id": name} for name in ("a", "a", "b", "c")]
    folder = make_dataset(tmp_path, studies, videos)
    of_videos = reader_of(folder, task_config(), task_tokenizer).read(np.arange(4), np.arange(4))
    assert of_videos["num_cut"].tolist() == [1, 1, 0, 0]
    assert of_videos["text_length"].tolist()[:2] == [64, 64]
    clips = reader_of(folder, task_config(*STUDY, "contrastive.level=clip"), task_tokenizer)
    assert clips.read(np.arange(3), np.arange(3))["num_cut"].tolist() == [2, 0, 0]
    both = reader_of(folder, task_config(*STUDY), task_tokenizer)
    assert both.read(np.arange(3), np.arange(3))["num_cut"].tolist() == [3, 0, 0]


def test_a_report_that_no_loss_reads_is_not_counted_as_cut(
    squares, make_dataset, tmp_path, task_config, task_tokenizer
):
    findings = [{"segment": "prox_lad", "stenosis": 80, "occlusion": "none"}]
    box = {"segment": "prox_lad", "x0": 0.4, "y0": 0.4, "x1": 0.6, "y1": 0.6}
    study = {"study_id": "a", "findings": findings, "report": "Normal coronary arteries. " * 30}
    video = {"study_id": "a", "boxes": [box | {"frame": frame} for frame in range(24)], "coronary_tree": None}
    folder = make_dataset(tmp_path, [study], [video])
    of_findings = ("captioning.tasks.report=0", "captioning.tasks.gcap=0")

    def cut(*assignments):
        batch = reader_of(folder, task_config(*of_findings, *assignments), task_tokenizer).read(
            np.arange(3), np.zeros(3, int)
        )
        assert batch["task"].tolist() == [1, 1, 1] and (batch["caption_length"] < 64).all()
        return batch["num_cut"].tolist()

    assert cut() == [1, 1, 1]  # contrastive compares the whole report
    assert cut("loss.weights.contrastive=0") == [0, 0, 0]
