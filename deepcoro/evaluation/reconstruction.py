"""Reconstruction metrics of a split: errors of hidden patches beside the patch mean and interpolation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deepcoro.config import Config
from deepcoro.evaluation.baselines import Baseline, strongest
from deepcoro.evaluation.intervals import mean_interval
from deepcoro.evaluation.report import Metric
from deepcoro.evaluation.rows import Columns


def measure_reconstruction(
    errors_of_rows: Sequence[Mapping[str, float]], patients: np.ndarray, config: Config
) -> tuple[dict[str, Metric], Columns]:
    """Metrics ``masked_modeling/...`` from the errors of each row (``metrics.reconstruction``), and their values by
    row."""
    errors = {name: np.array([row[name] for row in errors_of_rows]) for name in errors_of_rows[0]}
    # The clip is normalised by the deviation of the training split: back to grey levels of 0 to 1.
    scale = ((config.data.pixel_std or 1.0) / 255) ** 2
    columns = {"masked_modeling/mse": errors["normalised"], "masked_modeling/pixel_mse": errors["pixels"] * scale}

    def metric(name: str, baseline: Baseline) -> Metric:
        interval = mean_interval(columns[name], patients, num_resamples=config.evaluation.num_resamples)
        return Metric.of(interval, baseline)

    patch_mean = Baseline(float(errors["patch_mean"].mean()) * scale, "patch mean")
    interpolation = strongest(
        *[
            Baseline(float(errors[name].mean()) * scale, label)
            for name, label in (
                ("interpolation", "interpolation"),
                ("interpolation_same_mean", "interpolation, true mean"),
            )
        ],
        lower_is_better=True,
    )
    normalised_mean = Baseline(float(errors["normalised_patch_mean"].mean()), "patch mean")
    return {
        "masked_modeling/mse": metric("masked_modeling/mse", normalised_mean),
        "masked_modeling/pixel_mse": metric("masked_modeling/pixel_mse", patch_mean),
        "masked_modeling/pixel_mse_beside_interpolation": metric("masked_modeling/pixel_mse", interpolation),
    }, columns
