"""Clip -> video tokens: a tubelet space-time transformer that computes only the tokens it is shown.

Joint space-time attention over tubelets (ViViT, 2103.15691, model 1); hidden tokens are dropped before the first layer,
as in MAE (2111.06377) and VideoMAE (2203.12602), so that a tenth of the tokens costs less than a tenth of the time.

Letters: B clips, T frames, H W pixels, N tokens, K visible, P pixels of a tubelet, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcoro.models.layers import AttentionPool, Block, gather_tokens, init_linear, sincos_positions


def patchify(clip: Tensor, tubelet: tuple[int, int, int]) -> Tensor:
    """``clip`` [B, T, H, W] -> tubelets [B, N, P], numbered along time, then height, then width."""
    t, h, w = tubelet
    return (
        clip.unflatten(3, (-1, w))
        .unflatten(2, (-1, h))
        .unflatten(1, (-1, t))
        .permute(0, 1, 3, 5, 2, 4, 6)
        .flatten(4)
        .flatten(1, 3)
    )


def unpatchify(tubelets: Tensor, grid: tuple[int, int, int], tubelet: tuple[int, int, int]) -> Tensor:
    """The inverse of ``patchify``: [B, N, P] -> [B, T, H, W]."""
    x = tubelets.unflatten(2, tubelet).unflatten(1, grid).permute(0, 1, 4, 2, 5, 3, 6)
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2)


class VideoEncoder(nn.Module):
    """The encoder every task shares.

    Args:
        num_frames, frame_size: of the clips it takes.
        tubelet: frames, pixels, pixels of one token.
        width, depth, num_heads: of the transformer; ``width`` D is also that of the tokens and the pooled vector.
        drop_path: share of residual branches skipped at the last block, rising linearly from 0 at the first.
        patch_norm: normalise the pixels of a tubelet before they are embedded (the first half of Dual PatchNorm,
            2302.01327). Where a still background outshines thin vessels, it is what lets training from scratch begin.

    Raises:
        ValueError: a clip does not divide into tubelets, or has another shape than the encoder was made for.
    """

    def __init__(
        self,
        num_frames: int = 16,
        frame_size: int = 224,
        tubelet: tuple[int, int, int] = (2, 16, 16),
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        drop_path: float = 0.0,
        patch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.positions: Tensor
        t, h, w = tubelet
        if num_frames % t or frame_size % h or frame_size % w:
            raise ValueError(f"{num_frames} frames of {frame_size}x{frame_size} do not divide into tubelets {tubelet}")
        self.clip_shape = (num_frames, frame_size, frame_size)
        self.tubelet = tubelet
        self.grid = (num_frames // t, frame_size // h, frame_size // w)
        self.width = width
        self.patch_norm = nn.LayerNorm(t * h * w) if patch_norm else nn.Identity()
        self.embed = nn.Linear(t * h * w, width)
        self.register_buffer("positions", sincos_positions(self.grid, width), persistent=False)
        rates = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(Block(width, num_heads, 4 * width, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPool(width, num_heads)
        init_linear(self)

    @property
    def num_tokens(self) -> int:
        """Tokens of a whole clip."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def forward(self, clip: Tensor, visible: Tensor | None = None) -> Tensor:
        """Normalised ``clip`` [B, T, H, W] -> tokens [B, N, D], or [B, K, D] of those at ``visible`` [B, K]."""
        if tuple(clip.shape[1:]) != self.clip_shape:
            raise ValueError(f"expected clips of shape {self.clip_shape}, received {tuple(clip.shape[1:])}")
        tubelets = patchify(clip, self.tubelet)
        positions = self.positions.to(clip.dtype).expand(len(clip), -1, -1)
        if visible is not None:
            tubelets, positions = gather_tokens(tubelets, visible), gather_tokens(positions, visible)
        tokens = self.embed(self.patch_norm(tubelets)) + positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


# A backbone by name; ``module:Name`` reaches one of the user's own, called with the same arguments.
ENCODERS: dict[str, type[nn.Module]] = {"tubelet": VideoEncoder}
