"""What each training worker runs, from its first batch to its last checkpoint.

Order of a start: (1) the newest committed checkpoint is found and verified, (2) the model is made, with its weights or
    those of the text encoder's source, (3) optimizer and step go on from there, (4) the data stream begins at its
    ``samples_seen``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from deepcoro.config import Config
from deepcoro.data.collate import to_torch
from deepcoro.data.pipeline import iterate
from deepcoro.data.tables import PreparedDataset
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import TrainingError
from deepcoro.evaluation.evaluator import evaluation_indices, fit_baselines, predict_units, summarise
from deepcoro.losses.multitask import LossWeightScheduler, MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.training.board import Board, note_problems
from deepcoro.training.checkpoint import (
    load_training_state,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from deepcoro.training.optim import build_optimizer, lr_factor, set_learning_rates
from deepcoro.training.step import train_step
from deepcoro.training.throughput import Throughput

_MAX_BLIND_STEPS = 10


def train_worker(settings: dict[str, Any]) -> None:
    """Train as ``settings`` say: ``config`` (YAML mapping), ``run`` (its folder), ``fingerprint`` (of the dataset)."""
    config, run = Config(**settings["config"]), Path(settings["run"])
    rank = ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device()
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(config.seed)

    model, state = start_or_resume(config, run)
    model.to(device).train()  # a text encoder comes from its source in evaluation mode
    optimizer = build_optimizer(model, config.optim)
    scaler = torch.amp.GradScaler(device.type) if config.training.precision == "fp16" else None
    step = 0
    if state is not None:
        step = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
    wrapped = _wrap(model, device)
    loss = MultitaskLoss(
        config.loss.weights.model_dump(),
        config.contrastive.loss_type,
        config.captioning.label_smoothing,
        config.captioning.ignore_index,
    )
    weights_at = _weights_at(config)

    board = Board(run, step + 1) if rank == 0 else None
    validation = _Validation(config, run, device)
    throughput = Throughput(device)
    blind = 0  # steps in a row in which no view could be read
    shard = ray.train.get_dataset_shard("train")
    batches = (
        throughput.waiting(iterate(shard, config.micro_batch_size)) if step < config.training.num_steps else iter(())
    )
    while step < config.training.num_steps:
        rows = [next(batches) for _ in range(config.training.accumulation_steps)]
        note_problems(run, rows)
        micro_batches = [to_torch(batch, device) for batch in rows]
        # Dropout draws from the place in the stream, not from how often the run was started.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, step, rank]).generate_state(1)[0]))
        factor = lr_factor(step, config.optim.warmup_steps, config.training.num_steps, config.optim.min_lr_ratio)
        rates = set_learning_rates(optimizer, factor)
        weights = weights_at(step)
        result = train_step(
            wrapped,
            loss,
            optimizer,
            micro_batches,
            weights,
            config.num_visible,
            config.training.precision,
            scaler,
            config.optim.max_grad_norm,
        )
        step += 1
        blind = 0 if result.valid_share.item() > 0 else blind + 1
        if blind == _MAX_BLIND_STEPS:
            raise TrainingError(f"no video could be read in {blind} steps in a row; {run}/problems.jsonl says why")
        throughput.add(config.training.batch_size * config.data.num_videos)

        last = step == config.training.num_steps
        if board is not None and (step % config.training.log_every == 0 or last):
            scalars = {f"loss/{name}": value.item() for name, value in result.losses.items()}
            scalars |= {"loss/total": result.total.item(), "optim/grad_norm": result.grad_norm.item()}
            scalars |= {f"loss_weight/{name}": weights[name] for name in result.losses}
            scalars |= {f"learning_rate/{component}": rate for component, rate in rates.items()}
            scalars |= {
                "data/valid_share": result.valid_share.item(),
                "data/samples_seen": step * config.training.batch_size,
            }
            if config.loss.is_used("contrastive"):
                scalars["contrastive/logit_scale"] = model.logit_scale.exp().item()
                scalars["contrastive/logit_bias"] = model.logit_bias.item()
            board.scalars(step, scalars | throughput.read())
        if rank == 0 and (step % config.training.checkpoint_every == 0 or last):
            saved = {
                "step": step,
                "samples_seen": step * config.training.batch_size,
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
            }
            save_checkpoint(run, step, model, saved, config, settings["fingerprint"], config.training.keep_checkpoints)
        every = config.training.evaluate_every
        if last or (every is not None and step % every == 0):
            metrics = validation.run(model)
            if board is not None:
                board.scalars(step, {f"validation/{name}": value for name, value in metrics.items()})
            ray.train.report({"step": step, **metrics})
            throughput.read()  # the time of an evaluation is not training time
    if board is not None:
        board.close()


def start_or_resume(config: Config, run: Path) -> tuple[MultitaskModel, dict[str, Any] | None]:
    """The model with what the newest committed checkpoint has, and its training state; or a fresh model and
    ``None``."""
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        return MultitaskModel.from_pretrained_text(config), None
    verify_checkpoint(checkpoint)
    model = MultitaskModel.from_architecture(config, checkpoint / "text_encoder")
    load_weights(checkpoint, model)
    return model, load_training_state(checkpoint)


def run_tokenizer(config: Config, run: Path) -> ReportTokenizer | None:
    """The tokenizer that was saved with the run, where it reads text."""
    if not config.needs_text:
        return None
    return ReportTokenizer.from_pretrained(load_tokenizer(str(run / "tokenizer")), config.data.max_text_length)


def _wrap(model: MultitaskModel, device: torch.device) -> nn.Module:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
    )


def _weights_at(config: Config) -> Any:
    part = config.loss
    if not part.use_scheduler:
        fixed = part.weights.model_dump()
        return lambda step: fixed
    scheduler = LossWeightScheduler(
        part.initial.model_dump(), part.final.model_dump(), part.warmup_steps, part.total_steps, part.schedule_type
    )
    return scheduler.weights


class _Validation:
    """Evaluates on the validation patients: each worker its share of the rows, rank 0 the metrics."""

    def __init__(self, config: Config, run: Path, device: torch.device) -> None:
        dataset = PreparedDataset.open(config.data.path)
        self.config, self.device = config, device
        self.units = None
        if dataset.num_studies()["val"]:
            self.units = dataset.units("val", config.data.unit, config.data.filter)
            self.tokenizer = run_tokenizer(config, run)
            self.constants = None
            if config.loss.is_used("captioning"):
                self.constants = fit_baselines(dataset.units("train", config.data.unit, config.data.filter), config)

    def run(self, model: MultitaskModel) -> dict[str, float]:
        """Metrics by name (on every worker: those of the whole split)."""
        if self.units is None:
            return {}
        rank = ray.train.get_context().get_world_rank()
        world = ray.train.get_context().get_world_size()
        indices = evaluation_indices(self.units, self.config, self.config.evaluation.max_units)
        records = predict_units(model, self.config, self.units, indices[rank::world], self.tokenizer, self.device)
        if world > 1:
            shares: list[Any] = [None] * world
            dist.all_gather_object(shares, records)
            records = [record for share in shares for record in share]
        metrics = summarise(records, self.units, self.constants, self.config)
        return {name: metric.value for name, metric in metrics.items() if np.isfinite(metric.value)}
