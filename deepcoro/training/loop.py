"""What each training worker runs, from its first batch to its last checkpoint.

Order of a start: (1) whoever starts the data stream has made sure that the newest checkpoint is sound; the worker takes
    that one, (2) the model is made, with its weights or those of the text encoder's source, (3) optimizer and counters
    go on from there, and what an earlier start left of later steps is taken out, (4) the stream begins at
    ``samples_seen``, and every batch is held against the positions that its step must have.

Randomness is a function of (seed, step, worker), schedules are functions of the step, so neither has a state to keep.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch

from deepcoro.config import Config
from deepcoro.data.collate import to_torch
from deepcoro.data.pipeline import iterate
from deepcoro.errors import DeepCoroError, SaveError, TrainingError
from deepcoro.losses.multitask import LossWeightScheduler, MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.training import validation
from deepcoro.training.average import WeightAverage, averaged
from deepcoro.training.bad_steps import BadSteps
from deepcoro.training.board import Board, describe_model, note, note_problems
from deepcoro.training.checkpoint import (
    committed_steps,
    drop_checkpoints_after,
    drop_old_checkpoints,
    load_average,
    load_training_state,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
)
from deepcoro.training.control import control_group, from_first, note_fatal, raise_fatal, stop_requested, writer_lock
from deepcoro.training.mask_ratio import MaskRatio
from deepcoro.training.optim import build_optimizer, load_optimizer, lr_schedule, set_learning_rates
from deepcoro.training.pictures import draw_pictures
from deepcoro.training.place import Place
from deepcoro.training.plan import training_plan
from deepcoro.training.positions import PositionLog, check_positions
from deepcoro.training.sharding import gather, gather_optimizer, whole, wrap
from deepcoro.training.step import StepResult, compile_encoder, train_step
from deepcoro.training.teachers import Teachers
from deepcoro.training.throughput import Startup, Throughput, useful_flops

_MAX_BLIND_STEPS = 10


def train_worker(settings: dict[str, Any]) -> None:
    """Train as ``settings`` say: ``config`` (YAML mapping), ``run`` (its folder), ``fingerprint`` (of the dataset),
    ``threads`` (of torch), ``launch`` (a folder of this start: its restarts find there what came before), ``startup``
    (seconds so far, by phase), ``place`` (where the worker stands; without it: a worker of Ray Train)."""
    launch = Path(settings["launch"])
    raise_fatal(launch)
    try:
        with contextlib.closing(Worker(settings)) as worker:
            worker.train()
    except DeepCoroError as error:
        note_fatal(launch, error)
        raise


class _OfRayTrain:
    """A worker of Ray Train; ``place.Place`` says what is asked of it."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.device, self.report = ray.train.torch.get_device(), ray.train.report
        self.rank, self.world = context.get_world_rank(), context.get_world_size()

    def dataset(self) -> Any:
        return ray.train.get_dataset_shard("train")


