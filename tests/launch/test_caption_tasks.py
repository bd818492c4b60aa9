"""What is said of captioning tasks before anything starts."""

import pytest

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError
from deepcoro.launch.train import resolve, save_tokenizer


def test_a_tokenizer_that_does_not_know_the_words_is_refused(task_config, text_folder, tmp_path):
    vocabulary = "captioning.vocab_size=null"
    assert save_tokenizer(task_config(vocabulary), tmp_path / "one").captioning.vocab_size
    theirs = task_config(vocabulary, f"text_encoder.name={text_folder}")
    with pytest.raises(ConfigError, match=r"WORDS\), or leave out aref and gcap"):
        save_tokenizer(theirs, tmp_path / "two")
    without = theirs.override(["captioning.tasks.aref=0", "captioning.tasks.gcap=0"])
    assert save_tokenizer(without, tmp_path / "three").captioning.vocab_size
    unused = theirs.override(["loss.weights.captioning=0"])
    assert save_tokenizer(unused, tmp_path / "four").captioning.vocab_size


def test_data_without_boxes_are_told_of(task_config, dataset_folder, capsys):
    dataset = PreparedDataset.open(dataset_folder)
    units = dataset.units("train")
    resolve(task_config("captioning.tasks.aref=0", "captioning.tasks.gcap=0"), dataset, units)
    assert "box" not in capsys.readouterr().err
    resolve(task_config(), dataset, units)
    assert "no training video of" in (said := capsys.readouterr().err)
    assert "every row is a report" in said
