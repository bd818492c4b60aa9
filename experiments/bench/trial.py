"""What a trial of a sweep costs besides its steps, by cause; and beside it the same trial as a run of its own.

python -m experiments.bench.trial [--quick]

A sweep of small trials on a phantom, one after the other on a Ray that is warm (the first trial, in a new process, is
told apart): each trial's own account (``launch/sweep_times.py``), and the median by cause. The reference is the way a
trial of several workers takes: ``launch.train.train``, by which Ray Train starts a controller and a worker anew for
every run; the same trials, one after the other when the sweep has ended. The bar: 12 s on two cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import click

from deepcoro.config import Config
from experiments.bench.overhead import make_config
from experiments.bench.paired import machine, print_json

BAR = 12.0  # seconds of a trial besides its steps
STEPS = 4
SPACE = """
from ray import tune
SPACE = {"optim.lr": tune.loguniform(1e-5, 1e-3)}
OBJECTIVES = {"retrieval/report_to_video/mrr": "max"}
"""
CAUSES = {
    "schedule": "until Tune gives it to a process, or has started one",
    "process": "a new process: imports (0 where one is used again)",
    "data": "the dataset's tables",
    "ray": "joining Ray, the sum of resources",
    "run": "the run's folder: lock, tokenizer, config",
    "workers": "until the worker begins",
    "model": "model, optimizer, validation units",
    "first_batch": "the stream of data, to its first batch",
    "first_step": "the first step",
    "save": "the last checkpoint",
    "validation": "the last validation",
    "close": "letting go of data and files",
    "tell": "until the sweep was told",
}


@click.command()
@click.option("--quick", is_flag=True, help="Fewer trials.")
def main(quick: bool) -> None:
    """Trials of 4 steps of 16 clips."""
    from deepcoro.launch.resources import start_ray
    from deepcoro.launch.space import load_space
    from deepcoro.launch.sweep import sweep
    from deepcoro.launch.sweep_settings import Sweep

    num_trials = 4 if quick else 9
    with tempfile.TemporaryDirectory(prefix="deepcoro-bench-") as place:
        config = small_trials(Path(place))
        (Path(place) / "space.py").write_text(SPACE)
        start_ray()
        folder = sweep(Sweep(config, load_space(Path(place) / "space.py"), num_trials, max_concurrent=1))
        rows = [trial["times"] for trial in json.loads((folder / "sweep.json").read_text())["trials"]]
        first, warm = rows[0], rows[1:]
        alone = [seconds_of_a_run(config, number) for number in range(2 if quick else 4)][1:]  # the first warms up

    print(f"\n{len(warm)} trials with a warm cluster, one after the other, {machine()}: median seconds (first trial)")
    by_cause = {name: median(row.get(name, 0.0) for row in warm) for name in CAUSES}
    for name, seconds in by_cause.items():
        print(f"  {name:12} {seconds:7.2f}  ({first.get(name, 0.0):6.2f})  {CAUSES[name]}")
    total, steps = (median(row[name] for row in warm) for name in ("total", "steps"))
    by_train = median(alone) - steps
    print(f"  {'in all':12} {total:7.2f}  ({first['total']:6.2f})  the bar is {BAR:g}")
    print(f"  a run by Ray Train, besides the same steps: {by_train:.2f} s")
    figures: dict[str, object] = {"seconds": total, "first_seconds": first["total"], "bar_seconds": BAR}
    figures |= {"by_cause": by_cause}
    print_json("trial", total / by_train, "lower", figures | {"ray_train_seconds": by_train, "device": machine()})


def small_trials(folder: Path) -> Config:
    """The phantom and the model of bench/overhead.py, trained for a few steps."""
    changes = [
        f"training.num_steps={STEPS}",
        "training.log_every=1",
        "training.checkpoint_every=1000",
        "training.pictures=false",
        "resources.cpus_per_worker=0.6",
        "optim.warmup_steps=1",
        "name=sweep",
    ]
    return make_config(folder).override(changes)


def seconds_of_a_run(config: Config, number: int) -> float:
    """From the call of ``train`` to its end; what it says is not shown."""
    from deepcoro.launch.train import train

    begin = time.perf_counter()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        train(config.merge({"name": f"run{number}"}))
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
