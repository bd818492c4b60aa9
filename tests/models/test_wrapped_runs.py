"""Runs with a wrapped backbone of transformers: from one to the next, in any precision, without their source."""

import json

import pytest
import torch

from deepcoro.errors import ConfigError
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.wrapped import architecture
from deepcoro.training.checkpoint import load_model, save_checkpoint


@pytest.fixture(scope="module")
def vivit(tmp_path_factory):
    """A small ViViT in the Hugging Face format."""
    from transformers import VivitConfig, VivitModel

    folder = tmp_path_factory.mktemp("vivit")
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 36}
    VivitModel(VivitConfig(tubelet_size=[2, 8, 8], image_size=24, num_frames=4, **shape)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5, "image_std": 0.25}))
    return folder


@pytest.fixture(scope="module")
def config_of(tiny_config, vivit):
    """``config_of("section.field=value", ...)`` -> the tiny config with that backbone."""
    encoder = {"name": "transformers", "pretrained": str(vivit), **architecture(str(vivit))}
    return lambda *assignments: tiny_config().merge({"video_encoder": encoder}).override(assignments)


@pytest.mark.parametrize("weights", [(0.1, 0.0), (0.0, 0.1)])
def test_masked_modelling_may_come_and_go_from_run_to_run(config_of, tmp_path, weights):
    first, second = (f"loss.weights.masked_modeling={weight}" for weight in weights)
    config = config_of(first)
    model = MultitaskModel.from_sources(config)
    save_checkpoint(tmp_path, 3, model, {"step": 3}, config, "made-for-tests")
    after = MultitaskModel.from_sources(config.override([f"video_encoder.pretrained={tmp_path}", second]))
    assert any("stem_mask_token" in line for line in after.loaded)
    assert ("stem_mask_token" in dict(after.video_encoder.named_parameters())) == (weights[1] > 0)
    for name, value in model.video_encoder.backbone.state_dict().items():
        assert torch.equal(after.video_encoder.backbone.state_dict()[name], value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_saved_in_half_precision_are_trained_in_full(config_of, vivit, tmp_path, random_batch, dtype):
    from transformers import AutoModel

    for source, kept in ((vivit, tmp_path / "video"), (None, tmp_path / "text")):
        config = config_of()
        source = source or config.text_encoder.name
        AutoModel.from_pretrained(source).to(dtype).save_pretrained(kept)
    config = config.merge({"text_encoder": {"name": str(tmp_path / "text")}})
    config = config.override([f"video_encoder.pretrained={tmp_path / 'video'}"])
    model = MultitaskModel.from_sources(config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model(random_batch(model.config), model.config.num_visible)
    save_checkpoint(tmp_path / "run", 3, model, {"step": 3}, model.config, "made-for-tests")
    again, _ = load_model(tmp_path / "run" / "checkpoints" / "3")
    assert {p.dtype for p in again.parameters()} == {torch.float32}


def test_a_dry_run_needs_no_source_of_a_run_that_goes_on(config_of, tmp_path):
    from deepcoro.launch.estimate import empty_model

    config = config_of()
    model = MultitaskModel.from_sources(config)
    checkpoint = save_checkpoint(tmp_path, 3, model, {"step": 3}, config, "made-for-tests")
    gone = config.model_copy(update={
        "video_encoder": config.video_encoder.model_copy(update={"pretrained": "/nowhere"}),
        "text_encoder": config.text_encoder.model_copy(update={"name": "/nowhere"}),
    })  # fmt: skip
    assert empty_model(gone, checkpoint).num_parameters() == model.num_parameters()
    with pytest.raises(ConfigError, match="nowhere"):
        empty_model(gone)
