"""VideoMAE, TimeSformer and V-JEPA 2 of transformers -> our encoder: its architecture, and its weights.

Nothing is approximated: our encoder on a normalised grey clip gives what theirs gives on the same clip as RGB.

Letters: D width, C channels, T tokens along time, P places of a frame, N = T P tokens, t h w of a tubelet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcoro.errors import ConfigError

# Parts that belong to what a checkpoint was trained for, and not to its encoder.
HEADS = ("decoder", "encoder_to_decoder", "mask_token", "classifier", "fc_norm", "predictor", "pooler")
ATTENTION = {"divided_space_time": "divided", "joint_space_time": "joint"}  # TimeSformer's words -> ours


def architecture_of(description: Any, source: str) -> dict[str, Any]:
    """The architecture fields of ``VideoEncoderConfig``, from the config of a model of transformers.

    Args:
        source: where it comes from, for the message.

    Raises:
        ConfigError: it is none of the three, or has a part that our encoder has not.
    """
    kind = description.model_type
    if kind not in READERS:
        raise ConfigError(
            f"video_encoder.pretrained {source!r} holds a {kind!r} model; {', '.join(READERS)} can be read into the "
            "tubelet encoder. Other video backbones of transformers go by video_encoder.name=transformers"
        )
    if description.hidden_act not in ("gelu", "gelu_python"):
        raise ConfigError(
            f"video_encoder.pretrained {source!r} has hidden_act {description.hidden_act!r}, and our encoder 'gelu'"
        )
    common = {
        "width": description.hidden_size,
        "depth": description.num_hidden_layers,
        "num_heads": description.num_attention_heads,
        "attention": "joint",
        "positions": "learned",
        "position_grid": None,
        "class_token": False,
        "patch_norm": False,
        "final_norm": True,
        "norm_eps": description.layer_norm_eps,
    }
    return common | FIELDS[kind](description, source)


def convert(
    hf_model: nn.Module,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    pixel_mean: float,
    pixel_std: float,
    source: str = "the model",
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Architecture fields of ``VideoEncoderConfig``, and the state dict of our encoder without its pool, in 32 bits.

    Theirs takes channel c of a grey level g in 0..255 as (g / 255 - image_mean[c]) / image_std[c], ours takes it as
    x = (g - pixel_mean) / pixel_std. The channels' weights are summed with both scales in them, and the shift goes into
    the bias: tokens of a whole tubelet are never padded, so that this is exact.

    Args:
        hf_model: a VideoMAE, TimeSformer or V-JEPA 2, bare or with a head, which is left out.
        image_mean, image_std: of each channel C.

    Raises:
        ConfigError: the model is none of the three, or has another number of channels.
    """
    base = getattr(hf_model, hf_model.base_model_prefix, hf_model)  # type: ignore[call-overload]
    fields = architecture_of(base.config, source)
    stem, weights = READERS[base.config.model_type](base)
    weight, bias = stem.weight.detach().cpu(), stem.bias.detach().cpu()  # [D, C, (t,) h, w], [D]
    mean, std = torch.tensor(image_mean).double(), torch.tensor(image_std).double()
    if not len(mean) == len(std) == weight.shape[1]:
        raise ConfigError(
            f"{source} takes {weight.shape[1]} channels, and there are {len(mean)} means and {len(std)} deviations"
        )
    weights["embed.weight"], weights["embed.bias"] = fold(
        weight.flatten(2), bias, pixel_std / (255 * std), (pixel_mean / 255 - mean) / std
    )
    return fields, {name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in weights.items()}


