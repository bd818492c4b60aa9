"""Can lesions be seen at an experiment's size at all, apart from where they tend to lie? Windows of cines, told apart.

    python -m experiments.windows EXPERIMENT.py [--num-steps 6000] [--num-cines 4000] [section.field=value ...]

``experiments.visibility`` asks an encoder to find a lesion in a whole cine and to name its segment; that it cannot may
lie in the search, or in the picture. Here nothing is to be searched. A window lies around each lesion, and beside it
one at the same place of another cine in the same view, that has no lesion there. A small convolutional network tells
which is which (half of them are: guessing is right half the time, and where a window lies tells nothing). What it
reaches on the patients of val is a lower bound of what can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from deepcoro.cli import described, load_experiment, plain_errors
from deepcoro.config import Config
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.errors import DataError, UserError
from deepcoro.evaluation.intervals import Interval, statistic_interval
from deepcoro.evaluation.report import Metric, format_table
from deepcoro.launch.train import resolve
from deepcoro.models.conv_stem import ConvStem
from deepcoro.training.optim import lr_factor

SAME_VIEW = 12.0  # degrees that both angles together may differ by
ROWS = 16  # lesions of a step, and as many windows without one
_JITTER = 5.0  # pixels that a window is moved by in training
_WIDTH, _TOKEN = 192, 16  # of the judge's tokens: numbers, and pixels a side


@dataclass(frozen=True)
class Windows:
    """Places of windows in cines: ``cines`` [M] by number, ``x`` and ``y`` [M] of their middles in pixels, and
    ``there`` [M], whether a lesion is."""

    cines: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    there: NDArray[np.bool_]


def read_cines(config: Config, units: Units, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The clips [C, T, H, W] of the cines ``numbers``, as an evaluation reads them."""
    reader, size = UnitReader(config, units, None, training=False), config.data.frame_size
    clips = np.zeros((len(numbers), config.data.num_frames, size, size), np.uint8)
    for start in range(0, len(numbers), ROWS):
        chosen = numbers[start : start + ROWS]
        clips[start : start + len(chosen)] = reader.read(chosen, chosen)["clip"][:, 0]
    return clips


def place_windows(units: Units, numbers: NDArray[np.int64], size: int, seed: int) -> Windows:
    """A window around each lesion of square cines ``numbers`` at ``size`` pixels, and one for each at its place in
    another cine of the same tree and view; lesions for which there is none are left out.

    Raises:
        DataError: no lesion has such a pair.
    """
    rows = [units.video_rows(number)[0] for number in numbers.tolist()]
    angles = np.array([[row["primary_angle"], row["secondary_angle"]] for row in rows], float)
    trees = np.array([str(row["coronary_tree"]) for row in rows])
    patients = np.array([units.study_row(number)["patient_id"] for number in numbers.tolist()])
    lesions = [_lesions(row["boxes"] or [], size) for row in rows]
    rng = np.random.default_rng(seed)
    found: list[tuple[int, float, float, bool]] = []
    for cine, boxes in enumerate(lesions):
        near = (np.abs(angles - angles[cine]).sum(axis=1) <= SAME_VIEW) & (trees == trees[cine])
        others = np.flatnonzero(near & (patients != patients[cine]))
        for left, top, right, bottom in boxes:
            x, y = (left + right) / 2, (top + bottom) / 2
            free = (other for other in rng.permutation(others).tolist() if not _touches(lesions[other], x, y))
            other = next(free, None)
            if other is not None:
                found += [(cine, x, y, True), (other, x, y, False)]
    if not found:
        raise DataError("no lesion has a cine of another patient in the same view beside it: there are too few cines")
    cines, x, y, there = zip(*found, strict=True)
    return Windows(np.array(cines), np.array(x), np.array(y), np.array(there))


def _lesions(boxes: list[dict[str, float]], size: int) -> list[NDArray[np.float64]]:
    """The middle box of each lesion of a cine, in pixels."""
    of_segment: dict[object, list[list[float]]] = {}
    for box in boxes:
        of_segment.setdefault(box["segment"], []).append([box[edge] for edge in ("x0", "y0", "x1", "y1")])
    return [np.median(np.array(found), axis=0) * size for found in of_segment.values()]


def _touches(boxes: list[NDArray[np.float64]], x: float, y: float, margin: float = 8.0) -> bool:
    """Whether a lesion lies within ``margin`` pixels of a place."""
    return any(
        left - margin < x < right + margin and top - margin < y < bottom + margin for left, top, right, bottom in boxes
    )


