"""A model whose config asks for structured reports writes nothing else, whatever its weights."""

import pytest
import torch

from deepcoro.data.caption_tasks import TASKS
from deepcoro.evaluation.units import keep_to_reports, write_texts
from deepcoro.reports.grammar import parse_report, render_report
from tests.models.words import TOKENIZERS, make_tokenizers

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


def test_a_report_after_its_task_is_written_as_it_is_learnt(tiny_config, tmp_path):
    config, text = tiny_config(*LONG, "captioning.tasks.aref=1", "captioning.structured=true"), "Right coronary tree."
    tokenizers = make_tokenizers(tmp_path)
    for name in TOKENIZERS:
        words = tokenizers[name]
        keeper = keep_to_reports(words, config, config.captioning)
        trained = words.encode_after([TASKS["report"]], [text])
        ids, given = trained.ids[0].tolist(), int(trained.prefix_length[0])
        for place in range(given, len(ids) - 1):  # but for the end token: more has to be said
            scores = keeper(torch.tensor([ids[:place]]), torch.zeros(1, words.vocab_size))
            assert torch.isfinite(scores[0, ids[place]])
