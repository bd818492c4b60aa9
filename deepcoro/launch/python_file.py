"""A user's Python file, loaded by its path: an experiment, a sweep space."""

from __future__ import annotations

import importlib.util
import traceback
from pathlib import Path
from types import ModuleType

from deepcoro.errors import ConfigError, DeepCoroError


def run_file(path: Path, what: str, needs: str) -> ModuleType:
    """The module that a file makes.

    Args:
        what: it is, such as ``experiment``.
        needs: what has to be in it; for messages.

    Raises:
        ConfigError: no such file, or it cannot be run: with the line of the file at which it stopped.
    """
    if not path.is_file():
        raise ConfigError(f"there is no {what} {path}; give a Python file with {needs}")
    spec = importlib.util.spec_from_file_location(f"{what}_{path.stem}", path)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file; give one with {needs}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except DeepCoroError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(f"{path}{line_of(error, path)}: {type(error).__name__}: {error}") from error
    return module


def line_of(error: Exception, path: Path) -> str:
    """``, line N``: the last line of the file ``path`` that an error came through; empty where it came through none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""
