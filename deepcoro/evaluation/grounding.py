"""Grounding metrics of a split: does the model find a lesion where it is, beside answers that never look at the clip.

What counts is a lesion in a clip (``shown_lesions``): once for each clip that shows it.

- ``box_iou``, ``hit_rate``, ``centre_hit_rate``: it is asked for by its true sentence (``ARef:``), and the answer names
  a frame and a box. The true box is the one that the lesion has on that frame. Intersection over union of the two;
  whether it is 0.5 or more; whether the middle of the answer lies in the true box, which can be reached where a lesion
  is a few pixels large. On a frame on which the lesion has no box an answer is a miss (0), and so is one that cannot
  be read, or names a frame that the clip does not have (``unreadable``, their share).
- ``pointing``: where the cross-attention lies at the words that name the lesion in the true report (``Looked``), by the
  pointing game: is its largest value in the box? A lesion moves, so that each frame with a box asks it of the map of
  the tokens that hold that frame, and the value is the mean over these frames. Where tokens span the whole clip it is
  one map against the box of each frame. Lesions whose words the report does not have are left out. A box that holds
  no cell's middle cannot be hit at this size of map: ``pointing_reachable`` is the share of a lesion's frames whose box
  can, and so the most that ``pointing`` can be.

Baselines (``lent_boxes``), of which the strongest on these very lesions stands beside a metric: another lesion's box;
another's box of the same segment in a similar view; the best single one of these boxes. For ``pointing`` the map is
held against the boxes of others instead, or a cell is drawn at random. ``NAME_above_chance`` is the paired difference
to the strongest: an interval above 0 is more than chance. ``NAME_beside_another_lesion`` has the ignorant one.

Values by row are means over a unit's lesions, of which there are ``grounding/lesions`` (those asked for) and
``grounding/pointed_lesions``; a metric is the mean over lesions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepcoro.config import Config
from deepcoro.data.tables import Units
from deepcoro.evaluation.baselines import Baseline, strongest
from deepcoro.evaluation.intervals import Interval, mean_interval, paired_difference
from deepcoro.evaluation.lent_boxes import ANY, SCORES, LentBoxes, boxes_by_frame, score_answers
from deepcoro.evaluation.report import Metric
from deepcoro.evaluation.rows import Columns
from deepcoro.evaluation.shown import ShownLesion, shown_lesions
from deepcoro.metrics.grounding import chance_pointing, pointing_hits

if TYPE_CHECKING:  # it loads torch, and the names below are wanted without
    from deepcoro.evaluation.looking import Looked

RANDOM_CELL = "a random cell"
REACHABLE = "pointing_reachable"
LESIONS, POINTED = "grounding/lesions", "grounding/pointed_lesions"


class _Table:
    """What lesions are worth and what chance answers to them are, lesion by lesion; NaN: no such chance answer."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.values: list[dict[str, float]] = []
        self.chances: list[dict[str, dict[str, float]]] = []  # by metric, by kind

    def add(self, row: int, values: dict[str, float], chances: dict[str, dict[str, float]]) -> None:
        self.rows.append(row)
        self.values.append(values)
        self.chances.append(chances)

    def column(self, name: str) -> NDArray[np.float64]:
        return np.array([values[name] for values in self.values])

    def chance(self, name: str) -> dict[str, NDArray[np.float64]]:
        """By kind, of those that every lesion has."""
        kinds = [kind for kind in self.chances[0][name] if all(kind in chances[name] for chances in self.chances)]
        return {kind: np.array([chances[name][kind] for chances in self.chances]) for kind in kinds}


