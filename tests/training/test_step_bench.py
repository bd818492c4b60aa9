"""The benchmark of a training step: its operations by hand, its two steps alike, and what it prints."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deepcoro.models.layers import Attention
from deepcoro.models.passes import passes, step_flops
from deepcoro.models.video_encoder import VideoEncoder
from experiments.bench import step
from experiments.bench.flops import count_flops

TINY = {
    "data": {"num_frames": 4, "frame_size": 32},
    "video_encoder": {"width": 48, "depth": 2, "num_heads": 2},
    "captioning": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64, "vocab_size": 300},
    "text": {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
}


@pytest.fixture
def workload(monkeypatch):
    monkeypatch.setitem(step.SIZES, "small", TINY)
    monkeypatch.setattr(step, "TOKENS", 24)
    return make_workload()


def make_workload():
    return step.Workload.make("small", 3, torch.device("cpu"), "fp32")


@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_of_a_tiny_encoder_are_those_of_the_formula(kernel, checkpointing):
    encoder = VideoEncoder(4, 32, (2, 16, 16), 48, 2, 2, pool="mean", checkpoint_activations=checkpointing)
    clip = torch.randn(3, 4, 32, 32)
    tokens, pixels, width = 8, 512, 48

    def run():
        with sdpa_kernel(kernel):
            encoder(clip).sum().backward()

    block = tokens * (4 + 8) * width**2 + 2 * tokens**2 * width  # projections and feed-forward; weights and their sums
    forward = 2 * 3 * (tokens * pixels * width + 2 * block)
    assert count_flops(run, encoder) == 3 * forward
    assert encoder.checkpoint_activations == checkpointing


def test_on_a_gpu_as_many_products_count_as_on_a_cpu():
    """A fused kernel of a GPU is met with shapes alone: torch counts five products in its backward pass, we four."""
    query, key = torch.empty(2, 3, 5, 4, device="meta"), torch.empty(2, 3, 7, 4, device="meta")
    numbers = torch.empty(2, 3, 5, device="meta")

    def run():
        torch.ops.aten._scaled_dot_product_flash_attention_backward(
            query, query, key, key, query, numbers, None, None, 5, 7, 0.0, False, torch.empty(()), torch.empty(())
        )

    with FlopCounterMode(display=False) as counter:
        run()
    product = 2 * (2 * 3) * 5 * 7 * 4
    assert counter.get_total_flops() == 5 * product
    assert count_flops(run, torch.nn.Identity()) == 4 * product


def test_a_step_counts_what_the_formula_says(workload):
    counted = count_flops(workload.our_step, workload.model.video_encoder)
    assert counted == pytest.approx(step_flops(passes(workload.config, workload.model, step.TOKENS), 3), rel=0.01)
    assert count_flops(workload.bare_step, workload.model.video_encoder) == pytest.approx(counted, rel=1e-4)


def test_both_steps_have_the_same_losses(workload, monkeypatch):
    workload.assert_same()
    for name in ("mse_loss", "cross_entropy", "logsigmoid"):
        plain = getattr(step.F, name)
        with monkeypatch.context() as patch:
            patch.setattr(step.F, name, lambda *args, plain=plain, **more: 1.1 * plain(*args, **more))
            with pytest.raises(SystemExit, match="do not agree"):
                workload.assert_same()


def without_dropout(workload):
    workload.model.text_encoder.eval()
    for module in workload.model.captioning_decoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, Attention):
            module.dropout = 0.0
    return workload


def test_the_parts_of_a_step_train_as_the_step_does(workload):
    workload, other = without_dropout(workload), without_dropout(make_workload())
    start = [p.clone() for p in workload.model.parameters()]
    laps = workload.laps()
    other.our_step()
    assert len(laps) == 7 and all(seconds > 0 for seconds in laps.values())
    for (name, one), two in zip(workload.model.named_parameters(), other.model.parameters()):
        assert torch.allclose(one, two, atol=1e-7), name
    assert sum(not p.equal(before) for p, before in zip(workload.model.parameters(), start)) > 0.9 * len(start)


@pytest.mark.parametrize("peak", [(), ("--peak-tflops", "0.5")])
def test_it_ends_with_one_line_of_json(workload, peak):
    run = CliRunner().invoke(step.main, ["--quick", "--device", "cpu", "--batch", "2", "--precision", "bf16", *peak])
    assert run.exit_code == 0, run.output
    lines = run.output.splitlines()
    told = json.loads(lines[-1])
    assert told.keys() == {"name", "ratio", "better", "figures"}
    assert (told["name"], told["better"]) == ("step", "higher")
    figures = told["figures"]
    assert (figures["clips"], figures["precision"]) == (2, "bf16")
    ours = figures["ours"]
    assert ours["tflops_per_second"] == pytest.approx(figures["tflop_per_step"] / ours["seconds"])
    assert ours["mfu"] == (pytest.approx(ours["tflops_per_second"] / 0.5) if peak else None)
    assert ("MFU not known" in run.output) == (not peak)
    assert sum(part["share"] for part in figures["parts"].values()) == pytest.approx(1)
    assert len(figures["parts"]) == 7


def test_compiling_changes_nothing_that_is_counted(workload, monkeypatch):
    """With a backend that takes no minutes."""
    monkeypatch.setattr(step, "compile_encoder", partial(step.compile_encoder, backend="eager"))
    runs = [CliRunner().invoke(step.main, ["--quick", "--device", "cpu", *more]) for more in ([], ["--compile"])]
    plain, compiled = (json.loads(run.output.splitlines()[-1])["figures"] for run in runs)
    assert (plain["compiled"], compiled["compiled"]) == (False, True)
    assert compiled["tflop_per_step"] == plain["tflop_per_step"] == pytest.approx(plain["tflop_by_formula"], rel=0.01)


def test_it_runs_where_there_is_no_ray():
    code = "import sys, experiments.bench.step; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(step.__file__).parents[2], check=True)
