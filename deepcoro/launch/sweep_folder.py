"""What a sweep's folder keeps of how it was asked for, so that ``deepcoro sweep --resume NAME`` needs nothing else.

``sweep.yaml`` (options and objectives), ``config.yaml`` (the experiment with all that was laid over it) and
``space.py`` (a copy of the space's file). They are written before the study begins.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.launch.paths import absolute
from deepcoro.launch.space import SweepSpace, load_space
from deepcoro.launch.space_changes import draws_differ, space_changes
from deepcoro.launch.study import shown
from deepcoro.launch.sweep_settings import Sweep

ABOUT, SPACE = "sweep.yaml", "space.py"
_KEPT = ("num_trials", "max_concurrent", "time_budget", "seed", "sampler", "storage", "stopping", "max_failures")
_MAY_CHANGE = ("resources.", "data.path=")  # how and where trials run, and not what they are


def save_sweep(asked: Sweep) -> None:
    """Write down what was asked for. The password of a storage is left out: whoever may read the folder need not have
    it."""
    folder = asked.folder
    if asked.space.path.resolve() != (folder / SPACE).resolve():
        shutil.copyfile(asked.space.path, folder / SPACE)
    about = {name: getattr(asked, name) for name in _KEPT}
    if asked.storage is not None:
        about["storage"] = shown(asked.storage) if "://" in asked.storage else absolute(asked.storage, "--storage")
    came_from = asked.space_from or asked.space.path.resolve()
    about |= {"space": str(came_from), "objectives": dict(asked.space.objectives)}
    scratch = folder / f".{ABOUT}.partial"
    scratch.write_text(yaml.safe_dump(about, sort_keys=False))
    scratch.rename(folder / ABOUT)
    asked.config.save(folder / "config.yaml")


def load_sweep(
    folder: Path, options: Mapping[str, Any], space_file: Path | None = None, assignments: Sequence[str] = ()
) -> Sweep:
    """The sweep of a folder, to go on with.

    Args:
        options: that are given anew, such as ``num_trials``; the others are as they were.
        space_file: the space, where it is given again; else that of the sweep's beginning, if it is there still.
        assignments: ``section.field=value``, of fields that say how and where trials run.

    Raises:
        ConfigError: the folder is no sweep, the space is another one now (what changed is told), a field is given that
            trials of one sweep must have in common, or the storage's password is missing.
    """
    if not (folder / ABOUT).exists():
        raise ConfigError(f"{folder} is no sweep to go on with: it has no {ABOUT}{_others(folder)}")
    about = yaml.safe_load((folder / ABOUT).read_text())
    space = replace(load_space(folder / SPACE), objectives=about["objectives"])
    came_from = Path(about["space"])
    if space_file is not None or came_from.exists():
        _check_same(space, load_space(space_file or came_from), folder)
    if odd := [text for text in assignments if not text.startswith(_MAY_CHANGE)]:
        raise ConfigError(
            f"{odd[0]}: a sweep that goes on keeps its experiment, so that its trials can be compared; only resources "
            "and data.path may be given anew. Begin a sweep of another name"
        )
    kept = {name: about[name] for name in _KEPT} | dict(options)
    if "storage" not in options and ":***@" in (kept["storage"] or ""):
        raise ConfigError(
            f"the storage of {folder} is {kept['storage']}, whose password is not kept: give it again by --storage URL"
        )
    config = Config.load(folder / "config.yaml").merge({"root": str(folder.parent), "name": folder.name})
    return Sweep(config.override(assignments), space, **kept, resume=True, space_from=came_from)


def _check_same(before: SweepSpace, now: SweepSpace, folder: Path) -> None:
    changed = space_changes(before.source, now)
    if not changed and draws_differ(before, now):
        changed = ["  what SPACE reads beside it, such as a constant of its file"]
    if changed:
        lines = "\n".join(changed)
        raise ConfigError(
            f"{now.path} is not the space that {folder} began with:\n{lines}\nPut it back as it was, go on with the "
            f"sweep's own by --space {folder / SPACE}, or begin a sweep of another name"
        )


def _others(folder: Path) -> str:
    found = sorted(path.parent.name for path in folder.parent.glob(f"*/{ABOUT}"))
    return f". Sweeps in {folder.parent}: {', '.join(found)}" if found else f". There is none in {folder.parent}"
