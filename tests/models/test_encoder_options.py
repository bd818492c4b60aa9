"""Pooling, activation checkpointing, half precision, drop path, freezing; and that the compiler sees one graph."""

import itertools

import pytest
import torch
from torch import nn

from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.backbones import freeze_bottom
from deepcoro.models.layers import AttentionPool
from deepcoro.models.video_encoder import VideoEncoder
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step

MODES = [
    {"attention": attention, "positions": positions, "class_token": class_token}
    for attention, positions, class_token in itertools.product(
        ("joint", "divided"), ("learned", "sincos", "rotary"), (False, True)
    )
]


def make_encoder(depth=2, seed=0, **options):
    torch.manual_seed(seed)
    encoder = VideoEncoder(4, 16, (2, 8, 8), 24, depth, 2, **options)
    with torch.no_grad():
        for parameter in encoder.parameters():  # also those that begin at 0
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return encoder


def clips(rows=2):
    return torch.randn(rows, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def orders(rows=2, number=8):
    chance = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(8, generator=chance)[:number] for _ in range(rows)])


# Pooling


def as_torch(attention):
    """The same weights as a MultiheadAttention of torch."""
    made = nn.MultiheadAttention(24, 2, batch_first=True).to(attention.out.weight.dtype)
    with torch.no_grad():
        made.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key_value.weight]))
        made.in_proj_bias.copy_(torch.cat([attention.query.bias, attention.key_value.bias]))
        made.out_proj.weight.copy_(attention.out.weight)
        made.out_proj.bias.copy_(attention.out.bias)
    return made


@pytest.fixture
def pool():
    torch.manual_seed(0)
    made = AttentionPool(24, 2).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def test_attention_pooling_is_that_of_torch(pool):
    tokens, mask = torch.randn(3, 7, 24, dtype=torch.float64), torch.rand(3, 7) < 0.6
    mask[:, 0] = True
    for seen in (None, mask):
        padding = None if seen is None else ~seen
        out, _ = as_torch(pool.attention)(pool.probe.expand(3, -1, -1), tokens, tokens, key_padding_mask=padding)
        wanted = out + pool.feed_forward(pool.norm(out))
        assert torch.allclose(pool(tokens, seen), wanted[:, 0], atol=1e-12)


