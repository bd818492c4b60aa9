"""The description of a run: the seed's defaults, ranges, overrides, YAML, the seed's flat keys."""

import inspect

import pytest
import yaml

from deepcoro.config import BERT, PUBMEDBERT, Config
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
    weights = {"contrastive": 1.0, "captioning": 1.0, "masked_modeling": 0.1, "distillation": 0.0}
    assert (loss.loss_weights, loss.label_smoothing, loss.ignore_index) == (weights, 0.1, -100)
    assert defaults(MultitaskLoss)["contrastive_loss_type"] == "sigmoid"


def test_the_seeds_flat_yaml_loads_to_the_right_sections(tmp_path):
    path = tmp_path / "seed.yaml"
    path.write_text(SEED_YAML + SEED_EXTRAS.replace("max_generation_length: 128\n", ""))
    config = Config.load(path)
    assert config.captioning.vocab_size == 30522
    for place, wanted in (DEFAULTS | {"loss.use_scheduler": True}).items():
        assert value_at(config, place) == wanted


def test_the_seeds_yaml_as_printed_names_the_extra_that_is_missing_and_the_way_out(tmp_path):
    path = tmp_path / "seed.yaml"
    path.write_text(SEED_AS_PRINTED)
    with pytest.raises(ConfigError, match=r"'mvit' needs the extra mvit.*not built.*Delete model_name and pretrained"):
        Config.load(path)
    path.write_text("pretrained: true\nmodel_name: mvit\n")  # whichever stands first
    with pytest.raises(ConfigError, match="the extra mvit"):
        Config.load(path)
    path.write_text(SEED_YAML)  # the way out
    assert SEED_YAML != SEED_AS_PRINTED and Config.load(path).captioning.vocab_size == 30522


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
    [("model_name: mvit", "mvit"), ("pretrained: true", "pretrained"), ("loss_name: other", "other"),
     ("pipeline_project: Echo", "Echo")],
)  # fmt: skip
def test_what_the_seed_could_choose_and_is_not_here_is_refused(tmp_path, line, named):
    path = tmp_path / "seed.yaml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=named):
        Config.load(path)


def test_tokenizer_sources():
    assert Config().text_encoder.source == PUBMEDBERT
    assert Config().override(["text_encoder.name=/some/folder"]).text_encoder.source == "/some/folder"


