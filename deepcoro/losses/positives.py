"""Which pairs of a video and a text are positives of each other: a mask, made for some columns at a time.

Letters: B rows of this worker, C columns, K numbers that tell a row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from deepcoro.errors import ConfigError

# Keys of rows [B, ...] and of columns [C, ...] -> bool [B, C], True for positives.
Match = Callable[[Tensor, Tensor], Tensor]

_KEYS = {"text": ("report_key",), "study": ("study_key",), "text_or_study": ("report_key", "study_key")}


def same_key(rows: Tensor, columns: Tensor) -> Tensor:
    """Positives have the same number: ``rows`` [B], ``columns`` [C] -> [B, C]."""
    return rows[:, None] == columns


def any_same_key(rows: Tensor, columns: Tensor) -> Tensor:
    """Positives have one of their numbers in common, at the same place: [B, K], [C, K] -> [B, C]."""
    found = same_key(rows[:, 0], columns[:, 0])
    for place in range(1, rows.shape[1]):
        found |= same_key(rows[:, place], columns[:, place])
    return found


def find_match(name: str) -> tuple[tuple[str, ...], Match]:
    """What ``contrastive.positives`` means: the columns of a batch that are compared, and how.

    ``text``: equal texts. ``study``: the same study; equal texts of two studies are then negatives. ``text_or_study``:
    either. Else ``module:function`` of given pairs, which gets [B, 2] and [C, 2] (report_key, study_key).

    Raises:
        ConfigError: none of these.
    """
    if name in _KEYS:
        keys = _KEYS[name]
        return keys, same_key if len(keys) == 1 else any_same_key
    module, _, function = name.partition(":")
    unknown = (
        f"contrastive.positives {name!r} is none of {', '.join(_KEYS)} and no module:function that can be imported"
    )
    try:
        found = attrgetter(function)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{unknown}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{unknown}: it is a {type(found).__name__}")
    return _KEYS["text_or_study"], found


def keys_of(rows: Mapping[str, Any], names: tuple[str, ...]) -> Tensor:
    """The columns ``names`` of rows: [B], or [B, K] of several.

    Raises:
        ValueError: a column is not there.
    """
    missing = [name for name in names if name not in rows]
    if missing:
        raise ValueError(f"positives are told by {', '.join(names)}, and the batch has no {', '.join(missing)}")
    return rows[names[0]] if len(names) == 1 else torch.stack([rows[name] for name in names], dim=1)
