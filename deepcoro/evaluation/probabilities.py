"""Metrics of how sure a model is of significant disease: AUROC, Brier score, calibration, with intervals.

Letters: B rows, S segments, C patients, r resamples of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepcoro.evaluation.baselines import Baseline, Constants
from deepcoro.evaluation.intervals import Interval, draws, enough, interval_of_resamples, mean_interval, patient_codes
from deepcoro.evaluation.report import Metric
from deepcoro.evaluation.resampling import ResampledSums, times_drawn
from deepcoro.evaluation.truth import Truth
from deepcoro.metrics.agreement import divide
from deepcoro.metrics.findings import segments_in_view, significant_segments
from deepcoro.metrics.probabilities import (
    auroc,
    brier_terms,
    calibration_error,
    calibration_terms,
    checked_probabilities,
    segment_auroc,
)
from deepcoro.reports.vocabulary import SEGMENTS

_BLOCK = 2**20  # weights held at once, 8 MB


def measure_probabilities(
    probabilities: Sequence[NDArray[np.float64] | None] | NDArray[np.float64],
    truth: Truth,
    constants: Constants | None,
    num_resamples: int,
) -> dict[str, Metric]:
    """Metrics ``captioning/segment_...`` of ``probabilities`` [B, S] that a segment has significant disease.

    A row may have ``None``, where the model wrote nothing that it could be asked about: it counts in none of them but
    ``captioning/segment_probabilities_share``, the share of rows that have probabilities.

    A segment counts in the rows that show it and whose findings are known. Segments in which all are healthy, or all
    diseased, have no AUROC and are no part of the mean over segments; ``captioning/segment_auroc_segments`` says how
    many are. In a resample the mean
    is over those that have one there. A segment with fewer than 5 patients who have it, or who have it not, has no
    interval.

    The calibration error is larger than it would be of endless rows, as chance moves every bin; its interval says how
    far it would move with as many other patients.

    Raises:
        ValueError: shapes do not fit, or a probability is not in 0 to 1.
    """
    known = np.array([row is not None for row in probabilities])
    share = mean_interval(known.astype(float), truth.patients, num_resamples=num_resamples)
    known &= truth.known
    metrics = {"captioning/segment_probabilities_share": Metric.of(share)}
    if not known.any():
        return metrics
    truth = truth.take(np.flatnonzero(known))
    claimed = [np.asarray(probabilities[row], dtype=float) for row in np.flatnonzero(known).tolist()]
    true, view = significant_segments(truth.findings), segments_in_view(truth.trees, truth.dominances)
    p, true, view = checked_probabilities(claimed, true, view)
    metrics |= _areas(p, true, view, truth.patients, num_resamples)

    columns = dict(zip(("error", "cells"), brier_terms(p, true, view), strict=True))
    columns |= dict(zip(("difference", "number"), calibration_terms(p, true, view), strict=True))
    sums = ResampledSums(columns, truth.patients, num_resamples=num_resamples)
    brier = sums.interval(lambda s: divide(s["error"], s["cells"]))
    calibration = sums.interval(lambda s: calibration_error(s["difference"], s["number"]), centred=True)
    of_brier = of_calibration = None
    if constants is not None and constants.prevalence is not None:
        always, name = np.broadcast_to(constants.prevalence, p.shape), "share of the training rows"
        error, cells = brier_terms(always, true, view)
        of_brier = Baseline(float(error.sum() / cells.sum()), name)
        terms = calibration_terms(always, true, view)
        of_calibration = Baseline(float(calibration_error(*(term.sum(axis=0) for term in terms))), name)
    metrics["captioning/segment_brier"] = Metric.of(brier, of_brier)
    metrics["captioning/segment_ece"] = Metric.of(calibration, of_calibration)
    return metrics


def _areas(
    p: NDArray[np.float64], true: NDArray[np.bool_], view: NDArray[np.bool_], patients: np.ndarray, num_resamples: int
) -> dict[str, Metric]:
    values = segment_auroc(p, true, view)
    known = np.flatnonzero(~np.isnan(values))
    metrics = {"captioning/segment_auroc_segments": Metric(float(len(known)))}
    if len(known) == 0:
        return metrics
    codes, num_patients = patient_codes(patients)
    shown = [np.flatnonzero(view[:, s]) for s in known]
    blocks = []
    most = max(1, _BLOCK // len(p))  # resamples at once: weights are of rows here, and patients may have many
    for all_drawn in draws(num_patients, num_resamples, 0):
        for start in range(0, len(all_drawn), most):
            of_patient = np.ascontiguousarray(times_drawn(all_drawn[start : start + most], num_patients).T)  # [C, r]
            blocks.append(
                [
                    auroc(p[rows, s], true[rows, s], of_patient[codes[rows]])
                    for rows, s in zip(shown, known, strict=True)
                ]
            )
    resampled = np.concatenate([np.stack(block, axis=-1) for block in blocks])  # [R, known]
    chance = Baseline(0.5, "chance")
    there = ~np.isnan(resampled)
    means = divide(np.where(there, resampled, 0).sum(axis=1), there.sum(axis=1))
    macro = interval_of_resamples(float(values[known].mean()), means, num_patients, 0.95)
    metrics["captioning/segment_auroc"] = Metric.of(macro, chance)
    for place, segment in enumerate(known):
        interval = interval_of_resamples(float(values[segment]), resampled[:, place], num_patients, 0.95)
        of_segment = true[shown[place], segment]
        if not all(enough(patients[shown[place]], side) for side in (of_segment, ~of_segment)):
            interval = Interval(interval.value, np.nan, np.nan)
        metrics[f"captioning/segment_auroc/{SEGMENTS[segment]}"] = Metric.of(interval, chance)
    return metrics
