"""``deepcoro check|show|train|sweep|evaluate|compare|generate``: the platform from a terminal.

A user's mistake is one message and exit code 2; a run that cannot go on, or a check that fails, is 1; a run that was
asked to stop and has saved ends with the code of the signal. What a command needs is imported when it runs, so that
help comes at once.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import click

from deepcoro import __version__
from deepcoro.cli_sweep import sweep
from deepcoro.config import Config, read_yaml
from deepcoro.errors import ConfigError, DeepCoroError, RunStopped, TrainingError
from deepcoro.launch.python_file import run_file

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_YAML = (".yaml", ".yml")


class _Command(click.Command):
    """A command whose help keeps the lines of indented paragraphs, which are examples, as they are."""

    def __init__(self, name: str | None, *, help: str | None = None, **kwargs: Any) -> None:
        paragraphs = inspect.cleandoc(help or "").split("\n\n")
        kept = "\n\n".join(f"\b\n{text}" if text.startswith("    ") else text for text in paragraphs)
        super().__init__(name, help=kept, **kwargs)


class _Group(click.Group):
    """Turns an error raised on purpose, in any command, into its message."""

    command_class = _Command

    def invoke(self, ctx: click.Context) -> object:
        with plain_errors():
            return super().invoke(ctx)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn errors raised on purpose into their message on stderr and an exit code; others keep their traceback."""
    try:
        yield
    except RunStopped as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(stopped.exit_code)
    except DeepCoroError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1 if isinstance(error, TrainingError) else 2)


