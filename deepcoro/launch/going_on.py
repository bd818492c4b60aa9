"""Whether a run may go on as it is asked to: the same model, the same stream, the same data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepcoro.config import Config
from deepcoro.config_encoder import ARCHITECTURE
from deepcoro.config_section import flatten
from deepcoro.config_training import LossWeights
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError, DataError
from deepcoro.training.checkpoint import read_manifest

# Fields that say where things lie or how they are run, and may differ from start to start.
_FREE = {
    "root",
    "data.path",
    "text_encoder.name",
    "video_encoder.size",  # what it stands for is compared
    "video_encoder.allow_mismatch",  # of weights that have been read
    "video_encoder.checkpoint_activations",  # the same numbers from less memory
    "masked_modeling.teacher_precision",
    "distillation.teacher_precision",
    "masked_modeling.collapse_floor",
    "masked_modeling.collapse_steps",
    "contrastive.chunk_size",
    "loss",
    "optim",
    "training",
    "resources",
    "evaluation",
}
_TEACHERS = {"masked_modeling.teacher", "distillation.teacher"}  # known by their weights (training/following.py)
_SOURCES = {"video_encoder.pretrained", "text_encoder.pretrained"}  # have been read, and may since lie elsewhere
# Positions of the stream are counted in the one; the other orders the parameters whose moments a checkpoint holds.
_BOUND = {"training.batch_size", "optim.layer_decay"}


def check_going_on(checkpoint: Path, config: Config, dataset: PreparedDataset) -> tuple[Config, list[str]]:
    """``config`` with what the checkpoint knows filled in, once nothing that must not change has changed; and the
    fields that do change, as lines ``key: before -> now``.

    Raises:
        ConfigError: a field differs that the weights or the place in the stream depend on; all of them are named. Or
            the run is to end before the step it has reached.
        DataError: the dataset was prepared anew since.
    """
    check_same_dataset(checkpoint, dataset)
    if int(checkpoint.name) > config.training.num_steps:
        raise ConfigError(
            f"{checkpoint.parent.parent} stands at step {checkpoint.name}, beyond training.num_steps="
            f"{config.training.num_steps}; give at least as many steps, or another name"
        )
    before = Config.load(checkpoint / "config.yaml")
    config = _filled(config, before)
    old, new = (dict(flatten(c.model_dump(mode="json"))) for c in (before, config))
    changed = {key: f"  {key}: {old.get(key)} -> {new[key]}" for key in new if old.get(key) != new[key]}
    bound = [text for key, text in changed.items() if not _is_free(key) and not _has_moved(key, old.get(key), new[key])]
    for name in LossWeights.model_fields:  # a loss that comes or goes brings or takes parameters
        if before.loss.is_used(name) != config.loss.is_used(name):
            bound.append(f"  loss {name}: {_use(before, name)} -> {_use(config, name)}")
    if bound:
        raise ConfigError(
            f"{checkpoint.parent.parent} cannot go on with other values than it was begun with:\n"
            + "\n".join(bound)
            + "\ngive them back, or give the run another name"
        )
    return config, list(changed.values())


def check_same_dataset(checkpoint: Path, dataset: PreparedDataset) -> None:
    """Raise ``DataError`` if the checkpoint was trained on another preparation: patients may have changed splits."""
    trained_on, found = read_manifest(checkpoint)["dataset_fingerprint"], dataset.card.get("fingerprint", "")
    if trained_on != found:
        raise DataError(
            f"{checkpoint} was trained on another dataset than {dataset.root} holds now (fingerprints "
            f"{trained_on[:12]} and "
            f"{found[:12]}): patients may stand in other splits. Give the dataset it was trained on, or train anew"
        )


def _filled(config: Config, before: Config) -> Config:
    """``config`` with what tokenizer and published weights said when the run began; they need not be there now."""
    part, known = config.video_encoder, before.video_encoder
    fields: dict[str, Any] = {}
    if part.pretrained is not None and known.pretrained is not None:
        names = [*ARCHITECTURE, "position_grid"]
        fields = {name: getattr(known, name) for name in names if getattr(part, name) is None}
    vocab_size = config.captioning.vocab_size or before.captioning.vocab_size
    masked = {"teacher_width": config.masked_modeling.teacher_width or before.masked_modeling.teacher_width}
    distilled = {"teacher_dim": config.distillation.teacher_dim or before.distillation.teacher_dim}
    of_teachers = {"masked_modeling": masked, "distillation": distilled}
    return config.merge({"captioning": {"vocab_size": vocab_size}, "video_encoder": fields, **of_teachers})


def _has_moved(key: str, old: str | None, new: str | None) -> bool:
    """Whether a source of weights has the same name, in another place; of a teacher whether there still is one."""
    if old is None or new is None:
        return False
    return key in _TEACHERS or (key in _SOURCES and Path(old).name == Path(new).name)


def _use(config: Config, loss: str) -> str:
    return "used" if config.loss.is_used(loss) else "not used"


def _is_free(key: str) -> bool:
    return key not in _BOUND and any(key == free or key.startswith(f"{free}.") for free in _FREE)
