"""The table of mask strategies and the strips: what they measure, on clips whose truth is planted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from data_prep.phantom.preset import preset_named
from deepcoro.config import Config
from deepcoro.data.masking import Masking
from deepcoro.models.multitask import MultitaskModel
from experiments import mask_strategies, strips
from experiments.mask_strategies import Clips, experiment


def planted(num_patients=12, seed=0):
    """Two clips a patient: the right tree is striped, and a block of a vessel jumps every two frames."""
    rng, number = np.random.default_rng(seed), 2 * num_patients
    frames = rng.integers(90, 110, (number, 16, 96, 96)).astype(np.uint8)
    vessel = np.zeros(frames.shape, bool)
    is_right = np.arange(number) % 2 == 1
    frames[is_right, :, :, ::2] += 60
    for time in range(16):
        vessel[:, time, 12:36, 4 * time : 4 * time + 12] = True
    frames[vessel] = 30
    lesion = rng.random(number) < 0.5
    return Clips(frames, vessel, np.arange(number) // 2, is_right, np.where(is_right, 30.0, -30.0), lesion)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = experiment("random", 0.75, 4).override(["data.pixel_mean=100", "data.pixel_std=40"])
    return MultitaskModel.from_sources(config).eval()


def test_errors_are_those_of_hidden_tokens_by_hand(model):
    clips, config = planted(2), model.config
    masking = Masking.from_config(config)
    found = mask_strategies.reconstruction(model, masking, config.num_visible, clips)
    rng = np.random.default_rng(0)
    for row in range(4):
        clip, vessel = clips.frames[row, ::2], clips.vessel[row, ::2]
        order = masking.order(rng, clip).astype(np.int64)
        errors, of_mean, seen = [], [], []
        with torch.no_grad():
            told, _ = model.reconstruct(
                model.normalise(torch.from_numpy(clip)[None]), torch.from_numpy(order)[None], 64
            )
        for place, token in enumerate(order[64:].tolist()):
            t, y, x = 2 * (token // 64), 12 * (token // 8 % 8), 12 * (token % 8)
            pixels = clip[t : t + 2, y : y + 12, x : x + 12].astype(float).reshape(-1) / 255
            deviation = np.sqrt(pixels.var() + 1e-6 * (40 / 255) ** 2)
            errors.append(np.mean((told[0, place].numpy() * deviation + pixels.mean() - pixels) ** 2))
            of_mean.append(pixels.var())
            seen.append(vessel[t : t + 2, y : y + 12, x : x + 12].mean() > 0.05)
        assert 0 < sum(seen) < len(seen)
        assert found["all/model"][row] == pytest.approx(1000 * np.mean(errors), rel=1e-4)
        assert found["all/mean"][row] == pytest.approx(1000 * np.mean(of_mean), rel=1e-4)
        assert found["vessel/model"][row] == pytest.approx(1000 * np.mean(np.array(errors)[seen]), rel=1e-4)


def test_probes_read_what_is_there_and_not_what_is_not(model):
    found = mask_strategies.probe(model, planted(30, 1), planted(30, 2))
    assert found["is_right"].value > 0.99
    assert found["angle"].value < 10 and found["angle"].baseline == 0  # the tree says all
    assert found["has_lesion"].low < 0.5 < found["has_lesion"].high


def test_every_strategy_trains_on_the_same_clips(monkeypatch):
    seen = []
    monkeypatch.setattr(mask_strategies, "train_step", lambda *args: seen.append(args[3][0]))
    for strategy in ("random", "motion"):
        mask_strategies.train(experiment(strategy, 0.75, 4), planted(3))
    for one, other in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(one["clip"], other["clip"])
        assert not torch.equal(one["mask_order"], other["mask_order"])
    assert not torch.equal(seen[0]["clip"], seen[1]["clip"])


def test_the_table_and_the_strips_of_its_models(monkeypatch, tmp_path):
    monkeypatch.setattr(mask_strategies, "RUNS", tmp_path)
    monkeypatch.setattr(mask_strategies, "make_clips", lambda *_: planted(20))
    asked = ["--strategies", "tube", "--strategies", "spatial", "--num-patients", "20", "--num-steps", "2"]
    result = CliRunner().invoke(mask_strategies.main, asked)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "mask_strategies.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["not", "tube", "spatial"]
    assert lines[4].split()[2:] == lines[5].split()[2:]  # the same, trained once
    numbers = json.loads((tmp_path / "mask_strategies.json").read_text())
    assert numbers["tube 0.75"]["own/vessel"]["low"] < numbers["tube 0.75"]["own/vessel"]["value"]
    assert "own/vessel" not in numbers["not trained"]

    monkeypatch.setattr(strips, "phantom_clip", lambda *_: planted(1).frames[0, ::2])
    output = tmp_path / "strips.png"
    run = str(tmp_path / "mask_strategies" / "tube-0.75")
    result = CliRunner().invoke(strips.main, [run, "--output", str(output), "--strategies", "temporal"])
    assert result.exit_code == 0, result.output
    assert output.exists() and "1 strips" in result.output


def test_strips_of_a_run_whose_captions_were_informed():
    config = Config(loss={"weights": {"grounding": 0.05}}, grounding={"informs_captions": True})
    alone = strips.masked_alone(config, None)
    assert alone.loss.is_used("masked_modeling") and not alone.loss.is_used("captioning")


def test_strips_show_what_is_seen_and_what_is_hidden(model):
    clip = planted(1).frames[0, ::2]
    drawn, left_out = strips.strips(model, strips.masked_alone(model.config, 0.5), {"one": clip}, ["temporal"], 3)
    ((name, strip),) = drawn.items()
    assert name == "one\ntemporal\n50% hidden" and not left_out
    original, masked, filled = strip.reshape(3, 98, 8, 98).transpose(0, 2, 1, 3)[:, :, 1:-1, 1:-1]
    assert np.array_equal(original, clip)
    grey = (masked == 128).all(axis=(1, 2))
    assert grey.tolist() == np.repeat(grey[::2], 2).tolist() and grey.sum() == 4
    assert np.array_equal(masked[~grey], clip[~grey]) and np.array_equal(filled[~grey], clip[~grey])
    assert not np.array_equal(filled[grey], clip[grey])
    sheet = strips.sheet(drawn)
    assert np.array_equal(sheet[strips.TOP : strips.TOP + len(strip), strips.LEFT :], strip)


def test_what_the_clip_is_too_short_for_is_left_out(model, dataset_folder):
    config = strips.masked_alone(model.config, None).override(["video_encoder.tubelet=[8, 12, 12]"])
    torch.manual_seed(0)
    drawn, left_out = strips.strips(MultitaskModel.from_sources(config), config, {}, ["temporal", "tube"], 0)
    assert not drawn and "temporal: masked_modeling.mask_ratio 0.75" in left_out[0]
    clips = strips.dataset_clips(model.config, dataset_folder, "train", 3)
    assert {*clips} == {"v0", "v1", "v2"}
    assert all(clip.shape == (8, 96, 96) for clip in clips.values())


def test_a_run_that_fills_nothing_in_is_refused(monkeypatch):
    trained = SimpleNamespace(model=SimpleNamespace(masked_video_modeling=None))
    monkeypatch.setattr(strips.deepcoro, "load", lambda run: trained)
    result = CliRunner().invoke(strips.main, ["runs/one"])
    assert result.exit_code != 0 and "runs/one was trained without masked modelling" in result.output


def test_every_lesion_of_the_phantoms_is_significant():
    """What ``has_lesion`` says of them: the left main's limit of 50 % is not lower than the least of the preset."""
    assert min(preset_named("easy").percents) >= 70
