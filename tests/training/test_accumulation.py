"""Accumulated micro-batches are one batch, for the contrastive loss too: its pairs are those of all rows.

Letters: B rows of all micro-batches, E embedding.
"""

import pytest
import torch
import torch.nn.functional as F

from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.training.step import train_step

WEIGHTS = {"contrastive": 0.7, "captioning": 1.0, "masked_modeling": 0.1}
UNLIKE = ("captioning.dropout=0.2", "video_encoder.drop_path=0.4")  # two forward passes of one batch differ


def plain_contrastive(loss_type, video, text, key, has_report, weight, scale, bias):
    """Weighted mean over rows with report, from the papers' formulas and all B x B pairs: SigLIP equation 1, CLIP
    figure 3 with a target that is uniform over positives."""
    video, text, key, weight = video[has_report], text[has_report], key[has_report], weight[has_report]
    positive = key[:, None] == key[None, :]
    logits = scale * video @ text.T
    if loss_type == "sigmoid":
        z = torch.where(positive, 1.0, -1.0).to(logits.dtype)
        pair = (weight[:, None] + weight) / 2
        return -(pair * F.logsigmoid(z * (logits + bias))).sum() / weight.sum()
    target = positive.to(logits.dtype) / positive.sum(dim=1, keepdim=True)
    both = [-(weight[:, None] * target * part.log_softmax(dim=1)).sum() for part in (logits, logits.T)]
    return (both[0] + both[1]) / 2 / weight.sum()


def by_formula(loss_type, outs, batches, severity_weight=0.0):
    """The weighted total of what ``outs`` hold, all their rows in one batch."""
    joined = {name: torch.cat([out[name] for out in outs]) for name in outs[0] if outs[0][name].ndim > 0}
    columns = ("report_key", "has_report", "valid", "severity")
    rows = {name: torch.cat([batch[name] for batch in batches]) for name in columns}
    embeddings = (joined["video_embedding"], joined["text_embedding"], rows["report_key"], rows["has_report"])
    weight = 1 + severity_weight * rows["severity"] / 100
    contrastive = plain_contrastive(loss_type, *embeddings, weight, outs[0]["logit_scale"], outs[0]["logit_bias"])
    spoken, number = 0.0, 0
    for out, batch in zip(outs, batches, strict=True):
        logits = out["caption_hidden"] @ out["caption_weight"].T
        place = torch.arange(1, batch["input_ids"].shape[1])
        asked = (place >= batch["prefix_length"][:, None]) & (place < batch["text_length"][:, None])
        asked = asked & batch["has_report"][:, None]
        spoken += F.cross_entropy(logits[asked], batch["input_ids"][:, 1:][asked], label_smoothing=0.1, reduction="sum")
        number += int(asked.sum())
    error = (joined["prediction"] - joined["target"]).square().mean(dim=-1)
    masked = error[rows["valid"].flatten()].mean()
    losses = {"contrastive": contrastive, "captioning": spoken / number, "masked_modeling": masked}
    return sum(WEIGHTS[name] * value for name, value in losses.items()), losses


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def accumulate(model, config, batches):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = MultitaskLoss.from_config(config)
    return train_step(model, loss, optimizer, batches, WEIGHTS, config.num_visible, max_grad_norm=1e9)


def one_batch(random_batch, config, rows=8, length=12):
    """Texts that some rows share, two rows without report, and one without a view."""
    batch = random_batch(config, rows, config.data.num_videos, length=length)
    batch["report_key"] = torch.tensor([1, 2, 3, 1, 4, 5, 3, 3])
    batch["severity"] = torch.tensor([80, 100, 0, 35, 70, 0, 50, 99], dtype=torch.float64)
    batch["has_report"][[2, 5]] = False
    batch["valid"][5] = False
    return batch


def pieces(batch, number):
    size = len(batch["valid"]) // number
    return [{name: x[n * size : (n + 1) * size] for name, x in batch.items()} for n in range(number)]


