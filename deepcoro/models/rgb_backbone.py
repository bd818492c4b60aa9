"""Backbones that others made, on RGB: what they need to be a video encoder here (``backbones.py``).

Such a backbone always computes every token. In masked modelling hidden tokens are replaced behind its stem by a learned
token, as in SimMIM (2111.09886), and their pixels are set to 0 before it, since a stem may look over the edge of a
token.

Letters: B clips, T frames, H W pixels, N tokens of the grid, K visible, c tokens before the grid's, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepcoro.models.layers import gather_tokens
from deepcoro.models.positions import Grid
from deepcoro.models.video_encoder import POOLS


class WrappedEncoder(nn.Module):
    """The base of wrapped backbones, which say with ``tokens`` what theirs computes.

    Args:
        clip_shape: (T, H, W) of the clips it takes.
        grid: tokens along time, height, width that come out.
        width: D.
        stem_width: of the tokens behind the stem, where hidden ones are replaced.
        num_prefix_tokens: c, tokens that come out before those of the grid.
        pool, num_heads: how tokens become one vector (``video_encoder.POOLS``).
    """

    def __init__(
        self,
        clip_shape: tuple[int, int, int],
        grid: Grid,
        width: int,
        stem_width: int,
        num_prefix_tokens: int,
        pool: str,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.clip_shape, self.grid = clip_shape, grid
        self.width, self.stem_width, self.num_prefix_tokens = width, stem_width, num_prefix_tokens
        self.stem_mask_token: nn.Parameter | None = None
        self.pool: nn.Module | None = POOLS[pool](num_prefix_tokens, width, num_heads)
        # The three channels are this, of our grey one: at first the grey channel itself, three times.
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("shift", torch.zeros(3))

    def tokens(self, rgb: Tensor, hidden: Tensor | None) -> Tensor:
        """``rgb`` [B, 3, T, H, W] -> [B, c + N, D], tokens where ``hidden`` [B, N] is true replaced behind the stem."""
        raise NotImplementedError

    def bottom_up(self) -> list[list[nn.Parameter]]:
        """Parameters from the pixels upwards: those before the first block, then each block's. The mask token is none
        of them: it is not of the backbone, and has to be learned whatever is frozen."""
        raise NotImplementedError

    def prepare_masking(self) -> None:
        """Make the token that stands for hidden ones; only where masked modelling would train it.

        Raises:
            ConfigError: hidden tokens cannot be replaced in this backbone.
        """
        self.stem_mask_token = nn.Parameter(torch.zeros(self.stem_width))
        nn.init.normal_(self.stem_mask_token, std=0.02)

    def take_images_of(
        self, pixel_mean: float, pixel_std: float, image_mean: Sequence[float], image_std: Sequence[float]
    ) -> None:
        """Make the three channels of our clips, (grey - pixel_mean) / pixel_std, those that the backbone learned from:
        (grey / 255 - image_mean) / image_std."""
        mean, deviation = (torch.tensor(values, dtype=torch.float64) for values in (image_mean, image_std))
        self.scale.copy_(pixel_std / 255 / deviation)
        self.shift.copy_((pixel_mean / 255 - mean) / deviation)

    def forward(self, clip: Tensor, visible: Tensor | None = None) -> Tensor:
        """Normalised ``clip`` [B, T, H, W] -> tokens [B, c + N, D]; with ``visible`` [B, K], [B, c + K, D] of those.

        Raises:
            ValueError: the clip has another shape than the backbone takes.
        """
        if tuple(clip.shape[1:]) != self.clip_shape:
            raise ValueError(f"expected clips of shape {self.clip_shape}, received {tuple(clip.shape[1:])}")
        hidden = None
        if visible is not None:
            if self.stem_mask_token is None:
                raise ValueError("tokens are to be hidden, and prepare_masking was not called")
            everything = torch.ones(len(clip), math.prod(self.grid), dtype=torch.bool, device=clip.device)
            hidden = everything.scatter(1, visible, False)
            clip = clip.masked_fill(self._to_pixels(hidden), 0)
        rgb = clip.unsqueeze(1) * self.scale.view(3, 1, 1, 1) + self.shift.view(3, 1, 1, 1)
        tokens = self.tokens(rgb, hidden)
        if visible is None:
            return tokens
        c = self.num_prefix_tokens
        return torch.cat([tokens[:, :c], gather_tokens(tokens[:, c:], visible)], dim=1)

    def replace_hidden(self, stem: Tensor, hidden: Tensor) -> Tensor:
        """``stem`` [B, N, stem width] with the mask token where ``hidden`` [B, N] is true."""
        assert self.stem_mask_token is not None
        return torch.where(hidden.unsqueeze(-1), self.stem_mask_token.to(stem.dtype), stem)

    def _to_pixels(self, hidden: Tensor) -> Tensor:
        """Of tokens [B, N] -> of their pixels [B, T, H, W]."""
        pixels = hidden.unflatten(1, self.grid)
        for axis, (size, number) in enumerate(zip(self.clip_shape, self.grid, strict=True), start=1):
            pixels = pixels.repeat_interleave(size // number, dim=axis)
        return pixels
