"""Which text belongs to what is in view, and that numbers survive the tokenizer."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer

from deepcoro.data.text import ReportTokenizer, percent_of_segment, severity, target_text, text_key, tidy_spacing
from deepcoro.errors import ConfigError, DataError
from deepcoro.reports.grammar import Finding, parse_report, render_report
from deepcoro.reports.vocabulary import SEGMENTS

FINDINGS = [Finding("prox_lad", stenosis=80).to_dict(), Finding("mid_rca", stenosis=70, ifr=0.89).to_dict()]
TEXT = "Right coronary tree. Proximal RCA: 70% stenosis (severe), in-stent restenosis 5%, iFR 0.89, Medina 1,1,0."


def test_a_clip_is_told_what_its_tree_shows():
    study = {"findings": FINDINGS, "dominance": "right", "report": "The whole report."}
    left = target_text(study, "left", whole_study=False)
    assert {f.segment for f in parse_report(left).findings} == {"prox_lad"}
    assert "RCA" not in left
    assert "Right" not in left
    right = target_text(study, "right", whole_study=False)
    assert {f.segment for f in parse_report(right).findings} == {"mid_rca"}
    assert "LAD" not in right


@pytest.mark.parametrize("segment", SEGMENTS)
@pytest.mark.parametrize("dominance", [None, "right", "left", "balanced"])
def test_a_segment_is_named_in_one_tree_only(segment, dominance):
    study = {"findings": [Finding(segment, stenosis=60).to_dict()], "dominance": dominance}
    told = [parse_report(target_text(study, tree, whole_study=False)).findings for tree in ("left", "right")]
    assert sorted(len(findings) for findings in told) == [0, 1]


def test_a_study_is_told_its_whole_report():
    assert target_text({"findings": FINDINGS, "report": "As dictated."}, None, whole_study=True) == "As dictated."
    whole = target_text({"findings": FINDINGS, "report": None}, None, whole_study=True)
    assert {f.segment for f in parse_report(whole).findings} == {"prox_lad", "mid_rca"}


def test_without_findings_the_report_and_without_a_report_nothing():
    assert target_text({"findings": None, "report": "As dictated."}, "left", whole_study=False) == "As dictated."
    assert target_text({"findings": None, "report": None}, "left", whole_study=False) is None
    assert target_text({"findings": None, "report": ""}, None, whole_study=True) is None
    assert target_text({"findings": FINDINGS, "report": "As dictated."}, None, whole_study=False) == "As dictated."


def test_no_finding_is_a_normal_heart_and_not_no_report():
    assert "LAD: normal" in target_text({"findings": []}, "left", whole_study=False)


LESIONS = [
    {"segment": "prox_lad", "stenosis": 80, "occlusion": "none"},
    {"segment": "om1", "stenosis": 30, "occlusion": None},
    {"segment": "mid_rca", "stenosis": 55},
    {"segment": "pda", "stenosis": 65},
    {"segment": "d1", "stenosis": None, "calcification": "severe", "stent": True, "in_stent_restenosis": 90},
]


@pytest.mark.parametrize(
    ("tree", "whole_study", "dominance", "expected"),
    [
        ("left", False, "right", 80),
        ("right", False, "right", 65),
        ("right", False, None, 65),
        ("right", False, "left", 55),  # the PDA is the circumflex's
        (None, True, "right", 80),
        ("right", True, "right", 80),
        (None, False, "right", 80),  # its text is the whole report
    ],
)
def test_the_highest_stenosis_of_what_a_text_is_about(tree, whole_study, dominance, expected):
    study = {"study_id": "a", "findings": LESIONS, "dominance": dominance, "report": "As dictated."}
    assert severity(study, tree, whole_study) == expected


@pytest.mark.parametrize("occlusion", ["total", "cto"])
@pytest.mark.parametrize("percent", [100, 99, None])
def test_an_occlusion_is_100_whatever_its_percent(occlusion, percent):
    study = {"findings": [*LESIONS, {"segment": "dist_rca", "stenosis": percent, "occlusion": occlusion}]}
    assert [severity(study, tree, False) for tree in ("left", "right")] == [80, 100]
    assert severity(study, None, True) == 100


@pytest.mark.parametrize(
    "findings", [None, [], [{"segment": "prox_lad", "stenosis": 0}], [{"segment": "prox_lad", "timi": 3}]]
)
def test_nothing_known_and_nothing_narrow_is_0(findings):
    study = {"findings": findings, "dominance": "right", "report": "Proximal LAD: 80% stenosis (severe)."}
    assert [severity(study, *rest) for rest in (("left", False), (None, False), (None, True))] == [0, 0, 0]


@given(st.dictionaries(st.sampled_from(SEGMENTS), st.integers(0, 100)), st.sampled_from([None, "left", "balanced"]))
def test_severity_is_the_highest_percent_that_a_text_tells(percents, dominance):
    lesions = percents.items()
    findings = [Finding(s, stenosis=p, occlusion="total" if p == 100 else "none").to_dict() for s, p in lesions]
    study = {"findings": findings, "dominance": dominance}
    for tree, whole_study in (("left", False), ("right", False), (None, True)):
        read = parse_report(target_text(study, tree, whole_study)).findings
        assert severity(study, tree, whole_study) == max((f.stenosis for f in read), default=0)


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_percent_that_cannot_be_is_refused(percent):
    study = {"study_id": "a", "findings": [{"segment": "om1", "stenosis": percent}]}
    with pytest.raises(DataError, match=rf"study 'a': the finding in 'om1' has a stenosis of {percent}%"):
        severity(study, "left", whole_study=False)
    assert severity(study, "right", whole_study=False) == 0


@given(st.text(), st.text())
def test_keys_are_equal_for_equal_texts_only(one, two):
    assert (text_key(one) == text_key(two)) == (one == two)
    assert 0 <= text_key(one) < 2**63


def test_the_key_of_no_text():
    assert text_key(None) == 0
    assert text_key("") != 0


@pytest.fixture(scope="session")
def lower_casing():
    """A BERT WordPiece tokenizer as PubMedBERT has: lower case, few whole words, numbers in pieces."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["proximal", "right", "coronary", "tree", "stenosis", "severe", "re", "##ca", "89", "70"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,:;()%-", *letters, *(f"##{c}" for c in letters), *words]
    pieces = BertWordPieceTokenizer(vocab={token: place for place, token in enumerate(tokens)}, lowercase=True)
    start, end, pad = (pieces.token_to_id(t) for t in ("[CLS]", "[SEP]", "[PAD]"))
    return ReportTokenizer(pieces.to_str(), start, end, pad, 128)


