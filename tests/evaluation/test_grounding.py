"""Does a model find lesions? By hand: what a clip shows, what an answer and a map are worth, and what chance is."""

import numpy as np
import pytest

from deepcoro.data.tables import PreparedDataset
from deepcoro.evaluation.evaluator import fit_baselines, measure
from deepcoro.evaluation.grounding import measure_grounding
from deepcoro.evaluation.intervals import mean_interval, paired_difference
from deepcoro.evaluation.lent_boxes import ANY, BEST, SEGMENT, LentBoxes, score_answers
from deepcoro.evaluation.looking import Looked
from deepcoro.evaluation.shown import shown_lesions
from deepcoro.metrics.grounding import box_iou

LAD = {"segment": "prox_lad", "stenosis": 80, "occlusion": "none", "timi": 2}
RCA = {"segment": "mid_rca", "stenosis": 100, "occlusion": "total"}
EDGES = ("x0", "y0", "x1", "y1")


def box(segment, frame, *edges):
    return {"segment": segment, "frame": frame, **dict(zip(EDGES, edges, strict=True))}


def here(x, y, side=0.25):
    """In eighths of the picture, which the parquet's 32 bits hold exactly."""
    return (x / 8, y / 8, x / 8 + side, y / 8 + side)


# Seven frames at 15 a second, of which a clip of four has 0, 2, 4, 6.
CINES = [  # study, tree, boxes, angles
    ("a", "left", [box("prox_lad", 0, *here(1, 1)), box("prox_lad", 2, *here(2, 1)), box("prox_lad", 3, *here(5, 5))]),
    ("a", "right", [box("mid_rca", 6, *here(4, 4)), box("mid_rca", 6, *here(4, 4))]),
    ("b", "left", [box("prox_lad", 0, *here(1, 2)), box("prox_lad", 4, *here(1, 1))]),
    ("b", "right", [box("mid_rca", 0, *here(5, 5))]),  # and no finding there
    ("c", "left", [box("prox_lad", 0, *here(4, 1)), box("mid_lad", 0, *here(4, 1))]),
]
ANGLES = [(30.0, 20.0), (30.0, 0.0), (35.0, 25.0), (0.0, 0.0), (-30.0, 20.0)]


@pytest.fixture(scope="module")
def dataset(make_dataset, tmp_path_factory):
    studies = [
        {"study_id": "a", "split": "val", "dominance": "right", "findings": [LAD, RCA]},
        {"study_id": "b", "split": "val", "dominance": "right", "findings": [LAD]},
        {"study_id": "c", "split": "train", "dominance": "right", "findings": [LAD]},
        {"study_id": "d", "split": "train", "dominance": "right", "findings": []},
    ]
    videos = [
        {
            "study_id": study, "coronary_tree": tree, "boxes": boxes, "num_frames": 7, "uri": "videos/one.avi",
            "primary_angle": primary, "secondary_angle": secondary,
        }
        for (study, tree, boxes), (primary, secondary) in zip(CINES, ANGLES, strict=True)
    ]  # fmt: skip
    videos.append({"study_id": "d", "coronary_tree": "left", "num_frames": 7, "uri": "videos/one.avi"})
    return PreparedDataset.open(make_dataset(tmp_path_factory.mktemp("shown"), studies, videos))


@pytest.fixture
def config(task_config):
    return task_config("evaluation.num_resamples=200", "data.sample_fps=7.5")


def test_what_clips_show(dataset, config):
    units = dataset.units("val")
    shown = [shown_lesions(units, unit, config) for unit in range(4)]
    (lad,), (rca,), (other,), nothing = shown
    assert lad.boxes == {0: here(1, 1), 1: here(2, 1)}  # frame 3 of the cine is not sampled
    assert (lad.segment, lad.view, lad.angles) == ("prox_lad", 0, (30.0, 20.0))
    assert lad.finding == "Proximal LAD: 80% stenosis (severe), TIMI 2 flow."
    assert lad.name == "Proximal LAD: 80% stenosis (severe)" and lad.name in lad.report
    assert rca.boxes == {3: here(4, 4)} and rca.name == "Mid RCA: total occlusion (100%)"
    assert other.boxes == {0: here(1, 2), 2: here(1, 1)}
    assert nothing == []  # a box without a finding
    study = config.override(["data.unit=study", "captioning.level=clip", "contrastive.level=clip"])
    whole = shown_lesions(dataset.units("val", "study"), 0, study)
    assert [(lesion.view, lesion.segment) for lesion in whole] == [(0, "prox_lad"), (1, "mid_rca")]


