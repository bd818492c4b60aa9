"""A run of ours as the start of another."""

import pytest
import torch

from deepcoro.errors import CheckpointError, ConfigError
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.own_weights import take_over_pixels
from deepcoro.models.pretrained import resolve_architecture
from deepcoro.models.rgb_backbone import WrappedEncoder
from deepcoro.training.checkpoint import save_checkpoint
from tests.models.published import grey, ours


@pytest.fixture
def trained(tiny_config, tmp_path):
    """``trained("section.field=value", ...)`` -> a run with a checkpoint whose weights are all at random, its model."""

    def make(*assignments):
        config = tiny_config(*assignments)
        model = MultitaskModel.from_sources(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        save_checkpoint(tmp_path / "first", 3, model, {"step": 3}, config, "made-for-tests")
        save_checkpoint(tmp_path / "first", 20, model, {"step": 20}, config, "made-for-tests")
        return tmp_path / "first", model.eval()

    return make


@pytest.mark.parametrize("where", [".", "checkpoints/3"])
def test_a_run_of_ours_is_a_source(trained, of, tiny_config, where):
    run, model = trained("video_encoder.attention=divided", "video_encoder.class_token=true", "video_encoder.depth=1")
    config = tiny_config().override([f"video_encoder.pretrained={run / where}"])
    own = MultitaskModel.from_sources(config)
    assert own.config.video_encoder.attention == "divided" and own.config.video_encoder.depth == 1
    assert torch.equal(ours(own, grey()), ours(model, grey()))
    tokens = ours(own, grey())
    assert torch.equal(own.video_encoder.pool(tokens), model.video_encoder.pool(tokens))
    step = "20" if where == "." else "3"
    assert own.loaded[0].endswith(f"weights of {run / 'checkpoints' / step}") and len(own.loaded) == 1
    with pytest.raises(ConfigError, match="video_encoder.depth is 2, and the checkpoint .* has 1"):
        resolve_architecture(config.override(["video_encoder.depth=2"]))


def test_where_a_run_averaged_its_weights_the_average_is_taken(trained, of, tmp_path):
    run, model = trained()
    average = {name: parameter.detach() / 2 for name, parameter in model.named_parameters()}
    state = {"num_updates": 3, "weights": average}
    place = save_checkpoint(run, 30, model, {"step": 30}, model.config, "made-for-tests", state)
    own = MultitaskModel.from_sources(of(run))
    assert own.loaded[0].endswith(f"averaged weights of {place}")
    for name, tensor in own.video_encoder.named_parameters():
        assert torch.equal(tensor, average[f"video_encoder.{name}"])
    path = place / "model_ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model_ema\.safetensors is not what was saved"):
        MultitaskModel.from_sources(of(run))


def test_its_pixels_are_taken_over(trained, of):
    run, model = trained("video_encoder.patch_norm=false")  # 100 and 40
    own = MultitaskModel.from_sources(of(run))  # 105.68 and 38.95
    assert (ours(own, grey()) - ours(model, grey())).abs().max() < 1e-4
    assert any("takes up exactly" in line for line in own.loaded)
    assert not torch.allclose(own.video_encoder.embed.bias, model.video_encoder.embed.bias)


def test_pixels_of_a_wrapped_backbone_are_taken_over():
    encoder = WrappedEncoder((4, 24, 24), (2, 3, 3), 8, 8, 0, "mean", 2)
    seen = []
    encoder.tokens = lambda rgb, _: seen.append(rgb)
    encoder.take_images_of(100.0, 40.0, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    levels = torch.rand(1, 4, 24, 24) * 255
    encoder((levels - 100) / 40)
    encoder.load_state_dict(take_over_pixels(encoder.state_dict(), 30 / 40, (120 - 100) / 40))
    encoder((levels - 120) / 30)
    assert torch.allclose(seen[0], seen[1], atol=1e-4)


def test_pixels_that_are_normalised_by_tubelet_hardly_need_to_be(trained, of):
    run, model = trained()
    own = MultitaskModel.from_sources(of(run))
    assert (ours(own, grey()) - ours(model, grey())).abs().max() < 1e-3
    assert any("almost flat" in line for line in own.loaded)


@pytest.mark.parametrize("positions", ["sincos", "learned", "rotary"])
def test_a_run_on_clips_of_another_size(trained, of, positions):
    run, _model = trained(f"video_encoder.positions={positions}")
    own = MultitaskModel.from_sources(of(run, "data.frame_size=48"))
    assert own.config.video_encoder.position_grid == (None if positions == "rotary" else (2, 3, 3))
    assert ours(own, grey(4, 48)).isfinite().all()


def test_another_way_of_pooling_begins_anew(trained, tiny_config):
    run, _ = trained("video_encoder.pool=mean")
    own = MultitaskModel.from_sources(tiny_config().override([f"video_encoder.pretrained={run}"]))
    assert any("pool begins at random" in line for line in own.loaded)


def test_a_run_without_checkpoints_and_a_damaged_one(trained, of, tmp_path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="run without a checkpoint"):
        resolve_architecture(of(tmp_path / "empty"))
    run, _ = trained()
    path = run / "checkpoints" / "20" / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="is not what was saved"):
        MultitaskModel.from_sources(of(run))
