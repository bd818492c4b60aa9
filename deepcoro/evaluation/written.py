"""Metrics of what written reports say of the arteries: by sign, by segment, by percent and grade, by report.

Letters: B rows, S segments (``len(SEGMENTS)``, in that order).

Beside each stands the strongest constant of its kind: *always said* claims a sign in every segment in view, *the
same n segments* are those that pay most on training rows, and from those are also the *most common report*, the *most
frequent segment*, the *median of each segment*, the *same grades* and the dominance. A *blind* writer, the decoder
without its video, writes one text for all, and so is a constant too (``baselines.py``). The nearest neighbour has
metrics of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcoro.evaluation.baselines import Baseline, Constants, strongest
from deepcoro.evaluation.intervals import Interval, enough
from deepcoro.evaluation.report import Metric
from deepcoro.evaluation.resampling import ResampledSums, Sums, sums_over_rows
from deepcoro.evaluation.row_metrics import SEEN_SIGNS, THRESHOLDS, kappa_columns
from deepcoro.evaluation.rows import Columns
from deepcoro.evaluation.said import Said, compare_rows, compare_signs, parse_all, said_in, said_truly
from deepcoro.evaluation.truth import Truth
from deepcoro.metrics.agreement import SCORES, divide, macro, weighted_kappa
from deepcoro.metrics.lesions import grade_confusion, grades
from deepcoro.reports.texts import ReadText
from deepcoro.reports.vocabulary import SEGMENTS

Statistic = Callable[[Sums], ArrayLike]
_PARTS = ("hits", "false", "missed")


def _micro(score: str, sign: str) -> Statistic:
    return lambda sums: SCORES[score](*(sums[f"{sign}/{part}"].sum(axis=-1) for part in _PARTS))


def _macro(score: str, sign: str) -> Statistic:
    return lambda sums: macro(score, *(sums[f"{sign}/{part}"] for part in _PARTS))


def _of_segment(score: str, sign: str, segment: str) -> Statistic:
    place = SEGMENTS.index(segment)
    return lambda sums: SCORES[score](*(sums[f"{sign}/{part}"][..., place] for part in _PARTS))


def _share(above: str, below: str) -> Statistic:
    return lambda sums: divide(sums[above], sums[below])


_F1 = {f"{sign}_f1": sign for sign in SEEN_SIGNS}
_OTHERS = {  # of signs, name -> (sign, statistic)
    **{f"{sign}_{score}": (sign, _micro(score, sign)) for sign in THRESHOLDS for score in ("precision", "recall")},
    **{f"{sign}_macro_{score}": (sign, _macro(score, sign)) for sign in ("finding", *THRESHOLDS) for score in SCORES},
}
_OF_REPORTS: dict[str, Statistic] = {
    "stenosis_told": _share("percent/told", "percent/asked"),
    "stenosis_mae": _share("percent/error", "percent/number"),
    "stenosis_mae_lesions": _share("lesions/error", "lesions/number"),
    "grade_kappa": lambda sums: weighted_kappa(sums["grades"]),
    "hallucinated_findings": _share("hallucinated", "rows"),
    "missed_findings": _share("missed", "rows"),
}
# What is significant differs from 70 % in the left main alone, so only that segment stands there by itself.
_SEGMENTS_OF = {"finding": SEGMENTS, "stenosis_50": SEGMENTS, "stenosis_70": ("left_main",)}


def measure_written(
    parsed: Sequence[ReadText],
    truth: Truth,
    in_view: NDArray[np.bool_],
    constants: Constants | None,
    nearest: tuple[str, Sequence[str]] | None,
    num_resamples: int,
    whole: bool = True,
) -> tuple[dict[str, Metric], Columns]:
    """Metrics ``captioning/...`` of reports written of the rows of ``truth``, and their values by row.

    A metric that has no value is left out, and so is one of a sign or segment that nobody has: no claim could be right.

    Args:
        parsed: [B], the generated reports as read.
        in_view: bool [B, S], from ``segments_in_view``.
        nearest: a name, and the reports [B] that the nearest neighbours lend.
        whole: a generated text may be a true one word for word; one put together of several, as of a study's clips,
            never says the dominance, and is not asked for it.
    """
    true = said_truly(truth)
    rows = compare_rows(true, said_in(parsed, truth), in_view)
    sums = ResampledSums(rows, truth.patients, num_resamples=num_resamples)
    always = _always(true, in_view)
    constant = _Constant(constants, true, truth, in_view)
    somebody_has = {sign for sign in true.signs if always[f"{sign}/hits"].any()}
    patients_with = {  # by sign, and by sign and segment
        sign: [enough(truth.patients, column) for column in [*table.T, table.any(axis=1)]]
        for sign in true.signs
        for table in [true.signs[sign] & in_view]
    }
    lesions = in_view & (np.nan_to_num(true.percent) > 0)
    metrics: dict[str, Metric] = {}

    def add(
        name: str, statistic: Statistic, *baselines: Baseline, lower_is_better: bool = False, many: bool = True
    ) -> None:
        interval = sums.interval(statistic)
        if not many:
            interval = Interval(interval.value, np.nan, np.nan)
        known = [baseline for baseline in baselines if not np.isnan(baseline.value)]
        beside = strongest(*known, lower_is_better=lower_is_better) if known else None
        if not np.isnan(interval.value):
            metrics[f"captioning/{name}"] = Metric.of(interval, beside)

    def add_f1(name: str, sign: str) -> None:
        statistic, many = _micro("f1", sign), patients_with[sign][-1]
        add(name, statistic, _always_said(statistic, always), *constant.of_sign(sign, statistic), many=many)

    for name, sign in _F1.items():
        if sign in somebody_has:
            add_f1(name, sign)
    for name, (sign, statistic) in _OTHERS.items():
        if sign in somebody_has:
            beside = (_always_said(statistic, always), *constant.of_sign(sign, statistic))
            add(name, statistic, *beside, many=patients_with[sign][-1])
    for name, statistic in _OF_REPORTS.items():
        many = name != "stenosis_mae_lesions" or enough(truth.patients, lesions.any(axis=1))
        lower_is_better = name not in ("grade_kappa", "stenosis_told")
        add(name, statistic, *constant.of_report(name, statistic), lower_is_better=lower_is_better, many=many)
    if whole:
        add("dominance_accuracy", _share("dominance/right", "dominance/asked"), *constant.dominance())
    if nearest is not None:
        lent = sums_over_rows(compare_rows(true, said_in(parse_all(nearest[1]), truth), in_view))
        of_signs = {name: (sign, _micro("f1", sign)) for name, sign in _F1.items()} | _OTHERS
        beside_it = {name: (patients_with[sign][-1], s) for name, (sign, s) in of_signs.items() if sign in somebody_has}
        for name, (many, statistic) in (beside_it | {name: (True, s) for name, s in _OF_REPORTS.items()}).items():
            looked_up = Baseline(float(np.asarray(statistic(lent))), nearest[0])
            add(f"{name}_beside_nearest_neighbour", statistic, looked_up, many=many)
    if "ifr" in somebody_has:
        add_f1("not_visible/ifr_f1", "ifr")
    for sign, segments in _SEGMENTS_OF.items():
        for segment in segments:
            place = SEGMENTS.index(segment)
            if always[f"{sign}/hits"][place] > 0:
                for score in SCORES:
                    statistic = _of_segment(score, sign, segment)
                    beside = (_always_said(statistic, always),)
                    add(f"{sign}_{score}/{segment}", statistic, *beside, many=patients_with[sign][place])
    return metrics, _by_row(rows, in_view, somebody_has, whole)


def _always(true: Said, in_view: NDArray[np.bool_]) -> Sums:
    """Sums of a writer who claims every sign in every segment in view."""
    everything = np.ones(len(SEGMENTS), dtype=bool)
    return sums_over_rows(compare_signs(true.signs, dict.fromkeys(true.signs, everything), in_view))


def _always_said(statistic: Statistic, always: Sums) -> Baseline:
    return Baseline(float(np.asarray(statistic(always))), "always said")


class _Constant:
    """What the constants reach on rows; nothing where there are none."""

    def __init__(self, constants: Constants | None, true: Said, truth: Truth, in_view: NDArray[np.bool_]) -> None:
        self._constants, self._true, self._in_view = constants, true, in_view
        if constants is not None:
            common = said_in(parse_all([constants.report] * len(in_view)), truth)
            self._common = sums_over_rows(compare_rows(true, common, in_view))

    def of_sign(self, sign: str, statistic: Statistic) -> list[Baseline]:
        """A statistic of the claims of a sign."""
        if self._constants is None:
            return []
        baselines = [Baseline(float(np.asarray(statistic(self._common))), "most common report")]
        if sign in self._constants.signs:
            chosen = self._constants.signs[sign]
            named = {f"always the same {int(chosen.sum())} segments": chosen}
            for name, table in (named | {"the most frequent segment": self._constants.often[sign]}).items():
                sums = sums_over_rows(compare_signs({sign: self._true.signs[sign]}, {sign: table}, self._in_view))
                baselines.append(Baseline(float(np.asarray(statistic(sums))), name))
        return baselines

    def of_report(self, name: str, statistic: Statistic) -> list[Baseline]:
        """A metric of ``_OF_REPORTS``."""
        if self._constants is None:
            return []
        baselines = [Baseline(float(np.asarray(statistic(self._common))), "most common report")]
        true = np.where(self._in_view, self._true.percent, np.nan)
        known = self._constants
        if name == "grade_kappa" and known.grades is not None:
            confusion = grade_confusion(grades(true), np.broadcast_to(known.grades, true.shape)).sum(axis=0)
            baselines.append(Baseline(float(weighted_kappa(confusion)), "always the same grades"))
        medians = {"stenosis_mae": known.percents, "stenosis_mae_lesions": known.lesion_percents}.get(name)
        if medians is not None:
            errors = np.abs(true - medians)[~np.isnan(true) if name == "stenosis_mae" else np.nan_to_num(true) > 0]
            if len(errors):
                baselines.append(Baseline(float(errors.mean()), "median of each segment"))
        return baselines

    def dominance(self) -> list[Baseline]:
        """Share of those asked for that have the most common dominance."""
        asked = [dominance for dominance in self._true.dominances if dominance is not None]
        if self._constants is None or self._constants.dominance is None or not asked:
            return []
        common = self._constants.dominance
        return [Baseline(asked.count(common) / len(asked), f"always {common}")]


def _by_row(rows: Mapping[str, NDArray], in_view: NDArray[np.bool_], signs: set[str], whole: bool) -> Columns:
    """Values of each row, and what ``row_metrics`` makes metrics of; NaN where nothing is known of the row."""
    columns = {
        "captioning/hallucinated_findings": rows["hallucinated"].astype(float),
        "captioning/missed_findings": rows["missed"].astype(float),
        **{
            f"captioning/{sign}/{part}": rows[f"{sign}/{part}"].sum(axis=1).astype(float)
            for sign in SEEN_SIGNS
            if sign in signs
            for part in _PARTS
        },
        "captioning/stenosis_told/told": rows["percent/told"].astype(float),
        "captioning/stenosis_told/asked": rows["percent/asked"].astype(float),
        "captioning/stenosis_mae/error": rows["percent/error"].astype(float),
        "captioning/stenosis_mae/number": rows["percent/number"].astype(float),
        "captioning/stenosis_mae_lesions/error": rows["lesions/error"].astype(float),
        "captioning/stenosis_mae_lesions/number": rows["lesions/number"].astype(float),
        **{f"captioning/grade_kappa/{name}": column for name, column in kappa_columns(rows["grades"]).items()},
    }
    known = in_view.any(axis=1)
    columns = {name: np.where(known, column, np.nan) for name, column in columns.items()}
    asked = rows["dominance/asked"].astype(bool)
    if whole and asked.any():
        columns["captioning/dominance_accuracy"] = np.where(asked, rows["dominance/right"], np.nan)
    return columns
