"""Where relative paths start from, and what a run is called: both are different inside a job of a Ray cluster.

``ray job submit --working-dir .`` uploads the folder and runs the program in that copy, on the cluster. What is written
there is lost with the copy, and what lies beside it (data, runs) was never uploaded; so a relative path there is a
mistake that would be noticed late, and is refused.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from deepcoro.config import Config
from deepcoro.config_encoder import KINETICS
from deepcoro.errors import ConfigError

HOME = "DEEPCORO_HOME"
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets a variable of this name for the program that a job starts
_RAYS_OWN_ID = "raysubmit_"  # of submissions that were given none


def inside_job() -> bool:
    """Whether this program was started by ``ray job submit``."""
    return _JOB in os.environ


def submission_id() -> str | None:
    """The id of this job if its user chose one (``ray job submit --submission-id first``); outside a job ``None``."""
    if not inside_job():
        return None
    chosen = json.loads(os.environ[_JOB]).get("metadata", {}).get("job_submission_id")
    return None if chosen is None or chosen.startswith(_RAYS_OWN_ID) else chosen


def submitted_environment() -> dict[str, str]:
    """The environment variables that this job was submitted with; outside a job none."""
    if not inside_job():
        return {}
    return json.loads(os.environ[_JOB]).get("runtime_env", {}).get("env_vars", {})


def named_after_job(config: Config, name_given: bool) -> Config:
    """``config`` with the job's submission id as the run's name, unless the user gave a name or chose no id.

    So ``ray job stop first`` and ``runs/first`` speak of the same thing.

    Args:
        name_given: whether the user set ``name`` (on the command line or in a YAML), which is then kept.

    Raises:
        ConfigError: the id cannot be a run's name.
    """
    chosen = submission_id()
    if name_given or chosen is None:
        return config
    try:
        return config.merge({"name": chosen})
    except ConfigError:  # the name is all that changes
        raise ConfigError(
            f"the submission id {chosen!r} cannot name a run: letters, digits, '.', '_' and '-' can, beginning with a "
            "letter or a digit. Submit with another --submission-id, or say name=... behind the experiment"
        ) from None


def absolute(path: str, field: str) -> str:
    """``path`` as an absolute one: from ``DEEPCORO_HOME`` if that is set, else from the current folder.

    URIs and absolute paths stay as they are, ``~`` is the user's home. Links are not followed: other machines of a
    cluster may have them elsewhere.

    Args:
        field: what the path is, such as ``data.path``, for the message.

    Raises:
        ConfigError: relative inside a job without ``DEEPCORO_HOME``, ``~`` of an unknown user, or a ``DEEPCORO_HOME``
            that is not absolute.
    """
    if "://" in path:
        return path
    given = _expanded(path, field)
    if given.is_absolute():
        return str(given)
    if os.environ.get(HOME):
        home = _expanded(os.environ[HOME], HOME)
        if not home.is_absolute():
            raise ConfigError(f"{HOME} is {os.environ[HOME]!r}; it must be the absolute path of a folder")
        return str(home / given)
    if inside_job():
        raise ConfigError(
            f"{field} is {path!r}, and this is a job: inside a job the program runs in an uploaded copy of the folder, "
            "so data.path and root must be absolute or URIs, or lie under DEEPCORO_HOME. Give "
            f"{field} as an absolute path that all machines of the cluster see, or submit with "
            f"""--runtime-env-json '{{"env_vars": {{"{HOME}": "/folder/that/all/see"}}}}'"""
        )
    return str(Path.cwd() / given)


def absolute_source(source: str, field: str) -> str:
    """A source of weights as an absolute path if there is such a file or folder, else (the name of
    published weights) as it is.

    Raises:
        ConfigError: as ``absolute`` does.
    """
    if source == KINETICS:
        return source
    home = os.environ.get(HOME)
    places = [_expanded(source, field)]
    places += [_expanded(home, HOME) / places[0]] if home else []
    return absolute(source, field) if any(place.exists() for place in places) else source


def _expanded(path: str, field: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{field} is {path!r}, and there is no such user; write the path out") from None
