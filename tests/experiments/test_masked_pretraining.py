"""What masked pretraining learnt is where a multitask run begins: encoder and masked decoder, weight by weight."""

from pathlib import Path

import pytest
import torch

from deepcoro.cli import load_experiment
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError
from deepcoro.launch.train import resolve, save_tokenizer
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.training.checkpoint import save_checkpoint
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step
from experiments.masked_pretraining import experiment
from tests.conftest import TINY

ALONE = ("text_encoder.name=/nowhere", "training.num_steps=100")


@pytest.fixture
def pretrained(random_batch, tmp_path):
    """``pretrained("section.field=value", ...)`` -> the run's folder after a step, and its model."""

    def make(*assignments):
        config = experiment().override([*TINY, *ALONE, "optim.lr=0.01", "optim.mvm_lr=0.01", *assignments])
        torch.manual_seed(7)
        model = MultitaskModel.from_sources(config).train()
        batch = random_batch(config.override(["captioning.vocab_size=30"]))
        seen = {key: batch[key] for key in ("clip", "valid", "mask_order", "has_report")}
        optimizer, loss = build_optimizer(model, config.optim), MultitaskLoss.from_config(config)
        weights = {name: weight for name, weight in loss.loss_weights.items() if weight > 0}
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        train_step(model, loss, optimizer, [seen], weights, config.num_visible)
        save_checkpoint(tmp_path / "masked", 1, model, {"step": 1}, config, "made-for-tests")
        return tmp_path / "masked", model.eval()

    return make


def following(tiny_config, run, *assignments):
    start = (f"video_encoder.pretrained={run}", "masked_modeling.pretrained=true")
    return MultitaskModel.from_sources(tiny_config(*start, *assignments))


def test_it_trains_masked_modelling_alone_on_data_without_reports(make_dataset, tmp_path, capsys):
    studies = [{"study_id": "s0"}, {"study_id": "s1", "split": "val"}]
    folder = make_dataset(tmp_path, studies, [{"video_id": f"v{n}", "study_id": f"s{n}"} for n in (0, 1)])
    dataset = PreparedDataset.open(folder)
    config = load_experiment(Path("experiments/masked_pretraining.py"))().override([f"data.path={folder}"])
    config = save_tokenizer(resolve(config, dataset, dataset.units("train", "video")), tmp_path)
    assert config.loss.used == ["masked_modeling"] and not config.needs_text
    assert config.num_visible == 160 and config.masked_modeling.strategy == "tube"  # 20 of 196 places, 8 times each
    assert "WARNING" not in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("loss.weights.contrastive=0", "video_encoder.class_token=true")])
def test_encoder_and_masked_decoder_arrive(pretrained, tiny_config, random_batch, more):
    run, model = pretrained(*(assignment for assignment in more if "class" in assignment))
    second = following(tiny_config, run, *more).eval()
    found, kept = second.state_dict(), model.state_dict()
    learnt = [name for name in kept if name.startswith(("video_encoder.", "masked_video_modeling."))]
    assert len(learnt) == len([name for name, _ in model.named_parameters()])
    for name in learnt:
        assert torch.equal(found[name], kept[name]), name
    clip = second.normalise(random_batch(second.config)["clip"][:, 0])
    order = torch.stack([torch.randperm(18) for _ in range(4)])
    ours, theirs = (m.reconstruct(clip, order, 4)[0] for m in (second, model))
    assert torch.equal(ours, theirs)
    checkpoint, number = run / "checkpoints" / "1", len(model.masked_video_modeling.state_dict())
    assert f"masked decoder: {number} weights of {checkpoint}" in second.loaded
    pooled = second.video_encoder.pool is not None
    assert ("video encoder: pool begins at random: the checkpoint has none like it" in second.loaded) == pooled


def test_without_asking_the_decoder_begins_at_random(pretrained, tiny_config):
    run, model = pretrained()
    second = following(tiny_config, run, "masked_modeling.pretrained=false")
    assert not any("masked decoder" in line for line in second.loaded)
    ours, theirs = (m.masked_video_modeling.predict.weight for m in (second, model))
    assert not torch.equal(ours, theirs)


def test_its_average_is_taken_where_it_kept_one(pretrained, tiny_config):
    run, model = pretrained()
    average = {name: parameter.detach() / 2 for name, parameter in model.named_parameters()}
    state = {"num_updates": 1, "weights": average}
    save_checkpoint(run, 2, model, {"step": 2}, model.config, "made-for-tests", state)
    second = following(tiny_config, run)
    for name, tensor in second.masked_video_modeling.named_parameters():
        assert torch.equal(tensor, average[f"masked_video_modeling.{name}"])
    assert any(line.startswith("masked decoder:") and "averaged weights" in line for line in second.loaded)


def test_where_masked_modelling_is_not_used_it_is_left_out(pretrained, tiny_config):
    run, _ = pretrained()
    second = following(tiny_config, run, "loss.weights.masked_modeling=0")
    assert any(line.startswith("masked decoder: masked modelling is not used") for line in second.loaded)


@pytest.mark.parametrize(
    ("of_run", "asked", "said"),
    [
        (
            ("masked_modeling.decoder_hidden_size=16",),
            (),
            r"hidden_size 16, decoder_layers 1, decoder_heads 2.*expected \(48, 24\), received \(32, 16\)",
        ),
        ((), ("masked_modeling.decoder_layers=2",), r"blocks.1.* \(expected \(48, 24\), received none\)"),
        ((), ("masked_modeling.decoder_heads=4",), r"what differs: decoder_heads \(expected 4, received 2\)"),
        ((), ("masked_modeling.mask_token_learnable=false",), "mask_token_learnable .expected False, received True"),
        (
            ("masked_modeling.norm_predict_loss=false",),
            ("masked_modeling.norm_predict_loss=false", "data.pixel_std=20"),
            r"pixel_std \(expected \(.*, 20.0\), received",
        ),
        ((), ("video_encoder.pretrained=null",), "video_encoder.pretrained names, and that is not given"),
    ],
)
def test_another_decoder_is_refused_with_its_numbers(pretrained, tiny_config, of_run, asked, said):
    run, _ = pretrained(*of_run)
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        following(tiny_config, run, *asked)


def test_a_run_without_a_decoder_is_refused(tiny_config, tiny_model, tmp_path):
    model = tiny_model(tiny_config("loss.weights.masked_modeling=0"))
    save_checkpoint(tmp_path, 1, model, {"step": 1}, model.config, "made-for-tests")
    with pytest.raises(ConfigError, match="was trained without masked modelling"):
        following(tiny_config, tmp_path)