def test_what_an_answer_is_worth():
    true = np.full((3, 4), np.nan)
    true[1] = [0.2, 0.2, 0.6, 0.6]
    answers = [[0.2, 0.2, 0.6, 0.4], [0.3, 0.3, 0.4, 0.4], [0.5, 0.5, 1, 1], [0.2, 0.2, 0.6, 0.6]]
    scores = score_answers([1, 1, 1, 2], answers, true)
    assert scores == pytest.approx(np.array([[0.5, 1, 1], [1 / 16, 0, 1], [0.01 / 0.4, 0, 0], [0, 0, 0]]))


def looked(answers, maps=None):
    """Of the val units of ``dataset``: a lesion in each of the first three, none in the fourth."""
    segments = ("prox_lad", "mid_rca", "prox_lad")
    maps = maps or [None] * 3
    return [
        [Looked(segment, 0, True, answer, one)] for segment, answer, one in zip(segments, answers, maps, strict=True)
    ] + [[]]


def test_answers_are_measured_by_lesion_beside_the_strongest_chance(dataset, config):
    units, indices = dataset.units("val"), np.arange(4)
    lent = LentBoxes.of(dataset.units("train"), np.arange(2), config)
    # Right; on a frame without a box; unreadable.
    found = looked([(1, here(2, 1)), (2, here(4, 4)), None])
    metrics, columns = measure_grounding(found, units, indices, lent, config)
    assert metrics["grounding/lesions"].value == 3 and metrics["grounding/unreadable"].value == pytest.approx(1 / 3)
    for name in ("box_iou", "hit_rate", "centre_hit_rate"):
        assert metrics[f"grounding/{name}"].value == pytest.approx(1 / 3)
        np.testing.assert_array_equal(columns[f"grounding/{name}"], [1, 0, 0, np.nan])
    np.testing.assert_array_equal(columns["grounding/lesions"], [1, 1, 1, np.nan])
    patients = ["p-a", "p-a", "p-b"]
    interval = mean_interval([1, 0, 0], patients, num_resamples=200)
    hit = metrics["grounding/hit_rate"]
    assert (hit.low, hit.high, hit.baseline) == (interval.low, interval.high, 0)
    # The one lesion to lend, of c, is on frame 0 at (4, 1): that of a is at (1, 1) there, of b at (1, 2).
    iou = box_iou([here(4, 1)] * 2, [here(1, 1), here(1, 2)])
    assert metrics["grounding/box_iou"].baseline == iou.sum() / 3 == 0
    above = metrics["grounding/hit_rate_above_chance"]
    by_hand = paired_difference([1, 0, 0], [0, 0, 0], patients, num_resamples=200)
    assert (above.value, above.low, above.high, above.baseline) == (by_hand.value, by_hand.low, by_hand.high, 0)
    assert "pointing" not in " ".join(metrics)


def test_chance_is_what_other_lesions_boxes_reach(dataset, config):
    """The three kinds for one lesion, summed up by hand."""
    units = dataset.units("val")
    lent = LentBoxes.of(units, np.arange(4), config)
    (lad,), (rca,), (other,) = (shown_lesions(units, unit, config)[:1] for unit in range(3))
    # To a's LAD: only b's LAD is another patient's. On frame 0 a box an eighth lower; on frame 2 a has none.
    iou = box_iou([here(1, 2)], [here(1, 1)])[0]
    assert iou == pytest.approx(1 / 3)  # a half of each
    answers = lent.answers(lad, "p-a")
    assert answers[ANY] == pytest.approx([iou / 2, 0, 0.5]) and answers[SEGMENT] == pytest.approx(answers[ANY])
    # To b's LAD: a's LAD (frames 0 and 1, of which b's has 0) and a's RCA, on a frame on which b's has no box.
    answers = lent.answers(other, "p-b")
    assert answers[ANY] == pytest.approx([iou / 4, 0, 0.25]) and answers[SEGMENT] == pytest.approx([iou / 2, 0, 0.5])
    # Of b's two boxes for b's own lesion the first is as good as the second, and here it is on a frame of a's.
    assert lent.answers(lad, "p-a")[BEST] == pytest.approx([iou, 0, 1])
    assert lent.answers(rca, "p-b")[SEGMENT] == pytest.approx([1, 1, 1])  # as if b had a's lesion
    alone = LentBoxes.of(units, np.array([0]), config)
    assert alone.answers(lad, "p-a") == {}
    assert LentBoxes.of(units, np.array([3]), config) is None


