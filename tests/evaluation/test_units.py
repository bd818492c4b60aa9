"""Texts of units are written as the config says, but for what must not depend on chance."""

import pytest
import torch

from deepcoro.config_writing import Writing
from deepcoro.evaluation.units import write_texts

BEAMS = ("captioning.num_beams=4", "captioning.length_penalty=0.0")
DRAWN = ("captioning.do_sample=true", "captioning.temperature=3.0", "captioning.top_k=40")


@pytest.fixture
def texts(tiny_config, tiny_model, random_batch, report_tokenizer):
    """``texts(*assignments, writing=...)`` of the same model and clips."""

    @torch.no_grad()
    def write(*assignments, writing=lambda captioning: None):
        config = tiny_config(*assignments)
        model, batch = tiny_model(config).eval(), random_batch(config)
        model.captioning_decoder.token_embedding.weight.data *= 20  # it says more than one word
        tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
        torch.manual_seed(0)
        how = writing(config.captioning)
        return write_texts(model, report_tokenizer, tokens, batch["valid"], model.views_at(batch), how)

    return write


def test_the_config_says_how_or_the_caller(texts):
    greedy, beams, drawn = texts(), texts(*BEAMS), texts(*DRAWN)
    assert len({str(greedy), str(beams), str(drawn)}) == 3
    by_hand = Writing(max_generation_length=16, num_beams=4, length_penalty=0.0)
    assert texts(writing=lambda _: by_hand) == texts(*DRAWN, writing=lambda _: by_hand) == beams


def test_metrics_are_of_beams_but_never_of_what_is_drawn(texts):
    assert texts(*BEAMS, writing=lambda own: own.without_luck()) == texts(*BEAMS)
    assert texts(*DRAWN, writing=lambda own: own.without_luck()) == texts()


@pytest.mark.parametrize("level", ["clip", "study"])
def test_clips_that_are_not_there_are_not_written_about(tiny_config, tiny_model, random_batch, report_tokenizer, level):
    config = tiny_config("data.unit=study", "data.num_videos=3", f"captioning.level={level}")
    model, batch = tiny_model(config).eval(), random_batch(config, views=3)
    model.captioning_decoder.token_embedding.weight.data *= 20
    valid, views_at = batch["valid"], model.views_at(batch)
    valid[0, 1:] = valid[2, 0] = valid[3] = False
    rows = []
    hook = model.captioning_decoder.norm.register_forward_hook(lambda _, x, y: rows.append(len(y)))
    with torch.no_grad():
        tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
        texts = write_texts(model, report_tokenizer, tokens, valid, views_at)
        hook.remove()
        assert set(rows) == {6 if level == "clip" else 3}
        assert texts[3] == ""
        for row, some in enumerate(valid[:3]):  # by itself, without what fills it up
            own = tokens.unflatten(0, (4, 3))[row, some], some[some][None], views_at[row, some][None]
            assert write_texts(model, report_tokenizer, *own) == [texts[row]]
        assert len(set(texts)) > 1
