"""One optimizer step: what it divides by, clips, refuses and reports."""

import pytest
import torch

from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step

WEIGHTS = {"contrastive": 1.0, "captioning": 1.0, "masked_modeling": 0.1}
NO_PAIRS = ("loss.weights.contrastive=0",)


def take_step(model, batches, config, weights=WEIGHTS, **more):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    more = {"max_grad_norm": 1e9} | more
    return train_step(model, MultitaskLoss(), optimizer, batches, weights, config.num_visible, **more)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_its_gradients_are_those_of_the_weighted_mean_losses(tiny_config, tiny_model, random_batch):
    config, batch = tiny_config(), random_batch(tiny_config())
    batch["has_report"][1] = False
    model, plain = tiny_model(config).double(), tiny_model(config).double()
    result = take_step(model, [batch], config)
    losses = MultitaskLoss()(plain(batch, config.num_visible), batch)
    total = losses["contrastive"] + losses["captioning"] + 0.1 * losses["masked_modeling"]
    total.backward()
    assert result.total.item() == pytest.approx(total.item(), abs=1e-9)
    for name, grad in gradients(plain).items():
        assert torch.allclose(gradients(model)[name], grad, atol=1e-10)
    for (name, p), (_, start) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        if p.grad is not None:
            assert torch.allclose(p, start - 0.1 * p.grad, atol=1e-12), name


def test_accumulated_micro_batches_are_one_batch(tiny_config, tiny_model, random_batch):
    """Unequal lengths, missing reports and lost views: only a division by the joint counts makes them equal."""
    config = tiny_config(*NO_PAIRS)
    batch = random_batch(config, rows=4, length=12)
    batch["has_report"] = torch.tensor([True, True, True, False])
    batch["valid"][1] = False
    batch["has_report"][1] = False
    parts = [{key: value[half] for key, value in batch.items()} for half in (slice(0, 1), slice(1, 4))]
    one, two = tiny_model(config).double(), tiny_model(config).double()
    weights = {"captioning": 1.0, "masked_modeling": 0.1}
    together, apart = take_step(one, [batch], config, weights), take_step(two, parts, config, weights)
    for name, value in together.losses.items():
        assert apart.losses[name].item() == pytest.approx(value.item(), abs=1e-9)
    assert apart.valid_share.item() == together.valid_share.item() == 0.75
    for name, grad in gradients(one).items():
        assert torch.allclose(gradients(two)[name], grad, atol=1e-10)


def test_gradients_are_clipped_to_the_norm(tiny_config, tiny_model, random_batch):
    config = tiny_config()
    model = tiny_model(config)
    result = take_step(model, [random_batch(config)], config, max_grad_norm=0.01)
    assert result.grad_norm > 0.01  # what it was before
    norm = torch.stack([g.norm() for g in gradients(model).values()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_old_gradients_do_not_linger(tiny_config, tiny_model, random_batch):
    config = tiny_config()
    model = tiny_model(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    norms = [
        train_step(
            model, MultitaskLoss(), optimizer, [random_batch(config)], WEIGHTS, config.num_visible
        ).grad_norm.item()
        for _ in range(3)
    ]
    assert norms == pytest.approx([norms[0]] * 3)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("poison", ["logit_scale", "video_encoder.embed.weight"])
def test_a_step_that_is_not_finite_is_left_out(tiny_config, tiny_model, random_batch, poison, fused):
    """Neither weights nor the optimizer's state move; the next step is as if there had been none."""
    config = tiny_config()
    model, other, batch = tiny_model(config), tiny_model(config), random_batch(config)
    loss = MultitaskLoss()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01, fused=fused) for m in (model, other)]

    def step(number):
        chosen = (model, other)[number]
        return train_step(chosen, loss, optimizers[number], [batch], WEIGHTS, config.num_visible)

    assert not step(0).skipped
    sound = model.get_parameter(poison).detach().clone()
    model.get_parameter(poison).data.fill_(float("nan"))
    result = step(0)
    assert result.skipped and not result.overflowed
    model.get_parameter(poison).data.copy_(sound)
    step(0), step(1), step(1)
    for (name, p), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, expected), name


def test_numbers_come_to_the_host_as_they_were(tiny_config, tiny_model, random_batch):
    config = tiny_config()
    result = take_step(tiny_model(config), [random_batch(config) | {"num_lost": torch.tensor([2, 0, 0, 1])}], config)
    host = result.on_host()
    assert host.losses == {name: value.double() for name, value in result.losses.items()}
    assert host.grad_norms == {"all": result.grad_norm.double()}
    for name in ("total", "grad_norm", "valid_share", "lost_views", "skipped", "overflowed"):
        assert getattr(host, name).item() == getattr(result, name).item(), name
    assert host.lost_views.item() == 3


