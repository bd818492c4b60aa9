"""One masked pass for all losses: the plain computation on the tokens that are shown; and the unmasked steps at the
end.

Letters: B rows, V views, N tokens, K visible.
"""

import pytest
import torch
import torch.nn.functional as F

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.layers import gather_tokens
from deepcoro.models.passes import passes, step_flops
from deepcoro.models.video_encoder import VideoEncoder, patchify
from deepcoro.training.checkpoint import load_training_state, load_weights, save_checkpoint
from deepcoro.training.mask_ratio import MaskRatio
from deepcoro.training.optim import build_optimizer, load_optimizer
from deepcoro.training.plan import training_plan
from deepcoro.training.step import train_step
from experiments.bench.flops import count_flops

SHARED = ("shared_pass.enabled=true", "shared_pass.mask_ratio=0.5")  # 9 of 18 tokens
STUDY = ("data.unit=study", "data.num_videos=2")
WEIGHTS = {"contrastive": 0.7, "captioning": 1.0, "masked_modeling": 0.1}
VISIBLE = 9


def by_hand(model, batch, weights=WEIGHTS, smoothing=0.1):
    """Weighted total and losses of valid clips, each row by itself, from the encoder and the papers' formulas."""
    videos, spoken, number, errors = [], 0.0, 0, []
    for row in range(len(batch["valid"])):
        clip = (batch["clip"][row].double() - 100) / 40  # [V, T, H, W]
        visible, hidden = batch["mask_order"][row].split([VISIBLE, 18 - VISIBLE], dim=1)
        tokens = model.video_encoder(clip, visible)  # [V, K, D]
        views = model.video_encoder.pool(tokens)
        if model.view_embedding is not None:
            seen = model.view_embedding(model.views_at(batch)[row : row + 1])[0]
            memory = tokens + seen[:, None]
            views = model.study_pooling((views + seen)[None], batch["valid"][row : row + 1])
        else:
            memory = tokens
        videos.append(model.video_projection(views)[0])
        length, prefix = int(batch["text_length"][row]), int(batch["prefix_length"][row])
        ids = batch["input_ids"][row, :length]
        memory = memory[batch["valid"][row]].flatten(0, 1)[None]
        if batch["has_report"][row]:
            logits = model.eval().captioning_decoder(ids[None, :-1], memory, torch.ones(memory.shape[:2], dtype=bool))
            asked = slice(prefix - 1, None)
            spoken += F.cross_entropy(logits[0, asked], ids[1:][asked], label_smoothing=smoothing, reduction="sum")
            number += length - prefix
        prediction = model.masked_video_modeling(tokens, visible, hidden)
        pixels = gather_tokens(patchify(clip, (2, 8, 8)), hidden)
        target = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        errors.append((prediction - target).square().mean(-1)[batch["valid"][row]].flatten())
    video = F.normalize(torch.stack(videos), dim=-1)
    text = F.normalize(model.text_projection(model.text_encoder(batch["input_ids"], batch["text_length"])), dim=-1)
    told = batch["has_report"]
    logits = model.logit_scale.exp() * video[told] @ text[told].T + model.logit_bias
    sign = torch.where(batch["report_key"][told][:, None] == batch["report_key"][told], 1.0, -1.0)
    losses = {
        "contrastive": -F.logsigmoid(sign * logits).sum() / told.sum(),
        "captioning": spoken / number,
        "masked_modeling": torch.cat(errors).mean(),
    }
    return sum(weights.get(name, 0) * value for name, value in losses.items()), losses


def one_batch(random_batch, config):
    """Texts that two rows share, a row without report, and one view that is not there."""
    batch = random_batch(config, 4, config.data.num_videos, length=12)
    batch["report_key"] = torch.tensor([1, 2, 1, 3])
    batch["has_report"][1] = False
    batch["valid"][3, -1] = config.data.num_videos == 1
    return batch


def pieces(batch, number):
    size = len(batch["valid"]) // number
    return [{name: x[n * size : (n + 1) * size] for name, x in batch.items()} for n in range(number)]


