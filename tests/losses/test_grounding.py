"""The grounding loss by loops, through the model, and along the steps of a training."""

import math

import pytest
import torch

from deepcoro.losses.grounding import grounding_loss
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.grounding import GroundingHead
from deepcoro.models.video_encoder import patchify
from deepcoro.reports.vocabulary import SEGMENTS
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step

MAP = ("segments_at", "stenosis_at", "edges_at", "lesions_known")
GROUNDED = ("loss.weights.grounding=2.0",)


def random_map(rows, views, tokens, seed=5):
    """A lesion in about a third of the cells, some with two, of most of them the percent; a third is not known."""
    chance = torch.Generator().manual_seed(seed)
    bits = torch.randint(len(SEGMENTS), (rows, views, tokens, 2), generator=chance)
    segments = torch.where(torch.rand(rows, views, tokens, generator=chance) < 0.3, (1 << bits[..., 0]), 0)
    segments |= torch.where(torch.rand(rows, views, tokens, generator=chance) < 0.1, (1 << bits[..., 1]), 0)
    percents = torch.tensor([-1, 0, 49, 50, 69, 70, 90, 99, 100], dtype=torch.int8)
    stenosis = percents[torch.randint(len(percents), segments.shape, generator=chance)]
    stenosis = torch.where(segments != 0, stenosis, -1)
    edges = 9 * torch.rand(rows, views, tokens, 4, generator=chance)
    edges = torch.where(segments.unsqueeze(-1) != 0, edges, torch.nan)
    return segments.int(), stenosis, edges, torch.rand(rows, views, tokens, generator=chance) < 0.67


def by_loops(prior, evidence, segment, stenosis, edges, segments_at, stenosis_at, edges_at, known, valid, early=None):
    total = 0.0
    for clip in range(len(prior)):
        row, view = divmod(clip, valid.shape[1])
        for token in range(prior.shape[1]):
            if not (valid[row, view] and known[row, view, token]):
                continue
            bits = int(segments_at[row, view, token])
            found = [0.0, *(x[clip, token].item() for x in (evidence, early) if x is not None)]
            for logit in (prior[clip, token].item() + speaks for speaks in found):
                p = 1 / (1 + math.exp(-logit))
                total -= math.log(p if bits else 1 - p)
            if bits:
                exps = [math.exp(x) for x in segment[clip, token].tolist()]
                total -= math.log(sum(e for s, e in enumerate(exps) if bits >> s & 1) / sum(exps))
                total += sum(abs(edges[clip, token, k].item() - edges_at[row, view, token, k].item()) for k in range(4))
            percent = int(stenosis_at[row, view, token])
            for level, logit in zip((50, 70, 90, 100), stenosis[clip, token].tolist(), strict=True):
                p = 1 / (1 + math.exp(-logit))
                total -= math.log(p if percent >= level else 1 - p) if percent >= 0 else 0.0
    return total


