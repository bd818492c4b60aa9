"""Erasure test: a lesion is drawn, and drawn again without it; does the report lose it, and nothing else?

Letters: N pairs of pictures, S segments (``len(SEGMENTS)``, in that order).

A report that follows the picture names a lesion while it is there and not when it is gone; one that follows habit names
it in both or in neither. ``data_prep.phantom.erase`` draws such pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcoro.metrics.findings import significant_segments
from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import SEGMENTS


@dataclass(frozen=True)
class Erasures:
    """What the two reports of each pair say, each [N].

    Args:
        named: bool, the first report has the lesion.
        kept: bool, the second has it still.
        others_changed: int, other segments in view that one of the two calls diseased and the other does not.
        num_others: int, the segments in view in which nothing was done.
    """

    named: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    others_changed: NDArray[np.int64]
    num_others: NDArray[np.int64]

    # Each pair is (numerator [N], denominator [N]) for ``ratio_interval``; the metric is the ratio of their sums.

    @property
    def erased_terms(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the lesions that were named, the share that is gone from the second report."""
        return (self.named & ~self.kept).astype(np.int64), self.named.astype(np.int64)

    @property
    def invented_terms(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of all pairs, the share whose second report names what is not there."""
        return self.kept.astype(np.int64), np.ones(len(self.kept), dtype=np.int64)

    @property
    def others_terms(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the segments in view in which nothing was done, the share whose disease comes or goes."""
        return self.others_changed, self.num_others


def compare_erased(
    before: Sequence[Iterable[Finding]],
    after: Sequence[Iterable[Finding]],
    segments: Sequence[str],
    in_view: ArrayLike,
) -> Erasures:
    """Compare the reports of pairs of pictures with and without a significant lesion.

    Args:
        before, after: findings [N] of the report of the picture with the lesion, and of the one without.
        segments: [N], where the lesion was.
        in_view: bool [N, S], from ``metrics.findings.segments_in_view`` of the trees that the pictures show.

    Raises:
        ValueError: lengths differ, there are no pairs, or a segment is unknown or not in view.
    """
    if not len(before) == len(after) == len(segments) or len(segments) == 0:
        raise ValueError(
            f"expected findings before and after and a segment of each pair, 1 or more; "
            f"got {len(before)}, {len(after)}, {len(segments)}"
        )
    if unknown := [segment for segment in segments if segment not in SEGMENTS]:
        raise ValueError(f"expected segments of {SEGMENTS}, got {unknown[0]!r}")
    view = np.asarray(in_view, dtype=bool)
    if view.shape != (len(segments), len(SEGMENTS)):
        raise ValueError(f"expected in_view of shape [{len(segments)}, {len(SEGMENTS)}], got {view.shape}")
    first, second = significant_segments(before), significant_segments(after)
    rows, places = np.arange(len(segments)), np.array([SEGMENTS.index(segment) for segment in segments])
    if not view[rows, places].all():
        row = int(np.argmin(view[rows, places]))
        raise ValueError(f"pair {row}: the lesion was in {segments[row]!r}, which is not in view")
    others = view.copy()
    others[rows, places] = False
    changed = (first != second) & others
    return Erasures(first[rows, places], second[rows, places], changed.sum(axis=1), others.sum(axis=1))