def test_where_the_probe_looks_is_what_torch_says(pool):
    tokens = torch.randn(3, 7, 24, dtype=torch.float64)
    _, wanted = as_torch(pool.attention)(pool.probe.expand(3, -1, -1), tokens, tokens, need_weights=True)
    weights = pool.weights(tokens)
    assert weights.shape == (3, 7)
    assert torch.allclose(weights, wanted[:, 0], atol=1e-12)
    assert torch.allclose(weights.sum(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-12)
    assert weights.std() > 0.01


@pytest.mark.parametrize("class_token", [False, True])
def test_the_mean_is_over_the_grid_and_the_class_is_the_first_token(class_token):
    encoder = make_encoder(class_token=class_token, pool="mean").eval()
    tokens = encoder(clips())
    assert torch.allclose(encoder.pooled(tokens), tokens[:, int(class_token) :].sum(dim=1) / 8, atol=1e-6)
    if not class_token:
        with pytest.raises(ValueError, match="class token"):
            make_encoder(pool="class")
        return
    encoder = make_encoder(class_token=True, pool="class").eval()
    tokens = encoder(clips())
    assert torch.equal(encoder.pooled(tokens), tokens[:, 0])
    assert not torch.allclose(tokens[0, 0], tokens[1, 0])


# Activation checkpointing, drop path, half precision


def outputs_and_gradients(encoder, visible):
    torch.manual_seed(3)  # of drop path
    encoder.zero_grad()
    tokens = encoder(clips(), visible)
    encoder.pooled(tokens).square().sum().backward()
    return [tokens.detach(), *[p.grad.clone() for p in encoder.parameters() if p.grad is not None]]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", MODES[::3])
def test_activation_checkpointing_changes_neither_outputs_nor_gradients(mode, masked):
    encoder = make_encoder(drop_path=0.5, **mode).train()
    visible = orders(number=3) if masked else None
    calls, results = [], {}
    for block in encoder.blocks:
        block.feed_forward.register_forward_pre_hook(lambda *_: calls.append(1))
    for saves in (False, True):
        calls.clear()
        encoder.checkpoint_activations = saves
        results[saves] = outputs_and_gradients(encoder, visible)
        assert len(calls) == (4 if saves else 2)  # once, or once more in the backward pass
    for plain, saved in zip(results[False], results[True], strict=True):
        assert torch.allclose(plain, saved, atol=1e-6)
    encoder.eval()
    calls.clear()
    outputs_and_gradients(encoder, visible)
    assert len(calls) == 2  # in evaluation nothing is computed again


def test_activation_checkpointing_keeps_less():
    def kept(saves):
        encoder = make_encoder(depth=6, checkpoint_activations=saves).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            encoder(clips())
        return sum(sizes)

    assert kept(True) < kept(False) / 4


@pytest.mark.parametrize("attention", ["joint", "divided"])
def test_drop_path_is_nothing_in_evaluation(attention):
    plain, dropping = (make_encoder(attention=attention, drop_path=rate) for rate in (0.0, 0.9))
    clip = clips(8)
    assert torch.equal(plain.eval()(clip), dropping.eval()(clip))
    assert not torch.allclose(plain.train()(clip), dropping.train()(clip))
    assert [block.drop_path.rate for block in make_encoder(depth=4, drop_path=0.3).blocks] == pytest.approx(
        [0, 0.1, 0.2, 0.3]
    )


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_close(mode):
    encoder = make_encoder(**mode).train()
    for visible in (None, orders(number=5)):
        whole = encoder(clips(), visible)
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(clips(), visible)
            loss = encoder.pooled(half).square().mean()
        assert (half - whole).abs().mean() < 0.03 * whole.abs().mean()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


# Compiling


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("saves", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_compiler_sees_one_graph(mode, saves, masked):
    torch._dynamo.reset()
    encoder = make_encoder(depth=1, checkpoint_activations=saves, **mode).train()
    visible = orders(number=5) if masked else None
    names = set(encoder.state_dict())
    wanted = encoder(clips(), visible)
    encoder.compile(fullgraph=True, backend="eager")
    assert torch.allclose(encoder(clips(), visible), wanted, atol=1e-6)
    assert set(encoder.state_dict()) == names


@pytest.mark.parametrize(("mode", "masked"), [(MODES[0], True), (MODES[11], False)])
def test_the_compiled_backward_pass_is_the_plain_one(mode, masked):
    torch._dynamo.reset()
    encoder = make_encoder(depth=1, **mode).train()
    visible = orders(number=5) if masked else None
    wanted = outputs_and_gradients(encoder, visible)
    encoder.compile(fullgraph=True, backend="aot_eager")
    for got, plain in zip(outputs_and_gradients(encoder, visible), wanted, strict=True):
        assert torch.allclose(got, plain, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("mode", [MODES[0], MODES[11]])
def test_the_real_compiler_gives_the_same_tokens_for_dense_and_masked_clips_and_other_batches(mode):
    torch._dynamo.reset()
    plain, compiled = make_encoder(depth=1, **mode).train(), make_encoder(depth=1, **mode).train()
    compiled.compile(fullgraph=True)
    for rows, visible in ((2, None), (2, orders(number=5)), (3, None)):
        for got, wanted in zip(
            *(
                [
                    tokens := encoder(clips(rows), visible),
                    *torch.autograd.grad(tokens.square().sum(), encoder.embed.weight),
                ]
                for encoder in (compiled, plain)
            ),
            strict=True,
        ):
            assert torch.allclose(got, wanted, atol=1e-3, rtol=1e-3)


# Freezing


@pytest.mark.parametrize(("share", "frozen"), [(0.0, 0), (0.1, 0), (0.25, 1), (0.5, 2), (0.9, 4), (1.0, 4)])
def test_blocks_are_frozen_from_the_bottom_and_the_stem_with_the_first(share, frozen):
    encoder = make_encoder(depth=4, positions="learned", class_token=True, attention="divided")
    freeze_bottom(encoder.bottom_up(), share)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    for number, block in enumerate(encoder.blocks):
        assert {p.requires_grad for p in block.parameters()} == {number >= frozen}
    for part in ("patch_norm", "embed", "class_token", "position_embedding"):
        assert any(name.startswith(part) for name in trained) == (frozen == 0), part
    for part in ("norm", "pool"):
        assert {p.requires_grad for p in getattr(encoder, part).parameters()} == {True}


def test_every_parameter_below_the_blocks_end_is_in_the_list_once():
    encoder = make_encoder(depth=3, positions="learned", class_token=True)
    listed = [id(p) for part in encoder.bottom_up() for p in part]
    above = {id(p) for part in (encoder.norm, encoder.pool) for p in part.parameters()}
    assert len(listed) == len(set(listed))
    assert set(listed) | above == {id(p) for p in encoder.parameters()} and not set(listed) & above


@pytest.mark.parametrize("saves", [False, True])
def test_a_step_moves_what_is_trained_and_nothing_else(tiny_config, tiny_model, random_batch, saves):
    config = tiny_config(
        "video_encoder.freeze=0.5",
        "text_encoder.freeze=1.0",
        "video_encoder.positions=learned",
        "video_encoder.class_token=true",
        "video_encoder.attention=divided",
        f"video_encoder.checkpoint_activations={saves}".lower(),
    )
    model = tiny_model(config).train()
    optimizer, loss = build_optimizer(model, config.optim), MultitaskLoss.from_config(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):  # the second step reaches what stood behind a weight of 0
        train_step(model, loss, optimizer, [random_batch(config)], loss.loss_weights, config.num_visible)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= trained
    # Softmax does not feel a bias that all keys share; nothing else may stay.
    assert {name for name in trained - moved if not name.endswith("key_value.bias")} == set()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in trained)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for name, p in model.named_parameters() if name in trained
    }
    frozen = {name for name in before if name not in trained}
    for name in ("video_encoder.embed.weight", "video_encoder.class_token", "video_encoder.position_embedding"):
        assert name in frozen
    assert any(name.startswith("video_encoder.blocks.0.") for name in frozen)
    assert not any(name.startswith("video_encoder.blocks.1.") for name in frozen)
    assert {name for name in before if name.startswith("text_encoder.")} <= frozen
    counts = model.num_parameters()
    assert counts["text_encoder"][1] == 0 < counts["text_encoder"][0]
    assert counts["video_encoder"][1] == sum(
        p.numel() for name, p in model.named_parameters() if name in trained and name.startswith("video_encoder.")
    )


def test_layers_of_a_text_encoder_are_frozen_from_the_bottom(text_folder):
    from deepcoro.models.text_encoder import TextEncoder, save_small_text_encoder

    folder = text_folder.parent / "deeper_text_encoder"
    save_small_text_encoder(["Normal LAD. Normal LCX."], folder, width=16, depth=4, num_heads=2, vocab_size=100)
    encoder = TextEncoder.from_pretrained(str(folder))
    freeze_bottom(encoder.bottom_up(), 0.5)
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    for number in range(4):
        of_layer = {name for name, _ in encoder.named_parameters() if f"encoder.layer.{number}." in name}
        assert of_layer and (of_layer <= frozen if number < 2 else not of_layer & frozen)
    assert {name for name, _ in encoder.named_parameters() if "embeddings" in name} <= frozen
