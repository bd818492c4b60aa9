"""The original training setup's defaults, and its flat YAML with keys of its own."""

import inspect

import pytest

from deepcoro.config import Config
from deepcoro.config_encoder import BERT
from deepcoro.errors import ConfigError

# Copied from the description of the original training setup.
SEED_BACKBONE = """model_name: "mvit"
pretrained: true
"""
SEED_AS_PRINTED = """
# Model parameters
pipeline_project: "DeepCORO_multitask"
model_name: "mvit"
pretrained: true

# Captioning decoder parameters
vocab_size: 30522
decoder_layers: 6
decoder_heads: 8
decoder_intermediate_size: 2048
max_position_embeddings: 512
use_biomed_tokenizer: true
max_text_length: 512
max_generation_length: 128

# Masked video modeling parameters
mvm_decoder_hidden_size: 256
mvm_decoder_layers: 2
mvm_decoder_heads: 8
mask_ratio: 0.75
mask_token_learnable: true
norm_predict_loss: true

# Learning rates for different components
text_lr: 0.00002
captioning_lr: 0.00006171328778901703
captioning_weight_decay: 0.01
mvm_lr: 0.000006171328778901703
mvm_weight_decay: 0.01

# Loss configuration
loss_name: "multitask"
contrastive_loss_type: "sigmoid"
captioning_loss_type: "cross_entropy"
masked_modeling_loss_type: "mse"
label_smoothing: 0.1
ignore_index: -100

# Loss weights
loss_weights:
  contrastive: 1.0
  captioning: 1.0
  masked_modeling: 0.1
  distillation: 0.0
"""
SEED_YAML = SEED_AS_PRINTED.replace(SEED_BACKBONE, "")
SEED_EXTRAS = """
use_loss_weight_scheduler: true
initial_loss_weights:
  contrastive: 1.0
  captioning: 0.5
  masked_modeling: 0.1
final_loss_weights:
  contrastive: 1.0
  captioning: 1.0
  masked_modeling: 0.1
loss_warmup_steps: 1000
loss_total_steps: 10000
loss_schedule_type: "linear"
max_generation_length: 128
captioning_do_sample: false
captioning_temperature: 1.0
"""
DEFAULTS = {
    "captioning.hidden_size": 512,
    "captioning.num_layers": 6,
    "captioning.num_heads": 8,
    "captioning.intermediate_size": 2048,
    "captioning.max_position_embeddings": 512,
    "captioning.max_generation_length": 128,
    "captioning.do_sample": False,
    "captioning.temperature": 1.0,
    "captioning.label_smoothing": 0.1,
    "captioning.ignore_index": -100,
    "captioning.loss_type": "cross_entropy",
    "text_encoder.use_biomed_tokenizer": True,
    "data.max_text_length": 512,
    "masked_modeling.decoder_hidden_size": 256,
    "masked_modeling.decoder_layers": 2,
    "masked_modeling.decoder_heads": 8,
    "masked_modeling.mask_ratio": 0.75,
    "masked_modeling.mask_token_learnable": True,
    "masked_modeling.norm_predict_loss": True,
    "masked_modeling.loss_type": "mse",
    "optim.text_lr": 0.00002,
    "optim.captioning_lr": 0.00006171328778901703,
    "optim.captioning_weight_decay": 0.01,
    "optim.mvm_lr": 0.000006171328778901703,
    "optim.mvm_weight_decay": 0.01,
    "contrastive.loss_type": "sigmoid",
    "loss.weights.contrastive": 1.0,
    "loss.weights.captioning": 1.0,
    "loss.weights.masked_modeling": 0.1,
    "loss.weights.distillation": 0.0,
    "loss.use_scheduler": False,
    "loss.initial.contrastive": 1.0,
    "loss.initial.captioning": 0.5,
    "loss.initial.masked_modeling": 0.1,
    "loss.final.contrastive": 1.0,
    "loss.final.captioning": 1.0,
    "loss.final.masked_modeling": 0.1,
    "loss.warmup_steps": 1000,
    "loss.total_steps": 10000,
    "loss.schedule_type": "linear",
    "data.num_frames": 16,
    "data.frame_size": 224,
}


