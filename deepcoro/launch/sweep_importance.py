"""Which parameters of a sweep matter: fANOVA (Hutter, Hoos & Leyton-Brown, ICML 2014), by Optuna.

A forest is fitted to the values of the trials that ran to their end, and says which share of its variance each
parameter explains. It sees those trials alone: what was stopped early has no last value.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import optuna
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, TrialState

LEAST_TRIALS = 10  # below that a forest says nothing
LEAST_PER_PARAMETER = 10  # below that what it says is mostly noise


@dataclass(frozen=True)
class Importances:
    """What fANOVA says.

    Args:
        shares: objective -> parameter -> share of the explained variance, largest first; empty where nothing can be
            said.
        caution: why nothing is said, or why what is said is worth little; empty where neither.
        left_out: parameters that only some trials have, of which fANOVA knows nothing.
    """

    shares: Mapping[str, Mapping[str, float]]
    caution: str
    left_out: tuple[str, ...]


def importances_of(study: optuna.Study) -> Importances:
    """Importances of a study's parameters for each of its objectives."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    common = [name for name, one in intersection_search_space(complete).items() if not one.single()]
    asked = {name for trial in complete for name, one in trial.distributions.items() if not one.single()}
    left_out = tuple(sorted(asked - set(common)))
    if len(common) < 2:
        return Importances({}, f"{len(common)} parameters are in all complete trials: nothing to share", left_out)
    wanted = LEAST_PER_PARAMETER * len(common)
    few = f"{len(complete)} trials ran to their end, and {len(common)} parameters want {wanted} or more"
    if len(complete) < LEAST_TRIALS:
        return Importances({}, f"too few to say: {few}", left_out)
    try:
        import sklearn  # noqa: F401  # what Optuna fits the forest with
    except ModuleNotFoundError:
        return Importances({}, "scikit-learn is not here: pip install 'deepcoro[sweep]'", left_out)
    shares = {}
    for place, name in enumerate(study.metric_names or []):
        if len({trial.values[place] for trial in complete}) == 1:
            continue  # all alike: no variance to explain
        shares[name] = _fanova(study, common, place)
    caution = f"too few to mean much: {few}; read them as a hint" if len(complete) < wanted else ""
    return Importances(shares, caution, left_out)


def _fanova(study: optuna.Study, params: list[str], place: int) -> dict[str, float]:
    def value(trial: FrozenTrial) -> float:
        return float(trial.values[place])

    with warnings.catch_warnings():  # of an argument that may change in a later Optuna
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=evaluator, params=params, target=value)
