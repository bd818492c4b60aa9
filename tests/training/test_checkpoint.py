"""Checkpoints come back as they were, or say why not; a reader never sees half of one."""

import json
import resource

import pytest
import torch

from deepcoro.config import Config
from deepcoro.errors import CheckpointError, SaveError
from deepcoro.training import checkpoint as module
from deepcoro.training.checkpoint import (
    committed_steps,
    drop_checkpoints_after,
    drop_old_checkpoints,
    find_checkpoint,
    load_model,
    load_training_state,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
    set_damaged_aside,
    verify_checkpoint,
)
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step


@pytest.fixture(scope="module")
def trained(tiny_config, tiny_model, random_batch):
    """A model that took a step, its optimizer and its config."""
    from deepcoro.losses.multitask import MultitaskLoss

    config = tiny_config()
    model = tiny_model(config)
    optimizer = build_optimizer(model, config.optim)
    weights = {"contrastive": 1.0, "captioning": 1.0, "masked_modeling": 0.1}
    train_step(model, MultitaskLoss(), optimizer, [random_batch(config)], weights, config.num_visible)
    return model.eval(), optimizer, config


@pytest.fixture
def save(trained, tmp_path):
    model, optimizer, config = trained

    def write(step, keep=3, protected=()):
        state = {"optimizer": optimizer.state_dict(), "step": step, "samples_seen": 4 * step, "tokenizer": "abc"}
        place = save_checkpoint(tmp_path, step, model, state, config, "dataset-1")
        drop_old_checkpoints(tmp_path, keep, protected)
        return place

    return write


def test_a_loaded_model_says_the_same(save, trained, random_batch):
    model, _, config = trained
    loaded, loaded_config = load_model(save(1))
    assert loaded_config == config
    assert not loaded.training
    batch = random_batch(config, seed=5)
    before, after = model(batch, config.num_visible), loaded(batch, config.num_visible)
    for name in before:
        assert torch.equal(before[name], after[name])


def test_nothing_of_the_original_text_encoder_is_needed(save, trained, monkeypatch):
    import transformers

    def refuse(*_, **__):
        raise AssertionError("weights were fetched")

    place = save(1)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", refuse)
    load_model(place)


def test_the_training_state_comes_back_under_weights_only(save, trained):
    place = save(7)
    state = torch.load(place / "training_state.pt", weights_only=True)
    assert (state["step"], state["samples_seen"], state["tokenizer"]) == (7, 28, "abc")
    assert load_training_state(place).keys() == state.keys()
    model, optimizer, config = trained
    fresh = build_optimizer(model, config.optim)
    fresh.load_state_dict(state["optimizer"])
    for one, other in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        assert (one["peak_lr"], one["component"]) == (other["peak_lr"], other["component"])
        for a, b in zip(one["params"], other["params"], strict=True):
            assert torch.equal(optimizer.state[a]["exp_avg"], fresh.state[b]["exp_avg"])


