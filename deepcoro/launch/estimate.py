"""What a run will cost, before it is run: parameters, arithmetic, memory, seconds a step.

Parameters are counted on torch's meta device, so that a large model takes no memory. Arithmetic and activations follow
from the shapes of the transformers that a row goes through, for an encoder built like the ones here; a backbone of the
user's own may differ.

The pooling of a study's clips is left out: it is next to nothing.

Letters: n tokens of a row, m tokens that are attended to besides, d width, h width of the feed-forward, V vocabulary.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from deepcoro.config import Config
from deepcoro.data.masking import mask_order
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.pretrained import own_description
from deepcoro.models.text_encoder import TextEncoder
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step

# Floating-point operations a second where nothing can be measured. An A100 does 312e12 in half precision at its peak,
# and training reaches about a third of that; a core with AVX2 reached 60e9 on the base encoder.
GPU_RATE = {"bf16": 100e12, "fp16": 100e12, "fp32": 10e12}
CPU_RATE_PER_THREAD = 50e9
_TIMED_STEPS = 2
# Of MViTv2-S (2112.01526, table 1) on 16x224x224: layers, width, heads and tokens of each stage.
_MVIT_STAGES = ((1, 96, 1, 25088), (2, 192, 2, 6272), (11, 384, 4, 1568), (2, 768, 8, 392))


@dataclass(frozen=True)
class Pass:
    """One transformer on one row of a batch.

    Args:
        clips: how often it runs for the row, each time by itself.
        memory, memory_width: m and width of what it attends to besides its own tokens.
        outside: multiply-adds of the layers before and after its blocks, a row.
        vocabulary: V, where its output is a choice among words.
        chunk_size: tokens for which that choice is computed at once.
        looks: for each attention of a block, how many tokens each one looks at; empty: one attention, at all n.
        frozen: layers, from the bottom, that the backward pass does not reach, and with them what lies before.
        computed_again: the backward pass has each layer's input, and computes the rest again.
        scores: of each token and layer, numbers that an attention keeps which writes out what it weighs.
    """

    layers: int
    width: int
    hidden: int
    tokens: int
    clips: int = 1
    memory: int = 0
    memory_width: int = 0
    outside: int = 0
    vocabulary: int = 0
    chunk_size: int = 0
    looks: tuple[int, ...] = ()
    frozen: int = 0
    computed_again: bool = False
    scores: int = 0

    @property
    def step_flops(self) -> float:
        """Operations of the matrix products in a training step, a multiply-add being two. The backward pass costs twice
        the forward one, and a layer that is computed again once more; what is frozen has no backward pass. Attention
        counts whole where it is causal too."""
        n, m, d = self.tokens, self.memory, self.width
        block = sum(n * 4 * d * d + 2 * n * seen * d for seen in self.looks or (n,)) + n * 2 * d * self.hidden
        if m:
            block += 2 * n * d * d + 2 * m * self.memory_width * d + 2 * n * m * d
        times = self.layers + (self.layers - self.frozen) * (3 if self.computed_again else 2)
        outside = self.outside * (1 if self.frozen else 3)
        return 2.0 * self.clips * (times * block + outside + 3 * n * d * self.vocabulary)

    @property
    def saved_values(self) -> float:
        """Numbers that the backward pass needs: of a block the inputs of its norms and products, queries, keys, values
        and what attention gives (after 2205.05198, section 4.1, with attention that keeps no n x n matrix)."""
        n, m, d = self.tokens, self.memory, self.width
        further = len(self.looks) - 1 if self.looks else 0
        block = n * (9 * d + 2 * self.hidden + self.scores) + further * 10 * n * d
        if m:
            block += 5 * n * d + 2 * m * d
        trained = self.layers - self.frozen
        of_blocks = trained * n * d + min(1, trained) * block if self.computed_again else trained * block
        return float(self.clips * (of_blocks + (n * d if self.vocabulary else 0)))

    def loss_values(self, rows: int) -> float:
        """Numbers that the choice among words needs besides, on ``rows``: the gradient of the output weight, and two
        blocks of logits (``losses.captioning.chunked_captioning_loss``)."""
        return float(self.vocabulary * (self.width + 2 * min(self.chunk_size, rows * self.clips * self.tokens)))


def passes(config: Config, model: MultitaskModel, text_tokens: int) -> list[Pass]:
    """The transformers that a row with a text of ``text_tokens`` goes through in a training step."""
    encoder, captioning, masked = config.video_encoder, config.captioning, config.masked_modeling
    assert encoder.width is not None and encoder.depth is not None
    d, views, n, c = encoder.width, config.data.num_videos, config.num_tokens, int(bool(encoder.class_token))
    pixels = math.prod(config.tubelet)

    def rows(loss: str) -> int:
        return views if config.level(loss) == "clip" else 1

    def encoded(shown: int) -> Pass:
        # Dense groups where all are shown; else all of them under a mask.
        along, across = (config.grid[0], n // config.grid[0]) if shown == n else (shown, shown)
        return Pass(
            encoder.depth or 0,
            d,
            round((encoder.mlp_ratio or 4.0) * d),
            c + shown,
            views,
            outside=shown * pixels * d,
            looks=(along, c + across) if encoder.attention == "divided" else (),
            frozen=round(encoder.freeze * (encoder.depth or 0)),
            computed_again=encoder.checkpoint_activations,
        )

    def staged() -> list[Pass]:
        # MViTv2-S pools queries from stage to stage, and the keys and values of each to the last one's grid.
        frozen, made = round(encoder.freeze * (encoder.depth or 0)), []
        for layers, width, heads, tokens in _MVIT_STAGES:
            kept = min(layers, frozen)
            shape = (layers, width, 4 * width, c + tokens)
            made.append(
                Pass(
                    *shape,
                    views,
                    looks=(c + n,),
                    frozen=kept,
                    computed_again=encoder.checkpoint_activations,
                    scores=3 * heads * (c + n),
                )
            )
            frozen -= kept
        return made

    def encodings(shown: int) -> list[Pass]:
        return staged() if encoder.name == "mvit" else [encoded(shown)]

    found = []
    if config.needs_text:
        found += encodings(n)
    if config.loss.is_used("contrastive") and encoder.pool == "attention":
        found.append(Pass(0, d, 0, c + n, views, outside=2 * (c + n) * d * d + 2 * (c + n) * d + 10 * d * d))
    if model.text_encoder is not None:
        about: Any = model.text_encoder.transformer.config
        width, layers = model.text_encoder.width, getattr(about, "num_hidden_layers", 12)
        hidden = getattr(about, "intermediate_size", 4 * width)
        frozen = round(config.text_encoder.freeze * layers)
        found.append(Pass(layers, width, hidden, text_tokens, rows("contrastive"), frozen=frozen))
    if model.captioning_decoder is not None:
        assert captioning.vocab_size is not None
        shape = (captioning.num_layers, captioning.hidden_size, captioning.intermediate_size, text_tokens - 1)
        clips = rows("captioning")
        seen = views // clips * (c + n)
        found.append(
            Pass(
                *shape,
                clips,
                memory=seen,
                memory_width=d,
                vocabulary=captioning.vocab_size,
                chunk_size=captioning.chunk_size,
            )
        )
    if model.masked_video_modeling is not None:
        k, width = config.num_visible, masked.decoder_hidden_size
        # A wrapped backbone computes hidden tokens too.
        found += encodings(n if hasattr(model.video_encoder, "prepare_masking") else k)
        outside = k * d * width + (n - k) * width * pixels
        found.append(Pass(masked.decoder_layers, width, 4 * width, n, views, outside=outside))
    return found


def step_flops(found: list[Pass], rows: int) -> float:
    """Operations of a training step on ``rows``."""
    return rows * sum(part.step_flops for part in found)


def activation_bytes(found: list[Pass], rows: int, precision: str) -> float:
    """Bytes of what a forward pass on ``rows`` keeps for the backward one. A rough estimate: under autocast norms and
    residuals stay in 32 bits, and kernels differ in what they keep."""
    kept = rows * sum(part.saved_values for part in found) * (4 if precision == "fp32" else 3)
    return kept + 4 * sum(part.loss_values(rows) for part in found)


def state_bytes(model: nn.Module, precision: str, num_workers: int) -> dict[str, float]:
    """Bytes that weights and what belongs to each of them take in a worker: gradients, the two moments of AdamW, the
    16-bit copies of autocast, and the buckets in which workers exchange gradients."""
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = {"weights": 4.0 * every, "gradients": 4.0 * trained, "optimizer": 8.0 * trained}
    if precision != "fp32":
        parts["16-bit copies"] = 2.0 * every
    if num_workers > 1:
        parts["exchange"] = 4.0 * trained
    return parts


class _Weightless(TorchFunctionMode):
    """Lets modules make their parameters, and only those, on the meta device: code that computes with small tensors
    while a module is made goes on to work, which ``torch.device("meta")`` would break."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def empty_model(config: Config, checkpoint: Path | None = None) -> MultitaskModel:
    """The model of a config without its weights: shapes and counts can be read from it, nothing computed.

    Args:
        checkpoint: that a run goes on from; it describes the encoders, whose sources may be gone.

    Raises:
        ConfigError: no such encoder.
    """
    with _Weightless():
        return random_model(config, checkpoint)


