"""What differs between the space that a sweep began with and the one it is to go on with."""

from __future__ import annotations

import difflib
import json
from typing import Any

import optuna
from optuna.distributions import json_to_distribution

from deepcoro.launch.space import SweepSpace, told

_DRAWS = 64


def space_changes(before: str, now: SweepSpace) -> list[str]:
    """Lines that say what is not as it was; none where the spaces are the same.

    Args:
        before: ``source`` of the space that was.
    """
    if before == now.source:
        return []
    try:
        had = {name: told(json_to_distribution(one)) for name, one in json.loads(before).items()}
    except ValueError:  # the text of a function
        had = {}
    if not had or callable(now.space):
        pieces = difflib.unified_diff(before.splitlines(), now.source.splitlines(), "before", "now", "", "", 0, "")
        return [f"  {line}" for line in list(pieces)[2:] if not line.startswith("@@")]
    has = {name: told(one) for name, one in now.space.items()}
    missing = "not searched"
    return [
        f"  {name}: {had.get(name, missing)} -> {has.get(name, missing)}"
        for name in dict.fromkeys([*had, *has])
        if had.get(name) != has.get(name)
    ]


def draws_differ(one: SweepSpace, other: SweepSpace) -> bool:
    """Whether two spaces give other fields for the same luck: the text of a function does not show what it reads from
    beside it, such as a range that is a constant of its file."""
    return _draws(one) != _draws(other)


def _draws(space: SweepSpace) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(_DRAWS):
        trial = study.ask()
        fields = space.suggest(trial)
        found.append((trial.distributions, fields))
    return found