@pytest.mark.parametrize("number", [1, 2, 4, 8])
@pytest.mark.parametrize("severity_weight", [0.0, 1.5])
@pytest.mark.parametrize("loss_type", ["sigmoid", "softmax"])
def test_any_number_of_micro_batches_is_the_one_batch(
    tiny_config, tiny_model, random_batch, loss_type, severity_weight, number
):
    severe = f"contrastive.severity_weight={severity_weight}"
    config = tiny_config(f"contrastive.loss_type={loss_type}", "contrastive.chunk_size=3", severe)
    batch = one_batch(random_batch, config)
    model, plain = tiny_model(config).double().train(), tiny_model(config).double().train()
    total, losses = by_formula(loss_type, [plain(batch, config.num_visible)], [batch], severity_weight)
    total.backward()
    result = accumulate(model, config, pieces(batch, number))
    assert result.total.item() == pytest.approx(total.item(), abs=1e-9)
    for name, value in losses.items():
        assert result.losses[name].item() == pytest.approx(value.item(), abs=1e-9)
    wanted, found = gradients(plain), gradients(model)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert torch.allclose(found[name], grad, rtol=0, atol=1e-9), name


def test_studies_of_several_clips_too(tiny_config, tiny_model, random_batch):
    config = tiny_config("data.unit=study", "data.num_videos=2")
    batch = one_batch(random_batch, config)
    model, plain = tiny_model(config).double().train(), tiny_model(config).double().train()
    total, _ = by_formula("sigmoid", [plain(batch, config.num_visible)], [batch])
    total.backward()
    accumulate(model, config, pieces(batch, 4))
    for name, grad in gradients(plain).items():
        assert torch.allclose(gradients(model)[name], grad, rtol=0, atol=1e-9), name


@pytest.mark.parametrize("study", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_is_dropped_at_random_is_the_same_in_both_passes(
    tiny_config, tiny_model, random_batch, study, checkpointed
):
    """The reference keeps the graphs of all micro-batches, each made once, and goes back through them at once."""
    views = ("data.unit=study", "data.num_videos=2", "study_pooling.view_dropout=0.4") if study else ()
    config = tiny_config(*UNLIKE, *views, f"video_encoder.checkpoint_activations={str(checkpointed).lower()}")
    parts = pieces(one_batch(random_batch, config), 4)
    model, plain = tiny_model(config).double().train(), tiny_model(config).double().train()
    torch.manual_seed(11)
    outs = []
    for seed, part in zip(torch.randint(2**62, (4,)).tolist(), parts, strict=True):
        torch.manual_seed(seed)
        outs.append(plain(part, config.num_visible))
    total, _ = by_formula("sigmoid", outs, parts)
    total.backward()
    torch.manual_seed(11)
    result = accumulate(model, config, parts)
    assert result.total.item() == pytest.approx(total.item(), abs=1e-9)
    for name, grad in gradients(plain).items():
        assert torch.allclose(gradients(model)[name], grad, rtol=0, atol=1e-9), name
    torch.manual_seed(12)  # or nothing was dropped
    assert accumulate(model, config, parts).total.item() != pytest.approx(total.item(), abs=1e-6)


def test_contrastive_alone_is_accumulated(tiny_config, tiny_model, random_batch):
    config = tiny_config("loss.weights.captioning=0", "loss.weights.masked_modeling=0")
    batch = one_batch(random_batch, config)
    loss = MultitaskLoss.from_config(config)
    found = []
    for number in (1, 4):
        model = tiny_model(config).double().train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        result = train_step(model, loss, optimizer, pieces(batch, number), {"contrastive": 2.0}, config.num_visible)
        assert set(result.losses) == {"contrastive"}
        found.append(gradients(model))
    for name, grad in found[0].items():
        assert torch.allclose(found[1][name], grad, rtol=0, atol=1e-9), name


def test_micro_batches_without_any_report(tiny_config, tiny_model, random_batch):
    config = tiny_config()
    batch = one_batch(random_batch, config)
    batch["has_report"][:] = False
    model = tiny_model(config).double().train()
    result = accumulate(model, config, pieces(batch, 2))
    assert result.losses["contrastive"].item() == result.losses["captioning"].item() == 0
    assert result.losses["masked_modeling"].item() > 0 and not result.skipped
    assert model.get_parameter("logit_scale").grad.item() == 0


def test_in_fp16_slopes_of_embeddings_are_scaled_once(tiny_config, tiny_model, random_batch):
    config = tiny_config()
    batch = one_batch(random_batch, config)
    loss, norms = MultitaskLoss.from_config(config), {}
    for scale in (1.0, 256.0):
        model = tiny_model(config).train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        parts = pieces(batch, 2)
        result = train_step(model, loss, optimizer, parts, WEIGHTS, config.num_visible, "fp16", scaler, 1e9)
        norms[scale] = result.grad_norm.item()
    assert norms[256.0] == pytest.approx(norms[1.0], rel=0.02)
