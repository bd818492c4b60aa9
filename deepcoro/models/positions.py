"""Where a token stands on the (time, height, width) grid of its clip: sine and cosine, a learned table, or rotation.

Tokens are numbered along time, then height, then width. A grid that positions were made for may be another than the
clip's own: then they are interpolated, with the edges of both grids laid on each other.

Letters: B clips, H heads, N tokens, K tokens of a head's width, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int, int]  # tokens along time, height, width


def coordinates(grid: Grid, made_for: Grid | None = None) -> Tensor:
    """Coordinates [N, 3] of the tokens of ``grid``, in steps of the grid that positions were ``made_for``."""
    axes = []
    for number, reference in zip(grid, made_for or grid, strict=True):
        place = torch.arange(number, dtype=torch.float32)
        axes.append(place if number == reference else (place + 0.5) * (reference / number) - 0.5)
    return torch.stack([axis.reshape(-1) for axis in torch.meshgrid(*axes, indexing="ij")], dim=1)


def sincos_positions(grid: Grid, width: int, made_for: Grid | None = None) -> Tensor:
    """Fixed positions [N, D]: a third of the channels for each axis.

    Sine and cosine at geometric wavelengths as in "Attention is all you need" (1706.03762, section 3.5), per axis.
    """
    per_axis = width // 6 * 2
    rates = torch.exp(torch.arange(0, per_axis, 2) * (-torch.log(torch.tensor(10000.0)) / per_axis))
    parts = []
    for axis in coordinates(grid, made_for).unbind(dim=1):
        angle = axis.reshape(-1, 1) * rates
        parts += [angle.sin(), angle.cos()]
    positions = torch.cat(parts, dim=1)
    return F.pad(positions, (0, width - positions.shape[1]))


def rotary_tables(grid: Grid, head_width: int, made_for: Grid | None = None, tiled: bool = False) -> Tensor:
    """Cosines and sines [2, N, head_width] for ``rotate``: a third of a head's channels for each axis, in pairs that
    turn by the coordinate times a rate (RoFormer, 2104.09864, along three axes as in V-JEPA 2, 2506.09985). What
    attention sees of two tokens then depends on how far apart they are. Channels that are left over do not turn.

    Args:
        tiled: the rates of all pairs are laid out twice in a row, instead of each twice. The two channels of a pair
            then turn by different angles; V-JEPA 2 was trained so, and its weights need it.
    """
    pairs = head_width // 3 // 2  # of an axis
    rates = 10000.0 ** -(torch.arange(pairs) / pairs)
    angles = []
    for axis in coordinates(grid, made_for).unbind(dim=1):
        angle = axis.reshape(-1, 1) * rates
        angles.append(angle.repeat(1, 2) if tiled else angle.repeat_interleave(2, dim=1))
    joined = torch.cat(angles, dim=1)
    joined = F.pad(joined, (0, head_width - joined.shape[1]))
    return torch.stack([joined.cos(), joined.sin()])


def resize_positions(table: Tensor, made_for: Grid, grid: Grid) -> Tensor:
    """A learned table [N', D] of the grid it was ``made_for`` -> [N, D], interpolated linearly along each axis."""
    if made_for == grid:
        return table
    volume = table.T.unflatten(1, made_for).unsqueeze(0)
    resized = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False)
    return resized[0].flatten(1).T
