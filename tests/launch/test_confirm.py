"""The best trial and the default over seeds: differences by hand, when test is looked at, nothing done twice."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from deepcoro.config import Config
from deepcoro.errors import ConfigError, DataError, ResourceError, TrainingError, UserError
from deepcoro.evaluation.intervals import Interval
from deepcoro.evaluation.report import Metric, write_summary
from deepcoro.evaluation.rows import rows_path, write_rows
from deepcoro.evaluation.seeds import SeedDifference
from deepcoro.launch import confirm as module
from deepcoro.launch.confirm import _train, confirm, train_run
from deepcoro.launch.confirm_report import (
    Comparison,
    Pairs,
    confirmation_lines,
    differences,
    note_tested,
    read_confirmation,
    write_confirmation,
)
from deepcoro.launch.lock import hold, is_running
from deepcoro.launch.sweep_results import write_results
from tests.launch.sweep_study import F1, MRR, MSE, leave_runs, study_of

COUNTS = tuple(f"captioning/{kind}" for kind in ("true_positives", "false_positives", "false_negatives"))
BLEU = "captioning/bleu"  # of all rows together: it has no values by row


def leave_rows(run, split, columns, bleu=0.5, fingerprint="f", reconstruction_of=""):
    """What an evaluation leaves: 40 units of 20 patients, in an order of the run's own; NaN is no value."""
    run.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(len(run.name)).permutation(40)
    table = {"unit_id": [f"v{n}" for n in order], "study_id": [f"s{n // 2}" for n in order]}
    table |= {"patient_id": [f"p{n // 2}" for n in order], "valid": [True] * 40}
    for name, values in columns.items():
        table[name] = pa.array(np.asarray(values, float)[order], pa.float64(), from_pandas=True)
    about = {"checkpoint": "9", "dataset_fingerprint": fingerprint, "reconstruction_of": reconstruction_of}
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
    compared = differences(Pairs(runs["best"], runs["default"]), [MRR, F1, BLEU], "val")
    assert compared.notes == []
    found = compared.of
    assert found[MRR].by_seed == pytest.approx(values["best"].mean(axis=1) - values["default"].mean(axis=1))
    hits, false, missed = counts["best"].sum(axis=2).T
    other, false_2, missed_2 = counts["default"].sum(axis=2).T
    f1 = 2 * hits / (2 * hits + false + missed) - 2 * other / (2 * other + false_2 + missed_2)
    assert found[F1].by_seed == pytest.approx(f1)
    assert (found[MRR].num_patients, found[BLEU].num_patients) == (20, 0)
    ends = stats.ttest_rel(bleu["best"], bleu["default"]).confidence_interval(0.95)
    assert (found[BLEU].interval.low, found[BLEU].interval.high) == pytest.approx((ends.low, ends.high))
    # Over seeds and patients by hand: the variance of either mean, and Student's with Satterthwaite's freedom.
    by_row = (values["best"] - values["default"]).mean(axis=0)
    parts = np.array([np.var(found[MRR].by_seed, ddof=1) / 3, by_row.reshape(20, 2).mean(axis=1).var() / 20])
    freedom = parts.sum() ** 2 / (parts**2 / [2, 19]).sum()
    half = stats.t.ppf(0.975, freedom) * np.sqrt(parts.sum())
    ends = by_row.mean() - half, by_row.mean() + half
    assert (found[MRR].interval.low, found[MRR].interval.high) == pytest.approx(ends, abs=0.05 * half)


@pytest.fixture
def pairs(tmp_path):
    """``pairs(columns of best 0, best 1, default 0, default 1)`` -> two pairs of runs with rows of val."""

    def make(*columns, **of_last):
        runs = [tmp_path / name for name in ("best0", "best1", "default0", "default1")]
        for run, own in zip(runs, columns):
            leave_rows(run, "val", own, **(of_last if run is runs[-1] else {}))
        return Pairs(runs[:2], runs[2:])

    return make


def test_rows_that_some_runs_have_no_value_of_count_for_none_and_are_told(pairs):
    rows = np.random.default_rng(0).random((4, 40))
    rows[0, :3] = rows[3, 5] = np.nan
    rows[:, 7] = np.nan  # of nobody: not lost to the comparison
    kept = np.isfinite(rows).all(axis=0)
    compared = differences(pairs(*({MRR: one} for one in rows)), [MRR], "val")
    assert compared.of[MRR].by_seed == pytest.approx(rows[:2, kept].mean(axis=1) - rows[2:, kept].mean(axis=1))
    assert compared.notes == ["Up to 4 units have a value in some of the runs only and count for none."]
    nobody = differences(pairs(*({MRR: np.full(40, np.nan)} for _ in range(4))), [MRR], "val")
    assert nobody.of == {} and "no unit has a value" in nobody.notes[0]


