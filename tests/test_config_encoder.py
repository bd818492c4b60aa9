"""What a config says of the encoders: what is refused, and what follows from what."""

import pytest

from deepcoro.config import Config
from deepcoro.config_encoder import ARCHITECTURE, ENCODER_SIZES, VideoEncoderConfig
from deepcoro.errors import ConfigError

STUDY = ("data.unit=study", "data.num_videos=2")


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (("video_encoder.width=100",), "width 100 is not divisible by num_heads 12"),
        (("video_encoder.pool=class",), "pool=class needs video_encoder.class_token=true"),
        (("video_encoder.positions=rotary", "video_encoder.width=48"), "48 with 12 heads has not"),
        (
            ("video_encoder.positions=rotary_tiled", "video_encoder.width=63", "video_encoder.num_heads=9"),
            "63 with 9 heads",
        ),
        (("video_encoder.name=mvit", "video_encoder.depth=12"), "name=mvit .* has depth 16, got 12"),
        (("video_encoder.name=mvit", "video_encoder.class_token=false"), "mvit .* has class_token True, got False"),
        (("video_encoder.attention=linear",), "'joint' or 'divided'"),
        (("video_encoder.positions=alibi",), "'sincos', 'learned', 'rotary' or 'rotary_tiled'"),
        (("video_encoder.pool=max",), "'attention', 'mean' or 'class'"),
        (("video_encoder.drop_path=1",), "drop_path.*less than 1"),
        (("video_encoder.freeze=1.1",), "freeze.*less than or equal to 1"),
        (("text_encoder.freeze=-0.1",), "text_encoder.freeze.*greater than or equal to 0"),
        (("video_encoder.norm_eps=0",), "norm_eps.*greater than 0"),
        (("video_encoder.position_grid=[0, 1, 1]",), "position_grid.*greater than 0"),
        (("video_encoder.size=huge",), "'tiny', 'small', 'base' or 'large'"),
        (("video_encoder.pretraind=x",), "video_encoder.pretrained"),
        (("contrastive.level=study",), "contrastive.level=study needs data.unit=study"),
        (("captioning.level=study",), "captioning.level=study needs data.unit=study"),
        (("captioning.level=video",), "'clip' or 'study'"),
        ((*STUDY, "study_pooling.num_heads=5"), "768 is not divisible by study_pooling.num_heads 5"),
        ((*STUDY, "study_pooling.kind=max"), "'attention' or 'mean'"),
        ((*STUDY, "study_pooling.view_dropout=1"), "view_dropout.*less than 1"),
    ],
)
def test_what_cannot_be_is_refused(assignments, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        Config().override(assignments)


@pytest.mark.parametrize(
    "assignments",
    [
        ("video_encoder.pool=class", "video_encoder.class_token=true"),
        ("video_encoder.positions=rotary",),
        ("study_pooling.num_heads=5",),  # nothing pools studies here
        (*STUDY, "study_pooling.num_heads=5", "study_pooling.kind=mean"),
        (*STUDY, "study_pooling.num_heads=5", "contrastive.level=clip"),
        ("video_encoder.freeze=1", "text_encoder.freeze=1"),
    ],
)
def test_what_can_be_is_taken(assignments):
    assert Config().override(assignments).video_encoder.is_resolved


def test_levels_follow_the_unit_unless_they_are_given():
    clip, study = Config(), Config().override(STUDY)
    for name in ("contrastive", "captioning"):
        assert (clip.level(name), study.level(name)) == ("clip", "study")
    mixed = Config().override([*STUDY, "captioning.level=clip"])
    assert (mixed.level("contrastive"), mixed.level("captioning")) == ("study", "clip")
    assert mixed.pools_studies and mixed.needs_clip_texts
    assert not study.needs_clip_texts and not clip.needs_clip_texts and not clip.pools_studies
    assert not study.override(["loss.weights.contrastive=0"]).pools_studies
    assert mixed.level_is_used("study") and not mixed.override(["loss.weights.contrastive=0"]).level_is_used("study")


@pytest.mark.parametrize("size", ENCODER_SIZES)
def test_a_size_brings_its_shape_and_what_is_given_stays(size):
    part = Config().override([f"video_encoder.size={size}"]).video_encoder
    assert {key: getattr(part, key) for key in ENCODER_SIZES[size]} == ENCODER_SIZES[size]
    part = VideoEncoderConfig(size=size, depth=3)
    assert (part.width, part.depth) == (ENCODER_SIZES[size]["width"], 3)


def test_another_size_forgets_the_shape_of_the_one_before_and_nothing_else():
    before = Config().override(["video_encoder.depth=3", "video_encoder.attention=divided"])
    after = before.override(["video_encoder.size=small"]).video_encoder
    assert {key: getattr(after, key) for key in ENCODER_SIZES["small"]} == ENCODER_SIZES["small"]
    assert after.attention == "divided"
    kept = before.override(["video_encoder.size=small", "video_encoder.depth=5"]).video_encoder
    assert (kept.width, kept.depth) == (384, 5)
    assert before.override(["optim.lr=1e-4"]).video_encoder == before.video_encoder


ARCHITECTURE_FIELDS = tuple(ARCHITECTURE)


def test_a_checkpoint_leaves_the_architecture_open_until_it_has_been_looked_at():
    before = Config().override(["video_encoder.attention=divided", "video_encoder.freeze=0.5"])
    after = before.override(["video_encoder.pretrained=some/folder"])
    assert not after.video_encoder.is_resolved
    assert {getattr(after.video_encoder, key) for key in ARCHITECTURE_FIELDS} == {None}
    assert after.video_encoder.freeze == 0.5  # no part of an architecture
    # what it is found to be is filled in, and stays when something else changes
    found = ARCHITECTURE | {"width": 48, "num_heads": 4, "depth": 3, "positions": "learned"}
    resolved = after.merge({"video_encoder": {**found, "position_grid": (8, 14, 14)}})
    assert resolved.video_encoder.is_resolved and resolved.video_encoder.width == 48
    assert resolved.override(["optim.lr=1e-4"]).video_encoder == resolved.video_encoder
    same = resolved.override(["video_encoder.pretrained=some/folder"])
    assert same.video_encoder == resolved.video_encoder
    # another checkpoint, or none, begins anew
    other = resolved.override(["video_encoder.pretrained=another/folder"]).video_encoder
    assert not other.is_resolved and other.position_grid is None
    none = resolved.override(["video_encoder.pretrained=null"]).video_encoder
    assert {key: getattr(none, key) for key in ARCHITECTURE_FIELDS} == ARCHITECTURE and none.position_grid is None


def test_another_backbone_forgets_the_architecture_of_the_one_before():
    before = Config().override(["video_encoder.attention=divided", "video_encoder.size=tiny"])
    mvit = before.override(["video_encoder.name=mvit"])
    part = mvit.video_encoder
    assert (part.width, part.depth, part.tubelet, part.class_token) == (768, 16, (2, 32, 32), True)
    assert mvit.grid == (8, 7, 7)
    back = mvit.override(["video_encoder.name=tubelet"]).video_encoder
    assert {key: getattr(back, key) for key in ARCHITECTURE_FIELDS} == ARCHITECTURE
    # one of the user's own keeps what was said of it
    own = before.override(["video_encoder.name=package.module:Encoder"]).video_encoder
    assert (own.attention, own.width) == ("divided", ENCODER_SIZES["tiny"]["width"])


@pytest.mark.parametrize(
    "assignments",
    [
        (),
        ("video_encoder.size=tiny", "video_encoder.position_grid=[8, 14, 14]", "video_encoder.positions=learned"),
        ("video_encoder.pretrained=some/folder",),
        ("video_encoder.pretrained=some/folder", "video_encoder.size=small"),
        ("video_encoder.name=mvit", "video_encoder.pretrained=kinetics400"),
        (*STUDY, "captioning.level=clip", "study_pooling.num_layers=2", "study_pooling.order=true"),
        ("training.compile=true", "video_encoder.checkpoint_activations=true"),
    ],
)
def test_yaml_round_trip(tmp_path, assignments):
    config = Config().override(assignments)
    config.save(tmp_path / "config.yaml")
    assert Config.load(tmp_path / "config.yaml") == config
    assert config.merge({}) == config


@pytest.mark.parametrize("given", ["size=tiny", "attention=divided", "positions=rotary", "position_grid=[1,2,3]"])
def test_a_backbone_of_one_form_takes_no_other(given):
    with pytest.raises(ConfigError, match=f"mvit exists in one form only.*{given.partition('=')[0]}"):
        Config().override(["video_encoder.name=mvit", f"video_encoder.{given}"])


def test_a_backbone_of_transformers_needs_a_source():
    with pytest.raises(ConfigError, match="needs video_encoder.pretrained"):
        Config().override(["video_encoder.name=transformers"])
