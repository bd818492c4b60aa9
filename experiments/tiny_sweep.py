"""Sweeps over the three spaces on the demo's phantoms: loss weights, masking, learning rates, each with a confirmation.

    python -m experiments.tiny_sweep [--space loss_weights ...] [--num-trials 12] [--confirm 5]

The demo's model, for 162 steps of 16 clips. Of each space 12 trials are tried (where there is one objective ASHA stops
those that fall behind), and then the best trial and the demo's own values are trained anew with 5 seeds each, compared
on the validation patients, and measured once on test. It took 56 minutes on 2 cores with other work beside it. Killed
and started again, it goes on where it stood.

Twelve trials are few: Optuna's TPE, which searches where there is one objective, draws its first 10 at random (bar the
points that the space begins with) and learns from them in the last ones only. It shows that a sweep runs from end to
end, and not how well one searches.

Each sweep lies in ``runs/tiny-<space>``; ``deepcoro show`` on it tells what is printed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from deepcoro.cli import plain_errors
from deepcoro.config import Config
from deepcoro.config_section import flatten
from deepcoro.errors import ConfigError
from deepcoro.launch.space import load_space
from deepcoro.launch.sweep import sweep
from deepcoro.launch.sweep_folder import ABOUT, load_sweep
from deepcoro.launch.sweep_settings import Sweep
from deepcoro.launch.train import run_folder
from experiments import demo

SPACES = ("loss_weights", "mask_ratio", "learning_rates")
_FOLDER = Path(__file__).parents[1] / "tune_spaces"


def experiment() -> Config:
    """The demo, shorter, evaluated at the levels at which ASHA decides: a ninth, a third and the whole."""
    return demo.experiment().merge(
        {
            "name": "tiny",
            "training": {
                "num_steps": 162,
                "evaluate_every": 18,
                "checkpoint_every": 54,  # a trial that is killed goes on from there
                "keep_checkpoints": 1,
                "pictures": False,
            },
            "evaluation": {"num_resamples": 200},
            "resources": {"cpus_per_worker": 0.5, "threads_per_worker": 1},  # two trials at once on 2 cores
        }
    )


def asked(space: str, num_trials: int, config: Config) -> Sweep:
    """A sweep over one of the spaces, new or gone on with.

    Raises:
        ConfigError: it has begun, with another space or another experiment; what changed is told.
    """
    file, config = _FOLDER / f"{space}.py", config.merge({"name": f"{config.name}-{space}"})
    folder = run_folder(config)
    if not (folder / ABOUT).exists():
        found = load_space(file)
        return Sweep(config, found, num_trials, stopping="asha" if len(found.objectives) == 1 else "none")
    begun = load_sweep(folder, {"num_trials": num_trials}, file)
    config = config.merge({"root": str(folder.parent)})
    before, now = (dict(flatten(one.model_dump(mode="json"))) for one in (begun.config, config))
    unlike = [key for key in now if before.get(key) != now[key] and not key.startswith(("resources.", "data.path"))]
    if unlike:
        lines = "\n".join(f"  {key}: {before.get(key)} -> {now[key]}" for key in unlike)
        raise ConfigError(
            f"{folder} began with another experiment:\n{lines}\nGive it as it was, or another name by name=..."
        )
    return replace(begun, config=config)


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("assignments", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--space", "spaces", multiple=True, type=click.Choice(SPACES), help="One or more.  [default: all three]")
@click.option("--num-trials", default=12, show_default=True, type=click.IntRange(min=1), help="Of each space.")
@click.option("--confirm", "seeds", default=5, show_default=True, type=click.IntRange(min=0), help="Seeds; 0: none.")
@click.option("--num-studies", default=640, show_default=True, type=click.IntRange(min=20), help="Phantoms.")
def main(assignments: Sequence[str], spaces: Sequence[str], num_trials: int, seeds: int, num_studies: int) -> None:
    """Sweep, confirm, and tell."""
    from deepcoro.launch.confirm import confirm
    from deepcoro.launch.show import show

    with plain_errors():
        config = experiment().override(list(assignments))
        demo.prepare(demo.DATA, config, num_studies, 0)
        for space in spaces or SPACES:
            folder = sweep(asked(space, num_trials, config))
            if seeds:
                confirm(folder, seeds)
            print(show(str(folder)) + "\n", flush=True)


if __name__ == "__main__":
    main()
