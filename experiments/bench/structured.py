"""A step of report writing with the mask of structured reports beside the plain step.

python -m experiments.bench.structured [--quick]

The plain step is the caption decoder's with its cache, of the default size, with 30,522 words and 196 video tokens;
the mask is ``StructuredReports`` on scores of the same width, along reports written before by chance, and is added.
The automaton is built once for a tokenizer; that is timed apart.
"""

from __future__ import annotations

import random
import tempfile
import time

import click
import numpy as np
import torch
from torch import Tensor

from deepcoro.config_writing import Writing
from deepcoro.data.text import ReportTokenizer
from deepcoro.models.captioning_decoder import CaptioningDecoder
from deepcoro.models.generation import generate
from deepcoro.models.structured import TokenAutomaton
from deepcoro.models.structured_writing import StructuredReports
from deepcoro.models.text_encoder import load_tokenizer, save_small_text_encoder
from deepcoro.reports.automaton import ReportAutomaton
from experiments.bench.paired import device, machine, print_json, time_pairs

VOCABULARY, VIDEO_TOKENS = 30522, 196


@click.command()
@click.option("--quick", is_flag=True, help="8 rows, three pairs.")
def main(quick: bool) -> None:
    """64 rows, of any dominance and tree; the 24 steps in the middle of 96."""
    rows, steps, timed_steps = 8 if quick else 64, 96, 24
    words = tokenizer()
    begin = time.perf_counter()
    automaton = TokenAutomaton(ReportAutomaton.of(), words)
    built = time.perf_counter() - begin
    ids = written(automaton, rows, steps)
    print(f"{rows} rows of {steps} tokens, {VOCABULARY} words, {machine()}; the automaton was built in {built:.2f} s")
    torch.manual_seed(0)
    decoder = CaptioningDecoder(VOCABULARY).to(device()).eval()
    video = torch.randn(rows, VIDEO_TOKENS, 512, device=device())
    seen = torch.ones(rows, VIDEO_TOKENS, dtype=torch.bool, device=device())
    scores = torch.randn(rows, VOCABULARY, device=device())

    def plain() -> None:
        generate(decoder, video, seen, words.start_id, None, words.pad_id, Writing(max_generation_length=timed_steps))

    def masks() -> None:
        writer = StructuredReports(automaton, steps)
        for length in range(36, 36 + timed_steps):
            writer(ids[:, :length], scores)

    timed = time_pairs(masks, plain, 3 if quick else 5)
    low, high = timed.interval
    mask, step = (float(np.median(seconds)) / timed_steps * 1e3 for seconds in (timed.ours, timed.theirs))
    print(
        f"  the mask {mask:.2f} ms a step beside {step:.1f} ms of the decoder: adds {1 / timed.ratio:.3f} of a step "
        f"(95% interval {1 / high:.3f} to {1 / low:.3f}, {len(timed.ours)} pairs)"
    )
    figures = {"device": machine(), "rows": rows, "mask_ms": mask, "plain_step_ms": step, "built_seconds": built}
    print_json("structured", 1 + 1 / timed.ratio, "lower", figures)


def tokenizer() -> ReportTokenizer:
    """A small one that knows every word of the wording."""
    texts, chance = ReportAutomaton.of(), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        save_small_text_encoder([texts.random_text(chance) for _ in range(500)], folder, width=16, depth=1, num_heads=2)
        return ReportTokenizer.from_pretrained(load_tokenizer(folder), 512)


def written(automaton: TokenAutomaton, rows: int, steps: int) -> Tensor:
    """Reports by chance: ids [rows, steps + 1], padded."""
    chance, found = random.Random(0), []
    for _ in range(rows):
        ids, state = list(automaton.prefix_ids), automaton.start
        while len(ids) <= steps:
            ids.append(chance.choice(automaton.allowed(state, steps + 1 - len(ids))))
            state = automaton.step(state, ids[-1])
        found.append(ids)
    return torch.tensor(found, device=device())


if __name__ == "__main__":
    main()
