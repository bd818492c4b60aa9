"""``deepcoro train|evaluate``: the platform from a terminal. A user's mistake is one message and exit code 2."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from deepcoro import __version__
from deepcoro.config import Config, read_yaml
from deepcoro.errors import ConfigError, DeepCoroError


class _Group(click.Group):
    """Turns an error raised on purpose, in any command, into its message."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except DeepCoroError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Train and measure video-language models of coronary angiography."""


@main.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.argument("assignments", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--config", "overlay", type=click.Path(path_type=Path), help="YAML file laid over the experiment.")
def train(experiment: Path, assignments: Sequence[str], overlay: Path | None) -> None:
    """Train EXPERIMENT, a Python file with a function `experiment() -> Config`.

    The same name started again goes on where it stood. Any field can be set, for example:

        deepcoro train experiments/multitask.py data.path=data/prepared training.num_steps=2000
    """
    run_experiment(load_experiment(experiment), assignments, overlay)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--split", type=click.Choice(["val", "test"]), default="val", show_default=True, help="Patients to measure on."
)
def evaluate(run: Path, split: str) -> None:
    """Measure the newest checkpoint of RUN, a folder such as runs/demo, and print the table."""
    from deepcoro.launch.evaluate import evaluate as measure

    measure(run, split)


def run_experiment(experiment: Callable[[], Config], assignments: Sequence[str], overlay: Path | None = None) -> Path:
    """Lay ``overlay`` and then ``assignments`` over an experiment, and train it; returns the run's folder."""
    from deepcoro.launch.train import train as start

    config = experiment()
    if overlay is not None:
        config = config.merge(read_yaml(overlay))
    return start(config.override(assignments))


def load_experiment(path: Path) -> Callable[[], Config]:
    """The ``experiment`` function of a Python file.

    Raises:
        ConfigError: no such file, or no such function in it.
    """
    if not path.is_file():
        raise ConfigError(f"there is no experiment {path}; give a Python file with a function experiment() -> Config")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "experiment", None)):
        raise ConfigError(f"{path} has no function experiment() -> Config")
    return module.experiment


def experiment_main(experiment: Callable[[], Config]) -> None:
    """What ``python experiments/NAME.py`` does: the same as ``deepcoro train experiments/NAME.py``."""

    @click.command(help=sys.modules[experiment.__module__].__doc__, context_settings={"max_content_width": 110})
    @click.argument("assignments", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
    @click.option("--config", "overlay", type=click.Path(path_type=Path), help="YAML file laid over the experiment.")
    def command(assignments: Sequence[str], overlay: Path | None) -> None:
        try:
            run_experiment(experiment, assignments, overlay)
        except DeepCoroError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)

    command()
