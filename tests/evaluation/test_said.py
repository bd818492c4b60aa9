"""What is held against each other is what texts say, in whatever words; and how often a lesion counts."""

import numpy as np
import pytest

from data_prep.phantom.wording import draw_style, word_report
from deepcoro.config import Config
from deepcoro.data.tables import PreparedDataset
from deepcoro.evaluation.said import compare_rows, parse_all, said_in, said_truly
from deepcoro.evaluation.truth import Truth
from deepcoro.metrics.findings import segments_in_view
from deepcoro.reports.grammar import Finding, render_report
from deepcoro.reports.vocabulary import SEGMENTS

LAD80 = Finding("prox_lad", stenosis=80)
CTO = Finding("mid_rca", stenosis=100, occlusion="cto")
RESTENOSIS = Finding("d1", stenosis=70, stent=True, in_stent_restenosis=70)


def truth_of(texts, findings, tree=None, dominance="right"):
    number = len(texts)
    people = np.arange(number)
    return Truth(list(texts), findings, [tree] * number, [dominance] * number, [frozenset()] * number, people, people)


def compared(written, truth):
    return compare_rows(
        said_truly(truth), said_in(parse_all(written), truth), segments_in_view(truth.trees, truth.dominances)
    )


def test_a_wording_changes_no_count():
    findings = [LAD80, CTO]
    texts = [word_report(findings, "right", draw_style(np.random.default_rng(seed))) for seed in range(8)]
    canonical = [render_report(findings, "right")] * 8
    for told in (texts, canonical):
        for written in (texts, canonical):
            rows = compared(written, truth_of(told, [findings] * 8))
            assert rows["stenosis_50/hits"].sum() == 16 and rows["cto/hits"].sum() == 8
            assert rows["percent/error"].sum() == 0 and rows["percent/number"].tolist() == [18] * 8
            assert rows["missed"].sum() == rows["hallucinated"].sum() == 0 and rows["dominance/right"].all()


def test_a_table_tells_what_is_so_whatever_the_text():
    truth = truth_of(["Marked tortuosity. See the drawing."], [[LAD80]])
    everything = render_report([LAD80, *(Finding(s, stenosis=90) for s in SEGMENTS if s != "prox_lad")])
    rows = compared([everything], truth)
    assert rows["percent/number"] == [18] and rows["percent/error"] == [17 * 90] and rows["hallucinated"] == [17]
    (of_clip,) = said_truly(truth_of(["See the drawing."], [[LAD80]], "left")).percent
    assert (~np.isnan(of_clip)).sum() == 13


def test_the_dominance_of_the_table_is_asked_for_where_the_text_tells_one():
    truth = truth_of(["Left dominance.", "A left dominant system. LAD normal.", "LAD normal."], [[]] * 3)
    assert said_truly(truth).dominances == ["right", "right", None]


def test_what_cannot_be_read_of_a_named_segment_is_no_zero():
    truth = truth_of([render_report([LAD80], "right")], [[LAD80]])
    rows = compared([render_report([LAD80], "right").replace("severe", "moderate")], truth)
    assert rows["percent/number"] == [17] and rows["percent/error"] == [0]
    assert rows["lesions/error"] == [80] and rows["missed"] == [1]


@pytest.mark.parametrize(
    ("true", "said", "missed", "invented"),
    [
        ([CTO], [], 1, 0),
        ([], [CTO], 0, 1),
        ([CTO], [Finding("mid_rca", stenosis=100, occlusion="total")], 1, 0),  # a stenosis, and not that kind
        ([Finding("mid_rca", stenosis=80)], [CTO], 0, 1),
        ([RESTENOSIS], [], 2, 0),  # the narrowing and the stent
        ([RESTENOSIS], [Finding("d1", stent=True)], 1, 0),
        ([Finding("d1", stent=True)], [RESTENOSIS], 0, 1),
        ([CTO, LAD80], [RESTENOSIS], 2, 2),
    ],
)
def test_a_lesion_counts_once(true, said, missed, invented):
    rows = compared([render_report(said, "right")], truth_of([render_report(true, "right")], [true]))
    assert (rows["missed"].tolist(), rows["hallucinated"].tolist()) == ([missed], [invented])


def test_a_text_that_cannot_be_read_is_not_healthy(make_dataset, tmp_path):
    texts = {
        "a": "The proximal LAD has an 80% stenosis. RCA: normal.",
        "b": "Marked tortuosity. LAD normal.",  # who knows
        "c": "LAD normal.",
        "d": "Marked tortuosity. LAD normal.",
    }
    studies = [{"study_id": name, "split": "val", "report": text} for name, text in texts.items()]
    ifr = {"segment": "d1", "ifr": 0.8}
    studies[3]["findings"] = [{"segment": "prox_lad", "stenosis": 80, "occlusion": "none", "ifr": 0.7}, ifr]
    folder = make_dataset(tmp_path, studies, [{"study_id": name} for name in texts])
    config = Config().override(["data.unit=study"])
    truth = Truth.of(PreparedDataset.open(folder).units("val", "study"), np.arange(4), config)
    assert truth.known.tolist() == [True, False, True, True]
    assert truth.findings[0] == [LAD80] and truth.told_trees == [
        ("left", "right"),
        ("left",),
        ("left",),
        ("left", "right"),
    ]
    assert truth.statements[0] == {LAD80} and truth.statements[1] == {"marked tortuosity"}
    assert truth.statements[3] == {LAD80}  # no iFR: no picture shows it
    some = truth.take(np.array([1, 3]))
    assert some.known.tolist() == [False, True] and some.told_trees == [("left",), ("left", "right")]
    # Where the tree in view is none that the text speaks of, nobody knows either.
    of_videos = Truth.of(PreparedDataset.open(folder).units("val"), np.arange(4), config.override(["data.unit=video"]))
    assert of_videos.known.tolist() == truth.known.tolist()