def test_similar_views_lend_first(dataset, config, monkeypatch):
    units = dataset.units("val")
    lent = LentBoxes.of(units, np.arange(4), config)
    (lad,) = shown_lesions(dataset.units("train"), 0, config)  # 60 degrees away from those of val
    everyone = {name: lent.segments[rows].tolist() for name, rows in lent.lend(lad, "p-c").items()}
    assert sorted(everyone[ANY]) == ["mid_rca", "prox_lad", "prox_lad"] and everyone[SEGMENT] == ["prox_lad"] * 2
    monkeypatch.setattr("deepcoro.evaluation.lent_boxes._FEW_SIMILAR", 1)
    (mine,) = shown_lesions(units, 0, config)
    assert lent.patients[lent.lend(mine, "p-c")[SEGMENT]].tolist() in (["p-a", "p-b"], ["p-b", "p-a"])
    turned = LentBoxes(lent.boxes, lent.segments, lent.patients, lent.directions * np.array([-1, 1, 1]))
    assert len(turned.lend(mine, "p-c")[SEGMENT]) == 2  # none is similar: all are lent
    nobody = LentBoxes(lent.boxes, lent.segments, lent.patients, np.full_like(lent.directions, np.nan))
    assert len(nobody.lend(mine, "p-c")[SEGMENT]) == 2


def test_pointing_is_the_mean_over_a_lesions_frames(dataset, config):
    """Maps of two steps of 2 frames, 3 x 3 cells: middles at 1/6, 1/2, 5/6."""
    units = dataset.units("val")
    maps = np.zeros((3, 2, 3, 3), np.float32)
    # a's LAD on frames 0 and 1, both in step 0: (1, 1) holds the cell 0, 0 (0.125 to 0.375), (2, 1) none: 0.25 to 0.5
    # across holds the middle of column 1, and 0.125 to 0.375 down that of row 0.
    maps[0, 0, 0, 0] = 1
    maps[1, 1, 1, 1] = 1  # a's RCA on frame 3, 0.5 to 0.75: the middle cell
    maps[2, 0, 0, 0] = maps[2, 1, 2, 2] = 1  # b's LAD: frame 0 at (1, 2), rows 0.25 to 0.5; frame 2 at (1, 1)
    found = looked([None] * 3, list(maps))
    metrics, columns = measure_grounding(found, units, np.arange(4), None, config)
    np.testing.assert_array_equal(columns["grounding/pointing"], [0.5, 1, 0, np.nan])
    pointing = metrics["grounding/pointing"]
    assert pointing.value == 0.5 and metrics["grounding/pointed_lesions"].value == 3
    # Each box holds one of nine cells. Others' boxes: a's LAD is held against b's on frame 0 (cell 1, 0: no) and, on
    # frame 1, where b has none, against chance; a's RCA against b's, who has none on frame 3; b's LAD against a's two:
    # on frame 0 the LAD's (yes; the RCA has none), on frame 2 none.
    others = np.mean([(0 + 1 / 9) / 2, 1 / 9, (1 + 1 / 9) / 2])
    assert pointing.baseline == pytest.approx(others) and others > 1 / 9
    assert metrics["grounding/pointing_above_chance"].value == pytest.approx(0.5 - others)
    assert metrics["grounding/pointing_reachable"].value == 1


def test_what_no_map_can_hit_is_told(dataset, config):
    """One cell, with its middle at (0.5, 0.5): only a's RCA has it, on its edge. Of 4 x 4 each box has one."""
    units = dataset.units("val")
    for cells, reachable in ((1, [0, 1, 0]), (4, [1, 1, 1])):
        found = looked([None] * 3, list(np.zeros((3, 2, cells, cells), np.float32)))
        metrics, columns = measure_grounding(found, units, np.arange(4), None, config)
        metric = metrics["grounding/pointing_reachable"]
        assert metric.value == pytest.approx(np.mean(reachable)) and np.isnan(metric.baseline)
        np.testing.assert_array_equal(columns["grounding/pointing_reachable"], [*reachable, np.nan])
        assert "grounding/pointing_reachable_above_chance" not in metrics


def test_chance_of_a_segment_is_the_mean_over_its_lesions(dataset, config):
    """Of 60 patients, all with a box on frame 0; and the best single answer, by trying each box against each lesion."""
    chance = np.random.default_rng(3)
    corners = chance.uniform(0, 0.7, (60, 2))
    many = np.full((60, 4, 4), np.nan)
    many[:, 0] = np.concatenate([corners, corners + 0.3], axis=1)
    lent = LentBoxes(many, np.full(60, "prox_lad"), np.arange(60).astype(str), np.full((60, 3), np.nan))
    (lesion,) = shown_lesions(dataset.units("val"), 0, config)
    worth, true = lent.answers(lesion, "p-a"), np.array([[*here(1, 1)]])
    assert worth[SEGMENT] == pytest.approx(score_answers([0] * 60, many[:, 0], true).mean(axis=0))
    # Tried: the first 40, and the median box at six sizes; against all 60.
    median = np.median(many[:, 0], axis=0)
    middle, side = (median[:2] + median[2:]) / 2, median[2:] - median[:2]
    answers = list(many[:40, 0])
    answers += [np.clip([*(middle - k * side / 2), *(middle + k * side / 2)], 0, 1) for k in (0.7, 1, 1.3, 1.6, 2, 2.5)]
    tried = np.array([score_answers(np.arange(60), [answer] * 60, many[:, 0]).sum(axis=0) for answer in answers])
    best = score_answers([0] * 3, np.array(answers)[tried.argmax(axis=0)], true)
    assert worth[BEST] == pytest.approx(np.diag(best))


