"""How the pixels were normalised that a published checkpoint was trained on, as the file beside its weights says."""

from __future__ import annotations

import json
from pathlib import Path

from deepcoro.errors import ConfigError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of its colours, in 0..1
_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")


def image_statistics(source: str, channels: int = 3) -> tuple[list[float], list[float], str]:
    """Mean and deviation of each channel, of values in 0..1, that a checkpoint's pixels were normalised with, from the
    file beside its weights; and a line that says where they come from. ImageNet's where there is no such file.

    Raises:
        ConfigError: the file cannot be read, or it is not known whether there is one.
    """
    for name in _FILES:
        path = _beside(source, name)
        if path is not None:
            means, stds = _read(path, channels)
            return means, stds, f"pixels are normalised as {name} beside it says: {_told(means, stds)}"
    means, stds = (list(values) if channels == 3 else [sum(values) / 3] * channels for values in IMAGENET)
    return means, stds, f"no preprocessor_config.json beside it: ImageNet's {_told(means, stds)}"


def _read(path: Path, channels: int) -> tuple[list[float], list[float]]:
    try:
        said = json.loads(path.read_text())
        # What grey levels are multiplied by before they are normalised. Another factor than 1/255 is taken up by mean
        # and deviation.
        factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
        less = 1.0 if said.get("do_rescale", True) and said.get("offset", False) else 0.0  # ViViT takes 1 off then
        mean, std = (said["image_mean"], said["image_std"]) if said.get("do_normalize", True) else (0.0, 1.0)
        means, stds = (
            [(float(v) + moved) / (255 * factor) for v in (given if isinstance(given, list) else [given] * channels)]
            for given, moved in ((mean, less), (std, 0.0))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{path} does not say how pixels are normalised ({error!r}); it needs image_mean and image_std, or delete "
            "it to take ImageNet's"
        ) from error
    return means, stds


def _told(means: list[float], stds: list[float]) -> str:
    mean, deviation = (", ".join(f"{value:g}" for value in values) for values in (means, stds))
    return f"mean {mean}, deviation {deviation}"


def _beside(source: str, name: str) -> Path | None:
    """The file ``name`` of a source, if it has one."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(source, name)
    except OSError as error:
        # The hub's cache remembers what a model has not. Anything else may be a file that cannot be reached: to take
        # ImageNet's for it would change every pixel.
        if try_to_load_from_cache(source, name) is _CACHED_NO_EXIST:
            return None
        raise ConfigError(
            f"whether {source} has a {name} cannot be found out ({str(error).splitlines()[0]}); download the whole "
            "model and give its folder"
        ) from error
    return None if path is None else Path(path)
