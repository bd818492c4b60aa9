"""A run goes on with other rates and lengths, never with another model, stream or dataset; either way the change is
shown."""

import pytest

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError, DataError
from deepcoro.launch.going_on import check_going_on
from deepcoro.training.checkpoint import save_checkpoint


@pytest.fixture
def begun(tiny_config, tiny_model, tmp_path, dataset_folder):
    config = tiny_config()
    place = save_checkpoint(tmp_path, 3, tiny_model(config), {"step": 3}, config, "made-for-tests")
    return place, PreparedDataset.open(dataset_folder)


def test_what_may_change_is_listed(begun, tiny_config):
    config = tiny_config("optim.lr=0.5", "training.num_steps=99", "loss.weights.captioning=0.25")
    taken, changed = check_going_on(begun[0], config, begun[1])
    assert taken == config
    assert [line.split(":")[0].strip() for line in changed] == [
        "loss.weights.captioning",
        "optim.lr",
        "training.num_steps",
    ]
    assert "training.num_steps: 10 -> 99" in changed[-1]


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (("video_encoder.depth=1", "seed=5"), "(?s)seed: 0 -> 5.*video_encoder.depth: 2 -> 1"),
        (("training.batch_size=8",), "training.batch_size: 4 -> 8"),
        (("loss.weights.captioning=0",), "loss captioning: used -> not used"),
        (("data.filter='fps > 1'",), "data.filter: None -> fps > 1"),
    ],
)
def test_what_the_weights_or_the_stream_hang_on_may_not(begun, tiny_config, assignments, says):
    with pytest.raises(ConfigError, match=says):
        check_going_on(begun[0], tiny_config(*assignments), begun[1])


def test_a_run_cannot_end_before_the_step_it_has_reached(begun, tiny_config):
    checkpoint, dataset = begun
    with pytest.raises(ConfigError, match=r"stands at step 3, beyond training.num_steps=2"):
        check_going_on(checkpoint, tiny_config("training.num_steps=2", "optim.warmup_steps=1"), dataset)


def test_the_vocabulary_is_taken_from_the_checkpoint(begun, tiny_config):
    config = tiny_config()
    left_out = config.merge({"captioning": {"vocab_size": None}})
    assert check_going_on(begun[0], left_out, begun[1]) == (config, [])


def test_another_preparation_is_refused(tiny_config, tiny_model, tmp_path, dataset_folder):
    config = tiny_config()
    place = save_checkpoint(tmp_path, 3, tiny_model(config), {"step": 3}, config, "another")
    with pytest.raises(DataError, match="another dataset"):
        check_going_on(place, config, PreparedDataset.open(dataset_folder))
