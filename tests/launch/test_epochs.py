"""Lengths in epochs become steps when the data is known."""

import pytest

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError
from deepcoro.launch.train import resolve


def resolved(config, folder):
    dataset = PreparedDataset.open(folder)
    return resolve(config, dataset, dataset.units("train", config.data.unit, config.data.filter))


def test_an_epoch_is_the_units_over_the_batch(tiny_config, dataset_folder):
    """Seven training videos, of five studies, in batches of 4 or of 1."""
    given = ("optim.warmup=2 epochs", "training.num_steps=20")
    assert resolved(tiny_config(*given), dataset_folder).optim.warmup == "4 steps"  # 3.5, to the even one
    alone = (*given, "training.batch_size=1")
    config = resolved(tiny_config(*alone), dataset_folder)
    assert (config.optim.warmup, config.optim.warmup_in(20)) == ("14 steps", 14)
    studies = tiny_config(*alone, "data.unit=study")
    assert resolved(studies, dataset_folder).optim.warmup == "10 steps"
    assert resolved(config, dataset_folder) == config


def test_shares_and_steps_stay_as_they_are_written(tiny_config, dataset_folder):
    config = tiny_config("optim.warmup=0.1", "optim.schedule_end=9 steps")
    taken = resolved(config, dataset_folder)
    assert (taken.optim.warmup, taken.optim.schedule_end) == ("0.1", "9 steps")


def test_a_warm_up_of_more_epochs_than_the_run_has_is_refused(tiny_config, dataset_folder):
    with pytest.raises(ConfigError, match=r"optim.warmup \(18 steps\) 18 must be below training.num_steps 10"):
        resolved(tiny_config("optim.warmup=10 epochs"), dataset_folder)
