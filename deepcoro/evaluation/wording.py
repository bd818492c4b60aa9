"""Metrics of how reports are worded: BLEU and ROUGE, beside the most common report and the nearest neighbour.

They tell little of the heart: a report with the wrong artery shares most of its words with the right one. The constant
beside them shows how little.

A *blind* writer, the decoder without its video, writes one text for all rows, and so is a constant too
(``baselines.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepcoro.evaluation.baselines import Baseline, Constants
from deepcoro.evaluation.report import Metric
from deepcoro.evaluation.resampling import ResampledSums
from deepcoro.evaluation.rows import Columns
from deepcoro.metrics.agreement import divide
from deepcoro.metrics.wording import ROUGE, Wordings, bleu

MEANS = ("sentence_bleu", *ROUGE)  # of a value that each row has


def measure_wording(
    true: Sequence[str],
    written: Sequence[str],
    patients: NDArray,
    constants: Constants | None,
    nearest: tuple[str, Sequence[str]] | None,
    num_resamples: int,
) -> tuple[dict[str, Metric], Columns]:
    """Metrics ``captioning/bleu``, ``sentence_bleu`` and ``rouge_...`` of written texts [B], and their values by row.

    ``bleu`` is of all rows together, and in a resample of all of its rows; the others are means over rows.

    Args:
        patients: [B].
        nearest: a name, and the reports [B] that the nearest neighbours lend.
    """
    others = [*([constants.report] if constants is not None else []), *(nearest[1] if nearest is not None else [])]
    wordings = Wordings([*true, *written, *others])

    def of_rows(said: Sequence[str]) -> dict[str, NDArray]:
        statistics = wordings.bleu_statistics(true, said)
        by_sentence = bleu(statistics, effective_order=True)
        return {"bleu": statistics, "sentence_bleu": by_sentence, **wordings.rouge(true, said)}

    def values(said: Sequence[str]) -> dict[str, float]:
        rows = of_rows(said)
        return {"bleu": float(bleu(rows.pop("bleu").sum(axis=0))), **{n: float(v.mean()) for n, v in rows.items()}}

    rows = of_rows(written)
    sums = ResampledSums(rows | {"rows": np.ones(len(true))}, patients, num_resamples=num_resamples)
    intervals = {"bleu": sums.interval(lambda s: bleu(s["bleu"]))}
    intervals |= {name: sums.interval(lambda s, name=name: divide(s[name], s["rows"])) for name in MEANS}  # type: ignore[misc]
    common = {} if constants is None else values([constants.report] * len(true))
    lent = {} if nearest is None else values(nearest[1])
    metrics: dict[str, Metric] = {}
    for name, interval in intervals.items():
        beside = Baseline(common[name], "most common report") if common else None
        metrics[f"captioning/{name}"] = Metric.of(interval, beside)
        if nearest is not None:
            looked_up = Baseline(lent[name], nearest[0])
            metrics[f"captioning/{name}_beside_nearest_neighbour"] = Metric.of(interval, looked_up)
    return metrics, {f"captioning/{name}": rows[name] for name in MEANS}
