"""What published checkpoints of the tests are, and what both sides make of a grey clip."""

import json

import torch
import transformers

MEAN, STD = [0.485, 0.31, 0.606], [0.229, 0.35, 0.12]  # three channels that cannot be mixed up
PIXELS = ("data.pixel_mean=105.68", "data.pixel_std=38.95")
COMMON = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}
VIDEOMAE = {
    "image_size": 24,
    "num_frames": 4,
    "intermediate_size": 40,
    "use_mean_pooling": False,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
TIMESFORMER = {"image_size": 24, "num_frames": 4, "intermediate_size": 56}
VJEPA2 = {
    "crop_size": 24,
    "frames_per_clip": 4,
    "mlp_ratio": 3,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
    "num_pooler_layers": 1,
}
# Name of the model -> class, config, and what is different from the common fields.
KINDS = {
    "videomae": ("VideoMAEModel", "VideoMAEConfig", VIDEOMAE),
    "videomae without a final norm": ("VideoMAEModel", "VideoMAEConfig", VIDEOMAE | {"use_mean_pooling": True}),
    "videomae without biases": ("VideoMAEModel", "VideoMAEConfig", VIDEOMAE | {"qv_bias": False}),
    "videomae with a decoder": ("VideoMAEForPreTraining", "VideoMAEConfig", VIDEOMAE),
    "videomae with classes": (
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        VIDEOMAE | {"use_mean_pooling": True},
    ),
    "timesformer": ("TimesformerModel", "TimesformerConfig", TIMESFORMER),
    "timesformer, joint": (
        "TimesformerModel",
        "TimesformerConfig",
        TIMESFORMER | {"attention_type": "joint_space_time"},
    ),
    "timesformer without biases": ("TimesformerModel", "TimesformerConfig", TIMESFORMER | {"qkv_bias": False}),
    "timesformer with classes": ("TimesformerForVideoClassification", "TimesformerConfig", TIMESFORMER),
    "vjepa2": ("VJEPA2Model", "VJEPA2Config", VJEPA2),
    "vjepa2 without biases": ("VJEPA2Model", "VJEPA2Config", VJEPA2 | {"qkv_bias": False}),
    "vjepa2 with classes": ("VJEPA2ForVideoClassification", "VJEPA2Config", VJEPA2),
}


def save_published(kind, folder, seed=0, **different):
    """Save a checkpoint with every weight at random; returns the bare model that is in it."""
    model_class, config_class, fields = KINDS[kind]
    config = getattr(transformers, config_class)(**COMMON | fields | different)
    model = getattr(transformers, model_class)(config).eval()
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=chance)
            scales = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if scales else 0.2 * noise)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return getattr(model, model.base_model_prefix, model)


def grey(frames=4, size=24, rows=2):
    return torch.randint(
        0, 256, (rows, frames, size, size), generator=torch.Generator().manual_seed(7), dtype=torch.uint8
    )


def colours(clip):
    """A grey clip as theirs takes it: three equal channels, each with its own mean and deviation."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    return ((clip[:, :, None].expand(-1, -1, 3, -1, -1) / 255 - mean) / std).float()


def theirs(model, clip):
    """What transformers makes of a grey clip; tokens along time, then height, then width."""
    with torch.no_grad():
        if model.config.model_type == "vjepa2":
            return model(colours(clip), skip_predictor=True).last_hidden_state
        tokens = model(colours(clip)).last_hidden_state
    if model.config.model_type == "timesformer":  # a class token, then place by place
        grid = tokens[:, 1:].unflatten(1, (-1, clip.shape[1])).transpose(1, 2).flatten(1, 2)
        tokens = torch.cat([tokens[:, :1], grid], dim=1)
    return tokens


def ours(model, clip, visible=None):
    with torch.no_grad():
        return model.video_encoder.eval()(model.normalise(clip), visible)
