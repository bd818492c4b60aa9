"""Whether the model of another run can teach this one: the same clips, the same rows, the same words. Asked before
anything starts."""

from __future__ import annotations

from typing import Any

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.models.video_teacher import teacher_checkpoint, teacher_config

_FIELD = "distillation.teacher"
_NAMED = 5  # words that a message names


def resolve_run_teacher(config: Config) -> Config:
    """``config`` with the width of the embeddings of ``distillation.teacher``, where distillation has one.

    Raises:
        ConfigError: it takes other clips, compares other rows, has no contrastive loss, has another width than the one
            that was given, or is not there.
        CheckpointError: a run without a checkpoint.
    """
    part = config.distillation
    if part.teacher is None or not config.loss.is_used("distillation"):
        return config
    theirs = teacher_config(part.teacher, _FIELD)
    if not theirs.loss.is_used("contrastive"):
        raise ConfigError(f"{_FIELD} {part.teacher} was trained without the contrastive loss, and has no embeddings")
    shapes = [(c.data.num_frames, c.data.frame_size, c.data.frame_size) for c in (theirs, config)]
    if shapes[0] != shapes[1]:
        there, here = ("x".join(map(str, shape)) for shape in shapes)
        raise ConfigError(
            f"{_FIELD} {part.teacher} takes clips of {there} (frames, pixels), and this run has {here}; set "
            f"data.num_frames={shapes[0][0]} and data.frame_size={shapes[0][1]}"
        )
    levels = [c.level("contrastive") for c in (theirs, config)]
    if levels[0] != levels[1]:
        raise ConfigError(
            f"{_FIELD} {part.teacher} was trained with contrastive.level={levels[0]}, and this run has {levels[1]}: "
            "its embeddings are of other rows"
        )
    dim = theirs.contrastive.embedding_dim
    if part.teacher_dim not in (None, dim):
        raise ConfigError(
            f"distillation.teacher_dim is {part.teacher_dim}, and the teacher {part.teacher} has {dim}; leave it out"
        )
    return config.merge({"distillation": {"teacher_dim": dim}})


def check_same_words(config: Config, tokenizer: Any) -> None:
    """Raise ``ConfigError`` if ``distillation.teacher`` reads texts by another tokenizer than ``tokenizer``, one of
    transformers': it is given this run's numbers of words."""
    part = config.distillation
    if part.teacher is None or not config.loss.is_used("distillation"):
        return
    folder = teacher_checkpoint(part.teacher, _FIELD) / "tokenizer"
    if not folder.is_dir():
        raise ConfigError(f"{_FIELD} {part.teacher} has no tokenizer in {folder}; use another checkpoint")
    theirs, own = load_tokenizer(str(folder)).get_vocab(), tokenizer.get_vocab()
    others = sorted(word for word in theirs.keys() | own.keys() if theirs.get(word) != own.get(word))
    if others:
        named = ", ".join(map(repr, others[:_NAMED])) + (", ..." if len(others) > _NAMED else "")
        raise ConfigError(
            f"{_FIELD} {part.teacher} reads texts by another tokenizer: it has {len(theirs)} words, this run "
            f"{len(own)}, and {len(others)} have not the same number in both ({named}). Set text_encoder.name to a "
            "text encoder with the teacher's tokenizer, or leave distillation.teacher out"
        )
