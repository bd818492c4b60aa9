"""``deepcoro sweep``, which ``deepcoro/cli.py`` puts among the commands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcoro.config import Config
from deepcoro.errors import ConfigError, UserError

if TYPE_CHECKING:
    from deepcoro.launch.space import SweepSpace
    from deepcoro.launch.sweep_settings import Sweep

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """``8h``, ``90m`` or ``1.5d`` in seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", value.strip())
    if found is None or float(found[1]) == 0:
        raise click.BadParameter(f"{value!r} is no time such as 8h, 90m or 1.5d")
    return float(found[1]) * _SECONDS[found[2]]


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--space",
        "space_file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="What is searched: a Python file such as those of tune_spaces/.",
    ),
    click.option("--num-trials", type=click.IntRange(min=1), help="Trials of the whole sweep."),
    click.option(
        "--metric",
        "metrics",
        multiple=True,
        metavar="NAME[=max|min]",
        help="Objective instead of the space's OBJECTIVES; more than once for several.",
    ),
    click.option("--max-concurrent", type=click.IntRange(min=1), help="Trials at once.  [default: as many as fit]"),
    click.option("--time-budget", callback=_seconds, metavar="8h", help="No trial goes on after that, until --resume."),
    click.option("--seed", type=click.IntRange(min=0), help="Of the search.  [default: 0]"),
    click.option(
        "--sampler",
        metavar="NAME",
        help="Optuna's, by name: tpe, nsgaii, random, gp, ...  [default: tpe; nsgaii for several objectives]",
    ),
    click.option(
        "--storage",
        metavar="URL|FILE",
        help="Of Optuna's study: a database, or a journal file.  [default: study.db in the sweep's folder]",
    ),
    click.option(
        "--stop",
        "stopping",
        type=click.Choice(["none", "asha", "median"]),
        help="Stop trials that fall behind, by successive halving or by the median of the others.  [default: none]",
    ),
    click.option(
        "--max-failures",
        type=click.IntRange(min=1),
        help="When so many trials have failed, no other begins.  [default: half of them, and three at least]",
    ),
    click.option(
        "--resume",
        metavar="NAME",
        help="Go on with a sweep that was killed or stopped, by its name or folder; nothing else is needed.",
    ),
    click.option(
        "--confirm",
        type=click.IntRange(min=1),
        metavar="K",
        help="Afterwards train the best and the default anew, with K seeds each; 5 or more to claim anything.",
    ),
)


def sweep(
    experiment: str | None,
    assignments: Sequence[str],
    overlay: Path | None,
    dry: bool,
    space_file: Path | None,
    metrics: Sequence[str],
    resume: str | None,
    confirm: int | None,
    **options: Any,
) -> None:
    """Run an experiment many times, over a space of its fields.

    EXPERIMENT is as for `train`; what is set behind it holds for all trials. The space's file says what is searched,
    by which metrics of the validation patients it is judged, and which points are tried first.

        deepcoro sweep experiments/multitask.py --space tune_spaces/loss_weights.py --num-trials 40 --dry-run
        deepcoro sweep experiments/demo.py --space tune_spaces/mask_ratio.py --num-trials 12 --stop asha
        deepcoro sweep experiments/demo.py --space mine.py --num-trials 20 --metric captioning/finding_f1=max
        deepcoro sweep --resume demo-mine

    The sweep is called as the experiment and the space, unless name=... says otherwise. Its folder has study.db, which
    optuna-dashboard opens, trials/ with a run for each trial, sweep.json, best.yaml (the config of the best trial,
    which `train` takes) and plots/. Trials run at once as far as they fit. A trial that fails is noted with its error,
    and the sweep goes on.

    The best of many trials looks better than it is. With --confirm K, of a sweep that runs or with --resume of one that
    has ended, it and the default are trained anew with K seeds each and compared on the validation patients; with 5 or
    more they are measured on the test patients, once. `show` tells what came of it.

    After a kill, a stop or a time budget that was used up, --resume goes on: what has ended is kept, and trials that
    were running go on from their checkpoints. --num-trials, --max-concurrent, --time-budget, --max-failures, --storage,
    resources.* and data.path may be given anew with it.

    Exit codes: 0 done; 1 too many trials failed; 2 something given is wrong, such as a field that there is not, a
    metric that nobody reports, or a space that is another one now.
    """
    from deepcoro.launch.sweep import sweep as run_all

    given = {name: value for name, value in options.items() if value is not None}
    if resume is None:
        asked = _new(experiment, assignments, overlay, space_file, metrics, given)
    else:
        asked = _resumed(resume, experiment, assignments, overlay, space_file, metrics, given)
    if dry:
        _dry_run(asked, confirm)
        return
    folder = run_all(asked)
    if confirm is not None:
        from deepcoro.launch.confirm import confirm as train_anew
        from deepcoro.launch.show import show

        train_anew(folder, confirm, asked.max_concurrent)
        click.echo(show(str(folder)))


