"""Estimates held against what torch counts and keeps when the same model is really run."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deepcoro.launch.estimate import (
    activation_bytes,
    empty_model,
    state_bytes,
    synthetic_batch,
    time_step,
)
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.passes import passes, step_flops
from deepcoro.training.average import WeightAverage
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step

ROWS, TOKENS = 3, 20
CPU = torch.device("cpu")
# More tokens and width than the tiny one, so that the transformers outweigh what is around them.
LARGER = (
    "data.num_frames=8",
    "data.frame_size=64",
    "video_encoder.width=96",
    "video_encoder.num_heads=4",
    "captioning.hidden_size=64",
    "captioning.intermediate_size=128",
)
VARIANTS = [
    (),
    ("data.unit=study", "data.num_videos=2", "masked_modeling.mask_ratio=0.5"),
    ("loss.weights.contrastive=0", "loss.weights.captioning=0"),
    ("loss.weights.masked_modeling=0",),
    ("video_encoder.attention=divided", "video_encoder.class_token=true", "video_encoder.mlp_ratio=2"),
    ("video_encoder.attention=divided", "loss.weights.masked_modeling=0", "video_encoder.depth=4"),
    ("video_encoder.checkpoint_activations=true", "video_encoder.depth=4"),
    ("video_encoder.freeze=0.5", "video_encoder.depth=4"),
    ("video_encoder.freeze=1.0", "text_encoder.freeze=1.0"),
    ("video_encoder.freeze=0.25", "video_encoder.checkpoint_activations=true", "video_encoder.depth=4"),
    ("data.unit=study", "data.num_videos=3", "contrastive.level=study", "captioning.level=clip"),
    ("data.unit=study", "data.num_videos=2", "loss.weights.grounding=0.05"),
    ("loss.weights.grounding=0.05", "grounding.informs_captions=true"),
    ("data.unit=study", "data.num_videos=2", "loss.weights.grounding=0.05", "grounding.informs_captions=true"),
    ("loss.weights.grounding=0.05", "loss.weights.contrastive=0", "loss.weights.captioning=0"),
    (
        "data.unit=study", "data.num_videos=2", "contrastive.level=clip", "captioning.level=study",
        "contrastive.severity_weight=0.5",
    ),
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_operations_are_those_that_torch_counts(tiny_config, tiny_model, variant):
    config = tiny_config(*LARGER, *variant)
    model, batch = tiny_model(config).train(), synthetic_batch(config, ROWS, TOKENS, CPU)
    # The plain kernel: torch's counter knows nothing of the fused one on the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        MultitaskLoss.from_config(config)(model(batch, config.num_visible), batch)["total"].backward()
    estimate = step_flops(passes(config, model, TOKENS), ROWS)
    assert estimate == pytest.approx(counter.get_total_flops(), rel=0.08)


@pytest.mark.parametrize("variant", VARIANTS)
def test_activations_are_about_what_torch_keeps(tiny_config, tiny_model, variant):
    config = tiny_config(*LARGER, *variant)
    model, batch = tiny_model(config).train(), synthetic_batch(config, ROWS, TOKENS, CPU)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that its place is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        MultitaskLoss.from_config(config)(model(batch, config.num_visible), batch)
        if config.video_encoder.checkpoint_activations:  # the backward pass of each encoding makes a block's anew
            for number in (config.num_tokens, config.num_visible):
                model.video_encoder.blocks[-1](torch.randn(ROWS, number, config.video_encoder.width))
    measured = sum(size for size, _ in kept.values())
    assert 0.6 < activation_bytes(passes(config, model, TOKENS), ROWS, "fp32") / measured < 1.4


def test_a_model_without_weights_has_the_shapes_of_the_real_one(tiny_config, tiny_model):
    config = tiny_config()
    empty, real = empty_model(config), tiny_model(config)
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert all(p.is_meta for name, p in empty.named_parameters() if p.ndim > 1 and name.endswith("weight"))
    parts = real.num_parameters()
    assert parts == empty.num_parameters()
    assert sum(number for number, _ in parts.values()) + 2 == sum(
        p.numel() for p in real.parameters()
    )  # logit_scale and logit_bias


def test_state_is_what_the_optimizer_and_the_gradients_hold_after_a_step(tiny_config, tiny_model):
    config = tiny_config()
    model = tiny_model(config).train()
    optimizer = build_optimizer(model, config.optim)
    loss = MultitaskLoss.from_config(config)
    train_step(
        model, loss, optimizer, [synthetic_batch(config, ROWS, TOKENS, CPU)], loss.loss_weights, config.num_visible
    )

    def size(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    state = state_bytes(model, "fp32", num_workers=1)
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert state == {
        "weights": size(model.parameters()),
        "gradients": size(p.grad for p in model.parameters() if p.grad is not None),
        "optimizer": size(moments),
    }
    assert state_bytes(model, "bf16", num_workers=2).keys() - state.keys() == {"16-bit copies", "exchange"}
    average = WeightAverage(model, 0.9).state_dict()["weights"]
    assert state_bytes(model, "fp32", 1, has_average=True) == state | {"average": size(average.values())}


def test_a_sharded_model_is_divided_but_for_what_is_whole_for_a_while(tiny_config, tiny_model):
    model = tiny_model(tiny_config("video_encoder.width=48"))
    one, three = state_bytes(model, "bf16", num_workers=1), state_bytes(model, "bf16", num_workers=3, sharded=True)
    for name in ("weights", "gradients", "optimizer"):
        assert three[name] == pytest.approx(one[name] / 3)
    assert three["16-bit copies"] == one["16-bit copies"]
    stacks = ("video_encoder.blocks.", "transformer.encoder.layer.", "captioning_decoder.blocks.", "modeling.blocks.")
    outside = [p.numel() for name, p in model.named_parameters() if not any(stack in name for stack in stacks)]
    largest = sum(p.numel() for p in model.video_encoder.blocks[0].parameters())  # 48 wide: the others are narrower
    assert three["exchange"] == 8 * sum(outside) + 16 * largest
    assert state_bytes(model, "bf16", num_workers=1, sharded=True) == one


def test_noise_has_the_shapes_of_a_batch(tiny_config):
    config = tiny_config("data.unit=study", "data.num_videos=2", "masked_modeling.strategy=tube")
    batch = synthetic_batch(config, ROWS, TOKENS, CPU)
    assert batch["clip"].shape == (3, 2, 4, 24, 24) and batch["clip"].dtype == torch.uint8
    assert batch["mask_order"].sort(dim=-1).values.equal(torch.arange(config.num_tokens).expand(3, 2, -1))
    assert batch["input_ids"].shape == (3, 20) and int(batch["input_ids"].max()) < config.captioning.vocab_size
    blind = synthetic_batch(tiny_config("loss.weights.contrastive=0", "loss.weights.captioning=0"), 2, 1, CPU)
    assert "input_ids" not in blind and not blind["has_report"].any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_is_timed_and_threads_are_given_back(tiny_config, precision):
    before = torch.get_num_threads()
    assert time_step(tiny_config(f"training.precision={precision}"), 2, TOKENS, CPU, before + 1) > 0
    assert torch.get_num_threads() == before
