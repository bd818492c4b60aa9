"""A model whose config asks for structured reports writes nothing else, whatever its weights."""

import pytest
import torch

from deepcoro.evaluation.units import write_texts
from deepcoro.reports.grammar import parse_report, render_report

LONG = ("captioning.max_position_embeddings=160", "captioning.max_generation_length=150")


@pytest.mark.parametrize(
    "assignments",
    [
        (),
        ("captioning.num_beams=3",),
        ("captioning.do_sample=true",),
        ("captioning.tasks.aref=1",),
        ("data.unit=study", "data.num_videos=2"),
    ],
    ids=["greedy", "beams", "drawn", "after a prefix", "studies"],
)
def test_every_text_is_a_whole_report(tiny_config, tiny_model, random_batch, report_tokenizer, assignments):
    def write(structured):
        config = tiny_config(*LONG, *assignments, f"captioning.structured={structured}")
        model, batch = tiny_model(config).eval(), random_batch(config, views=config.data.num_videos)
        torch.manual_seed(0)
        with torch.no_grad():
            tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
            return write_texts(model, report_tokenizer, tokens, batch["valid"], model.views_at(batch))

    texts = write("true")
    assert len(texts) == 4
    for text in texts:
        read = parse_report(text)
        assert not read.unread
        # A clip's report does not say the dominance, on which it hangs what of the inferior wall is named.
        asked = [read.dominance] if read.tree is None else [None, "right", "left", "balanced"]
        assert text in [render_report(read.findings, dominance, read.tree) for dominance in asked]
    assert any(parse_report(text).unread for text in write("false"))  # or any model would do
