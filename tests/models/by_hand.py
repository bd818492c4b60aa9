"""Decoders to write with, and writing without cache, batches and libraries."""

import torch

from deepcoro.models.captioning_decoder import CaptioningDecoder

START, END, PAD = 2, 3, 0


def made(vocabulary, seed=0, positions=12, louder=4):
    torch.manual_seed(seed)
    decoder = CaptioningDecoder(vocabulary, 16, 2, 2, 32, positions, memory_size=20, dropout=0.0).double().eval()
    for parameter in decoder.parameters():  # an untrained decoder repeats itself; a louder one says various things
        if parameter.ndim > 1:
            parameter.data *= louder
    return decoder


def memory(rows=3, tokens=7, seed=0, unequal=False):
    chance = torch.Generator().manual_seed(seed)
    video = torch.randn(rows, tokens, 20, generator=chance, dtype=torch.float64)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    if unequal:
        for row in range(rows):
            mask[row, 1 + (3 * row) % tokens :] = False
    return video, mask


@torch.no_grad()
def next_log_probs(decoder, text, video, mask):
    """Of the token after ``text``, by a full forward pass over it: [V]."""
    return decoder(torch.tensor([text]), video[None], mask[None])[0, -1].log_softmax(-1)


def greedy_by_hand(decoder, video, mask, max_length, end=END, given=(START,), allowed=None):
    """No cache, no batch: rows of different lengths."""
    rows = []
    for row in range(len(video)):
        text = list(given)
        while len(text) < len(given) + max_length:
            scores = next_log_probs(decoder, text, video[row], mask[row])
            if allowed is not None:
                scores[[token for token in range(len(scores)) if token not in allowed[row]]] = -torch.inf
            text.append(int(scores.argmax()))
            if text[-1] == end:
                break
        rows.append(text[len(given) :])
    return rows


def beams_by_hand(decoder, video, mask, num_beams, penalty, max_length, allowed=None):
    """(score, text) of one row: of the 2 K best continuations those of the first K that end are kept, and the first K
    that do not end go on, to the very last token."""
    running, ended = [(0.0, [START])], []
    for length in range(1, max_length + 1):
        continued = []
        for score, text in running:
            scores = next_log_probs(decoder, text, video, mask).tolist()
            continued += [
                (score + own, [*text, token]) for token, own in enumerate(scores) if allowed is None or token in allowed
            ]
        best = sorted(continued, reverse=True)[: 2 * num_beams]
        over = [text[-1] == END or length == max_length for _, text in best]
        ended += [(score / length**penalty, text[1:]) for (score, text), o in zip(best[:num_beams], over) if o]
        running = [pair for pair, o in zip(best, over) if not o][:num_beams]
    return max(ended)


def padded(rows):
    longest = max(len(row) for row in rows)
    return [row + [PAD] * (longest - len(row)) for row in rows]