def measure_grounding(
    found: Sequence[Sequence[Looked]],
    units: Units,
    indices: np.ndarray,
    lent: LentBoxes | None,
    config: Config,
) -> tuple[dict[str, Metric], Columns]:
    """Metrics ``grounding/...`` and their values by row.

    Args:
        found: of each row, what ``look_for`` found; a row may have nothing.
        indices: [rows], the unit of each.
        lent: from the training split; ``None``: from these very rows.

    Raises:
        ValueError: a record tells of a lesion that its unit does not show.
    """
    patients = units.column("patient_id", indices)
    if lent is None:
        lent = LentBoxes.of(units, indices, config)
    boxes, maps = _Table(), _Table()
    for row, (unit, looked) in enumerate(zip(indices.tolist(), found, strict=True)):
        shown = {(lesion.view, lesion.segment): lesion for lesion in shown_lesions(units, unit, config)}
        for one in looked:
            lesion = shown.get((one.view, one.segment))
            if lesion is None:
                raise ValueError(f"unit {unit} shows no lesion of {one.segment!r} in its clip {one.view}")
            patient = str(patients[row])
            if one.asked:
                boxes.add(row, *_worth_of_answer(one, lesion, patient, lent, config))
            if one.attention is not None:
                maps.add(row, *_worth_of_map(one.attention, lesion, patient, lent, config))
    metrics: dict[str, Metric] = {}
    columns: Columns = {}
    for table, names, count in ((boxes, SCORES, LESIONS), (maps, ("pointing", REACHABLE), POINTED)):
        if not table.rows:
            continue
        rows = np.array(table.rows)
        number = np.bincount(rows, minlength=len(found))
        metrics[count] = Metric(float(len(rows)))
        columns[count] = np.where(number > 0, number, np.nan)
        for name in names:
            metrics |= _metrics(name, table, patients[rows], config.evaluation.num_resamples)
            total = np.bincount(rows, weights=table.column(name), minlength=len(found))
            columns[f"grounding/{name}"] = total / columns[count]
    if boxes.rows:
        unreadable = boxes.column("unreadable")
        of_row = patients[np.array(boxes.rows)]
        interval = mean_interval(unreadable, of_row, num_resamples=config.evaluation.num_resamples)
        metrics["grounding/unreadable"] = Metric.of(interval)
    return metrics, columns


def _worth_of_answer(
    one: Looked, lesion: ShownLesion, patient: str, lent: LentBoxes | None, config: Config
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    worth = np.zeros(len(SCORES))
    if one.answer is not None:
        frame, box = one.answer
        worth = score_answers([frame], [box], boxes_by_frame(lesion, config.data.num_frames))[0]
    values = dict(zip(SCORES, worth.tolist(), strict=True)) | {"unreadable": float(one.answer is None)}
    chances = {} if lent is None else lent.answers(lesion, patient)
    return values, {
        name: {kind: float(of_kind[place]) for kind, of_kind in chances.items()} for place, name in enumerate(SCORES)
    }


def _worth_of_map(
    attention: NDArray[np.float32], lesion: ShownLesion, patient: str, lent: LentBoxes | None, config: Config
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    frames, own = [*lesion.boxes], [*lesion.boxes.values()]
    frames_a_step, height, width = config.tubelet[0], *attention.shape[1:]
    hits = pointing_hits(attention[[frame // frames_a_step for frame in frames]], own)
    inside = chance_pointing(own, height, width)
    chances = {RANDOM_CELL: float(inside.mean())}
    if lent is not None:
        chances |= lent.pointing(lesion, patient, attention, frames_a_step)
    return {"pointing": float(hits.mean()), REACHABLE: float((inside > 0).mean())}, {"pointing": chances, REACHABLE: {}}


def _metrics(name: str, table: _Table, patients: np.ndarray, num_resamples: int) -> dict[str, Metric]:
    values, chances = table.column(name), table.chance(name)
    interval: Interval = mean_interval(values, patients, num_resamples=num_resamples)
    full = f"grounding/{name}"
    if not chances:
        return {full: Metric.of(interval)}
    baselines = {kind: Baseline(float(of_kind.mean()), kind) for kind, of_kind in chances.items()}
    beside = strongest(*baselines.values())
    above = paired_difference(values, chances[beside.name], patients, num_resamples=num_resamples)
    metrics = {
        full: Metric.of(interval, beside),
        f"{full}_above_chance": Metric.of(above, Baseline(0.0, beside.name)),
    }
    if ANY in baselines:
        metrics[f"{full}_beside_another_lesion"] = Metric.of(interval, baselines[ANY])
    return metrics
