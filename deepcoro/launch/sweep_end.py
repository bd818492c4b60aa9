"""What is written of a sweep: whenever a trial ends, and when the last one has."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Bring ``sweep.json``, ``best.yaml`` and TensorBoard up to date. A disk that is full costs these, which are
    written anew with the next trial, and not the sweep."""
    try:
        write_results(study, folder, about)
        write_board(study, folder, config)
    except OSError as error:
        say(f"WARNING: the results of {folder} could not be written: {error}. The sweep goes on; make room")


def end_sweep(study: optuna.Study, folder: Path, config: Config, about: Mapping[str, Any]) -> None:
    """The same, and the plots; where these cannot be drawn, that is told."""
    write_results(study, folder, about)
    write_board(study, folder, config)
    try:
        write_plots(read_study(folder), folder)
    except UserError as error:
        say(f"no plots: {error}")
    say(f"{folder}: deepcoro show {folder}; tensorboard --logdir {folder}")
