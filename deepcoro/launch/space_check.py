"""Whether a sweep's space can be searched from a config: found before the first trial, not by the trial that meets it.

Each domain is tried at its ends through the config's own validation, the other parameters at the config's own values
where those lie in the space (with a space that is a function: at values that were drawn). Corners of several
parameters together are not all tried; a trial that the config refuses is recorded as failed.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.launch.metric_names import reported_metrics
from deepcoro.launch.space import SweepSpace, contains, ends_of, flat_fields, told, with_fields
from deepcoro.launch.space_fields import cannot_be_searched, that_ease, without_effect

_DRAWS = 64  # of a space that is a function, to meet its conditional parts


def check_space(space: SweepSpace, config: Config, stopping: str = "none") -> dict[str, BaseDistribution]:
    """Hold a space against a config, and return the distributions of its parameters by name.

    Raises:
        ConfigError: all that is wrong, a line each: an unknown field (with the nearest), a range that leaves the
            config's limits, a metric that nobody reports, an objective that could be gained without a better model, a
            field that cannot be searched (or not with ``stopping``) or has no effect, a start point that is not in the
            space.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    probe = _Probe(space)
    donors = probe.draw(config)
    found = probe.distributions
    configs, problems = [config], []
    for name, one in found.items():
        for end in ends_of(one):
            fields = probe.fields({**donors[name], name: end})
            try:
                configs.append(with_fields(config, fields))
            except ConfigError as error:
                problems.append(f"{space.path}: {name} ({told(one)}), at {end}: {error}")
    problems += _start_problems(space, probe, config)
    if not problems:
        seen = probe.seen_fields
        problems = cannot_be_searched(seen, stopping) + without_effect(seen, config, configs[1:])
        problems = [f"{space.path}: {problem}" for problem in problems]
        problems += _objective_problems(space, seen, configs)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return found


class _Probe:
    """Asks a space for values in a study of its own, which nobody keeps."""

    def __init__(self, space: SweepSpace) -> None:
        self.space = space
        self.study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        self.distributions: dict[str, BaseDistribution] = {}
        self.seen_fields: set[str] = set()

    def draw(self, config: Config) -> dict[str, dict[str, Any]]:
        """For each parameter, values of all that are asked for together with it."""
        if not callable(self.space.space):
            self.distributions = dict(self.space.space)
            own = dict(flat_fields(config))
            base = {
                name: own[name] if name in own and contains(one, own[name]) else ends_of(one)[0]
                for name, one in self.distributions.items()
            }
            return dict.fromkeys(self.distributions, base)
        donors: dict[str, dict[str, Any]] = {}
        for _ in range(_DRAWS):
            trial, _fields = self.ask({})
            self.distributions |= trial.distributions
            for name in trial.params:
                donors.setdefault(name, dict(trial.params))
        return donors

    def fields(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that the space makes of ``params``; one that it leaves out is drawn."""
        return self.ask(params)[1]

    def ask(self, params: Mapping[str, Any]) -> tuple[optuna.Trial, dict[str, Any]]:
        """A trial with ``params`` and what else the space asks for, and its fields."""
        if params:
            self.study.enqueue_trial(dict(params))
        trial = self.study.ask()
        with warnings.catch_warnings():  # of a fixed value out of its range, which is told of here
            warnings.simplefilter("ignore")
            fields = self.space.suggest(trial)
        self.seen_fields |= fields.keys()
        return trial, fields


def _start_problems(space: SweepSpace, probe: _Probe, config: Config) -> list[str]:
    problems = []
    for number, point in enumerate(space.start, start=1):
        where, inside = f"{space.path}: START point {number}", True
        for name, value in point.items():
            one = probe.distributions.get(name)
            if one is None:
                near = difflib.get_close_matches(name, probe.distributions, n=1, cutoff=0.0)[0]
                problems.append(f"{where} has {name!r}, which SPACE does not search; the nearest it has is {near!r}")
            elif not callable(space.space) and not contains(one, value):
                problems.append(f"{where}: {name} {value!r} is outside {told(one)}")
            inside = inside and one is not None and (callable(space.space) or contains(one, value))
        if not inside:
            continue
        try:
            trial, fields = probe.ask(point)
            with_fields(config, fields)
        except (ConfigError, ValueError) as error:  # ValueError: a value that Optuna cannot take at all
            problems.append(f"{where}: {error}")
            continue
        for name, value in point.items():  # of a function, whose ranges may hang on the other values
            if name not in trial.params:
                problems.append(f"{where} has {name!r}, which SPACE does not ask for beside its other values")
            elif not contains(trial.distributions[name], value):
                problems.append(f"{where}: {name} {value!r} is outside {told(trial.distributions[name])}")
    return problems


def _objective_problems(space: SweepSpace, fields: set[str], configs: list[Config]) -> list[str]:
    problems = []
    weights = sorted(name for name in fields if name.startswith("loss."))
    known = set.intersection(*(reported_metrics(one) for one in configs))
    some = set.union(*(reported_metrics(one) for one in configs))
    for name in space.objectives:
        where = f"{space.path}: the objective {name!r}"
        if name == "loss" or name.startswith(("loss/", "validation/loss/")):
            if weights:
                problems.append(
                    f"{where} contains what is searched ({', '.join(weights)}): it would reward small weights, not a "
                    "good model. Take metrics of the validation patients"
                )
            else:
                problems.append(
                    f"{where} is a training loss, of the training patients; take a metric of the validation"
                )
        elif name not in some:
            near = difflib.get_close_matches(name, some, n=1, cutoff=0.0)[0]
            problems.append(f"{where} is reported by nobody; the nearest metric of this run is {near!r}")
        elif name not in known:
            problems.append(f"{where} is not reported by every trial: in part of the space its loss weighs 0")
        if searched := that_ease(name, fields):
            problems.append(
                f"{where} is measured with the trial's own {', '.join(searched)}, which are searched: it would "
                "reward an easy task, not a good model. Leave it out, or do not search them"
            )
    return problems
