"""Optuna's study of a sweep: its storage, its sampler, and whether it is the sweep that is meant."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy import create_engine
from sqlalchemy import inspect as inspect_database
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from deepcoro.errors import ConfigError
from deepcoro.launch.search import directions, enqueue_start
from deepcoro.launch.space import SweepSpace
from deepcoro.launch.space_changes import space_changes

_SHORT = {"nsga2": "nsgaii", "nsga3": "nsgaiii", "nsga-ii": "nsgaii", "cma-es": "cmaes", "gaussianprocess": "gp"}
_SPACE, _POPULATION = "space", "population_size"  # attributes of a study: what it searches, as text, and how


def samplers() -> dict[str, type[optuna.samplers.BaseSampler]]:
    """Optuna's samplers that need nothing but a seed, by short name: ``tpe``, ``nsgaii``, ``random``, ..."""
    found: dict[str, type[optuna.samplers.BaseSampler]] = {}
    for name in optuna.samplers.__all__:
        kind: Any = getattr(optuna.samplers, name)
        if not inspect.isclass(kind) or inspect.isabstract(kind):
            continue
        parameters = inspect.signature(kind).parameters
        needed = [one for one in parameters.values() if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
        if "seed" in parameters and not needed:
            found[name.removesuffix("Sampler").lower()] = kind  # type: ignore[assignment]  # a class without a type
    return found


def make_sampler(
    name: str | None, seed: int, num_objectives: int, num_trials: int = 0, population: int | None = None
) -> optuna.samplers.BaseSampler:
    """A sampler by name; ``None``: TPE for one objective, NSGA-II for several.

    Args:
        num_trials: that the study has already. They are part of the seed: a sweep that goes on would draw the points
            of its beginning again.
        population: of a generation of NSGA-II; ``None``: Optuna's 50.

    Raises:
        ConfigError: there is no such sampler (the known are named), it needs a package that is not installed, or it
            cannot search for so many objectives.
    """
    known = samplers()
    wanted = (name or ("tpe" if num_objectives == 1 else "nsgaii")).lower().removesuffix("sampler")
    wanted = _SHORT.get(wanted, wanted)
    if wanted not in known:
        raise ConfigError(f"there is no sampler {name!r}; Optuna has {', '.join(sorted(known))}")
    _try(known[wanted], wanted, num_objectives)
    with warnings.catch_warnings():  # that a sampler may change in a later Optuna
        warnings.simplefilter("ignore")
        return known[wanted](**_arguments(wanted, seed, num_trials, population))


def open_study(
    name: str,
    space: SweepSpace,
    storage: str | None,
    folder: Path,
    *,
    num_trials: int,
    sampler: str | None = None,
    seed: int = 0,
    resume: bool = False,
    begun: bool = True,
    before_new: Callable[[], object] = lambda: None,
) -> optuna.Study:
    """The study of the sweep ``name``: a new one, with the first points waiting, or with ``resume`` the one it was.

    Args:
        storage: URL of a database that SQLAlchemy knows, or the path of a journal file; ``None``: ``study.db``, SQLite,
            in the sweep's ``folder``.
        num_trials: that the sweep is to have.
        begun: whether the sweep that is gone on with has trials: it may have been killed before it had a study.
        before_new: is called once it is clear that a new study may be made, before it is.

    Raises:
        ConfigError: the storage cannot be reached, it has a sweep of that name already, or with ``resume`` has none, or
            one of another space or other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = open_storage(storage, folder)
    there = name in optuna.get_all_study_names(opened)
    where = shown(storage) if storage else str(folder / "study.db")
    new_over_half = there and not resume and _is_half_made(optuna.load_study(storage=opened, study_name=name))
    _check_there(there and not new_over_half, name, where, resume, begun)
    if new_over_half:
        optuna.delete_study(storage=opened, study_name=name)  # its points may be of another space
    if not there or new_over_half:
        before_new()
        try:
            study = optuna.create_study(storage=opened, study_name=name, directions=directions(space.objectives))
        except DuplicatedStudyError:  # by somebody else, just now
            raise ConfigError(f"{where} has a sweep {name!r} already; give another name") from None
    else:
        study = optuna.load_study(storage=opened, study_name=name)
    if _SPACE not in study.user_attrs:  # new, or killed while it was made
        with warnings.catch_warnings():  # of a name that may change in a later Optuna
            warnings.simplefilter("ignore")
            study.set_metric_names(list(space.objectives))
        study.set_user_attr(_POPULATION, population_of(num_trials))
        enqueue_start(study, space.start)
        study.set_user_attr(_SPACE, space.source)  # the last: with it the study is complete
    _check_same(study, space, f"{where}: the sweep {name!r}")
    is_new = not there or new_over_half
    num_had, had = 0 if is_new else len(study.get_trials(deepcopy=False)), study.user_attrs.get(_POPULATION)
    study.sampler = make_sampler(sampler, seed, len(space.objectives), num_had, had)
    return study


def look_for_study(
    name: str, space: SweepSpace, storage: str | None, folder: Path, *, resume: bool, begun: bool
) -> optuna.Study | None:
    """The study that ``open_study`` would go on with, or ``None`` where it would make a new one. Nothing is made or
    changed.

    Raises:
        ConfigError: what ``open_study`` would refuse.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = _storage_that_is_there(storage, folder)
    where = shown(storage) if storage else str(folder / "study.db")
    study = None
    if opened is not None and name in optuna.get_all_study_names(opened):
        study = optuna.load_study(storage=opened, study_name=name)
        if _is_half_made(study):
            study = None
            begun = False
    _check_there(study is not None, name, where, resume, begun)
    if study is not None:
        _check_same(study, space, f"{where}: the sweep {name!r}")
    return study


def open_storage(storage: str | None, folder: Path) -> BaseStorage:
    """Optuna's storage, as ``open_study`` takes it.

    Raises:
        ConfigError: it cannot be reached or written, with the reason; a password in it is not told.
    """
    url = _url(storage, folder)
    with _told_without_password(url):
        if (file := _file_of(url)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        return RDBStorage(url) if "://" in url else JournalStorage(JournalFileBackend(url))


def _storage_that_is_there(storage: str | None, folder: Path) -> BaseStorage | None:
    """The same without making anything; ``None`` where it would be a new one.

    Raises:
        ConfigError: as ``open_storage``.
    """
    url = _url(storage, folder)
    with _told_without_password(url):
        if (file := _file_of(url)) is not None and not file.exists():
            above = next(place for place in file.absolute().parents if place.exists())
            with tempfile.TemporaryFile(dir=above):  # whether it can be written to; it has no name there
                return None
        if "://" not in url:
            return JournalStorage(JournalFileBackend(url))
        engine = create_engine(url)
        try:
            there = inspect_database(engine).has_table("studies")
        finally:
            engine.dispose()
        return RDBStorage(url, skip_table_creation=True) if there else None


def _url(storage: str | None, folder: Path) -> str:
    return storage or f"sqlite:///{folder / 'study.db'}"


def _file_of(url: str) -> Path | None:
    """The file of a journal or of SQLite; ``None`` of another database."""
    if "://" in url and not url.startswith("sqlite:///"):
        return None
    return Path(url.removeprefix("sqlite:///"))


@contextmanager
def _told_without_password(url: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, ImportError, ValueError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        if password := _password(url):
            reason = reason.replace(password, "***")
        raise ConfigError(f"the storage {shown(url)} cannot be used: {reason}") from None


def shown(storage: str) -> str:
    """A storage as it may be printed: without its password."""
    try:
        return make_url(storage).render_as_string(hide_password=True) if "://" in storage else storage
    except SQLAlchemyError:
        return storage.split("://")[0] + "://..."


def _password(url: str) -> str | None:
    try:
        return make_url(url).password if "://" in url else None
    except SQLAlchemyError:
        return None


def _is_half_made(study: optuna.Study) -> bool:
    """Whether whoever made it was killed before it was whole: no trial of it can have begun."""
    return _SPACE not in study.user_attrs and all(
        trial.state == TrialState.WAITING for trial in study.get_trials(deepcopy=False)
    )


def _check_there(there: bool, name: str, where: str, resume: bool, begun: bool) -> None:
    if there and not resume:
        raise ConfigError(f"{where} has a sweep {name!r} already; go on with it by --resume, or give another name")
    if resume and not there and begun:
        raise ConfigError(f"{where} has no sweep {name!r} to go on with")


def _check_same(study: optuna.Study, space: SweepSpace, where: str) -> None:
    had = dict(zip(study.metric_names or [], study.directions, strict=False))
    now = dict(zip(space.objectives, directions(space.objectives), strict=True))
    if list(had) != list(now) or [one.name.lower() for one in had.values()] != list(now.values()):
        raise ConfigError(f"{where} has the objectives {', '.join(had)}, and {space.path} has {', '.join(now)}")
    if changed := space_changes(study.user_attrs[_SPACE], space):
        lines = "\n".join(changed)
        raise ConfigError(
            f"{where} searched another space than {space.path} has now:\n{lines}\nPut the space back as it was, or "
            "begin a sweep of another name"
        )


def population_of(num_trials: int) -> int:
    """Trials of a generation, of which a sweep has four or more. Optuna's 50 would leave a sweep of 40 in the first
    one, which is drawn at random."""
    return min(50, max(4, num_trials // 4))


def _arguments(name: str, seed: int, num_trials: int, population: int | None = None) -> dict[str, Any]:
    mixed = int(np.random.SeedSequence([seed, num_trials]).generate_state(1)[0])
    # A quasi-random sequence goes on by itself, if its seed stays.
    found: dict[str, Any] = {"seed": seed if num_trials == 0 or name == "qmc" else mixed}
    if name == "tpe":  # trials that run count as bad ones, so that no point is tried twice at once
        found["constant_liar"] = True
    if name.startswith("nsga") and population is not None:
        found["population_size"] = population
    return found


def _try(kind: type[optuna.samplers.BaseSampler], name: str, num_objectives: int) -> None:
    """Let a sampler draw a few points of nothing: what it cannot do, it says itself."""
    flat = {"x": IntDistribution(0, 9), "y": IntDistribution(0, 9)}
    worst: Sequence[float] = [0.0] * num_objectives
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = kind(**_arguments(name, 0, 0))
            study = optuna.create_study(sampler=sampler, directions=["maximize"] * num_objectives)
            for _ in range(3):
                study.tell(study.ask(dict(flat)), worst)
    except ImportError as error:
        raise ConfigError(f"the sampler {name} needs a package that is not here: {error}") from None
    except ValueError as error:
        raise ConfigError(
            f"the sampler {name} does not go with {num_objectives} objectives: {error} Take nsgaii or tpe, or one "
            "objective by --metric"
        ) from None