def test_what_a_checkpoint_holds(save, tmp_path, text_folder):
    from deepcoro import __version__
    from deepcoro.models.text_encoder import load_tokenizer

    load_tokenizer(str(text_folder)).save_pretrained(tmp_path / "tokenizer")
    place = save(3)
    assert place == tmp_path / "checkpoints" / "3"
    manifest = json.loads((place / "manifest.json").read_text())
    assert (manifest["step"], manifest["dataset_fingerprint"]) == (3, "dataset-1")
    assert manifest["code_version"] == __version__
    files = {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == files >= {"model.safetensors", "training_state.pt", "config.yaml"}
    assert any(name.startswith("tokenizer/") for name in files)
    for name, said in manifest["files"].items():
        assert said["bytes"] == (place / name).stat().st_size
    assert verify_checkpoint(place) == manifest
    assert Config.load(place / "config.yaml").name == "tiny"


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt", "config.yaml", "text_encoder/config.json"])
def test_one_changed_byte_is_found(save, name):
    place = save(1)
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    (place / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        verify_checkpoint(place)
    with pytest.raises(CheckpointError, match=name):
        load_model(place)


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_missing_file_is_named(save, name):
    place = save(1)
    (place / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_model(place)


@pytest.mark.parametrize("content", [b"{}", b"[1]", b'{"step": 1, "fil', b"\xff\xfe\x00", b"", b"null"])
def test_a_damaged_manifest_is_a_checkpoint_error(save, content):
    place = save(1)
    (place / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        verify_checkpoint(place)


def test_no_changed_byte_of_the_manifest_goes_unnoticed(save):
    place = save(1)
    whole = (place / "manifest.json").read_bytes()
    for offset in range(0, len(whole), 5):
        changed = bytearray(whole)
        changed[offset] ^= 1
        (place / "manifest.json").write_bytes(changed)
        with pytest.raises(CheckpointError):
            verify_checkpoint(place)


def test_weights_of_another_architecture_are_refused(save, tiny_config, tiny_model):
    place = save(1)
    for other in ("video_encoder.depth=1", "contrastive.embedding_dim=8", "loss.weights.captioning=0"):
        with pytest.raises(CheckpointError, match="do not fit"):
            load_weights(place, tiny_model(tiny_config(other)))


def test_only_the_newest_are_kept(save, tmp_path):
    for step in (5, 10, 15, 100):
        save(step, keep=2)
    assert committed_steps(tmp_path) == [15, 100]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["100", "15"]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "100"


def test_protected_steps_stay_however_old(save, tmp_path):
    for step in (5, 10, 15, 100):
        save(step, keep=2, protected={5})
    assert committed_steps(tmp_path) == [5, 15, 100]


def test_what_others_put_beside_checkpoints_is_left_alone(save, tmp_path):
    save(1)
    for name in (".DS_Store", ".nfs000123"):
        (tmp_path / "checkpoints" / name).write_text("of the file system")
    save(2)
    assert committed_steps(tmp_path) == [1, 2] and (tmp_path / "checkpoints" / ".DS_Store").exists()


def test_a_checkpoint_is_found_by_name_or_step(save, tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    for step in (5, 10):
        save(step)
    assert find_checkpoint(tmp_path).name == "10"
    assert find_checkpoint(tmp_path, "5").name == find_checkpoint(tmp_path, 5).name == "5"
    with pytest.raises(CheckpointError, match="keeps no best checkpoint"):
        find_checkpoint(tmp_path, "best")
    (tmp_path / "best.json").write_text('{"step": 5}')
    assert find_checkpoint(tmp_path, "best").name == "5"
    with pytest.raises(CheckpointError, match=r"no checkpoint '7'; there are newest, best and \[5, 10\]"):
        find_checkpoint(tmp_path, "7")


def damage(place):
    content = bytearray((place / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (place / "model.safetensors").write_bytes(content)


def test_damaged_newest_checkpoints_are_set_aside_and_told(save, tmp_path):
    for step in (5, 10, 15):
        save(step)
    damage(tmp_path / "checkpoints" / "15")
    (tmp_path / "checkpoints" / "10" / "training_state.pt").unlink()
    told = set_damaged_aside(tmp_path)
    assert committed_steps(tmp_path) == [5]
    assert "15: model.safetensors" in told[0] and "checkpoints/damaged-15" in told[0]
    assert "10: training_state.pt is missing" in told[1]
    assert (tmp_path / "checkpoints" / "damaged-15" / "model.safetensors").exists()
    assert set_damaged_aside(tmp_path) == []


def test_a_run_with_no_sound_checkpoint_is_left_as_it_is(save, tmp_path):
    for step in (5, 10):
        damage(save(step))
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint of .* is sound.*10: model.*5: model"):
        set_damaged_aside(tmp_path)
    assert committed_steps(tmp_path) == [5, 10]
    assert set_damaged_aside(tmp_path / "new") == []


def test_steps_that_are_run_again_lose_their_checkpoints(save, tmp_path):
    for step in (5, 10, 15):
        save(step)
    drop_checkpoints_after(tmp_path, 5)
    assert committed_steps(tmp_path) == [5]


@pytest.mark.parametrize("limit", [300, 20_000, 200_000])
def test_a_full_disk_leaves_the_last_good_checkpoint(save, tmp_path, limit):
    """The system refuses files beyond a size, as when the disk is full: at the config, the weights, the state."""
    save(1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(SaveError, match="checkpoint of step 2 could not be written"):
            save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    load_model(newest_checkpoint(tmp_path))


def test_a_step_saved_again_replaces_itself(save, tmp_path):
    save(5)
    verify_checkpoint(save(5))
    assert committed_steps(tmp_path) == [5]


def test_no_run_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert committed_steps(tmp_path / "nowhere") == []


def test_a_half_written_folder_is_not_seen(save, tmp_path):
    save(5)
    for name in (".9-abcdef", "9", "latest"):  # one being written, one without a manifest, one of another kind
        (tmp_path / "checkpoints" / name).mkdir()
    for name in (".9-abcdef", "latest"):
        (tmp_path / "checkpoints" / name / "manifest.json").write_text("{}")
    assert committed_steps(tmp_path) == [5]


@pytest.mark.parametrize("broken", ["save_file", "_sha256", "_flush"])
def test_a_crash_in_the_middle_leaves_the_earlier_ones(save, tmp_path, monkeypatch, broken):
    save(1, keep=1)

    def crash(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(module, broken, crash)
    with pytest.raises(SaveError, match="step 2 could not be written.*no space"):
        save(2, keep=1)
    monkeypatch.undo()
    assert committed_steps(tmp_path) == [1]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    load_model(newest_checkpoint(tmp_path))


def test_a_killed_writer_leaves_nothing_that_stays(save, tmp_path):
    """What a process that was killed had written is gone once a later save is through."""
    save(1)
    left = tmp_path / "checkpoints" / ".2-deadbeef"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    save(3)
    assert not left.exists()


def test_masked_modelling_alone_comes_back_too(tiny_config, tmp_path, random_batch):
    from deepcoro.models.multitask import MultitaskModel

    config = tiny_config("loss.weights.contrastive=0", "loss.weights.captioning=0")
    model = MultitaskModel.from_sources(config).eval()
    loaded, _ = load_model(save_checkpoint(tmp_path, 1, model, {"step": 1}, config, "d"))
    batch = random_batch(config)
    assert torch.equal(loaded(batch, 4)["prediction"], model(batch, 4)["prediction"])
