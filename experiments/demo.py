"""The platform from end to end on phantoms, at a size for a laptop: about 7 minutes on 2 cores, from nothing to a
table.

    make demo                      or: python -m experiments.demo [section.field=value ...]

640 phantom studies are written as DICOM files, ingested through the DICOM door, and a small multitask model is trained
on 416 of them and measured on 160. Everything runs through the functions that real cines run through; only the sizes
differ.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepcoro.cli import plain_errors, run_experiment
from deepcoro.config import Config
from deepcoro.data.caption_tasks import WORDS
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.models.text_encoder import save_small_text_encoder

if TYPE_CHECKING:
    from data_prep.phantom.preset import Preset

DATA = Path("data/demo")


def experiment() -> Config:
    """A tiny encoder on 8 frames of 96x96, which at 5 frames a second are the whole injection."""
    return Config(
        name="demo",
        data={
            "path": str(DATA / "prepared"),
            "num_frames": 8,
            "frame_size": 96,
            "sample_fps": 5.0,
            "max_text_length": 128,
            "crop_scale": (0.9, 1.0),
            "intensity_jitter": 0.1,
        },
        # One token a place for the whole injection: that contrast came shows inside it, against the still background.
        video_encoder={"width": 128, "depth": 4, "num_heads": 4, "tubelet": (8, 12, 12)},
        text_encoder={"name": str(DATA / "text_encoder")},
        contrastive={"embedding_dim": 128, "logit_bias": -3.0},
        captioning={
            "hidden_size": 128,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 384,
            "max_position_embeddings": 128,
            "max_generation_length": 64,
            "dropout": 0.0,
            "label_smoothing": 0.0,
        },
        masked_modeling={"decoder_hidden_size": 64, "decoder_layers": 1, "decoder_heads": 2},
        optim={
            "lr": 1e-3,
            "text_lr": 1e-3,
            "captioning_lr": 1e-3,
            "mvm_lr": 1e-3,
            "logit_lr": 1e-2,
            "warmup_steps": 30,
        },
        training={
            "num_steps": 700,
            "batch_size": 16,
            "precision": "fp32",
            "checkpoint_every": 200,
            "evaluate_every": None,
        },
    )


def prepare(
    data: Path,
    config: Config,
    num_studies: int,
    seed: int,
    preset: str | Preset = "easy",
) -> None:
    """Phantom DICOM files, the prepared dataset, and a text encoder (``make_text_encoder``) in the folder ``data``.

    What is complete is left as it is.
    """
    from data_prep.dicom.ingest import ingest  # here, so that the experiment alone loads without data_prep
    from data_prep.phantom.generate import write_phantom

    phantom = data / "phantom"
    write_phantom(
        phantom,
        num_studies,
        seed=seed,
        preset=preset,
        size=96,
        num_frames=16,
        fps=10.0,
        num_processes=os.cpu_count() or 1,
        on_progress=say("phantom studies"),
    )
    if not (data / "prepared" / "dataset.json").exists():
        ingest(
            phantom / "dicom",
            data / "prepared",
            reports=phantom / "reports.parquet",
            videos=phantom / "videos.parquet",
            progress=say("DICOM files"),
        )
    make_text_encoder(data, config)


def make_text_encoder(data: Path, config: Config) -> None:
    """A text encoder with a tokenizer of the training reports of ``data/prepared`` (of cines, and of studies where
    those are units) and of the words of the captioning tasks, in ``data/text_encoder``; one that is there is left."""
    if (data / "text_encoder").exists():
        return
    reports = []
    for kind in dict.fromkeys(("video", config.data.unit)):
        units = PreparedDataset.open(str(data / "prepared")).units("train", kind)
        reader = UnitReader(config, units, None, training=False)
        reports += [text for unit in range(len(units)) if (text := reader.text(unit))]
    save_small_text_encoder([*reports, *WORDS], data / "text_encoder", width=96)


def say(what: str) -> Callable[[int, int], None]:
    """What tells of progress every 10 s, and at the end."""
    last = [time.monotonic()]

    def show(done: int, total: int) -> None:
        if done == total or time.monotonic() - last[0] > 10:
            last[0] = time.monotonic()
            print(f"{done} of {total} {what}", file=sys.stderr, flush=True)

    return show


def run_on_phantoms(experiment: Callable[[], Config], data: Path, num_studies: int, doc: str | None) -> None:
    """The command line of an experiment on phantoms: prepare, train, evaluate on test."""

    @click.command(help=doc, context_settings={"max_content_width": 110})
    @click.argument("assignments", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
    @click.option("--num-studies", default=num_studies, show_default=True, type=click.IntRange(min=20))
    @click.option("--seed", default=0, show_default=True, help="Of the phantoms.")
    def main(assignments: tuple[str, ...], num_studies: int, seed: int) -> None:
        from deepcoro.launch.evaluate import evaluate

        with plain_errors():
            prepare(data, experiment(), num_studies, seed)
            run = run_experiment(experiment, assignments)
            evaluate(run, split="test")

    main()


if __name__ == "__main__":
    run_on_phantoms(experiment, DATA, 640, __doc__)
