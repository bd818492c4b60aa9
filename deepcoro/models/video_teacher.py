"""The encoder whose features masked modelling predicts: one that follows the trained one (V-JEPA, 2404.08471), or that
of another run. It sees all tokens, is never trained, and is no part of the model that is.

Letters: B rows, V views, T frames, H W pixels, N tokens, P width of the teacher.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.models.backbones import build_video_encoder
from deepcoro.models.layers import full_precision
from deepcoro.models.own_weights import find_own, own_weights

_LEFT_OUT = ("pool.", "stem_mask_token")  # of a checkpoint: tokens are all that is asked for, and none is hidden


class VideoTeacher(nn.Module):
    """A video encoder in evaluation mode, without gradients.

    Args:
        encoder: it is the teacher's own from now on.
        pixel_mean, pixel_std: of the grey levels that it was, or is, trained on.
        source: a few words on where it comes from.
    """

    def __init__(self, encoder: nn.Module, pixel_mean: float, pixel_std: float, source: str) -> None:
        super().__init__()
        encoder.pool = None  # type: ignore[assignment]  # tokens are all that is asked for
        self.encoder, self.pixel_mean, self.pixel_std, self.source = encoder, pixel_mean, pixel_std, source
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> VideoTeacher:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, clip: Tensor) -> Tensor:
        """``clip`` [B, V, T, H, W] uint8 -> its tokens [B*V, N, P], each of mean 0 and variance 1 over its numbers: a
        LayerNorm without weights, as V-JEPA has it (section 3), so that features cannot shrink to be easy."""
        dtype = next(self.encoder.parameters()).dtype
        pixels = (clip.flatten(0, 1).to(dtype) - self.pixel_mean) / self.pixel_std
        tokens = full_precision(self.encoder(pixels)[:, self.encoder.num_prefix_tokens :])  # type: ignore[misc]
        return F.layer_norm(tokens, tokens.shape[-1:])


def following_teacher(encoder: nn.Module, config: Config) -> VideoTeacher:
    """A teacher with the weights of ``encoder``, which is not yet compiled or divided, and is left as it is."""
    data = config.data
    mean, std = float(data.pixel_mean or 0.0), float(data.pixel_std or 1.0)
    return VideoTeacher(copy.deepcopy(encoder), mean, std, "the video encoder's average")


def frozen_teacher(source: str, field: str) -> VideoTeacher:
    """The encoder of a run or a checkpoint of ours: with its averaged weights, where it has them.

    Args:
        field: of the config that names it, for messages.

    Raises:
        ConfigError: there is none.
        CheckpointError: it is damaged, or a run without a checkpoint.
    """
    checkpoint = teacher_checkpoint(source, field)
    config = Config.load(checkpoint / "config.yaml")
    encoder = build_video_encoder(config, checkpoint / "video_encoder")
    weights, mean, std, what = own_weights(checkpoint)
    encoder.pool = None  # type: ignore[assignment]
    encoder.load_state_dict({name: x for name, x in weights.items() if not name.startswith(_LEFT_OUT)})
    return VideoTeacher(encoder, mean, std, f"{what} of {checkpoint}")


def teacher_checkpoint(source: str, field: str) -> Path:
    """The checkpoint that ``source`` names, or the newest of the run.

    Raises:
        ConfigError: it is no run and no checkpoint.
        CheckpointError: a run without a checkpoint.
    """
    checkpoint = find_own(source, field)
    if checkpoint is None:
        raise ConfigError(f"{field} {source!r} is no folder of a run, nor a checkpoint in one, that holds a checkpoint")
    return checkpoint


@functools.lru_cache(maxsize=8)
def teacher_config(source: str, field: str) -> Config:
    """The config that a teacher was trained with; read once. Raises as ``teacher_checkpoint`` does."""
    return Config.load(teacher_checkpoint(source, field) / "config.yaml")


def resolve_teacher(config: Config) -> Config:
    """``config`` with the width of ``masked_modeling.teacher``, where masked modelling has one, and its encoder's
    architecture is known.

    Raises:
        ConfigError: the teacher does not make the same tokens of a clip, has another width than the one that was given,
            or is not there.
        CheckpointError: as above.
    """
    part = config.masked_modeling
    if part.teacher is None or not config.loss.is_used("masked_modeling"):
        return config
    checkpoint = teacher_checkpoint(part.teacher, "masked_modeling.teacher")
    theirs = Config.load(checkpoint / "config.yaml")
    if (theirs.data.num_frames, theirs.data.frame_size, theirs.grid) != (
        config.data.num_frames,
        config.data.frame_size,
        config.grid,
    ):
        raise ConfigError(
            f"masked_modeling.teacher {part.teacher} makes other tokens of a clip than this run, so that none of its "
            f"features belongs to a hidden token: {_tokens(theirs)} there, {_tokens(config)} here. Give a teacher "
            "with the same, or change data.num_frames, data.frame_size and video_encoder.tubelet to the teacher's"
        )
    width = theirs.video_encoder.width
    if part.teacher_width not in (None, width):
        raise ConfigError(
            f"masked_modeling.teacher_width is {part.teacher_width}, and the teacher {part.teacher} has {width}; leave "
            "it out"
        )
    return config.merge({"masked_modeling": {"teacher_width": width}})


def _tokens(config: Config) -> str:
    data = config.data
    frames = f"{data.num_frames} frames of {data.frame_size}x{data.frame_size}"
    return f"{'x'.join(map(str, config.grid))} (time, height, width) of {frames}"