class Worker:
    """One worker of a run."""

    def __init__(self, settings: dict[str, Any]) -> None:
        started = Path(settings["launch"]) / "started"
        self.startup = Startup({} if started.exists() else settings["startup"])  # a restart has no launcher before it
        self.config, self.run = Config(**settings["config"]), Path(settings["run"])
        self.fingerprint = settings["fingerprint"]
        self.place: Place = settings.get("place") or _OfRayTrain()
        self.device, self.rank, self.world = self.place.device, self.place.rank, self.place.world
        torch.set_num_threads(settings["threads"])
        torch.manual_seed(self.config.seed)
        self.group = control_group()
        self.lock = writer_lock(self.run)
        if self.rank == 0:
            self.lock.acquire(timeout=60)

        config, checkpoint = self.config, newest_checkpoint(self.run)
        self.step = 0
        self.counters = {"blind_steps": 0, "lost_views": 0, "cut_texts": 0, "starts": 0}
        if checkpoint is None:
            self.model = MultitaskModel.from_sources(config)
        else:
            self.model = MultitaskModel.from_architecture(config, checkpoint)
            load_weights(checkpoint, self.model)
        self.model.to(self.device).train()  # a text encoder comes from its source in evaluation mode
        self.teachers = Teachers(config, self.model, self.device)
        if config.training.compile:
            compile_encoder(self.model)
        self.wrapped = wrap(self.model, self.device, config)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.scaler = torch.amp.GradScaler(self.device.type) if config.training.precision == "fp16" else None
        self.mask_ratio = MaskRatio(config)
        if checkpoint is not None:
            state = load_training_state(checkpoint)
            self.step = state["step"]
            self.counters |= state.get("counters", {})
            load_optimizer(self.optimizer, state["optimizer"])
            self.mask_ratio.load_state_dict(state.get("mask_ratio", {}))
            self.teachers.load_state_dict(state.get("teachers", {}))
            if self.scaler is not None and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
        self.counters["starts"] += 1
        self.bad_steps = BadSteps(self.run, config.training.max_bad_steps, self.counters, self.step, self.group)
        self.saved_step = self.step
        self.average: WeightAverage | None = None
        if config.training.ema_decay is not None:
            self.average = WeightAverage(self.model, config.training.ema_decay)
            if checkpoint is not None and (kept := load_average(checkpoint, state)) is not None:
                self.average.load_state_dict(kept)
            elif checkpoint is not None and self.rank == 0:
                note(self.run, f"no average is kept with step {self.step}: training.ema_decay begins with its weights")
        self.loss = MultitaskLoss.from_config(config)
        self.factor_at, self.weights_at = lr_schedule(config), LossWeightScheduler.from_config(config).weights
        self.validation = validation.Validation(config, self.run, self.device, self.group)
        self.board: Board | None = None
        self.awaited: list[int] = []  # steps that tasks beside the workers are validating
        if self.rank == 0:
            started.touch()
            drop_checkpoints_after(self.run, self.step)
            validation.drop_results_after(self.run, self.step)
            describe_model(self.run, self.model, training_plan(config, self.optimizer.param_groups))
            self.board = Board(self.run, self.step + 1)
            validation.post_results(self.board, self.run, config, validation.unposted_steps(self.run))
        self.positions = PositionLog(self.run, self.step, self.group)
        self.throughput = Throughput(self.device, config.training.precision)
        self.startup.lap("model")

    def train(self) -> None:
        """From where the run stands to its last step, or until it is asked to stop."""
        config = self.config
        batches = self.throughput.waiting(iterate(self.place.dataset(), config.micro_batch_size))
        if config.evaluation.asynchronous:
            self._make_up_for_validations()
        while True:
            if validation.is_due(config, self.step):
                self.validate()
            if self.step == config.training.num_steps:
                return
            if stop_requested(self.run, self.group):
                if self.saved_step < self.step:
                    self.save()
                return
            rows = [next(batches) for _ in range(config.training.accumulation_steps)]
            self.startup.lap("first_batch")
            self.take_step(rows)
            self.startup.lap("first_step")
            if self.board is not None and (phases := self.startup.take()):
                self.board.scalars(self.step, phases)
            last = self.step == config.training.num_steps
            every_so_often = self.step % config.training.checkpoint_every == 0
            to_be_best = config.training.best_metric is not None and validation.is_due(config, self.step)
            if last or every_so_often or to_be_best or self._asynchronous(self.step):
                self.save()

    def take_step(self, rows: list[Any]) -> None:
        """One optimizer step on this worker's micro-batches, and what is told of it."""
        config, training = self.config, self.config.training
        check_positions(self.config, self.step, rows, self.rank, self.world)
        note_problems(self.run, rows)
        # Dropout draws from the place in the stream, not from how often the run was started.
        seed = np.random.SeedSequence([config.seed, self.step, self.rank]).generate_state(1)[0]
        torch.manual_seed(int(seed))
        rates = set_learning_rates(self.optimizer, self.factor_at(self.step))
        weights = self.loss.with_parts(self.weights_at(self.step))
        num_visible, shares = self.mask_ratio.num_visible(self.step), self.mask_ratio.is_shared(self.step)
        batches = [to_torch(batch, self.device) for batch in rows]
        if self.step == 0:
            self._start_bias(batches)
        self.teachers.teach(batches, weights)
        self.loss.visible_weight = config.masked_modeling.visible_weight_at(self.step)
        result = train_step(
            self.wrapped,
            self.loss,
            self.optimizer,
            batches,
            weights,
            num_visible,
            training.precision,
            self.scaler,
            config.optim.max_grad_norm,
            shares,
        ).on_host()
        self.step += 1
        told: dict[str, Any] = {"loss_weights": {name: weights[name] for name in result.losses}}
        told |= {"learning_rates": rates, "num_visible": num_visible}
        self.bad_steps.look(self.step, result, rows, told, self.scaler)
        if not result.skipped:
            self.teachers.update(self.step)
            if self.average is not None:
                self.average.update()
        masks = shares or "masked_modeling" in result.losses
        told_of_masks = self.mask_ratio.scalars(num_visible) if masks else {}
        told_of_masks |= self.teachers.look(self.step)
        if not result.skipped and result.valid_share.item() > 0:  # a step that saw nothing has a loss of 0
            self.mask_ratio.look(result.losses)
        for batch in rows:
            self.positions.add(self.step, batch["position"])
        self.counters["lost_views"] += int(result.lost_views.item())
        self._count_cut_texts(int(result.cut_texts.item()))
        self.counters["blind_steps"] = 0 if result.valid_share.item() > 0 else self.counters["blind_steps"] + 1
        if self.counters["blind_steps"] == _MAX_BLIND_STEPS:
            raise TrainingError(
                f"no video could be read in {_MAX_BLIND_STEPS} steps in a row; {self.run}/problems.jsonl says why"
            )
        computed = [name for name, weight in weights.items() if weight > 0]
        flops = None
        if self.board is not None:
            flops = useful_flops(config, self.model, rows, computed, num_visible, shares)
        self.throughput.add(training.batch_size * config.data.num_videos, flops)
        if self.board is not None and (self.step % training.log_every == 0 or self.step == training.num_steps):
            with self.throughput.telling():
                self._log(self.board, result, rates, weights, told_of_masks)
                self.awaited = validation.post_results(self.board, self.run, config, self.awaited)

    def _count_cut_texts(self, number: int) -> None:
        """Count the texts that a step lost the end of, and tell of the first."""
        if number and not self.counters["cut_texts"] and self.rank == 0:
            note(
                self.run,
                f"step {self.step}: {number} texts were longer than data.max_text_length="
                f"{self.config.data.max_text_length} tokens and lost their end; data/cut_texts counts on. Raise it "
                "(and captioning.max_position_embeddings) in a run of another name to train on all of them",
            )
        self.counters["cut_texts"] += number

    def _start_bias(self, batches: list[dict[str, Any]]) -> None:
        """Set the sigmoid's bias by the pairs of the first batch, where the config leaves it to them."""
        part = self.config.contrastive
        if self.config.loss.is_used("contrastive") and (part.loss_type, part.logit_bias) == ("sigmoid", "auto"):
            bias = self.loss.start_bias(batches)
            if bias is not None:
                with torch.no_grad():
                    self.model.logit_bias.fill_(bias)
                if self.average is not None:
                    self.average = WeightAverage(self.model, self.average.decay)

    def save(self) -> None:
        """A checkpoint of this step. Where it cannot be written the run says so and goes on, unless it was the last."""
        self.positions.gather()
        first = self.rank == 0
        weights, optimizer = gather(self.model.state_dict(), first), gather_optimizer(self.optimizer, first)
        average = None
        if self.average is not None:
            kept = self.average.state_dict()
            average = kept | {"weights": gather(kept["weights"], first)}
        if first:
            state = {
                "step": self.step,
                "samples_seen": self.step * self.config.training.batch_size,
                "optimizer": optimizer,
                "scaler": self.scaler.state_dict() if self.scaler is not None else {},
                "counters": self.counters,
                "mask_ratio": self.mask_ratio.state_dict(),
                "teachers": self.teachers.state_dict(),
            }
            try:
                self.positions.write(self.step)
                save_checkpoint(self.run, self.step, self.model, state, self.config, self.fingerprint, average, weights)
            except (SaveError, OSError) as error:
                stays = f"the checkpoint of step {self.saved_step} stays" if self.saved_step else "nothing is saved yet"
                note(self.run, f"{error}. The run goes on; {stays}")
            else:
                self.positions.commit(self.step)
                self.saved_step = self.step
                self._drop_old_checkpoints()
        self.saved_step = from_first(self.saved_step, self.group)
        if self.saved_step < self.step == self.config.training.num_steps:
            raise TrainingError(
                f"the last checkpoint of {self.run} could not be written (problems.jsonl says why); make room, and "
                f"start the run again: it goes on from step {self.saved_step}"
            )

    def _drop_old_checkpoints(self) -> None:
        if self.counters["bad_in_a_row"] > 0:  # the newer ones may have diverged already
            return
        try:
            protected = validation.steps_to_keep(self.run, self.config)
            drop_old_checkpoints(self.run, self.config.training.keep_checkpoints, protected)
        except OSError as error:  # the new one is there; the next save tries again
            note(self.run, f"older checkpoints could not be removed: {error}")

    def validate(self) -> None:
        """Measure the model, or the average of its weights, on the validation patients, once a step, here or in a task
        beside the workers."""
        if from_first(self.step in validation.read_results(self.run), self.group):
            return
        begin, draws = time.perf_counter(), self.config.training.pictures
        metrics: dict[str, float] = {}
        beside = self._asynchronous(self.step)
        if draws or not beside:
            with averaged(self.average), whole(self.model):
                if draws and self.board is not None:
                    self._draw(self.board)
                if not beside:
                    metrics = self.validation.run(self.model)
        if beside:
            self._validate_beside(self.step)
        else:
            if self.board is not None:
                try:
                    seconds, intervals = time.perf_counter() - begin, self.validation.intervals
                    validation.write_result(self.run, self.step, metrics, seconds, self.config, intervals)
                except OSError as error:
                    note(self.run, f"the metrics of step {self.step} could not be kept: {error}")
                validation.post_results(self.board, self.run, self.config, [self.step])
            self.place.report({"step": self.step, **metrics})
        self.throughput.read()  # the time of an evaluation is not training time

    def _draw(self, board: Board) -> None:
        batch = self.validation.batch_to_draw()
        if batch:
            with self.throughput.telling():
                board.pictures(self.step, draw_pictures(self.model, self.config, batch, self.validation.tokenizer))

    def close(self) -> None:
        """Let go of what the run's folder is written with."""
        if self.board is not None:
            self.board.close()
        self.lock.release()

    def _asynchronous(self, step: int) -> bool:
        return self.config.evaluation.asynchronous and validation.is_due(self.config, step)

    def _make_up_for_validations(self) -> None:
        """Have the steps validated whose tasks ended with an earlier start."""
        config, steps = self.config, [0]
        if self.rank == 0:
            results = validation.read_results(self.run)
            saved = [step for step in committed_steps(self.run) if step < self.step and step not in results]
            steps += [step for step in saved if validation.is_due(config, step)]
        for number in range(1, from_first(len(steps), self.group)):
            self._validate_beside(from_first(steps[number] if self.rank == 0 else 0, self.group))

    def _validate_beside(self, step: int) -> None:
        """Have Ray Train start its validation task for a step. Ray wants to copy what it is to validate into a store
        of its own: it gets the number of the step, and the task takes the checkpoint from the run's folder."""
        if self.saved_step < step:  # what could not be saved cannot be measured elsewhere
            ray.train.report({"step": step})
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "step").write_text(str(step))
            checkpoint = ray.train.Checkpoint.from_directory(folder) if self.rank == 0 else None
            task = ray.train.ValidationTaskConfig(fn_kwargs={"step": step}) if self.rank == 0 else False
            ray.train.report({"step": step}, checkpoint=checkpoint, validation=task)
        self.awaited.append(step)

    def _log(
        self,
        board: Board,
        result: StepResult,
        rates: dict[str, float],
        weights: dict[str, float],
        more: dict[str, float],
    ) -> None:
        scalars = {f"loss/{name}": value.item() for name, value in result.losses.items()}
        scalars |= {"loss/total": result.total.item(), "optim/grad_norm": result.grad_norm.item()}
        scalars |= {f"optim/grad_norm/{name}": value.item() for name, value in result.grad_norms.items()}
        scalars |= {f"optim/{name}": self.counters[name] for name in ("bad_steps", "overflows")}
        scalars |= {f"loss_weight/{name}": weights[name] for name in self.config.loss.used}
        scalars |= {f"learning_rate/{component}": rate for component, rate in rates.items()}
        scalars |= {
            "data/valid_share": result.valid_share.item(),
            "data/lost_views": self.counters["lost_views"],
            "data/cut_texts": self.counters["cut_texts"],
            "data/samples_seen": self.step * self.config.training.batch_size,
        }
        if self.config.loss.is_used("contrastive"):
            scalars["contrastive/logit_scale"] = self.model.logit_scale.exp().item()
            scalars["contrastive/logit_bias"] = self.model.logit_bias.item()
        board.scalars(self.step, scalars | more | self.throughput.read())