def step(model, config, batches, weights=WEIGHTS):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    visible = MaskRatio(config).num_visible(0)
    loss = MultitaskLoss.from_config(config)
    return train_step(model, loss, optimizer, batches, weights, visible, max_grad_norm=1e9, shared_pass=True)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("weights", [WEIGHTS, WEIGHTS | {"masked_modeling": 0.0}, {"captioning": 1.0}])
@pytest.mark.parametrize("unit", ["video", "study"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_values_and_gradients_are_those_of_the_plain_computation(
    tiny_config, tiny_model, random_batch, number, unit, weights
):
    views = ("study_pooling.num_layers=1", *STUDY) if unit == "study" else ()
    config = tiny_config(*SHARED, *views)
    model, plain = tiny_model(config).double().train(), tiny_model(config).double().train()
    batch = one_batch(random_batch, config)
    total, losses = by_hand(plain, batch, weights)
    total.backward()
    result = step(model, config, pieces(batch, number), weights)
    assert result.losses.keys() == {name for name, weight in weights.items() if weight > 0}
    for name, value in result.losses.items():
        assert value.item() == pytest.approx(losses[name].item(), abs=1e-9)
    wanted, found = gradients(plain), gradients(model)
    assert found.keys() == {name for name, grad in wanted.items() if weights_reach(name, weights)}
    for name, grad in found.items():
        assert torch.allclose(grad, wanted[name], rtol=0, atol=1e-9), name


def weights_reach(name, weights):
    """Whether a loss that weighs something trains a parameter."""
    alone = {"masked_video_modeling": "masked_modeling"}
    contrastive = ("text_encoder", "text_projection", "video_projection", "logit", "study_pool", "video_encoder.pool")
    for start, loss in (alone | dict.fromkeys(contrastive, "contrastive")).items():
        if name.startswith(start):
            return weights.get(loss, 0) > 0
    return True


@pytest.mark.parametrize("number", [1, 4])
def test_what_is_dropped_at_random_is_the_same_in_both_passes(tiny_config, tiny_model, random_batch, number):
    chance = ("captioning.dropout=0.2", "video_encoder.drop_path=0.4", "study_pooling.view_dropout=0.4", *STUDY)
    config = tiny_config(*SHARED, *chance)
    parts = pieces(one_batch(random_batch, config), number)
    model, plain = tiny_model(config).double().train(), tiny_model(config).double().train()
    loss = MultitaskLoss.from_config(config)
    torch.manual_seed(3)
    outs = []
    for seed, part in zip(torch.randint(2**62, (number,)).tolist(), parts, strict=True):
        torch.manual_seed(seed)
        outs.append(plain(part, VISIBLE, shared_pass=True))
    counts = [loss.counts(part, 18 - VISIBLE) for part in parts]
    means = {"contrastive": loss.contrast(outs, parts) / sum(c["contrastive"] for c in counts)}
    for name in ("captioning", "masked_modeling"):
        sums = [loss.sums(out, part)[name] for out, part in zip(outs, parts, strict=True)]
        means[name] = sum(sums) / sum(c[name] for c in counts)
    loss.weigh(means, WEIGHTS).backward()
    torch.manual_seed(3)
    step(model, config, parts)
    for name, grad in gradients(plain).items():
        assert torch.allclose(gradients(model)[name], grad, rtol=0, atol=1e-9), name


def test_what_is_hidden_is_seen_by_no_loss(tiny_config, tiny_model, random_batch):
    config = tiny_config(*SHARED)
    model, batch, calls = tiny_model(config).eval(), random_batch(config), []
    model.video_encoder.blocks[0].register_forward_hook(lambda _, args, __: calls.append(args[0].shape[1]))
    before = model(batch, VISIBLE, shared_pass=True)
    assert calls == [VISIBLE]  # one pass, of the visible tokens
    changed = dict(batch, clip=batch["clip"].clone())
    tubelets = patchify(changed["clip"][:, 0], (2, 8, 8))  # a copy
    for row in range(4):
        for token in batch["mask_order"][row, 0, VISIBLE:].tolist():
            t, y, x = token // 9, token // 3 % 3, token % 3
            place = (row, 0, slice(2 * t, 2 * t + 2), slice(8 * y, 8 * y + 8), slice(8 * x, 8 * x + 8))
            assert torch.equal(changed["clip"][place].flatten(), tubelets[row, token])
            changed["clip"][place] = 255 - changed["clip"][place]
    after = model(changed, VISIBLE, shared_pass=True)
    for name in ("video_embedding", "caption_logits", "prediction"):
        assert torch.equal(before[name], after[name]), name
    assert not torch.allclose(before["target"], after["target"], atol=1e-3)
    assert not torch.allclose(model(batch)["video_embedding"], before["video_embedding"], atol=1e-3)


def test_a_class_token_goes_along(tiny_config, tiny_model, random_batch):
    config = tiny_config(*SHARED, "video_encoder.class_token=true", "video_encoder.pool=class")
    model, batch = tiny_model(config).eval(), random_batch(config)
    out = model(batch, VISIBLE, shared_pass=True)
    tokens = model.video_encoder(model.normalise(batch["clip"][:, 0]), batch["mask_order"][:, 0, :VISIBLE])
    assert tokens.shape[1] == 1 + VISIBLE
    wanted = F.normalize(model.video_projection(tokens[:, 0]), dim=-1)
    assert torch.allclose(out["video_embedding"], wanted, atol=1e-6)
    assert out["prediction"].shape == (4, VISIBLE, 128)


@pytest.mark.parametrize(
    ("tail", "num_steps", "shared"), [(0, 10, 10), (0.25, 10, 8), (0.3, 10, 7), (0.1, 10, 9), (0.02, 5000, 4900)]
)
def test_the_unmasked_steps_are_the_last_ones(tail, num_steps, shared):
    steps = (f"training.num_steps={num_steps}", "optim.warmup_steps=2")
    config = Config().override([*SHARED, f"shared_pass.unmasked_tail={tail}", *steps])
    masks = MaskRatio(config)
    assert [step for step in range(num_steps) if masks.is_shared(step)] == list(range(shared))
    # In the tail masked modelling has a pass of its own, at its own ratio.
    assert {masks.num_visible(step) for step in range(shared)} == {784}
    assert {masks.num_visible(step) for step in range(shared, num_steps)} == ({392} if tail else set())
    assert config.visible_range == ((392, 784) if tail else (784, 784))


def test_without_a_ratio_of_its_own_the_pass_follows_masked_modelling():
    schedule = ("mask_ratio_follows=schedule", "ratio_schedule.start=0.5", "ratio_schedule.end=0.9")
    config = Config().override(["shared_pass.enabled=true", *(f"masked_modeling.{x}" for x in schedule)])
    assert [MaskRatio(config).num_visible(step) for step in (0, 9999)] == [784, 157]
    assert Config(shared_pass={"enabled": True}).visible_range == (392, 392)
    assert not MaskRatio(Config()).is_shared(0)


def test_the_plan_tells_of_it(tiny_config):
    told = training_plan(tiny_config(*SHARED, "shared_pass.unmasked_tail=0.2"), [])
    assert any("serves all losses up to step 8; from then on they see all tokens" in line for line in told)
    (line,) = (line for line in told if line.strip().startswith("mask ratio"))
    assert line.split()[2:] == ["0.5", "0.5", f"{14 / 18:.3g}"]


def test_a_run_goes_on_exactly_into_the_tail(tiny_config, tiny_model, random_batch, tmp_path):
    """8 steps at a stretch, 6 of them masked, beside 5, a checkpoint, and 3 more."""
    config = tiny_config(*SHARED, "shared_pass.unmasked_tail=0.25", "training.num_steps=8", "captioning.dropout=0.1")
    loss, masks = MultitaskLoss.from_config(config), MaskRatio(config)

    def steps(model, optimizer, which):
        seen = []
        hook = model.video_encoder.register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
        for step in which:
            torch.manual_seed(step)
            batches = [random_batch(config, seed=2 * step), random_batch(config, seed=2 * step + 1)]
            visible, shared = masks.num_visible(step), masks.is_shared(step)
            train_step(model, loss, optimizer, batches, loss.loss_weights, visible, shared_pass=shared)
        hook.remove()
        return seen

    whole, first, second = (tiny_model(config).train() for _ in range(3))
    seen = steps(whole, build_optimizer(whole, config.optim), range(8))
    # Embeddings of both micro-batches, then each once more; at the end each with a masked pass beside it.
    assert seen == 6 * [9, 9, 9, 9] + 2 * [18, 18, 18, 4, 18, 4]

    optimizer = build_optimizer(first, config.optim)
    assert steps(first, optimizer, range(5)) == seen[:20]
    place = save_checkpoint(tmp_path, 5, first, {"step": 5, "optimizer": optimizer.state_dict()}, config, "dataset-1")
    load_weights(place, second)
    optimizer, state = build_optimizer(second, config.optim), load_training_state(place)
    load_optimizer(optimizer, state["optimizer"])
    assert steps(second, optimizer, range(5, 8)) == seen[20:]
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


@pytest.mark.parametrize("losses", [("contrastive", "captioning", "masked_modeling"), ("contrastive", "captioning")])
def test_operations_are_those_that_torch_counts(tiny_config, tiny_model, random_batch, losses):
    config = tiny_config(*SHARED, "captioning.chunk_size=1000")
    model, batch = tiny_model(config).train(), random_batch(config, rows=4, length=20)
    batch["text_length"][:] = 20
    counted = count_flops(lambda: step(model, config, [batch], dict.fromkeys(losses, 1.0)), model.video_encoder)
    found = passes(config, model, 20, losses=losses, num_visible=VISIBLE, shared_pass=True)
    unshared = passes(config, model, 20, losses=losses, num_visible=VISIBLE, shared_pass=False)
    assert counted == pytest.approx(step_flops(found, 4), rel=0.02)
    assert step_flops(found, 4) < 0.8 * step_flops(unshared, 4)


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["shared_pass.mask_ratio=0.5"], "mask_ratio 0.5 and unmasked_tail 0.0 do nothing without"),
        (["shared_pass.unmasked_tail=0.1"], "mask_ratio None and unmasked_tail 0.1 do nothing without"),
        ([*SHARED, "shared_pass.mask_ratio=0.9999"], "mask_ratio 0.9999 of 1568 tokens .random. leaves 0"),
        ([*SHARED, "shared_pass.mask_ratio=0.04", "masked_modeling.strategy=temporal"], "temporal. leaves 1568"),
        ([*SHARED, "shared_pass.unmasked_tail=0.00001"], "0.00001|1e-05 of training.num_steps 10000 is 0 whole"),
        ([*SHARED, "shared_pass.unmasked_tail=1.0"], "less than 1"),
        ([*SHARED, "loss.weights.contrastive=0", "loss.weights.captioning=0"], "needs the contrastive or"),
        ([*SHARED, "masked_modeling.mask_ratio_follows=schedule"], "0.5 stays, .*follows=schedule moves"),
        ([*SHARED, "video_encoder.name=mvit"], "mvit computes all of them"),
        (
            [*SHARED, "video_encoder.name=transformers", "video_encoder.pretrained=/nowhere"],
            "transformers computes all of them",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_with_its_numbers(assignments, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        Config().override(assignments)


class Replacing(VideoEncoder):
    """A user's encoder that computes hidden tokens."""

    def prepare_masking(self):
        raise AssertionError("it is refused before")


def test_an_encoder_of_ones_own_that_computes_hidden_tokens_is_refused(tiny_config, tiny_model):
    name = f"video_encoder.name={__name__}:Replacing.from_config"
    with pytest.raises(ConfigError, match=r"Replacing.from_config replaces them"):
        tiny_model(tiny_config(*SHARED, name))


def test_a_shared_pass_needs_to_know_what_it_shows(tiny_config, tiny_model, random_batch):
    config = tiny_config(*SHARED)
    with pytest.raises(ValueError, match="needs num_visible"):
        tiny_model(config)(random_batch(config), shared_pass=True)
