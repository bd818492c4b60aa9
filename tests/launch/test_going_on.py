"""A run goes on with other rates and lengths, never with another model, stream or dataset; either way the change is
shown."""

import pytest

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError, DataError
from deepcoro.launch.going_on import check_going_on
from deepcoro.models.multitask import MultitaskModel
from deepcoro.training.checkpoint import save_checkpoint
from tests.models.published import save_published


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
        (
            ("masked_modeling.target=frozen", "masked_modeling.teacher=runs/x"),
            "(?s)masked_modeling.target: pixels -> frozen.*masked_modeling.teacher: None -> runs/x",
        ),
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


@pytest.fixture
def from_weights(tiny_config, tmp_path):
    """A run that began from published weights, which are gone since: its config as given, and a checkpoint."""
    save_published("timesformer", tmp_path / "weights" / "timesformer")
    given = tiny_config().override([f"video_encoder.pretrained={tmp_path}/weights/timesformer"])
    model = MultitaskModel.from_sources(given)
    place = save_checkpoint(tmp_path / "run", 3, model, {"step": 3}, model.config, "made-for-tests")
    (tmp_path / "weights").rename(tmp_path / "away")
    return given, place, model.config


def test_the_architecture_is_taken_from_the_checkpoint(from_weights, dataset_folder):
    given, place, resolved = from_weights
    assert not given.video_encoder.is_resolved and resolved.video_encoder.attention == "divided"
    assert check_going_on(place, given, PreparedDataset.open(dataset_folder)) == (resolved, [])


def test_weights_may_have_moved_but_not_be_others(from_weights, dataset_folder, tiny_config):
    given, place, _ = from_weights
    dataset = PreparedDataset.open(dataset_folder)
    moved = given.override(["video_encoder.pretrained=/elsewhere/timesformer"])
    config, changed = check_going_on(place, moved, dataset)
    assert config.video_encoder.is_resolved and config.video_encoder.pretrained == "/elsewhere/timesformer"
    (line,) = changed
    assert line.startswith("  video_encoder.pretrained: ")
    with pytest.raises(ConfigError, match="video_encoder.pretrained: .*timesformer -> /weights/videomae"):
        check_going_on(place, given.override(["video_encoder.pretrained=/weights/videomae"]), dataset)
    with pytest.raises(ConfigError, match="(?s)video_encoder.pretrained: .*timesformer -> None"):
        check_going_on(place, tiny_config(), dataset)
    with pytest.raises(ConfigError, match="video_encoder.attention: divided -> joint"):
        check_going_on(place, given.override(["video_encoder.attention=joint"]), dataset)


def test_what_only_changes_the_memory_may_change(begun, tiny_config):
    check_going_on(begun[0], tiny_config("video_encoder.checkpoint_activations=true"), begun[1])


def test_a_teacher_may_lie_elsewhere_and_its_width_is_taken_from_the_checkpoint(
    tiny_config, tiny_model, tmp_path, dataset_folder
):
    """Whether its weights are the same is asked where they are read."""
    taught = tiny_config(
        "masked_modeling.target=frozen", "masked_modeling.teacher=/a/run", "masked_modeling.teacher_width=36"
    )
    place = save_checkpoint(tmp_path, 3, tiny_model(tiny_config()), {"step": 3}, taught, "made-for-tests")
    moved = taught.merge({"masked_modeling": {"teacher": "/b/other", "teacher_width": None}})
    taken, changed = check_going_on(place, moved, PreparedDataset.open(dataset_folder))
    assert taken.masked_modeling.teacher_width == 36
    assert changed == ["  masked_modeling.teacher: /a/run -> /b/other"]
