"""Triage: a small classifier learns from the cines that have a label what the others are, and says how well it does.

    python -m experiments.triage data/x                                 # coronary_tree: how well could it be filled?
    python -m experiments.triage data/x --fill                          # and fill it where it is missing
    python -m experiments.triage data/x --column acquisition --run runs/first

It trains on the labelled videos of train, takes its temperature from those of val, and is measured on those of test:
patients it has not seen. A value is filled in only where its probability reaches the threshold, and only by a
classifier that is better than always giving the most frequent class. The result is marked in the attributes,
`coronary_tree_source=triage` and `coronary_tree_probability`; nothing is ever trained on it again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import click
import numpy as np

from data_prep.overview.pixels import sample
from data_prep.triage.classifier import Classifier, train_head, train_network
from data_prep.triage.clips import Clips, Shape, read_clips
from data_prep.triage.labels import Labels, fill, read_labels
from deepcoro.cli import plain_errors
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError
from deepcoro.evaluation.intervals import mean_interval, paired_difference
from deepcoro.evaluation.report import Metric, format_table
from deepcoro.inference.load import TrainedModel, load

FEWEST = 8  # videos of a class in train; a class with fewer is not learned
FEWEST_FOR_TEMPERATURE = 20  # labelled videos of val; fewer say nothing about it, and it stays 1
VIDEOS_AT_ONCE = 256  # read and judged together where they are filled


@dataclass(frozen=True)
class Result:
    """The classifier, what it reaches on test, and whether it beats the majority there (95 % interval)."""

    classifier: Classifier
    metrics: dict[str, Metric]
    beats_majority: bool
    about: str


@click.command()
@click.argument("dataset")
@click.option("--column", default="coronary_tree", show_default=True, help="Or acquisition, or an attribute's name.")
@click.option("--run", help="Folder of a trained run: a linear head on its embedding, and no network of its own.")
@click.option("--fill", "fills", is_flag=True, help="Write labels into the dataset where there are none.")
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.9, show_default=True, help="Least probability.")
@click.option("--num-steps", type=click.IntRange(min=1), default=400, show_default=True, help="Batches of 32 clips.")
@click.option("--max-videos", type=click.IntRange(min=1), default=4000, show_default=True, help="Of each split.")
@click.option("--seed", default=0, show_default=True)
def main(
    dataset: str,
    column: str,
    run: str | None,
    fills: bool,
    threshold: float,
    num_steps: int,
    max_videos: int,
    seed: int,
) -> None:
    """Learn a class of cines from those of DATASET that have a label, and say how well.

    It trains on train, takes its temperature from val and is measured on test. With --fill the class is written where
    it is missing and its probability reaches the threshold, marked as what it is; a label is never overwritten. The
    dataset then has a new fingerprint. What was filled in stays when `dicom` runs again.
    """
    with plain_errors():
        opened = PreparedDataset.open(dataset)
        labels = read_labels(opened, column)
        shape, trained = Shape(), None
        if run is not None:
            trained = load(run)
            data = trained.config.data
            shape = Shape(data.num_frames, data.frame_size, data.sample_fps)
        result = learn(opened, labels, shape, trained, threshold, num_steps, max_videos, seed)
        print(result.about)
        print(format_table(result.metrics))
        missing = np.flatnonzero(labels.values == None)  # noqa: E711 - by element
        if not fills:
            print(f"{len(missing):,} videos have no {column} (--fill fills it in)")
            return
        if not result.beats_majority:
            raise DataError(
                f"{dataset}: on test this is not better than always giving the most frequent class (95 % interval): "
                "nothing was filled in; give it more labelled patients"
            )
        found, unreadable = judge(opened, missing, result.classifier, shape, threshold)
        ids = opened.videos["video_id"].take(missing).to_pylist()
        fingerprint = fill(dataset, labels, dict(zip(missing.tolist(), ids, strict=True)), found)
        counted = Counter(value for value, _ in found.values())
        print(
            f"{len(missing):,} videos had no {column}, {len(found):,} were filled in at {threshold} or more: ", end=""
        )
        print(", ".join(f"{name} {number:,}" for name, number in sorted(counted.items())) or "none")
        if unreadable:
            print(f"{len(unreadable):,} of them cannot be read, such as {next(iter(unreadable.values()))}")
        print(f"fingerprint {fingerprint[:12]}")


def learn(
    dataset: PreparedDataset,
    labels: Labels,
    shape: Shape,
    trained: TrainedModel | None,
    threshold: float,
    num_steps: int,
    max_videos: int,
    seed: int,
) -> Result:
    """Train on train, take the temperature on val, measure on test.

    Raises:
        DataError: there are fewer than two classes to learn, or no labelled videos of test.
    """
    splits = dataset.studies["split"].take(dataset.tables.study_of_video).to_numpy(zero_copy_only=False)
    known = labels.values != None  # noqa: E711 - by element
    counts = Counter(labels.values[known & (splits == "train")].tolist())
    classes = tuple(sorted(name for name, number in counts.items() if number >= FEWEST))
    told = ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items())) or "none"
    if len(classes) < 2:
        raise DataError(
            f"{dataset.root}: {labels.column} needs two classes of {FEWEST} labelled videos or more in train; "
            f"it has {told}"
        )
    number_of = {name: number for number, name in enumerate(classes)}
    learnable = known & np.isin(labels.values.astype(str), classes)
    clips: dict[str, Clips] = {}
    truth: dict[str, np.ndarray] = {}
    for split in ("train", "val", "test"):
        rows = np.flatnonzero(learnable & (splits == split))
        rows = np.sort(rows[sample(dataset.videos.take(rows), max_videos)]) if len(rows) else rows
        clips[split] = read_clips(dataset, rows, shape)
        truth[split] = np.array([number_of[value] for value in labels.values[clips[split].rows]], np.int64)
    if len(truth["test"]) == 0:
        raise DataError(f"{dataset.root}: no video of test has a {labels.column} to measure by; label some")
    if trained is not None:
        classifier = train_head(clips["train"].pixels, truth["train"], classes, trained)
    else:
        train = (clips["train"].pixels, truth["train"], classes, shape, num_steps, seed)
        classifier = train_network(*train, progress=_progress(num_steps))
    if len(truth["val"]) >= FEWEST_FOR_TEMPERATURE:
        classifier = classifier.cooled(clips["val"].pixels, truth["val"])
    patients = dataset.studies["patient_id"].take(dataset.tables.study_of_video[clips["test"].rows]).to_numpy()
    metrics, better = measure(classifier, clips["test"].pixels, truth["test"], patients, threshold)
    left_out = sorted(set(counts) - set(classes))
    num_patients = len(set(patients))
    lines = [
        f"{labels.column}: trained on {len(truth['train']):,} labelled videos ({told}), temperature "
        f"{classifier.temperature:.2f} from {len(truth['val']):,} of val, measured on {len(truth['test']):,} videos of "
        f"{num_patients:,} patients of test",
    ]
    if len(truth["val"]) < FEWEST_FOR_TEMPERATURE:
        lines.append("val has too few labelled videos for a temperature: the probabilities may be too sure")
    if left_out:
        lines.append(f"not learned, fewer than {FEWEST} videos in train: {', '.join(left_out)}")
    if number := sum(len(part.unreadable) for part in clips.values()):
        lines.append(f"{number:,} labelled videos cannot be read and were left out")
    if metrics["accuracy"].value == 1:  # then every resample is perfect too, and the interval says too much
        lines.append(f"no mistake: with 95 % confidence {0.05 ** (1 / num_patients):.3f} or more of patients have none")
    return Result(classifier, metrics, better, "\n".join(lines))


def measure(
    classifier: Classifier,
    clips: np.ndarray,
    truth: np.ndarray,
    patients: np.ndarray,
    threshold: float,
) -> tuple[dict[str, Metric], bool]:
    """Accuracy over all and of each class, beside always giving one class: the most frequent of these very clips, the
    strongest answer of that kind. Intervals over patients."""
    probabilities = classifier(clips)
    majority = int(np.bincount(truth).argmax())
    right = (probabilities.argmax(axis=1) == truth).astype(float)
    by_majority = (truth == majority).astype(float)
    name = f"always {classifier.classes[majority]}"

    def metric(rows: np.ndarray) -> Metric:
        found = mean_interval(right[rows], patients[rows])
        return Metric(found.value, found.low, found.high, float(by_majority[rows].mean()), name)

    metrics = {"accuracy": metric(np.ones(len(truth), bool))}
    for number, of in enumerate(classifier.classes):
        if (truth == number).any():
            metrics[f"accuracy, {of} ({int((truth == number).sum()):,})"] = metric(truth == number)
    sure = probabilities.max(axis=1) >= threshold
    share = mean_interval(sure.astype(float), patients)
    metrics[f"share with probability {threshold} or more"] = Metric.of(share)
    if sure.any():
        metrics["accuracy of those"] = metric(sure)
    difference = paired_difference(right, by_majority, patients)
    return metrics, difference.low > 0  # NaN with fewer than two patients, which proves nothing


def judge(
    dataset: PreparedDataset, rows: np.ndarray, classifier: Classifier, shape: Shape, threshold: float
) -> tuple[dict[int, tuple[str, float]], dict[int, str]]:
    """Row -> class and probability, of the rows that are sure enough; and row -> why it could not be read."""
    found: dict[int, tuple[str, float]] = {}
    unreadable: dict[int, str] = {}
    for begin in range(0, len(rows), VIDEOS_AT_ONCE):
        clips = read_clips(dataset, rows[begin : begin + VIDEOS_AT_ONCE], shape)
        unreadable |= clips.unreadable
        for row, chances in zip(clips.rows.tolist(), classifier(clips.pixels), strict=True):
            if chances.max() >= threshold:
                found[row] = (classifier.classes[int(chances.argmax())], float(chances.max()))
        done = min(begin + VIDEOS_AT_ONCE, len(rows))
        _show(f"{done:,} of {len(rows):,} videos judged", last=done == len(rows))
    return found, unreadable


def _progress(num_steps: int) -> Callable[[int, float], None]:
    def show(step: int, loss: float) -> None:
        if step % 20 == 0 or step == num_steps:
            _show(f"step {step} of {num_steps}, loss {loss:.3f}", last=step == num_steps)

    return show


def _show(text: str, last: bool) -> None:
    """One line that is rewritten on a terminal; elsewhere nothing."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="\n" if last else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
