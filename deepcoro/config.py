"""The one description of a run: validated when it is made, frozen afterwards, saved with everything it produces.

A field is set in Python, by a YAML file laid over it, or as ``section.field=value``; an unknown key is an error that
names the nearest known one. ``None`` in a field means "derived from what is known elsewhere", as its sentence says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, model_validator

from deepcoro.config_captioning import CaptionTasksConfig
from deepcoro.config_contrastive import ContrastiveConfig, Level
from deepcoro.config_data import DataConfig
from deepcoro.config_distillation import DistillationConfig
from deepcoro.config_encoder import (
    DEFAULT_TUBELET,
    StudyPoolingConfig,
    TextEncoderConfig,
    VideoEncoderConfig,
    forget_architecture,
)
from deepcoro.config_grounding import GroundingConfig
from deepcoro.config_masking import MaskedModelingConfig
from deepcoro.config_section import Section, overlay, set_at
from deepcoro.config_seed import SEED_KEYS, from_seed_keys
from deepcoro.config_sharing import SharedPassConfig
from deepcoro.config_training import LossConfig, OptimConfig
from deepcoro.config_writing import Writing
from deepcoro.errors import ConfigError

_BATCHES_PER_BLOCK, _BLOCK_BYTES = 4, 28 * 2**20

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class CaptioningConfig(Writing):
    """The report decoder, and how it writes."""

    level: Level | None = None  # what a text is written about; None: the clip or the study, as data.unit says
    tasks: CaptionTasksConfig = CaptionTasksConfig()  # shares of report, aref and gcap among training rows
    # Of the report rows of training, those whose words are all predicted at once, from the video alone (CapPa).
    parallel_share: Share = 0.0
    vocab_size: Positive | None = None  # None: the tokenizer's; any other value is an error
    hidden_size: Positive = 512
    num_layers: Positive = 6
    num_heads: Positive = 8
    intermediate_size: Positive = 2048
    max_position_embeddings: Positive = 512
    dropout: Share = 0.1
    loss_type: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Share = 0.1
    ignore_index: Annotated[int, Field(lt=0)] = -100  # marks what is not asked; below 0, as no word is
    chunk_size: Positive = 1024  # tokens whose logits the loss holds at once: less memory, or fewer and larger products
    structured: bool = False  # only what stays a report of the canonical wording may be written, whatever the weights

    @model_validator(mode="after")
    def _check(self) -> CaptioningConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"captioning.hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}"
            )
        if self.max_generation_length > self.max_position_embeddings:
            raise ValueError(
                f"captioning.max_generation_length {self.max_generation_length} is more than "
                f"max_position_embeddings {self.max_position_embeddings}"
            )
        return self


class TrainingConfig(Section):
    """How long, in what pieces and how exactly."""

    num_steps: Positive = 10000
    batch_size: Positive = 32  # of all workers and all accumulated micro-batches together
    accumulation_steps: Positive = 1
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    # A step whose loss or gradients are not finite is left out, counted and told of; so many in a row end the run.
    max_bad_steps: Positive = 10
    # Also keep an average of the weights, which forgets a step by this factor at every further one (less at first), and
    # measure that; None: no average.
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    compile: bool = False  # the video encoder by torch.compile: faster steps on a GPU, after minutes of compiling
    log_every: Positive = 10
    checkpoint_every: Positive = 500
    keep_checkpoints: Positive = 3
    best_metric: str | None = None  # the checkpoint with its best validation value is kept too, saved when evaluated
    best_mode: Literal["max", "min"] = "max"
    evaluate_every: Positive | None = 1000  # None: only at the end
    pictures: bool = True  # strips, reports and similarities in TensorBoard, with every evaluation
    max_failures: Annotated[int, Field(ge=-1)] = 3  # restarts by Ray Train after a worker was lost; -1: without end


class ResourcesConfig(Section):
    """What a run takes of the machine or the cluster. Shares of a CPU are allowed."""

    num_workers: Positive = 1
    use_gpu: bool = False
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = 1.0  # with use_gpu; a share: other runs have the rest
    # none: each worker holds the whole model. full: weights, gradients and optimizer state are divided among them; same
    # numbers, same checkpoints, more exchange. One worker holds all of it either way.
    sharding: Literal["none", "full"] = "none"
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    threads_per_worker: Positive | None = None  # torch threads; None: the cores but one, over the workers
    cpus_per_data_task: Annotated[float, Field(gt=0)] = 0.34  # below 1: a task waits while its neighbour decodes
    # Micro-batches of one worker that are decoded as one task. None: up to 4 of them, of 28 MB of pixels together.
    batches_per_block: Positive | None = None


class EvaluationConfig(Section):
    """How a trained model is measured."""

    batch_size: Positive = 32  # clips
    num_resamples: Positive = 1000  # of the bootstrap over patients
    max_units: Positive | None = None  # evaluate at most this many during training; None: all
    # Probabilities of findings (AUROC, calibration): auto measures them in an evaluation of its own where the tokenizer
    # can write canonical reports, and never while a run trains; always does then too, and refuses where it cannot.
    finding_probabilities: Literal["auto", "always", "never"] = "auto"
    asynchronous: bool = False  # during training: in a task of its own beside the workers, which train on
    # Whether the model finds lesions that have boxes (evaluation/grounding.py); None: where captioning.tasks.aref is
    # above 0. Without aref it can be asked for no box, and attention alone is measured.
    grounding: bool | None = None


class Config(Section):
    """A whole run. ``Config()`` is the real experiment with the seed's defaults."""

    flat_keys: ClassVar[Mapping[str, str]] = SEED_KEYS  # accepted in a YAML without sections
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "multitask"
    root: str = "runs"  # folder or URI under which the run's folder lies
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: DataConfig = DataConfig()
    video_encoder: VideoEncoderConfig = VideoEncoderConfig()
    study_pooling: StudyPoolingConfig = StudyPoolingConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    captioning: CaptioningConfig = CaptioningConfig()
    masked_modeling: MaskedModelingConfig = MaskedModelingConfig()
    shared_pass: SharedPassConfig = SharedPassConfig()
    grounding: GroundingConfig = GroundingConfig()
    distillation: DistillationConfig = DistillationConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig = TrainingConfig()
    resources: ResourcesConfig = ResourcesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.video_encoder.tubelet is not None:
            self._check_tokens()
        self._check_levels()
        if self.shared_pass.enabled:
            self._check_shared_pass()
        if self.masked_modeling.pretrained and self.video_encoder.pretrained is None:
            raise ValueError(
                "masked_modeling.pretrained=true takes the decoder of the run of ours that video_encoder.pretrained "
                "names, and that is not given"
            )
        self.grounding.check_used(
            self.loss.is_used("grounding"), self.loss.is_used("captioning"), self.shared_pass.enabled
        )
        if self.loss.is_used("distillation"):
            self.distillation.check_used(self.loss.is_used("contrastive"))
        parts = self.resources.num_workers * self.training.accumulation_steps
        if self.training.batch_size % parts:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} does not divide among {self.resources.num_workers} "
                f"workers x {self.training.accumulation_steps} accumulation steps"
            )
        if self.resources.gpus_per_worker < 1 and self.resources.num_workers > 1:
            raise ValueError(
                f"resources.gpus_per_worker {self.resources.gpus_per_worker:g} is for runs of one worker: the "
                f"{self.resources.num_workers} workers of a run exchange gradients, each from a GPU of its own"
            )
        if self.resources.sharding == "full" and self.training.precision == "fp16":
            raise ValueError(
                "resources.sharding=full does not go with training.precision=fp16, whose gradient scaling cannot look "
                "at divided gradients; use bf16 or fp32, or resources.sharding=none"
            )
        self.optim.check_steps(self.training.num_steps)
        self.loss.check_steps(self.training.num_steps)
        if self.needs_text and self.data.max_text_length > self.captioning.max_position_embeddings:
            raise ValueError(
                f"data.max_text_length {self.data.max_text_length} is more than captioning.max_position_embeddings "
                f"{self.captioning.max_position_embeddings}"
            )
        return self

    def _check_tokens(self) -> None:
        t, h, w = self.tubelet
        frames, size = self.data.num_frames, self.data.frame_size
        if frames % t or size % h or size % w:
            raise ValueError(
                f"a clip of {frames} frames of {size}x{size} does not divide into tubelets of {t}x{h}x{w}; "
                "change data.num_frames, data.frame_size or video_encoder.tubelet"
            )
        if self.num_tokens > 2**16:
            raise ValueError(f"a clip of {self.grid} tokens has more than 65536; use larger tubelets or smaller clips")
        self.masked_modeling.check_blocks(self.grid)
        self.distillation.check_block(self.grid)
        if self.loss.is_used("masked_modeling") or self.shared_pass.enabled:
            self.masked_modeling.check_ratios(self.grid)
            if self.masked_modeling.strategy == "motion" and frames < 2:
                raise ValueError(f"masked_modeling.strategy=motion needs data.num_frames of 2 or more, got {frames}")

    def _check_levels(self) -> None:
        for name in ("contrastive", "captioning"):
            if self.data.unit == "video" and getattr(self, name).level == "study":
                raise ValueError(f"{name}.level=study needs data.unit=study: a video by itself is no study")
        if self.captioning.tasks.in_use and self.level("captioning") == "study":
            raise ValueError(
                "captioning.tasks.aref and gcap name a frame of one clip, and the decoder of a whole study reads its "
                "clips as a set; set captioning.level=clip"
            )
        pooling, width = self.study_pooling, self.video_encoder.width
        if self.pools_studies and pooling.kind == "attention" and width is not None and width % pooling.num_heads:
            raise ValueError(
                f"video_encoder.width {width} is not divisible by study_pooling.num_heads {pooling.num_heads}"
            )

    def _check_shared_pass(self) -> None:
        self.shared_pass.check_steps(self.training.num_steps)
        if not self.needs_text:
            raise ValueError(
                "shared_pass.enabled needs the contrastive or the captioning loss; without them masked modelling's "
                "pass is the only one"
            )
        if self.video_encoder.name in ("mvit", "transformers"):
            raise ValueError(
                f"shared_pass.enabled needs an encoder that leaves hidden tokens out, and {self.video_encoder.name} "
                "computes all of them, with a mask token in place of the hidden ones: nothing would be saved; use "
                "video_encoder.name=tubelet, or shared_pass.enabled=false"
            )
        self.shared_pass.check_ratio(self.masked_modeling, self.grid, self.loss.is_used("masked_modeling"))

    def level(self, loss: str) -> Level:
        """Whether ``contrastive`` or ``captioning`` takes clips by themselves, or the clips of a study together."""
        return getattr(self, loss).level or ("clip" if self.data.unit == "video" else "study")

    @property
    def pools_studies(self) -> bool:
        """Whether the contrastive loss compares studies."""
        return self.loss.is_used("contrastive") and self.level("contrastive") == "study"

    def level_is_used(self, level: Level) -> bool:
        """Whether a loss in use that reads texts takes rows of that level."""
        return any(self.loss.is_used(name) and self.level(name) == level for name in ("contrastive", "captioning"))

    @property
    def logit_bias(self) -> float:
        """Where the sigmoid's bias starts."""
        views = self.data.num_videos if self.level("contrastive") == "clip" else 1
        return self.contrastive.start_bias(self.training.batch_size * views)

    @property
    def needs_clip_texts(self) -> bool:
        """Whether each clip of a study needs a text of its own."""
        return self.data.unit == "study" and self.level_is_used("clip")

    @property
    def reads_clip_texts_only(self) -> bool:
        """Whether no loss needs the text of a whole study."""
        return self.needs_clip_texts and not self.level_is_used("study")

    @property
    def tubelet(self) -> tuple[int, int, int]:
        """Frames and pixels of a token."""
        return self.video_encoder.tubelet or DEFAULT_TUBELET

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a clip along time, height and width."""
        t, h, w = self.tubelet
        return self.data.num_frames // t, self.data.frame_size // h, self.data.frame_size // w

    @property
    def num_tokens(self) -> int:
        """Tokens of a clip."""
        t, h, w = self.grid
        return t * h * w

    @property
    def num_visible(self) -> int:
        """Tokens the masked pass shows at ``masked_modeling.mask_ratio``, as it always does in an evaluation."""
        return self.masked_modeling.num_visible(self.grid)

    @property
    def masked_target_size(self) -> int:
        """Numbers of what masked modelling predicts of a token: its pixels, or the features of a teacher."""
        t, h, w = self.tubelet
        width = {"ema": self.video_encoder.width, "frozen": self.masked_modeling.teacher_width}
        return width.get(self.masked_modeling.target, t * h * w) or 0

    @property
    def measures_reconstruction(self) -> bool:
        """Whether an evaluation measures, and draws, how hidden pixels are filled in: nothing else can be."""
        return self.loss.is_used("masked_modeling") and self.masked_modeling.target == "pixels"

    @property
    def visible_range(self) -> tuple[int, int]:
        """The fewest and the most tokens that the masked pass of a training step shows."""
        ratios, num_steps = list(self.masked_modeling.training_ratios), self.training.num_steps
        if self.shared_pass.mask_ratio is not None:
            has_tail = self.shared_pass.num_steps(num_steps) < num_steps
            ratios = [self.shared_pass.mask_ratio, *(ratios if has_tail else [])]
        fewest, most = (self.masked_modeling.num_visible(self.grid, pick(ratios)) for pick in (max, min))
        return fewest, most

    @property
    def needs_text(self) -> bool:
        """Whether any loss in use reads reports."""
        return self.loss.is_used("contrastive") or self.loss.is_used("captioning")

    @property
    def measures_grounding(self) -> bool:
        """Whether an evaluation asks where lesions are."""
        asked = self.evaluation.grounding
        return self.loss.is_used("captioning") and (self.captioning.tasks.aref > 0 if asked is None else asked)

    @property
    def micro_batch_size(self) -> int:
        """Rows one worker takes in one forward pass."""
        return self.training.batch_size // (self.resources.num_workers * self.training.accumulation_steps)

    @property
    def batches_per_block(self) -> int:
        """Micro-batches that are decoded as one task. Few make gaps between tasks; and blocks from 32 MB on are taken
        anew from the kernel each time, page by page: decoding ran a fifth slower with 51 MB than with 26."""
        if self.resources.batches_per_block is not None:
            return self.resources.batches_per_block
        data = self.data
        clip = data.num_frames * data.frame_size**2
        if self.loss.is_used("grounding"):
            clip += self.grounding.bytes_of_maps(self.grid)
        micro_batch = self.micro_batch_size * data.num_videos * clip
        return min(max(1, _BLOCK_BYTES // max(1, micro_batch)), _BATCHES_PER_BLOCK)

    def override(self, assignments: Iterable[str]) -> Config:
        """Return a config with ``section.field=value`` applied; values are read as YAML.

        Raises:
            ConfigError: not of that form, an unknown key, or a value out of range.
        """
        changes: dict[str, Any] = {}
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals or not path:
                raise ConfigError(f"{assignment!r} is not of the form section.field=value")
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ConfigError(f"{assignment!r}: the value is not YAML: {error}") from None
            set_at(changes, path.split("."), value)
        return self.merge(changes)

    def merge(self, changes: Mapping[str, Any]) -> Config:
        """Return a config with a nested mapping laid over this one."""
        base = self.model_dump()
        forget_architecture(base["video_encoder"], changes.get("video_encoder") or {})
        if (changes.get("data") or {}).get("unit", self.data.unit) != self.data.unit:
            del base["data"]["num_videos"]  # another unit has another number of its own
        return Config(**overlay(base, changes))

    def save(self, path: str | Path) -> None:
        """Write every field, defaults included, as YAML."""
        Path(path).write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Read what ``save`` wrote.

        Raises:
            ConfigError: no such file, no YAML mapping, an unknown key, a value out of range.
        """
        return cls(**read_yaml(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; the seed's flat keys are translated to sections."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(values).__name__}")
    return from_seed_keys(values)
