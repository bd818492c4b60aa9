"""What is made of a batch: texts read back, boxes put where they belong on the video, and nothing said of nothing."""

import numpy as np
import pytest
import torch

from deepcoro.data.caption_tasks import Region
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError
from deepcoro.inference.load import TrainedModel
from deepcoro.inference.reports import PlacedBox, ReportWriter, can_be_seen, is_blank
from deepcoro.reports.grammar import Finding

LEFT = "Left coronary tree. Left main: normal. Proximal LAD: 80% stenosis (severe). LCX: normal."
RIGHT = "Right coronary tree. Mid RCA: chronic total occlusion (100%). PDA: normal. Posterolateral: normal."
CLIPS = ("data.unit=study", "data.num_videos=2", "contrastive.level=clip", "captioning.level=clip")


@pytest.fixture
def writer(task_config, tiny_model, task_tokenizer, monkeypatch):
    """``writer(texts, *assignments)`` -> a ReportWriter whose model writes these, as ids; they lack the end if cut."""

    def make(texts, *assignments, cut=False, probabilities=False):
        config = task_config("captioning.max_position_embeddings=160", "data.sample_fps=5", *assignments)
        trained = TrainedModel(tiny_model(config).eval(), config, task_tokenizer, "checkpoints/7")
        left = iter(texts)

        def write(model, words, tokens, valid, views_at):
            rows = len(valid) if config.level("captioning") == "study" else valid.numel()
            there = valid.flatten().tolist() if rows == valid.numel() else [True] * rows
            ids = words.encode([next(left) if seen else None for seen in there])[0][:, 1:]
            return torch.tensor(ids[:, :-1] if cut else ids).long()

        monkeypatch.setattr("deepcoro.inference.reports.write_row_ids", write)
        return ReportWriter(trained, probabilities)

    return make


