"""A run or a checkpoint of ours as the source of a video encoder: its architecture, and its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcoro.config import Config
from deepcoro.config_encoder import ARCHITECTURE
from deepcoro.errors import CheckpointError
from deepcoro.models.conversion import fold

_PREFIX, _DECODER = "video_encoder.", "masked_video_modeling."
_AVERAGE = "model_ema.safetensors"  # as training.checkpoint writes it


def find_own(source: str, field: str = "video_encoder.pretrained") -> Path | None:
    """The checkpoint that ``source`` names, or the newest one of the run; ``None`` if it is no folder of ours.

    Args:
        field: of the config that names it, for messages.

    Raises:
        CheckpointError: a run that has no checkpoint yet.
    """
    folder = Path(source).expanduser()
    if folder.name == "checkpoints":
        folder = folder.parent
    if (folder / "manifest.json").is_file() and (folder / "config.yaml").is_file():
        return folder
    if not (folder / "checkpoints").is_dir():
        return None
    steps = [p.parent.name for p in folder.glob("checkpoints/*/manifest.json") if p.parent.name.isdigit()]
    if not steps:
        raise CheckpointError(f"{field} {source!r} is a run without a checkpoint; train it first")
    return folder / "checkpoints" / max(steps, key=int)


def own_architecture(checkpoint: Path) -> dict[str, Any]:
    """Name and architecture fields of the encoder of a checkpoint.

    Positions that were made for the run's own grid are said to be, so that they are interpolated for another one;
    turning ones go on in steps of a token instead.
    """
    config = Config.load(checkpoint / "config.yaml")
    part = config.video_encoder
    grid = part.position_grid
    if grid is None and part.positions in ("learned", "sincos"):
        grid = config.grid
    return {key: getattr(part, key) for key in ("name", *ARCHITECTURE)} | {"position_grid": grid}


def own_weights(checkpoint: Path) -> tuple[dict[str, Tensor], float, float, str]:
    """State dict of the encoder of a checkpoint, the mean and deviation of the pixels it was trained on, and what the
    weights are, in words. Where the run kept an average of them it is that: what was measured of the run is what a new
    one begins with.

    Raises:
        CheckpointError: the weights are not those that were saved.
    """
    weights, what = _weights(checkpoint)
    own = _part(weights, _PREFIX)
    return own, weights["pixel_mean"].item(), weights["pixel_std"].item(), what


def own_masked_decoder(checkpoint: Path) -> tuple[dict[str, Tensor], str]:
    """State dict of the decoder of masked modelling of a checkpoint, empty where it has none, and what the weights are;
    otherwise as ``own_weights``."""
    weights, what = _weights(checkpoint)
    return _part(weights, _DECODER), what


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _weights(checkpoint: Path) -> tuple[dict[str, Tensor], str]:
    """All weights of a checkpoint, and what they are."""
    path, wanted = weights_file(checkpoint)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{checkpoint} cannot be read ({error!r}); use another checkpoint") from error
    if wanted != found:
        raise CheckpointError(f"{path} is not what was saved (its hash differs from the manifest's)")
    from safetensors.torch import load_file

    return load_file(path), "averaged weights" if path.name == _AVERAGE else "weights"


def weights_file(checkpoint: Path) -> tuple[Path, str]:
    """The file that ``own_weights`` reads, and its hash as the manifest has it.

    Raises:
        CheckpointError: the manifest cannot be read.
    """
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
        path = checkpoint / (_AVERAGE if _AVERAGE in files else "model.safetensors")
        return path, files[path.name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint} cannot be read ({error!r}); use another checkpoint") from error


def take_over_pixels(weights: dict[str, Tensor], scale: float, shift: float) -> dict[str, Tensor]:
    """``weights`` of an encoder that takes pixels x, changed so that it takes y, where x is ``scale`` y + ``shift``:
    exactly for a wrapped backbone, and for a tubelet encoder that does not normalise the pixels of a tubelet."""
    if "embed.weight" not in weights:
        return weights | {"scale": weights["scale"] * scale, "shift": weights["shift"] + weights["scale"] * shift}
    weight, bias = weights["embed.weight"], weights["embed.bias"]
    folded, moved = fold(weight.unsqueeze(1), bias, torch.tensor([scale]), torch.tensor([shift]))
    return weights | {"embed.weight": folded, "embed.bias": moved}