def test_no_interval_of_what_four_patients_have(pairs):
    counts = np.zeros((4, 3, 40))
    counts[:, 0, :8:2] = 1  # patients 0 to 3 have a finding that all runs find
    counts[2, 0, 0], counts[2, 2, 0] = 0, 1  # but one that the default missed
    compared = differences(pairs(*(dict(zip(COUNTS, one)) for one in counts)), [F1], "val")
    assert np.isnan(compared.of[F1].interval.low) and "too few patients" in compared.notes[0]
    assert compared.of[F1].by_seed == pytest.approx((1 - 6 / 7, 0))
    counts[:, 0, 8] = 1  # a fifth
    fifth = differences(pairs(*(dict(zip(COUNTS, one)) for one in counts)), [F1], "val")
    assert np.isfinite(fifth.of[F1].interval.low) and fifth.notes == []


def test_what_cannot_be_compared(pairs):
    same = [{MRR: np.ones(40), MSE: np.ones(40)}] * 4
    other = differences(pairs(*same, reconstruction_of="tubes of 0.9"), [MRR, MSE], "val")
    assert set(other.of) == {MRR} and "masked_modeling/mse is left out" in other.notes[0]
    assert "none and tubes of 0.9" in other.notes[0]
    with pytest.raises(DataError, match="other datasets"):
        differences(pairs(*same, fingerprint="g"), [MRR], "val")


@pytest.fixture
def sweep_folder(tmp_path, tiny_config, monkeypatch):
    """A sweep of two trials that has ended, and what stands for training and measuring: lists of what was done. Runs in
    ``diverges`` fail."""
    folder = tmp_path / "runs" / "s"
    folder.mkdir(parents=True)
    base = tiny_config("name=s", f"root={folder.parent}", f"data.path={tmp_path}", "training.num_steps=9")
    study = study_of([("complete", {9: 0.4}, 1e-3), ("complete", {9: 0.5}, 1e-2)])
    leave_runs(study, folder, base)
    write_results(study, folder)
    done = {"trained": [], "val": [], "test": [], "diverges": set()}

    def train(config):
        run = folder / "confirm" / config.name
        config.save(run / "config.yaml")
        done["trained"].append(config.name)
        if config.name in done["diverges"]:
            raise TrainingError("the loss is not finite at step 3")
        for part in ("checkpoints/9", "validation"):
            (run / part).mkdir(parents=True)
        (run / "checkpoints" / "9" / "manifest.json").write_text("{}")
        (run / "validation" / "9.json").write_text('{"metrics": {}}')

    def train_all(where, configs, max_concurrent):
        assert where == folder and is_running(folder)
        failed = {}
        for config in configs:
            try:
                train_run(config)
            except TrainingError:
                failed[config.name] = (folder / "confirm" / config.name / "error.txt").read_text().strip()
        return failed

    def evaluate(run, split, num_neighbours):
        if done.get("killed at") == (split, len(done[split])):
            del done["killed at"]
            raise KeyboardInterrupt
        done[split].append(run.name)
        seed = int(run.name.rpartition("_")[2])
        gain = 0.2 if run.name.startswith("trial") else 0.0
        noise = np.random.default_rng([seed, 7]).normal(size=40)
        leave_rows(run, split, {MRR: 0.4 + gain + 0.01 * noise})

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "_train", train_all)
    monkeypatch.setattr(module, "evaluate", evaluate)
    monkeypatch.setattr(module, "start_ray", lambda: None)
    monkeypatch.setattr(module, "committed_steps", lambda run: [9] if (run / "checkpoints" / "9").exists() else [])
    return folder, done


def shown(folder, way="max"):
    return "\n".join(confirmation_lines(folder, {MRR: way}))


def test_few_seeds_claim_nothing_and_leave_test_alone(sweep_folder):
    folder, done = sweep_folder
    confirm(folder, 2)
    assert done["trained"] == ["trial_0001-seed_1", "default-seed_1", "trial_0001-seed_2", "default-seed_2"]
    assert done["test"] == []
    text = shown(folder)
    assert "Nothing can be claimed from 2 seeds" in text and "test patients were left alone" in text
    assert "test, 20 patients" not in text


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
    entry = read_confirmation(folder)["1"]["test"]
    assert entry["metrics"][MRR]["difference"] == pytest.approx(0.2) and entry["metrics"][MRR]["patients"] == 20
    text = shown(folder)
    assert "test, 20 patients, whom nothing else" in text and "left alone" not in text
    assert "worse" in shown(folder, "min")


