"""Trials at once on 1, 2, 3 and 4 CPUs: each cell of the table really runs, on a Ray that counts so many, and ends.

A trial takes 0.89 CPUs: 0.05 for the driver, 0.5 for its worker, 0.34 for a data task. Four asked for on two, in the
short tests, are in test_sweep_kills.py.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.integration.sweeping import Driver, check_accounts

STEPS = 4
CELLS = {1: [(1, 1)], 2: [(1, 1), (2, 2), (4, 2)], 3: [(1, 1), (2, 2)], 4: [(1, 1), (2, 2)]}  # CPUs: (asked, at once)


@pytest.mark.long
@pytest.mark.parametrize("num_cpus", [1, 2, 3, 4])
@pytest.mark.timeout(900)
def test_what_is_asked_for_runs_as_far_as_it_fits(tiny_sweep, num_cpus):
    place = tiny_sweep(f"training.num_steps={STEPS}", "training.checkpoint_every=4", "training.evaluate_every=4")
    words = []
    for asked, _ in CELLS[num_cpus]:
        sweep = ("sweep", place / "experiment.yaml", "--space", place / "space.py", "--max-concurrent", asked)
        words += ["then", *sweep, "--num-trials", asked, f"name=asked{asked}"]
    said = Driver(place / "log.txt", *words[1:], num_cpus=num_cpus).wait(600)
    for asked, at_once in CELLS[num_cpus]:
        folder = place / "runs" / f"asked{asked}"
        check_accounts(folder, asked, STEPS)
        assert most_at_once(folder) == at_once
        lowered = f"{at_once} at once, and not the {asked} asked for: each takes 0.89 CPUs"
        assert (lowered in said) == (at_once < asked)


def most_at_once(folder):
    """Trials of a sweep that were on their way at the same moment."""
    times = [json.loads(path.read_text()) for path in folder.glob("trials/*/times.json")]
    moments = sorted([(one["entered"], 1) for one in times] + [(one["ended"], -1) for one in times])
    return max(sum(change for _, change in moments[: place + 1]) for place in range(len(moments)))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_trial_of_two_workers_is_run_by_ray_train_and_survives_the_loss_of_one(tiny_sweep):
    """Driver, workers and data are processes of their own; Ray Train starts the workers again by itself."""
    import signal

    import psutil

    from tests.integration.sweeping import newest_steps, starts_of

    place = tiny_sweep("resources.num_workers=2", "training.num_steps=24")
    folder = place / "runs" / "s"
    words = ("sweep", place / "experiment.yaml", "--space", place / "space.py", "--num-trials", 1, "name=s")
    driver = Driver(place / "log.txt", *words, num_cpus=3)
    driver.until(lambda: newest_steps(folder), "a checkpoint")
    family = psutil.Process(driver.process.pid).children(recursive=True)
    os.kill(next(one.pid for one in family if one.name().startswith("ray::RayTrainWor")), signal.SIGKILL)
    driver.wait(400)
    check_accounts(folder, 1, 24)
    assert starts_of(folder / "trials" / "trial_0000")[-1] > 4
