"""How much of the disease can be seen at an experiment's size? The same encoder, taught with the answers.

    python -m experiments.visibility EXPERIMENT.py [--num-steps 1500] [section.field=value ...]

Encoder, clips and augmentation are the experiment's, but there is nothing to write: a linear layer on the pooled tokens
tells of each segment of the tree in view whether its disease is significant (cross-entropy). Measured on val: the
AUROC of each segment, whose mean says how much a writer of reports with this encoder could know. Beside it stand the
sizes of the lesions' boxes in pixels, since what takes less than a few pixels is beyond any encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from deepcoro.cli import described, load_experiment, plain_errors
from deepcoro.config import Config
from deepcoro.data.order import Order
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.evaluation.intervals import Interval, statistic_interval
from deepcoro.evaluation.report import Metric, format_table
from deepcoro.evaluation.truth import Truth, known_in_view
from deepcoro.launch.train import resolve
from deepcoro.metrics.findings import significant_segments
from deepcoro.models.backbones import build_video_encoder
from deepcoro.models.layers import AttentionPool
from deepcoro.reports.vocabulary import SEGMENTS
from deepcoro.training.optim import lr_factor


class Batches(Dataset):  # type: ignore[type-arg]
    """Batches of clips [B, T, H, W] with their units: of training the endless stream, else each unit once."""

    def __init__(self, config: Config, units: Units, num_batches: int | None) -> None:
        self.reader = UnitReader(config, units, None, training=num_batches is not None)
        self.order, self.size = Order(len(units), config.seed), config.training.batch_size
        self.number = num_batches or -(-len(units) // self.size)

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, step: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
        positions = np.arange(step * self.size, (step + 1) * self.size)
        if not self.reader.training:
            positions = positions[positions < len(self.reader.units)]
        units = self.order.units(positions) if self.reader.training else positions
        batch = self.reader.read(positions, units)
        return batch["clip"][:, 0], units, batch["valid"][:, 0]


class Probe(nn.Module):
    """The experiment's encoder, attention over its tokens, and a logit for each segment: [B, T, H, W] -> [B, S]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = build_video_encoder(config)
        width = config.video_encoder.width
        self.pool, self.head = AttentionPool(width, config.video_encoder.num_heads), nn.Linear(width, len(SEGMENTS))
        nn.init.constant_(self.head.bias, -2.0)  # most segments are healthy
        assert config.data.pixel_mean is not None and config.data.pixel_std is not None
        self.mean, self.std = config.data.pixel_mean, config.data.pixel_std

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of significant disease."""
        logits: Tensor = self.head(self.pool(self.encoder((clip.float() - self.mean) / self.std)))
        return logits


def train_probe(config: Config, units: Units, num_steps: int) -> Probe:
    """Teach a probe ``num_steps`` batches of training units."""
    there, in_view = (torch.from_numpy(table) for table in disease(Truth.of(units, np.arange(len(units)), config)))
    torch.manual_seed(config.seed)
    probe = Probe(config)
    decay = [p for p in probe.parameters() if p.ndim > 1]
    rest = [p for p in probe.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.optim.lr)
    for step, (clip, rows, valid) in enumerate(_loaded(Batches(config, units, num_steps))):
        for group in optimizer.param_groups:
            group["lr"] = config.optim.lr * lr_factor(step, config.optim.warmup_steps, num_steps, 0.0)
        asked = in_view[rows] & valid[:, None]
        loss = F.binary_cross_entropy_with_logits(probe(clip)[asked], there[rows][asked].float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), config.optim.max_grad_norm)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {num_steps}: cross-entropy {loss.item():.3f}", flush=True)
    return probe


@torch.no_grad()
def measure_probe(probe: Probe, config: Config, units: Units) -> dict[str, Metric]:
    """AUROC of each segment that has both kinds among the rows that show it, and their mean, with intervals over
    patients."""
    probe.eval()
    truth = Truth.of(units, np.arange(len(units)), config)
    there, in_view = disease(truth)
    logits = np.full(there.shape, np.nan)
    for clip, rows, valid in _loaded(Batches(config, units, None)):
        logits[rows[valid]] = probe(clip[valid]).numpy()
    in_view = in_view & ~np.isnan(logits)
    logits = np.nan_to_num(logits)

    def mean_auroc(there: NDArray, in_view: NDArray, logits: NDArray) -> float:
        found = [auroc(there[:, s], in_view[:, s], logits[:, s]) for s in range(len(SEGMENTS))]
        return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")

    def interval(columns: list[NDArray]) -> Interval:
        return statistic_interval(mean_auroc, columns, truth.patients, num_resamples=200)

    metrics = {"segment_auroc": Metric.of(interval([there, in_view, logits]))}
    for place, segment in enumerate(SEGMENTS):
        value = auroc(there[:, place], in_view[:, place], logits[:, place])
        if not np.isnan(value):
            metrics[f"segment_auroc/{segment}"] = Metric(value, baseline=0.5, baseline_name="chance")
    return metrics


def auroc(there: NDArray, in_view: NDArray, logits: NDArray) -> float:
    """Of the rows [B] that show a segment; NaN where all of them are of one kind."""
    shown = in_view.astype(bool)
    if len(set(there[shown].tolist())) < 2:
        return float("nan")
    return float(roc_auc_score(there[shown], logits[shown]))


def disease(truth: Truth) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which segments [B, S] have significant disease, and which are known and in view."""
    return significant_segments(truth.findings), known_in_view(truth)


def lesion_pixels(config: Config, units: Units) -> NDArray[np.float64]:
    """The shorter side, in pixels of the model's clip, of each lesion's middle box: one a lesion and cine. A box has a
    margin around the lesion (in phantoms 1.5 mm a side). Of square videos, which the clip is the whole of."""
    sides: list[float] = []
    for unit in range(len(units)):
        of_segment: dict[str, list[float]] = {}
        for box in units.video_rows(unit)[0]["boxes"] or []:
            side = min(box["x1"] - box["x0"], box["y1"] - box["y0"]) * config.data.frame_size
            of_segment.setdefault(box["segment"], []).append(side)
        sides += [float(np.median(found)) for found in of_segment.values()]
    return np.array(sides)


def _loaded(batches: Batches) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    return iter(DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4))


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("experiment", type=click.Path(path_type=Path))
@click.argument("assignments", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--num-steps", default=1500, show_default=True, type=click.IntRange(min=1))
@click.option("--split", default="val", show_default=True, type=click.Choice(["val", "test"]), help="To measure on.")
def main(experiment: Path, assignments: tuple[str, ...], num_steps: int, split: str) -> None:
    """Teach, measure, print."""
    with plain_errors():
        config = described(load_experiment(experiment), assignments, None)
        dataset = PreparedDataset.open(config.data.path)
        train, held_out = (dataset.units(name, "video", config.data.filter) for name in ("train", split))
        config = resolve(config, dataset, train)
        probe = train_probe(config, train, num_steps)
        print(format_table(measure_probe(probe, config, held_out)))
        if len(sides := lesion_pixels(config, held_out)):
            low, middle, high = np.percentile(sides, (5, 50, 95))
            print(
                f"boxes of lesions, with their margin: half are above {middle:.0f} pixels, 90 % {low:.0f} to {high:.0f}"
            )


if __name__ == "__main__":
    main()
