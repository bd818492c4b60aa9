"""What is written of a sweep: whenever a trial ends, and when the last one has."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from deepcoro.config import Config
from deepcoro.errors import UserError
from deepcoro.launch.sweep_board import write_board
from deepcoro.launch.sweep_plots import write_plots
from deepcoro.launch.sweep_results import read_study, write_results
from deepcoro.launch.train import say


def keep_results(study: optuna.Study, folder: Path, config: Config, about: Mapping[str, Any]) -> None:
    """Bring ``sweep.json``, ``best.yaml`` and TensorBoard up to date. What fails, such as on a disk that is full, is
    told, and written anew with the next trial: an error here would be one in Tune's loop, and end the sweep."""
    attempt(f"the results of {folder}", partial(write_results, study, folder, about))
    attempt(f"the table of {folder} in TensorBoard", partial(write_board, study, folder, config))


def end_sweep(study: optuna.Study, folder: Path, config: Config, about: Mapping[str, Any]) -> None:
    """The same, and the plots. What only shows the results may fail, and is told; the results themselves may not."""
    write_results(study, folder, about)
    attempt(f"the table of {folder} in TensorBoard", partial(write_board, study, folder, config))
    attempt(f"the plots of {folder}", partial(_plots, folder))
    say(f"{folder}: deepcoro show {folder}; tensorboard --logdir {folder}")


def attempt(what: str, write: Callable[[], object]) -> bool:
    """Do what a sweep can do without; returns whether it was done.

    Args:
        what: for the line that tells of an error.
    """
    try:
        write()
    except Exception as error:  # whatever it is: hours of training are worth more
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        say(f"WARNING: {what} could not be written, {type(error).__name__}: {error} (at {place}). The rest goes on")
        return False
    return True


def _plots(folder: Path) -> None:
    try:
        write_plots(read_study(folder), folder)
    except UserError as error:
        say(f"no plots: {error}")
