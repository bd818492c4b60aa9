"""What teachers have in common: how the average of a network follows it, in which precision a network computes that is
not trained, and how one that never moves is known again. No Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from deepcoro.errors import CheckpointError
from deepcoro.models.own_weights import weights_file
from deepcoro.training.sharding import full

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@torch.no_grad()
def follow(source: nn.Module, average: nn.Module, momentum: float) -> None:
    """``average`` = ``momentum`` ``average`` + (1 - ``momentum``) ``source``, parameter by parameter of ``average``, of
    the same names; buffers are copied. A parameter of ``source`` that is divided among workers is whole for as long as
    it takes; all of them have to call this."""
    theirs = dict(source.named_parameters())
    pairs = [(own, theirs[name]) for name, own in average.named_parameters()]
    for own, weight in pairs:
        if isinstance(weight, DTensor):
            own.lerp_(full(weight).to(own.dtype), 1 - momentum)
    together = [(own, weight.to(own.dtype)) for own, weight in pairs if not isinstance(weight, DTensor)]
    if together:
        own_ones, weights = (list(x) for x in zip(*together, strict=True))
        torch._foreach_lerp_(own_ones, weights, 1 - momentum)
    buffers = dict(source.named_buffers())
    for name, buffer in average.named_buffers():
        buffer.copy_(buffers[name])


def copy_weights_of(source: nn.Module, other: nn.Module) -> None:
    """Give ``other`` the weights of ``source``, exactly; as ``follow`` in all else."""
    follow(source, other, 0.0)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Products in ``precision``, which may be another than that of the region around it."""
    return torch.autocast(device.type, _HALF.get(precision), enabled=precision in _HALF)


def identity(checkpoint: Path) -> dict[str, str]:
    """What a run keeps of a teacher that never moves: which weights they are, and where they lay."""
    return {"sha256": weights_file(checkpoint)[1], "checkpoint": str(checkpoint)}


def check_identity(state: Mapping[str, Any], checkpoint: Path, field: str) -> None:
    """Raise ``CheckpointError`` if ``checkpoint``, which ``field`` of the config names, has other weights than those of
    ``identity``: a run that is named may have trained on since."""
    if state["sha256"] != weights_file(checkpoint)[1]:
        raise CheckpointError(
            f"{field} has other weights in {checkpoint} than those that the run began with, of {state['checkpoint']}; "
            f"set {field} to that checkpoint, or give the run another name"
        )
