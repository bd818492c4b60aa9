"""An exponential moving average of the weights, which is what is measured where a run keeps one. No Ray.

Weights walk about an optimum as long as the learning rate is not small; their average lies nearer to it (Polyak and
Juditsky, 1992). It costs one more copy of the trainable parameters, and a pass over them at every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from deepcoro.errors import CheckpointError


def decay_at(update: int, decay: float) -> float:
    """Share of the average that stays at ``update`` (1 is the first): ``min(decay, (1 + update) / (10 + update))``, so
    that a short run is not measured on what it began with (as tf.train.ExponentialMovingAverage has it, with
    ``num_updates``)."""
    return min(decay, (1 + update) / (10 + update))


class WeightAverage:
    """The average of the trainable parameters of ``model``; of frozen ones and of buffers there is none.

    With d = ``decay_at`` of the update, the average a follows the weights w by ``a = d a + (1 - d) w``. It begins with
    the weights that are there, in 32 bits, or more where a parameter has more.

    Args:
        model: on its device, and with the parameters that the optimizer changes; under FSDP2 after it was sharded.
        decay: above 0 and below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {
            name: p.detach().clone().to(torch.promote_types(p.dtype, torch.float32))
            for name, p in self._parameters.items()
        }
        first = {id(p): name for name, p in self._parameters.items()}
        # Tied parameters have one average and, as in a state dict, each of their names.
        self._first_name = {
            name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take up the weights of now: to be called after each step that changed them."""
        self.num_updates += 1
        share = 1 - decay_at(self.num_updates, self.decay)
        for sharded in (False, True):  # torch does not take both kinds in one call
            names = [name for name, p in self._parameters.items() if isinstance(p, DTensor) == sharded]
            averages = [self._averages[name] for name in names]
            weights = [self._parameters[name].detach().to(self._averages[name].dtype) for name in names]
            if names:
                torch._foreach_lerp_(averages, weights, share)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the averages in the model; afterwards it has its own weights again, to the last bit, whatever happened.
        For as long there is a further copy of them. A sharded model must be entered in parts, before ``whole``."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        try:
            self._put(self._averages)
            yield
        finally:
            self._put(own)

    def state_dict(self) -> dict[str, Any]:
        """``num_updates``, and ``weights``: the averages themselves, under every name that their parameters have."""
        weights = {name: self._averages[first] for name, first in self._first_name.items()}
        return {"num_updates": self.num_updates, "weights": weights}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what ``state_dict`` gave, whole tensors; ``weights`` may hold others besides. Where parameters are
        sharded each worker takes its part.

        Raises:
            CheckpointError: the average of a parameter is missing, or has another shape. Nothing was changed.
        """
        for name, average in self._averages.items():
            found = state["weights"].get(name)
            if found is None or found.shape != average.shape:
                received = "none" if found is None else tuple(found.shape)
                raise CheckpointError(
                    f"the average of {name} should have shape {tuple(average.shape)}, and the checkpoint has {received}"
                )
        for name, average in self._averages.items():
            average.copy_(_placed_like(average, state["weights"][name]))
        self.num_updates = int(state["num_updates"])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])


def averaged(average: WeightAverage | None) -> contextlib.AbstractContextManager[None]:
    """Have the averages in the model, where there are any."""
    return contextlib.nullcontext() if average is None else average.in_place()


def _placed_like(tensor: Tensor, whole: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return whole
    there = whole.to(tensor.device, tensor.dtype)
    return distribute_tensor(there, tensor.device_mesh, tensor.placements, src_data_rank=None)
