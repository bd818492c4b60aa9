"""What ``deepcoro sweep`` is told, and what it tells before it does anything."""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from deepcoro.cli import main
from deepcoro.errors import ConfigError
from deepcoro.launch.sweep import sweep  # before a fixture puts something else there

SPACE = """
from ray import tune
SPACE = {"optim.lr": tune.loguniform(1e-5, 1e-3), "masked_modeling.strategy": tune.choice(["random", "tube"])}
OBJECTIVES = {"captioning/finding_f1": "max", "retrieval/report_to_video/mrr": "max"}
START = [{"optim.lr": 6e-5}]
"""
EXPERIMENT = """
from deepcoro.config import Config
def experiment():
    return Config(name="tried")
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    (tmp_path / "rates.py").write_text(SPACE)
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return ["sweep", "experiment.py", "--space", "rates.py", "--num-trials", "12"]


@pytest.fixture
def asked(monkeypatch):
    made = []
    monkeypatch.setattr("deepcoro.launch.sweep.sweep", made.append)
    return made


def run(*args, code=0):
    done = CliRunner().invoke(main, list(map(str, args)))
    assert done.exit_code == code, done.output + done.stderr
    return done.output + done.stderr


def test_what_a_sweep_is_told(files, asked):
    run(*files)
    run(*files, "--metric", "captioning/finding_f1", "--max-concurrent", 3, "--time-budget", "1.5h", "--seed", 4)
    run(
        *files,
        "--sampler",
        "random",
        "--storage",
        "j.log",
        "--stop",
        "asha",
        "--max-failures",
        2,
        "name=mine",
        "optim.eps=1e-7",
    )
    first, second, third = asked
    assert first.config.name == "tried-rates" and first.num_trials == 12
    assert list(first.space.objectives) == ["captioning/finding_f1", "retrieval/report_to_video/mrr"]
    assert (first.max_concurrent, first.time_budget, first.seed, first.stopping) == (None, None, 0, "none")
    assert first.most_failures == 6 and not first.resume  # half of the trials
    assert second.space.objectives == {"captioning/finding_f1": "max"}
    assert (second.max_concurrent, second.time_budget, second.seed) == (3, 5400.0, 4)
    assert (third.sampler, third.storage, third.stopping, third.most_failures) == ("random", "j.log", "asha", 2)
    assert third.config.name == "mine" and third.config.optim.eps == 1e-7


def test_metrics_of_the_users_own(files, asked):
    run(*files, "--metric", "masked_modeling/mse=min", "--metric", "captioning/readable=max")
    assert asked[0].space.objectives == {"masked_modeling/mse": "min", "captioning/readable": "max"}
    assert "say captioning/bleu=max or captioning/bleu=min" in run(*files, "--metric", "captioning/bleu", code=2)
    assert "'up' must be max or min" in run(*files, "--metric", "captioning/bleu=up", code=2)


@pytest.mark.parametrize("time", ["8", "h", "0h", "1 week"])
def test_a_time_that_is_none(files, time):
    assert "is no time such as 8h" in run(*files, "--time-budget", time, code=2)


@pytest.fixture
def machine(monkeypatch):
    """A machine of 2 CPUs on which a step takes 0.5 s, without starting anything."""
    monkeypatch.setattr("deepcoro.launch.resources.start_ray", lambda: None)
    monkeypatch.setattr("deepcoro.launch.sweep.nodes", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr("deepcoro.launch.dry_run.seconds_of_run", lambda config: (3600.0, "measured by nobody"))


def test_a_dry_run_tells_space_budget_resources_and_time(files, machine, tmp_path):
    said = run(*files, "--dry-run", "--max-concurrent", 4, "resources.cpus_per_worker=0.6", "training.num_steps=7200")
    for line in (
        "optim.lr                  1e-05 to 0.001, log",
        "masked_modeling.strategy  random | tube",
        "captioning/finding_f1, max",
        "12 trials of 7200 steps; stopped early: by none",
        "0.99 CPUs: driver 0.05 + 1 worker x 0.6 + a data task of 0.34",
        "2 at once, and not the 4 asked for",
        "1:00:00 a trial that trains to its end, without evaluations; measured by nobody",
        "6:00:00 in all, 2 at once",
        "it would start",
    ):
        assert line in said
    assert "3:00:00 in all" in run(*files, "--dry-run", "--time-budget", "3h", "resources.cpus_per_worker=0.6")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.py", "rates.py"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metric", "loss/total=min"], "a training loss"),
        (["--metric", "captioning/finding_f2=max"], "nearest metric of this run is 'captioning/finding_f1'"),
        (["--stop", "asha"], "choose one by --metric"),
        (["--stop", "asha", "--metric", "captioning/finding_f1", "training.evaluate_every=null"], "needs evaluations"),
        (["--sampler", "best"], "there is no sampler 'best'"),
        (["resources.cpus_per_worker=2"], "not even one trial fits"),
        (["evaluation.asynchronous=true"], "evaluation.asynchronous=false"),
    ],
)
def test_a_dry_run_refuses_what_a_sweep_would(files, machine, more, message):
    assert message in run(*files, "--dry-run", *more, code=2)


def test_a_dry_run_without_data_tells_the_rest(files, machine, monkeypatch):
    from deepcoro.errors import DataError

    def no_data(config):
        raise DataError("there is no dataset")

    monkeypatch.setattr("deepcoro.launch.dry_run.seconds_of_run", no_data)
    said = run(*files, "--dry-run", code=2)
    assert "optim.lr" in said and "it would NOT start" in said and "error: there is no dataset" in said


@pytest.fixture
def begun(files, asked):
    """A sweep that has begun, in a folder of its own, and is not in the way of ``asked``."""
    from deepcoro.launch.sweep_folder import save_sweep

    run(*files, "--metric", "captioning/finding_f1", "--seed", 4, "--max-concurrent", 3, "optim.eps=1e-7")
    first = asked.pop()
    first.folder.mkdir(parents=True)
    save_sweep(first)
    return first


def test_resume_needs_no_more_than_a_name(begun, asked, tmp_path):
    for name in ("tried-rates", "runs/tried-rates", tmp_path / "runs" / "tried-rates"):
        run("sweep", "--resume", name)
    run("sweep", "--resume", "tried-rates", "--num-trials", 20, "--max-failures", 9, "resources.cpus_per_worker=0.4")
    plain, *_, other = asked
    for again in asked:
        assert again.folder == begun.folder and again.resume
        assert again.space.source == begun.space.source and again.space.objectives == begun.space.objectives
        assert again.config.optim.eps == 1e-7 and (again.seed, again.max_concurrent) == (4, 3)
        assert list(again.space.start) == [{"optim.lr": 6e-5}]
    assert (plain.num_trials, plain.most_failures, other.num_trials, other.most_failures) == (12, 6, 20, 9)
    assert other.config.resources.cpus_per_worker == 0.4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", 5], "--seed cannot be given with --resume"),
        (["experiment.py"], "EXPERIMENT cannot be given with --resume"),
        (["optim.eps=1e-6"], "optim.eps=1e-6: a sweep that goes on keeps its experiment"),
        (["--space", "other.py"], "  optim.lr: 1e-05 to 0.001, log -> 1e-05 to 0.01, log"),
    ],
)
def test_what_a_resumed_sweep_keeps(begun, asked, tmp_path, more, message):
    (tmp_path / "other.py").write_text(SPACE.replace("1e-3)", "1e-2)"))
    assert message in run("sweep", "--resume", "tried-rates", *more, code=2)
    assert not asked


def test_a_space_that_was_edited_since_is_refused_and_the_sweeps_own_is_not(begun, asked, tmp_path):
    text = SPACE.replace('["random", "tube"]', '["random", "tube", "block"]').replace('"optim.lr": t', '"optim.eps": t')
    (tmp_path / "rates.py").write_text(text)
    said = run("sweep", "--resume", "tried-rates", code=2)
    for line in (
        "optim.lr: 1e-05 to 0.001, log -> not searched",
        "masked_modeling.strategy: random | tube -> random | tube | block",
        "optim.eps: not searched -> 1e-05 to 0.001, log",
        "runs/tried-rates/space.py",
    ):
        assert line in said
    run("sweep", "--resume", "tried-rates", "--space", "runs/tried-rates/space.py")
    (tmp_path / "rates.py").unlink()
    run("sweep", "--resume", "tried-rates")
    assert len(asked) == 2


def test_a_constant_beside_a_function_is_part_of_the_space(files, asked, tmp_path):
    from deepcoro.launch.sweep_folder import save_sweep

    text = """
