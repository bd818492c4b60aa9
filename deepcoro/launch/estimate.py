"""What a run will cost, before it is run: parameters, arithmetic, memory, seconds a step.

Parameters are counted on torch's meta device, so that a large model takes no memory. Arithmetic and activations follow
from the shapes of the transformers that a row goes through (``models/passes.py``).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from deepcoro.config import Config
from deepcoro.data.masking import Masking
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.own_weights import weights_file
from deepcoro.models.passes import Pass
from deepcoro.models.pretrained import own_description
from deepcoro.models.text_encoder import TextEncoder
from deepcoro.models.video_teacher import teacher_checkpoint
from deepcoro.training.optim import build_optimizer
from deepcoro.training.sharding import blocks
from deepcoro.training.step import train_step
from deepcoro.training.teachers import Teachers

# Floating-point operations a second where nothing can be measured. An A100 does 312e12 in half precision at its peak,
# and training reaches about a third of that; a core with AVX2 reached 60e9 on the base encoder.
GPU_RATE = {"bf16": 100e12, "fp16": 100e12, "fp32": 10e12}
CPU_RATE_PER_THREAD = 50e9
_TIMED_STEPS = 2


def activation_bytes(found: list[Pass], rows: int, precision: str) -> float:
    """Bytes of what a forward pass on ``rows`` keeps for the backward one. A rough estimate: under autocast norms and
    residuals stay in 32 bits, and kernels differ in what they keep."""
    kept = rows * sum(part.saved_values for part in found) * (4 if precision == "fp32" else 3)
    return kept + 4 * sum(part.loss_values(rows) for part in found)


def state_bytes(
    model: nn.Module, precision: str, num_workers: int, has_average: bool = False, sharded: bool = False
) -> dict[str, float]:
    """Bytes that weights and what belongs to each of them take in a worker: gradients, the two moments of AdamW, their
    average, the 16-bit copies of autocast, and what workers exchange: buckets of gradients or, with a model that is
    ``sharded`` (``training/sharding.py``), what is whole for a while. The copies are whole there too: the backward pass
    keeps them."""
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share = num_workers if sharded else 1
    parts = {"weights": 4.0 * every / share, "gradients": 4.0 * trained / share, "optimizer": 8.0 * trained / share}
    if has_average:
        parts["average"] = 4.0 * trained / share
    if precision != "fp32":
        parts["16-bit copies"] = 2.0 * every
    if share > 1:
        sizes = [sum(p.numel() for p in block.parameters()) for block in blocks(model)]
        # Outside the blocks weights and gradients; of the largest block its weights and the next one's, its gradients
        # and the buffer that they are exchanged in.
        parts["exchange"] = 4.0 * (2 * (every - sum(sizes)) + 4 * max(sizes, default=0))
        parts["all weights, while it validates"] = 4.0 * every
    elif num_workers > 1:
        parts["exchange"] = 4.0 * trained
    return parts


def teacher_bytes(config: Config, model: MultitaskModel, saved: bool = False) -> float:
    """Bytes of the weights that the teachers of a run take in each worker, divided or not; or of those that a
    checkpoint has: of teachers that follow the model."""
    masks, distils = config.loss.is_used("masked_modeling"), config.loss.is_used("distillation")
    averaged: list[nn.Parameter] = []
    if masks and config.masked_modeling.target == "ema":
        averaged += [p for name, p in model.video_encoder.named_parameters() if not name.startswith("pool.")]
    if distils and config.distillation.local_views > 0:
        assert model.distillation is not None and model.distillation.head is not None
        averaged += [*model.video_encoder.parameters(), *model.distillation.head.parameters()]
    others = {
        field: source
        for field, is_used, source in (
            ("masked_modeling.teacher", masks, config.masked_modeling.teacher),
            ("distillation.teacher", distils, config.distillation.teacher),
        )
        if is_used and source is not None
    }
    files = [] if saved else [weights_file(teacher_checkpoint(source, field))[0] for field, source in others.items()]
    return 4.0 * sum(p.numel() for p in averaged) + sum(path.stat().st_size for path in files)


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
    shape = (rows, views, data.num_frames, data.frame_size, data.frame_size)
    clips, masking = torch.randint(0, 256, shape, generator=chance, dtype=torch.uint8), Masking.from_config(config)
    orders = [
        masking.order(np.random.default_rng(number), clip) for number, clip in enumerate(clips.flatten(0, 1).numpy())
    ]
    batch: dict[str, Any] = {
        "clip": clips,
        "valid": torch.ones(rows, views, dtype=torch.bool),
        "angles": torch.zeros(rows, views, 2),
        "view_index": torch.arange(views).expand(rows, -1),
        "position": torch.arange(rows),
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
    if config.loss.is_used("grounding"):
        cells = math.prod(config.grounding.cells(config.grid))
        batch["segments_at"] = (torch.arange(rows * views * cells) % 50 == 0).view(rows, views, cells).int()
        batch["stenosis_at"] = torch.where(batch["segments_at"] > 0, 50, -1).to(torch.int8)
        batch["edges_at"] = torch.zeros(rows, views, cells, 4)
        batch["lesions_known"] = torch.ones(rows, views, cells, dtype=torch.bool)
        batch["tree"] = torch.zeros(rows, views, dtype=torch.int8)
    if config.contrastive.severity_weight > 0:
        batch["severity"] = torch.full((rows,), 50.0)
    if config.loss.is_used("captioning") and config.captioning.parallel_share > 0:
        batch["parallel"] = torch.arange(rows) % 2 == 0
    if config.needs_clip_texts:
        of_texts = {"has_report", "report_key", "severity", "input_ids", "text_length", "prefix_length", "parallel"}
        for name in sorted(of_texts & batch.keys()):
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
    """Seconds of a training step on ``rows`` of noise in each micro-batch, with weights at random; the better of two
    after a warm-up."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = random_model(config, checkpoint).to(device).train()
        teachers = Teachers(config, model, device)
        optimizer = build_optimizer(model, config.optim)
        batches = [synthetic_batch(config, rows, text_tokens, device)] * config.training.accumulation_steps
        loss = MultitaskLoss.from_config(config)
        weights = loss.with_parts(config.loss.highest)
        scaler = torch.amp.GradScaler(device.type) if config.training.precision == "fp16" else None
        seconds = []
        for _ in range(1 + _TIMED_STEPS):
            begin = time.perf_counter()
            teachers.teach(batches, weights)
            result = train_step(
                model, loss, optimizer, batches, weights, config.visible_range[1], config.training.precision, scaler,
                shared_pass=config.shared_pass.enabled,
            )  # fmt: skip
            result.total.item()  # waits for a GPU
            teachers.update(1)
            seconds.append(time.perf_counter() - begin)
        return min(seconds[1:])
    finally:
        torch.set_num_threads(before)