def fold(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer that takes C channels ``scale[c] * x + shift[c]`` of one input x -> the layer that takes x.

    Args:
        weight: [D, C, P], of P pixels.
    """
    wide = weight.double()
    folded = torch.einsum("dcp,c->dp", wide, scale.double())
    moved = bias.double() + torch.einsum("dcp,c->d", wide, shift.double())
    return folded.to(weight.dtype), moved.to(bias.dtype)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _places(size: Any, patch: Any) -> tuple[int, int]:
    return _pair(size)[0] // _pair(patch)[0], _pair(size)[1] // _pair(patch)[1]


def _videomae_fields(description: Any, source: str) -> dict[str, Any]:
    times = description.num_frames // description.tubelet_size
    return {
        "mlp_ratio": description.intermediate_size / description.hidden_size,
        "tubelet": (description.tubelet_size, *_pair(description.patch_size)),
        "position_grid": (times, *_places(description.image_size, description.patch_size)),
        "final_norm": not description.use_mean_pooling,  # its classifier normalises after the mean instead
    }


def _timesformer_fields(description: Any, source: str) -> dict[str, Any]:
    if description.attention_type not in ATTENTION:
        raise ConfigError(
            f"video_encoder.pretrained {source!r} has attention_type {description.attention_type!r}; "
            f"{' and '.join(ATTENTION)} can be read"
        )
    return {
        "mlp_ratio": description.intermediate_size / description.hidden_size,
        "tubelet": (1, *_pair(description.patch_size)),
        "position_grid": (description.num_frames, *_places(description.image_size, description.patch_size)),
        "attention": ATTENTION[description.attention_type],
        "class_token": True,
    }


def _vjepa2_fields(description: Any, source: str) -> dict[str, Any]:
    hidden = int(description.hidden_size * description.mlp_ratio)  # as transformers rounds it
    return {
        "mlp_ratio": hidden / description.hidden_size,
        "tubelet": (description.tubelet_size, *_pair(description.patch_size)),
        "positions": "rotary_tiled",
    }


def _videomae(model: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """The layer that embeds tubelets, and all other weights by our names."""
    weights = {"position_embedding": model.embeddings.position_embeddings[0]}
    for number, layer in enumerate(model.encoder.layer):
        own = f"blocks.{number}."
        inner = layer.attention.attention
        weights |= _norms(own, layer.layernorm_before, layer.layernorm_after)
        weights |= _attention(own + "attention.", inner.query, inner.key, inner.value, layer.attention.output.dense)
        weights |= _feed_forward(own, layer.intermediate.dense, layer.output.dense)
    if model.layernorm is not None:
        weights |= _linear("norm.", model.layernorm)
    return model.embeddings.patch_embeddings.projection, weights


def _timesformer(model: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """The layer that embeds tubelets, and all other weights by our names.

    A token's position is the sum of its place's and its time's. The class token has a place of its own and no time.
    """
    embeddings = model.embeddings
    space, time = embeddings.position_embeddings[0], embeddings.time_embeddings[0]  # [1 + P, D], [T, D]
    weights = {
        "position_embedding": (time[:, None] + space[None, 1:]).flatten(0, 1),
        "class_token": embeddings.cls_token + space[:1],
    }
    for number, layer in enumerate(model.encoder.layer):
        own = f"blocks.{number}."
        weights |= _norms(own, layer.layernorm_before, layer.layernorm_after)
        weights |= _joined_attention(own + "attention.", layer.attention)
        weights |= _feed_forward(own, layer.intermediate.dense, layer.output.dense)
        if model.config.attention_type == "divided_space_time":
            weights |= _linear(own + "norm_time.", layer.temporal_layernorm)
            weights |= _joined_attention(own + "attention_time.", layer.temporal_attention)
            inner, outer = layer.temporal_attention.output.dense, layer.temporal_dense  # one linear layer in ours
            wide = outer.weight.double()
            weights[own + "attention_time.out.weight"] = (wide @ inner.weight.double()).to(inner.weight.dtype)
            weights[own + "attention_time.out.bias"] = (wide @ inner.bias.double()).to(inner.bias.dtype) + outer.bias
    weights |= _linear("norm.", model.layernorm)
    return embeddings.patch_embeddings.projection, weights


def _vjepa2(model: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """The layer that embeds tubelets, and all other weights by our names."""
    weights: dict[str, Tensor] = {}
    for number, layer in enumerate(model.encoder.layer):
        own, inner = f"blocks.{number}.", layer.attention
        weights |= _norms(own, layer.norm1, layer.norm2)
        weights |= _attention(own + "attention.", inner.query, inner.key, inner.value, inner.proj)
        weights |= _feed_forward(own, layer.mlp.fc1, layer.mlp.fc2)
    weights |= _linear("norm.", model.encoder.layernorm)
    return model.encoder.embeddings.patch_embeddings.proj, weights


def _linear(name: str, layer: nn.Module) -> dict[str, Tensor]:
    return {name + "weight": layer.weight, name + "bias": layer.bias}  # type: ignore[dict-item]


def _norms(own: str, before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    return _linear(own + "norm1.", before) | _linear(own + "norm2.", after)


def _feed_forward(own: str, first: nn.Module, second: nn.Module) -> dict[str, Tensor]:
    return _linear(own + "feed_forward.0.", first) | _linear(own + "feed_forward.3.", second)


def _bias(layer: nn.Linear) -> Tensor:
    """Of a layer; one without adds nothing."""
    return layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)


def _attention(name: str, query: Any, key: Any, value: Any, out: nn.Module) -> dict[str, Tensor]:
    return {
        name + "query.weight": query.weight,
        name + "query.bias": _bias(query),
        name + "key_value.weight": torch.cat([key.weight, value.weight]),
        name + "key_value.bias": torch.cat([_bias(key), _bias(value)]),
    } | _linear(name + "out.", out)


def _joined_attention(name: str, attention: Any) -> dict[str, Tensor]:
    """Of one whose queries, keys and values are made by one layer, in that order."""
    joined = attention.attention.qkv
    width = joined.in_features
    bias = _bias(joined)
    return {
        name + "query.weight": joined.weight[:width],
        name + "query.bias": bias[:width],
        name + "key_value.weight": joined.weight[width:],
        name + "key_value.bias": bias[width:],
    } | _linear(name + "out.", attention.output.dense)


# What can be read, by transformers' model_type.
READERS: dict[str, Any] = {"videomae": _videomae, "timesformer": _timesformer, "vjepa2": _vjepa2}
FIELDS: dict[str, Any] = {"videomae": _videomae_fields, "timesformer": _timesformer_fields, "vjepa2": _vjepa2_fields}
