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


def test_how_many_videos_have_boxes_is_told(task_config, dataset_folder, make_dataset, tmp_path, capsys):
    dataset = PreparedDataset.open(dataset_folder)
    units = dataset.units("train")
    resolve(task_config("captioning.tasks.aref=0", "captioning.tasks.gcap=0"), dataset, units)
    assert "box" not in capsys.readouterr().err
    resolve(task_config(), dataset, units)
    assert capsys.readouterr().err.startswith("WARNING: 0 of 7 training videos have boxes")
    box = {"segment": "d1", "frame": 3, "x0": 0.1, "y0": 0.1, "x1": 0.2, "y1": 0.2}
    videos = [{"study_id": "a"}, {"study_id": "a", "boxes": [box, box]}, {"study_id": "b", "boxes": []}]
    folder = make_dataset(tmp_path, [{"study_id": "a"}, {"study_id": "b", "report": "Normal."}], videos)
    dataset = PreparedDataset.open(folder)
    resolve(task_config(), dataset, dataset.units("train"))
    assert capsys.readouterr().err.startswith("1 of 3 training videos have boxes")
