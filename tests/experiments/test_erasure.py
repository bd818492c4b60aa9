"""Reports of phantoms with and without a lesion: who sees it, who writes by habit, and who wavers."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from data_prep.phantom.preset import preset_named
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import UserError
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.training.checkpoint import save_checkpoint
from experiments import erasure

LAD, RCA, LCX = (
    "Proximal LAD: 80% stenosis (severe).",
    "Mid RCA: 90% stenosis (critical).",
    "Mid LCX: 70% stenosis (severe).",
)


def test_what_goes_and_what_goes_by_chance():
    """Four lesions of the LAD: erased; kept; never named; erased, while another goes and a new one comes."""
    before = [f"{LAD} {RCA}", LAD, RCA, f"{LAD} {RCA}"]
    after = [RCA, LAD, RCA, LCX]
    metrics = erasure.measure(before, after, ["prox_lad"] * 4, ["a", "a", "b", "c"], np.ones((4, 18), bool))
    assert metrics["erasure/named"].value == 0.75 and metrics["erasure/kept"].value == 0.25
    assert metrics["erasure/named_less_kept"].value == 0.5
    erased = metrics["erasure/erased"]
    assert erased.value == pytest.approx(2 / 3) and erased.baseline == pytest.approx(1 / 3)  # of three RCAs one went
    assert metrics["erasure/erased_less_others"].value == pytest.approx(1 / 3)
    assert metrics["erasure/others_changed"].value == pytest.approx(2 / (4 * 17))


@pytest.fixture(scope="module")
def drawing():
    return erasure.Drawing(preset_named("easy"), erasure.SEED, 64, 12, 10.0)


@pytest.fixture(scope="module")
def drawn(drawing, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return folder, erasure.prepare_pairs(folder, 3, drawing, whole_study=False)


@pytest.fixture
def config(tiny_config):
    return tiny_config("data.frame_size=24", "data.sample_fps=4", "loss.weights.masked_modeling=0")


def test_pairs_are_of_one_lesion_each(drawn, config):
    folder, segments = drawn
    units = PreparedDataset.open(str(folder)).units("test")
    assert len(segments) == 3 and len(units) == 6  # one view of a tree
    reader = UnitReader(config, units, None, training=False)
    pairs = erasure.pairs_shown(units, segments, config)
    assert len(pairs) == 3
    for one, other in pairs:
        patient, states = units.column("patient_id")[one], [units.study_row(unit)["findings"] for unit in (one, other)]
        gone = {row["segment"] for row in states[0]} - {row["segment"] for row in states[1]}
        assert gone == {segments[patient]} and units.column("patient_id")[other] == patient
        clips = reader.read(np.array([one, other]), np.array([one, other]))
        assert clips["valid"].all() and np.abs(clips["clip"][0].astype(int) - clips["clip"][1]).max() > 10
        seeing = [[reader.text(unit)] for unit in (one, other)]
        assert erasure.measure(*seeing, [*gone], [patient], np.ones((1, 18), bool))["erasure/erased"].value == 1


def test_a_run_is_measured(config, tiny_model, text_folder, tmp_path, monkeypatch):
    load_tokenizer(str(text_folder)).save_pretrained(tmp_path / "tokenizer")
    save_checkpoint(tmp_path, 3, tiny_model(config), {"step": 3}, config, "made-for-tests")
    asked = [str(tmp_path), "--preset", "easy", "--size", "64", "--num-frames", "12", "--fps", "10"]
    done = CliRunner().invoke(erasure.main, [*asked, "--num-patients", "2"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "2 pairs of 2 patients (easy), of 2 drawn" in done.output
    kept = json.loads((tmp_path / "erasure.json").read_text())
    assert kept["checkpoint"] == "3" and kept["metrics"]["erasure/named"]["value"] == 0
    assert kept["metrics"]["erasure/erased"]["value"] is None  # an untrained model names nothing
    monkeypatch.setattr(erasure, "_MOST_DRAWN", 0)
    with pytest.raises(UserError, match="ask for fewer --num-patients"):
        list(erasure.draw_pairs(2, erasure.Drawing(preset_named("easy"), 0, 64, 12, 10.0)))
