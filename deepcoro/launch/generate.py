"""``deepcoro generate``: which door was asked for, and that what was asked goes together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from deepcoro.errors import ConfigError
from deepcoro.launch.generate_units import generate_study, generate_video
from deepcoro.launch.writing import How
from deepcoro.training.checkpoint import Weights

MOST_PICTURED = 48  # rows of a sheet: a person looks at it, and it is one picture in memory
_ONLY_OF = {
    "split": ("study", "data"),
    "angles": ("video",),
    "limit": ("data",),
    "format": ("study", "video"),
}


def generate(
    run: str | Path,
    study: str | None = None,
    video: str | None = None,
    data: str | None = None,
    *,
    split: str | None = None,
    angles: tuple[float, float] | None = None,
    limit: int | None = None,
    form: Literal["text", "json"] | None = None,
    output: Path | None = None,
    picture: Path | None = None,
    num_beams: int | None = None,
    structured: bool | None = None,
    probabilities: bool | None = None,
    checkpoint: str | int = "newest",
    weights: Weights | None = None,
) -> Any:
    """Write reports of a ``study`` of the run's dataset, of a ``video`` file, or of the prepared dataset ``data``: see
    ``generate_study``, ``generate_video`` and ``generate_dataset``, and ``How`` for the rest.

    Raises:
        ConfigError: none or several of the three are given, or an option that does nothing beside it.
    """
    doors = {"study": study, "video": video, "data": data}
    chosen = [name for name, value in doors.items() if value is not None]
    if len(chosen) != 1:
        given = " and ".join(f"--{name}" for name in chosen) or "none of them is given"
        raise ConfigError(f"give one of --study ID, --video FILE and --data PREPARED: {given}")
    (door,) = chosen
    told = {"split": split, "angles": angles, "limit": limit, "format": form}
    for name, of in _ONLY_OF.items():
        if told[name] is not None and door not in of:
            raise ConfigError(
                f"--{name} does nothing beside --{door}: it is for {' and '.join(f'--{other}' for other in of)}"
            )
    split = None if split == "any" else split
    how = How(checkpoint, weights, num_beams, structured, probabilities, form or "text", output, picture)
    if door == "study":
        assert study is not None
        return generate_study(run, study, split, how)
    if door == "video":
        assert video is not None
        return generate_video(run, video, angles, how)
    assert data is not None
    if output is None and picture is None:
        raise ConfigError("--data needs --output DIR, a folder for the Parquet files, or --picture FILE.png, or both")
    if picture is not None and (limit is None or limit > MOST_PICTURED):
        raise ConfigError(f"--picture of a dataset needs --limit N, {MOST_PICTURED} at most: a row a unit is drawn")
    if output is None and probabilities is not None:
        raise ConfigError("--probabilities does nothing beside --picture alone: they are a column of --output")
    from deepcoro.launch.generate_dataset import generate_dataset  # which loads Ray

    summary = generate_dataset(run, data, split, limit, how)
    print(summary)
    return summary