def value_at(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("path", DEFAULTS)
def test_the_defaults_are_the_seeds(path):
    assert value_at(Config(), path) == DEFAULTS[path]


def test_the_parts_have_the_seeds_defaults_too():
    from deepcoro.losses.multitask import LossWeightScheduler, MultitaskLoss
    from deepcoro.models.captioning_decoder import CaptioningDecoder
    from deepcoro.models.masked_video_modeling import MaskedVideoModeling

    def defaults(thing):
        return {name: p.default for name, p in inspect.signature(thing).parameters.items()}

    assert defaults(CaptioningDecoder).items() >= {
        "vocab_size": 30522, "hidden_size": 512, "num_layers": 6, "num_heads": 8, "intermediate_size": 2048,
        "max_position_embeddings": 512,
    }.items()  # fmt: skip
    assert defaults(MaskedVideoModeling).items() >= {
        "mask_ratio": 0.75, "decoder_hidden_size": 256, "decoder_layers": 2, "decoder_heads": 8,
        "mask_token_learnable": True, "norm_predict_loss": True,
    }.items()  # fmt: skip
    assert defaults(LossWeightScheduler).items() >= {
        "warmup_steps": 1000, "total_steps": 10000, "schedule_type": "linear",
    }.items()  # fmt: skip
    loss = MultitaskLoss()
    weights = {"contrastive": 1.0, "captioning": 1.0, "masked_modeling": 0.1, "grounding": 0.0, "distillation": 0.0}
    assert (loss.loss_weights, loss.label_smoothing, loss.ignore_index) == (weights, 0.1, -100)
    assert defaults(MultitaskLoss)["contrastive_loss_type"] == "sigmoid"


def test_the_seeds_flat_yaml_loads_to_the_right_sections(tmp_path):
    path = tmp_path / "seed.yaml"
    path.write_text(SEED_YAML + SEED_EXTRAS.replace("max_generation_length: 128\n", ""))
    config = Config.load(path)
    assert config.captioning.vocab_size == 30522
    for place, wanted in (DEFAULTS | {"loss.use_scheduler": True}).items():
        assert value_at(config, place) == wanted


def test_the_seeds_yaml_loads_as_it_is_printed(tmp_path):
    path = tmp_path / "seed.yaml"
    path.write_text(SEED_AS_PRINTED)
    encoder = Config.load(path).video_encoder
    assert (encoder.name, encoder.pretrained) == ("mvit", "kinetics400")
    path.write_text("pretrained: true\nmodel_name: mvit\n")  # whichever stands first
    assert Config.load(path).video_encoder.pretrained == "kinetics400"
    path.write_text(SEED_AS_PRINTED.replace("pretrained: true", "pretrained: false"))
    config = Config.load(path)
    assert config.video_encoder.pretrained is None
    assert (config.grid, config.video_encoder.width) == ((8, 7, 7), 768)


@pytest.mark.parametrize("line", ["pretrained: true", "pretrained: true\nmodel_name: tubelet"])
def test_weights_without_mvit_have_to_be_named(tmp_path, line):
    path = tmp_path / "seed.yaml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=r"goes with model_name: mvit.*video_encoder: \{pretrained: <folder"):
        Config.load(path)
    path.write_text("pretrained: kinetics400\nmodel_name: mvit\n")
    with pytest.raises(ConfigError, match="pretrained must be true or false, got 'kinetics400'"):
        Config.load(path)


def test_a_backbone_of_ones_own_is_a_model_name_too(tmp_path):
    path = tmp_path / "seed.yaml"
    path.write_text("model_name: my_models:Encoder\npretrained: false\n")
    assert Config.load(path).video_encoder.name == "my_models:Encoder"


def test_a_section_that_is_given_a_value_is_refused(tmp_path):
    path = tmp_path / "seed.yaml"
    path.write_text("masked_modeling: 0.5\nmask_ratio: 0.5\n")
    with pytest.raises(ConfigError, match=r"masked_modeling is a section.*0\.5"):
        Config.load(path)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("mask_ratoi", "masked_modeling.mask_ratio"),
        ("mvm_decoder_layer", "mvm_decoder_layers"),
        ("decoder_layer", "decoder_layers"),
        ("initial_loss_weight", "initial_loss_weights"),
        ("use_loss_weight_schedular", "use_loss_weight_scheduler"),
    ],
)
def test_a_misspelt_key_of_the_seed_names_the_nearest(tmp_path, wrong, near):
    path = tmp_path / "seed.yaml"
    path.write_text(SEED_YAML + f"{wrong}: 1\n")
    with pytest.raises(ConfigError, match=f"unknown key '{wrong}'; the nearest known is '{near}'"):
        Config.load(path)


def test_every_flat_key_reaches_its_place(tmp_path):
    path = tmp_path / "seed.yaml"
    path.write_text(
        "decoder_layers: 3\ndecoder_heads: 4\ndecoder_intermediate_size: 100\nmax_text_length: 33\nmask_ratio: 0.6\n"
        "mvm_decoder_hidden_size: 64\nmvm_decoder_layers: 1\nmvm_decoder_heads: 4\nmask_token_learnable: false\n"
        "norm_predict_loss: false\ntext_lr: 0.1\ncaptioning_lr: 0.2\ncaptioning_weight_decay: 0.3\nmvm_lr: 0.4\n"
        "mvm_weight_decay: 0.5\ncontrastive_loss_type: softmax\nlabel_smoothing: 0.0\nignore_index: -1\n"
        "loss_weights: {contrastive: 2.0}\nuse_biomed_tokenizer: false\nmax_generation_length: 7\n"
        "captioning_do_sample: true\ncaptioning_temperature: 0.7\nloss_schedule_type: cosine\nloss_warmup_steps: 1\n"
        "loss_total_steps: 9\n"
    )
    config = Config.load(path)
    wanted = {
        "captioning.num_layers": 3, "captioning.num_heads": 4, "captioning.intermediate_size": 100,
        "data.max_text_length": 33, "masked_modeling.mask_ratio": 0.6, "masked_modeling.decoder_hidden_size": 64,
        "masked_modeling.decoder_layers": 1, "masked_modeling.decoder_heads": 4,
        "masked_modeling.mask_token_learnable": False, "masked_modeling.norm_predict_loss": False, "optim.text_lr": 0.1,
        "optim.captioning_lr": 0.2, "optim.captioning_weight_decay": 0.3, "optim.mvm_lr": 0.4,
        "optim.mvm_weight_decay": 0.5, "contrastive.loss_type": "softmax", "captioning.label_smoothing": 0.0,
        "captioning.ignore_index": -1, "loss.weights.contrastive": 2.0, "loss.weights.masked_modeling": 0.1,
        "text_encoder.source": BERT, "captioning.max_generation_length": 7, "captioning.do_sample": True,
        "captioning.temperature": 0.7, "loss.schedule_type": "cosine", "loss.warmup_steps": 1, "loss.total_steps": 9,
    }  # fmt: skip
    assert {place: value_at(config, place) for place in wanted} == wanted


@pytest.mark.parametrize(
    ("line", "named"),
    [("loss_name: other", "other"), ("pipeline_project: Echo", "Echo")],
)
def test_what_the_seed_could_choose_and_is_not_here_is_refused(tmp_path, line, named):
    path = tmp_path / "seed.yaml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=named):
        Config.load(path)
