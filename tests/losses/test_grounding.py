"""The grounding loss by loops, through the model, and along the steps of a training."""

import math

import pytest
import torch

from deepcoro.losses.grounding import grounding_loss
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.reports.vocabulary import SEGMENTS
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step

GROUNDED = ("loss.weights.grounding=2.0",)


def grounded_batch(random_batch, config, rows=3):
    batch = random_batch(config, rows)
    chance = torch.Generator().manual_seed(5)
    batch["segments_at"] = torch.randint(2 ** len(SEGMENTS), (rows, 1, config.num_tokens), generator=chance).int()
    batch["boxes_known"] = torch.tensor([[True], [False], [True]])[:rows]
    return batch


def by_loops(logits, segments_at, known):
    total = 0.0
    for clip in range(len(logits)):
        if not known.flatten()[clip]:
            continue
        for token in range(logits.shape[1]):
            for segment in range(logits.shape[2]):
                there = int(segments_at.flatten(0, 1)[clip, token]) >> segment & 1
                p = 1 / (1 + math.exp(-logits[clip, token, segment].item()))
                total -= math.log(p if there else 1 - p) / logits.shape[1]
    return total


def test_it_is_a_cross_entropy_for_each_token_and_segment():
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 18, generator=chance, dtype=torch.float64)
    segments_at = torch.randint(2**18, (2, 2, 6), generator=chance).int()
    known = torch.tensor([[True, False], [True, True]])
    assert grounding_loss(logits, segments_at, known).item() == pytest.approx(by_loops(logits, segments_at, known))


def test_clips_whose_lesions_are_nowhere_told_teach_nothing(tiny_config, tiny_model, random_batch):
    config = tiny_config(*GROUNDED, "video_encoder.class_token=true")
    model = tiny_model(config).eval()
    batch = grounded_batch(random_batch, config)
    out = model(batch, losses=["grounding"])
    assert set(out) == {"grounding_logits"}
    tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))[:, 1:]  # without the class token
    head = model.grounding_head
    assert torch.allclose(out["grounding_logits"], tokens @ head.weight.T + head.bias, atol=1e-5)
    loss = MultitaskLoss.from_config(config)
    value = loss.sums(out, batch)["grounding"]
    assert value.item() == pytest.approx(
        by_loops(out["grounding_logits"], batch["segments_at"], batch["boxes_known"]), 1e-4
    )
    assert loss.counts(batch, 1)["grounding"] == 2
    batch["valid"][2] = False
    assert loss.counts(batch, 1)["grounding"] == 1
    batch["segments_at"][1:] = 0  # of a clip that is not known, and of one that is not there
    assert loss.sums(out, batch)["grounding"].item() == pytest.approx(
        by_loops(out["grounding_logits"][:1], batch["segments_at"][:1], batch["boxes_known"][:1]), 1e-4
    )


def test_a_step_takes_it_with_the_others_and_learns_it(tiny_config, tiny_model, random_batch):
    config = tiny_config(*GROUNDED, "optim.lr=0.01")
    model, loss = tiny_model(config), MultitaskLoss.from_config(config)
    optimizer = build_optimizer(model, config.optim)
    batch = grounded_batch(random_batch, config)
    weights = config.loss.weights.model_dump()
    found = [
        train_step(model, loss, optimizer, [batch], weights, config.num_visible).losses["grounding"].item()
        for _ in range(30)
    ]
    assert found[-1] < 0.7 * found[0]


def test_without_its_weight_nothing_of_it_is_built(tiny_config, tiny_model):
    assert tiny_model(tiny_config()).grounding_head is None
