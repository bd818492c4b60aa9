"""What does not fit in published weights is named, and is an error unless it is allowed."""

import json
import re

import pytest
import torch
import transformers

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.models.image_statistics import image_statistics
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.pretrained import resolve_architecture
from tests.models.published import COMMON, MEAN, STD, TIMESFORMER, VIDEOMAE, grey, ours


def test_values_that_were_given_and_differ_are_all_named(published, of):
    folder, _ = published("videomae")
    same = of(folder, "video_encoder.tubelet=[2, 8, 8]", "video_encoder.mlp_ratio=1.6666667", "video_encoder.pool=mean")
    assert resolve_architecture(same).video_encoder.depth == 2
    config = of(folder, "video_encoder.tubelet=[1, 8, 8]", "video_encoder.depth=3", "video_encoder.patch_norm=true")
    with pytest.raises(ConfigError) as error:
        resolve_architecture(config)
    lines = str(error.value).splitlines()
    assert f"video_encoder.tubelet is (1, 8, 8), and the checkpoint {folder} has (2, 8, 8)" in lines
    assert f"video_encoder.depth is 3, and the checkpoint {folder} has 2" in lines
    assert f"video_encoder.patch_norm is True, and the checkpoint {folder} has False" in lines and len(lines) == 4
    with pytest.raises(ConfigError, match="video_encoder.width is 192"):
        resolve_architecture(of(folder, "video_encoder.size=tiny"))


def test_a_clip_that_does_not_divide_into_the_checkpoints_tubelets(published, of):
    folder, _ = published("videomae")
    with pytest.raises(ConfigError, match=r"5 frames of 24x24 does not divide into tubelets of 2x8x8"):
        resolve_architecture(of(folder, "data.num_frames=5"))


def test_models_that_are_none_of_the_three(of, tmp_path, text_folder):
    with pytest.raises(ConfigError, match=r"'bert' model; videomae, timesformer, vjepa2 .*name=transformers"):
        resolve_architecture(of(text_folder))
    config = transformers.TimesformerConfig(**COMMON | TIMESFORMER | {"attention_type": "space_only"})
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"attention_type 'space_only'; divided_space_time and joint_space_time"):
        resolve_architecture(of(tmp_path))
    transformers.VideoMAEConfig(**COMMON | VIDEOMAE | {"hidden_act": "relu"}).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="hidden_act 'relu'"):
        resolve_architecture(of(tmp_path))


def test_nothing_there_and_torch_files(of, tmp_path):
    with pytest.raises(ConfigError, match=r"pretrained '.*empty'.*nothing could be loaded"):
        (tmp_path / "empty").mkdir()
        resolve_architecture(of(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="torch file of the predecessor.*name=mvit, got 'tubelet'"):
        resolve_architecture(of(tmp_path / "best.pt"))


def altered(folder, tmp_path, change):
    """A copy of a checkpoint whose weights ``change`` has had."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def drop(weights):
    del weights["encoder.layer.1.intermediate.dense.bias"]


def add(weights):
    weights["encoder.layer.1.gamma"] = torch.ones(3)


def reshape(weights):
    weights["encoder.layer.0.layernorm_after.weight"] = torch.ones(5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop, r"missing: encoder\.layer\.1\.intermediate\.dense\.bias"),
        (add, r"without a place here: encoder\.layer\.1\.gamma"),
        (reshape, r"of another shape: encoder\.layer\.0\.layernorm_after\.weight \(expected \(24,\), received \(5,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_unless_allowed(published, of, tmp_path, change, says):
    folder = altered(published("videomae")[0], tmp_path, change)
    with pytest.raises(ConfigError, match=says) as error:
        MultitaskModel.from_sources(of(folder))
    assert "allow_mismatch=true" in str(error.value)
    model = MultitaskModel.from_sources(of(folder, "video_encoder.allow_mismatch=true"))
    (line,) = [line for line in model.loaded if "WARNING" in line]
    assert re.search(says, line)
    assert ours(model, grey()).isfinite().all()


def test_damaged_weights_are_told_without_a_trace(published, of, tmp_path):
    folder = altered(published("videomae")[0], tmp_path, lambda weights: None)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="nothing could be loaded"):
        MultitaskModel.from_sources(of(folder))


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("videomae with a decoder", "decoder, encoder_to_decoder, mask_token"),
        ("videomae with classes", "classifier, fc_norm"),
        ("vjepa2 with classes", "classifier, pooler"),
        ("timesformer with classes", "classifier"),
    ],
)
def test_heads_of_another_task_are_left_out_and_said(published, of, kind, part):
    lines = MultitaskModel.from_sources(of(published(kind)[0])).loaded
    assert any(f"{part} of the checkpoint is for another task" in line for line in lines)


def test_where_means_and_deviations_come_from(published, tmp_path):
    folder, _ = published("videomae")
    mean, std, line = image_statistics(str(folder))
    assert mean == pytest.approx(MEAN) and std == pytest.approx(STD) and "as preprocessor_config.json" in line
    mean, std, line = image_statistics(str(tmp_path))
    assert mean == [0.485, 0.456, 0.406] and std == [0.229, 0.224, 0.225] and "ImageNet's" in line
    # Grey 100 by hand: 100 / 127.5 = 0.784..., less 1, over 0.5.
    said = {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1, 1], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(said))
    mean, std, line = image_statistics(str(tmp_path))
    assert (100 / 255 - mean[0]) / std[0] == pytest.approx((100 / 127.5 - 1) / 0.5)
    assert "as video_preprocessor_config.json" in line
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    mean, std, _ = image_statistics(str(tmp_path))
    assert [(100 / 255 - mean[c]) / std[c] for c in range(3)] == pytest.approx([100 / 255] * 3)
    (tmp_path / "video_preprocessor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="needs image_mean and image_std"):
        image_statistics(str(tmp_path))


def test_as_many_statistics_as_channels(published, of, tmp_path):
    folder = altered(published("videomae")[0], tmp_path, lambda weights: None)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5]}))
    with pytest.raises(ConfigError, match="takes 3 channels, and there are 1 means and 1 deviations"):
        MultitaskModel.from_sources(of(folder))


def test_of_a_hub_model_whether_there_are_statistics_must_be_known(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "models--some--model"  # as the hub's cache keeps one
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("abc")
    (model / "snapshots" / "abc").mkdir(parents=True)
    absent = model / ".no_exist" / "abc"
    absent.mkdir(parents=True)
    (absent / "video_preprocessor_config.json").touch()
    with pytest.raises(ConfigError, match="whether some/model has a preprocessor_config.json cannot be found out"):
        image_statistics("some/model")
    (absent / "preprocessor_config.json").touch()
    assert "ImageNet's" in image_statistics("some/model")[2]
    said = {"image_mean": MEAN, "image_std": STD}
    (absent / "preprocessor_config.json").unlink()
    (model / "snapshots" / "abc" / "preprocessor_config.json").write_text(json.dumps(said))
    assert image_statistics("some/model")[0] == pytest.approx(MEAN)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("name=mvit", "pretrained=/nowhere/old.pt"), "there is no such file"),
        (("name=mvit", "pretrained=/nowhere"), "kinetics400, a torch file"),
        (("pretrained=kinetics400",), "set video_encoder.name=mvit"),
    ],
)
def test_weights_that_are_not_there_are_told_before_anything_starts(given, said):
    config = Config().override([f"video_encoder.{part}" for part in given])
    with pytest.raises(ConfigError, match=said):
        resolve_architecture(config)
