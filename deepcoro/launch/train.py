"""Config -> a finished run: checks everything a user can get wrong, then hands over to Ray Train."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.train import DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from deepcoro.config import Config
from deepcoro.data.pipeline import training_dataset
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import ConfigError, DataError, DeepCoroError
from deepcoro.launch.going_on import check_going_on
from deepcoro.launch.progress import Progress
from deepcoro.launch.resources import check_resources, set_environment, start_ray, threads_per_worker
from deepcoro.models.text_encoder import load_tokenizer, longest_text
from deepcoro.training.checkpoint import committed_steps, newest_checkpoint
from deepcoro.training.loop import run_tokenizer, train_worker


def train(config: Config) -> Path:
    """Train ``config`` to its last step, from the beginning or from where its run stands, and return the run's folder.

    Raises:
        UserError: the dataset, the config or the machine cannot do it; nothing was started.
    """
    set_environment()
    run = run_folder(config)
    dataset = PreparedDataset.open(config.data.path)
    units = dataset.units("train", config.data.unit, config.data.filter)
    config = resolve(config, dataset, units)
    start_ray()
    check_resources(config, ray.cluster_resources())
    done = committed_steps(run)
    if done:
        config = check_going_on(run / "checkpoints" / str(done[-1]), config, dataset)
    else:
        config = save_tokenizer(config, run)
    run.mkdir(parents=True, exist_ok=True)
    config.save(run / "config.yaml")
    if done and done[-1] >= config.training.num_steps:
        say(f"{run} has all its {done[-1]} steps; nothing to train")
        return run
    say(
        f"{run}: {len(units)} training {config.data.unit}s, step {done[-1] if done else 0} of "
        f"{config.training.num_steps}, "
        f"{config.resources.num_workers} {'GPU' if config.resources.use_gpu else 'CPU'} worker(s)"
    )
    tokenizer = run_tokenizer(config, run)
    units_ref = ray.put(units)

    def stream() -> ray.data.Dataset:
        """Called at the start and again after every failure: it begins where the newest checkpoint ends."""
        checkpoint = newest_checkpoint(run)
        start = int(checkpoint.name) * config.training.batch_size if checkpoint else 0
        return training_dataset(config, units_ref, tokenizer, start)

    options = ray.data.ExecutionOptions(preserve_order=True)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "run": str(run),
            "fingerprint": dataset.card.get("fingerprint", ""),
            "threads": threads_per_worker(config),
        },
        scaling_config=ScalingConfig(
            num_workers=config.resources.num_workers,
            use_gpu=config.resources.use_gpu,
            resources_per_worker=_resources_per_worker(config),
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # ray.train exports an older signature to type checkers
            # Ray's own state is per launch: what a run goes on from is its checkpoints, and those are ours.
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(run / ".ray"),
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=config.training.max_failures),
        ),
        datasets={"train": stream},
        dataset_config=DataConfig(datasets_to_split=["train"], execution_options=options),
    )
    with Progress(run, config):
        try:
            trainer.fit()
        except WorkerGroupError as error:  # what a worker meant for the user is told as such, without Ray's traces
            for failure in error.worker_failures.values():
                if isinstance(failure, DeepCoroError):
                    raise failure from None
            raise
    return run


def run_folder(config: Config) -> Path:
    """``root/name``, absolute.

    Raises:
        ConfigError: the root is a URI.
    """
    if "://" in config.root:
        raise ConfigError(f"root {config.root!r} is a URI; a run's folder must lie on a disk that all workers share")
    return Path(config.root).expanduser().resolve() / config.name


def resolve(config: Config, dataset: PreparedDataset, units: Units) -> Config:
    """Fill what only the data knows: absolute paths, pixel statistics, and whether there is any report to learn
    from."""
    data: dict[str, Any] = {"path": dataset.root if "://" in dataset.root else str(Path(dataset.root).resolve())}
    for key in ("pixel_mean", "pixel_std"):
        if getattr(config.data, key) is None:
            if dataset.card.get(key) is None:
                raise DataError(f"{dataset.root}/dataset.json has no {key}; set data.{key}")
            data[key] = float(dataset.card[key])
    config = config.merge({"data": data})
    folder = Path(config.text_encoder.source).expanduser()
    if folder.is_dir():  # workers stand in another folder than the person at the terminal
        config = config.merge({"text_encoder": {"name": str(folder.resolve())}})
    if config.needs_text and not units.has_text().any():
        if not config.loss.is_used("masked_modeling"):
            raise DataError(
                f"{dataset.root}: no training {config.data.unit} has a report, and masked modelling is off: nothing "
                "to learn"
            )
        say(
            f"WARNING: no training {config.data.unit} of {dataset.root} has a report: the contrastive and captioning "
            "losses are "
            "left out "
            "and masked modelling is trained alone. If there are reports, prepare the dataset again with --reports."
        )
        off = {"contrastive": 0.0, "captioning": 0.0}
        config = config.merge({"loss": {"weights": off, "initial": off, "final": off}})
    return config


def save_tokenizer(config: Config, run: Path) -> Config:
    """Keep the tokenizer with a run that begins, and fill in ``captioning.vocab_size``.

    Raises:
        ConfigError: no tokenizer, or a vocabulary size that is not the tokenizer's.
    """
    if not config.needs_text:
        return config
    loaded = load_tokenizer(config.text_encoder.source)
    tokenizer = ReportTokenizer.from_pretrained(loaded, config.data.max_text_length)
    if config.captioning.vocab_size not in (None, tokenizer.vocab_size):
        raise ConfigError(
            f"captioning.vocab_size is {config.captioning.vocab_size}, and the tokenizer of "
            f"{config.text_encoder.source!r} has "
            f"{tokenizer.vocab_size} tokens; leave it out, or set it to that"
        )
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


def _resources_per_worker(config: Config) -> dict[str, float]:
    wanted = {"CPU": config.resources.cpus_per_worker}
    return wanted | {"GPU": 1} if config.resources.use_gpu else wanted
