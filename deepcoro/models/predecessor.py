"""The checkpoints of the original CLIP training, which this platform took over from.

One is a torch file that holds a dict. ``video_encoder``: ``model.*`` is torchvision's mvit_v2_s without its head, and
``proj.1.*`` a Linear 768 -> 512. ``text_encoder``: ``bert.*`` is Hugging Face's BERT without pooler, and ``proj.1.*`` a
Linear 768 -> 512. Their clips were the grey channel three times, less one mean, over one deviation: what ours are, so
that the channels stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepcoro.errors import ConfigError
from deepcoro.models.mvit import MViT
from deepcoro.models.weights import accept_mismatch, copy_weights

if TYPE_CHECKING:
    from deepcoro.models.multitask import MultitaskModel


def load_video(model: MultitaskModel, path: str | Path, allow_mismatch: bool) -> list[str]:
    """Take encoder and projection of the video side; returns what was taken, in lines for a person.

    Raises:
        ConfigError: the model's video encoder is no MViT; the file is none of the predecessor's; or its weights do not
            fit, and that is not allowed.
    """
    encoder = model.video_encoder
    if not isinstance(encoder, MViT):
        raise ConfigError(
            f"video_encoder.pretrained: {path} is an MViT's; the video encoder is {model.config.video_encoder.name!r}, "
            "set video_encoder.name=mvit"
        )
    lines = _load_part(path, "video_encoder", "model.", encoder.backbone, model.video_projection, allow_mismatch)
    encoder.take_images_of(0.0, 255.0, (0.0,) * 3, (1.0,) * 3)
    return lines


def load_text(model: MultitaskModel, path: str | Path, allow_mismatch: bool) -> list[str]:
    """Take encoder and projection of the text side; returns what was taken, in lines for a person.

    Raises:
        ConfigError: the file is none of the predecessor's; or its weights do not fit, and that is not allowed.
    """
    if model.text_encoder is None:
        return [f"text encoder: nothing taken from {path}, since without the contrastive loss there is none"]
    transformer = model.text_encoder.transformer
    lines = _load_part(path, "text_encoder", "bert.", transformer, model.text_projection, allow_mismatch)
    return [f"text encoder: {line}" for line in lines]


def _load_part(
    path: str | Path, part: str, prefix: str, encoder: nn.Module, projection: nn.Module | None, allow_mismatch: bool
) -> list[str]:
    weights = _read(path, part)
    # Old versions of transformers saved the numbers 0, 1, 2, ... as if they had been learned.
    weights.pop("bert.embeddings.position_ids", None)
    inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    projected = {name.removeprefix("proj.1."): value for name, value in weights.items() if name.startswith("proj.1.")}
    other = [name for name in weights if not name.startswith((prefix, "proj.1."))]
    differences = copy_weights(encoder, inside, prefix)
    if projection is not None:
        differences += copy_weights(projection, projected, "proj.1.")
    differences += [f"has no place here: {name}" for name in other]
    lines = accept_mismatch(f"{path} ({part})", differences, allow_mismatch)
    taken = f"{len(inside)} weights of {path}"
    if projection is None:
        return [f"{taken}; its projection is left out, since without the contrastive loss there is none", *lines]
    return [f"{taken}, and its projection", *lines]


def _read(path: str | Path, part: str) -> dict[str, Tensor]:
    """The named weights of ``part``.

    Raises:
        ConfigError: no such file, no torch file, more in it than ``weights_only`` lets through, or no such part.
    """
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # bytes that are no torch file make the unpickler fail in any way there is
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path} is no torch file of tensors alone (read with weights_only=True, so that it can run no code): "
            f"{first}"
        ) from error
    weights = held.get(part) if isinstance(held, Mapping) else None
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        found = ", ".join(map(str, held)) if isinstance(held, Mapping) else type(held).__name__
        raise ConfigError(
            f"{path} has no weights under {part!r}, as the predecessor's checkpoints do; it holds: {found}"
        )
    return dict(weights)
