"""Validation in a task of its own beside the workers, which train on meanwhile (Ray Train's ``ValidationConfig``)."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import ValidationConfig

from deepcoro.training.board import note
from deepcoro.training.checkpoint import load_model
from deepcoro.training.validation import Validation, write_result


def validation_config(run: Path, cpus: float, gpus: float) -> ValidationConfig:
    """What Ray Train calls with each step that a worker reports for validation."""

    def validate(checkpoint: ray.train.Checkpoint, **about: Any) -> dict[str, Any]:
        return validate_step(run, about["step"])

    return ValidationConfig(fn=validate, ray_remote_kwargs={"num_cpus": cpus, "num_gpus": gpus})


def validate_step(run: Path, step: int) -> dict[str, float]:
    """Measure the checkpoint of ``step`` (its average of the weights, where it has one) on the validation patients, and
    keep what was found.

    What goes wrong here is told in the run's problems and does not end the training.
    """
    begin = time.perf_counter()
    try:
        model, config = load_model(run / "checkpoints" / str(step))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        validation = Validation(config, run, device)
        metrics = validation.run(model.to(device))
        write_result(run, step, metrics, time.perf_counter() - begin, config, validation.intervals)
    except Exception as error:  # whatever it is, hours of training must not hang on it
        note(run, f"validation of step {step} failed: {error!r}\n{traceback.format_exc()}")
        return {}
    return metrics
