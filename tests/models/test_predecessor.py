"""The predecessor's torch files go into the model, or say what is wrong with them."""

import datetime

import pytest
import torch
from torch import nn

from deepcoro.errors import ConfigError
from deepcoro.models.predecessor import load_text, load_video

SIZES = ("width", "depth", "num_heads", "tubelet", "class_token")


@pytest.fixture(scope="module")
def held(torchvision, text_folder):
    """What such a file holds: made of torchvision's and transformers' own modules, and Linear layers."""
    from transformers import AutoConfig, BertModel

    torch.manual_seed(5)
    video = torchvision.models.video.mvit_v2_s(weights=None)
    video.head = nn.Identity()
    text = BertModel(AutoConfig.from_pretrained(text_folder), add_pooling_layer=False)
    parts = {
        "video_encoder": {"model": video, "proj": nn.Sequential(nn.Dropout(), nn.Linear(768, 512))},
        "text_encoder": {"bert": text, "proj": nn.Sequential(nn.Dropout(), nn.Linear(16, 512))},
    }
    return {name: nn.ModuleDict(modules).state_dict() for name, modules in parts.items()} | {"epoch": 3}


@pytest.fixture
def file(held, tmp_path):
    """``file(part, name=tensor)`` -> a file of the predecessor with some weights replaced, or left out where None."""

    def write(part="video_encoder", changes=()):
        weights = {name: value for name, value in (held[part] | dict(changes)).items() if value is not None}
        torch.save(held | {part: weights}, tmp_path / "best.pt")
        return tmp_path / "best.pt"

    return write


@pytest.fixture(scope="module")
def build(torchvision, tiny_config, tiny_model):
    config = tiny_config(
        "video_encoder.name=mvit",
        *[f"video_encoder.{size}=null" for size in SIZES],
        "data.num_frames=16",
        "data.frame_size=224",
        "video_encoder.pool=mean",
        "contrastive.embedding_dim=512",
        "loss.weights.masked_modeling=0",
    )
    return lambda *assignments: tiny_model(config.override(assignments))


@pytest.fixture(scope="module")
def model(build):
    return build()


def test_every_weight_arrives(model, held, file):
    path = file()
    model.video_encoder.take_images_of(100.0, 40.0, (0.45,) * 3, (0.225,) * 3)
    video, text = load_video(model, path, False), load_text(model, str(path), False)
    for part, encoder, prefix, projection in (
        ("video_encoder", model.video_encoder.backbone, "model.", model.video_projection),
        ("text_encoder", model.text_encoder.transformer, "bert.", model.text_projection),
    ):
        weights, own = dict(held[part]), encoder.state_dict()
        for name, value in projection.state_dict().items():
            assert torch.equal(value, weights.pop(f"proj.1.{name}"))
        assert own.keys() == {name.removeprefix(prefix) for name in weights}
        for name, value in own.items():
            assert torch.equal(value, weights[prefix + name])
    assert len(video) == len(text) == 1
    assert f"{len(held['video_encoder']) - 2} weights" in video[0] and f"{len(held['text_encoder']) - 2} w" in text[0]
    # One mean and deviation for the grey channel three times: what our clips are.
    assert torch.equal(model.video_encoder.scale, torch.ones(3))
    assert torch.equal(model.video_encoder.shift, torch.zeros(3))


def test_the_numbers_of_positions_that_old_files_have_are_no_weights(model, file):
    path = file("text_encoder", {"bert.embeddings.position_ids": torch.arange(512)[None]})
    assert len(load_text(model, path, False)) == 1


@pytest.mark.parametrize(
    ("part", "load", "name", "projection"),
    [
        ("video_encoder", load_video, "model.blocks.3.mlp.0.bias", "proj.1.weight: expected shape (512, 768)"),
        (
            "text_encoder",
            load_text,
            "bert.encoder.layer.0.output.dense.bias",
            "proj.1.weight: expected shape (512, 16)",
        ),
    ],
)
def test_what_does_not_fit_is_listed_and_an_error_unless_allowed(model, file, part, load, name, projection):
    prefix = name.split(".")[0]
    changes = {name: None, f"{prefix}.more": torch.ones(1), "other": torch.ones(1), "proj.1.weight": torch.ones(7, 3)}
    path = file(part, changes)
    with pytest.raises(ConfigError, match=r"video_encoder\.allow_mismatch=true") as caught:
        load(model, path, False)
    wanted = [
        f"missing: {name}",
        f"has no place here: {prefix}.more",
        "has no place here: other",
        f"{projection}, received (7, 3)",
    ]
    for line in wanted:
        assert line in str(caught.value)
    lines = load(model, path, True)
    assert len(lines) == 5
    for line in wanted:
        assert any(line in other for other in lines)


def test_without_the_contrastive_loss_projections_are_left_out(build, file):
    model = build("loss.weights.contrastive=0")
    assert "projection is left out" in load_video(model, file(), False)[0]
    assert load_text(model, file(), False) == [
        f"text encoder: nothing taken from {file()}, since without the contrastive loss there is none"
    ]


def test_an_encoder_that_is_no_mvit_is_refused(tiny_config, tiny_model, file):
    with pytest.raises(ConfigError, match="the video encoder is 'tubelet', set video_encoder.name=mvit"):
        load_video(tiny_model(tiny_config()), file(), False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"", "no torch file of tensors alone"),
        (b"this is no checkpoint at all", "no torch file of tensors alone"),
        ({"video_encoder": {"a": torch.ones(1)}, "made": datetime.date(2024, 1, 1)}, "read with weights_only=True"),
        ({"model": {"a": torch.ones(1)}, "epoch": 1}, "no weights under 'video_encoder'.*it holds: model, epoch"),
        ({"video_encoder": 5}, "no weights under 'video_encoder'"),
        ({"video_encoder": {"config": {"a": 1}}}, "no weights under 'video_encoder'"),
        ([torch.ones(1)], "no weights under 'video_encoder'.*it holds: list"),
    ],
)
def test_a_file_that_is_none_of_the_predecessors_says_so(model, tmp_path, content, said):
    path = tmp_path / "best.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ConfigError, match=f"best.pt.*{said}"):
        load_video(model, path, False)


def test_half_of_a_file_is_no_file(model, file):
    path = file()
    path.write_bytes(path.read_bytes()[: 10**6])
    with pytest.raises(ConfigError, match="no torch file of tensors alone"):
        load_video(model, path, False)
