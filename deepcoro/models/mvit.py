"""MViTv2-S (2112.01526) of torchvision, as the original training setup had it.

Its stem makes 8 x 56 x 56 tokens of a clip of 16 frames of 224 x 224; three of its blocks halve height and width, so
8 x 7 x 7 come out. Each of those stands for 8 x 8 of the stem's.

Letters: B clips, N = 392 tokens.
"""

from __future__ import annotations

from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepcoro.config_encoder import FIXED_ARCHITECTURES, KINETICS, VideoEncoderConfig
from deepcoro.errors import ConfigError
from deepcoro.models.rgb_backbone import WrappedEncoder
from deepcoro.models.weights import accept_mismatch, copy_weights

CLIP = (16, 224, 224)
_STEM, _GRID = (8, 56, 56), (8, 7, 7)
_IMAGE_MEAN, _IMAGE_STD = (0.45,) * 3, (0.225,) * 3  # of torchvision's Kinetics weights


class MViT(WrappedEncoder):
    """The patch tokens of ``mvit_v2_s`` after its last norm, [B, 1 + N, 768], the class token first.

    Args:
        num_frames, frame_size: of the clips; the architecture allows 16 and 224 only.
        pool: how tokens become one vector: ``attention``, ``mean`` or ``class``.
        drop_path: share of residual branches skipped at the last block, rising linearly from 0 at the first.
        checkpoint_activations: keep only the input of each block for the backward pass, and compute the rest again.

    Raises:
        ConfigError: torchvision is not there, or is of another torch; or the clips have another shape.
    """

    def __init__(
        self,
        num_frames: int = 16,
        frame_size: int = 224,
        pool: str = "attention",
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        if (num_frames, frame_size, frame_size) != CLIP:
            raise ConfigError(
                f"video_encoder.name=mvit takes clips of 16x224x224, and this config says "
                f"{num_frames}x{frame_size}x{frame_size}; set data.num_frames=16 and data.frame_size=224"
            )
        width, num_heads = (FIXED_ARCHITECTURES["mvit"][key] for key in ("width", "num_heads"))
        super().__init__(CLIP, _GRID, width, 96, 1, pool, num_heads)
        self.checkpoint_activations = checkpoint_activations
        self.backbone = _torchvision_video().mvit_v2_s(weights=None, stochastic_depth_prob=drop_path)
        self.backbone.head = nn.Identity()  # of the Kinetics classes: nothing would train it

    @classmethod
    def from_config(cls, num_frames: int, frame_size: int, part: VideoEncoderConfig) -> MViT:
        """As a config describes it."""
        return cls(num_frames, frame_size, part.pool, part.drop_path, part.checkpoint_activations)

    def tokens(self, rgb: Tensor, hidden: Tensor | None) -> Tensor:
        """``rgb`` [B, 3, 16, 224, 224] -> [B, 1 + N, 768]."""
        tokens = self.backbone.conv_proj(rgb).flatten(2).transpose(1, 2)
        if hidden is not None:
            per_token = [stem // final for stem, final in zip(_STEM, _GRID, strict=True)]
            at_stem = hidden.unflatten(1, _GRID)
            for axis, times in enumerate(per_token, start=1):
                at_stem = at_stem.repeat_interleave(times, dim=axis)
            tokens = self.replace_hidden(tokens, at_stem.flatten(1))
        tokens, shape = self.backbone.pos_encoding(tokens), _STEM
        saves = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        for block in self.backbone.blocks:
            tokens, shape = (
                checkpoint(block, tokens, shape, use_reentrant=False) if saves else block(tokens, shape)  # type: ignore[misc]
            )
        return self.backbone.norm(tokens)

    def bottom_up(self) -> list[list[nn.Parameter]]:
        """Parameters from the pixels upwards: those before the first block, then each block's."""
        stem = [*self.backbone.conv_proj.parameters(), *self.backbone.pos_encoding.parameters()]
        return [stem, *[list(block.parameters()) for block in self.backbone.blocks]]

    def load_weights(self, source: str, allow_mismatch: bool, pixel_mean: float, pixel_std: float) -> list[str]:
        """Take the Kinetics-400 weights by torchvision's own call; returns what was taken, in lines for a person.

        Args:
            source: ``kinetics400``.
            allow_mismatch: as for other backbones; these weights have nothing to miss.
            pixel_mean, pixel_std: what our clips were normalised by, in grey levels 0-255.

        Raises:
            ConfigError: another source, or the weights can be had neither from torch's cache nor from the network.
        """
        if source != KINETICS:
            raise ConfigError(f"video_encoder.pretrained for mvit is {KINETICS} or a torch file, got {source!r}")
        published = _torchvision_video().MViT_V2_S_Weights.KINETICS400_V1
        try:
            weights = published.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"the weights {published.url} cannot be had: {error}. Download that file once where there is a network "
                f"and put it into {torch.hub.get_dir()}/checkpoints"
            ) from error
        kept = {name: value for name, value in weights.items() if not name.startswith("head.")}
        lines = accept_mismatch(published.url, copy_weights(self.backbone, kept), allow_mismatch)
        self.take_images_of(pixel_mean, pixel_std, _IMAGE_MEAN, _IMAGE_STD)
        return [f"{len(kept)} weights of {published.url}, its head left out", *lines]


def _torchvision_video() -> Any:
    """``torchvision.models.video``.

    Raises:
        ConfigError: torchvision is missing, or was built for another torch.
    """
    try:
        from torchvision.models import video
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "torchvision":
            raise
        raise ConfigError(
            "video_encoder.name=mvit needs torchvision, which is not installed: pip install 'deepcoro[mvit]'"
        ) from error
    except (ImportError, RuntimeError) as error:  # RuntimeError: operator torchvision::nms does not exist
        raise ConfigError(
            f"video_encoder.name=mvit needs torchvision, and the one that is installed does not work with torch "
            f"{torch.__version__} ({error}). Install the build that belongs to this torch: the same index and CUDA "
            "version, or CPU for CPU"
        ) from error
    return video
