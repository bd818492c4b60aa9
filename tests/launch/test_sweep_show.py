"""What is told of a sweep is what its trials came to; importances find what matters, and are not overstated."""

import re

import numpy as np
import pytest

from deepcoro.launch.show import show
from deepcoro.launch.sweep_importance import importances_of
from deepcoro.launch.sweep_results import write_results
from tests.launch.sweep_study import F1, LR, MRR, STRATEGY, leave_runs, study_of

ROWS = (
    ("complete", {3: 0.2, 9: 0.4}, 1e-3),
    ("pruned", {3: 0.9}, 1e-5),
    ("failed", "ConfigError: no\ntokenizer", 1e-4),
    ("complete", {3: 0.1, 9: 0.5}, 1e-2),
    ("pruned", {3: 0.1, 6: 0.2}, 1e-4),
    ("failed", "ConfigError: no tokenizer", 1e-4),
    ("pruned", {3: 0.1}, 1e-4),
)


@pytest.fixture
def folder(tmp_path, tiny_config):
    folder = tmp_path / "runs" / "s"
    folder.mkdir(parents=True)
    study = study_of(ROWS)
    leave_runs(study, folder, tiny_config("name=s", f"root={folder.parent}"))
    write_results(study, folder, {"num_trials": 12, "stopping": "asha"})
    return folder


def test_a_sweep_that_has_not_ended(folder):
    lines = [line.strip() for line in show(str(folder)).splitlines()]
    assert lines[0] == f"{folder}: a sweep, not finished, 7 of 12 trials ended"
    assert "2 ran to their end" in lines and "2 failed (see below)" in lines
    assert "3 stopped early by asha: 2 at step 3, 1 at step 6" in lines
    assert "2: ConfigError: no tokenizer (trial 2, 5)" in lines
    (at,) = [n for n, line in enumerate(lines) if re.fullmatch(r"trial 3 +trial 0", line)]
    assert lines[at + 2].split() == [MRR, "0.500", "0.400"]
    assert lines[at + 3].split() == ["95%", "interval", "0.375", "to", "0.625", "0.275", "to", "0.525"]
    assert lines[at + 4].split() == ["baseline", "0.062", "0.062"]
    assert f"{LR} 0.01 0.001" in [" ".join(line.split()) for line in lines]
    assert "too few to say" in "\n".join(lines) and "--plots draws them" in "\n".join(lines)
    assert any(line.endswith(f"trial 3; deepcoro train {folder / 'best.yaml'}") for line in lines)


def test_the_front_of_several_objectives(tmp_path, tiny_config):
    rows = [("complete", {9: pair}, 1e-3) for pair in ((0.9, 0.1), (0.6, 0.6), (0.5, 0.5), (0.1, 0.9))]
    study = study_of(rows, ((MRR, "maximize"), (F1, "maximize")))
    leave_runs(study, tmp_path, tiny_config())
    write_results(study, tmp_path)
    text = show(str(tmp_path))
    assert "Pareto front: 3 of 4 trials that ran to their end" in text
    assert re.search(r"trial 1 +trial 0 +trial 3\n", text)


def test_a_run_is_still_shown_as_a_run(folder):
    assert "a sweep" not in show(str(folder / "trials" / "trial_0000"))


def test_importances_find_the_parameter_that_matters():
    generator = np.random.default_rng(0)
    rates = 10 ** generator.uniform(-5, -1, 60)
    rows = [("complete", {9: -((np.log10(rate) + 3) ** 2)}, rate) for rate in rates]
    found = importances_of(study_of(rows))
    assert found.shares[MRR][LR] > 0.9 and sum(found.shares[MRR].values()) == pytest.approx(1)
    assert found.caution == ""
    few = importances_of(study_of(rows[:12]))
    assert set(few.shares[MRR]) == {LR, STRATEGY}
    assert few.caution.startswith("too few to mean much: 12 trials ran to their end, and 2 parameters want 20")
    assert importances_of(study_of(rows[:9])).shares == {}
    alike = importances_of(study_of([("complete", {9: 0.5}, rate) for rate in rates]))
    assert alike.shares == {}
