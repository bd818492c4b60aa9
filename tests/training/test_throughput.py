"""Operations a second and MFU: by hand, and only where they are known."""

import time

import numpy as np
import pytest
import torch

from deepcoro.launch.estimate import empty_model
from deepcoro.training.throughput import Throughput, peak_flops, useful_flops

ALL = ("contrastive", "captioning", "masked_modeling")


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "fp16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("A100-SXM4-40GB", "bf16", 312e12),
        ("NVIDIA H200", "fp32", None),
        ("NVIDIA H100 PCIe", "bf16", None),
        ("NVIDIA GH200 480GB", "bf16", None),
        ("NVIDIA H200 NVL", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("", "bf16", None),
    ],
)
def test_the_peak_is_that_of_the_very_device(name, precision, peak):
    assert peak_flops(name, precision) == peak


def test_mfu_is_operations_over_time_and_peak():
    throughput = Throughput(torch.device("cpu"), "bf16")
    throughput.add(4, 3e9)
    throughput.add(4, 5e9)
    time.sleep(0.1)
    scalars = throughput.read()
    seconds = 8 / scalars["throughput/clips_per_second"]
    assert scalars["throughput/tflops_per_second"] == pytest.approx(8e9 / seconds / 1e12)
    assert "throughput/mfu" not in scalars  # of a CPU nobody knows the peak
    throughput.peak = 2e12
    throughput.add(4, 3e9)
    scalars = throughput.read()
    assert scalars["throughput/mfu"] == pytest.approx(scalars["throughput/tflops_per_second"] / 2)
    throughput.add(4, None)
    assert not {"throughput/mfu", "throughput/tflops_per_second"} & throughput.read().keys()


def made(rows, views, tokens, valid=None):
    lengths = np.array(tokens, np.int32)
    there = np.ones((rows, views), bool) if valid is None else np.array(valid)
    return {"valid": there, "text_length": lengths, "input_ids": np.zeros((rows, 50), np.int32)}


def by_hand(config, rows, text, losses):
    """A multiply-add is two, forward and backward three: of the tiny model of the tests."""
    words, memory = text - 1, 18
    encoder = 18 * 128 * 24 + 2 * (18 * 12 * 24 * 24 + 2 * 18 * 18 * 24)
    assert config.num_tokens == 18 and config.num_visible == 4
    masked = 4 * 128 * 24 + 2 * (4 * 12 * 24 * 24 + 2 * 4 * 4 * 24)
    masked += 18 * 12 * 24 * 24 + 2 * 18 * 18 * 24 + 4 * 24 * 24 + 14 * 24 * 128
    pool = 2 * 18 * 24 * 24 + 2 * 18 * 24 + (2 + 8) * 24 * 24
    bert = text * (4 * 16 * 16 + 2 * 16 * 64) + 2 * text * text * 16
    block = words * (4 * 16 * 16 + 2 * 16 * 32) + 2 * words * words * 16
    block += words * 2 * 16 * 16 + memory * 2 * 24 * 16 + 2 * words * memory * 16
    decoder = 2 * block + words * 16 * config.captioning.vocab_size
    parts = {"contrastive": pool + bert, "captioning": decoder, "masked_modeling": masked}
    shared = encoder if {"contrastive", "captioning"} & set(losses) else 0
    return 6 * rows * (shared + sum(parts[name] for name in losses))


@pytest.mark.parametrize("losses", [ALL, ("masked_modeling",), ("captioning",)])
def test_operations_of_a_step_are_those_of_its_rows(tiny_config, losses):
    config = tiny_config("masked_modeling.mask_ratio=0.8")
    model = empty_model(config)
    batches = [made(3, 1, [20, 30, 10]), made(1, 1, [12])]
    wanted = by_hand(config, 3, 20, losses) + by_hand(config, 1, 12, losses)
    assert useful_flops(config, model, batches, losses) == pytest.approx(wanted)


def test_views_that_are_not_there_are_no_use(tiny_config):
    config = tiny_config("data.unit=study", "data.num_videos=2", "contrastive.level=clip", "captioning.level=clip")
    model = empty_model(config)
    whole, half = made(2, 2, [9, 9]), made(2, 2, [9, 9], [[True, False], [True, False]])
    whole["clip_text_length"], half["clip_text_length"] = np.array([[20, 20]] * 2), np.array([[20, 2]] * 2)
    wanted = useful_flops(config, model, [whole], ALL)
    assert useful_flops(config, model, [half], ALL) == pytest.approx(wanted / 2)
    assert useful_flops(config, model, [half | {"valid": np.zeros((2, 2), bool)}], ALL) == 0


def test_of_an_unknown_backbone_nothing_is_told(tiny_config):
    config = tiny_config()
    model = empty_model(config)
    model.text_encoder.transformer.config.model_type = "deberta"
    assert useful_flops(config, model, [made(1, 1, [20])], ALL) is None