def _new(
    experiment: str | None,
    assignments: Sequence[str],
    overlay: Path | None,
    space_file: Path | None,
    metrics: Sequence[str],
    options: dict[str, Any],
) -> Sweep:
    from deepcoro.cli import described, load_config
    from deepcoro.launch.space import load_space
    from deepcoro.launch.sweep_settings import Sweep

    missing = {"EXPERIMENT": experiment, "--space": space_file, "--num-trials": options.get("num_trials")}
    for name, value in missing.items():
        if value is None:
            raise click.UsageError(f"Missing {name}. (With --resume NAME, nothing else is needed.)")
    assert experiment is not None and space_file is not None
    space = with_metrics(load_space(space_file), metrics)
    make = load_config(experiment)
    config = described(make, assignments, overlay)
    if config.name == make().name and not any(text.startswith("name=") for text in assignments):
        config = config.merge({"name": f"{config.name}-{space_file.stem}"})
    return Sweep(config, space, **options)


def _resumed(
    name: str,
    experiment: str | None,
    assignments: Sequence[str],
    overlay: Path | None,
    space_file: Path | None,
    metrics: Sequence[str],
    options: dict[str, Any],
) -> Sweep:
    from deepcoro.launch.paths import absolute
    from deepcoro.launch.sweep_folder import ABOUT, load_sweep

    if experiment is not None and "=" in experiment:  # a field to begin with
        assignments, experiment = [experiment, *assignments], None
    kept = {"EXPERIMENT": experiment, "--config": overlay, "--metric": metrics or None}
    kept |= {f"--{option}": options.get(field) for option, field in _KEPT.items()}
    if given := [option for option, value in kept.items() if value is not None]:
        raise ConfigError(f"{given[0]} cannot be given with --resume: it is the sweep's own, from its beginning")
    places = [Path(absolute(place, "--resume")) for place in (name, str(Path(Config().root) / name))]
    folder = next((place for place in places if (place / ABOUT).exists()), places[-1])
    return load_sweep(folder, options, space_file, assignments)


_KEPT = {"seed": "seed", "sampler": "sampler", "stop": "stopping"}  # options that a sweep keeps


for _wrap in reversed(_OPTIONS):
    sweep = _wrap(sweep)


def with_metrics(space: SweepSpace, metrics: Sequence[str]) -> SweepSpace:
    """A space with other objectives, each ``NAME`` (one of its own) or ``NAME=max|min``.

    Raises:
        ConfigError: a metric that is none of the space's, without the way it is to go.
    """
    chosen: dict[str, Any] = {}
    for text in metrics:
        name, equals, mode = text.partition("=")
        if not equals:
            if name not in space.objectives:
                raise ConfigError(f"--metric {name} is none of {space.path}'s OBJECTIVES: say {name}=max or {name}=min")
            mode = space.objectives[name]
        if mode not in ("max", "min"):
            raise ConfigError(f"--metric {text}: {mode!r} must be max or min")
        chosen[name] = mode
    return replace(space, objectives=chosen) if chosen else space


def _dry_run(asked: Sweep, confirm: int | None) -> None:
    from deepcoro.launch.dry_run import seconds_of_run
    from deepcoro.launch.resources import set_environment, start_ray
    from deepcoro.launch.sweep import describe_sweep

    set_environment()
    problem, one = None, None
    try:
        one = seconds_of_run(asked.config)
    except UserError as error:  # such as a dataset that is not there; the rest is told all the same
        problem = error
    start_ray()
    click.echo("\n".join(describe_sweep(asked, one, confirm)))
    click.echo("it would NOT start" if problem else "it would start")
    if problem is not None:
        raise problem
