"""Chance for grounding: what is reached by answering with the box of another lesion, without a look at the clip.

Letters: D lent lesions, T frames of a clip, A answers, C candidates, h w cells of an attention map.

Lent lesions are those that clips of the training split show. Three answers are made of them, from the ignorant to the
informed: *any* other patient's lesion; one of the same *segment*, in a similar view where the view is known; and the
*best* single frame and box for all of these, for each score another. The last is what can be learnt by heart by
somebody who reads the segment in the question and knows from where a clip was taken, and nothing of this patient's
lesion. It is no upper bound of that: the rest of the sentence is not used (percent, occlusion and the like, which go
with the size of a box), nor what a clip shows besides the lesion, and the view is rounded (``_GRID``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcoro.config import Config
from deepcoro.data.tables import Units
from deepcoro.evaluation.shown import ShownLesion, shown_lesions
from deepcoro.metrics.grounding import HIT, box_iou, chance_pointing, pointing_hits

SCORES = ("box_iou", "hit_rate", "centre_hit_rate")  # what an answer is worth, in this order
ANY, SEGMENT, BEST = "another lesion's box", "another's box of the segment", "best box of the segment"
SIMILAR = 20  # degrees between two directions of view up to which they count as similar
_FEW_SIMILAR = 5  # with fewer lesions in a similar view, those in all views are lent
_MOST_LENT = 100  # to one lesion; chance is a mean over them, which more would hardly move
_MOST_OBSERVED = 40  # boxes of a frame that are tried as the best answer
_SIZES = (0.7, 1.0, 1.3, 1.6, 2.0, 2.5)  # of a frame's median box, tried beside them: larger ones hit middles
_GRID = 10  # degrees to which a view is rounded for the best answer, so that it is found once for many lesions


def score_answers(frames: ArrayLike, boxes: ArrayLike, true: NDArray[np.float64]) -> NDArray[np.float64]:
    """What answers are worth: ``frames`` [A] and ``boxes`` [A, 4], held against the box ``true`` [T, 4] of the frame
    that each names -> [A, 3], the ``SCORES``: intersection over union, whether it is ``HIT`` or more, and whether the
    middle of the answer lies in the true box. On a frame where the lesion has no box (NaN) all three are 0."""
    boxes = np.asarray(boxes, float)
    own = true[np.asarray(frames, int)]
    there = ~np.isnan(own[:, 0])
    scores = np.zeros((len(own), len(SCORES)))
    if there.any():
        answers, own = boxes[there], own[there]
        middle = (answers[:, :2] + answers[:, 2:]) / 2
        iou = box_iou(answers, own)
        inside = ((own[:, :2] <= middle) & (middle <= own[:, 2:])).all(axis=1)
        scores[there] = np.stack([iou, iou >= HIT, inside], axis=1)
    return scores


def boxes_by_frame(lesion: ShownLesion, num_frames: int) -> NDArray[np.float64]:
    """[T, 4]; NaN on a frame without."""
    table = np.full((num_frames, 4), np.nan)
    for frame, box in lesion.boxes.items():
        table[frame] = box
    return table


@dataclass(frozen=True)
class LentBoxes:
    """Lesions whose boxes are lent, in random order.

    Args:
        boxes: [D, T, 4], NaN on a frame without.
        segments, patients: [D] str.
        directions: [D, 3], the direction of view as a vector of length 1; NaN where it is unknown.
    """

    boxes: NDArray[np.float64]
    segments: NDArray[np.str_]
    patients: NDArray[np.str_]
    directions: NDArray[np.float64]
    _best: dict[tuple[object, ...], tuple[NDArray[np.int64], NDArray[np.float64]]] = field(
        default_factory=dict, repr=False, compare=False
    )  # answers that were found

    @classmethod
    def of(cls, units: Units, indices: np.ndarray, config: Config) -> LentBoxes | None:
        """Those of ``indices`` of ``units``; ``None`` where they show none."""
        rows = []
        for unit, patient in zip(indices.tolist(), units.column("patient_id", indices).tolist(), strict=True):
            rows += [(lesion, str(patient)) for lesion in shown_lesions(units, unit, config)]
        if not rows:
            return None
        rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
        boxes = np.stack([boxes_by_frame(lesion, config.data.num_frames) for lesion, _ in rows])
        segments = np.array([lesion.segment for lesion, _ in rows])
        directions = np.stack([_direction(lesion.angles) for lesion, _ in rows])
        return cls(boxes, segments, np.array([patient for _, patient in rows]), directions)

    def lend(self, lesion: ShownLesion, patient: str) -> dict[str, NDArray[np.int64]]:
        """By ``ANY`` and ``SEGMENT``, the rows of other patients' lesions that are lent to ``lesion``.

        Of a segment that no other patient has, any lesion is lent; nothing is where there is no other patient at all.
        """
        others = self.patients != patient
        rows = {ANY: others, SEGMENT: self._alike(lesion.segment, _direction(lesion.angles), others)}
        return {name: np.flatnonzero(taken)[:_MOST_LENT] for name, taken in rows.items()}

    def _alike(self, segment: str, direction: NDArray[np.float64], others: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of ``others`` [D] those of the segment, in a similar view if these are not too few."""
        of_segment = others & (self.segments == segment)
        with np.errstate(invalid="ignore"):  # what is unknown is NaN, and similar to nothing
            similar = of_segment & (self.directions @ direction >= np.cos(np.radians(SIMILAR)))
        alike = similar if similar.sum() >= _FEW_SIMILAR else of_segment
        return alike if alike.any() else others

    def best(self, lesion: ShownLesion, patient: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The best constant answer for all other patients' lesions of the segment (in a view similar to the rounded
        one of ``lesion``), for each of the ``SCORES``: frames [3] and boxes [3, 4]."""
        others = self.patients != patient
        view: tuple[float, float] | None = None
        if lesion.angles is not None:
            primary, secondary = (float(_GRID * round(angle / _GRID)) for angle in lesion.angles)
            view = primary, secondary
        key = (lesion.segment, view, None if others.all() else patient)
        if key not in self._best:
            self._best[key] = _best_answers(self.boxes[self._alike(lesion.segment, _direction(view), others)])
        return self._best[key]

    def answers(self, lesion: ShownLesion, patient: str) -> dict[str, NDArray[np.float64]]:
        """What each kind of chance answer is worth on average: [3], the ``SCORES``. Of a lent lesion each frame that
        shows it is as probable as another. Without any other patient there is no chance answer."""
        true, worth = boxes_by_frame(lesion, self.boxes.shape[1]), {}
        lent = self.lend(lesion, patient)
        if len(lent[ANY]) == 0:
            return {}
        for name, rows in lent.items():
            of, frames = np.nonzero(~np.isnan(self.boxes[rows, :, 0]))
            share = 1 / np.bincount(of)[of] / len(rows)
            worth[name] = share @ score_answers(frames, self.boxes[rows][of, frames], true)
        return worth | {BEST: np.diag(score_answers(*self.best(lesion, patient), true))}

    def pointing(
        self, lesion: ShownLesion, patient: str, attention: NDArray[np.floating], frames_a_step: int
    ) -> dict[str, float]:
        """Share of hits of a lesion's map ``attention`` [t, h, w] in the boxes that lent lesions have on the same
        frames, by ``ANY`` and ``SEGMENT``: what is hit by looking where such lesions lie. A frame on which none of them
        has a box counts as where a random cell hits the lesion's own box."""
        found = {}
        for name, rows in self.lend(lesion, patient).items():
            shares = []
            for frame, own in lesion.boxes.items():
                step, lent = attention[frame // frames_a_step], self.boxes[rows, frame]
                lent = lent[~np.isnan(lent[:, 0])]
                if len(lent):
                    shares.append(float(pointing_hits(np.broadcast_to(step, (len(lent), *step.shape)), lent).mean()))
                else:
                    shares.append(float(chance_pointing([own], *step.shape)[0]))
            if len(rows):
                found[name] = float(np.mean(shares))
        return found


def _best_answers(boxes: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What is worth most as the one answer for the boxes [D, T, 4] of D lesions, for each of the ``SCORES``: frames [3]
    and boxes [3, 4]. On a frame on which a lesion has no box an answer is worth nothing to it, so that only boxes of
    one frame are compared."""
    worth, frames, candidates = [], [], []
    for frame in range(boxes.shape[1]):
        here = boxes[~np.isnan(boxes[:, frame, 0]), frame]
        if len(here):
            tried = _candidates(here)
            pairs = score_answers(np.tile(np.arange(len(here)), len(tried)), tried.repeat(len(here), axis=0), here)
            worth.append(pairs.reshape(len(tried), len(here), len(SCORES)).sum(axis=1))
            frames.append(np.full(len(tried), frame))
            candidates.append(tried)
    first = np.concatenate(worth).argmax(axis=0)
    return np.concatenate(frames)[first], np.concatenate(candidates)[first]


def _candidates(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """[C, 4]: the first of the boxes [D, 4] of a frame, and their median box at several sizes, cut at the edges."""
    median = np.median(boxes, axis=0)
    middle, half = (median[:2] + median[2:]) / 2, (median[2:] - median[:2]) / 2
    resized = [np.concatenate([middle - size * half, middle + size * half]) for size in _SIZES]
    return np.concatenate([boxes[:_MOST_OBSERVED], np.clip(resized, 0, 1)])


def _direction(angles: tuple[float, float] | None) -> NDArray[np.float64]:
    """Primary and secondary angle in degrees -> a vector of length 1."""
    if angles is None:
        return np.full(3, np.nan)
    primary, secondary = np.radians(angles)
    return np.array([np.sin(primary) * np.cos(secondary), np.sin(secondary), np.cos(primary) * np.cos(secondary)])
