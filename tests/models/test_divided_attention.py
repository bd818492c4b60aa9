"""Divided attention beside transformers' TimeSformer and beside plain loops over groups of tokens."""

import pytest
import torch
import torch.nn.functional as F

from deepcoro.models.layers import gather_tokens
from deepcoro.models.video_encoder import VideoEncoder, patchify, unpatchify

WIDTH, HEADS, FRAMES, PLACES = 24, 2, 3, 4
GRID, TUBELET = (3, 2, 2), (1, 8, 8)


def randomise(module, seed=0):
    """Every weight at random, biases, norms and tokens too, so that nothing is hidden by a 0 or a 1."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=chance, dtype=parameter.dtype))
    return module


def make_encoder(depth=2, **options):
    given = {"attention": "divided", "positions": "learned", "pool": "mean", "patch_norm": False} | options
    return randomise(VideoEncoder(3, 16, TUBELET, WIDTH, depth, HEADS, **given).double().eval())


def clips(rows=2):
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def orders(rows=2):
    chance = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(12, generator=chance) for _ in range(rows)])


@pytest.fixture(scope="module")
def timesformer():
    from transformers import TimesformerConfig, TimesformerModel

    torch.manual_seed(0)
    config = TimesformerConfig(
        image_size=16,
        patch_size=8,
        num_channels=1,
        num_frames=FRAMES,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=3 * WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
    )
    return randomise(TimesformerModel(config).double().eval())


def take_linear(ours, theirs):
    ours.weight.copy_(theirs.weight)
    ours.bias.copy_(theirs.bias)


def take_attention(ours, theirs):
    """Of a TimeSformerAttention: its one layer for queries, keys and values is two of ours."""
    for part, rows in ((ours.query, slice(0, WIDTH)), (ours.key_value, slice(WIDTH, 3 * WIDTH))):
        part.weight.copy_(theirs.attention.qkv.weight[rows])
        part.bias.copy_(theirs.attention.qkv.bias[rows])
    take_linear(ours.out, theirs.output.dense)


@torch.no_grad()
def like(timesformer):
    """Our encoder with its weights."""
    encoder = make_encoder(class_token=True, mlp_ratio=3.0, norm_eps=1e-6)
    embeddings = timesformer.embeddings
    encoder.embed.weight.copy_(embeddings.patch_embeddings.projection.weight.flatten(1))
    encoder.embed.bias.copy_(embeddings.patch_embeddings.projection.bias)
    in_time, in_space = embeddings.time_embeddings[0], embeddings.position_embeddings[0, 1:]
    encoder.position_embedding.copy_((in_time[:, None] + in_space[None]).flatten(0, 1))
    encoder.class_token.copy_(embeddings.cls_token + embeddings.position_embeddings[:, :1])
    for ours, theirs in zip(encoder.blocks, timesformer.encoder.layer, strict=True):
        take_attention(ours.attention, theirs.attention)
        take_attention(ours.attention_time, theirs.temporal_attention)
        first, second = theirs.temporal_attention.output.dense, theirs.temporal_dense
        ours.attention_time.out.weight.copy_(second.weight @ first.weight)
        ours.attention_time.out.bias.copy_(second.weight @ first.bias + second.bias)
        take_linear(ours.norm1, theirs.layernorm_before)
        take_linear(ours.norm2, theirs.layernorm_after)
        take_linear(ours.norm_time, theirs.temporal_layernorm)
        take_linear(ours.feed_forward[0], theirs.intermediate.dense)
        take_linear(ours.feed_forward[3], theirs.output.dense)
    take_linear(encoder.norm, timesformer.layernorm)
    return encoder


def time_major(tokens):
    """TimeSformer numbers tokens along places, then time; we along time, then places."""
    grid = tokens[:, 1:].unflatten(1, (PLACES, FRAMES)).transpose(1, 2).flatten(1, 2)
    return torch.cat([tokens[:, :1], grid], dim=1)


def test_the_forward_is_that_of_timesformer(timesformer):
    clip = clips()
    wanted = time_major(timesformer(clip.unsqueeze(2)).last_hidden_state)
    tokens = like(timesformer)(clip)
    assert tokens.shape == wanted.shape == (2, 13, WIDTH)
    assert torch.allclose(tokens, wanted, atol=1e-10)


def test_the_gradient_is_that_of_timesformer(timesformer):
    ours, theirs = clips().requires_grad_(), clips().requires_grad_()
    like(timesformer)(ours)[:, :, 0].sum().backward()
    timesformer(theirs.unsqueeze(2)).last_hidden_state[:, :, 0].sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-10)


def one_attention(attention, look, see):
    """``look`` [n, D] attends to ``see`` [m, D], by hand."""
    query, (key, value) = attention.query(look), attention.key_value(see).chunk(2, dim=-1)
    split = [x.unflatten(-1, (HEADS, -1)).transpose(0, 1) for x in (query, key, value)]
    weights = (split[0] @ split[1].transpose(-2, -1) / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
    return attention.out((weights @ split[2]).transpose(0, 1).flatten(1))


def one_block(block, tokens, numbers, class_token):
    """One row: ``tokens`` [K, D] are those of the grid at ``numbers``; group by group, in loops."""
    frame, place = [n // PLACES for n in numbers], [n % PLACES for n in numbers]
    normed, after = F.layer_norm(tokens, (WIDTH,), block.norm_time.weight, block.norm_time.bias), tokens.clone()
    for here in set(place):
        group = [at for at in range(len(numbers)) if place[at] == here]
        after[group] += one_attention(block.attention_time, normed[group], normed[group])
    tokens, normed = after, block.norm1(after)
    out = tokens.clone()
    looked = []
    for when in range(FRAMES):
        group = [at for at in range(len(numbers)) if frame[at] == when]
        see = normed[group]
        if class_token is not None:
            see = torch.cat([block.norm1(class_token)[None], see])
            looked.append(one_attention(block.attention, see[:1], see)[0])
        if group:
            out[group] += one_attention(block.attention, normed[group], see)
    if class_token is not None:
        class_token = class_token + torch.stack(looked).mean(dim=0)
        class_token = class_token + block.feed_forward(block.norm2(class_token))
    return out + block.feed_forward(block.norm2(out)), class_token


def in_loops(encoder, clip, visible):
    rows = []
    for row, numbers in enumerate(visible.tolist()):
        embedded = encoder.embed(patchify(clip[row : row + 1], TUBELET)[0]) + encoder.position_embedding
        tokens = embedded[numbers]
        first = None if encoder.class_token is None else encoder.class_token[0, 0]
        for block in encoder.blocks:
            tokens, first = one_block(block, tokens, numbers, first)
        rows.append(tokens if first is None else torch.cat([first[None], tokens]))
    return encoder.norm(torch.stack(rows))


@pytest.mark.parametrize("class_token", [False, True])
def test_a_dense_forward_is_the_loop_over_groups(class_token):
    encoder, clip = make_encoder(class_token=class_token), clips()
    assert torch.allclose(encoder(clip), in_loops(encoder, clip, torch.arange(12).expand(2, -1)), atol=1e-10)


# 1 leaves frames and places empty, 5 makes ragged groups.
@pytest.mark.parametrize("number", [1, 5, 11])
@pytest.mark.parametrize("class_token", [False, True])
def test_some_visible_tokens_are_the_loop_over_ragged_groups(class_token, number):
    encoder, clip, visible = make_encoder(class_token=class_token), clips(), orders()[:, :number]
    assert torch.allclose(encoder(clip, visible), in_loops(encoder, clip, visible), atol=1e-10)


MODES = [
    (attention, positions, class_token)
    for attention in ("joint", "divided")
    for positions in ("learned", "sincos", "rotary", "rotary_tiled")
    for class_token in (False, True)
]


def grid_tokens(tokens, class_token):
    return tokens[:, int(class_token) :]


@pytest.mark.parametrize(("attention", "positions", "class_token"), MODES)
def test_all_tokens_visible_in_any_order_are_the_dense_forward(attention, positions, class_token):
    encoder = make_encoder(attention=attention, positions=positions, class_token=class_token)
    clip, order = clips(), orders()
    whole, shown = encoder(clip), encoder(clip, order)
    assert torch.allclose(
        grid_tokens(shown, class_token), gather_tokens(grid_tokens(whole, class_token), order), atol=1e-10
    )
    if class_token:
        assert torch.allclose(shown[:, 0], whole[:, 0], atol=1e-10)


@pytest.mark.parametrize(("attention", "positions", "class_token"), MODES)
def test_hidden_pixels_reach_no_token_and_are_not_computed(attention, positions, class_token):
    encoder = make_encoder(attention=attention, positions=positions, class_token=class_token)
    clip, order = clips(), orders()
    visible, hidden = order[:, :5], order[:, 5:]
    noise = 100 * torch.randn(2, 7, 64, dtype=torch.float64)
    tubelets = patchify(clip, TUBELET).scatter(1, hidden.unsqueeze(-1).expand(-1, -1, 64), noise)
    changed = unpatchify(tubelets, GRID, TUBELET)
    seen = []
    parts = [encoder.embed, *encoder.blocks, *[block.feed_forward for block in encoder.blocks]]
    for part in parts:
        part.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    assert torch.equal(encoder(changed, visible), encoder(clip, visible))
    assert seen == 2 * [5, *[5 + class_token] * 4]
    assert not torch.allclose(encoder(changed), encoder(clip))


@pytest.mark.parametrize("class_token", [False, True])
def test_at_first_a_divided_encoder_looks_at_space_alone(class_token):
    torch.manual_seed(0)
    encoder = VideoEncoder(
        3, 16, TUBELET, WIDTH, 2, HEADS, attention="divided", class_token=class_token, pool="mean"
    ).double()
    clip = clips(1)
    changed = clip.clone()
    changed[:, 2] = torch.randn(1, 16, 16, dtype=torch.float64)
    before, after = (grid_tokens(encoder(c), class_token).unflatten(1, (FRAMES, PLACES)) for c in (clip, changed))
    assert not torch.allclose(before[:, 2], after[:, 2])
    if not class_token:  # it carries what it saw of one frame to the others
        assert torch.equal(before[:, :2], after[:, :2])
    encoder(clip)[0, :, 0].sum().backward()
    grad = encoder.blocks[0].attention_time.out.weight.grad
    assert grad.abs().sum() > 0  # and can learn to look along time
