"""Texts of units are written as the config says, but for what must not depend on chance."""

import pytest
import torch

from deepcoro.evaluation.units import write_texts
from deepcoro.models.generation import generate

SAMPLED = ("captioning.do_sample=true", "captioning.temperature=3.0", "captioning.top_k=40")


@pytest.fixture
def texts(tiny_config, tiny_model, random_batch, report_tokenizer):
    """``texts(assignments, without_luck)`` of the same model and clips."""

    def write(*assignments, without_luck=False, own=None):
        config = tiny_config(*assignments)
        model, batch = tiny_model(config).eval(), random_batch(config)
        model.captioning_decoder.token_embedding.weight.data *= 20  # it says more than one word
        with torch.no_grad():
            tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
        seen = (tokens, batch["valid"], model.views_at(batch))
        if own is None:
            torch.manual_seed(0)
            return write_texts(model, report_tokenizer, *seen, without_luck=without_luck)
        words = report_tokenizer
        ids = generate(
            model.captioning_decoder, *model.memory(*seen), words.start_id, words.end_id, words.pad_id, own(config)
        ).ids
        return [words.decode(row) for row in ids.tolist()]

    return write


def test_beams_are_used_for_metrics_too(texts):
    beams = ("captioning.num_beams=4", "captioning.length_penalty=0.0")
    wanted = texts(*beams, own=lambda config: config.captioning)
    assert texts(*beams) == texts(*beams, without_luck=True) == wanted
    assert wanted != texts()


def test_what_is_drawn_is_not_for_metrics(texts):
    assert texts(*SAMPLED) != texts()
    assert texts(*SAMPLED, without_luck=True) == texts()
