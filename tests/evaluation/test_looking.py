"""What a model is asked of lesions: the right clip, the right words, and the right tokens of its attention."""

import numpy as np
import pytest
import torch

from deepcoro.data.caption_tasks import Region
from deepcoro.data.collate import to_torch
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.evaluation.evaluator import predict
from deepcoro.evaluation.looking import look_for
from deepcoro.evaluation.shown import shown_lesions

LAD = {"segment": "prox_lad", "stenosis": 80, "occlusion": "none", "timi": 2}
RCA = {"segment": "mid_rca", "stenosis": 100, "occlusion": "cto"}
CPU = torch.device("cpu")
CLIPS = ("data.unit=study", "data.num_videos=2", "captioning.level=clip", "contrastive.level=clip")
TOLD = ("loss.weights.grounding=1", "grounding.informs_captions=true")
STUDIES = ("data.unit=study", "data.num_videos=2", "captioning.tasks.aref=0", "captioning.tasks.gcap=0")


@pytest.fixture(scope="module")
def dataset(make_dataset, tmp_path_factory):
    """Two studies; the first clip of the second is damaged."""
    folder = tmp_path_factory.mktemp("looked")
    boxes = [
        [{"segment": segment, "frame": 12, "x0": 0.2, "y0": 0.3, "x1": 0.4, "y1": 0.5}]
        for segment in ("prox_lad", "mid_rca")
    ]
    whole = "Left main: normal. Proximal LAD: 80% stenosis (severe), TIMI 2 flow. Mid RCA: as it was."
    studies = [
        {"study_id": "a", "dominance": "right", "findings": [LAD, RCA], "report": whole},
        {"study_id": "b", "dominance": "right", "findings": [LAD, RCA]},
    ]
    videos = [
        {"study_id": study, "coronary_tree": tree, "boxes": boxes[number]}
        for study in ("a", "b")
        for number, tree in enumerate(("left", "right"))
    ]
    path = make_dataset(folder, studies, videos)
    (folder / "videos" / "v2.avi").write_bytes(b"")
    return PreparedDataset.open(path)


@pytest.fixture
def asked(monkeypatch):
    """What is asked; the answer to question n is frame n."""
    seen = []

    def answer(model, words, tokens, valid, views_at, rows, sentences):
        seen.extend(zip(rows, sentences, strict=True))
        return [None if n == 1 else Region("d1", n, (0, 0, 1, 1)) for n in range(len(rows))]

    monkeypatch.setattr("deepcoro.evaluation.looking.write_regions", answer)
    return seen


def looked(model, config, words, units):
    with torch.no_grad():
        rows = np.arange(len(units))
        batch = to_torch(UnitReader(config, units, words, training=False).read(rows, rows), CPU)
        tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
        lesions = [shown_lesions(units, unit, config) for unit in range(len(units))]
        return batch, tokens, look_for(model, words, batch, tokens, lesions)


@pytest.mark.parametrize("unit", ["video", "study"])
def test_each_lesion_is_asked_of_its_clip(task_config, tiny_model, task_tokenizer, dataset, asked, unit):
    config = task_config(*(CLIPS if unit == "study" else ()))
    units = dataset.units("train", unit)
    _, _, found = looked(tiny_model(config).eval(), config, task_tokenizer, units)
    lad = "Proximal LAD: 80% stenosis (severe), TIMI 2 flow."
    rca = "Mid RCA: chronic total occlusion (100%)."
    assert asked == [(0, lad), (1, rca), (3, rca)]  # clip 2 is damaged
    answers = [(one.segment, one.view, one.answer and one.answer[0]) for own in found for one in own]
    by_study = unit == "study"
    assert answers == [("prox_lad", 0, 0), ("mid_rca", int(by_study), None), ("mid_rca", int(by_study), 2)]
    assert [len(own) for own in found] == ([2, 1] if by_study else [1, 1, 0, 1])


@pytest.mark.parametrize(
    ("level", "told"), [("video", ()), ("clip", ()), ("study", ()), ("clip", TOLD), ("study", TOLD)]
)
def test_attention_is_that_of_the_words_of_the_lesion(
    task_config, tiny_model, task_tokenizer, dataset, asked, level, told
):
    """By hand: row by row, the text cut where the lesion's words begin and end, all layers and heads averaged."""
    more = (*told, *{"video": (), "clip": CLIPS, "study": STUDIES}[level])
    config = task_config("captioning.max_position_embeddings=96", "data.max_text_length=96", *more)
    words, units = task_tokenizer, dataset.units("train", "video" if level == "video" else "study")
    words = type(words)(*words.__reduce__()[1][:-1], 96)
    model = tiny_model(config).eval()
    for parameter in model.captioning_decoder.parameters():
        parameter.data *= 3
    batch, tokens, found = looked(model, config, words, units)
    prompt = [words.start_id] if level == "study" else words.prompt("Cap:")
    memory, mask = model.memory(tokens, batch["valid"], model.views_at(batch))
    seen = 0
    for unit, own in enumerate(found):
        for one in own:
            lesion = next(x for x in shown_lesions(units, unit, config) if x.segment == one.segment)
            row = {"video": unit, "clip": 2 * unit + one.view, "study": unit}[level]
            if level == "study" and one.segment == "mid_rca" and unit == 0:
                assert one.attention is None  # the report has other words for it
                continue
            text, begin = lesion.report, lesion.report.index(lesion.name)
            before, said = (len(words.prompt(part)) - 1 for part in (text[:begin], lesion.name))
            ids = torch.tensor([[*prompt, *words.prompt(text)[1:]]])
            places = [len(prompt) + before + n - 1 for n in range(said)]
            total = 0
            for weights in model.captioning_decoder.attention(ids, memory[row : row + 1], mask[row : row + 1]):
                for head in range(weights.shape[1]):
                    for place in places:
                        total = total + weights[0, head, place] / (2 * 2 * len(places))
            first = config.num_tokens * one.view if level == "study" else 0
            by_hand = total[first : first + config.num_tokens].view(config.grid)
            np.testing.assert_allclose(one.attention, by_hand.detach().numpy(), atol=1e-6)
            assert one.asked == (level != "study")
            seen += 1
    assert seen == {"video": 3, "clip": 3, "study": 2}[level]


def test_a_lesion_whose_words_were_cut_off_has_no_attention(task_config, tiny_model, task_tokenizer, dataset, asked):
    config, units = task_config("data.max_text_length=12"), dataset.units("train")
    words = type(task_tokenizer)(*task_tokenizer.__reduce__()[1][:-1], 12)
    _, _, found = looked(tiny_model(config).eval(), config, words, units)
    assert [one.attention for own in found for one in own] == [None] * 3


def test_records_have_it_where_units_are_given(task_config, tiny_model, task_tokenizer, dataset, asked):
    config, units = task_config(), dataset.units("train")
    rows = UnitReader(config, units, task_tokenizer, training=False).read(np.arange(4), np.arange(4))
    model = tiny_model(config)
    records = list(predict(model, config, [rows], task_tokenizer, CPU, units=units))
    assert [len(record["grounding"]) if record["valid"] else None for record in records] == [1, 1, None, 1]
    assert "grounding" not in next(predict(model, config, [rows], task_tokenizer, CPU))
    silent = config.override(["evaluation.grounding=false"])
    assert "grounding" not in next(predict(model, silent, [rows], task_tokenizer, CPU, units=units))