HIGH = 1e-3
def SPACE(trial):
    trial.suggest_float("optim.lr", 1e-5, HIGH, log=True)
OBJECTIVES = {"captioning/finding_f1": "max"}
"""
    (tmp_path / "rates.py").write_text(text)
    run(*files)
    first = asked.pop()
    first.folder.mkdir(parents=True)
    save_sweep(first)
    run("sweep", "--resume", "tried-rates")
    (tmp_path / "rates.py").write_text(text.replace("1e-3", "1e-2"))
    assert "such as a constant of its file" in run("sweep", "--resume", "tried-rates", code=2)
    (tmp_path / "rates.py").write_text(text.replace("optim.lr", "optim.text_lr"))
    said = run("sweep", "--resume", "tried-rates", code=2)
    assert '-    trial.suggest_float("optim.lr"' in said and '+    trial.suggest_float("optim.text_lr"' in said


def test_what_is_no_sweep_names_those_there_are(begun, asked):
    assert "is no sweep to go on with" in (said := run("sweep", "--resume", "tried", code=2)) and "tried-rates" in said
    assert "Missing EXPERIMENT" in run("sweep", code=2)
    assert "Missing --num-trials" in run("sweep", "experiment.py", "--space", "rates.py", code=2)


def test_a_password_is_not_kept(files, asked):
    from deepcoro.launch.sweep_folder import save_sweep

    url = "postgresql+pg8000://me:secret@somewhere/sweeps"
    run(*files, "--storage", url)
    first = asked.pop()
    first.folder.mkdir(parents=True)
    save_sweep(first)
    assert "secret" not in "".join(path.read_text() for path in first.folder.iterdir())
    assert "password is not kept: give it again by --storage" in run("sweep", "--resume", "tried-rates", code=2)
    run("sweep", "--resume", "tried-rates", "--storage", url)
    assert asked[0].storage == url


@pytest.fixture
def nothing_starts(machine, monkeypatch):
    """``sweep`` up to where Tune would start, which must not be come to."""
    monkeypatch.setattr("deepcoro.launch.sweep.start_ray", lambda: None)
    monkeypatch.setattr("deepcoro.launch.sweep._tuner", lambda *_: pytest.fail("it started"))


BAD = {  # an edit of the space, options, and what is said
    "unknown field": (('"optim.lr": t', '"optim.rl": t'), [], "optim.rl"),
    "range": (("tune.loguniform(1e-5, 1e-3)", "tune.uniform(-1.0, 1e-3)"), [], "optim.lr (-1 to 0.001), at -1.0: "),
    "metric": ((), ["--metric", "retrieval/report_to_video/mr=max"], "'retrieval/report_to_video/mrr'"),
    "objective": (('"optim.lr": t', '"loss.weights.captioning": t'), ["--metric", "loss/total=min"], "small weights"),
    "sampler": ((), ["--sampler", "cmaes", "--storage", "j.log"], "the sampler cmaes "),
    "storage": ((), ["--storage", "postgresql+pg8000://me:secret@127.0.0.1:1/none"], "cannot be used"),
    "resources": ((), ["resources.cpus_per_worker=2"], "2.39 CPUs: driver 0.05 + 1 worker x 2 + a data task of 0.34"),
    "data": ((), ["data.path=nowhere"], "nowhere/studies.parquet is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_before_anything_starts(files, nothing_starts, dataset_folder, tmp_path, case):
    edit, more, message = BAD[case]
    if edit:
        start = 'START = [{"optim.lr": 6e-5}]'
        (tmp_path / "rates.py").write_text(SPACE.replace(start, "").replace(*edit))
    said = run(*files, f"data.path={dataset_folder}", *more, code=2)
    assert message in said and "Traceback" not in said and "secret" not in said
    assert not list(tmp_path.glob("runs/*/trials")) and not list(tmp_path.glob("runs/*/sweep.yaml"))


def test_two_sweeps_of_one_name_leave_each_other_alone(files, begun, nothing_starts, dataset_folder):
    kept = (begun.folder / "sweep.yaml").read_text()
    (begun.folder / "trials" / "trial_0000").mkdir(parents=True)
    again = replace(begun, config=begun.config.merge({"data": {"path": str(dataset_folder)}}), num_trials=3)
    with pytest.raises(ConfigError, match="holds the trials of a sweep already: go on .* --resume .*runs/tried-rates"):
        sweep(again)
    assert (begun.folder / "sweep.yaml").read_text() == kept


def test_fewer_trials_than_have_begun_are_refused(files, begun, nothing_starts, dataset_folder):
    from deepcoro.launch.study import open_study

    study = open_study("tried-rates", begun.space, None, begun.folder, num_trials=12)
    for _ in range(3):
        study.ask()
    here = begun.config.merge({"data": {"path": str(dataset_folder)}})
    with pytest.raises(ConfigError, match="--num-trials 2: 3 trials of .* have begun already"):
        sweep(replace(begun, config=here, num_trials=2, resume=True))


def test_a_dataset_prepared_anew_is_refused(files, begun, nothing_starts, make_dataset, tmp_path):
    from deepcoro.errors import DataError
    from deepcoro.launch.study import open_study

    studies = [{"study_id": split, "split": split, "report": "Normal."} for split in ("train", "val")]
    path = make_dataset(tmp_path / "data", studies, [{"study_id": split} for split in ("train", "val")])
    study = open_study("tried-rates", begun.space, None, begun.folder, num_trials=12)
    study.set_user_attr("dataset", "0123456789abcdef")
    again = replace(begun, config=begun.config.merge({"data": {"path": path}}), resume=True)
    with pytest.raises(DataError, match="began with another dataset .* 0123456789ab and made-for-tes"):
        sweep(again)
    study.set_user_attr("dataset", "made-for-tests")
    only_train = make_dataset(tmp_path / "other", studies[:1], [{"study_id": "train"}])
    with pytest.raises(DataError, match="has no validation patients, by whom trials are judged"):
        sweep(replace(again, config=begun.config.merge({"data": {"path": only_train}})))


def test_a_dry_run_looks_where_the_sweep_would_lie(files, begun, machine, tmp_path):
    from deepcoro.launch.study import open_study

    for storage in ("postgresql+pg8000://me:secret@127.0.0.1:1/none", "/proc/none/journal.log"):
        said = run(*files, "--dry-run", "--storage", storage, code=2)
        assert "cannot be used" in said and "secret" not in said and "it would start" not in said
    study = open_study("tried-rates", begun.space, None, begun.folder, num_trials=12)
    before = sorted(tmp_path.rglob("*"))
    said = run(*files, "--dry-run", "--metric", "captioning/finding_f1", code=2)
    assert "has a sweep 'tried-rates' already" in said and "it would start" not in said
    for value in (0.1, 0.2, 0.3):
        study.tell(study.ask(), value)
    study.ask()
    said = run("sweep", "--resume", "tried-rates", "--dry-run", "resources.cpus_per_worker=0.6")
    assert "3 done already, and 1 that go on" in said and "it would start" in said
    assert "5:00:00 in all, 2 at once" in said  # 9 trials of an hour
    assert "4 trials of" in run("sweep", "--resume", "tried-rates", "--dry-run", "--num-trials", 3, code=2)
    assert sorted(tmp_path.rglob("*")) == before
    (begun.folder / "trials" / "trial_0000").mkdir(parents=True)
    assert "holds the trials of a sweep already" in run(*files, "--dry-run", code=2)


def test_a_dry_run_counts_the_confirmation(files, machine):
    said = run(*files, "--dry-run", "--confirm", 5, "resources.cpus_per_worker=0.6")
    assert "then 10 trainings of 10000 steps: 5 seeds of the best trial and of the default" in said
    assert "11:00:00 in all" in said  # 12 trials, then 10, of an hour, two at once


@pytest.mark.parametrize(("budget", "when"), [(1e-9, "the time was up"), (3600.0, "the sweep was stopped")])
def test_trials_that_ran_when_the_time_was_up_are_told_of(
    files, asked, nothing_starts, dataset_folder, monkeypatch, capsys, budget, when
):
    from deepcoro.launch import search
    from deepcoro.launch.sweep_results import read_study

    class LetsGo:  # as Tune does when the time is up: the searcher is told of the first trial alone
        def __init__(self, asked, searcher, *_):
            self.searcher = searcher

        def fit(self):
            for name in "ab":
                self.searcher.suggest(name)
            self.searcher.on_trial_complete("a", {"step": 10000, "captioning/finding_f1": 0.5})
            self.searcher.on_trial_result("b", {"step": 1000, "captioning/finding_f1": 0.1})

    run(*files, "--metric", "captioning/finding_f1", f"data.path={dataset_folder}")
    reached = {"trial_0001": search.Left({1000: {"captioning/finding_f1": 0.1}})}
    monkeypatch.setattr("deepcoro.launch.sweep._tuner", LetsGo)
    monkeypatch.setattr("deepcoro.launch.sweep.left_behind", lambda _, name: reached.get(name, search.Left({})))
    folder = sweep(replace(asked[0], time_budget=budget))
    said = capsys.readouterr().err
    assert f"trial_0001 was running when {when}: it stands at step 1000, and --resume goes on with it" in said
    assert "1 of 12 trials are done" in said
    assert [trial.state.name for trial in read_study(folder).trials] == ["COMPLETE", "RUNNING"]
