"""Clip -> video tokens: a tubelet space-time transformer that computes only the tokens it is shown.

Joint space-time attention over tubelets (ViViT, 2103.15691, model 1) or divided one (TimeSformer, 2102.05095); hidden
tokens are dropped before the first layer, as in MAE (2111.06377) and VideoMAE (2203.12602), so that a tenth of the
tokens costs less than a tenth of the time.

Letters: B clips, T frames, H W pixels, N tokens, K visible, P pixels of a tubelet, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepcoro.config_encoder import VideoEncoderConfig
from deepcoro.models.conv_stem import ConvStem
from deepcoro.models.divided_attention import DividedBlock, Frames, with_prefix
from deepcoro.models.layers import AttentionPool, Block, Rotary, gather_tokens, init_linear
from deepcoro.models.positions import Grid, resize_positions, rotary_tables, sincos_positions


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
            In a convolutional stem, normalise each pixel by its surroundings.
        attention: ``joint`` or ``divided``.
        positions: ``sincos``, ``learned``, ``rotary`` or ``rotary_tiled`` (``models/positions.py``).
        position_grid: the grid that positions are made for, and interpolated from; ``None`` for the clip's own.
        class_token: put a learned token before the others; it is the first of those that come out.
        pool: how tokens become one vector: ``attention``, ``mean`` or ``class``.
        mlp_ratio: width of the feed-forward, in widths.
        final_norm, norm_eps: whether the tokens that come out are normalised, and what norms add to the variance.
        checkpoint_activations: keep only the input of each block for the backward pass, and compute the rest again.
        stem: how pixels become tokens: ``linear``, or ``convolutional`` (``models/conv_stem.py``).
        stem_width: channels of the first stage of the latter.

    Attributes:
        num_prefix_tokens: tokens before those of the grid: 1 with a class token, else 0.
        pool: tokens -> [B, D]; ``None`` where nothing is to be pooled.

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
        *,
        attention: str = "joint",
        positions: str = "sincos",
        position_grid: Grid | None = None,
        class_token: bool = False,
        pool: str = "attention",
        mlp_ratio: float = 4.0,
        final_norm: bool = True,
        norm_eps: float = 1e-5,
        checkpoint_activations: bool = False,
        stem: str = "linear",
        stem_width: int = 32,
    ) -> None:
        super().__init__()
        t, h, w = tubelet
        if num_frames % t or frame_size % h or frame_size % w:
            raise ValueError(f"{num_frames} frames of {frame_size}x{frame_size} do not divide into tubelets {tubelet}")
        if attention not in ("joint", "divided"):
            raise ValueError(f"attention must be joint or divided, got {attention!r}")
        self.clip_shape = (num_frames, frame_size, frame_size)
        self.tubelet = tubelet
        self.grid: Grid = (num_frames // t, frame_size // h, frame_size // w)
        self.width, self.attention = width, attention
        self.num_prefix_tokens = int(class_token)
        self.checkpoint_activations = checkpoint_activations
        linear = stem == "linear"
        self.patch_norm = nn.LayerNorm(t * h * w) if patch_norm and linear else nn.Identity()
        self.embed = nn.Linear(t * h * w, width) if linear else ConvStem(tubelet, width, stem_width, patch_norm)
        self._place(positions, position_grid or self.grid, width // num_heads)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        rates = torch.linspace(0, drop_path, depth).tolist()
        shape = (width, num_heads, round(mlp_ratio * width))
        if attention == "divided":
            blocks: list[Block] = [DividedBlock(*shape, rate, norm_eps, class_token) for rate in rates]
        else:
            blocks = [Block(*shape, rate, norm_eps) for rate in rates]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, norm_eps) if final_norm else nn.Identity()
        self.pool: nn.Module | None = POOLS[pool](self.num_prefix_tokens, width, num_heads)
        init_linear(self)
        for parameter in (self.class_token, self.position_embedding):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for block in blocks:
            if isinstance(block, DividedBlock):  # at first space alone, as TimeSformer begins
                nn.init.zeros_(block.attention_time.out.weight)

    @classmethod
    def from_config(cls, num_frames: int, frame_size: int, part: VideoEncoderConfig) -> VideoEncoder:
        """As a resolved config describes it."""
        return cls(
            num_frames,
            frame_size,
            part.tubelet,  # type: ignore[arg-type]  # resolved: nothing is None
            part.width,  # type: ignore[arg-type]
            part.depth,  # type: ignore[arg-type]
            part.num_heads,  # type: ignore[arg-type]
            part.drop_path,
            part.patch_norm,  # type: ignore[arg-type]
            attention=part.attention,  # type: ignore[arg-type]
            positions=part.positions,  # type: ignore[arg-type]
            position_grid=part.position_grid,
            class_token=part.class_token,  # type: ignore[arg-type]
            pool=part.pool,
            mlp_ratio=part.mlp_ratio,  # type: ignore[arg-type]
            final_norm=part.final_norm,  # type: ignore[arg-type]
            norm_eps=part.norm_eps,  # type: ignore[arg-type]
            checkpoint_activations=part.checkpoint_activations,
            stem=part.stem,  # type: ignore[arg-type]
            stem_width=part.stem_width,  # type: ignore[arg-type]
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of a whole clip, those before the grid's not counted."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def forward(
        self, clip: Tensor, visible: Tensor | None = None, with_embedded: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised ``clip`` [B, T, H, W] -> tokens [B, N, D], or [B, K, D] of those at ``visible`` [B, K]; behind
        ``num_prefix_tokens`` others. ``with_embedded``: also what goes into the blocks, without places and without
        those others."""
        if tuple(clip.shape[1:]) != self.clip_shape:
            raise ValueError(f"expected clips of shape {self.clip_shape}, received {tuple(clip.shape[1:])}")
        tokens = embedded = self._embed(clip, visible)
        positions = self._added_positions()
        if positions is not None:
            positions = positions.to(clip.dtype).expand(len(clip), -1, -1)
            tokens = tokens + (positions if visible is None else gather_tokens(positions, visible))
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.to(tokens.dtype).expand(len(clip), -1, -1), tokens], dim=1)
        turns, has_class = self._turns(visible), self.class_token is not None
        if self.attention == "divided":
            more: tuple[object, ...] = (
                turns,
                Frames.of(self.grid[0], self.grid[1] * self.grid[2], visible, has_class),
            )
        else:
            more = (with_prefix(turns, self.num_prefix_tokens),)
        saves = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            tokens = checkpoint(block, tokens, *more, use_reentrant=False) if saves else block(tokens, *more)
        return (self.norm(tokens), embedded) if with_embedded else self.norm(tokens)

    def pooled(self, tokens: Tensor) -> Tensor:
        """``tokens`` as ``forward`` gives them -> [B, D]."""
        assert self.pool is not None
        return self.pool(tokens)

    def bottom_up(self) -> list[list[nn.Parameter]]:
        """Parameters from the pixels upwards, as they are frozen: those before the first block, then each block's."""
        stem = [*self.patch_norm.parameters(), *self.embed.parameters()]
        stem += [p for p in (self.class_token, self.position_embedding) if p is not None]
        return [stem, *[list(block.parameters()) for block in self.blocks]]

    def _embed(self, clip: Tensor, visible: Tensor | None) -> Tensor:
        """Tokens without their places, [B, N, D] or [B, K, D]."""
        if isinstance(self.embed, ConvStem):
            return self.embed(clip, visible)
        tubelets = patchify(clip, self.tubelet)
        if visible is not None:
            tubelets = gather_tokens(tubelets, visible)
        return self.embed(self.patch_norm(tubelets))

    def _place(self, kind: str, made_for: Grid, head_width: int) -> None:
        """Make what tells tokens where they stand."""
        self.positions: Tensor | None
        self.rotary: Tensor | None
        self.position_grid = made_for
        self.position_embedding = None
        added = turned = None
        if kind == "sincos":
            added = sincos_positions(self.grid, self.width, made_for)
        elif kind == "learned":
            self.position_embedding = nn.Parameter(torch.zeros(made_for[0] * made_for[1] * made_for[2], self.width))
        elif kind in ("rotary", "rotary_tiled"):
            turned = rotary_tables(self.grid, head_width, made_for, tiled=kind == "rotary_tiled")
        else:
            raise ValueError(f"positions must be sincos, learned, rotary or rotary_tiled, got {kind!r}")
        self.register_buffer("positions", added, persistent=False)
        self.register_buffer("rotary", turned, persistent=False)

    def _added_positions(self) -> Tensor | None:
        """[N, D], or ``None``."""
        if self.position_embedding is not None:
            return resize_positions(self.position_embedding, self.position_grid, self.grid)
        return self.positions

    def _turns(self, visible: Tensor | None) -> Rotary | None:
        """Of all tokens, or of those at ``visible`` [B, K]."""
        if self.rotary is None:
            return None
        cos, sin = self.rotary.unbind() if visible is None else self.rotary[:, visible].unbind()
        return (cos[None, None], sin[None, None]) if visible is None else (cos[:, None], sin[:, None])


class MeanPool(nn.Module):
    """Mean of the tokens of the grid."""

    def __init__(self, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """``tokens`` [B, N, D] -> [B, D]."""
        return tokens[:, self.num_prefix_tokens :].mean(dim=1)


class ClassPool(nn.Module):
    """The class token."""

    def __init__(self, num_prefix_tokens: int) -> None:
        super().__init__()
        if num_prefix_tokens == 0:
            raise ValueError("pool=class needs a class token")

    def forward(self, tokens: Tensor) -> Tensor:
        """``tokens`` [B, 1 + N, D] -> [B, D]."""
        return tokens[:, 0]


# How tokens become one vector, from the number of tokens before the grid's, the width and the number of heads.
POOLS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "attention": lambda prefix, width, num_heads: AttentionPool(width, num_heads),
    "mean": lambda prefix, width, num_heads: MeanPool(prefix),
    "class": lambda prefix, width, num_heads: ClassPool(prefix),
}
