"""Any video backbone of the library transformers that takes ``pixel_values`` [B, T, 3, H, W], wrapped.

Letters: B clips, T frames, H W pixels, N tokens of the grid, c tokens before the grid's, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcoro.config_encoder import ARCHITECTURE, VideoEncoderConfig
from deepcoro.errors import ConfigError
from deepcoro.models.image_statistics import image_statistics
from deepcoro.models.rgb_backbone import WrappedEncoder
from deepcoro.models.weights import accept_mismatch, copy_weights


class TransformersEncoder(WrappedEncoder):
    """The last hidden state of a transformers model, its tokens along time, then height, then width.

    Args:
        num_frames, frame_size: of the clips; they must be what the model was made for.
        description: the model's own config object.
        pool: how tokens become one vector: ``attention``, ``mean`` or ``class``.
        checkpoint_activations: keep only the input of each block for the backward pass, and compute the rest again.

    Raises:
        ConfigError: the description is not that of a video backbone of this form, or is of other clips; or the model
            has no such option.
    """

    def __init__(
        self,
        num_frames: int,
        frame_size: int,
        description: Any,
        pool: str = "attention",
        checkpoint_activations: bool = False,
    ) -> None:
        shape, tubelet = _clip_shape(description), _tubelet(description)
        if shape != (num_frames, frame_size, frame_size):
            raise ConfigError(
                f"the {description.model_type} backbone takes clips of {_by(shape)}, and this config says "
                f"{num_frames}x{frame_size}x{frame_size}; set data.num_frames={shape[0]} and data.frame_size={shape[1]}"
            )
        backbone = _build(description)
        grid = cast(tuple[int, int, int], tuple(a // b for a, b in zip(shape, tubelet, strict=True)))
        num_prefix = _num_class_tokens(backbone)
        super().__init__(
            shape, grid, description.hidden_size, description.hidden_size, num_prefix, pool,
            description.num_attention_heads,
        )  # fmt: skip
        self.backbone = backbone
        self._hidden: Tensor | None = None
        self.place_major = self._find_order()
        if checkpoint_activations:
            if not backbone.supports_gradient_checkpointing:
                raise ConfigError(f"video_encoder.checkpoint_activations: a {description.model_type} backbone cannot")
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @classmethod
    def from_config(cls, num_frames: int, frame_size: int, part: VideoEncoderConfig) -> TransformersEncoder:
        """As the folder or hub name in ``part.pretrained`` describes it, with random weights."""
        if part.pretrained is None:
            raise ConfigError("video_encoder.name=transformers needs video_encoder.pretrained: a folder or hub name")
        if part.drop_path > 0:
            raise ConfigError(
                "video_encoder.drop_path is not for a backbone of transformers: its own config.json says how it drops"
            )
        description = _describe(part.pretrained)
        return cls(num_frames, frame_size, description, part.pool, part.checkpoint_activations)

    def save_config(self, folder: str | Path) -> None:
        """Write what ``from_config`` needs of ``part.pretrained``."""
        self.backbone.config.save_pretrained(folder)

    def prepare_masking(self) -> None:
        """Make the mask token, and put it in place of hidden tokens behind the patch embedding.

        Raises:
            ConfigError: there is no patch embedding where it is looked for, or its tokens do not run along time.
        """
        embedding = self._patch_embedding()
        if not self._is_meta:
            clips, places = self._probes()
            with torch.no_grad():
                out = embedding(clips.transpose(1, 2))
            stem = (out[0] if isinstance(out, tuple) else out).reshape(len(clips), math.prod(self.grid), -1)
            if stem.shape[-1] != self.stem_width or _changed(stem) != self._indices(places, 0, False):
                raise self._cannot("its patch embedding gives no tokens along time, height and width, to be hidden")
        embedding.register_forward_hook(self._mask_stem)
        super().prepare_masking()

    def tokens(self, rgb: Tensor, hidden: Tensor | None) -> Tensor:
        """``rgb`` [B, 3, T, H, W] -> [B, c + N, D]."""
        self._hidden = hidden
        try:
            tokens = self.backbone(pixel_values=rgb.transpose(1, 2)).last_hidden_state
        finally:
            self._hidden = None
        if not self.place_major:
            return tokens
        c, (time, height, width) = self.num_prefix_tokens, self.grid
        by_place = tokens[:, c:].unflatten(1, (height * width, time))
        return torch.cat([tokens[:, :c], by_place.transpose(1, 2).flatten(1, 2)], dim=1)

    def bottom_up(self) -> list[list[nn.Parameter]]:
        """Parameters from the pixels upwards: the embeddings', then each block's."""
        stem = [p for name, p in self.backbone.named_parameters() if name.startswith("embeddings.")]
        if not stem:
            kind = type(self.backbone).__name__
            raise ConfigError(f"video_encoder.freeze and optim.layer_decay: {kind} has no part named embeddings")
        return [stem, *[list(block.parameters()) for block in self._blocks()]]

    def load_weights(self, source: str, allow_mismatch: bool, pixel_mean: float, pixel_std: float) -> list[str]:
        """Take the weights that ``source`` holds; returns what was taken, in lines for a person.

        Args:
            source: a folder or hub name in the Hugging Face format.
            allow_mismatch: begin although weights are missing there, or some have no place here.
            pixel_mean, pixel_std: what our clips were normalised by, in grey levels 0-255.

        Raises:
            ConfigError: no weights there; or they do not fit, and that is not allowed.
        """
        from transformers import AutoModel

        _quiet()
        try:
            loaded, info = AutoModel.from_pretrained(
                source,
                config=self.backbone.config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"video_encoder.pretrained {source!r}: no weights could be loaded from there "
                f"({str(error).splitlines()[0]}). Give a folder in Hugging Face format, or download the model once "
                "where there is a network"
            ) from error
        prefix, unexpected = f"{loaded.base_model_prefix}.", sorted(info["unexpected_keys"])
        made_as = _describe(source).architectures or []
        # A model with a head calls the backbone's weights by a prefix, and what has none is the head's.
        has_head = bool(made_as) and type(loaded).__name__ not in made_as
        heads = [name for name in unexpected if has_head and not name.startswith(prefix)]
        differences = [f"missing: {name}" for name in sorted(info["missing_keys"]) if not _is_pooler(name)]
        differences += [f"has no place here: {name}" for name in unexpected if name not in heads]
        differences += [
            f"{name}: expected shape {tuple(ours)}, received {tuple(theirs)}"
            for name, theirs, ours in sorted(info["mismatched_keys"])
        ]
        lines = accept_mismatch(source, differences, allow_mismatch)
        weights = {name: value for name, value in loaded.state_dict().items() if not _is_pooler(name)}
        assert not copy_weights(self.backbone, weights)
        mean, deviation, said = image_statistics(source)
        self.take_images_of(pixel_mean, pixel_std, mean, deviation)
        taken = [f"{len(weights)} weights of {type(loaded).__name__} from {source}", said]
        if heads:
            taken.append("left out, of its head: " + ", ".join(sorted({name.split(".")[0] for name in heads})))
        return taken + lines

    def _blocks(self) -> nn.ModuleList:
        number = self.backbone.config.num_hidden_layers
        for module in self.backbone.modules():
            if isinstance(module, nn.ModuleList) and len(module) == number:
                return module
        raise ConfigError(f"{type(self.backbone).__name__} has no list of {number} blocks, and cannot be wrapped")

    def _patch_embedding(self) -> nn.Module:
        for name, module in self.backbone.named_modules():
            if name == "embeddings.patch_embeddings":
                return module
        raise ConfigError(
            f"masked modelling needs to know where {type(self.backbone).__name__} makes tokens of pixels, and it has "
            "no embeddings.patch_embeddings; set loss.weights.masked_modeling=0, or use another backbone"
        )

    def _mask_stem(self, _: nn.Module, __: tuple[Any, ...], out: Any) -> Any:
        """Behind the patch embedding: [B, N, D], or a tuple that begins with [B*T, N/T, D]. Both are along time."""
        if self._hidden is None:
            return out
        stem = out[0] if isinstance(out, tuple) else out
        replaced = self.replace_hidden(stem.reshape(*self._hidden.shape, -1), self._hidden).view_as(stem)
        return (replaced, *out[1:]) if isinstance(out, tuple) else replaced

    @property
    def _is_meta(self) -> bool:
        """Whether there are shapes only, as where the size of a run is estimated: nothing can be computed then."""
        return any(p.is_meta for p in self.backbone.parameters())

    @torch.no_grad()
    def _find_order(self) -> bool:
        """Whether tokens run along places first, and then along time, as TimeSformer's do. Seen before the first block,
        where a token still depends on its own pixels alone.

        Raises:
            ConfigError: tokens stand in neither order, or are of another number than the description says.
        """
        if self._is_meta:
            return False
        seen: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])
            raise _SeenEnough

        clips, places = self._probes()
        hook = self._blocks()[0].register_forward_pre_hook(stop, with_kwargs=True)
        training = self.backbone.training
        try:
            self.backbone.eval()(pixel_values=clips.transpose(1, 2))
        except _SeenEnough:
            pass
        except (RuntimeError, ValueError, TypeError) as error:
            raise self._cannot(f"its forward failed on a clip [B, T, 3, H, W]: {error}") from error
        finally:
            hook.remove()
            self.backbone.train(training)
        c, shapes = self.num_prefix_tokens, [tuple(tokens.shape[:2]) for tokens in seen]
        if shapes != [(len(clips), c + math.prod(self.grid))]:
            raise self._cannot(f"expected {c + math.prod(self.grid)} tokens before the first block, received {shapes}")
        changed = _changed(seen[0])
        for place_major in (False, True):
            if changed == self._indices(places, c, place_major):
                return place_major
        raise self._cannot(f"the tubelets {places} (time, height, width) became the tokens {changed}")

    def _probes(self) -> tuple[Tensor, list[tuple[int, ...]]]:
        """Clips [1 + places, 3, T, H, W]: a black one, and one for each of the places, where that one tubelet is white:
        the first of all, and the next along each axis."""
        axes = [axis for axis in range(3) if self.grid[axis] > 1]
        places = [(0, 0, 0), *[tuple(int(other == axis) for other in range(3)) for axis in axes]]
        size = [pixels // tokens for pixels, tokens in zip(self.clip_shape, self.grid, strict=True)]
        clips = torch.zeros(1 + len(places), 3, *self.clip_shape)
        for clip, place in zip(clips[1:], places, strict=True):
            clip[(slice(None), *[slice(at * by, (at + 1) * by) for at, by in zip(place, size, strict=True)])] = 1
        return clips, places

    def _indices(self, places: list[tuple[int, ...]], before: int, place_major: bool) -> list[list[int]]:
        """The token of each place, behind ``before`` others."""
        time, height, width = self.grid
        strides = (1, width * time, time) if place_major else (height * width, width, 1)
        return [[before + sum(a * b for a, b in zip(place, strides, strict=True))] for place in places]

    def _cannot(self, why: str) -> ConfigError:
        return ConfigError(f"{type(self.backbone).__name__} cannot be wrapped: {why}")


class _SeenEnough(Exception):
    """Ends a forward pass whose beginning was all that is needed."""


def _changed(tokens: Tensor) -> list[list[int]]:
    """Which tokens of each row but the first differ from those of the first; ``tokens`` [rows, N, D]."""
    return [(row != tokens[0]).any(dim=-1).nonzero().flatten().tolist() for row in tokens[1:]]


def architecture(source: str) -> dict[str, Any]:
    """What ``source`` (folder or hub name) says of its model, as fields of ``VideoEncoderConfig``.

    Raises:
        ConfigError: there is no description, or not that of a video backbone.
    """
    description = _describe(source)
    _clip_shape(description)
    with torch.device("meta"):
        has_class_token = _num_class_tokens(_build(description)) > 0
    return ARCHITECTURE | {  # what only the tubelet transformer has stays as it is there
        "width": description.hidden_size,
        "depth": description.num_hidden_layers,
        "num_heads": description.num_attention_heads,
        "mlp_ratio": description.intermediate_size / description.hidden_size,
        "tubelet": _tubelet(description),
        "class_token": has_class_token,
    }


def _build(description: Any) -> Any:
    from transformers import AutoModel

    try:
        model = AutoModel.from_config(description, dtype=torch.float32)  # whatever it was saved in
    except ValueError as error:
        raise ConfigError(f"transformers has no backbone for {description.model_type}: {error}") from error
    if model.main_input_name != "pixel_values":
        raise ConfigError(
            f"{type(model).__name__} takes {model.main_input_name}, and video_encoder.name=transformers wraps what "
            "takes pixel_values. V-JEPA 2 is read by video_encoder.name=tubelet"
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # nothing here reads it, and a parameter without gradient stalls distributed training
    return model


def _describe(source: str) -> Any:
    from transformers import AutoConfig

    _quiet()
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"video_encoder.pretrained {source!r}: no description of a model could be read from there "
            f"({str(error).splitlines()[0]}). Give a folder in Hugging Face format, or download the model once where "
            "there is a network"
        ) from error


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()  # what does not fit is told by us
    logging.disable_progress_bar()


def _clip_shape(description: Any) -> tuple[int, int, int]:
    frames, size = getattr(description, "num_frames", None), getattr(description, "image_size", None)
    if not isinstance(frames, int) or size is None:
        raise ConfigError(
            f"a model of type {description.model_type!r} is no video backbone: its description has no num_frames or no "
            "image_size. V-JEPA 2 is read by video_encoder.name=tubelet"
        )
    height, width = _pair(size)
    return frames, height, width


def _tubelet(description: Any) -> tuple[int, int, int]:
    """Frames, pixels, pixels of a token."""
    tubelet, patch = getattr(description, "tubelet_size", 1), getattr(description, "patch_size", None)
    if isinstance(tubelet, Sequence) and len(tubelet) == 3:
        return tubelet[0], tubelet[1], tubelet[2]
    if isinstance(tubelet, int) and patch is not None:
        return tubelet, *_pair(patch)
    raise ConfigError(f"the description of a {description.model_type} says no size of its tokens that is known here")


def _pair(size: Any) -> tuple[int, int]:
    return (size[0], size[1]) if isinstance(size, Sequence) else (size, size)


def _num_class_tokens(model: nn.Module) -> int:
    return sum(name.split(".")[-1] == "cls_token" for name, _ in model.named_parameters())


def _is_pooler(name: str) -> bool:
    return name.startswith("pooler.")


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
