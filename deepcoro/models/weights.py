"""Weights from elsewhere -> a module: what fits is copied, and what does not is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from deepcoro.errors import ConfigError


def copy_weights(module: nn.Module, weights: Mapping[str, Tensor], names: str = "") -> list[str]:
    """Copy ``weights`` into the parameters and buffers of the same name and shape.

    Args:
        names: what stands before each name in the lines, such as ``model.``.

    Returns:
        A line for each weight that is missing, has no place here, or has another shape.
    """
    own = module.state_dict()
    lines = [f"missing: {names}{name}" for name in own if name not in weights]
    lines += [f"has no place here: {names}{name}" for name in weights if name not in own]
    with torch.no_grad():
        for name in own.keys() & weights.keys():
            if own[name].shape == weights[name].shape:
                own[name].copy_(weights[name])
    return lines + [
        f"{names}{name}: expected shape {tuple(own[name].shape)}, received {tuple(weights[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]


def accept_mismatch(source: str, differences: Iterable[str], allow_mismatch: bool) -> list[str]:
    """The lines of what does not fit, where that is allowed.

    Raises:
        ConfigError: something does not fit, and it is not allowed.
    """
    lines = list(differences)
    if lines and not allow_mismatch:
        raise ConfigError(
            f"the weights of {source} do not fit this model:\n  " + "\n  ".join(lines) + "\nName the checkpoint that "
            "belongs to this architecture, or set video_encoder.allow_mismatch=true to begin with what fits"
        )
    return lines
