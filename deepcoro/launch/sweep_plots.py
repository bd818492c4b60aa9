"""Pictures of a sweep, by Optuna: each as a PNG (matplotlib), and all of them in one HTML page (plotly).

The page holds plotly's own program, so that it opens without a network. Both packages are those of the extra
``deepcoro[sweep]``.
"""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from deepcoro.errors import UserError
from deepcoro.launch.sweep_importance import Importances, importances_of
from deepcoro.launch.sweep_pictures import save_front, save_picture

FOLDER, PAGE = "plots", "plots.html"  # in the sweep's folder, and the page in that
_HTML = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font-family: sans-serif; max-width: 1200px; margin: 2em auto; }} p {{ color: #555; }}</style></head>
<body><h1>{title}</h1>
{body}
</body></html>
"""


@dataclass(frozen=True)
class Plot:
    """One picture: of which kind, of which objective (none, where it is of all), its heading, a sentence about it, and
    what draws it with either of Optuna's modules."""

    kind: str
    objective: str
    title: str
    words: str
    draw: Callable[[ModuleType], Any]
    names: Sequence[str] = ()  # of the axes of ``parallel``

    @property
    def file(self) -> str:
        """Name of its PNG."""
        return f"{self.kind}_{self.objective.replace('/', '_')}.png" if self.objective else f"{self.kind}.png"


def write_plots(study: optuna.Study, folder: Path) -> list[Path]:
    """Draw what there is to draw of a study into ``plots/`` of the sweep's folder, anew; returns the files.

    Raises:
        UserError: no trial is complete, or plotly or matplotlib is not installed.
    """
    try:
        import matplotlib
        import plotly  # noqa: F401
        from optuna.visualization import matplotlib as drawn
    except ModuleNotFoundError as error:
        raise UserError(f"the plots need {error.name}: pip install 'deepcoro[sweep]'") from None
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise UserError(f"{folder} has no trial that ran to its end: there is nothing to draw yet")
    matplotlib.use("agg")
    to = folder / FOLDER
    to.mkdir(parents=True, exist_ok=True)
    for old in [*to.glob("*.png"), to / PAGE]:
        old.unlink(missing_ok=True)
    plots, files = plots_of(study), []
    with warnings.catch_warnings():  # that these functions may change in a later Optuna
        warnings.simplefilter("ignore")
        for plot in plots:
            path = to / plot.file
            if plot.kind == "front":
                files.append(save_front(study, path, plot.title, plot.words))
            else:
                axes = plot.draw(drawn)
                files.append(save_picture(axes, path, plot.kind, plot.title, plot.words, plot.names))
        (to / PAGE).write_text(_page(plots, f"{folder.name}: {len(study.trials)} trials"))
    return [*files, to / PAGE]


def plots_of(study: optuna.Study) -> list[Plot]:
    """What can be drawn: of each objective its history, the parameters side by side and each by itself, and how much
    they matter (``importances_of``); of one objective its values on the way; of two or three their front."""
    names = list(study.metric_names or [])
    plots = []
    if len(names) in (2, 3):
        words = "A point a trial; those that no other one beats in every objective are the front."
        plots.append(
            Plot("front", "", "Pareto front", words, lambda to: to.plot_pareto_front(study, target_names=names))
        )
    found, params = importances_of(study), _varied(study)
    for place, name in enumerate(names):
        plots += _of_objective(_single(study, place), name, params, found, name if len(names) > 1 else "")
    if len(names) == 1 and any(len(trial.intermediate_values) > 1 for trial in study.get_trials(deepcopy=False)):
        words = "Evaluations on the way. A line that ends early is a trial that was stopped."
        plots.append(
            Plot("on_the_way", "", f"{names[0]} on the way", words, lambda to: to.plot_intermediate_values(study))
        )
    return plots


def _of_objective(study: optuna.Study, name: str, params: list[str], found: Importances, key: str) -> list[Plot]:
    plots = [
        Plot(
            "history",
            key,
            f"{name}, trial by trial",
            "Trials that ran to their end, in their order, and the best so far.",
            lambda to: to.plot_optimization_history(study, target_name=name),
        ),
        Plot(
            "slice",
            key,
            f"{name} over each parameter by itself",
            "A point a trial, the darker the later.",
            lambda to: to.plot_slice(study, params=params, target_name=name),
        ),
    ]
    if len(params) > 1:
        plots.append(
            Plot(
                "parallel",
                key,
                f"{name} beside all parameters",
                "A line a trial, the darker the better.",
                lambda to: to.plot_parallel_coordinate(study, params=params, target_name=name),
                (name, *sorted(params)),
            )
        )
    if name in found.shares:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shared = list(found.shares[name])
        plots.append(
            Plot(
                "importances",
                key,
                f"What {name} hangs on (fANOVA)",
                f"{found.caution[:1].upper()}{found.caution[1:]}",
                lambda to: to.plot_param_importances(study, evaluator=evaluator, params=shared, target_name=name),
            )
        )
    return plots


def _single(study: optuna.Study, place: int) -> optuna.Study:
    """The same trials with one of their values: Optuna draws such a study with its direction, and another without."""
    found = optuna.create_study(direction=study.directions[place])
    for trial in study.get_trials(deepcopy=True):
        if trial.state == TrialState.COMPLETE:
            trial.values = [trial.values[place]]
        # The others keep their place, so that trials keep their numbers.
        found.add_trial(trial if trial.state == TrialState.COMPLETE else create_trial(state=TrialState.FAIL))
    return found


def _varied(study: optuna.Study) -> list[str]:
    """Parameters that can have more than one value, in the order of the space."""
    found: dict[str, None] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        found |= dict.fromkeys(name for name, one in trial.distributions.items() if not one.single())
    return list(found)


def _page(plots: Sequence[Plot], title: str) -> str:
    """All of them in one page, with plotly's program in it once."""
    parts = []
    for number, plot in enumerate(plots):
        figure = plot.draw(optuna.visualization)
        figure.update_layout(title=None, width=None, margin={"t": 40})  # as wide as the page
        drawn = figure.to_html(full_html=False, include_plotlyjs=number == 0)
        parts.append(f"<h2>{html.escape(plot.title)}</h2>\n<p>{html.escape(plot.words)}</p>\n{drawn}")
    return _HTML.format(title=html.escape(title), body="\n".join(parts))