def cut(clips: NDArray[np.uint8], windows: Windows, chosen: NDArray, side: int, moved: NDArray | None = None) -> Tensor:
    """Windows ``chosen`` [R] of ``clips``, [R, T, side, side] grey levels, each ``moved`` by [R, 2] pixels; at the
    edge of the picture they are pushed inside."""
    size = clips.shape[-1]
    out = np.zeros((len(chosen), clips.shape[1], side, side), np.uint8)
    for row, window in enumerate(chosen.tolist()):
        dx, dy = (0.0, 0.0) if moved is None else moved[row]
        left, top = (
            int(np.clip(middle + shift - side / 2, 0, size - side))
            for middle, shift in ((windows.x[window], dx), (windows.y[window], dy))
        )
        out[row] = clips[windows.cines[window], :, top : top + side, left : left + side]
    return torch.from_numpy(out)


class Judge(nn.Module):
    """Whether a lesion is in a window: the strongest evidence of its tokens. [R, T, side, side] -> logits [R]."""

    def __init__(self, num_frames: int, mean: float, std: float) -> None:
        super().__init__()
        self.stem, self.head = ConvStem((num_frames, _TOKEN, _TOKEN), _WIDTH), nn.Linear(_WIDTH, 1)
        self.mean, self.std = mean, std

    def forward(self, windows: Tensor) -> Tensor:
        """Logits."""
        tokens = self.stem((windows.float() - self.mean) / self.std)
        logits: Tensor = self.head(tokens.amax(dim=1))[:, 0]
        return logits


def teach(config: Config, clips: NDArray[np.uint8], windows: Windows, side: int, num_steps: int) -> Judge:
    """Train a judge on ``num_steps`` batches, half of whose windows have a lesion."""
    assert config.data.pixel_mean is not None and config.data.pixel_std is not None
    torch.manual_seed(config.seed)
    judge = Judge(config.data.num_frames, config.data.pixel_mean, config.data.pixel_std)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.05)
    rng = np.random.default_rng(config.seed)
    kinds = [np.flatnonzero(windows.there), np.flatnonzero(~windows.there)]
    wanted, losses = torch.cat([torch.ones(ROWS), torch.zeros(ROWS)]), []
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * lr_factor(step, min(50, num_steps // 10), num_steps, 0.0)
        chosen = np.concatenate([rng.choice(kind, ROWS) for kind in kinds])
        batch = cut(clips, windows, chosen, side, rng.uniform(-_JITTER, _JITTER, (len(chosen), 2)))
        loss = F.binary_cross_entropy_with_logits(judge(batch), wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 500 == 0:
            print(f"step {step + 1} of {num_steps}: cross-entropy {np.mean(losses[-500:]):.3f}", flush=True)
    return judge


@torch.no_grad()
def measure(judge: Judge, clips: NDArray[np.uint8], windows: Windows, side: int, patients: NDArray) -> Interval:
    """AUROC over all windows, with an interval over ``patients`` [M], those of the windows' cines."""
    judge.eval()
    everything = np.arange(len(windows.there))
    parts = np.array_split(everything, -(-len(everything) // 128))
    logits = torch.cat([judge(cut(clips, windows, part, side)) for part in parts]).numpy()
    return statistic_interval(
        lambda there, value: float(roc_auc_score(there, value)) if 0 < there.sum() < len(there) else float("nan"),
        [windows.there, logits],
        patients,
        num_resamples=1000,
    )


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("experiment", type=click.Path(path_type=Path))
@click.argument("assignments", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--num-steps", default=6000, show_default=True, type=click.IntRange(min=1))
@click.option("--num-cines", default=4000, show_default=True, type=click.IntRange(min=2), help="For training.")
@click.option("--side", default=48, show_default=True, type=click.IntRange(min=16), help="Of a window, pixels.")
@click.option("--split", default="val", show_default=True, type=click.Choice(["val", "test"]), help="To measure on.")
def main(experiment: Path, assignments: tuple[str, ...], num_steps: int, num_cines: int, side: int, split: str) -> None:
    """Cut, teach, measure, print."""
    with plain_errors():
        config = described(load_experiment(experiment), assignments, None)
        dataset = PreparedDataset.open(config.data.path)
        train, held_out = (dataset.units(name, "video", config.data.filter) for name in ("train", split))
        config = resolve(config, dataset, train)
        size, seed = config.data.frame_size, config.seed
        numbers = np.random.default_rng(seed).permutation(len(train))[:num_cines]
        if side % _TOKEN:
            raise UserError(f"--side must be a multiple of {_TOKEN} pixels, got {side}")
        windows = place_windows(train, numbers, size, seed)
        judge = teach(config, read_cines(config, train, numbers), windows, side, num_steps)
        everything = np.arange(len(held_out))
        shown = place_windows(held_out, everything, size, seed)
        patients = held_out.column("patient_id")[shown.cines]
        auroc = measure(judge, read_cines(config, held_out, everything), shown, side, patients)
        print(f"{windows.there.sum()} lesions to learn from, {shown.there.sum()} of {split} to tell")
        print(format_table({"window_auroc": Metric(auroc.value, auroc.low, auroc.high, 0.5, "chance")}))


if __name__ == "__main__":
    main()
