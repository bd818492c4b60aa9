"""One optimizer step over the micro-batches of a worker. No Ray: it runs wherever torch does.

Every mean is over the rows, tokens or pairs of all workers and all micro-batches: counts are exchanged once, before the
first backward, and each worker's sum is divided by them. DDP averages gradients over W workers, so its share is
multiplied by W.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from deepcoro.errors import TrainingError
from deepcoro.losses.multitask import MultitaskLoss, reduce_counts
from deepcoro.training import sharding

_SMALLEST_SCALE = 2.0**-10  # of fp16: it starts at 65,536, and gradients that overflow here are not too large but wrong
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class StepResult:
    """Means over the whole batch, on the device; ``valid_share`` is the share of views that are there, ``lost_views``
    the number of those that could not be read."""

    losses: dict[str, torch.Tensor]
    total: torch.Tensor
    grad_norm: torch.Tensor
    valid_share: torch.Tensor
    lost_views: torch.Tensor


def train_step(
    model: nn.Module,
    loss: MultitaskLoss,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Mapping[str, Any]],
    weights: Mapping[str, float],
    num_visible: int,
    precision: str = "fp32",
    scaler: torch.amp.GradScaler | None = None,
    max_grad_norm: float = 1.0,
) -> StepResult:
    """Take one step on ``batches``, the micro-batches of this worker (tensors on the model's device).

    Args:
        model: a ``MultitaskModel``, bare, wrapped by DDP or sharded (``sharding.shard``).
        weights: loss weights of this step. A loss that weighs 0 is not computed: it is not among the losses returned,
            and what it alone trains gets no gradient (DDP has to be told, by ``find_unused_parameters``).
        num_visible: tokens the masked pass shows.
        scaler: with fp16.

    Raises:
        TrainingError: the loss or a gradient is not finite; the weights are still those of before the step.
        ValueError: every loss weighs 0.
    """
    active = [name for name, weight in weights.items() if weight > 0]
    if not active:
        raise ValueError(f"a step needs a loss that weighs more than 0, got {dict(weights)}")
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    num_hidden = batches[0]["mask_order"].shape[-1] - num_visible
    counts = [loss.counts(batch, num_hidden) for batch in batches]
    valid = torch.cat([batch["valid"] for batch in batches])
    views = {
        "views": valid.sum(),
        "places": torch.tensor(valid.numel(), device=valid.device),
        "lost": torch.cat([batch.get("num_lost", valid.new_zeros(1).long()) for batch in batches]).sum(),
    }
    counted = reduce_counts({key: torch.stack([c[key] for c in counts]).sum() for key in counts[0]} | views)

    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with _without_sync(model, last):
            with _autocast(precision, batch["clip"].device):
                out = model(batch, num_visible, active)
            means = {
                name: value / counted[name].clamp(min=1).to(value.dtype)
                for name, value in loss.sums(out, batch).items()
            }
            total = loss.weigh(means, weights) * world
            (scaler.scale(total) if scaler is not None else total).backward()
        for name, value in means.items():
            sums[name] = sums.get(name, 0) + value.detach()

    sharding.average_single_numbers(model)
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = sharding.grad_norm(parameters)
    sharding.clip_gradients(parameters, max_grad_norm, grad_norm)
    losses = _sum_over_workers(sums, world)
    total = loss.weigh(losses, weights)
    overflowed = scaler is not None and not torch.isfinite(grad_norm)  # the scale was too large, and will be lowered
    if not torch.isfinite(total if overflowed else grad_norm + total) or (
        scaler is not None and overflowed and scaler.get_scale() < _SMALLEST_SCALE
    ):
        raise TrainingError(
            f"a loss or gradient is not finite: losses {_plain(losses)}, gradient norm {grad_norm.item()}. The "
            "weights were "
            "not changed; lower the learning rate, or look at the units of this batch: "
            + ", ".join(str(u) for b in batches for u in b.get("unit_id", []))
        )
    if scaler is not None:  # skips the step by itself when a gradient overflowed, and lowers its scale
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    return StepResult(losses, total, grad_norm, counted["views"] / counted["places"], counted["lost"])


def compile_encoder(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the video encoder of ``model``, where most of a step is spent, in place: names of weights stay, and a
    checkpoint knows nothing of it.

    Batches of another size, evaluation and masked clips are compiled when they first come; from the second size on,
    for any size. What cannot be compiled at all (a backbone of another library) runs as it is, in pieces.
    """
    # Under DDP torch would cut the graph at each bucket of gradients, and refuses to where blocks are computed again.
    torch._dynamo.config.optimize_ddp = False
    model.video_encoder.compile(backend=backend)  # type: ignore[operator, union-attr]


def _without_sync(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Let DDP exchange gradients only at the last micro-batch."""
    return contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()  # type: ignore[operator]


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, _AUTOCAST[precision]) if precision in _AUTOCAST else contextlib.nullcontext()


def _sum_over_workers(sums: Mapping[str, torch.Tensor], world: int) -> dict[str, torch.Tensor]:
    values = torch.stack(list(sums.values()))
    if world > 1:
        dist.all_reduce(values)
    return dict(zip(sums, values.unbind(), strict=True))


def _plain(losses: Mapping[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}
