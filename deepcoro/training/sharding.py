"""Models too large for each worker to hold with all that training adds: weights, gradients and optimizer state divided
among the workers (ZeRO, 1910.02054, stage 3; FSDP2 of torch, 2304.11277).

A worker keeps its part of every parameter. A transformer block's weights are whole on a worker only while the block is
computed, the others' (embeddings, pooling, projections) from the forward pass to the end of the backward one. Gradients
are averaged over the workers, as DDP does, and each keeps its part of them. What is in no part: parameters that are a
single number, which every worker keeps whole.

Nothing of this is seen in a checkpoint: it is that of one process.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.models.multitask import MultitaskModel


def wrap(model: MultitaskModel, device: torch.device, config: Config) -> nn.Module:
    """What a step calls. Where there are several workers: the model itself, sharded in place, or DDP around it.
    Looking for parameters without gradient costs DDP a walk through the graph at every step, so it is done only where a
    schedule leaves out a loss at some steps."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    if config.resources.sharding == "full":
        shard(model, device)
        return model
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=config.loss.has_idle_losses(config.training.num_steps),
    )


def shard(model: nn.Module, device: torch.device) -> None:
    """Divide ``model``, which lies whole on ``device`` of every worker, among all workers of the process group, in
    place. The first worker's weights count, as under DDP. An optimizer has to be made afterwards: the parameters are
    other objects.

    What calls the model other than by its ``forward`` needs ``whole``. A parameter belongs to one block, or to none.

    Raises:
        ConfigError: torch is too old for it.
    """
    if not hasattr(FSDPModule, "reset_iter_state"):
        raise ConfigError(f"resources.sharding=full needs torch 2.13 or newer, and this is {torch.__version__}")
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), src=0)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the mesh takes the current one
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    ignored = set(_single_numbers(model))  # torch divides no tensor without dimensions
    for block in blocks(model):
        fully_shard(block, mesh=mesh, ignored_params=ignored)
    fully_shard(model, mesh=mesh, ignored_params=ignored)
    # Else the first part that runs takes itself for the whole: a block, where a run begins with a validation.
    fully_shard.state(model)._lazy_init()  # type: ignore[attr-defined]
    # A weight that a loss multiplies with, keys and values of the decoder: nothing writes into these views.
    names = "FSDPMultitaskModel|FSDPDecoderBlock"
    warnings.filterwarnings("ignore", message=rf"FSDP2-wrapped module \(({names})\) returned a view tensor")


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules that hold parameters: transformer blocks, whoever wrote them."""
    for part in model.children():
        yield from _members(part) if isinstance(part, nn.ModuleList) else blocks(part)


def average_single_numbers(model: nn.Module) -> None:
    """After the last backward pass of a step: average over the workers the gradients that torch left to each of them.
    Does nothing to a model that is not sharded."""
    if not isinstance(model, FSDPModule):
        return
    gradients = [p.grad for p in _single_numbers(model) if p.grad is not None]
    if gradients:
        together = torch.stack(gradients)
        dist.all_reduce(together)
        for gradient, mean in zip(gradients, (together / dist.get_world_size()).unbind(), strict=True):
            gradient.copy_(mean)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all ``gradients`` together, one at least, over all workers' parts; on every worker a plain tensor.
    All workers have to ask for it."""
    norms = [full(nn.utils.get_total_norm(part)) for part in _apart(gradients)]
    return torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale the gradients so that ``norm``, their ``total_norm``, is at most ``max_norm``."""
    for part in _apart([p for p in parameters if p.grad is not None]):
        nn.utils.clip_grads_with_norm_(part, max_norm, norm)


@contextlib.contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Have every worker hold all weights, so that it can call any part of the model as often as it likes without the
    others; nothing in it keeps gradients. All workers have to enter it. The weights are those at its beginning: change
    them before. Does nothing to a model that is not sharded."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        with torch.no_grad() if parts else contextlib.nullcontext():
            yield
    finally:
        for part in parts:
            # The outermost stays whole after forward: its weights are what the backward pass begins with.
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()
        if isinstance(model, FSDPModule):
            # Every forward pass notes what it went through, for the backward pass to gather the next block's weights
            # ahead. These had none, and workers that did not measure alike would gather unlike.
            model.reset_iter_state()


def full(tensor: Tensor) -> Tensor:
    """``tensor`` whole, on every worker. Where it is sharded all workers have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """``tensors`` by name, such as a model's ``state_dict()``, whole, on the CPU, in copies of their own; empty where
    not to ``keep``. All workers have to ask for it. One tensor at a time is whole on those that do not keep it."""
    kept = {}
    for name, tensor in tensors.items():
        value = full(tensor) if isinstance(tensor, Tensor) else tensor
        if keep:
            kept[name] = value.detach().cpu().contiguous().clone() if isinstance(value, Tensor) else value
    return kept


def gather_optimizer(optimizer: torch.optim.Optimizer, keep: bool) -> dict[str, Any]:
    """The state of ``optimizer`` as one process would have it, for ``load_optimizer``; as above, but that one which is
    not sharded is given as it is."""
    state = optimizer.state_dict()
    if not any(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"]):
        return state if keep else {}
    moments = {index: gather(state["state"][index], keep) for index in sorted(state["state"])}
    return {"state": moments, "param_groups": state["param_groups"]} if keep else {}


def distribute_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """What ``gather_optimizer`` gave, from however many workers, with each worker's part of it: to be loaded into
    ``optimizer``, whose parameters say how they are divided. Every worker has ``state``; nothing is exchanged."""
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    moments = {
        index: {name: _distributed(value, parameters.get(index)) for name, value in kept.items()}
        for index, kept in state["state"].items()
    }
    return {**state, "state": moments}


def _members(parts: nn.Module) -> Iterator[nn.Module]:
    for member in parts.children():
        if isinstance(member, nn.ModuleList | nn.ModuleDict):  # has no forward before which to gather weights
            yield from _members(member)
        elif any(True for _ in member.parameters()):
            yield member


def _single_numbers(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim == 0]


def _apart(tensors: Iterable[Any]) -> list[list[Any]]:
    """Sharded ones, and others: torch does not take them in one call."""
    tensors = list(tensors)
    parts = [[t for t in tensors if isinstance(t, DTensor) == sharded] for sharded in (True, False)]
    return [part for part in parts if part]


def _distributed(value: Any, parameter: nn.Parameter | None) -> Any:
    """This worker's part of ``value``, where it belongs number by number to a sharded ``parameter``."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    part = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return part.clone()  # a view would keep the whole alive
