"""Published weights, and our own, as the start of a run.

``video_encoder.pretrained`` names a folder or a hub's model in the Hugging Face format, a run or checkpoint of ours, or
what a wrapped backbone knows. Its description alone says the architecture; its weights are read when a model is made.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from deepcoro.config import Config
from deepcoro.config_encoder import ARCHITECTURE, FIXED_ARCHITECTURES, KINETICS, VideoEncoderConfig
from deepcoro.errors import ConfigError
from deepcoro.models.conversion import HEADS, architecture_of, convert
from deepcoro.models.image_statistics import image_statistics
from deepcoro.models.own_weights import find_own, own_architecture, own_masked_decoder, own_weights, take_over_pixels
from deepcoro.models.run_teacher import resolve_run_teacher
from deepcoro.models.video_teacher import resolve_teacher

if TYPE_CHECKING:
    from deepcoro.models.multitask import MultitaskModel

TORCH_FILES = (".pt", ".pth", ".ckpt")  # of the predecessor
_MASK_TOKEN = "stem_mask_token"  # of wrapped backbones, which have one where masked modelling is in use
_NAMED = 8  # weights that a message names; of the others it says how many


def resolve_architecture(config: Config) -> Config:
    """``config`` with what ``video_encoder.pretrained``, and the teachers of masked modelling and distillation, say of
    the architecture filled in; without them, unchanged.

    Raises:
        ConfigError: the source cannot be read, holds another kind of model, or has another value than a field that was
            given; or a teacher does not go with it. A source of the encoder that is gone is no mistake where the
            architecture is known.
    """
    return resolve_run_teacher(resolve_teacher(_resolve_encoder(config)))


def _resolve_encoder(config: Config) -> Config:
    part = config.video_encoder
    if part.pretrained is None:
        return config
    if part.name in FIXED_ARCHITECTURES:
        _check_there(part)
        return config
    try:
        found = _architecture(part)
    except _NotThere:
        if part.is_resolved:
            return config
        raise
    _compare(part, found)
    found = ARCHITECTURE | {key: value for key, value in found.items() if value is not None}
    missing = {key: value for key, value in found.items() if getattr(part, key) is None and value is not None}
    return config.merge({"video_encoder": missing}) if missing else config


def load_pretrained(model: MultitaskModel) -> list[str]:
    """Put the weights of ``video_encoder.pretrained`` and ``text_encoder.pretrained`` into ``model``; returns what was
    taken, in lines for a person.

    Raises:
        ConfigError: there are no such weights, or some are missing, or have no place here, and
            ``video_encoder.allow_mismatch`` is not set.
        CheckpointError: a checkpoint of ours is damaged.
    """
    config, lines = model.config, []
    source, text = config.video_encoder.pretrained, config.text_encoder.pretrained
    if source is not None:
        lines += [f"video encoder: {line}" for line in _load_video(model, source)]
    if config.masked_modeling.pretrained:
        lines += [f"masked decoder: {line}" for line in _load_masked_decoder(model, source)]
    if text is not None and model.text_encoder is None:
        lines.append(f"text encoder: no loss uses one, and {text} is left out")
    elif text is not None:
        from deepcoro.models.predecessor import load_text

        lines += load_text(model, text, config.text_encoder.allow_mismatch)
    return lines


def _check_there(part: VideoEncoderConfig) -> None:
    """Tell before anything is started that there are no such weights of a backbone of one architecture."""
    source = str(part.pretrained)
    if source.endswith(TORCH_FILES):
        if not Path(source).expanduser().is_file():
            raise ConfigError(f"video_encoder.pretrained {source!r}: there is no such file")
    elif source != KINETICS and find_own(source) is None:
        raise ConfigError(
            f"video_encoder.pretrained for {part.name} is {KINETICS}, a torch file of the predecessor, or a run or "
            f"checkpoint of ours, got {source!r}"
        )


def own_description(config: Config) -> Path | None:
    """The folder that describes a wrapped backbone, where it comes from a checkpoint of ours."""
    source = config.video_encoder.pretrained
    checkpoint = None if source is None else find_own(source)
    return None if checkpoint is None else checkpoint / "video_encoder"


class _NotThere(ConfigError):
    """Nothing can be read at a source."""


def _architecture(part: VideoEncoderConfig) -> dict[str, Any]:
    """Fields of ``VideoEncoderConfig`` as the source has them."""
    source = part.pretrained
    assert source is not None
    if source == KINETICS:
        raise ConfigError(f"video_encoder.pretrained={KINETICS} is of an MViT; set video_encoder.name=mvit")
    if source.endswith(TORCH_FILES):
        raise ConfigError(
            f"video_encoder.pretrained {source!r} is a torch file of the predecessor, whose encoder is an MViT; set "
            f"video_encoder.name=mvit, got {part.name!r}"
        )
    checkpoint = find_own(source)
    if checkpoint is not None:
        return own_architecture(checkpoint)
    if part.name == "transformers":
        from deepcoro.models.wrapped import architecture

        return architecture(source)
    if part.name == "tubelet":
        return architecture_of(_description(source), source)
    return {}  # a backbone of the user's own says itself what does not fit


def _compare(part: VideoEncoderConfig, found: dict[str, Any]) -> None:
    """Refuse fields that were given and are others in the source."""
    differing = []
    for key, there in found.items():
        given = getattr(part, key)
        if given is None or there is None or _same(given, there):
            continue  # where the source has no grid of positions, as with turning ones, any can be asked for
        if key == "position_grid" and part.positions != "learned" and found["positions"] != "learned":
            continue
        differing.append(f"video_encoder.{key} is {given!r}, and the checkpoint {part.pretrained} has {there!r}")
    if differing:
        raise ConfigError("\n".join([*differing, "leave them out, or give what the checkpoint has"]))


def _same(given: Any, there: Any) -> bool:
    if isinstance(there, float):
        return math.isclose(given, there, rel_tol=1e-6)
    return given == there


def _load_video(model: MultitaskModel, source: str) -> list[str]:
    """Weights of the video encoder from wherever ``source`` is."""
    part, encoder = model.config.video_encoder, model.video_encoder
    if source.endswith(TORCH_FILES):
        from deepcoro.models.predecessor import load_video

        return load_video(model, source, part.allow_mismatch)
    checkpoint = find_own(source)
    if checkpoint is not None:
        return _load_own(model, checkpoint)
    mean, std = model.pixel_mean.item(), model.pixel_std.item()
    if hasattr(encoder, "load_weights"):
        return encoder.load_weights(source, part.allow_mismatch, mean, std)  # type: ignore[operator]
    if part.name != "tubelet":
        raise ConfigError(
            f"video_encoder.pretrained is {source!r}, and the encoder {part.name!r} has no method load_weights(source, "
            "allow_mismatch, pixel_mean, pixel_std) to read it with"
        )
    theirs, lines = _read_model(source, part.allow_mismatch)
    image_mean, image_std, line = image_statistics(source, _channels(theirs))
    fields, weights = convert(theirs, image_mean, image_std, mean, std, source)
    _compare(part, fields)
    lines += _put(encoder, weights, part.allow_mismatch, source)
    kind = theirs.config.model_type  # type: ignore[union-attr]
    folded = "its three colour channels folded into one" if len(image_mean) == 3 else "of one channel"
    lines = [f"{len(weights)} weights of {source} ({kind}, {folded})", line, *lines, *_about_grid(encoder)]
    return lines if _without_pool(encoder) else [*lines, "pool begins at random: the checkpoint has none like it"]


def _load_own(model: MultitaskModel, checkpoint: Path) -> list[str]:
    """Weights of a checkpoint of ours, taken over to the mean and deviation of the pixels here."""
    part, encoder = model.config.video_encoder, model.video_encoder
    weights, mean, std, what = own_weights(checkpoint)
    here = (model.pixel_mean.item(), model.pixel_std.item())
    lines = []
    if (mean, std) != here:
        line = f"it was trained on pixels of mean {mean:g} and deviation {std:g}, here {here[0]:g} and {here[1]:g}"
        linear = part.name == "tubelet" and part.stem == "linear"
        if (linear and not part.patch_norm) or part.name in ("mvit", "transformers"):
            weights = take_over_pixels(weights, here[1] / std, (here[0] - mean) / std)
            line += ", which its first layer takes up exactly"
        elif part.name == "tubelet" and part.patch_norm:
            line += "; each tubelet is normalised, so that this only matters where it is almost flat"
        else:
            line += f": what it is fed differs from then. Set data.pixel_mean={mean} data.pixel_std={std} to avoid it"
        lines.append(line)
    pool = {name: value for name, value in encoder.state_dict().items() if name.startswith("pool.")}
    theirs = {name: value for name, value in weights.items() if name.startswith("pool.")}
    if {n: v.shape for n, v in pool.items()} != {n: v.shape for n, v in theirs.items()}:
        weights = {name: value for name, value in weights.items() if name not in theirs}
        if pool:
            lines.append("pool begins at random: the checkpoint has none like it")
    if _MASK_TOKEN in weights and _MASK_TOKEN not in encoder.state_dict():  # masked modelling made it, and has gone
        weights = {name: value for name, value in weights.items() if name != _MASK_TOKEN}
        lines.append(f"{_MASK_TOKEN} is left out: masked modelling is not used here")
    elif _MASK_TOKEN not in weights and _MASK_TOKEN in encoder.state_dict():
        weights = weights | {_MASK_TOKEN: encoder.state_dict()[_MASK_TOKEN]}
        lines.append(f"{_MASK_TOKEN} begins at random: the checkpoint was trained without masked modelling")
    lines += _put(encoder, weights, part.allow_mismatch, str(checkpoint))
    return [f"{len(weights)} {what} of {checkpoint}", *lines, *_about_grid(encoder)]


def _load_masked_decoder(model: MultitaskModel, source: str | None) -> list[str]:
    """Weights of the decoder of masked modelling from the run of ours that the encoder came from, all of them."""
    checkpoint = None if source is None or source.endswith(TORCH_FILES) else find_own(source)
    if checkpoint is None:
        raise ConfigError(
            "masked_modeling.pretrained takes the decoder of a run of ours, and video_encoder.pretrained is "
            f"{'not given' if source is None else repr(source)}"
        )
    decoder = model.masked_video_modeling
    if decoder is None:
        return [f"masked modelling is not used, and that of {checkpoint} is left out"]
    theirs, what = own_masked_decoder(checkpoint)
    if not theirs:
        raise ConfigError(
            f"masked_modeling.pretrained: {checkpoint} was trained without masked modelling, and has no decoder; set "
            "masked_modeling.pretrained=false"
        )
    masked, part = Config.load(checkpoint / "config.yaml").masked_modeling, model.config.masked_modeling
    shapes = [{name: tuple(value.shape) for name, value in x.items()} for x in (decoder.state_dict(), theirs)]
    different = [
        f"{name} (expected {shapes[0].get(name, 'none')}, received {shapes[1].get(name, 'none')})"
        for name in sorted(shapes[0] | shapes[1])
        if shapes[0].get(name) != shapes[1].get(name)
    ]
    for key in ("decoder_heads", "norm_predict_loss", "mask_token_learnable"):  # which no shape tells
        if getattr(part, key) != getattr(masked, key):
            different.append(f"{key} (expected {getattr(part, key)}, received {getattr(masked, key)})")
    here, there = (model.pixel_mean.item(), model.pixel_std.item()), own_weights(checkpoint)[1:3]
    if not part.norm_predict_loss and here != there:  # normalised predictions do not know of grey levels
        different.append(f"data.pixel_mean and pixel_std (expected {here}, received {there})")
    if different:
        raise ConfigError(
            f"masked_modeling.pretrained: the decoder of {checkpoint} does not fit; it has decoder_hidden_size "
            f"{masked.decoder_hidden_size}, decoder_layers {masked.decoder_layers}, decoder_heads "
            f"{masked.decoder_heads}. Give the same, or masked_modeling.pretrained=false; what differs: "
            f"{_some(different)}"
        )
    decoder.load_state_dict(theirs)
    return [f"{len(theirs)} {what} of {checkpoint}"]


def _put(encoder: nn.Module, weights: dict[str, Tensor], allow_mismatch: bool, source: str) -> list[str]:
    """Load ``weights``; all but those of the pool must be there. Returns what is not, where that is allowed."""
    try:
        missing, unexpected = encoder.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"video_encoder.pretrained {source!r} does not fit: {error}") from error
    missing = [name for name in missing if not name.startswith("pool.")]
    found = {"missing": missing, "without a place here": unexpected}
    if any(found.values()) and not allow_mismatch:
        raise _mismatch(source, found)
    return _warnings(found)


def _mismatch(source: str, found: dict[str, list[str]]) -> ConfigError:
    told = "; ".join(f"{what}: {_some(names)}" for what, names in found.items() if names)
    return ConfigError(
        f"video_encoder.pretrained {source!r} does not fit: weights {told}. Give another checkpoint, or set "
        "video_encoder.allow_mismatch=true to begin with the rest"
    )


def _warnings(found: dict[str, list[str]]) -> list[str]:
    return [f"WARNING: weights {what}: {_some(names)}" for what, names in found.items() if names]


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _without_pool(encoder: nn.Module) -> bool:
    return not any(name.startswith("pool.") for name in encoder.state_dict())


def _about_grid(encoder: Any) -> list[str]:
    if getattr(encoder, "position_embedding", None) is None or encoder.position_grid == encoder.grid:
        return []
    return [f"its positions, made for a grid of {encoder.position_grid}, are interpolated to {encoder.grid}"]


def _channels(theirs: Any) -> int:
    about = theirs.config
    return about.in_chans if hasattr(about, "in_chans") else about.num_channels


def _description(source: str) -> Any:
    """What transformers says a source is."""
    from transformers import AutoConfig

    return _from_transformers(AutoConfig, source)


def _read_model(source: str, allow_mismatch: bool) -> tuple[nn.Module, list[str]]:
    """The model of a source in 32 bits, and what was left out or is missing, in lines.

    Raises:
        ConfigError: weights are missing or have no place, and that is not allowed.
    """
    import torch
    from transformers import AutoModel

    theirs, about = _from_transformers(
        AutoModel, source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    found = {
        "missing": about["missing_keys"],
        "without a place here": about["unexpected_keys"],
        "of another shape": {_described(key) for key in about["mismatched_keys"]},
    }
    heads = {name for name in found["without a place here"] if _is_head(name)}
    found = {what: sorted(name for name in names if not _is_head(name)) for what, names in found.items()}
    if any(found.values()) and not allow_mismatch:
        raise _mismatch(source, found)
    lines = _warnings(found)
    if heads:
        parts = sorted({name.partition(".")[0] for name in heads})
        lines.append(f"{', '.join(parts)} of the checkpoint is for another task and left out ({len(heads)} weights)")
    return theirs, lines


def _is_head(name: str) -> bool:
    return name.partition(" ")[0].partition(".")[0] in HEADS


def _described(mismatch: Any) -> str:
    """A weight's name with both shapes, of transformers' (name, shape there, shape here)."""
    name, there, here = mismatch
    return f"{name} (expected {tuple(here)}, received {tuple(there)})"


def _from_transformers(auto: Any, source: str, **more: Any) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()  # what is missing is told in our own words
    logging.disable_progress_bar()
    try:
        return auto.from_pretrained(str(Path(source).expanduser()) if source.startswith("~") else source, **more)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _NotThere(
            f"video_encoder.pretrained {source!r}: nothing could be loaded from there. Give a folder in Hugging Face "
            "format, a run or checkpoint of ours, or download the model once where there is a network "
            f"({str(error).splitlines()[0]})"
        ) from error
