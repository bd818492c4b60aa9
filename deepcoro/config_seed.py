"""The flat YAML of the original training setup: its keys, and where they stand in the config's sections.

A file of that form is one whose keys are these; a sectioned file passes through untouched.
"""

from __future__ import annotations

from typing import Any

from deepcoro.errors import ConfigError

SEED_KEYS: dict[str, str] = {
    "vocab_size": "captioning.vocab_size",
    "decoder_layers": "captioning.num_layers",
    "decoder_heads": "captioning.num_heads",
    "decoder_intermediate_size": "captioning.intermediate_size",
    "max_position_embeddings": "captioning.max_position_embeddings",
    "use_biomed_tokenizer": "text_encoder.use_biomed_tokenizer",
    "max_text_length": "data.max_text_length",
    "max_generation_length": "captioning.max_generation_length",
    "captioning_do_sample": "captioning.do_sample",
    "captioning_temperature": "captioning.temperature",
    "mvm_decoder_hidden_size": "masked_modeling.decoder_hidden_size",
    "mvm_decoder_layers": "masked_modeling.decoder_layers",
    "mvm_decoder_heads": "masked_modeling.decoder_heads",
    "mask_ratio": "masked_modeling.mask_ratio",
    "mask_token_learnable": "masked_modeling.mask_token_learnable",
    "norm_predict_loss": "masked_modeling.norm_predict_loss",
    "text_lr": "optim.text_lr",
    "captioning_lr": "optim.captioning_lr",
    "captioning_weight_decay": "optim.captioning_weight_decay",
    "mvm_lr": "optim.mvm_lr",
    "mvm_weight_decay": "optim.mvm_weight_decay",
    "contrastive_loss_type": "contrastive.loss_type",
    "captioning_loss_type": "captioning.loss_type",
    "masked_modeling_loss_type": "masked_modeling.loss_type",
    "label_smoothing": "captioning.label_smoothing",
    "ignore_index": "captioning.ignore_index",
    "loss_weights": "loss.weights",
    "use_loss_weight_scheduler": "loss.use_scheduler",
    "initial_loss_weights": "loss.initial",
    "final_loss_weights": "loss.final",
    "loss_warmup_steps": "loss.warmup_steps",
    "loss_total_steps": "loss.total_steps",
    "loss_schedule_type": "loss.schedule_type",
}

# Keys that chose among alternatives there are none of here: only the value that names what this platform does is
# accepted.
FIXED: dict[str, Any] = {"pipeline_project": "DeepCORO_multitask", "loss_name": "multitask"}


def from_seed_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Translate flat keys to sections; keys that are not the seed's stay as they are.

    Raises:
        ConfigError: the file asks for a project or loss that does not exist here, or for weights without saying which,
            or gives a section a value.
    """
    sections: dict[str, Any] = {}
    for key, value in values.items():
        if key in FIXED:
            if value != FIXED[key]:
                raise ConfigError(f"{key}: only {FIXED[key]!r} exists here, got {value!r}")
        elif key == "model_name":
            _section(sections, "video_encoder")["name"] = value
        elif key == "pretrained":
            _section(sections, "video_encoder")["pretrained"] = _weights_of(values.get("model_name"), value)
        elif key in SEED_KEYS:
            section, field = SEED_KEYS[key].split(".")
            _section(sections, section)[field] = value
        elif isinstance(value, dict):
            _section(sections, key).update(value)
        else:
            sections[key] = value
    return sections


def _weights_of(model_name: Any, pretrained: Any) -> str | None:
    """What ``pretrained: true`` means for a backbone."""
    if not isinstance(pretrained, bool):
        raise ConfigError(f"pretrained must be true or false, got {pretrained!r}")
    if not pretrained:
        return None
    if model_name == "mvit":
        return "kinetics400"
    raise ConfigError(
        "pretrained: true goes with model_name: mvit, whose Kinetics-400 weights it means. For another backbone say "
        "which weights: pretrained: false, and video_encoder: {pretrained: <folder, hub name or run>}"
    )


def _section(sections: dict[str, Any], name: str) -> dict[str, Any]:
    section = sections.setdefault(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"{name} is a section and must hold fields, got {section!r}")
    return section