def test_a_verdict_is_given_on_test_alone(sweep_folder):
    folder, _ = sweep_folder
    confirm(folder, 5)
    of_val, of_test = shown(folder).split("  test, 20 patients")
    assert (
        "better" not in of_val
        and "the trial was chosen on these patients" in of_val
        and " so" not in of_val.split("\n")[3]
    )
    assert of_test.count("better") == 1


@pytest.mark.parametrize("seeds", [2, 7])
def test_test_is_not_looked_at_again_with_other_seeds(sweep_folder, capsys, seeds):
    folder, done = sweep_folder
    confirm(folder, 5)
    looked, before = list(done["test"]), read_confirmation(folder)["1"]["test"]
    rows_path(folder / "confirm" / "default-seed_2", "test").unlink()  # the table stays, whatever becomes of the runs
    confirm(folder, seeds)
    found = read_confirmation(folder)
    assert done["test"] == looked and found["1"]["test"] == before
    assert found["tested"] == {"trial": 1, "seeds": [1, 2, 3, 4, 5]}
    assert found["1"]["val"]["seeds"] == list(range(1, seeds + 1))
    assert "not looked at again with others" in capsys.readouterr().err
    text = shown(folder)
    assert "left alone" not in text and "looked at once, with seeds 1, 2, 3, 4, 5" in text and "better" in text
    assert "not looked at again with other seeds" in text


def test_a_kill_before_and_within_test(sweep_folder):
    folder, done = sweep_folder
    done["killed at"] = ("test", 0)
    with pytest.raises(KeyboardInterrupt):
        confirm(folder, 5)
    assert "begun to be looked at for this trial, with seeds 1, 2, 3, 4, 5" in shown(folder)
    assert "test patients were left alone" not in shown(folder)
    done["killed at"] = ("test", 3)
    with pytest.raises(KeyboardInterrupt):
        confirm(folder, 5)
    confirm(folder, 6)  # ends what was begun, with the seeds of then
    assert len(done["test"]) == len(set(done["test"])) == 10
    assert read_confirmation(folder)["1"]["test"]["seeds"] == [1, 2, 3, 4, 5]


def test_what_is_noted_is_moved_into_place(sweep_folder, monkeypatch):
    folder, _ = sweep_folder
    note_tested(folder, 1, [1, 2])
    before = (folder / "confirm.json").read_text()

    def full(path, text, *rest):
        path.open("w").close()
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="no space"):
        note_tested(folder, 2, [1, 2])
    assert (folder / "confirm.json").read_text() == before


def test_a_seed_that_diverges_is_left_out_of_both_and_told(sweep_folder):
    folder, done = sweep_folder
    done["diverges"] = {"trial_0001-seed_3"}
    confirm(folder, 5)
    entry = read_confirmation(folder)["1"]
    assert entry["val"]["seeds"] == [1, 2, 4, 5] and done["test"] == []
    assert "default-seed_3" not in done["val"]
    text = shown(folder)
    assert "trial_0001-seed_3 failed" in text and "TrainingError: the loss is not finite at step 3" in text
    assert "Nothing can be claimed from 4 seeds" in text
    confirm(folder, 6)
    assert read_confirmation(folder)["tested"]["seeds"] == [1, 2, 4, 5, 6]
    assert read_confirmation(folder)["1"]["test"]["seeds"] == [1, 2, 4, 5, 6]


def test_errors_of_runs_are_told_apart_from_stops(sweep_folder, monkeypatch):
    folder, done = sweep_folder
    stopped = set()

    class Tuner:
        """Tune without Ray: one run after the other, bar those that are stopped."""

        def __init__(self, trainable, param_space, **given):
            self.trainable, self.names = trainable, param_space["run"]["grid_search"]

        def fit(self):
            for name in self.names:
                if name not in stopped:
                    with contextlib.suppress(TrainingError):
                        self.trainable({"run": name})
            return SimpleNamespace(errors=[])

    monkeypatch.setattr(module.tune, "Tuner", Tuner)
    monkeypatch.setattr(module.tune, "with_resources", lambda trainable, resources: trainable)
    monkeypatch.setattr(module, "choose_concurrency", lambda *given: (1, "one at once"))
    monkeypatch.setattr(module, "nodes", list)
    monkeypatch.setattr(module, "_train", _train)
    done["diverges"] = {"default-seed_2"}
    confirm(folder, 3)
    assert list(read_confirmation(folder)["1"]["failed"]) == ["default-seed_2"]
    stopped.update({"default-seed_2", "trial_0001-seed_4"})  # its error of before says nothing of this start
    with pytest.raises(TrainingError, match=r"2 runs .*\(default-seed_2, trial_0001-seed_4\), and raised no error"):
        confirm(folder, 4)
    stopped.clear()
    done["diverges"] = set()
    confirm(folder, 4)
    entry = read_confirmation(folder)["1"]
    assert entry["failed"] == {} and entry["val"]["seeds"] == [1, 2, 3, 4]


