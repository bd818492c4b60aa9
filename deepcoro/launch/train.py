"""Config -> a finished run: checks everything a user can get wrong, then hands over to Ray Train."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.train import (
    ControllerError,
    DataConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
    ValidationConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from deepcoro.config import Config
from deepcoro.data.caption_tasks import check_words
from deepcoro.data.pipeline import training_dataset
from deepcoro.data.schema import UNITS
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import ConfigError, DataError, DeepCoroError, RunStopped
from deepcoro.evaluation.certainty import can_be_sure
from deepcoro.evaluation.units import keep_to_reports
from deepcoro.launch.going_on import check_going_on
from deepcoro.launch.lock import hold
from deepcoro.launch.paths import absolute, absolute_source
from deepcoro.launch.progress import Progress
from deepcoro.launch.resources import check_resources, nodes, set_environment, start_ray, threads_per_worker
from deepcoro.launch.stop import StopRequests
from deepcoro.launch.validate import validation_config
from deepcoro.models.pretrained import resolve_architecture
from deepcoro.models.run_teacher import check_same_words
from deepcoro.models.text_encoder import load_tokenizer, longest_text
from deepcoro.training.board import Board, note
from deepcoro.training.checkpoint import committed_steps, newest_checkpoint, set_damaged_aside
from deepcoro.training.control import raise_fatal
from deepcoro.training.loop import train_worker
from deepcoro.training.place import Alone
from deepcoro.training.validation import post_results, read_results, run_tokenizer, unposted_steps


def train(
    config: Config,
    callbacks: Sequence[UserCallback] = (),
    alone: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train ``config`` to its last step, from the beginning or from where its run stands, and return the run's folder.

    Args:
        callbacks: of Ray Train, which get what the workers report.
        alone: train the only worker in this process, without Ray Train, and call this with what it reports. A worker
            that dies takes the process along.

    Raises:
        UserError: the dataset, the config or the machine cannot do it, or somebody trains this run already; nothing was
            started.
        RunStopped: a signal asked it to stop; it has saved.
        TrainingError: the run cannot go on.
    """
    began = time.perf_counter()
    set_environment()
    run = run_folder(config)
    config = config.merge({"root": str(run.parent), "data": {"path": absolute(config.data.path, "data.path")}})
    dataset = PreparedDataset.open(config.data.path)
    units = dataset.units("train", config.data.unit, config.data.filter)
    config = resolve(config, dataset, units)
    opened = time.perf_counter()
    start_ray()
    check_resources(config, nodes())
    startup = {"data": opened - began, "ray": time.perf_counter() - opened}
    held = time.perf_counter()
    with hold(run):
        config, start = _take_up(config, run, dataset)
        total = config.training.num_steps
        if start >= total and total in read_results(run):
            say(f"{run} has all its {start} steps; nothing to train")
            return run
        say(
            f"{run}: {len(units)} training {UNITS[config.data.unit]}, step {start} of {total}, "
            f"{config.resources.num_workers} {'GPU' if config.resources.use_gpu else 'CPU'} worker(s)"
        )
        if config.training.precision == "bf16" and not config.resources.use_gpu:
            say("WARNING: many CPUs are far slower in bf16 than in fp32; consider training.precision=fp32")
        startup["run"] = time.perf_counter() - held
        with StopRequests(run) as stop, Progress(run, config):
            _fit(config, run, units, dataset.card.get("fingerprint", ""), startup, callbacks, alone)
        if late := unposted_steps(run):  # validated beside the workers, after they had ended
            board = Board(run, total + 1)
            post_results(board, run, config, late)
            board.close()
        reached = committed_steps(run)
        if stop.signal is not None and (not reached or reached[-1] < total):
            at = f"saved at step {reached[-1]} of {total}" if reached else "stopped before its first step"
            raise RunStopped(f"{run} {at}; the same command goes on from there", stop.exit_code)
    return run


def _take_up(config: Config, run: Path, dataset: PreparedDataset) -> tuple[Config, int]:
    """Where a run stands: the config to go on with, and the step of its newest sound checkpoint."""
    for text in set_damaged_aside(run):
        say(f"WARNING: {text}")
        note(run, text)
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        config, start = save_tokenizer(resolve_architecture(config), run), 0
    else:
        config, changed = check_going_on(checkpoint, config, dataset)
        start = int(checkpoint.name)
        if changed:
            say(f"{run} goes on from step {start} with other values than it had:\n" + "\n".join(changed))
    config.save(run / "config.yaml")
    return config, start


