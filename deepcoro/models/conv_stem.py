"""Clip -> tokens by a small convolutional network, in place of one linear layer (2106.14881: early convolutions).

A narrowing is a few pixels wide, and a linear layer sees a token's pixels all at once: whether a vessel grows thin
there is no linear function of them. Convolutions over ever larger surroundings can find it (what they gain in a run has
not been measured here). Before them the clip is normalised by what surrounds each pixel, so that the still background
(ribs, diaphragm, collimator), whose contrast is many times that of a vessel, does not hide them; it is what
``patch_norm`` does for a linear layer.

Letters: B clips, T frames, H W pixels, t frames of a tubelet, N tokens, K visible, D width.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcoro.config_encoder import STEM_GROUPS, Tubelet, stem_channels
from deepcoro.models.layers import gather_tokens

_FLOOR = 0.06  # least deviation that is divided by, in those of all pixels: about the noise of a cine


class ConvStem(nn.Module):
    """Stages of strided convolutions, each halving the picture, until a pixel is a token.

    The frames of a tubelet are the channels of the first layer. Tokens see beyond their tubelet; with ``visible``, what
    is hidden is taken out of the clip first, so that nothing depends on it. All the same every place is computed: the
    stem saves no time where tokens are hidden, the blocks behind it do.

    Args:
        tubelet: frames, pixels, pixels of one token; the pixels a power of two from 4 on, and both the same.
        width: D of the tokens.
        stem_width: channels of the first stage; stage k has k times as many, the last one D. Both divisible by 8.
        local_norm: normalise each pixel by its surroundings.

    Raises:
        ValueError: a tubelet or a width that it cannot be made for.
    """

    def __init__(self, tubelet: Tubelet, width: int, stem_width: int = 32, local_norm: bool = True) -> None:
        super().__init__()
        self.tubelet, self.local_norm = tubelet, local_norm
        channels = stem_channels(tubelet, width, stem_width)
        self.first = nn.Conv2d(tubelet[0], channels[0], 3, 2, 1, bias=False)
        self.norm = nn.GroupNorm(STEM_GROUPS, channels[0])
        self.stages = nn.Sequential(*[Stage(a, b) for a, b in itertools.pairwise(channels)])

    def forward(self, clip: Tensor, visible: Tensor | None = None) -> Tensor:
        """Normalised ``clip`` [B, T, H, W] -> tokens [B, N, D], or [B, K, D] of those at ``visible`` [B, K]."""
        seen = None
        if visible is not None:
            seen = self._seen(clip, visible)
            clip = clip * seen
        if self.local_norm:
            clip = normalise_locally(clip, self.tubelet[1] // 2, seen)
        groups = clip.unflatten(1, (-1, self.tubelet[0])).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        found = self.stages(F.gelu(self.norm(self.first(groups))))
        tokens = found.flatten(2).transpose(1, 2).unflatten(0, (len(clip), -1)).flatten(1, 2)
        return tokens if visible is None else gather_tokens(tokens, visible)

    def _seen(self, clip: Tensor, visible: Tensor) -> Tensor:
        """1 at the pixels of visible tokens, 0 at others, [B, T, H, W]."""
        frames, height, width = (side // part for side, part in zip(clip.shape[1:], self.tubelet, strict=True))
        tokens = clip.new_zeros(len(clip), frames * height * width).scatter_(1, visible, 1.0)
        seen = tokens.unflatten(1, (frames, height, width))
        for dim, part in enumerate(self.tubelet, start=1):
            seen = seen.repeat_interleave(part, dim)
        return seen


class Stage(nn.Module):
    """A residual block (1512.03385) that halves the picture: [B, C, H, W] -> [B, C', H/2, W/2]."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, 2, 1, bias=False)
        self.norm1 = nn.GroupNorm(STEM_GROUPS, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(STEM_GROUPS, out_channels)
        self.shortcut = nn.Conv2d(channels, out_channels, 1, 2, bias=False)
        nn.init.zeros_(self.norm2.weight)  # at first the shortcut alone

    def forward(self, x: Tensor) -> Tensor:
        """One stage."""
        y = self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x)))))
        return F.gelu(y + self.shortcut(x))


def normalise_locally(clip: Tensor, cell: int, seen: Tensor | None = None) -> Tensor:
    """``clip`` [B, T, H, W] less its mean around each pixel, over the deviation around it.

    Both are taken in cells of ``cell`` pixels (the deviation in three by three of them) and interpolated between. With
    ``seen``, 1 or 0 at each pixel, they are of the pixels that are seen, and the others stay 0.
    """

    def spread(cells: Tensor) -> Tensor:
        return F.interpolate(cells, size=clip.shape[-2:], mode="bilinear", align_corners=False)

    def around(cells: Tensor) -> Tensor:
        return F.avg_pool2d(cells, 3, 1, 1)  # what lies outside counts 0, in both parts of a mean

    # Sums and numbers of pixels are interpolated each by itself: a cell without any has no part in its neighbours.
    share = F.avg_pool2d(torch.ones_like(clip) if seen is None else seen, cell)
    clip = clip - spread(F.avg_pool2d(clip, cell)) / spread(share).clamp(min=1e-6)
    if seen is not None:
        clip = clip * seen
    variance = spread(around(F.avg_pool2d(clip.square(), cell))) / spread(around(share)).clamp(min=1e-6)
    return clip / (variance + _FLOOR**2).sqrt()


def saved_values(tubelet: Tubelet, width: int, stem_width: int, num_tokens: int) -> int:
    """Numbers that the backward pass needs of a clip of ``num_tokens``: the inputs of convolutions, norms and GELUs."""
    places = num_tokens * tubelet[1] * tubelet[2]
    total = places * tubelet[0]
    for stage, channels in enumerate(stem_channels(tubelet, width, stem_width)):
        places //= 4
        total += places * channels * (3 if stage == 0 else 6)
    return total


def multiply_adds(tubelet: Tubelet, width: int, stem_width: int, num_tokens: int) -> int:
    """Of the convolutions, for a clip of ``num_tokens``."""
    total, before, places = 0, tubelet[0], num_tokens * tubelet[1] * tubelet[2]
    for stage, channels in enumerate(stem_channels(tubelet, width, stem_width)):
        places //= 4
        weights = 9 * before * channels if stage == 0 else (9 + 1) * before * channels + 9 * channels * channels
        total, before = total + places * weights, channels
    return total