@pytest.mark.parametrize(
    ("assignment", "nearest"),
    [
        ("masked_modeling.mask_ration=0.5", "masked_modeling.mask_ratio"),
        ("captioning.labelsmoothing=0.1", "captioning.label_smoothing"),
        ("loss.weights.contrastiv=1", "loss.weights.contrastive"),
        ("optimm.lr=1", "optim"),
        ("naem=x", "name"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(assignment, nearest):
    key = assignment.split("=")[0]
    with pytest.raises(ConfigError) as caught:
        Config().override([assignment])
    assert key.split(".")[-1] in str(caught.value) or key.split(".")[0] in str(caught.value)
    assert f"'{nearest}'" in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("masked_modeling.mask_ratio=1.0", "masked_modeling.mask_ratio.*less than 1"),
        ("masked_modeling.mask_ratio=0", "greater than 0"),
        ("optim.lr=-1", "optim.lr.*greater than 0"),
        ("optim.lr=.nan", "optim.lr.*finite"),
        ("training.batch_size=0", "training.batch_size.*greater than 0"),
        ("contrastive.loss_type=hinge", "'sigmoid' or 'softmax'"),
        ("loss.weights.captioning=-0.1", "loss.weights.captioning.*greater than or equal to 0"),
        ("loss.weights.distillation=1", "distillation.*less than or equal to 0"),
        ("data.num_frames=many", "data.num_frames.*many"),
        ("data.num_frames=15", "15 frames"),
        ("data.num_videos=4", "data.unit=study"),
        ("data.crop_scale=[0.9, 0.5]", "smallest, largest"),
        ("captioning.num_heads=7", "512 is not divisible by num_heads 7"),
        ("masked_modeling.decoder_heads=7", "256 is not divisible by decoder_heads 7"),
        ("video_encoder.num_heads=7", "768 is not divisible by num_heads 7"),
        ("captioning.max_generation_length=513", "513 is more than max_position_embeddings 512"),
        ("data.max_text_length=513", "513 is more than"),
        ("resources.num_workers=3", "32 does not divide among 3 workers"),
        ("optim.warmup_steps=10000", "10000 must be below training.num_steps 10000"),
        ("masked_modeling.mask_ratio=0.9999", "leaves 0 to see"),
        ("name=../x", "name"),
    ],
)
def test_a_value_out_of_range_says_the_range(assignment, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        Config().override([assignment])


def test_a_section_made_by_itself_names_the_nearest_key_too():
    from deepcoro.config import MaskedModelingConfig

    with pytest.raises(ConfigError, match="mask_ratio"):
        MaskedModelingConfig(mask_ration=0.5)


def test_a_seed_the_order_cannot_take_is_refused():
    with pytest.raises(ConfigError, match="seed"):
        Config(seed=2**70)


def test_no_loss_at_all_is_refused():
    zero = [f"loss.weights.{name}=0" for name in ("contrastive", "captioning", "masked_modeling")]
    with pytest.raises(ConfigError, match="nothing to train"):
        Config().override(zero)


@pytest.mark.parametrize(
    "assignment",
    ["optim.lr", "=3", "optim.lr.deeper=3", "optim=3", "optim.=3", ".lr=3", "optim.lr=[", "optim.lr=1: 2: 3"],
)
def test_an_assignment_of_no_form_is_a_config_error(assignment):
    with pytest.raises(ConfigError):
        Config().override([assignment])


def test_two_assignments_of_which_one_is_a_field_of_the_other_are_a_config_error():
    with pytest.raises(ConfigError):
        Config().override(["optim=1", "optim.lr=3"])


def test_overrides_are_read_as_yaml_and_leave_the_rest():
    config = Config().override(["optim.lr=3e-4", "data.filter=acquisition == 'pci'", "training.evaluate_every=null"])
    assert config.optim.lr == 3e-4
    assert config.data.filter == "acquisition == 'pci'"
    assert config.training.evaluate_every is None
    assert config.optim.text_lr == 2e-5
    assert Config().optim.lr == 6.171328778901703e-05


def test_a_config_is_frozen():
    with pytest.raises(Exception, match="frozen"):
        Config().optim.lr = 1.0


def test_yaml_round_trip(tmp_path, tiny_config):
    for config in (Config(), tiny_config("loss.use_scheduler=true", "data.filter=lvef > 40", "resources.use_gpu=true")):
        config.save(tmp_path / "config.yaml")
        assert Config.load(tmp_path / "config.yaml") == config
        assert yaml.safe_load((tmp_path / "config.yaml").read_text())["optim"]["betas"] == [0.9, 0.98]


@pytest.mark.parametrize("text", ["- a list", "optim: [unclosed", "just words", ""])
def test_a_file_without_a_mapping_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        Config.load(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        Config.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(("size", "shape"), [("tiny", (192, 6, 3)), ("small", (384, 12, 6)), ("base", (768, 12, 12))])
def test_a_size_brings_its_width_depth_and_heads(size, shape):
    part = Config().override([f"video_encoder.size={size}"]).video_encoder
    assert (part.width, part.depth, part.num_heads) == shape
    given = Config().override([f"video_encoder.size={size}", "video_encoder.depth=2"]).video_encoder
    assert (given.width, given.depth, given.num_heads) == (shape[0], 2, shape[2])


@pytest.mark.parametrize(
    ("ratio", "strategy", "visible"),
    # 8 x 14 x 14 = 1568 tokens; a tube is one of 196 places at 8 times.
    [
        (0.75, "random", 392),
        (0.9, "random", 157),
        (0.75, "tube", 392),
        (0.9, "tube", (196 - 176) * 8),
        (0.5, "tube", 784),
    ],
)
def test_number_of_visible_tokens_by_hand(ratio, strategy, visible):
    config = Config().override([f"masked_modeling.mask_ratio={ratio}", f"masked_modeling.strategy={strategy}"])
    assert (config.grid, config.num_tokens, config.num_visible) == ((8, 14, 14), 1568, visible)


def test_which_losses_are_used_follows_the_schedule():
    config = Config().override(["loss.use_scheduler=true", "loss.weights.captioning=0", "loss.initial.captioning=0"])
    assert config.loss.is_used("captioning")
    config = config.override(["loss.final.captioning=0"])
    assert not config.loss.is_used("captioning")
    assert config.needs_text
    assert not Config().override(["loss.weights.captioning=0", "loss.weights.contrastive=0"]).needs_text


def test_micro_batch_size_by_hand():
    config = Config().override(["resources.num_workers=2", "training.accumulation_steps=4"])
    assert config.micro_batch_size == 4
