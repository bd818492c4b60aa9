"""What is said of captioning tasks before anything starts."""

import shutil

import pytest
from transformers import BertTokenizerFast

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError
from deepcoro.launch.train import resolve, save_tokenizer


def few_words(text_folder, folder):
    """A text encoder whose tokenizer knows hardly a word."""
    shutil.copytree(text_folder, folder)
    few = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Normal", "."))}
    BertTokenizerFast(vocab=few, do_lower_case=False).save_pretrained(folder)
    return folder


def test_a_tokenizer_that_does_not_know_the_words_is_refused(task_config, text_folder, tmp_path):
    vocabulary = "captioning.vocab_size=null"
    assert save_tokenizer(task_config(vocabulary), tmp_path / "one").captioning.vocab_size
    theirs = task_config(vocabulary, f"text_encoder.name={few_words(text_folder, tmp_path / 'few')}")
    with pytest.raises(ConfigError, match=r"WORDS\), or leave out aref and gcap"):
        save_tokenizer(theirs, tmp_path / "two")
    without = theirs.override(["captioning.tasks.aref=0", "captioning.tasks.gcap=0"])
    assert save_tokenizer(without, tmp_path / "three").captioning.vocab_size
    unused = theirs.override(["loss.weights.captioning=0"])
    assert save_tokenizer(unused, tmp_path / "four").captioning.vocab_size


def test_how_many_videos_have_boxes_is_told(task_config, dataset_folder, make_dataset, tmp_path, capsys):
    dataset = PreparedDataset.open(dataset_folder)
    units = dataset.units("train")
    resolve(task_config("captioning.tasks.aref=0", "captioning.tasks.gcap=0"), dataset, units)
    assert "box" not in capsys.readouterr().err
    resolve(task_config(), dataset, units)
    assert capsys.readouterr().err.startswith("WARNING: 0 of 7 training videos have boxes")
    box = {"segment": "d1", "frame": 3, "x0": 0.1, "y0": 0.1, "x1": 0.2, "y1": 0.2}
    videos = [{"study_id": "a"}, {"study_id": "a", "boxes": [box, box]}, {"study_id": "b", "boxes": [box]}]
    told = {"study_id": "a", "findings": [{"segment": "d1", "stenosis": 60, "occlusion": "none"}]}
    folder = make_dataset(tmp_path, [told, {"study_id": "b", "report": "Normal."}], videos)  # of b nothing to ask for
    dataset = PreparedDataset.open(folder)
    resolve(task_config(), dataset, dataset.units("train"))
    assert capsys.readouterr().err.startswith("1 of 3 training videos have boxes")


def test_structured_reports_that_could_not_be_written_are_refused(tiny_config, text_folder, tmp_path):
    asked = ("captioning.vocab_size=null", "captioning.structured=true")
    with pytest.raises(ConfigError, match=r"captioning\.max_generation_length"):
        save_tokenizer(tiny_config(*asked), tmp_path / "one")  # 16 tokens: less than the shortest report
    longer = ("captioning.max_position_embeddings=160", "captioning.max_generation_length=150")
    assert save_tokenizer(tiny_config(*asked, *longer), tmp_path / "two").captioning.vocab_size
    theirs = f"text_encoder.name={few_words(text_folder, tmp_path / 'few')}"
    with pytest.raises(ConfigError, match="cannot write structured reports: it does not know"):
        save_tokenizer(tiny_config(*asked, *longer, theirs), tmp_path / "three")
