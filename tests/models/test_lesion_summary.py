"""Summaries of segments by loops, and as memory of the captioning decoder."""

import math

import numpy as np
import pytest
import torch

from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models import lesion_summary
from deepcoro.models.lesion_summary import LesionSummary
from deepcoro.reports.vocabulary import SEGMENTS

S = len(SEGMENTS)
INFORMED = ("loss.weights.grounding=1.0", "grounding.informs_captions=true")


def random_found(clips, cells, seed=0):
    """As ``GroundingHead.found_in`` has it; edges up to 3 cells from the corner."""
    chance = torch.Generator().manual_seed(seed)
    shapes = {"evidence": (clips, cells), "segment": (clips, cells, S), "stenosis": (clips, cells, 4)}
    found = {name: 3 * torch.randn(shape, generator=chance) for name, shape in shapes.items()}
    return found | {"edges": 3 * torch.rand(clips, cells, 4, generator=chance)}


@pytest.mark.parametrize("c", [1, 2])
def test_it_is_what_loops_over_segments_and_cells_find(c):
    torch.manual_seed(0)
    grid, width = (2, 2, 3), 8
    part = LesionSummary(width, grid, c)
    tokens, said = torch.randn(2, 12, width), random_found(2, 12 * c * c)
    found = part(tokens, **said)
    assert found.shape == (2, S, width)
    evidence, segment, stenosis, edges = (said[name].double().numpy() for name in said)
    cells = [(t, y, x) for t in range(2) for y in range(2 * c) for x in range(3 * c)]
    for clip, number in ((0, 0), (1, 5), (1, S - 1)):
        exps = np.exp(segment[clip])
        odds = np.exp(evidence[clip]) * exps[:, number] / exps.sum(axis=1)
        levels, place, when, pooled = np.zeros(4), np.zeros(4), 0, np.zeros(width)
        for cell, (t, y, x) in enumerate(cells):
            share = odds[cell] / odds.sum()
            levels += share / (1 + np.exp(-stenosis[clip, cell]))
            place += share * edges[clip, cell] / np.array([3 * c, 2 * c, 3 * c, 2 * c])
            when += share * (t + 0.5) / 2
            pooled += share * tokens[clip, t * 6 + (y // c) * 3 + x // c].double().numpy()
        near = [math.exp(-((32 * edge - mark - 0.5) ** 2) / 2) for edge in place for mark in range(32)]
        near += [math.exp(-((4 * when - mark - 0.5) ** 2) / 2) for mark in range(4)]
        features = torch.tensor([[math.log(odds.sum()) / 4, *levels, *near]], dtype=torch.float32)
        carried = part.of_tokens(torch.tensor(pooled, dtype=torch.float32)[None])
        wanted = part.norm(part.segment_embedding[number] + part.of_features(features) + carried)[0]
        assert torch.allclose(found[clip, number], wanted, atol=1e-4)


def test_under_autocast_places_are_as_fine_as_without(monkeypatch):
    part, said = LesionSummary(8, (1, 64, 64)), random_found(1, 64 * 64)
    said["edges"] *= 64 / 3  # anywhere in the frame
    seen = []
    plain = lesion_summary._nearness
    monkeypatch.setattr(lesion_summary, "_nearness", lambda place, marks: seen.append(place) or plain(place, marks))
    tokens = torch.randn(1, 64 * 64, 8)
    part(tokens, **said)
    with torch.autocast("cpu", torch.bfloat16):
        part(tokens, **said)
    assert len(seen) == 4
    for whole, under_autocast in zip(seen[:2], seen[2:], strict=True):
        assert torch.allclose(whole, under_autocast, atol=1e-5)


@pytest.mark.parametrize("level", ["clip", "study"])
def test_summaries_stand_behind_all_tokens_of_a_row(tiny_config, tiny_model, random_batch, level):
    config = tiny_config(
        *INFORMED, "data.unit=study", "data.num_videos=2", f"captioning.level={level}", "video_encoder.class_token=true"
    )
    model = tiny_model(config).eval()
    batch = random_batch(config, 3, views=2)
    batch["valid"][1, 1] = False
    tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
    at = model.views_at(batch)
    memory, mask = model.memory(tokens, batch["valid"], at)
    summary = model.lesion_summary(tokens[:, 1:], **model.grounding_head.found_in(tokens[:, 1:]))
    n = tokens.shape[1]
    if level == "clip":
        assert torch.equal(memory, torch.cat([tokens, summary], dim=1))
        assert torch.equal(mask, batch["valid"].reshape(6, 1).expand(6, n + S))
        return
    assert memory.shape == (3, 2 * (n + S), tokens.shape[2])
    for row in range(3):
        for view in range(2):
            clip, seen_as = 2 * row + view, model.view_embedding(at)[row, view]
            own = memory[row, view * n : (view + 1) * n]
            said = memory[row, 2 * n + view * S : 2 * n + (view + 1) * S]
            assert torch.allclose(own, tokens[clip] + seen_as)
            assert torch.allclose(said, summary[clip] + seen_as)
            places = [*range(view * n, (view + 1) * n), *range(2 * n + view * S, 2 * n + (view + 1) * S)]
            assert (mask[row, places] == batch["valid"][row, view]).all()


def test_captions_are_written_from_what_the_head_found_and_teach_it(tiny_config, tiny_model, random_batch):
    config = tiny_config(*INFORMED)
    model = tiny_model(config)
    batch = random_batch(config, 3)
    loss = MultitaskLoss.from_config(config)
    loss.sums(model(batch, losses=["captioning"]), batch)["captioning"].backward()
    for name in ("evidence", "segment", "stenosis", "edges"):
        assert getattr(model.grounding_head, name).weight.grad.abs().sum() > 0, name
    assert all(parameter.grad is not None for parameter in model.lesion_summary.parameters())
    model.eval()
    with torch.no_grad():
        before = model(batch, losses=["captioning"])["caption_logits"]
        model.grounding_head.segment.bias[3] += 5
        after = model(batch, losses=["captioning"])["caption_logits"]
    assert not torch.allclose(before, after)


def test_without_being_asked_for_it_is_not_built(tiny_config, tiny_model):
    assert tiny_model(tiny_config("loss.weights.grounding=1.0")).lesion_summary is None