def _described(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments that describe a run, behind the experiment."""
    for wrap in (
        click.option("--config", "overlay", metavar="FILE", type=click.Path(path_type=Path), help=_OVERLAY_HELP),
        click.argument("assignments", nargs=-1, metavar="[SECTION.FIELD=VALUE]..."),
    ):
        command = wrap(command)
    return command


_OVERLAY_HELP = "A YAML of some fields, laid over the experiment; SECTION.FIELD=VALUE is laid over both."
_dry = click.option(
    "--dry-run", "dry", is_flag=True, help="Say what it would do, take and cost, and whether it would start."
)
_split = click.option(
    "--split", type=click.Choice(["val", "test"]), default="val", show_default=True, help="Patients to measure on."
)
_checkpoint = click.option(
    "--checkpoint", default="newest", show_default=True, metavar="newest|best|STEP", help="Which one to take."
)
_weights = click.option(
    "--weights",
    type=click.Choice(["trained", "ema"]),
    help="The trained weights or their average.  [default: the average, where the run keeps one]",
)
_path = click.Path(path_type=Path)


@click.group(cls=_Group, context_settings=_SETTINGS)
@click.version_option(__version__)
def main() -> None:
    """Train and measure video-language models of coronary angiography.

    The usual way: `check` that everything works here, `train --dry-run` and then `train` an experiment, `show` how
    far it is, `evaluate` it on patients it never saw, `compare` it with another run, `generate` reports.

    Exit codes: 0 done; 1 a check failed, or a run cannot go on; 2 a mistake in what was given, told in one message.
    """


@main.command()
@click.argument("experiment", required=False)
@_described
def check(experiment: str | None, assignments: Sequence[str], overlay: Path | None) -> None:
    """See whether everything that training needs works here.

    Tried, one line each: Ray starts, or the cluster answers; the GPU; the video decoder; a batch of the data; the
    tokenizer; and on noise the model, its losses, a training step and caption generation. A part that fails says what
    to do, and the others are tried all the same.

    Alone, a tiny model is tried. With EXPERIMENT (a Python file, or a YAML) it is that one's own, in its own size.

        deepcoro check
        deepcoro check experiments/multitask.py data.path=/data/prepared resources.use_gpu=true

    Nothing is written. Exit codes: 0 all is well, 1 something failed, 2 a mistake in what was given.
    """
    from deepcoro.launch.check import check as try_all

    if experiment is not None and "=" in experiment:  # a field to begin with, of the defaults
        assignments, experiment = [experiment, *assignments], None
    config = None
    if experiment is not None or assignments or overlay is not None:
        config = described(Config if experiment is None else load_config(experiment), assignments, overlay)
    sys.exit(0 if try_all(config) else 1)


@main.command()
@click.argument("target")
@click.option("--plots", is_flag=True, help="Draw the plots of a sweep anew, into its folder.")
def show(target: str, plots: bool) -> None:
    """Show a config, a run, a sweep or a prepared dataset.

    TARGET is an experiment, a YAML, a run's or a sweep's folder, or a prepared dataset (a folder or a URI).

        deepcoro show experiments/demo.py       every field that the experiment has, as YAML
        deepcoro show my.yaml                   the same of a YAML, the fields that it leaves out at their defaults
        deepcoro show runs/demo                 how far the run is, its checkpoints, losses, metrics and problems
        deepcoro show runs/demo-loss_weights    a sweep: best trials with intervals, what matters, what failed
        deepcoro show data/demo/prepared        how much there is in each split, of what shape, what was left out

    Nothing is written, but for --plots: plots/*.png, and plots/plots.html, one page that opens without a network. A
    sweep writes them itself at its end.

    Exit code 2: TARGET is none of these, or is damaged.
    """
    from deepcoro.launch.show import show as describe
    from deepcoro.launch.show import show_config

    is_config = Path(target).suffix in (".py", *_YAML)
    if not is_config and "://" not in target and not Path(target).exists():
        target = str(found(Path(target)))
    if plots:
        from deepcoro.launch.sweep_plots import write_plots
        from deepcoro.launch.sweep_results import read_study

        if is_config or "://" in target:
            raise ConfigError(f"--plots draws a sweep, and {target} is none")
        click.echo("\n".join(map(str, write_plots(read_study(Path(target)), Path(target)))))
        return
    click.echo(show_config(load_config(target)()) if is_config else describe(target))


@main.command()
@click.argument("experiment")
@_described
@_dry
def train(experiment: str, assignments: Sequence[str], overlay: Path | None, dry: bool) -> None:
    """Train an experiment, or go on with it.

    EXPERIMENT is a Python file with a function `experiment() -> Config`, or a YAML of a config.

        deepcoro train experiments/demo.py
        deepcoro train experiments/multitask.py data.path=/data/prepared name=first training.num_steps=2000
        deepcoro train experiments/multitask.py --config mine.yaml --dry-run

    Ray starts on this machine, or the cluster that RAY_ADDRESS names is joined. Everything is written to the run's
    folder, `runs/<name>`: config.yaml, checkpoints/, metrics.jsonl, tensorboard/, problems.jsonl. The same name
    started again goes on where it stood. Ctrl-C saves a checkpoint first.

    With --dry-run nothing is trained or written: it prints the config, the data after its filter, parameters, epochs,
    estimates of memory, time and disk, and the resources asked for beside those that are there.

    Exit codes: 0 trained (--dry-run: it would start); 1 the run cannot go on; 2 something given is wrong, or there is
    too little of the machine; 130 or 143 it was asked to stop, and has saved.
    """
    run_experiment(load_config(experiment), assignments, overlay, dry)


main.command()(click.argument("experiment", required=False)(_described(_dry(sweep))))


@main.command()
@click.argument("run", type=_path)
@_split
@_checkpoint
@_weights
def evaluate(run: Path, split: str, checkpoint: str, weights: Literal["trained", "ema"] | None) -> None:
    """Measure a run on patients it never saw.

    RUN is its folder, such as runs/demo. Every unit of the split is measured once, and the table printed.

        deepcoro evaluate runs/demo
        deepcoro evaluate runs/demo --split test --checkpoint best

    Written to the run's folder: summary.json and summary_<split>.json (each metric with its 95 % interval and its
    baseline), rows_<split>.parquet (the values of each unit), reports_<split>.jsonl (true and written reports). Choose
    by val, and look at test once: every look at it is counted in test_evaluations.jsonl.

    Exit code 2: no such run or checkpoint, or the data is not what it was trained on.
    """
    from deepcoro.launch.evaluate import evaluate as measure

    measure(found(run), split=split, checkpoint=checkpoint, weights=weights)


@main.command()
@click.argument("first", type=_path)
@click.argument("second", type=_path)
@_split
def compare(first: Path, second: Path, split: str) -> None:
    """Compare two runs on the same patients.

    Prints each metric of FIRST and SECOND, their difference, and its 95 % interval.

        deepcoro evaluate runs/a
        deepcoro evaluate runs/b
        deepcoro compare runs/a runs/b

    Both have to be evaluated on the split before. Nothing is written. A difference whose interval excludes 0 is one
    between these two trained models; whether it comes from what was changed, only runs with other seeds can show.

    Exit code 2: one of them was not evaluated on the split, or on other units than the other.
    """
    from deepcoro.launch.compare import compare as hold_against

    hold_against(found(first), found(second), split)


def _angles(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        primary, secondary = (float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not two numbers with a comma between, such as -30,20") from None
    if not (abs(primary) <= 180 and abs(secondary) <= 90):
        raise click.BadParameter(f"{value!r}: the first is -180 to 180 degrees, the second -90 to 90")
    return primary, secondary


@main.command()
@click.argument("run", type=_path)
@click.option("--study", metavar="ID", help="A study of the dataset that the run was trained on, by its study_id.")
@click.option("--video", metavar="FILE", help="A video file, AVI or MP4.")
@click.option("--data", metavar="PREPARED", help="A prepared dataset, whole: a folder or a URI.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "any"]),
    help="Where the study has to stand, or which part of the dataset; train, the model has seen.  [default: any]",
)
@click.option(
    "--angles",
    metavar="LAO,CRA",
    callback=_angles,
    help="Of the video, in degrees: RAO and caudal are negative. For runs on whole studies, which look at them.",
)
@click.option("--limit", type=click.IntRange(min=1), help="So many units of the dataset, spread evenly over it.")
@click.option("--output", type=_path, help="A file for text or JSON; for a dataset a folder. It must not be there.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), help="Of a study or video.  [default: text]")
@click.option("--picture", type=_path, help="A PNG: frames, the boxes of findings on them, written and true reports.")
@click.option("--num-beams", type=click.IntRange(min=1), help="Search among so many texts.  [default: as the run says]")
@click.option(
    "--structured/--no-structured", default=None, help="Keep to the canonical wording.  [default: as the run says]"
)
@click.option(
    "--probabilities/--no-probabilities",
    default=None,
    help="Tell how probable findings are; needs a tokenizer of the canonical wording.  [default: in JSON]",
)
@_checkpoint
@_weights
def generate(run: Path, split: str | None, data: str | None, video: str | None, **options: Any) -> None:
    """Write reports for a study, a video file or a whole dataset.

    The model of RUN writes them. Those of a study (of each of its clips, or of the study, where the run was trained on
    whole ones) are printed beside the true ones.

        deepcoro generate runs/demo --study 02c2204d49d3b896fe3bb88c54b238dd
        deepcoro generate runs/demo --video cine.avi --format json --output cine.json --picture cine.png
        deepcoro generate runs/demo --data /data/prepared --split test --output reports
        deepcoro generate runs/demo --data /data/prepared --split test --limit 12 --picture sheet.png

    Those of a dataset become Parquet files in the folder --output, a row a unit: text, findings, boxes where the run
    was trained to tell them, and problem for what could not be read, or shows nothing. DICOM files come in by
    `python -m data_prep dicom`.

    Exit code 2: no such run, checkpoint, study (the nearest ids are named), video or dataset, options that do not go
    together, or the run was trained without captioning.
    """
    from deepcoro.launch.generate import generate as write

    video, data = video and given_path(video, "--video"), data and given_path(data, "--data")
    for name in ("output", "picture"):
        if options[name] is not None and ":/" not in str(options[name]):  # a URI is refused there
            options[name] = Path(given_path(str(options[name]), f"--{name}"))
    write(found(run), video=video, data=data, split=split, **options)


def given_path(path: str, option: str) -> str:
    """``path`` as it is read when a run trains (``paths.absolute``)."""
    from deepcoro.launch.paths import absolute

    return absolute(path, option)


def found(run: Path) -> Path:
    """Where a run's folder lies that was given by hand: as ``root`` is read when it trains (``paths.absolute``)."""
    return Path(given_path(str(run), "RUN"))


def run_experiment(
    experiment: Callable[[], Config], assignments: Sequence[str], overlay: Path | None = None, dry: bool = False
) -> Path:
    """Lay ``overlay`` and then ``assignments`` over an experiment, and train it; returns the run's folder.

    Args:
        dry: only say what it would do.

    Raises:
        ConfigError: with ``dry``, for whatever would keep it from starting.
    """
    config = described(experiment, assignments, overlay)
    if dry:
        from deepcoro.launch.dry_run import dry_run
        from deepcoro.launch.train import run_folder

        if problems := dry_run(config):
            raise ConfigError("\n".join(problems))
        return run_folder(config)
    from deepcoro.launch.train import train as start

    return start(config)


def described(experiment: Callable[[], Config], assignments: Sequence[str], overlay: Path | None) -> Config:
    """An experiment with a YAML and then assignments laid over it; in a job that was given an id, of that name."""
    from deepcoro.launch.paths import named_after_job

    config, laid = experiment(), {} if overlay is None else read_yaml(overlay)
    if not isinstance(config, Config):
        raise ConfigError(f"experiment() must return a deepcoro.Config, and returned {type(config).__name__}")
    named = "name" in laid or any(assignment.startswith("name=") for assignment in assignments)
    return named_after_job(config.merge(laid).override(assignments), named)


def load_config(target: str) -> Callable[[], Config]:
    """What makes the config of a Python file or a YAML."""
    path = Path(target)
    return (lambda: Config.load(path)) if path.suffix in _YAML else load_experiment(path)


def load_experiment(path: Path) -> Callable[[], Config]:
    """The ``experiment`` function of a Python file.

    Raises:
        ConfigError: no such file, no such function in it, or it cannot be run.
    """
    module = run_file(path, "experiment", "a function experiment() -> Config")
    if not callable(getattr(module, "experiment", None)):
        raise ConfigError(f"{path} has no function experiment() -> Config")
    return cast(Callable[[], Config], module.experiment)


def experiment_main(experiment: Callable[[], Config]) -> None:
    """What ``python experiments/NAME.py`` does: the same as ``deepcoro train experiments/NAME.py``."""

    @click.command(cls=_Command, help=sys.modules[experiment.__module__].__doc__, context_settings=_SETTINGS)
    @_described
    @_dry
    def command(assignments: Sequence[str], overlay: Path | None, dry: bool) -> None:
        with plain_errors():
            run_experiment(experiment, assignments, overlay, dry)

    command()
