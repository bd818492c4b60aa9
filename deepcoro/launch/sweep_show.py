"""A sweep's folder as text for a person: how far it is, what is best and how sure, what matters, what failed."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from deepcoro.evaluation.report import align_columns, interval_text, number_text
from deepcoro.launch.confirm_report import confirmation_lines
from deepcoro.launch.lock import is_running
from deepcoro.launch.search import ERROR
from deepcoro.launch.sweep_importance import importances_of
from deepcoro.launch.sweep_plots import FOLDER as PLOTS
from deepcoro.launch.sweep_plots import PAGE
from deepcoro.launch.sweep_results import (
    BEST_FILE,
    FILE,
    about_sweep,
    choose_best,
    mean_ranks,
    reached_step,
    read_study,
    run_of,
)
from deepcoro.training.validation import read_intervals

_LONGEST_ERROR = 200  # letters
_MOST_BEST, _MOST_ERRORS = 5, 5  # columns of the best trials, and kinds of errors; the others are counted


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's, if it has come as far as a first trial."""
    return (folder / FILE).exists() or ((folder / "trials").is_dir() and not (folder / "metrics.jsonl").exists())


def show_sweep(folder: Path) -> str:
    """State, best trials with the intervals of their metrics, importance of parameters, what was stopped and what
    failed, and the confirmation.

    Raises:
        UserError: no trial has ended yet, or ``sweep.json`` cannot be read.
    """
    study = read_study(folder)
    lines = [_state(study, folder), *indent(_counts(study)), "", "objectives, on the validation patients"]
    best = choose_best(study)
    ways = dict(zip(study.metric_names or [], (_way(one) for one in study.directions), strict=True))
    lines += indent([f"{name}, {way}" for name, way in ways.items()])
    if best is not None:
        lines += ["", *_best(study, folder), "", *_importance(study)]
    if errors := _errors(study):
        lines += ["", "failed trials", *indent(errors)]
    lines += confirmation_lines(folder, ways)
    lines += ["", "files", *indent(_files(folder, best))]
    return "\n".join(lines)


def indent(lines: Sequence[str]) -> list[str]:
    """Lines that belong to the one above."""
    return [f"  {line}" for line in lines]


def _way(direction: StudyDirection) -> str:
    return "max" if direction == StudyDirection.MAXIMIZE else "min"


