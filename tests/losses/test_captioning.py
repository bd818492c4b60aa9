"""Cross-entropy of the tokens that are asked for, and of no others."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from deepcoro.losses.captioning import caption_targets, captioning_loss, chunked_captioning_loss

VOCABULARY = 11
IDS = torch.tensor([[2, 5, 6, 7, 3, 0], [2, 8, 3, 0, 0, 0], [2, 9, 10, 3, 0, 0]])
LENGTH = torch.tensor([5, 3, 4])
PREFIX = torch.ones(3, dtype=torch.long)
REPORT = torch.tensor([True, True, True])


def logits(seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, VOCABULARY, generator=chance, dtype=torch.float64).requires_grad_()


def test_targets_by_hand():
    wanted = [[5, 6, 7, 3, -100], [8, 3, -100, -100, -100], [9, 10, 3, -100, -100]]
    assert caption_targets(IDS, LENGTH, PREFIX, REPORT).tolist() == wanted
    without = caption_targets(IDS, LENGTH, PREFIX, torch.tensor([True, False, True]))
    assert without.tolist() == [wanted[0], [-100] * 5, wanted[2]]
    prefixed = caption_targets(IDS, LENGTH, torch.tensor([3, 1, 1]), REPORT, ignore_index=-1)
    assert prefixed[0].tolist() == [-1, -1, 7, 3, -1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_the_sum_over_unpadded_rows(smoothing):
    ours, plain = logits(), logits()
    value = captioning_loss(ours, caption_targets(IDS, LENGTH, PREFIX, REPORT), smoothing)
    wanted = sum(
        F.cross_entropy(plain[row, : n - 1], IDS[row, 1:n], reduction="sum", label_smoothing=smoothing)
        for row, n in enumerate(LENGTH.tolist())
    )
    assert torch.allclose(value, wanted, atol=1e-12)
    value.backward()
    wanted.backward()
    assert torch.allclose(ours.grad, plain.grad, atol=1e-12)


def test_label_smoothing_by_hand():
    x = logits().detach()[:1, :1]
    value = captioning_loss(x, torch.tensor([[4]]), 0.1)
    log = x[0, 0].log_softmax(0)
    assert torch.allclose(value, -(0.9 * log[4] + 0.1 * log.mean()), atol=1e-12)


def test_pads_get_no_gradient_and_their_content_changes_nothing():
    x = logits()
    targets = caption_targets(IDS, LENGTH, PREFIX, torch.tensor([True, True, False]))
    captioning_loss(x, targets).backward()
    assert (x.grad[targets == -100] == 0).all()
    assert (x.grad[targets != -100] != 0).any(dim=-1).all()
    padding = torch.arange(6) >= LENGTH[:, None]
    filled = torch.where(padding, 7, IDS)
    assert torch.equal(caption_targets(filled, LENGTH, PREFIX, REPORT), caption_targets(IDS, LENGTH, PREFIX, REPORT))


def test_a_pad_id_inside_the_text_is_asked_for():
    ids = torch.tensor([[2, 0, 3]])
    assert caption_targets(ids, torch.tensor([3]), PREFIX[:1], REPORT[:1]).tolist() == [[0, 3]]


def test_nothing_asked_is_no_loss():
    x = logits()
    value = captioning_loss(x, torch.full((3, 5), -100))
    value.backward()
    assert value.item() == 0
    assert (x.grad == 0).all()


def test_half_precision_logits_are_summed_in_single():
    value = captioning_loss(logits().detach().bfloat16(), caption_targets(IDS, LENGTH, PREFIX, REPORT))
    assert value.dtype == torch.float32


WIDTH = 6


def states(seed=0, dtype=torch.float64):
    """Hidden states [3, 5, WIDTH] and an output weight [VOCABULARY, WIDTH]."""
    chance = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 5, WIDTH, generator=chance, dtype=dtype)
    return hidden.requires_grad_(), torch.randn(VOCABULARY, WIDTH, generator=chance, dtype=dtype).requires_grad_()


def by_torch(hidden, weight, targets, smoothing, ignore_index=-100):
    logits = (hidden @ weight.T).flatten(0, 1)
    kept = {"ignore_index": ignore_index, "label_smoothing": smoothing, "reduction": "sum"}
    return F.cross_entropy(logits, targets.flatten(), **kept)


@pytest.mark.parametrize("chunk_size", [1, 7, 10_000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_in_chunks_it_is_torchs_cross_entropy(chunk_size, smoothing):
    targets = caption_targets(IDS, LENGTH, PREFIX, REPORT)
    (hidden, weight), (plain_hidden, plain_weight) = states(), states()
    value = chunked_captioning_loss(hidden, weight, targets, smoothing, chunk_size=chunk_size)
    wanted = by_torch(plain_hidden, plain_weight, targets, smoothing)
    assert torch.allclose(value, wanted, rtol=0, atol=1e-12)
    (0.3 * value).backward()
    (0.3 * wanted).backward()
    assert torch.allclose(hidden.grad, plain_hidden.grad, rtol=0, atol=1e-12)
    assert torch.allclose(weight.grad, plain_weight.grad, rtol=0, atol=1e-12)
    assert (hidden.grad[targets == -100] == 0).all()


def test_in_chunks_another_ignore_index_is_one_too():
    targets = torch.where(caption_targets(IDS, LENGTH, PREFIX, REPORT) == -100, 3, IDS[:, 1:])
    hidden, weight = states()
    value = chunked_captioning_loss(hidden, weight, targets, 0.1, ignore_index=3, chunk_size=2)
    assert torch.allclose(value, by_torch(hidden, weight, targets, 0.1, 3), rtol=0, atol=1e-12)


def test_in_chunks_nothing_asked_is_no_loss():
    hidden, weight = states()
    value = chunked_captioning_loss(hidden, weight, torch.full((3, 5), -100))
    value.backward()
    assert value.item() == 0
    assert (hidden.grad == 0).all() and (weight.grad == 0).all()


@pytest.mark.parametrize("trained", [(True, False), (False, True), (False, False)])
def test_in_chunks_what_is_not_trained_gets_no_gradient(trained):
    targets = caption_targets(IDS, LENGTH, PREFIX, REPORT)
    ours = [x.detach().requires_grad_(is_trained) for x, is_trained in zip(states(), trained, strict=True)]
    plain = [x.detach().requires_grad_(is_trained) for x, is_trained in zip(states(), trained, strict=True)]
    value, wanted = chunked_captioning_loss(*ours, targets, chunk_size=3), by_torch(*plain, targets, 0.1)
    assert torch.allclose(value, wanted, rtol=0, atol=1e-12)
    assert value.requires_grad == any(trained)
    if any(trained):
        value.backward()
        wanted.backward()
    for x, y in zip(ours, plain, strict=True):
        assert (x.grad is None) == (y.grad is None)
        assert x.grad is None or torch.allclose(x.grad, y.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inside", [True, False])
def test_in_chunks_half_precision_logits_meet_a_softmax_in_single(inside):
    """As under autocast: logits are a bfloat16 product, and everything after them is in float32."""
    targets = caption_targets(IDS, LENGTH, PREFIX, REPORT)
    (hidden, weight), (plain_hidden, plain_weight) = states(dtype=torch.float32), states(dtype=torch.float32)
    half, plain_half = hidden.bfloat16(), plain_hidden.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=inside):
        value = chunked_captioning_loss(half, weight, targets, 0.1, chunk_size=4)
    logits = plain_half @ plain_weight.bfloat16().T
    assert logits.dtype == torch.bfloat16
    wanted = by_torch(logits.float(), torch.eye(VOCABULARY), targets, 0.1)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    in_half = by_torch(logits, torch.eye(VOCABULARY, dtype=torch.bfloat16), targets, 0.1)
    assert abs(in_half.item() - wanted.item()) > 1e-3 * wanted.item()  # or the test could not tell
    value.backward()
    wanted.backward()
    assert weight.grad.dtype == torch.float32
    assert torch.allclose(weight.grad, plain_weight.grad, atol=0.02)
    assert torch.allclose(hidden.grad, plain_hidden.grad, atol=0.02)


def test_in_chunks_shapes_that_do_not_fit_are_refused():
    hidden, weight = states()
    targets = caption_targets(IDS, LENGTH, PREFIX, REPORT)
    with pytest.raises(ValueError, match=r"\(3, 5, 6\).*\(11, 5\).*\(3, 5\)"):
        chunked_captioning_loss(hidden, weight[:, :5], targets)
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        chunked_captioning_loss(hidden, weight, targets[:, :4])
    with pytest.raises(ValueError, match="chunk_size must be 1 or more, got 0"):
        chunked_captioning_loss(hidden, weight, targets, chunk_size=0)


class Alive(TorchDispatchMode):
    """Counts the tensors of at least ``size`` elements that are alive at once, and the matrix products."""

    def __init__(self, size):
        super().__init__()
        self.size, self.alive, self.most, self.largest, self.products = size, [], 0, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.products += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.out)
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.size:
                self.largest = max(self.largest, tensor.numel())
                self.alive.append(weakref.ref(tensor.untyped_storage()))
        self.alive = [x for x in self.alive if x() is not None]
        self.most = max(self.most, len({id(x()) for x in self.alive}))
        return made


def test_in_chunks_no_more_than_two_blocks_of_logits_are_there_at_once():
    """Words outnumber everything else here, so that a tensor of 5 x V numbers can only be made of logits."""
    vocabulary, width, chunk = 4000, 3, 5
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 10, width, generator=chance).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=chance).requires_grad_()
    targets = torch.randint(0, vocabulary, (4, 10), generator=chance)
    with Alive(chunk * vocabulary) as chunked:
        chunked_captioning_loss(hidden, weight, targets, 0.1, chunk_size=chunk).backward()
    assert chunked.largest == chunk * vocabulary and chunked.most == 2
    with Alive(chunk * vocabulary) as plain:
        captioning_loss(hidden @ weight.T, targets, 0.1).backward()
    assert plain.largest == 40 * vocabulary  # what it is spared


@pytest.mark.parametrize("learns", [False, True])
def test_in_chunks_gradients_are_made_only_where_they_are_wanted(learns):
    hidden, weight = states()
    with torch.set_grad_enabled(learns), Alive(1) as watched:
        value = chunked_captioning_loss(hidden, weight, caption_targets(IDS, LENGTH, PREFIX, REPORT), 0.1, chunk_size=4)
    assert value.requires_grad == learns
    assert watched.products == (9 if learns else 3)  # of 9 tokens in 3 chunks: logits, and both gradients


def test_in_chunks_a_second_derivative_is_refused():
    hidden, weight = states()
    value = chunked_captioning_loss(hidden, weight, caption_targets(IDS, LENGTH, PREFIX, REPORT), 0.1)
    (slope,) = torch.autograd.grad(value * value, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_in_chunks_half_precision_sums_of_many_slopes_stay_finite():
    """16,384 tokens of one word whose hidden states agree in one number: more than fp16 holds, added up."""
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 16384, 8, generator=chance)
    hidden[..., 0] += 6
    weight, targets = torch.randn(50, 8, generator=chance) / 20, torch.zeros(1, 16384, dtype=torch.long)
    ours, plain = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    chunked_captioning_loss(hidden.half(), ours, targets, 0.0, chunk_size=16384).backward()
    captioning_loss(hidden @ plain.T, targets, 0.0).backward()
    assert plain.grad.abs().max() > 65504
    assert torch.allclose(ours.grad, plain.grad, rtol=0.01, atol=50)


@pytest.mark.parametrize("word", [VOCABULARY, -1])
def test_in_chunks_a_target_that_is_no_word_is_refused(word):
    hidden, weight = states()
    targets = caption_targets(IDS, LENGTH, PREFIX, REPORT)
    targets[0, 0] = word
    with pytest.raises(ValueError, match=f"the vocabulary has {VOCABULARY}"):
        chunked_captioning_loss(hidden, weight, targets)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5])
def test_in_chunks_a_smoothing_that_is_no_share_is_refused(smoothing):
    hidden, weight = states()
    with pytest.raises(ValueError, match="label_smoothing must be from 0 to 1"):
        chunked_captioning_loss(hidden, weight, caption_targets(IDS, LENGTH, PREFIX, REPORT), smoothing)
