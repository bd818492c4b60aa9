"""One optimizer step over the micro-batches of a worker. No Ray: it runs wherever torch does.

Every mean is over the rows, tokens or pairs of all workers and all micro-batches: counts are exchanged once, before the
first backward, and each worker's sum is divided by them. DDP averages gradients over W workers, so its share is
multiplied by W.

The contrastive loss compares rows of all micro-batches, so its gradients cannot be had one micro-batch at a time. They
are made as GradCache does (2101.06983): all embeddings first, without a graph; from them the loss and its slope at each
embedding; then each micro-batch once more, with a graph, through which its own slopes go back. Both passes draw the
same random numbers, so that dropout, views and residual branches left out are those of one and the same batch.

Whether loss and gradients are finite is decided where they are. A step that they are not is left out there too: nothing
has to be read back for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepcoro.losses.multitask import MultitaskLoss, reduce_counts
from deepcoro.training import sharding

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_COMPARED = ("video_embedding", "text_embedding", "logit_scale", "logit_bias")  # what the contrastive loss reads


@dataclass
class StepResult:
    """Numbers of a step, over the whole batch.

    ``losses`` and their weighted ``total`` are means, ``grad_norm`` is what it was before clipping, ``grad_norms`` its
    parts by component. ``valid_share`` is the share of views that are there, ``lost_views`` the number of those that
    could not be read, ``cut_texts`` that of texts longer than ``data.max_text_length``. ``skipped``: loss or gradients
    were not finite, and the weights are those of before; ``overflowed``: so they were in fp16, with a finite loss,
    because they had been scaled up too far.
    """

    losses: dict[str, Tensor]
    total: Tensor
    grad_norm: Tensor
    grad_norms: dict[str, Tensor]
    valid_share: Tensor
    lost_views: Tensor
    cut_texts: Tensor
    skipped: Tensor
    overflowed: Tensor

    def on_host(self) -> StepResult:
        """The same in CPU tensors, brought over all at once."""
        single = [self.total, self.grad_norm, self.valid_share, self.lost_views, self.cut_texts]
        single += [self.skipped, self.overflowed]
        tensors = [*self.losses.values(), *self.grad_norms.values(), *single]
        numbers = iter(torch.stack([x.detach().double() for x in tensors]).cpu().unbind())
        losses = {name: next(numbers) for name in self.losses}
        grad_norms = {name: next(numbers) for name in self.grad_norms}
        total, grad_norm, valid_share, lost_views, cut_texts, skipped, overflowed = numbers
        counted = (valid_share, lost_views.long(), cut_texts.long())
        return StepResult(losses, total, grad_norm, grad_norms, *counted, skipped.bool(), overflowed.bool())


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
    shared_pass: bool = False,
) -> StepResult:
    """Take one step on ``batches``, the micro-batches of this worker (tensors on the model's device).

    Args:
        model: a ``MultitaskModel``, bare, wrapped by DDP or sharded (``sharding.shard``).
        optimizer: a ``fused`` one can leave a step out without the host's waiting for the device.
        weights: loss weights of this step. A loss that weighs 0 is not computed: it is not among the losses returned,
            and what it alone trains gets no gradient (DDP has to be told, by ``find_unused_parameters``).
        num_visible: tokens the masked pass shows.
        scaler: with fp16.
        shared_pass: that pass serves contrastive and captioning too.

    Raises:
        ValueError: every loss weighs 0.
    """
    active = [name for name, weight in weights.items() if weight > 0]
    if not active:
        raise ValueError(f"a step needs a loss that weighs more than 0, got {dict(weights)}")
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    counted = _count(loss, batches, loss.num_asked(batches[0]["mask_order"].shape[-1] - num_visible))
    seeds = torch.randint(2**62, (len(batches),)).tolist()

    def run(number: int, visible: int | None, losses: Collection[str]) -> dict[str, Tensor]:
        torch.manual_seed(seeds[number])  # whichever pass it is
        with _autocast(precision, batches[number]["clip"].device):
            return model(batches[number], visible, losses, shared_pass)

    def mean(name: str, value: Tensor) -> Tensor:
        return value / counted[name].clamp(min=1).to(value.dtype)

    def scaled(value: Tensor) -> Tensor:
        return value * world if scaler is None else scaler.scale(value * world)

    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    slopes: list[dict[str, Tensor]] = []
    if "contrastive" in active and len(batches) > 1:
        with torch.no_grad():
            shown = num_visible if shared_pass else None  # the same masks as below
            embedded = [run(number, shown, ["contrastive"]) for number in range(len(batches))]
        outs = [{name: out[name].detach().requires_grad_() for name in _COMPARED} for out in embedded]
        sums["contrastive"] = mean("contrastive", loss.contrast(outs, batches))
        scaled(loss.weigh(sums, weights)).backward()
        slopes = [{name: x.grad for name, x in out.items() if x.grad is not None} for out in outs]
        sums["contrastive"] = sums["contrastive"].detach()
    for number, batch in enumerate(batches):
        with _without_sync(model, number == len(batches) - 1):
            out = run(number, num_visible, active)
            terms = []
            if slopes:
                compared = {name: out.pop(name) for name in _COMPARED}
                terms = [(compared[name] * slope).sum() for name, slope in slopes[number].items()]
            means = {name: mean(name, value) for name, value in loss.sums(out, batch).items()}
            if means:
                terms.append(scaled(loss.weigh(means, weights)))
            torch.stack(terms).sum().backward()
        for name, value in means.items():
            sums[name] = sums.get(name, 0) + value.detach()

    sharding.average_single_numbers(model)
    if scaler is not None:
        scaler.unscale_(optimizer)
    norms = _gradient_norms(optimizer)
    grad_norm = torch.linalg.vector_norm(torch.stack([*norms.values()]))
    losses = _sum_over_workers(sums, world)
    total = loss.weigh(losses, weights)
    skipped = ~(torch.isfinite(total) & torch.isfinite(grad_norm))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sharding.clip_gradients(parameters, max_grad_norm, grad_norm)
    _update(optimizer, skipped)
    if scaler is not None:
        scaler.update()
    overflowed = skipped & torch.isfinite(total) if scaler is not None else torch.zeros_like(skipped)
    told = (counted["views"] / counted["places"], counted["lost"], counted["cut"])
    return StepResult(losses, total, grad_norm, norms, *told, skipped, overflowed)


def compile_encoder(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the video encoder of ``model``, where most of a step is spent, in place: names of weights stay, and a
    checkpoint knows nothing of it.

    Batches of another size, evaluation and masked clips are compiled when they first come; from the second size on,
    for any size. What cannot be compiled at all (a backbone of another library) runs as it is, in pieces.
    """
    # Under DDP torch would cut the graph at each bucket of gradients, and refuses to where blocks are computed again.
    torch._dynamo.config.optimize_ddp = False
    # Random numbers as without compiling: a pass with a graph and one without have to draw the same.
    torch._inductor.config.fallback_random = True
    model.video_encoder.compile(backend=backend)  # type: ignore[operator, union-attr]


def _count(loss: MultitaskLoss, batches: Sequence[Mapping[str, Any]], num_asked: int) -> dict[str, Tensor]:
    """What sums are divided by, and how many views there are, of all workers and micro-batches."""
    counts = [loss.counts(batch, num_asked) for batch in batches]
    valid = torch.cat([batch["valid"] for batch in batches])
    views = {
        "views": valid.sum(),
        "places": torch.tensor(valid.numel(), device=valid.device),
        "lost": torch.cat([batch.get("num_lost", valid.new_zeros(1).long()) for batch in batches]).sum(),
        "cut": torch.cat([batch.get("num_cut", valid.new_zeros(1).long()) for batch in batches]).sum(),
    }
    return reduce_counts({key: torch.stack([c[key] for c in counts]).sum() for key in counts[0]} | views)


def _without_sync(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Let DDP exchange gradients only at the last micro-batch."""
    return contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()  # type: ignore[operator]


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, _AUTOCAST[precision]) if precision in _AUTOCAST else contextlib.nullcontext()


def _gradient_norms(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Norm of the gradients of each component, as the optimizer's groups name them."""
    gradients: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        found = [p.grad for p in group["params"] if p.grad is not None]
        gradients.setdefault(group.get("component", "all"), []).extend(found)
    return {name: sharding.total_norm(found) for name, found in gradients.items() if found}


def _update(optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
    """Take the step, or leave it out. A fused optimizer does either by itself; for another the host has to look."""
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler tells it
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif not skipped:
        optimizer.step()


def _sum_over_workers(sums: Mapping[str, Tensor], world: int) -> dict[str, Tensor]:
    values = torch.stack(list(sums.values()))
    if world > 1:
        dist.all_reduce(values)
    return dict(zip(sums, values.unbind(), strict=True))
