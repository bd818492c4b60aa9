"""Which video encoder a config names.

A video encoder is a module with these parts, whoever made it:

- ``forward(clip, visible=None)``: normalised clips [B, T, H, W] -> tokens [B, c + N, D] of the grid, along time, then
  height, then width, behind ``num_prefix_tokens`` c others; with ``visible`` [B, K] only those K, which must not depend
  on any hidden pixel;
- ``clip_shape`` (T, H, W), ``grid`` (tokens along time, height, width), ``width`` D, ``num_prefix_tokens``;
- ``pool``: tokens -> [B, D]; it is set to ``None`` where nothing is to be pooled;
- ``bottom_up()``: its parameters from the pixels upwards, first those before the blocks, then each block's;
- ``prepare_masking()``, where it has that: called once if masked modelling is in use, to make what only that trains.
"""

from __future__ import annotations

import importlib
from operator import attrgetter
from pathlib import Path

from torch import nn

from deepcoro.config import Config
from deepcoro.errors import ConfigError

# Called with the frames and the size of a clip, and the config's section; imported only when asked for, since some need
# heavy libraries. ``video_encoder.name`` may also be a ``module:Name`` of the user's.
ENCODERS = {
    "tubelet": "deepcoro.models.video_encoder:VideoEncoder.from_config",
    "mvit": "deepcoro.models.mvit:MViT.from_config",
    "transformers": "deepcoro.models.wrapped:TransformersEncoder.from_config",
}


def build_video_encoder(config: Config, described_in: Path | None = None) -> nn.Module:
    """The encoder of a resolved config, with random weights.

    Args:
        described_in: a folder with what a backbone of transformers is, in place of where its weights come from.

    Raises:
        ConfigError: there is none of that name, or it has another width or grid than the config says.
    """
    part = config.video_encoder
    if described_in is not None and described_in.is_dir():
        part = part.model_copy(update={"pretrained": str(described_in)})
    module, _, name = ENCODERS.get(part.name, part.name).partition(":")
    try:
        build = attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"video_encoder.name {part.name!r} is none of {', '.join(ENCODERS)} and no module:Name that can be "
            f"imported: {error}"
        ) from error
    encoder = build(config.data.num_frames, config.data.frame_size, part)
    for what, expected, received in (
        ("width", part.width, encoder.width),
        ("grid", config.grid, tuple(encoder.grid)),
    ):
        if expected != received:
            raise ConfigError(f"video_encoder {part.name!r} has {what} {received}, and the config says {expected}")
    return encoder


def freeze_bottom(parts: list[list[nn.Parameter]], share: float) -> None:
    """Freeze a share of the blocks, rounded to whole ones, and with the first of them what lies below.

    Args:
        parts: parameters before the blocks, then those of each block, bottom up.
    """
    num_frozen = round(share * (len(parts) - 1))
    for part in parts[: num_frozen + 1] if num_frozen else []:
        for parameter in part:
            parameter.requires_grad_(False)