def four_corners(size=0.25, offset=0.1, count=10):
    """Boxes [4 * count, 4] whose middles lie about (0.5, 0.5), none of which holds another's middle."""
    middles = np.tile([[0.5 + x * offset, 0.5 + y * offset] for x in (-1, 1) for y in (-1, 1)], (count, 1))
    return np.concatenate([middles - size / 2, middles + size / 2], axis=1)


def test_the_best_answer_may_be_a_box_that_no_lesion_has(dataset, config):
    """The middle of four corners lies in all of their boxes, and the corners in no other's."""
    boxes = np.full((40, 4, 4), np.nan)
    boxes[:, 2] = four_corners()
    lent = LentBoxes(boxes, np.full(40, "prox_lad"), np.arange(40).astype(str), np.full((40, 3), np.nan))
    (lesion,) = shown_lesions(dataset.units("val"), 0, config)
    frames, best = lent.best(lesion, "p-a")
    assert frames.tolist() == [2] * 3 and (best[2, :2] + best[2, 2:]) / 2 == pytest.approx([0.5, 0.5])


def test_the_best_answer_is_chosen_over_all_lesions_and_by_view(dataset, config):
    """Of 160 lesions the first 60 are at the left, but of 100 the middles lie in one box: 40 do not decide. Seen from
    elsewhere they are at the right, which a lesion in such a view is told."""
    left, right, seen = here(0, 0), here(6, 6), here(3, 3)
    boxes = np.full((170, 4, 4), np.nan)
    boxes[:60, 0], boxes[60:160, 0], boxes[160:, 0] = left, seen, right
    (lesion,) = shown_lesions(dataset.units("val"), 0, config)  # at 30, 20 degrees
    (other,) = shown_lesions(dataset.units("train"), 0, config)  # at -30, 20
    x, y, z = 0.5 * np.cos(np.radians(20)), np.sin(np.radians(20)), np.cos(np.radians(30)) * np.cos(np.radians(20))
    directions = np.array([[x, y, z]] * 160 + [[-x, y, z]] * 10)
    lent = LentBoxes(boxes, np.full(170, "prox_lad"), np.arange(170).astype(str), directions)
    assert lent.best(lesion, "p-a")[1][:2] == pytest.approx(np.array([seen] * 2))
    assert lent.best(other, "p-c")[1][:2] == pytest.approx(np.array([right] * 2))
    # Without the ten patients' own lesions at the right there is nothing left in that view: all views count.
    own = LentBoxes(boxes, lent.segments, np.array(["p-a"] * 160 + ["p-c"] * 10), directions)
    assert own.best(other, "p-c")[1][:2] == pytest.approx(np.array([seen] * 2))


def test_records_of_a_split_and_training_lesions_that_are_lent(dataset, config):
    units, train = dataset.units("val"), dataset.units("train")
    constants = fit_baselines(train, config)
    assert constants.boxes.segments.tolist() == ["prox_lad"]
    assert fit_baselines(train, config.override(["evaluation.grounding=false"])).boxes is None
    found = looked([(1, here(2, 1)), None, (0, here(1, 2))])
    records = [
        {"unit": unit, "valid": unit != 1, **({"generated": "", "grounding": found[unit]} if unit != 1 else {})}
        for unit in range(4)
    ]
    measured = measure(records, units, constants, config)
    assert measured.metrics["grounding/hit_rate"].value == 1
    np.testing.assert_array_equal(measured.columns["grounding/hit_rate"], [1, np.nan, 1, np.nan])
    found[0][0] = Looked("d1", 0, True, None, None)
    with pytest.raises(ValueError, match="unit 0 shows no lesion of 'd1' in its clip 0"):
        measure(records, units, constants, config)


def test_it_is_measured_where_boxes_are_learnt_or_asked_for(task_config):
    assert task_config().measures_grounding and not task_config("evaluation.grounding=false").measures_grounding
    plain = ("captioning.tasks.aref=0", "captioning.tasks.gcap=0")
    assert not task_config(*plain).measures_grounding
    assert task_config(*plain, "evaluation.grounding=true").measures_grounding
    assert not task_config("loss.weights.captioning=0", "evaluation.grounding=true").measures_grounding
