"""The box of a finding: many questions at once are answered as each by itself, with what is given as a prompt."""

import pytest
import torch

from deepcoro.config_writing import Writing
from deepcoro.data.caption_tasks import Region, prompt_ids, read_region
from deepcoro.errors import ConfigError
from deepcoro.evaluation.pointing import write_regions
from deepcoro.models.generation import generate

SENTENCES = (
    "Left main: no stenosis.",
    "Proximal LAD: 80% stenosis (severe), TIMI 2 flow.",
    "Mid RCA: chronic total occlusion (100%), thrombus, collateral filling, TIMI 0 flow.",
)


@pytest.fixture
def pointer(task_config, tiny_model, random_batch, task_tokenizer):
    """A model, its tokens, valid views and their angles, of 3 units."""

    def make(*assignments, views=1):
        config = task_config("captioning.max_position_embeddings=128", "data.frame_size=16", *assignments)
        model, batch = tiny_model(config).eval(), random_batch(config, rows=3, views=views)
        torch.manual_seed(1)
        for weights in model.captioning_decoder.parameters():  # what it says hangs on the clip and on what is asked
            if weights.ndim > 1:
                torch.nn.init.normal_(weights)
        with torch.no_grad():
            tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
        return model, tokens, batch["valid"], model.views_at(batch)

    return make


@pytest.fixture
def answers(monkeypatch):
    """What ``read_region`` is given, and what it gives instead of a box that an untrained model does not write."""
    seen = []

    def note(text):
        seen.append(text)
        return read_region(text) or (len(seen) % 4, (0.1, 0.2, 0.3, 0.4))

    monkeypatch.setattr("deepcoro.evaluation.pointing.read_region", note)
    return seen


@pytest.mark.parametrize("at_once", [128, 2])
def test_questions_together_are_answered_as_each_by_itself(pointer, answers, task_tokenizer, monkeypatch, at_once):
    monkeypatch.setattr("deepcoro.evaluation.pointing._AT_ONCE", at_once)
    model, tokens, valid, views_at = pointer()
    rows, asked = [2, 0, 0, 1], [SENTENCES[2], SENTENCES[1], SENTENCES[0], SENTENCES[2]]
    found = write_regions(model, task_tokenizer, tokens, valid, views_at, rows, asked)
    assert [region.segment for region in found] == ["mid_rca", "prox_lad", "left_main", "mid_rca"]
    by_hand = []
    memory, mask = model.memory(tokens, valid, views_at)
    for row, sentence in zip(rows, asked, strict=True):
        prompt = torch.tensor([prompt_ids(task_tokenizer, model.config.captioning, "aref", sentence)])
        one = (memory[row : row + 1], mask[row : row + 1])
        ends, most = (task_tokenizer.end_id, task_tokenizer.pad_id), Writing(max_generation_length=40)
        ids = generate(model.captioning_decoder, *one, prompt, *ends, most).ids
        by_hand.append(task_tokenizer.decode(ids[0].tolist()))
    assert len(set(by_hand)) > 1
    for text in by_hand:  # questions that are longer leave the others more room
        assert any(answer.startswith(text) for answer in answers)


def test_what_is_no_place_is_none(pointer, task_tokenizer, monkeypatch):
    texts = ["", "Frame 3: 5 10 15 20.", "Frame 4: 5 10 15 20.", "Frame 3: 15 10 5 20."]  # a clip has frames 0 to 3
    monkeypatch.setattr("deepcoro.evaluation.pointing._answers", lambda *_: texts)
    model, *seen = pointer()
    found = write_regions(model, task_tokenizer, *seen, [0, 1, 2, 0], [SENTENCES[0]] * 4)
    assert found == [None, Region("left_main", 3, (0.01, 0.02, 0.03, 0.04)), None, None]


def test_clips_of_a_study_are_counted_through_and_one_that_is_not_there_says_nothing(pointer, answers, task_tokenizer):
    model, tokens, valid, views_at = pointer(
        "data.unit=study", "data.num_videos=2", "captioning.level=clip", "contrastive.level=clip", views=2
    )
    valid[1, 0] = False
    write_regions(model, task_tokenizer, tokens, valid, views_at, [0, 1, 2, 3, 4, 5], [SENTENCES[1]] * 6)
    assert [bool(text) for text in answers] == [True, True, False, True, True, True]
    alone = (tokens[5:6], valid[2:, 1:], views_at[2:, 1:])
    write_regions(model, task_tokenizer, *alone, [0], [SENTENCES[1]])
    assert answers[6] == answers[5]


def test_no_question_no_answer_and_no_room_none(pointer, task_tokenizer):
    model, *seen = pointer()
    assert write_regions(model, task_tokenizer, *seen, [], []) == []
    short, *seen = pointer(
        "captioning.max_position_embeddings=12", "data.max_text_length=12", "captioning.max_generation_length=8"
    )
    assert write_regions(short, task_tokenizer, *seen, [0], [SENTENCES[1]]) == [None]


def test_what_is_no_question_is_refused(pointer, task_tokenizer):
    model, *seen = pointer()
    for sentence in ("LAD: normal.", "Proximal LAD: narrow.", SENTENCES[0] + " " + SENTENCES[1]):
        with pytest.raises(ValueError, match="does not tell one finding"):
            write_regions(model, task_tokenizer, *seen, [0], [sentence])
    with pytest.raises(ValueError, match="clip 3 is none of the 3"):
        write_regions(model, task_tokenizer, *seen, [3], [SENTENCES[0]])
    plain, *seen = pointer("captioning.tasks.aref=0")
    with pytest.raises(ConfigError, match="not trained on the task 'aref'"):
        write_regions(plain, task_tokenizer, *seen, [0], [SENTENCES[0]])
