"""What every section of a config is: frozen, closed to unknown keys, and plain about what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from deepcoro.errors import ConfigError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _SpeaksPlainly(ModelMetaclass):
    """Turns pydantic's errors into a ``ConfigError`` where a section is made by hand, and only there: sections inside
    others report to the outermost, which knows the whole path of a key."""

    def __call__(cls, **values: Any) -> Any:
        try:
            return super().__call__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(error, cast(type[Section], cls))) from None


class Section(BaseModel, metaclass=_SpeaksPlainly):
    """A frozen group of fields that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    flat_keys: ClassVar[Mapping[str, str]] = {}  # keys that are also accepted, and the fields they stand for


def _explain(error: ValidationError, section: type[Section]) -> str:
    """One line a mistake: where it is, what is wrong, and the nearest known key."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {where!r}; the nearest known is {_nearest(where, section)!r}")
        elif where:
            got = "" if isinstance(item["input"], Mapping) else f", got {item['input']!r}"  # a section is not a value
            lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{got}")
        else:
            lines.append(item["msg"].removeprefix("Value error, "))
    return "\n".join(lines)


def _nearest(key: str, section: type[Section]) -> str:
    """The known key most like ``key``, compared whole and by its last part, which is what is misspelt most often."""
    names: dict[str, str] = {}
    for path in _field_paths(section):
        names.setdefault(path.split(".")[-1], path)
        names[path] = path
    flat = {key: path if path.endswith(f".{key}") else key for key, path in section.flat_keys.items()}
    names = names | flat if "." not in key else flat | names  # a key without a section is more likely a flat one
    return names[difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]]


def _field_paths(section: type[BaseModel], prefix: str = "") -> list[str]:
    paths = []
    for name, info in section.model_fields.items():
        paths.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            paths += _field_paths(info.annotation, f"{prefix}{name}.")
    return paths


def set_at(target: dict[str, Any], path: list[str], value: Any) -> None:
    """Put ``value`` into nested mappings at ``path``, made on the way."""
    for depth, key in enumerate(path[:-1], start=1):
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{'.'.join(path[:depth])} is given as a value and as a section with {path[-1]!r} in it")
    target[path[-1]] = value


def overlay(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` laid over ``base``, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = overlay(merged[key], value) if both else value
    return merged


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What stands in nested mappings, by dotted path."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
