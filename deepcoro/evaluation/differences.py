"""What written reports gain on answers that do not look at the cine: differences on the same rows, paired by patient.

Letters: B rows, S segments (``len(SEGMENTS)``, in that order).

The answers, from the easiest to beat to the hardest:

- *most common report*: of the training rows, always.
- *same segments*: the set that pays most to call diseased always, chosen on the training rows.
- *blind*: the best constant of all, chosen on the very rows that are measured: of F1 the best set, of the percent the
  median of each segment. A language model without video writes one text for all, so that none can do better.
  (Where a text gives no percent, in words that have none or because it names another tree, 0 is taken.)
- *tree oracle*: told left or right, with a set for each, chosen on the training rows.
- *another's report*: what the same model wrote of a cine of the same tree of another patient, mean of several draws. It
  claims as often, and the same segments as often: what it lacks is this patient's cine. Rows of a tree that no other
  patient has are left out of it, on the model's side too. The draws are fixed: the interval has the chance of which
  patients were measured, and not that of whose reports they were lent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deepcoro.evaluation.baselines import Constants, best_constant_set
from deepcoro.evaluation.intervals import NUM_RESAMPLES, Interval
from deepcoro.evaluation.resampling import ResampledSums, Sums
from deepcoro.evaluation.said import compare_rows, compare_signs, parse_all, said_in, said_truly
from deepcoro.evaluation.truth import Truth, known_in_view
from deepcoro.metrics.agreement import SCORES, divide

F1_SIGNS = {"finding_f1": "finding", "stenosis_50_f1": "stenosis_50", "stenosis_70_f1": "stenosis_70"}
ERRORS = {"stenosis_mae": "percent", "stenosis_mae_lesions": "lesions"}
MODEL, COMMON, SAME, BLIND, ORACLE, OTHER = (
    "model", "most common report", "same segments", "blind", "tree oracle", "another's report",
)  # fmt: skip
_BESIDE_OTHER = "model, of the rows that have another's report"
_PARTS = ("hits", "false", "missed")


def measure_differences(
    written: Sequence[str],
    truth: Truth,
    constants: Constants,
    *,
    num_draws: int = 20,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, dict[str, tuple[float, Interval]]]:
    """Of each metric, by answer: its value, and the model's value minus it with the interval of that difference.

    Args:
        written: [B] reports of the model.
        truth: of the same rows, each with a text.
        constants: fitted on training rows, with findings.
        num_draws: reports of other patients that stand beside each row.

    Raises:
        ValueError: lengths differ, or no row's tree has another patient.
    """
    true, in_view = said_truly(truth), known_in_view(truth)

    percents = {"percent": np.where(in_view, true.percent, np.nan)}
    percents["lesions"] = np.where(percents["percent"] > 0, percents["percent"], np.nan)

    def counts_of(texts: Sequence[str]) -> dict[str, NDArray]:
        said = said_in(parse_all(texts), truth)
        return compare_rows(true, said, in_view) | _errors(percents, np.nan_to_num(said.percent))

    drawn, has_other = _others(truth, num_draws)
    of_others = [counts_of([written[row] for row in rows]) for rows in drawn]
    of_model = counts_of(written)
    same: dict[str, NDArray] = {}
    blind: dict[str, NDArray] = {}
    for sign in F1_SIGNS.values():
        there = true.signs[sign]
        best = best_constant_set((there & in_view).sum(axis=0), in_view.sum(axis=0))
        same |= compare_signs({sign: there}, {sign: constants.signs[sign]}, in_view)
        blind |= compare_signs({sign: there}, {sign: best}, in_view)
    for name, percent in percents.items():
        blind |= _errors({name: percent}, _medians(percent))
    told = np.array([constants.segments if t is None else constants.segments_of_tree[t] for t in truth.trees])
    answers: dict[str, Mapping[str, NDArray]] = {
        MODEL: of_model,
        _BESIDE_OTHER: _only(of_model, has_other),
        COMMON: counts_of([constants.report] * len(written)),
        SAME: same,
        BLIND: blind,
        ORACLE: dict(compare_signs({"finding": true.signs["finding"]}, {"finding": told}, in_view)),
        OTHER: _only({name: np.mean([own[name] for own in of_others], axis=0) for name in of_others[0]}, has_other),
    }
    wanted = {f"{sign}/{part}" for sign in F1_SIGNS.values() for part in _PARTS}
    wanted |= {f"{error}/{part}" for error in ERRORS.values() for part in ("error", "number")}
    columns = {f"{a}:{name}": rows[name] for a, rows in answers.items() for name in wanted & rows.keys()}
    sums = ResampledSums(columns, truth.patients, num_resamples=num_resamples)
    return {
        metric: {
            answer: (float(value(answer, sums.total)), sums.interval(_minus(value, answer)))
            for answer in answers
            if answer not in (MODEL, _BESIDE_OTHER)
            and any(column.startswith(f"{answer}:{kind}/") for column in columns)
        }
        for metric, kind, value in [
            *((metric, sign, _f1(sign)) for metric, sign in F1_SIGNS.items()),
            *((metric, error, _mean_error(error)) for metric, error in ERRORS.items()),
        ]
    }


_Value = Callable[[str, Sums], NDArray[np.float64]]


def _f1(sign: str) -> _Value:
    return lambda answer, sums: np.asarray(
        SCORES["f1"](*(sums[f"{answer}:{sign}/{part}"].sum(axis=-1) for part in _PARTS))
    )


def _mean_error(kind: str) -> _Value:
    return lambda answer, sums: np.asarray(divide(sums[f"{answer}:{kind}/error"], sums[f"{answer}:{kind}/number"]))


def _minus(value: _Value, answer: str) -> Callable[[Sums], NDArray[np.float64]]:
    model = _BESIDE_OTHER if answer == OTHER else MODEL
    return lambda sums: value(model, sums) - value(answer, sums)


def _only(counts: Mapping[str, NDArray], rows: NDArray[np.bool_]) -> dict[str, NDArray]:
    """Counts [B, ...], 0 but for ``rows`` [B]."""
    return {name: (of_rows.T * rows).T for name, of_rows in counts.items()}


def _errors(true: Mapping[str, NDArray[np.float64]], said: NDArray[np.float64]) -> dict[str, NDArray]:
    """Errors of the percents ``said`` [B, S] or [S] wherever there is a true one [B, S] (NaN: none), so that all
    answers are held against the same cells."""
    columns = {}
    for name, percent in true.items():
        number = ~np.isnan(percent)
        columns[f"{name}/error"] = np.where(number, np.abs(np.nan_to_num(percent) - said), 0.0).sum(axis=1)
        columns[f"{name}/number"] = number.sum(axis=1)
    return columns


def _medians(percent: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each segment [S] the median of its percents [B, S] (NaN: none), 0 where it has none."""
    there = ~np.isnan(percent)
    return np.array([np.median(of[told]) if told.any() else 0.0 for of, told in zip(percent.T, there.T, strict=True)])


def _others(truth: Truth, num_draws: int) -> tuple[list[list[int]], NDArray[np.bool_]]:
    """For each draw, of each row another one: of the same tree and another patient, drawn evenly; and which rows [B]
    have one at all (to the rest their own is given)."""
    generator = np.random.default_rng(0)
    trees, patients = np.array([str(tree) for tree in truth.trees]), np.asarray(truth.patients)
    drawn, found = [], np.ones(len(trees), dtype=bool)
    for row in range(len(trees)):
        there = np.flatnonzero((trees == trees[row]) & (patients != patients[row]))
        found[row] = len(there) > 0
        drawn.append(generator.choice(there, num_draws) if len(there) else np.full(num_draws, row))
    if not found.any():
        raise ValueError("expected rows of two patients or more of a tree, found one patient of each")
    return np.stack(drawn, axis=1).tolist(), found
