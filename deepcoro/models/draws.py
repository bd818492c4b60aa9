"""Random numbers that are a function of (seed, place in the stream): a run that resumes, or that is divided among
another number of workers, draws the same for the same clip, and nothing has to be kept.

Letters: R rows (clips), n numbers of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The mixing function of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), with its
# constants as torch's signed numbers. Products wrap around, as they should.
_GOLDEN, _FIRST, _SECOND = (x - 2**64 for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def clip_numbers(position: Tensor, num_views: int) -> Tensor:
    """A number [B*V] for each clip of the rows at ``position`` [B] of the stream, in which no other has it."""
    views = torch.arange(num_views, device=position.device)
    return (position.long()[:, None] * num_views + views).flatten()


def uniform(seed: int, salt: int, rows: Tensor, number: int) -> Tensor:
    """``number`` n numbers from 0 to below 1 for each of ``rows`` [R] int64: float64 [R, n].

    Args:
        salt: tells draws for one purpose from those for another.
    """
    columns = torch.arange(number, device=rows.device)
    state = torch.tensor(seed, device=rows.device)
    for part in (torch.tensor(salt, device=rows.device), rows[:, None], columns):
        state = _mix(state + _GOLDEN) ^ part
    return _shifted(_mix(state + _GOLDEN), 11).double() / 2**53


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in: torch's own shift would bring in the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
