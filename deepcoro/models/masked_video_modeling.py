"""Reconstruct the tubelets the encoder was not shown, from those it was (VideoMAE, 2203.12602; MAE, 2111.06377).

Letters: B clips, N tokens, K visible, M = N - K hidden, P pixels of a tubelet, D width of the encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcoro.models.layers import Block, full_precision, gather_tokens, init_linear
from deepcoro.models.positions import sincos_positions


class MaskedVideoModeling(nn.Module):
    """A light decoder over visible tokens and mask tokens; it predicts the pixels of the hidden ones.

    Args:
        encoder_width: D of the visible tokens.
        grid: tokens along time, height and width.
        num_pixels: P of a tubelet.
        mask_ratio: share of tokens that is hidden, above 0 and below 1.
        decoder_hidden_size, decoder_layers, decoder_heads: of the decoder.
        mask_token_learnable: else the mask token stays zero.
        norm_predict_loss: targets have mean 0 and variance 1 within each tubelet (MAE, section 4.1).
    """

    def __init__(
        self,
        encoder_width: int,
        grid: tuple[int, int, int],
        num_pixels: int,
        mask_ratio: float = 0.75,
        decoder_hidden_size: int = 256,
        decoder_layers: int = 2,
        decoder_heads: int = 8,
        mask_token_learnable: bool = True,
        norm_predict_loss: bool = True,
    ) -> None:
        super().__init__()
        self.positions: Tensor
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie above 0 and below 1, got {mask_ratio}")
        self.mask_ratio, self.norm_predict_loss = mask_ratio, norm_predict_loss
        self.embed = nn.Linear(encoder_width, decoder_hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_hidden_size), requires_grad=mask_token_learnable)
        self.register_buffer("positions", sincos_positions(grid, decoder_hidden_size), persistent=False)
        self.blocks = nn.ModuleList(
            Block(decoder_hidden_size, decoder_heads, 4 * decoder_hidden_size) for _ in range(decoder_layers)
        )
        self.norm = nn.LayerNorm(decoder_hidden_size)
        self.predict = nn.Linear(decoder_hidden_size, num_pixels)
        init_linear(self)
        if mask_token_learnable:
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible_tokens: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """``visible_tokens`` [B, K, D] at ``visible`` [B, K] -> predictions [B, M, P] at ``hidden`` [B, M]."""
        positions = self.positions.to(visible_tokens.dtype).expand(len(visible), -1, -1)
        shown = self.embed(visible_tokens) + gather_tokens(positions, visible)
        masked = self.mask_token + gather_tokens(positions, hidden)
        x = torch.cat([shown, masked.to(shown.dtype)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x[:, visible.shape[1] :]))

    def target(self, tubelets: Tensor) -> Tensor:
        """What ``forward`` is compared with, of hidden ``tubelets`` [B, M, P] in normalised grey levels; never a
        gradient."""
        tubelets = full_precision(tubelets.detach())
        if not self.norm_predict_loss:
            return tubelets
        mean, std = tubelet_statistics(tubelets)
        return (tubelets - mean) / std

    def to_pixels(self, prediction: Tensor, tubelets: Tensor) -> Tensor:
        """Predictions [B, M, P] in the grey levels of ``tubelets`` [B, M, P], whose own mean and deviation are put
        back."""
        if not self.norm_predict_loss:
            return full_precision(prediction)
        mean, std = tubelet_statistics(full_precision(tubelets))
        return full_precision(prediction) * std + mean


def tubelet_statistics(tubelets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [B, M, 1] of each tubelet; the small addend keeps flat ones (the collimator) finite."""
    variance, mean = torch.var_mean(tubelets, dim=-1, correction=0, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