@pytest.mark.parametrize("text", ["iFR 0.89", "70%", TEXT, "LCX: 0% (none), 100%, in-stent restenosis 35%."])
def test_numbers_survive_the_small_tokenizer(report_tokenizer, text):
    ids, lengths = report_tokenizer.encode([text])
    assert report_tokenizer.decode(ids[0, : lengths[0]]) == text


@pytest.mark.parametrize("text", ["iFR 0.89", "70%", TEXT])
def test_numbers_survive_a_lower_casing_tokenizer(lower_casing, text):
    ids, _ = lower_casing.encode([text])
    assert lower_casing.decode(ids[0]) == text.lower()


@pytest.mark.parametrize("percent", range(0, 101, 7))
def test_every_percent_reads_back_after_either_tokenizer(report_tokenizer, lower_casing, percent):
    occlusion = "total" if percent == 100 else "none"
    finding = Finding("prox_rca", stenosis=percent, occlusion=occlusion, ifr=percent / 100, medina="1,0,1")
    text = render_report([finding], None, "right")
    for tokenizer in (report_tokenizer, lower_casing):
        ids, _ = tokenizer.encode([text])
        read = parse_report(tokenizer.decode(ids[0])).findings
        assert read == (finding,)


def test_ids_are_padded_to_the_longest_and_framed(report_tokenizer):
    ids, lengths = report_tokenizer.encode(["Left main: normal.", None, TEXT])
    assert ids.dtype == lengths.dtype == np.int32
    assert ids.shape == (3, lengths.max())
    assert lengths[1] == 2
    for row, length in zip(ids, lengths, strict=True):
        assert row[0] == report_tokenizer.start_id
        assert row[length - 1] == report_tokenizer.end_id
        assert (row[length:] == report_tokenizer.pad_id).all()
        assert report_tokenizer.pad_id not in row[:length]


