"""Every part is tried even where another failed, a broken part is found and named, and a whole check passes on Ray."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from deepcoro.launch import check as module
from deepcoro.launch.check import Check, check
from deepcoro.launch.check import tiny_config as own_config
from tests.models.published import save_published

PARTS = ["ray", "gpu", "decoder", "data", "tokenizer", "model", "forward", "losses", "step", "captions"]


@pytest.fixture
def two_cpus(monkeypatch):
    """No Ray: what it would say of a machine with two CPUs."""
    monkeypatch.setattr(Check, "cluster", lambda self: "2 CPUs")


def told(capsys):
    """State and text of each part, as printed."""
    rows = [line.split(None, 2) for line in capsys.readouterr().out.splitlines() if line[:1] not in ("", " ")]
    return {row[1]: (row[0], row[2]) for row in rows if row[0] in ("ok", "-", "FAILED")}


@pytest.mark.long
def test_all_is_well_from_outside():
    """What a person types, Ray included."""
    code = "from deepcoro.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "check"], capture_output=True, text=True, env=os.environ | {"RAY_ADDRESS": ""}
    )
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    states = {line.split()[1]: line.split()[0] for line in lines[: len(PARTS)]}
    assert states == dict.fromkeys(PARTS, "ok") | {"data": "-"}
    assert lines[-1].startswith("all is well (")
    assert "Traceback" not in run.stderr


def test_the_runs_own_data_and_model_are_taken(two_cpus, tiny_config, dataset_folder, capsys, tiny_model):
    config = tiny_config(f"data.path={dataset_folder}")
    assert check(config)
    parts = told(capsys)
    assert list(parts) == PARTS and {state for state, _ in parts.values()} == {"ok"}
    assert parts["data"][1].startswith("7 training videos, 6 with text; 4 of 4 read, as 4x1x4x24x24")
    number = sum(p.numel() for p in tiny_model(config).parameters())
    assert parts["model"][1].startswith(f"{number / 1e6:.2f} M parameters on cpu")
    components = parts["step"][1].partition("changed ")[2].split(", ")
    assert sorted(components) == ["captioning", "logit", "masked_modeling", "text", "video"]


def test_data_that_is_not_there_is_left_out_and_said(two_cpus, tiny_config, capsys):
    assert check(tiny_config("data.path=/none", "data.pixel_mean=null", "data.pixel_std=null"))
    assert told(capsys)["data"] == ("-", "there is nothing at data.path /none: noise is used")


def test_what_a_broken_part_does_not_touch_is_tried_all_the_same(two_cpus, tiny_config, tmp_path, capsys):
    assert not check(tiny_config(f"text_encoder.name={tmp_path}", f"data.path={tmp_path}"))
    parts = told(capsys)
    assert list(parts) == PARTS
    assert parts["data"][0] == "FAILED" and "studies.parquet is missing" in parts["data"][1]
    assert parts["tokenizer"][0] == "FAILED" and "no tokenizer could be loaded" in parts["tokenizer"][1]
    assert parts["decoder"][0] == "ok"
    assert parts["model"] == ("-", "waits for the tokenizer") and parts["step"] == ("-", "waits for the model")


def test_losses_that_are_off_are_left_out(two_cpus, tiny_config, capsys):
    assert check(tiny_config("loss.weights.contrastive=0", "loss.weights.captioning=0", "data.path=/none"))
    parts = told(capsys)
    assert parts["tokenizer"] == ("-", "no loss reads text")
    assert parts["captions"][0] == "-"
    assert parts["losses"][1].startswith("masked_modeling ") and "captioning" not in parts["losses"][1]


def test_a_gpu_that_is_not_there_is_missed(two_cpus, tiny_config, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(module.ray, "is_initialized", lambda: False)
    assert not check(tiny_config("resources.use_gpu=true", "data.path=/none"))
    assert told(capsys)["gpu"][0] == "FAILED"
    assert check(tiny_config("data.path=/none"))


def test_a_decoder_that_mixes_up_frames_is_found(two_cpus, capsys, monkeypatch):
    read = module.decode_frames
    monkeypatch.setattr(module, "decode_frames", lambda path, indices, number: read(path, np.sort(indices), number))
    assert not check()
    state, text = told(capsys)["decoder"]
    assert state == "FAILED" and "grey levels" in text


def test_a_model_that_gives_no_numbers_is_found(two_cpus, capsys, monkeypatch):
    monkeypatch.setattr(module.MultitaskModel, "normalise", lambda self, clip: clip.float() * float("nan"))
    assert not check()
    parts = told(capsys)
    assert parts["forward"][0] == "FAILED" and "not finite: video_embedding" in parts["forward"][1]
    assert parts["losses"] == ("-", "waits for the forward pass")
    assert parts["step"][0] == "FAILED" and "not finite" in parts["step"][1]


def test_a_component_that_does_not_learn_is_found(two_cpus, capsys, monkeypatch):
    build = module.build_optimizer

    def without_text(model, optim):
        optimizer = build(model, optim)
        for group in optimizer.param_groups:
            if group["component"] == "text":
                group["lr"] = 0.0
        return optimizer

    monkeypatch.setattr(module, "build_optimizer", without_text)
    assert not check()
    assert told(capsys)["step"] == ("FAILED", "a step did not change text: nothing would be learnt there")


def test_a_tokenizer_that_does_not_know_the_words_is_found(two_cpus, tmp_path, capsys):
    from transformers import BertTokenizerFast

    from deepcoro.models.text_encoder import save_small_text_encoder

    config, folder = own_config(tmp_path), tmp_path / "text_encoder"
    save_small_text_encoder(["Normal."], folder, width=32, depth=1, num_heads=2)
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Normal", "."]
    BertTokenizerFast(vocab={word: n for n, word in enumerate(known)}, do_lower_case=False).save_pretrained(folder)
    assert not check(config.override(["data.path=/none"]))
    state, text = told(capsys)["tokenizer"]
    assert state == "FAILED" and "does not give a report back" in text


def test_published_weights_are_read(two_cpus, tiny_config, tmp_path, dataset_folder, capsys):
    save_published("timesformer", tmp_path / "weights")
    config = tiny_config(f"data.path={dataset_folder}").override([f"video_encoder.pretrained={tmp_path}/weights"])
    assert check(config)
    text = capsys.readouterr().out
    assert f"weights of {tmp_path}/weights (timesformer, its three colour channels folded into one)" in text
    assert not check(config.override(["video_encoder.pretrained=/none"]))
    parts = told(capsys)
    assert [name for name, (state, _) in parts.items() if state == "FAILED"] == ["model"]
    assert "'/none': nothing could be loaded" in parts["model"][1]