def random_model(config: Config, checkpoint: Path | None = None) -> MultitaskModel:
    """The same with weights at random."""
    if checkpoint is not None:
        return MultitaskModel.from_architecture(config, checkpoint)
    uses_text = config.loss.is_used("contrastive")
    text = TextEncoder.from_config(config.text_encoder.source) if uses_text else None
    return MultitaskModel(config, text, own_description(config))


def synthetic_batch(config: Config, rows: int, text_tokens: int, device: torch.device) -> dict[str, Any]:
    """A Batch of noise in the shapes that a step takes, all of it valid; always the same."""
    chance = torch.Generator().manual_seed(0)
    data, views = config.data, config.data.num_videos
    orders = [
        mask_order(config.masked_modeling.strategy, config.grid, np.random.default_rng(number))
        for number in range(rows * views)
    ]
    shape = (rows, views, data.num_frames, data.frame_size, data.frame_size)
    batch: dict[str, Any] = {
        "clip": torch.randint(0, 256, shape, generator=chance, dtype=torch.uint8),
        "valid": torch.ones(rows, views, dtype=torch.bool),
        "angles": torch.zeros(rows, views, 2),
        "view_index": torch.arange(views).expand(rows, -1),
        "mask_order": torch.from_numpy(np.stack(orders).astype(np.int64)).view(rows, views, -1),
        "has_report": torch.full((rows,), config.needs_text),
        "report_key": torch.arange(1, rows + 1),
        "study_key": torch.arange(1, rows + 1),
    }
    if config.needs_text:
        assert config.captioning.vocab_size is not None
        batch |= {
            "input_ids": torch.randint(0, config.captioning.vocab_size, (rows, text_tokens), generator=chance),
            "text_length": torch.full((rows,), text_tokens),
            "prefix_length": torch.ones(rows, dtype=torch.long),
        }
    if config.loss.is_used("captioning") and config.captioning.parallel_share > 0:
        batch["parallel"] = torch.arange(rows) % 2 == 0
    if config.needs_clip_texts:
        of_texts = ("has_report", "report_key", "input_ids", "text_length", "prefix_length", "parallel")
        for name in (name for name in of_texts if name in batch):
            batch[f"clip_{name}"] = batch[name][:, None].repeat(1, views, *[1] * (batch[name].ndim - 1))
    return {name: tensor.to(device) for name, tensor in batch.items()}


def time_step(
    config: Config,
    rows: int,
    text_tokens: int,
    device: torch.device,
    threads: int,
    checkpoint: Path | None = None,
) -> float:
    """Seconds of a training step on ``rows`` of noise, with weights at random; the better of two after a warm-up."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = random_model(config, checkpoint).to(device).train()
        optimizer = build_optimizer(model, config.optim)
        batch, loss = synthetic_batch(config, rows, text_tokens, device), MultitaskLoss.from_config(config)
        weights = config.loss.highest
        scaler = torch.amp.GradScaler(device.type) if config.training.precision == "fp16" else None
        seconds = []
        for _ in range(1 + _TIMED_STEPS):
            begin = time.perf_counter()
            train_step(
                model, loss, optimizer, [batch], weights, config.num_visible, config.training.precision, scaler
            ).total.item()  # waits for a GPU
            seconds.append(time.perf_counter() - begin)
        return min(seconds[1:])
    finally:
        torch.set_num_threads(before)