def _fit(
    config: Config,
    run: Path,
    units: Units,
    fingerprint: str,
    startup: dict[str, float],
    callbacks: Sequence[UserCallback],
    alone: Callable[[dict[str, Any]], None] | None,
) -> None:
    """Hand over to Ray Train, and raise what a worker meant for the user without Ray's traces; or train here."""
    tokenizer = run_tokenizer(config, run)
    units_ref = ray.put(units)
    launch = run / ".ray" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    launch.mkdir(parents=True)

    def stream() -> ray.data.Dataset:
        """Called at the start and again after every failure: it begins where the newest sound checkpoint ends. What a
        restart would only meet again is raised here: Ray would go on restarting workers for it."""
        raise_fatal(launch)
        for text in set_damaged_aside(run):
            note(run, text)
        checkpoint = newest_checkpoint(run)
        start = int(checkpoint.name) * config.training.batch_size if checkpoint else 0
        return training_dataset(config, units_ref, tokenizer, start)

    settings = {
        "config": config.model_dump(mode="json"),
        "run": str(run),
        "fingerprint": fingerprint,
        "threads": threads_per_worker(config),
        "launch": str(launch),
        "startup": startup | {"since": time.time()},
    }
    options = ray.data.ExecutionOptions(preserve_order=True)
    if alone is not None:
        assert config.resources.num_workers == 1 and not config.evaluation.asynchronous
        rows = stream()
        rows.context.execution_options = options
        train_worker(settings | {"place": Alone(config.resources.use_gpu, lambda: rows, alone)})
        return

    trainer = _Trainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=config.resources.num_workers,
            use_gpu=config.resources.use_gpu,
            resources_per_worker=_resources_per_worker(config),
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # ray.train exports an older signature to type checkers
            # Ray's own state is per launch: what a run goes on from is its checkpoints, and those are ours.
            name=launch.name,
            storage_path=str(launch.parent),
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=config.training.max_failures),
            callbacks=list(callbacks),  # type: ignore[arg-type]  # the older signature again
        ),
        datasets={"train": stream},
        dataset_config=DataConfig(datasets_to_split=["train"], execution_options=options),
        validation_config=_validation_beside(config, run),
    )
    try:
        trainer.fit()
    except ControllerError as error:  # where the stream is made anew after a failure
        if isinstance(error.controller_failure, DeepCoroError):
            raise error.controller_failure from None
        raise
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if isinstance(failure, DeepCoroError):
                raise failure from None
        raise


class _Trainer(TorchTrainer):
    """Ray's own answer to Ctrl-C throws away what was trained since the last checkpoint; ours (``StopRequests``) saves
    first. Should a later Ray call this differently, Ctrl-C is Ray's again, and nothing else changes."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave the signal to ``StopRequests``."""


def run_folder(config: Config) -> Path:
    """``root/name``, absolute.

    Raises:
        ConfigError: the root is a URI.
    """
    if "://" in config.root:
        raise ConfigError(f"root {config.root!r} is a URI; a run's folder must lie on a disk that all workers share")
    return Path(absolute(config.root, "root")) / config.name


def resolve(config: Config, dataset: PreparedDataset, units: Units) -> Config:
    """Fill what only the data knows: absolute paths, pixel statistics, the steps of an epoch, and whether there is any
    report to learn from."""
    data: dict[str, Any] = {"path": absolute(dataset.root, "data.path")}
    for key in ("pixel_mean", "pixel_std"):
        if getattr(config.data, key) is None:
            if dataset.card.get(key) is None:
                raise DataError(f"{dataset.root}/dataset.json has no {key}; set data.{key}")
            data[key] = float(dataset.card[key])
    steps_per_epoch = len(units) / config.training.batch_size
    lengths = config.optim.in_step_counts(config.training.num_steps, steps_per_epoch)
    config = config.merge({"data": data, "optim": lengths})
    config = with_absolute_sources(config)
    if config.data.filter and config.data.unit == "study" and config.level_is_used("study"):
        say(
            f"WARNING: data.filter {config.data.filter!r} leaves videos of a study out, and the study's report still "
            "tells of what they show"
        )
    weighs = config.contrastive.severity_weight > 0 and config.loss.is_used("contrastive")
    if weighs and dataset.studies["findings"].null_count == len(dataset.studies):
        say(
            f"WARNING: contrastive.severity_weight is without effect: no study of {dataset.root} has findings, so that "
            "every row counts the same; `python -m data_prep reports --output` reads them out of reports"
        )
    if config.needs_text and not units.has_text(config.reads_clip_texts_only, config.data.text_needs_report).any():
        looks_only = config.loss.is_used("distillation") and config.distillation.local_views > 0
        if not looks_only and not config.loss.is_used("masked_modeling") and not config.loss.is_used("grounding"):
            raise DataError(
                f"{dataset.root}: no training {config.data.unit} has a report, and masked modelling and grounding are "
                "off: nothing to learn"
            )
        say(
            f"WARNING: no training {config.data.unit} of {dataset.root} has a report: the contrastive and captioning "
            "losses are "
            "left out "
            "and what needs no report is trained alone. If there are reports, prepare the dataset again with --reports."
        )
        off = {"contrastive": 0.0, "captioning": 0.0}
        alone = {"enabled": False, "mask_ratio": None, "unmasked_tail": 0.0}  # there is nothing to share the pass with
        losses = {"weights": off, "initial": off, "final": off}
        config = config.merge({"loss": losses, "shared_pass": alone, "grounding": {"informs_captions": False}})
    if config.loss.is_used("masked_modeling") and not config.measures_reconstruction:
        say(
            f"masked_modeling.target={config.masked_modeling.target} predicts features: reconstruction metrics and "
            "strips, which are of pixels, are left out; loss/masked_modeling and masked_modeling/target_std tell of it"
        )
    if config.loss.is_used("captioning") and config.captioning.tasks.in_use:
        boxed, videos = units.num_with_boxes(told=True), len(units.rows)
        say(
            f"{'' if boxed else 'WARNING: '}{boxed} of {videos} training videos have boxes that captioning.tasks.aref "
            "and gcap can ask for; of the others they are asked for the report"
        )
    if config.loss.is_used("grounding"):
        boxed, videos = units.num_with_boxes(), len(units.rows)
        if not boxed:
            raise DataError(
                f"{dataset.root}: loss.weights.grounding learns from boxes of lesions, and no training video has one; "
                "set it to 0, or add boxes (`python -m data_prep annotations`)"
            )
        say(f"{boxed} of {videos} training videos have boxes that the grounding loss learns from")
    return config


