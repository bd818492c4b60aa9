"""The description of a run: ranges, overrides, YAML, what follows from its fields."""

import math

import pytest
import yaml

from deepcoro.config import Config
from deepcoro.config_encoder import PUBMEDBERT
from deepcoro.errors import ConfigError


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
        ("contrastive.positives=patient", "text, study, text_or_study or module:function, got 'patient'"),
        ("contrastive.chunk_size=0", "chunk_size.*greater than 0"),
        ("contrastive.severity_weight=-0.5", "severity_weight.*greater than or equal to 0, got -0.5"),
        ("contrastive.severity_weight=.inf", "severity_weight.*finite"),
        ("contrastive.logit_bias=much", "logit_bias.*'auto'.*much"),
        ("loss.weights.captioning=-0.1", "loss.weights.captioning.*greater than or equal to 0"),
        ("loss.weights.distillation=1", "distillation is above 0, and there is nothing to learn from"),
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
        ("resources.sharding=half", "resources.sharding: .*'none' or 'full'"),
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


def test_micro_batches_are_decoded_together_while_they_are_small():
    # 8 frames of 96x96: 74 kB; 16 of 224x224: 0.8 MB, of which 36 are 28 MB
    clips = {(16, 8, 96): 4, (16, 16, 224): 2, (32, 16, 224): 1, (128, 16, 224): 1}
    for (batch, frames, size), expected in clips.items():
        config = Config(data={"num_frames": frames, "frame_size": size}, training={"batch_size": batch})
        assert config.batches_per_block == expected
    assert Config().override(["resources.batches_per_block=7"]).batches_per_block == 7


@pytest.mark.parametrize(
    ("assignments", "negatives"),
    [
        ((), 31),
        (("training.batch_size=8", "resources.num_workers=2"), 7),  # of all workers
        (("training.batch_size=2",), 1),
        (("training.batch_size=1",), 1),  # there are none
        (("data.unit=study", "data.num_videos=4"), 31),
        (("data.unit=study", "data.num_videos=4", "contrastive.level=clip"), 127),
    ],
)
def test_before_there_are_data_the_bias_starts_at_the_odds_of_one_positive_a_row(assignments, negatives):
    config = Config().override(["contrastive.logit_bias=auto", *assignments])
    assert config.logit_bias == pytest.approx(-math.log(negatives))
    assert config.override(["contrastive.logit_bias=-3.5"]).logit_bias == -3.5


def test_sharding_goes_with_bf16_and_fp32_only():
    assert Config().resources.sharding == "none"
    for precision in ("bf16", "fp32"):
        Config().override(["resources.sharding=full", f"training.precision={precision}"])
    Config().override(["training.precision=fp16"])
    with pytest.raises(ConfigError, match=r"resources.sharding=full does not go with training.precision=fp16"):
        Config().override(["resources.sharding=full", "training.precision=fp16"])