@pytest.fixture(scope="module")
def wide(make_dataset, write_video, tmp_path_factory):
    """A study of three cines, 48 x 32: a left one, a right one, and a left one that is black."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "videos").mkdir()
    videos = []
    for number, tree in enumerate(("left", "right", "left")):
        frames = np.full((24, 32, 48), 4, np.uint8)
        frames[:, 8:16, 10:30] = 4 if number == 2 else 200
        write_video(folder / "videos" / f"v{number}.avi", frames)
        videos.append({"study_id": "s", "coronary_tree": tree, "width": 48})
    return make_dataset(folder, [{"study_id": "s"}], videos)


def rows_of(writer, folder, unit="video"):
    units = PreparedDataset.open(folder).units("train", unit)
    everything = np.arange(len(units))
    return UnitReader(writer.trained.config, units, None, training=False).read(everything, everything), units


def test_a_text_is_read_back_and_what_is_not_of_the_wording_is_listed(writer, wide, monkeypatch):
    monkeypatch.setattr("deepcoro.inference.reports.write_regions", lambda *given: [None] * len(given[5]))
    asked = writer([LEFT + " Proximal LAD: 70% mild.", ""])
    left, right, black = asked.write(*rows_of(asked, wide))
    assert [f.segment for f in left.said.findings] == ["prox_lad"] and left.said.tree == "left"
    assert len(left.said.unread) == 1 and not left.problem
    assert (left.unit_id, left.study_id, left.tree, left.probabilities, left.boxes) == ("v0", "s", "left", None, ())
    assert right.text == "" and right.problem == "the model wrote an empty report"
    assert black.text is None and not black.said.findings and black.boxes is None
    assert black.problem.startswith("v2: blank")


def test_a_report_that_was_cut_off_says_so(writer, wide, monkeypatch):
    monkeypatch.setattr("deepcoro.inference.reports.write_regions", lambda *given: [None] * len(given[5]))
    asked = writer([LEFT, LEFT], cut=True)
    assert "cut off after" in asked.write(*rows_of(asked, wide))[0].problem


def test_nothing_is_made_of_rows_of_which_nothing_could_be_read(writer, wide):
    asked = writer([])
    rows, units = rows_of(asked, wide)
    rows["valid"][:], rows["problem"] = False, np.array(["x.avi: is damaged"] * 3)
    assert [(r.text, r.problem) for r in asked.write(rows, units)] == [(None, "x.avi: is damaged")] * 3


def test_a_box_of_the_clip_is_one_of_the_video(writer, wide, monkeypatch):
    """The clip starts at (23/15 - 3/5) / 2 s and its frame 1 is 1/5 s later: frame 10. The crop is 32 of 48 pixels, and
    begins at 8."""
    seen = []

    def point(model, words, tokens, valid, views_at, clips, sentences):
        seen.append((clips, sentences))
        return [Region("prox_lad", 1, (0.25, 0.5, 0.75, 1.0)), None]

    monkeypatch.setattr("deepcoro.inference.reports.write_regions", point)
    asked = writer([LEFT, RIGHT])
    left, right, _ = asked.write(*rows_of(asked, wide))
    assert seen == [
        ([0, 1], ["Proximal LAD: 80% stenosis (severe).", "Mid RCA: chronic total occlusion (100%)."]),
    ]
    (box,) = left.boxes
    assert box[:3] == ("v0", "prox_lad", 10) and box[3:] == pytest.approx((1 / 3, 1 / 2, 2 / 3, 1))
    assert right.boxes == ()
    plain = writer([LEFT, RIGHT], "captioning.tasks.aref=0", "captioning.tasks.gcap=0")
    assert plain.write(*rows_of(plain, wide))[0].boxes is None


def test_clips_of_a_study_that_say_what_its_report_says_point(writer, dataset_folder, monkeypatch):
    """s0 has two cines, s1 one: four places. The first cine of s0 says another thing of a tree than those after it."""
    other = "Left coronary tree. Left main: normal. Mid LAD: 20% stenosis (mild). LCX: normal."
    seen = []

    def point(model, words, tokens, valid, views_at, clips, sentences):
        seen.extend(zip(clips, sentences, strict=True))
        return [Region("prox_lad", 0, (0.0, 0.0, 1.0, 1.0))] * len(clips)

    monkeypatch.setattr("deepcoro.inference.reports.write_regions", point)
    asked = writer([RIGHT, LEFT, other], *CLIPS)
    units = PreparedDataset.open(dataset_folder).units("train", "study")
    reader = UnitReader(asked.trained.config, units, None, training=False)
    both, one = asked.write(reader.read(np.arange(2), np.arange(2)), units)
    assert both.text == f"{LEFT} {RIGHT}" and both.said.trees == ("left", "right") and one.text == other
    assert [clip for clip, _ in seen] == [0, 1, 2]
    assert [box.video_id for box in both.boxes] == ["v1", "v0"]
    seen.clear()
    asked = writer([other, LEFT, other], *CLIPS)
    both, _ = asked.write(reader.read(np.arange(2), np.arange(2)), units)
    assert both.text == other  # the first of what equally many say
    assert [(clip, sentence[:7]) for clip, sentence in seen] == [(0, "Mid LAD"), (2, "Mid LAD")]


def test_probabilities_are_those_of_the_decoder_and_none_of_another_wording(writer, wide, monkeypatch):
    from deepcoro.models.structured_probabilities import decoder_scores, report_probabilities
    from deepcoro.models.structured_writing import reports_of_units

    monkeypatch.setattr("deepcoro.inference.reports.write_regions", lambda *given: [None] * len(given[5]))
    asked = writer([LEFT, "Something else."], probabilities=True)
    rows, units = rows_of(asked, wide)
    left, other, _ = asked.write(rows, units)
    assert other.probabilities is None and "not of the canonical wording: something else" in other.problem
    model = asked.trained.model
    with torch.no_grad():
        tokens = model.video_encoder(model.normalise(torch.from_numpy(rows["clip"][0])))
    scores = decoder_scores(model.captioning_decoder, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
    true = {
        p.segment: p for p in report_probabilities(reports_of_units(asked.words, False, "Cap: "), LEFT, scores).segments
    }
    assert {p.segment for p in left.probabilities} == set(true)
    known = left.probability("prox_lad")
    assert known.significant == pytest.approx(true["prox_lad"].significant)
    assert known.sentence == pytest.approx(true["prox_lad"].sentence)


def test_a_segment_of_a_joined_report_has_the_probability_of_the_text_that_it_is_in(writer, wide, monkeypatch):
    """Either tree's text could name a PDA. Its probability is that of the text that names it, or of its tree's text."""
    from deepcoro.models.structured_probabilities import decoder_scores, report_probabilities
    from deepcoro.models.structured_writing import reports_of_units

    monkeypatch.setattr("deepcoro.inference.reports.write_regions", lambda *given: [None] * len(given[5]))
    right = "Right coronary tree. RCA: normal. PDA: 80% stenosis (severe). Posterolateral: normal."
    left_dominant = f"{LEFT} PDA: 70% stenosis (severe)."
    for of_left, of_right, owners in (
        (LEFT, right, {"pda": "right", "posterolateral": "right"}),
        (left_dominant, "Right coronary tree. RCA: normal.", {"pda": "left", "posterolateral": "left"}),
    ):
        asked = writer([of_left, of_right], *CLIPS, "data.num_videos=3", probabilities=True)
        rows, units = rows_of(asked, wide, "study")
        (report,) = asked.write(rows, units)
        segments = [one.segment for one in report.probabilities]
        assert len(set(segments)) == len(segments) > 10
        model, automaton, true = asked.trained.model, reports_of_units(asked.words, False, "Cap: "), {}
        views = [units.video_rows(0)[view]["coronary_tree"] for view in range(2)]
        for view, text in enumerate((of_left, of_right)):
            with torch.no_grad():
                tokens = model.video_encoder(model.normalise(torch.from_numpy(rows["clip"][0, view : view + 1])))
            there = torch.ones(tokens.shape[:2], dtype=torch.bool)
            scores = decoder_scores(model.captioning_decoder, tokens, there)
            for one in report_probabilities(automaton, text, scores).segments:
                true[views[view], one.segment] = one
        for segment, owner in owners.items():
            assert report.probability(segment).words == pytest.approx(true[owner, segment].words)
            others = [one.words for (tree, of), one in true.items() if of == segment and tree != owner]
            assert all(report.probability(segment).words != pytest.approx(words) for words in others)
    assert others == []  # a right tree that ends after the RCA passes no posterolateral branch over


def test_a_run_without_captioning_is_refused(task_config, tiny_model, task_tokenizer):
    config = task_config("loss.weights.captioning=0")
    with pytest.raises(ConfigError, match="trained without captioning"):
        ReportWriter(TrainedModel(tiny_model(config), config, task_tokenizer, "checkpoints/7"))


def test_what_is_blank_and_what_can_be_pointed_at():
    clip = np.full((1, 3, 2, 4, 4), 30, np.uint8)
    clip[0, 1, 1, 0, 0] = 39  # nine levels away
    clip[0, 2] = 255
    assert is_blank(clip).tolist() == [[True, False, True]]
    seen = [Finding("d1", 20), Finding("d1", 100, "cto"), Finding("d1", thrombus=True), Finding("d1", stent=True)]
    unseen = [Finding("d1", 0), Finding("d1", timi=2), Finding("d1", calcification="none"), Finding("d1", ifr=0.8)]
    assert [can_be_seen(f) for f in seen + unseen] == [True] * 4 + [False] * 4
    assert PlacedBox("v", "d1", 3, 0.0, 0.0, 1.0, 1.0)._asdict()["video_id"] == "v"
