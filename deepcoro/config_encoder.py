"""What a config says of the encoders: video, text, and the pooling of a study's clips.

An architecture field that is ``None`` follows the size, or, with ``pretrained``, the checkpoint that is named there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from deepcoro.config_section import Section

PUBMEDBERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext"
BERT = "google-bert/bert-base-uncased"
ENCODER_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 6, "num_heads": 3},
    "small": {"width": 384, "depth": 12, "num_heads": 6},
    "base": {"width": 768, "depth": 12, "num_heads": 12},
    "large": {"width": 1024, "depth": 24, "num_heads": 16},
}
DEFAULT_TUBELET = (2, 16, 16)
# What the tubelet transformer is where nothing says otherwise.
ARCHITECTURE: dict[str, Any] = {
    **ENCODER_SIZES["base"],
    "mlp_ratio": 4.0,
    "tubelet": DEFAULT_TUBELET,
    "attention": "joint",
    "positions": "sincos",
    "class_token": False,
    "patch_norm": True,
    "stem": "linear",
    "stem_width": 32,
    "final_norm": True,
    "norm_eps": 1e-5,
}
_STEM: dict[str, Any] = {key: ARCHITECTURE[key] for key in ("stem", "stem_width")}
KINETICS = "kinetics400"  # names torchvision's weights of MViTv2-S
# Backbones that exist in one architecture only.
FIXED_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mvit": {"width": 768, "depth": 16, "num_heads": 8, "tubelet": (2, 32, 32), "class_token": True},
}

STEM_GROUPS = 8  # of channels that a convolutional stem normalises together

Tubelet = tuple[int, int, int]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Part = Annotated[float, Field(ge=0, le=1)]


class VideoEncoderConfig(Section):
    """The shared encoder."""

    name: str = "tubelet"  # tubelet, mvit, transformers (any video backbone of that library), or module:Name
    # Weights to start from: a folder or hub name in the Hugging Face format, one of our runs or checkpoints, for mvit
    # "kinetics400" or a torch file of the predecessor. The architecture is then the checkpoint's.
    pretrained: str | None = None
    allow_mismatch: bool = False  # begin although weights are missing there, or some have no place here
    # Gives width, depth and num_heads. None: base, or with pretrained what the checkpoint has.
    size: Literal["tiny", "small", "base", "large"] | None = None
    width: Positive | None = None
    depth: Positive | None = None
    num_heads: Positive | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    tubelet: tuple[Positive, Positive, Positive] | None = None  # frames, pixels, pixels of one token
    attention: Literal["joint", "divided"] | None = None  # of space and time together, or time first and then space
    # rotary_tiled is how V-JEPA 2 lays its rotary angles out; nothing else needs it.
    positions: Literal["sincos", "learned", "rotary", "rotary_tiled"] | None = None
    # The grid (time, height, width) that positions were made for, and are interpolated from. None: the clip's own.
    position_grid: tuple[Positive, Positive, Positive] | None = None
    class_token: bool | None = None
    patch_norm: bool | None = None  # normalise the pixels of each tubelet before they are embedded
    # How pixels become tokens. Convolutions are meant for things of a few pixels; they compute hidden tokens too. Their
    # patch_norm is by what surrounds a pixel. stem_width: channels at half the picture's size.
    stem: Literal["linear", "convolutional"] | None = None
    stem_width: Positive | None = None
    final_norm: bool | None = None
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    pool: Literal["attention", "mean", "class"] = "attention"  # tokens -> the vector that contrastive learning compares
    drop_path: Share = 0.0
    checkpoint_activations: bool = False  # less memory: blocks are computed again in the backward pass
    freeze: Part = 0.0  # share of the blocks, from the bottom, that is not trained

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        of_size = ENCODER_SIZES.get(given.get("size", ""), {})
        fixed = FIXED_ARCHITECTURES.get(values.get("name", ""), {})
        if "pretrained" in given and not fixed:
            # A run that was described before there were stems says all the rest of its architecture.
            known = ARCHITECTURE.keys() - _STEM.keys() <= given.keys()
            return (_STEM if known else {}) | of_size | given
        return ARCHITECTURE | of_size | fixed | given

    @model_validator(mode="after")
    def _check(self) -> VideoEncoderConfig:
        if self.width is not None and self.num_heads is not None and self.width % self.num_heads:
            raise ValueError(f"video_encoder.width {self.width} is not divisible by num_heads {self.num_heads}")
        if self.pool == "class" and self.class_token is False:
            raise ValueError("video_encoder.pool=class needs video_encoder.class_token=true")
        turns = self.positions in ("rotary", "rotary_tiled") and self.width and self.num_heads
        if turns and (self.width // self.num_heads < 6 or self.width // self.num_heads % 2):  # type: ignore[operator]
            raise ValueError(
                f"rotary positions need an even number of channels a head, 6 or more; width {self.width} with "
                f"{self.num_heads} heads has not"
            )
        if self.stem == "convolutional" and self.name == "transformers":
            raise ValueError(
                "video_encoder.stem is of the tubelet encoder; name=transformers has its own: leave it out"
            )
        if self.stem == "convolutional" and None not in (self.tubelet, self.width, self.stem_width):
            stem_channels(self.tubelet, self.width, self.stem_width)  # type: ignore[arg-type]
        if self.name == "transformers" and self.pretrained is None:
            raise ValueError("video_encoder.name=transformers needs video_encoder.pretrained: a folder or hub name")
        if self.name in FIXED_ARCHITECTURES:
            own = ARCHITECTURE | {"size": None, "position_grid": None} | FIXED_ARCHITECTURES[self.name]
            for key, value in own.items():
                if getattr(self, key) not in (None, value):
                    raise ValueError(
                        f"video_encoder.name={self.name} exists in one form only, which has {key} {value}, got "
                        f"{getattr(self, key)!r}; leave video_encoder.{key} out"
                    )
        return self

    @property
    def is_resolved(self) -> bool:
        """Whether the architecture is known; with ``pretrained`` it is once the checkpoint has been looked at."""
        return all(getattr(self, key) is not None for key in ARCHITECTURE)


def stem_channels(tubelet: Tubelet, width: int, stem_width: int) -> list[int]:
    """Channels of each stage of a convolutional stem, which halves the picture until a pixel is a token: one, two,
    three, ... times ``stem_width``, and ``width`` in the last.

    Raises:
        ValueError: there is no such stem.
    """
    _, height, across = tubelet
    num_stages = round(math.log2(height))
    if height != across or not 4 <= height <= 32 or 2**num_stages != height:
        raise ValueError(
            "video_encoder.stem=convolutional needs tubelets as high as wide, of 4, 8, 16 or 32 pixels; got "
            f"video_encoder.tubelet {list(tubelet)}"
        )
    if width % STEM_GROUPS or stem_width % STEM_GROUPS:
        raise ValueError(
            f"video_encoder.stem=convolutional needs widths divisible by {STEM_GROUPS}; got width {width} and "
            f"stem_width {stem_width}"
        )
    return [(stage + 1) * stem_width for stage in range(num_stages - 1)] + [width]


def forget_architecture(encoder: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Take out of a dumped ``encoder`` what followed from values that ``changes`` replace."""
    another = {key for key in ("name", "pretrained") if key in changes and changes[key] != encoder[key]}
    names = {encoder["name"], changes.get("name")}
    if "pretrained" in another or ("name" in another and names & {*FIXED_ARCHITECTURES, "transformers"}):
        for key in (*ARCHITECTURE, "position_grid", "size"):
            encoder.pop(key, None)
    elif "size" in changes:
        for key in ENCODER_SIZES["base"]:
            encoder.pop(key, None)


class StudyPoolingConfig(Section):
    """How the clips of a study become one vector (``models/study_pooling.py``)."""

    kind: Literal["attention", "mean"] = "attention"
    num_layers: Annotated[int, Field(ge=0)] = 0  # of a small transformer over the clips, before they are pooled
    num_heads: Positive = 4
    angles: bool = True  # each clip is told from where it was taken: its primary and secondary angle
    order: bool = False  # and which of the study's clips it is, in acquisition order
    view_dropout: Share = 0.0  # share of a study's clips that a training step leaves out; one always stays


class TextEncoderConfig(Section):
    """Any Hugging Face text encoder, by hub name or by folder."""

    name: str | None = None  # None: as use_biomed_tokenizer says
    use_biomed_tokenizer: bool = True  # PubMedBERT and its tokenizer; else BERT and its own
    pretrained: str | None = None  # a torch file of the predecessor, laid over the weights that name brings
    allow_mismatch: bool = False  # begin although weights are missing in that file, or some have no place here
    freeze: Part = 0.0  # share of the layers, from the bottom, that is not trained

    @property
    def source(self) -> str:
        """What ``from_pretrained`` is called with."""
        return self.name or (PUBMEDBERT if self.use_biomed_tokenizer else BERT)
