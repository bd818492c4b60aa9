"""The best trial and the default over seeds: differences by hand, when test is looked at, nothing done twice."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from deepcoro.config import Config
from deepcoro.errors import UserError
from deepcoro.evaluation.report import Metric, write_summary
from deepcoro.evaluation.rows import rows_path, write_rows
from deepcoro.launch import confirm as module
from deepcoro.launch.confirm import confirm
from deepcoro.launch.confirm_report import Pairs, confirmation_lines, differences, read_confirmation
from deepcoro.launch.sweep_results import write_results
from tests.launch.sweep_study import F1, MRR, leave_runs, study_of

COUNTS = tuple(f"captioning/{kind}" for kind in ("true_positives", "false_positives", "false_negatives"))
BLEU = "captioning/bleu"  # of all rows together: it has no values by row


def leave_rows(run, split, columns, bleu=0.5):
    """What an evaluation leaves: 40 units of 20 patients, in an order of the run's own."""
    run.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(len(run.name)).permutation(40)
    table = {"unit_id": [f"v{n}" for n in order], "study_id": [f"s{n // 2}" for n in order]}
    table |= {"patient_id": [f"p{n // 2}" for n in order], "valid": [True] * 40}
    table |= {name: np.asarray(values, float)[order] for name, values in columns.items()}
    about = {"checkpoint": "9", "dataset_fingerprint": "f", "reconstruction_of": ""}
    write_rows(rows_path(run, split), pa.table(table), about)
    write_summary(run / f"summary_{split}.json", {BLEU: Metric(bleu)}, {"split": split})


def test_differences_of_each_kind_of_metric(tmp_path):
    generator = np.random.default_rng(0)
    values = {kind: generator.random((3, 40)) for kind in ("best", "default")}
    counts = {kind: generator.integers(0, 4, (3, 3, 40)) for kind in ("best", "default")}
    bleu = {"best": [0.5, 0.6, 0.8], "default": [0.4, 0.3, 0.6]}
    runs = {}
    for kind in values:
        runs[kind] = [tmp_path / f"{kind}{seed}" for seed in range(3)]
        for seed, run in enumerate(runs[kind]):
            columns = {MRR: values[kind][seed]} | dict(zip(COUNTS, counts[kind][seed], strict=True))
            leave_rows(run, "val", columns, bleu[kind][seed])
    found = differences(Pairs(runs["best"], runs["default"]), [MRR, F1, BLEU], "val")
    assert found[MRR].by_seed == pytest.approx(values["best"].mean(axis=1) - values["default"].mean(axis=1))
    hits, false, missed = counts["best"].sum(axis=2).T
    other, false_2, missed_2 = counts["default"].sum(axis=2).T
    f1 = 2 * hits / (2 * hits + false + missed) - 2 * other / (2 * other + false_2 + missed_2)
    assert found[F1].by_seed == pytest.approx(f1)
    assert (found[MRR].num_patients, found[BLEU].num_patients) == (20, 0)
    ends = stats.ttest_rel(bleu["best"], bleu["default"]).confidence_interval(0.95)
    assert (found[BLEU].interval.low, found[BLEU].interval.high) == pytest.approx((ends.low, ends.high))
    # Over patients too, an interval is wider than that over seeds with these patients.
    seeds_alone = stats.ttest_1samp(found[MRR].by_seed, 0).confidence_interval(0.95)
    assert found[MRR].interval.high - found[MRR].interval.low > 0.5 * (seeds_alone.high - seeds_alone.low)