def test_with_fewer_than_two_pairs_there_is_nothing_to_compare(sweep_folder):
    folder, done = sweep_folder
    done["diverges"] = {"trial_0001-seed_1", "default-seed_2"}
    with pytest.raises(TrainingError, match="with 1 seeds left there is nothing to compare: .*not finite at step 3"):
        confirm(folder, 3)
    assert done["val"] == []


def test_a_run_of_another_config_is_not_taken_for_one_of_this(sweep_folder):
    folder, _ = sweep_folder
    confirm(folder, 2)
    changed = Config.load(folder / "config.yaml").merge(
        {"optim": {"weight_decay": 0.375}, "resources": {"cpus_per_worker": 2}}
    )
    changed.save(folder / "config.yaml")
    with pytest.raises(ConfigError, match=r"(?s)seed_1 was trained with.*optim.weight_decay: .* -> 0.375\n") as told:
        confirm(folder, 2)
    assert "resources" not in str(told.value)
    (folder / "confirm" / "default-seed_1" / "trial.json").write_text("{}")
    (folder / "confirm" / "trial_0001-seed_1").rename(folder / "elsewhere")
    with pytest.raises(ConfigError, match="default-seed_1 does not say"):
        confirm(folder, 2)


def test_one_at_a_time(sweep_folder):
    folder, done = sweep_folder
    with hold(folder), pytest.raises(ResourceError, match="already"):
        confirm(folder, 2)
    assert done["trained"] == []
    confirm(folder, 2)
    assert not is_running(folder)


def test_a_board_that_cannot_be_written_does_not_stop_it(sweep_folder, monkeypatch, capsys):
    folder, _ = sweep_folder
    monkeypatch.setattr(module, "write_line", lambda *given: {}["nothing"])
    confirm(folder, 2)
    assert "val" in read_confirmation(folder)["1"] and "KeyError" in capsys.readouterr().err


def test_of_several_intervals_some_exclude_0_by_chance(tmp_path):
    several = SeedDifference(Interval(0.2, 0.1, 0.3), (0.2,) * 5, 0.6, 0.4, 20)
    for objectives, told in (([MRR], False), ([MRR, F1, BLEU], True)):
        found = {"test": (range(5), Comparison(dict.fromkeys(objectives, several), []))}
        write_confirmation(tmp_path, 1, range(5), found)
        text = "\n".join(confirmation_lines(tmp_path, dict.fromkeys(objectives, "max")))
        assert ("Of 3 intervals, one in twenty would exclude 0 by chance" in text) == told


def test_another_best_trial_does_not_see_the_test_patients(sweep_folder):
    folder, done = sweep_folder
    confirm(folder, 5)
    first = len(done["test"])
    more = study_of([("complete", {9: 0.4}, 1e-3), ("complete", {9: 0.5}, 1e-2), ("complete", {9: 0.6}, 2e-2)])
    write_results(more, folder)
    confirm(folder, 5)
    assert len(done["test"]) == first and sum(name.startswith("trial_0002") for name in done["val"]) == 5
    assert sum(name.startswith("default") for name in done["trained"]) == 5  # the default's are used again
    text = shown(folder)
    assert "were not looked at for this trial: they were for trial 1" in text


def test_what_cannot_be_confirmed(sweep_folder, capsys):
    folder, done = sweep_folder
    write_results(study_of([("pruned", {3: 0.5}, 1e-3)]), folder)
    with pytest.raises(UserError, match="nothing to confirm"):
        confirm(folder, 5)
    write_results(study_of([("complete", {9: 0.5}, Config().optim.lr)]), folder)  # with the default's own values
    confirm(folder, 5)
    assert "is the default itself" in capsys.readouterr().err and done["trained"] == []