def test_gradient_norms_are_told_by_component(tiny_config, tiny_model, random_batch):
    config = tiny_config()
    model = tiny_model(config)
    optimizer = build_optimizer(model, config.optim)
    result = train_step(model, MultitaskLoss(), optimizer, [random_batch(config)], WEIGHTS, config.num_visible)
    assert set(result.grad_norms) == {"video", "text", "captioning", "masked_modeling", "logit"}
    squares = sum(value.item() ** 2 for value in result.grad_norms.values())
    assert result.grad_norm.item() == pytest.approx(squares**0.5)
    clipped = min(1.0, 1.0 / (result.grad_norm.item() + 1e-6))
    found = torch.stack([p.grad.norm() for p in model.captioning_decoder.parameters()]).norm()
    assert found.item() == pytest.approx(clipped * result.grad_norms["captioning"].item(), rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_in_half_precision_too(tiny_config, tiny_model, random_batch, fused):
    """Gradients that overflow lower the scale; a loss that is not finite is told apart from them."""
    config = tiny_config()
    model, batch = tiny_model(config), random_batch(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)

    def step():
        return train_step(
            model, MultitaskLoss(), optimizer, [batch], WEIGHTS, config.num_visible, "fp16", scaler, max_grad_norm=1e9
        )

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # too large on purpose
    before = [p.clone() for p in model.parameters()]
    result = step()
    assert result.skipped and result.overflowed
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert scaler.get_scale() == 2.0**39
    model.get_parameter("logit_scale").data.fill_(float("nan"))
    result = step()
    assert result.skipped and not result.overflowed


def test_views_that_could_not_be_read_are_counted_apart_from_those_that_are_not_there(
    tiny_config, tiny_model, random_batch
):
    config, batch = tiny_config(), random_batch(tiny_config())
    batch["valid"][:3] = False
    batch["num_lost"] = torch.tensor([1, 0, 0, 0])
    result = take_step(tiny_model(config), [batch], config)
    assert (result.valid_share.item(), result.lost_views.item()) == (0.25, 1)


def test_a_batch_of_nothing_is_a_step_of_nothing(tiny_config, tiny_model, random_batch):
    config = tiny_config()
    model, batch = tiny_model(config), random_batch(config)
    batch |= {"valid": torch.zeros(4, 1, dtype=torch.bool), "has_report": torch.zeros(4, dtype=torch.bool)}
    before = {name: p.clone() for name, p in model.named_parameters()}
    result = take_step(model, [batch], config)
    assert (result.total.item(), result.valid_share.item()) == (0.0, 0.0)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


def test_half_precision_on_the_cpu_keeps_losses_in_single(tiny_config, tiny_model, random_batch):
    config = tiny_config()
    single = take_step(tiny_model(config), [random_batch(config)], config)
    half = take_step(tiny_model(config), [random_batch(config)], config, precision="bf16")
    for name, value in single.losses.items():
        assert half.losses[name].dtype == torch.float32
        assert half.losses[name].item() == pytest.approx(value.item(), rel=0.03)


def test_a_loss_that_weighs_zero_is_not_computed_and_its_parameters_stay(tiny_config, tiny_model, random_batch):
    config = tiny_config()
    model, called = tiny_model(config), []
    model.captioning_decoder.register_forward_hook(lambda *_: called.append("decoder"))
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    weights = WEIGHTS | {"captioning": 0.0}
    result = train_step(model, MultitaskLoss(), optimizer, [random_batch(config)], weights, config.num_visible)
    assert not called
    assert set(result.losses) == {"contrastive", "masked_modeling"}
    for name, p in model.named_parameters():
        is_captions = name.startswith("captioning_decoder")
        assert (p.grad is None) == is_captions, name
        assert torch.equal(p, before[name]) == is_captions, name  # and no decay either
    both = 1.0 * result.losses["contrastive"] + 0.1 * result.losses["masked_modeling"]
    assert result.total.item() == pytest.approx(both.item())


def test_a_step_without_any_loss_is_refused(tiny_config, tiny_model, random_batch):
    config = tiny_config()
    with pytest.raises(ValueError, match="a loss that weighs more than 0"):
        take_step(tiny_model(config), [random_batch(config)], config, dict.fromkeys(WEIGHTS, 0.0))


def test_training_lowers_every_loss(tiny_config, tiny_model, random_batch):
    config = tiny_config()
    model, batch = tiny_model(config), random_batch(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    results = [
        train_step(model, MultitaskLoss(label_smoothing=0.0), optimizer, [batch], WEIGHTS, config.num_visible)
        for _ in range(40)
    ]
    for name in WEIGHTS:
        assert results[-1].losses[name] < 0.9 * results[0].losses[name]