@pytest.fixture
def sweep_folder(tmp_path, tiny_config, monkeypatch):
    """A sweep of two trials that has ended, and what stands for training and measuring: lists of what was done."""
    folder = tmp_path / "runs" / "s"
    folder.mkdir(parents=True)
    base = tiny_config("name=s", f"root={folder.parent}", f"data.path={tmp_path}", "training.num_steps=9")
    study = study_of([("complete", {9: 0.4}, 1e-3), ("complete", {9: 0.5}, 1e-2)])
    leave_runs(study, folder, base)
    write_results(study, folder)
    done = {"trained": [], "val": [], "test": []}

    def train(where, configs, max_concurrent):
        for config in configs:
            done["trained"].append(config.name)
            for part in ("checkpoints", "validation"):
                (where / "confirm" / config.name / part).mkdir(parents=True)
            run = where / "confirm" / config.name
            (run / "checkpoints" / "9").mkdir()
            (run / "checkpoints" / "9" / "manifest.json").write_text("{}")
            (run / "validation" / "9.json").write_text('{"metrics": {}}')
            config.save(run / "config.yaml")

    def evaluate(run, split, num_neighbours):
        done[split].append(run.name)
        seed = int(run.name.rpartition("_")[2])
        gain = 0.2 if run.name.startswith("trial") else 0.0
        noise = np.random.default_rng([seed, 7]).normal(size=40)
        leave_rows(run, split, {MRR: 0.4 + gain + 0.01 * noise})

    monkeypatch.setattr(module, "_train", train)
    monkeypatch.setattr(module, "evaluate", evaluate)
    monkeypatch.setattr(module, "start_ray", lambda: None)
    monkeypatch.setattr(module, "committed_steps", lambda run: [9] if (run / "checkpoints" / "9").exists() else [])
    return folder, done


def test_few_seeds_claim_nothing_and_leave_test_alone(sweep_folder):
    folder, done = sweep_folder
    confirm(folder, 2)
    assert done["trained"] == ["trial_0001-seed_1", "default-seed_1", "trial_0001-seed_2", "default-seed_2"]
    assert done["test"] == []
    text = "\n".join(confirmation_lines(folder, {MRR: "max"}))
    assert "Nothing can be claimed from 2 seeds" in text and "too few seeds" in text and "test, 20 patients" not in text


def test_more_seeds_go_on_from_those_that_are_there_and_test_is_looked_at_once(sweep_folder):
    folder, done = sweep_folder
    confirm(folder, 2)
    confirm(folder, 5)
    confirm(folder, 5)
    assert len(done["trained"]) == len(set(done["trained"])) == 10
    assert sorted(done["val"]) == sorted(done["test"]) == sorted(done["trained"])
    seeds = {
        run.name: int(text.split(": ")[1])
        for run in (folder / "confirm").iterdir()
        for text in (run / "config.yaml").read_text().splitlines()
        if text.startswith("seed: ")
    }
    assert seeds == {f"{kind}-seed_{n}": n for kind in ("trial_0001", "default") for n in range(1, 6)}
    entry = read_confirmation(folder)["1"]
    assert entry["test"][MRR]["difference"] == pytest.approx(0.2) and entry["test"][MRR]["patients"] == 20
    text = "\n".join(confirmation_lines(folder, {MRR: "max"}))
    assert text.count("better") == 2 and "test, 20 patients, whom nothing else" in text
    assert "worse" in "\n".join(confirmation_lines(folder, {MRR: "min"}))


def test_another_best_trial_does_not_see_the_test_patients(sweep_folder):
    folder, done = sweep_folder
    confirm(folder, 5)
    first = len(done["test"])
    more = study_of([("complete", {9: 0.4}, 1e-3), ("complete", {9: 0.5}, 1e-2), ("complete", {9: 0.6}, 2e-2)])
    write_results(more, folder)
    confirm(folder, 5)
    assert len(done["test"]) == first and sum(name.startswith("trial_0002") for name in done["val"]) == 5
    assert sum(name.startswith("default") for name in done["trained"]) == 5  # the default's are used again
    text = "\n".join(confirmation_lines(folder, {MRR: "max"}))
    assert "were not looked at for this trial: they were for trial 1" in text


def test_what_cannot_be_confirmed(sweep_folder, capsys):
    folder, done = sweep_folder
    write_results(study_of([("pruned", {3: 0.5}, 1e-3)]), folder)
    with pytest.raises(UserError, match="nothing to confirm"):
        confirm(folder, 5)
    write_results(study_of([("complete", {9: 0.5}, Config().optim.lr)]), folder)  # with the default's own values
    confirm(folder, 5)
    assert "is the default itself" in capsys.readouterr().err and done["trained"] == []
