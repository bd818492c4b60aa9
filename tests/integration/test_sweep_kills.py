"""A sweep that is killed at three moments, each in another way, ends as one that nobody touched: by exact accounts.

Driver, trials and Ray are processes of their own, and SIGKILL ends them. The model and the data are as small as they
can be: what is tested is who remembers what.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.integration.sweeping import (
    Driver,
    check_accounts,
    newest_steps,
    num_finished,
    pid_of,
    starts_of,
)

NUM_TRIALS, NUM_STEPS, EVERY = 8, 12, 4  # trials, their steps, and steps from checkpoint to checkpoint


def what_ended(run):
    """The newest checkpoint of a run, by its hashes, and how often it was started."""
    return (run / "checkpoints" / str(NUM_STEPS) / "manifest.json").read_bytes(), starts_of(run)


@pytest.mark.timeout(900)
def test_killed_at_three_moments_it_ends_with_exact_accounts(tiny_sweep):
    place = tiny_sweep()
    folder, log = place / "runs" / "s", place / "log.txt"
    kept = {}

    def in_the_middle():
        return [run for run, step in newest_steps(folder).items() if step == EVERY]

    def until(driver, number):
        """A trial stands at its first checkpoint, and so many have ended; these are looked at again in the end."""
        driver.until(lambda: num_finished(folder, NUM_STEPS) >= number and in_the_middle(), f"the kill after {number}")
        for run in folder.glob("trials/*"):
            if (run / "times.json").exists() and run not in kept:
                kept[run] = what_ended(run)

    # 1. The driver, and with it the Ray that it started.
    words = ("sweep", place / "experiment.yaml", "--space", place / "space.py", "--num-trials", NUM_TRIALS)
    driver = Driver(log, *words, "--max-concurrent", 4, "name=s")
    until(driver, 1)
    first = in_the_middle()
    driver.kill()  # a trial may come to some more steps before Ray has ended it

    # 2. The process of one trial. The sweep itself goes on with it.
    driver = Driver(log, "sweep", "--resume", "s")
    until(driver, 3)
    killed = in_the_middle()[0]
    os.kill(pid_of(killed), signal.SIGKILL)
    until(driver, 5)

    # 3. Everything at the same moment.
    third = in_the_middle()
    driver.kill(everything=True)
    said = Driver(log, "sweep", "--resume", folder).wait(300)

    check_accounts(folder, NUM_TRIALS, NUM_STEPS)
    for run, before in kept.items():
        assert what_ended(run) == before  # it was not touched again
    assert len(kept) >= 3
    for run in (*first, killed, *third):
        assert all(step > EVERY for step in starts_of(run)[1:]), f"{run.name} began anew, and had a checkpoint"
    assert all(len(starts_of(run)) > 1 for run in (killed, *third))
    assert "2 at once, and not the 4 asked for" in said and said.count(f"of {NUM_TRIALS} trials done") == 3