def _state(study: optuna.Study, folder: Path) -> str:
    ended = len(_ended(study))
    asked = about_sweep(study).get("num_trials")
    state = "running now" if is_running(folder) else "finished" if asked in (None, ended) else "not finished"
    return f"{folder}: a sweep, {state}, {ended}{f' of {asked}' if asked else ''} trials ended"


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended by themselves."""
    return [trial for trial in study.trials if trial.state.is_finished()]


def _counts(study: optuna.Study) -> list[str]:
    ended = _ended(study)
    by_state = Counter(trial.state for trial in ended)
    lines = [f"{by_state[TrialState.COMPLETE]} ran to their end"]
    if number := by_state[TrialState.PRUNED]:
        steps = Counter(reached_step(trial) for trial in ended if trial.state == TrialState.PRUNED)
        where = ", ".join(
            f"{count} at step {step}" if step is not None else f"{count} before an evaluation"
            for step, count in sorted(steps.items(), key=lambda item: item[0] or 0)
        )
        rule = about_sweep(study).get("stopping")
        by = f" by {rule}" if rule not in (None, "none") else ", when the time was up"
        lines.append(f"{number} stopped early{by}: {where}")
    if number := by_state[TrialState.FAIL]:
        lines.append(f"{number} failed (see below)")
    if number := sum(trial.state == TrialState.RUNNING for trial in study.trials):
        lines.append(f"{number} were running when this was written")
    return lines


def _best(study: optuna.Study, folder: Path) -> list[str]:
    names = list(study.metric_names or [])
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranks = mean_ranks(study)
    front = {trial.number for trial in study.best_trials}
    several = len(names) > 1
    among = [trial for trial in complete if not several or trial.number in front]
    among.sort(key=lambda trial: (ranks[trial.number], trial.number))
    shown = among[:_MOST_BEST]
    rows: list[list[str]] = []
    for place, name in enumerate(names):
        rows.append([name, *(number_text(trial.values[place]) for trial in shown)])
        known = [_interval(folder, trial, name) for trial in shown]
        rows.append(["  95% interval", *(interval_text(*ends) for ends, _ in known)])
        rows.append(["  baseline", *(number_text(baseline) for _, baseline in known)])
    params = dict.fromkeys(name for trial in shown for name in trial.params)
    rows += [[name, *(_text(trial.params.get(name)) for trial in shown)] for name in params]
    rows.append(["steps", *(str(reached_step(trial)) for trial in shown)])
    seconds = [trial.duration.total_seconds() if trial.duration is not None else float("nan") for trial in shown]
    rows.append(["seconds", *(f"{number:.0f}" for number in seconds)])
    header = ["", *(f"trial {trial.number}" for trial in shown)]
    table = align_columns(header, rows, (False, *(True for _ in shown)))
    if several:
        title = f"Pareto front: {len(among)} of {len(complete)} trials that ran to their end, by their mean rank"
    else:
        title = f"best of {len(complete)} trials that ran to their end"
    rest = len(among) - len(shown)
    lines = [title, *indent(table.split("\n"))]
    if several and rest:
        lines.append(f"  and {rest} more, in {FILE}")
    lines += indent(
        [
            "Intervals are over patients, of this one training. The best of many looks better than it is, since it was",
            "chosen by these very values: --confirm trains it and the default anew, with other seeds.",
        ]
    )
    return lines


def _interval(folder: Path, trial: FrozenTrial, name: str) -> tuple[tuple[float, float], float]:
    run, step = run_of(folder, trial), reached_step(trial)
    found = read_intervals(run, step).get(name, {}) if run is not None and step is not None else {}
    nan = float("nan")
    return (found.get("low", nan), found.get("high", nan)), found.get("baseline", nan)


def _importance(study: optuna.Study) -> list[str]:
    found = importances_of(study)
    lines = ["importance of parameters (fANOVA: share of the variance that each explains)"]
    if found.caution:
        lines.append(f"  {found.caution}")
    if found.shares:
        names = list(dict.fromkeys(name for shares in found.shares.values() for name in shares))
        rows = [[name, *(f"{shares[name]:.2f}" for shares in found.shares.values())] for name in names]
        table = align_columns(["", *found.shares], rows, (False, *(True for _ in found.shares)))
        lines += indent(table.split("\n"))
    if found.left_out:
        lines.append(f"  not asked of every trial, and so left out: {', '.join(found.left_out)}")
    return lines


def _errors(study: optuna.Study) -> list[str]:
    failed = [trial for trial in _ended(study) if trial.state == TrialState.FAIL]
    reasons: dict[str, list[int]] = {}
    for trial in failed:
        reason = " ".join(str(trial.user_attrs.get(ERROR, "unknown")).split())
        reasons.setdefault(textwrap.shorten(reason, _LONGEST_ERROR, placeholder=" ..."), []).append(trial.number)
    ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
    lines = [f"{len(numbers)}: {reason} (trial {', '.join(map(str, numbers[:5]))})" for reason, numbers in ordered]
    if len(lines) > _MOST_ERRORS:
        return [*lines[:_MOST_ERRORS], f"and {len(lines) - _MOST_ERRORS} other reasons, in {FILE}"]
    return lines


def _files(folder: Path, best: FrozenTrial | None) -> list[str]:
    lines = [f"tensorboard --logdir {folder}: all trials in the tab HParams"]
    if best is not None and (folder / BEST_FILE).exists():
        lines.append(f"{folder / BEST_FILE}: trial {best.number}; deepcoro train {folder / BEST_FILE}")
    page = folder / PLOTS / PAGE
    lines.append(f"{page}: all plots" if page.exists() else f"no plots; deepcoro show {folder} --plots draws them")
    return lines


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