def test_a_long_text_is_cut_and_still_ends(text_folder):
    from deepcoro.models.text_encoder import load_tokenizer

    short = ReportTokenizer.from_pretrained(load_tokenizer(str(text_folder)), 8)
    ids, lengths = short.encode([TEXT, "LAD"])
    assert lengths[0] == ids.shape[1] == 8
    assert ids[0, -1] == short.end_id


def test_decoding_stops_at_the_end_token(report_tokenizer):
    ids, _ = report_tokenizer.encode(["Left main: normal."])
    more = [*ids[0].tolist(), *ids[0].tolist()[1:]]
    assert report_tokenizer.decode(more) == "Left main: normal."


def test_it_travels_between_processes(report_tokenizer):
    copy = pickle.loads(pickle.dumps(report_tokenizer))
    assert np.array_equal(copy.encode([TEXT])[0], report_tokenizer.encode([TEXT])[0])
    assert (copy.fingerprint, copy.vocab_size) == (report_tokenizer.fingerprint, report_tokenizer.vocab_size)


def test_fingerprints_tell_tokenizers_apart(report_tokenizer, lower_casing):
    assert report_tokenizer.fingerprint != lower_casing.fingerprint


def test_a_tokenizer_that_cannot_write_is_refused():
    class Slow:
        name_or_path, backend_tokenizer = "slow", None
        cls_token_id = sep_token_id = pad_token_id = bos_token_id = eos_token_id = 1

    class Padless(Slow):
        name_or_path, backend_tokenizer, pad_token_id = "padless", object(), None

    for bad in (Slow(), Padless()):
        with pytest.raises(ConfigError, match=bad.name_or_path):
            ReportTokenizer.from_pretrained(bad, 64)


def test_a_tokenizer_that_does_not_frame_its_text_is_framed_or_refused():
    """It knows start and end tokens and puts neither: then the first word would be given and no report would end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "normal": 4}, "[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    loaded = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    try:
        tokenizer = ReportTokenizer.from_pretrained(loaded, 8)
    except ConfigError:
        return
    assert tokenizer.encode(["normal"])[0].tolist() == [[1, 4, 2]]


@pytest.mark.parametrize(
    ("spaced", "tidy"),
    [
        ("iFR 0. 89 , 70 % ( severe )", "iFR 0.89, 70% (severe)"),
        ("in - stent restenosis 5 % .", "in-stent restenosis 5%."),
        ("Medina 1, 1, 0, thrombus", "Medina 1,1,0, thrombus"),
        ("LAD : normal . LCX : normal .", "LAD: normal. LCX: normal."),
        ("TIMI 1 flow, iFR 0. 05", "TIMI 1 flow, iFR 0.05"),
    ],
)
def test_spacing_by_hand(spaced, tidy):
    assert tidy_spacing(spaced) == tidy


def test_offsets_tell_which_characters_a_token_stands_for(report_tokenizer):
    text = "Proximal LAD: 80% stenosis (severe). Mid LAD: normal."
    offsets = report_tokenizer.offsets(text)
    (row,), (length,), (given,), _ = report_tokenizer.encode_after(["Cap:"], [text])
    assert len(offsets) == length - given and offsets[-1] == (0, 0)
    assert "".join(text[begin:end] for begin, end in offsets) == text.replace(" ", "")
    for (begin, end), token in zip(offsets[:-1], row[given : length - 1].tolist(), strict=True):
        assert report_tokenizer.decode([token]).removeprefix("##").lower() == text[begin:end].lower()
    assert len(report_tokenizer.offsets(70 * "normal ")) == 63  # cut, as the text is


def test_percents_of_segments_are_those_that_are_known_and_occlusions_are_whole():
    rows = [
        {"segment": "d1", "stenosis": 60, "occlusion": "none"},
        {"segment": "pda", "stenosis": None, "occlusion": "cto"},
        {"segment": "om1", "stenosis": None, "occlusion": None, "stent": True},
        {"segment": "om2", "stenosis": 0, "occlusion": None},
    ]
    assert percent_of_segment({"findings": rows}) == {"d1": 60, "pda": 100, "om2": 0}
    assert percent_of_segment({"findings": None}) == {}
    with pytest.raises(DataError, match="study 's'.*'d1' has a stenosis of 101%"):
        percent_of_segment({"study_id": "s", "findings": [{"segment": "d1", "stenosis": 101, "occlusion": None}]})
