"""Two runs of one name at once: the second is refused, and a killed one leaves no lock behind."""

import os
import signal
import subprocess
import sys

import pytest

from deepcoro.errors import ResourceError
from deepcoro.launch import lock
from deepcoro.training.control import writer_lock

HOLD = """
import sys, time, pathlib
from deepcoro.launch.lock import hold
with hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_holds_it_and_a_killed_holder_lets_go(tmp_path):
    run = tmp_path / "run"
    assert not lock.is_running(run)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    assert lock.is_running(run)
    with pytest.raises(ResourceError, match=rf"being trained already, by process {process.pid} on .*another name"):
        with lock.hold(run):
            pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not lock.is_running(run)
    with lock.hold(run):
        assert lock.is_running(run)
    assert not lock.is_running(run)


def test_a_worker_that_outlives_its_launcher_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_SECONDS_TO_DIE", 0.2)
    with writer_lock(tmp_path):
        with pytest.raises(ResourceError, match="still writes into"):
            with lock.hold(tmp_path):
                pass
    with lock.hold(tmp_path):  # the refusal above let go of everything
        pass