def random_logits(clips, tokens, seed=0):
    chance = torch.Generator().manual_seed(seed)
    shapes = [(clips, tokens, *more) for more in ((), (), (len(SEGMENTS),), (4,), (4,))]
    return [torch.randn(shape, generator=chance, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_it_is_the_likelihood_of_the_map_of_what_is_known():
    logits, (*truth, known) = random_logits(4, 6), random_map(2, 2, 6)
    valid = torch.tensor([[True, False], [True, True]])
    loss = grounding_loss(*logits, *truth, known, valid)
    assert loss.item() == pytest.approx(by_loops(*logits, *truth, known, valid))


def test_evidence_of_embedded_tokens_has_an_error_of_its_own():
    logits, (*truth, known) = random_logits(2, 6), random_map(2, 1, 6)
    early, valid = random_logits(2, 6, seed=1)[0], torch.ones(2, 1, dtype=torch.bool)
    loss = grounding_loss(*logits, *truth, known, valid, early)
    assert loss.item() == pytest.approx(by_loops(*logits, *truth, known, valid, early))
    prior = logits[0]
    (of_prior,) = torch.autograd.grad(loss, prior)
    assert torch.allclose(of_prior, torch.where(known[:, 0], prior.sigmoid() - (truth[0][:, 0] != 0).double(), 0))


def test_the_prior_learns_from_its_own_error_alone_and_nothing_from_what_is_not_known():
    said, (segments_at, stenosis_at, edges_at, known) = random_logits(2, 8), random_map(1, 2, 8)
    (prior, evidence, segment, stenosis, edges), valid = said, torch.tensor([[True, False]])
    grounding_loss(*said, segments_at, stenosis_at, edges_at, known, valid).backward()
    lesion, asked = (segments_at[0] != 0).double(), known[0] & valid[0].unsqueeze(1)
    assert torch.allclose(prior.grad, torch.where(asked, prior.sigmoid() - lesion, 0))
    assert torch.allclose(evidence.grad, torch.where(asked, (prior + evidence).sigmoid() - lesion, 0))
    assert torch.isfinite(segment.grad).all()
    taught = asked & (lesion == 1)
    assert taught.any()
    graded = (asked & (stenosis_at[0] >= 0)).unsqueeze(-1)
    reached = (stenosis_at[0].unsqueeze(-1) >= torch.tensor([50, 70, 90, 100])).double()
    assert torch.allclose(stenosis.grad, torch.where(graded, stenosis.sigmoid() - reached, 0))
    assert torch.equal(segment.grad.abs().sum(dim=-1) > 1e-9, taught)
    outwards = torch.where(edges > edges_at[0], 1.0, -1.0).double()
    assert torch.equal(edges.grad, torch.where(taught.unsqueeze(-1), outwards, 0))


def test_the_head_sees_the_view_in_its_prior_and_the_tokens_in_the_rest():
    torch.manual_seed(0)
    head = GroundingHead(12, (1, 1, 5), hidden_size=8)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens, tree = torch.randn(4, 5, 12), torch.tensor([0, 1, -1, -1], dtype=torch.int8)
    angles = torch.tensor([[30.0, -20.0], [30.0, -20.0], [30.0, -20.0], [math.nan, 10.0]])
    out = head(tokens, angles, tree)
    assert {key: tuple(x.shape) for key, x in out.items()} == {
        "lesion_prior": (4, 5), "lesion_evidence": (4, 5), "lesion_segment": (4, 5, len(SEGMENTS)),
        "lesion_stenosis": (4, 5, 4), "lesion_edges": (4, 5, 4),
    }  # fmt: skip
    other = head(torch.randn(4, 5, 12), angles, tree)
    assert torch.equal(out["lesion_prior"], other["lesion_prior"])
    assert not torch.allclose(out["lesion_evidence"], other["lesion_evidence"])
    rows = out["lesion_prior"]
    assert all(not torch.allclose(rows[a], rows[b]) for a, b in ((0, 1), (0, 2), (1, 2), (2, 3)))
    unknown = head(tokens, torch.full((4, 2), math.nan), torch.full((4,), -1))["lesion_prior"]
    assert torch.equal(unknown[0], rows[3])  # one unknown angle is a view that is not known
    assert torch.allclose(out["lesion_evidence"], (tokens @ head.evidence.weight.T + head.evidence.bias)[..., 0])


def test_at_first_a_lesion_is_rare_anywhere():
    out = GroundingHead(8, (1, 1, 3))(torch.zeros(1, 3, 8), torch.zeros(1, 2), torch.zeros(1))
    assert (out["lesion_prior"] == -5).all()
    assert (out["lesion_evidence"] == 0).all()


def test_what_a_token_says_of_its_cells_lies_where_they_are():
    grid, c = (2, 3, 4), 2
    head = GroundingHead(1, grid, c)
    torch.nn.init.zeros_(head.evidence.weight)
    head.evidence.weight.data[:, 0] = torch.tensor([1.0, 10.0, 100.0, 1000.0])  # of the cells, row by row
    tokens = torch.arange(1.0, 25.0).view(1, 24, 1)
    found = head(tokens, torch.zeros(1, 2), torch.zeros(1))["lesion_evidence"].view(2, 6, 8)
    for time in range(2):
        for row in range(6):
            for column in range(8):
                token = 1 + time * 12 + (row // 2) * 4 + column // 2
                assert found[time, row, column] == token * 10 ** (row % 2 * 2 + column % 2)


def test_edges_lie_around_the_middle_of_their_cell():
    head = GroundingHead(3, (2, 2, 3), 2)
    torch.nn.init.zeros_(head.edges.weight)
    head.edges.bias.data = torch.tensor([0.25, 0.5, 1.0, 2.0]).repeat(4)  # left, upper, right, lower, of each cell
    found = head.found_in(torch.randn(1, 12, 3))["edges"].view(2, 4, 6, 4)
    for row in range(4):
        for column in range(6):
            across, down = column + 0.5, row + 0.5
            wanted = torch.tensor([across - 0.25, down - 0.5, across + 1.0, down + 2.0])
            assert torch.equal(found[:, row, column], wanted.expand(2, 4))


def grounded_batch(random_batch, config, rows=3):
    batch = random_batch(config, rows)
    cells = math.prod(config.grounding.cells(config.grid))
    batch |= zip(MAP, random_map(rows, 1, cells), strict=True)
    batch["lesions_known"][1] = False
    batch["tree"] = torch.tensor([[0], [1], [-1]], dtype=torch.int8)[:rows]
    return batch


def test_clips_of_which_nothing_is_known_count_for_nothing(tiny_config, tiny_model, random_batch):
    config = tiny_config(*GROUNDED, "video_encoder.class_token=true")
    model = tiny_model(config).eval()
    batch = grounded_batch(random_batch, config)
    out = model(batch, losses=["grounding"])
    assert set(out) == {f"lesion_{part}" for part in ("prior", "evidence", "segment", "stenosis", "edges", "early")}
    clip, encoder = model.normalise(batch["clip"]).flatten(0, 1), model.video_encoder
    tokens, embedded = encoder(clip, with_embedded=True)
    assert torch.equal(tokens, encoder(clip))
    assert torch.equal(embedded, encoder.embed(encoder.patch_norm(patchify(clip, config.tubelet))))
    # The class token has no place.
    wanted = model.grounding_head(tokens[:, 1:], batch["angles"].flatten(0, 1), batch["tree"].flatten(), embedded)
    assert all(torch.allclose(out[key], wanted[key], atol=1e-5) for key in wanted)
    loss = MultitaskLoss.from_config(config)
    logits = [out[f"lesion_{name}"] for name in ("prior", "evidence", "segment", "stenosis", "edges")]
    truth = [batch[name] for name in (*MAP, "valid")]

    def is_right():
        wanted = by_loops(*logits, *truth, out["lesion_early"])
        return loss.sums(out, batch)["grounding"].item() == pytest.approx(wanted, 1e-4)

    assert is_right()
    assert loss.counts(batch, 1)["grounding"] == 2
    batch["valid"][2] = False
    assert is_right()
    assert loss.counts(batch, 1)["grounding"] == 1


def test_a_step_takes_it_with_the_others_and_learns_it(tiny_config, tiny_model, random_batch):
    config = tiny_config(*GROUNDED, "optim.lr=0.01")
    model, loss = tiny_model(config), MultitaskLoss.from_config(config)
    optimizer = build_optimizer(model, config.optim)
    batch = grounded_batch(random_batch, config)
    weights = config.loss.weights.model_dump()
    found = [
        train_step(model, loss, optimizer, [batch], weights, config.num_visible).losses["grounding"].item()
        for _ in range(40)
    ]
    assert found[-1] < 0.7 * found[0]


def test_views_of_a_study_by_micro_batches_are_those_of_one_batch(tiny_config, tiny_model, random_batch):
    """Four studies of two views, at once and in two halves: the same mean and the same gradients."""
    config = tiny_config(*GROUNDED, "data.unit=study", "data.num_videos=2")
    whole = random_batch(config, 4, views=2)
    cells = math.prod(config.grounding.cells(config.grid))
    whole |= zip(MAP, random_map(4, 2, cells), strict=True)
    whole["tree"] = torch.tensor([[0, 1], [1, -1], [0, 0], [1, 1]], dtype=torch.int8)
    whole["valid"][1, 1] = False
    halves = [{key: value[part] for key, value in whole.items()} for part in (slice(0, 2), slice(2, 4))]
    found = []
    for batches in ([whole], halves):
        model = tiny_model(config).eval()  # no chance
        loss, weights = MultitaskLoss.from_config(config), {"grounding": 1.0}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        result = train_step(model, loss, optimizer, batches, weights, config.num_visible, max_grad_norm=1e9)
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((result.losses["grounding"].item(), grads))
    assert found[0][0] == pytest.approx(found[1][0], 1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    assert any(name.startswith("video_encoder") for name in found[0][1])
    for name, grad in found[0][1].items():
        assert torch.allclose(grad, found[1][1][name], atol=1e-5), name


def test_without_its_weight_nothing_of_it_is_built(tiny_config, tiny_model):
    assert tiny_model(tiny_config()).grounding_head is None
