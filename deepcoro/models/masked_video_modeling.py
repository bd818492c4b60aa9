"""Predict the tokens the encoder was not shown, from those it was: their pixels (VideoMAE, 2203.12602; MAE,
2111.06377), or what a teacher that sees them all makes of them (V-JEPA, 2404.08471).

Letters: B clips, N tokens, K visible, M = N - K hidden, A asked of those, P numbers of a target: the pixels of a
tubelet, or a teacher's features; D width of the encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcoro.config_masking import num_asked
from deepcoro.models.draws import uniform
from deepcoro.models.layers import Block, full_precision, gather_tokens, init_linear
from deepcoro.models.positions import sincos_positions

_SALT = 0x6D76  # of the draw of what is asked


class MaskedVideoModeling(nn.Module):
    """A light decoder over visible tokens and mask tokens; it predicts the targets of the hidden ones.

    Args:
        encoder_width: D of the visible tokens.
        grid: tokens along time, height and width.
        num_outputs: P, of a tubelet's pixels or a teacher's features.
        mask_ratio: share of tokens that is hidden, above 0 and below 1.
        decoder_hidden_size, decoder_layers, decoder_heads: of the decoder.
        mask_token_learnable: else the mask token stays zero.
        norm_predict_loss: targets that are pixels have mean 0 and variance 1 within each tubelet (MAE, section 4.1).
        predicts_features: targets are features, and taken as the teacher gives them.
        decoder_drop: share of the hidden tokens that is not asked for in training (VideoMAE 2, 2303.16727).
        predicts_visible: predict the visible tokens besides.
    """

    def __init__(
        self,
        encoder_width: int,
        grid: tuple[int, int, int],
        num_outputs: int,
        mask_ratio: float = 0.75,
        decoder_hidden_size: int = 256,
        decoder_layers: int = 2,
        decoder_heads: int = 8,
        mask_token_learnable: bool = True,
        norm_predict_loss: bool = True,
        predicts_features: bool = False,
        decoder_drop: float = 0.0,
        predicts_visible: bool = False,
    ) -> None:
        super().__init__()
        self.positions: Tensor
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie above 0 and below 1, got {mask_ratio}")
        if not 0 <= decoder_drop < 1:
            raise ValueError(f"decoder_drop must be from 0 to below 1, got {decoder_drop}")
        self.mask_ratio, self.norm_predict_loss = mask_ratio, norm_predict_loss
        self.predicts_features, self.decoder_drop = predicts_features, decoder_drop
        self.predicts_visible = predicts_visible
        self.embed = nn.Linear(encoder_width, decoder_hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_hidden_size), requires_grad=mask_token_learnable)
        self.register_buffer("positions", sincos_positions(grid, decoder_hidden_size), persistent=False)
        self.blocks = nn.ModuleList(
            Block(decoder_hidden_size, decoder_heads, 4 * decoder_hidden_size) for _ in range(decoder_layers)
        )
        self.norm = nn.LayerNorm(decoder_hidden_size)
        self.predict = nn.Linear(decoder_hidden_size, num_outputs)
        init_linear(self)
        if mask_token_learnable:
            nn.init.normal_(self.mask_token, std=0.02)

    def pairs(self, visible_tokens: Tensor, visible: Tensor, hidden: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """What the loss compares: ``prediction`` and ``target`` [B, M, P] of ``hidden`` [B, M], and where they are
        predicted too ``visible_prediction`` and ``visible_target`` [B, K, P]. ``truth`` [B, N, P] are all tokens:
        tubelets in normalised grey levels, or a teacher's features."""
        if not self.predicts_visible:
            prediction = self(visible_tokens, visible, hidden)
            return {"prediction": prediction, "target": self.target(gather_tokens(truth, hidden))}
        number = visible.shape[1]
        everything = self(visible_tokens, visible, hidden, everywhere=True)
        return {
            "prediction": everything[:, number:],
            "target": self.target(gather_tokens(truth, hidden)),
            "visible_prediction": everything[:, :number],
            "visible_target": self.target(gather_tokens(truth, visible)),
        }

    def asked(self, hidden: Tensor, seed: int, clips: Tensor) -> Tensor:
        """Of ``hidden`` [B, M] those that a training step asks for, [B, A], in which ``num_asked`` of each of
        ``clips`` [B] (``draws.clip_numbers``) is drawn without regard to where it stands."""
        number = num_asked(hidden.shape[1], self.decoder_drop)
        if number == hidden.shape[1]:
            return hidden
        kept = uniform(seed, _SALT, clips, hidden.shape[1]).argsort(dim=1)[:, :number]
        return hidden.gather(1, kept)

    def forward(self, visible_tokens: Tensor, visible: Tensor, hidden: Tensor, everywhere: bool = False) -> Tensor:
        """``visible_tokens`` [B, K, D] at ``visible`` [B, K] -> predictions [B, M, P] at ``hidden`` [B, M]; or
        ``everywhere``, [B, K + M, P], of the visible ones before the hidden ones."""
        positions = self.positions.to(visible_tokens.dtype).expand(len(visible), -1, -1)
        shown = self.embed(visible_tokens) + gather_tokens(positions, visible)
        masked = self.mask_token + gather_tokens(positions, hidden)
        x = torch.cat([shown, masked.to(shown.dtype)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x if everywhere else x[:, visible.shape[1] :]))

    def target(self, truth: Tensor) -> Tensor:
        """What ``forward`` is compared with, of ``truth`` [B, M, P]: tubelets in normalised grey levels, or a teacher's
        features; never a gradient."""
        truth = full_precision(truth.detach())
        if self.predicts_features or not self.norm_predict_loss:
            return truth
        mean, std = tubelet_statistics(truth)
        return (truth - mean) / std

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