def with_absolute_sources(config: Config) -> Config:
    """``config`` with whole paths of the weights it begins with: workers, and trials, stand in another folder."""
    text, video = config.text_encoder, config.video_encoder
    if Path(text.source).expanduser().is_dir():  # and not a hub's name
        config = config.merge({"text_encoder": {"name": absolute(text.source, "text_encoder.name")}})
    if text.pretrained is not None:
        found = absolute_source(text.pretrained, "text_encoder.pretrained")
        config = config.merge({"text_encoder": {"pretrained": found}})
    for section in ("masked_modeling", "distillation"):
        if (teacher := getattr(config, section).teacher) is not None:
            config = config.merge({section: {"teacher": absolute(teacher, f"{section}.teacher")}})
    if video.pretrained is not None:
        found = absolute_source(video.pretrained, "video_encoder.pretrained")
        # With its other fields, which another value of pretrained alone would take away.
        config = config.merge({"video_encoder": video.model_dump() | {"pretrained": found}})
    return config


def save_tokenizer(config: Config, run: Path) -> Config:
    """Keep the tokenizer with a run that begins, and fill in ``captioning.vocab_size``.

    Raises:
        ConfigError: no tokenizer, a vocabulary size that is not the tokenizer's, or a tokenizer that does not know the
            words of the captioning tasks or of structured reports, or is not that of distillation's teacher.
    """
    if not config.needs_text:
        return config
    loaded = load_tokenizer(config.text_encoder.source)
    check_same_words(config, loaded)
    tokenizer = ReportTokenizer.from_pretrained(loaded, config.data.max_text_length)
    if config.captioning.vocab_size not in (None, tokenizer.vocab_size):
        raise ConfigError(
            f"captioning.vocab_size is {config.captioning.vocab_size}, and the tokenizer of "
            f"{config.text_encoder.source!r} has "
            f"{tokenizer.vocab_size} tokens; leave it out, or set it to that"
        )
    if config.loss.is_used("captioning") and config.captioning.tasks.in_use:
        check_words(tokenizer, config.text_encoder.source)
    if config.loss.is_used("captioning"):
        # Both refuse what could not be written, before anything starts.
        keep_to_reports(tokenizer, config, config.captioning)
        can_be_sure(config, tokenizer, training=True)
    if config.loss.is_used("contrastive"):
        longest = longest_text(config.text_encoder.source)
        if longest is not None and config.data.max_text_length > longest:
            raise ConfigError(
                f"data.max_text_length is {config.data.max_text_length}, and the text encoder "
                f"{config.text_encoder.source!r} takes {longest} tokens at most"
            )
    scratch, folder = run / ".tokenizer", run / "tokenizer"
    for old in (scratch, folder):  # of a start that came no further
        shutil.rmtree(old, ignore_errors=True)
    loaded.save_pretrained(scratch)
    scratch.rename(folder)
    return config.merge({"captioning": {"vocab_size": tokenizer.vocab_size}})


def say(text: str) -> None:
    """A line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def _gpus_per_worker(config: Config) -> float:
    return config.resources.gpus_per_worker if config.resources.use_gpu else 0.0


def _resources_per_worker(config: Config) -> dict[str, float]:
    wanted = {"CPU": config.resources.cpus_per_worker}
    return wanted | {"GPU": _gpus_per_worker(config)} if config.resources.use_gpu else wanted


def _validation_beside(config: Config, run: Path) -> ValidationConfig | None:
    if not config.evaluation.asynchronous:
        return None
    return validation_config(run, config.resources.cpus_per_worker, _gpus_per_worker(config))
