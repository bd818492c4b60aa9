"""Optuna's pictures by matplotlib, made readable: their legends, ticks and names are laid out for few short names."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

_DPI = 110
_MOST_NAMED = 10  # lines of a legend
_COLOURS, _REVERSED = "viridis_r", "viridis"  # for Optuna's Blues and Blues_r, which have a white that cannot be seen
_WIDTH = 18  # letters of a line in a name


def save_picture(axes: Any, path: Path, kind: str, title: str, words: str, names: Sequence[str] = ()) -> Path:
    """Mend what one of Optuna's functions has drawn, and save it as a PNG.

    Args:
        axes: what the function gave: axes, or an array of them.
        kind: ``history``, ``slice``, ``parallel``, ``importances``, ``on_the_way`` or ``front``.
        title, words: a heading, and a sentence below the picture.
        names: of the axes of ``parallel``, in their order.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    every = list(np.ravel(axes))
    figure = every[0].figure
    figure.set_size_inches(max(7.5, 2.4 * len(every) + 1), 4.6)
    if kind in ("history", "importances", "on_the_way"):
        _mend_legend(every[0])
    if kind == "history":
        every[0].set_xlabel("trial")
        every[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    elif kind == "importances":
        every[0].set(xlabel="share of the explained variance", ylabel="", xlim=(0, 1.08))
    elif kind == "on_the_way":
        every[0].set(xlabel="optimizer step", ylabel="")
    elif kind == "slice":
        for one in every:
            one.set_xlabel(wrapped(one.get_xlabel()), fontsize=9)
            _mend_ticks(one)
            _mend_colours(one)
        figure.axes[-1].yaxis.set_major_locator(MaxNLocator(integer=True))  # of the colours, which are trials
    elif kind == "parallel":
        _mend_parallel(figure, every[0], names)
    for one in figure.axes:
        for place in ("left", "center"):
            one.set_title("", loc=place)
    figure.suptitle(textwrap.fill(title, 90), fontsize=12)
    figure.text(0.5, -0.04, textwrap.fill(words, 110), ha="center", va="top", fontsize=9, color="0.3")
    figure.savefig(path, dpi=_DPI, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def save_front(study: optuna.Study, path: Path, title: str, words: str) -> Path:
    """Objectives against each other, two at a time: a cloud in three dimensions cannot be read on paper."""
    from matplotlib.figure import Figure

    names = list(study.metric_names or [])
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    front = {trial.number for trial in study.best_trials}
    pairs = list(combinations(range(len(names)), 2))
    figure = Figure(figsize=(4.6 * len(pairs) + 0.5, 4.4), layout="constrained")
    for (x, y), axes in zip(pairs, np.ravel(figure.subplots(1, len(pairs))), strict=True):
        for is_front, colour, label in ((False, "tab:blue", "other trials"), (True, "tab:red", "front")):
            points = [trial.values for trial in complete if (trial.number in front) == is_front]
            if points:
                values = np.array(points)
                axes.scatter(values[:, x], values[:, y], s=22, color=colour, label=label)
        for trial in complete:
            if trial.number in front:
                where = (trial.values[x], trial.values[y])
                axes.annotate(str(trial.number), where, xytext=(3, 3), textcoords="offset points", fontsize=8)
        arrows = ["higher" if d == optuna.study.StudyDirection.MAXIMIZE else "lower" for d in study.directions]
        axes.set(xlabel=f"{names[x]} ({arrows[x]} is better)", ylabel=f"{names[y]} ({arrows[y]} is better)")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=12)
    figure.supxlabel(words, fontsize=9, color="0.3")
    figure.savefig(path, dpi=_DPI, bbox_inches="tight", facecolor="white")
    return path


def wrapped(name: str) -> str:
    """A dotted or slashed name in lines that are short enough to stand below an axis."""
    lines, line = [], ""
    for part in name.replace(".", ".\0").replace("/", "/\0").split("\0"):
        if line and len(line) + len(part) > _WIDTH:
            lines.append(line)
            line = ""
        line += part
    return "\n".join([*lines, line])


def _mend_legend(axes: Any) -> None:
    legend = axes.get_legend()
    if legend is not None:
        legend.remove()
    lines, labels = axes.get_legend_handles_labels()
    if 1 < len(labels) <= _MOST_NAMED:
        axes.legend(lines, labels, fontsize=8, loc="best")


def _mend_ticks(axes: Any) -> None:
    """Few whole numbers on a logarithmic axis; where it spans little, Optuna's own lie over each other."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axes.get_xscale() == "log":
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 30 else (1.0, 3.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)


def _mend_parallel(figure: Any, axes: Any, names: Sequence[str]) -> None:
    figure.set_size_inches(max(8.5, 1.9 * len(names)), 5.2)
    axes.set_xticks(range(len(names)), [wrapped(name) for name in names], rotation=0, ha="center", fontsize=8)
    axes.grid(axis="y", visible=False)
    _mend_colours(axes)
    for other in figure.axes:
        other.tick_params(axis="y", labelsize=8)
        other.grid(visible=False)


def _mend_colours(axes: Any) -> None:
    for collection in axes.collections:
        collection.set_cmap(_REVERSED if collection.get_cmap().name.endswith("_r") else _COLOURS)
