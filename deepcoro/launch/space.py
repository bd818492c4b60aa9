"""What a sweep searches: a Python file of ``tune_spaces/``, read and held against the config before anything starts.

    SPACE = {"optim.lr": tune.loguniform(1e-5, 2e-4)}            # dotted config path -> ray.tune domain, or
    def SPACE(trial): ...                                        # a function of an Optuna trial, for conditional parts
    OBJECTIVES = {"captioning/finding_f1": "max"}                # metrics of the validation patients, "max" or "min"
    START = [{"optim.lr": 6e-5}]                                 # optional: points that are tried first

A function suggests values under the names of fields (``trial.suggest_float("optim.lr", ...)``) and returns nothing; or
it suggests under names of its own, and returns what they come to by field.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform, Quantized, Uniform

from deepcoro.config import Config
from deepcoro.config_section import set_at
from deepcoro.errors import ConfigError
from deepcoro.launch.python_file import line_of, run_file

_SCALARS = (type(None), bool, int, float, str)  # what Optuna keeps of a choice
Distributions = Mapping[str, BaseDistribution]


@dataclass(frozen=True)
class SweepSpace:
    """A sweep's space, objectives and first points, as they stand in its file.

    Args:
        space: distributions by dotted config path, or a function of an Optuna trial.
        objectives: ``max`` or ``min`` by metric, in the order of the study's values.
        start: points that are tried first; a parameter that a point leaves out is drawn.
        source: what the space says, as text: a sweep that goes on must have the same.
    """

    path: Path
    space: Distributions | Callable[[optuna.Trial], Mapping[str, Any] | None]
    objectives: Mapping[str, Literal["max", "min"]]
    start: tuple[Mapping[str, Any], ...]
    source: str

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """The fields of a config that ``trial`` tries, by dotted path.

        Raises:
            ConfigError: the file's function fails, or returns something else than fields.
        """
        if not callable(self.space):
            return {name: _suggest(trial, name, found) for name, found in self.space.items()}
        with_names = f"{self.path}: SPACE"
        try:
            fields = self.space(trial)
        except Exception as error:  # whatever the user's own code raises
            raise ConfigError(f"{self.path}{line_of(error, self.path)}: {type(error).__name__}: {error}") from error
        if fields is None:
            return dict(trial.params)
        if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
            raise ConfigError(f"{with_names} must return nothing, or values by dotted config path; got {fields!r}")
        return dict(fields)


def with_fields(config: Config, fields: Mapping[str, Any]) -> Config:
    """``config`` with values laid over it by dotted path.

    Raises:
        ConfigError: an unknown field (the nearest is named), or a value out of its range.
    """
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        set_at(changes, name.split("."), value)
    return config.merge(changes)


def load_space(path: Path) -> SweepSpace:
    """Read a space from its file.

    Raises:
        ConfigError: no such file, it fails, or what stands in it is no space; the message names the line or the key.
    """
    module = run_file(path, "space", "SPACE and OBJECTIVES")
    found = getattr(module, "SPACE", None)
    if callable(found):
        return SweepSpace(path, found, _objectives(module, path), _start(module, path), _source(found, path))
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(
            f"{path} has no SPACE: give it a dict of dotted config path -> ray.tune domain, or a function of an Optuna "
            "trial"
        )
    _check_names(found, f"{path}: SPACE")
    space = {name: _distribution(f"{path}: {name!r}", domain) for name, domain in found.items()}
    text = json.dumps({name: distribution_to_json(one) for name, one in space.items()}, sort_keys=True)
    return SweepSpace(path, space, _objectives(module, path), _start(module, path), text)


def ends_of(found: BaseDistribution) -> list[Any]:
    """The values at which a distribution could leave the limits of its field: both ends, or each choice."""
    if isinstance(found, CategoricalDistribution):
        return list(found.choices)
    assert isinstance(found, FloatDistribution | IntDistribution)
    return [found.low] if found.single() else [found.low, found.high]


def contains(found: BaseDistribution, value: Any) -> bool:
    """Whether ``value`` can come from a distribution; a step is held to within rounding."""
    if isinstance(found, CategoricalDistribution):
        return any(type(value) is type(choice) and value == choice for choice in found.choices)
    assert isinstance(found, FloatDistribution | IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(found, IntDistribution) and value != int(value):
        return False
    steps = (value - found.low) / found.step if found.step else 0.0
    return found.low <= value <= found.high and abs(steps - round(steps)) < 1e-6


def told(found: BaseDistribution) -> str:
    """A distribution in words: ``1e-05 to 0.0002, log``."""
    if isinstance(found, CategoricalDistribution):
        return " | ".join(str(choice) for choice in found.choices)
    assert isinstance(found, FloatDistribution | IntDistribution)
    step = found.step if isinstance(found, FloatDistribution) or found.step != 1 else None
    more = ", log" if found.log else f", in steps of {step:g}" if step else ""
    return f"{found.low:g} to {found.high:g}{more}"


def _suggest(trial: optuna.Trial, name: str, found: BaseDistribution) -> Any:
    if isinstance(found, FloatDistribution):
        return trial.suggest_float(name, found.low, found.high, step=found.step, log=found.log)
    if isinstance(found, IntDistribution):
        return trial.suggest_int(name, found.low, found.high, step=found.step, log=found.log)
    assert isinstance(found, CategoricalDistribution)
    return trial.suggest_categorical(name, found.choices)


def _distribution(where: str, domain: Any) -> BaseDistribution:
    """A domain of Ray Tune as a distribution of Optuna, which must mean the same."""
    if not isinstance(domain, Domain):
        raise ConfigError(
            f"{where} is {domain!r}, and must be a domain of ray.tune: uniform, loguniform, quniform, randint, "
            "lograndint, qrandint or choice. A value that is not searched belongs to the experiment"
        )
    sampler = domain.get_sampler()
    step = isinstance(sampler, Quantized)
    kind = sampler.get_sampler() if isinstance(sampler, Quantized) else sampler
    if isinstance(domain, Categorical):
        if not domain.categories:
            raise ConfigError(f"{where} has nothing to choose from")
        if odd := [choice for choice in domain.categories if not isinstance(choice, _SCALARS)]:
            raise ConfigError(f"{where} may choose among numbers, texts, true, false and none, not {odd[0]!r}")
    elif not isinstance(domain, Float | Integer) or not isinstance(kind, Uniform | LogUniform):
        raise ConfigError(f"{where} is {domain.domain_str} of ray.tune, which Optuna cannot draw; give it limits")
    elif step and isinstance(kind, LogUniform):
        raise ConfigError(f"{where} is logarithmic and in steps, which Optuna cannot draw; leave one of them out")
    try:
        return OptunaSearch.convert_search_space({"value": domain})["value"]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _objectives(module: ModuleType, path: Path) -> dict[str, Literal["max", "min"]]:
    found = getattr(module, "OBJECTIVES", None)
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(f'{path} has no OBJECTIVES: give it a dict of metric -> "max" or "min"')
    _check_names(found, f"{path}: OBJECTIVES")
    for name, mode in found.items():
        if mode not in ("max", "min"):
            raise ConfigError(f'{path}: OBJECTIVES[{name!r}] is {mode!r}, and must be "max" or "min"')
    return dict(found)


def _start(module: ModuleType, path: Path) -> tuple[Mapping[str, Any], ...]:
    found = getattr(module, "START", [])
    if not isinstance(found, list | tuple) or not all(isinstance(point, Mapping) for point in found):
        raise ConfigError(f"{path}: START must be a list of dicts, dotted config path -> value")
    for number, point in enumerate(found, start=1):
        _check_names(point, f"{path}: START point {number}")
    return tuple(dict(point) for point in found)


def _check_names(found: Mapping[Any, Any], where: str) -> None:
    if odd := [name for name in found if not isinstance(name, str)]:
        raise ConfigError(f"{where} has the key {odd[0]!r}, and keys must be names in quotes")


def _source(function: Callable[..., Any], path: Path) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # a callable object, whose class may be anywhere
        return path.read_text()


def flat_fields(config: Config) -> Iterator[tuple[str, Any]]:
    """Every field of a config by dotted path."""
    from deepcoro.config_section import flatten

    return flatten(config.model_dump())
