"""Useful operations of a step: multiplies and adds in the matrix products and convolutions of the forward and backward
pass, as torch's ``FlopCounterMode`` sees them.

Attention counts two products forward and four backward, whole where it is causal or masked too, whatever kernel runs:
one that makes its weights anew in the backward pass is of no more use for it (torch counts a fifth product), and the
fused kernel of the CPU torch does not count at all. Nor does it count what activation checkpointing computes again.
Norms, softmax and the optimizer are no matrix products. What runs inside a compiled graph is not seen: count before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

KERNELS = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")


def count_flops(run: Callable[[], object], encoder: nn.Module) -> int:
    """Useful operations of ``run``, which computes nothing of ``encoder`` twice meanwhile."""
    counted: dict[Any, Any] = {}
    for kernel in KERNELS:
        counted[getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")] = _attention
        counted[getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_backward")] = _attention_backward
    saves = getattr(encoder, "checkpoint_activations", False)
    encoder.checkpoint_activations = False  # type: ignore[assignment]
    try:
        with FlopCounterMode(display=False, custom_mapping=counted) as counter:
            run()
    finally:
        encoder.checkpoint_activations = saves
    return counter.get_total_flops()


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    """Shapes [B, H, N, d] and twice [B, H, M, d] -> operations of weights and of their sums of values."""
    return 2 * query.numel() * (key[2] + value[2])


def _attention_backward(
    _: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *more: object, **__: object
) -> int:
    return 2 * _attention(query, key, value)
