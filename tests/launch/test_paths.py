"""Where relative paths start from, outside a job and inside one, and what a run in a job is called."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.config import Config
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError
from deepcoro.launch.paths import (
    absolute,
    absolute_source,
    inside_job,
    named_after_job,
    submission_id,
    submitted_environment,
)
from deepcoro.launch.train import resolve


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    for variable in ("DEEPCORO_HOME", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def job(monkeypatch):
    """``job(submission_id, variable=value, ...)`` sets what Ray 2.60 sets for the program that a job starts."""

    def enter(chosen, **variables):
        about = {
            "runtime_env": {"working_dir": "gcs://_ray_pkg_d8fb083676f07bb9.zip", "env_vars": variables},
            "metadata": {"job_submission_id": chosen, "job_name": chosen},
        }
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(about))

    return enter


def test_uris_and_absolute_paths_stay_as_they_are(job):
    for path in ("s3://bucket/prepared", "/data/prepared", "file:///data"):
        assert absolute(path, "data.path") == path
    job("first")
    for path in ("s3://bucket/prepared", "/data/prepared"):
        assert absolute(path, "data.path") == path


def test_relative_paths_start_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("data/prepared", "data.path") == f"{tmp_path}/data/prepared"


@pytest.mark.parametrize("in_job", [False, True])
def test_relative_paths_start_from_home_where_it_is_set(job, monkeypatch, in_job):
    if in_job:
        job("first")
    monkeypatch.setenv("DEEPCORO_HOME", "/shared/coro")
    assert absolute("runs", "root") == "/shared/coro/runs"
    assert absolute("/elsewhere/runs", "root") == "/elsewhere/runs"
    monkeypatch.setenv("HOME", "/home/somebody")
    assert absolute("~/runs", "root") == "/home/somebody/runs"
    monkeypatch.setenv("DEEPCORO_HOME", "~/coro")
    assert absolute("runs", "root") == "/home/somebody/coro/runs"


def test_a_relative_path_inside_a_job_is_refused_with_the_reason(job):
    job("raysubmit_4LamXRuQpYdSMg7J")
    with pytest.raises(ConfigError, match="root is 'runs'.*uploaded copy.*absolute or URIs, or lie under DEEP"):
        absolute("runs", "root")


def test_a_home_that_is_not_absolute_is_refused(monkeypatch):
    for home in ("coro", "s3://bucket/coro"):
        monkeypatch.setenv("DEEPCORO_HOME", home)
        with pytest.raises(ConfigError, match=f"DEEPCORO_HOME is '{home}'.*absolute"):
            absolute("runs", "root")


def test_an_unknown_user_is_told():
    with pytest.raises(ConfigError, match="root is '~nobody-of-that-name/runs'.*no such user"):
        absolute("~nobody-of-that-name/runs", "root")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).filter(lambda path: path[:1] != "~"))
def test_the_result_starts_at_the_root_or_is_a_uri_and_stays(path):
    once = absolute(path, "data.path")
    assert "://" in once or Path(once).is_absolute()
    assert absolute(once, "data.path") == once


def test_a_job_is_known_by_what_ray_sets(job):
    assert not inside_job()
    assert submission_id() is None
    assert submitted_environment() == {}
    job("first", TOKENIZERS_PARALLELISM="true")
    assert inside_job()
    assert submission_id() == "first"
    assert submitted_environment() == {"TOKENIZERS_PARALLELISM": "true"}


def test_the_run_is_named_by_the_submission_id_unless_the_user_named_it(job):
    config = Config(name="multitask")
    assert named_after_job(config, name_given=False) == config
    job("first")
    assert named_after_job(config, name_given=False) == config.merge({"name": "first"})
    assert named_after_job(config, name_given=True) == config


def test_an_id_that_ray_made_up_names_nothing(job):
    job("raysubmit_4LamXRuQpYdSMg7J")
    assert submission_id() is None
    assert named_after_job(Config(name="multitask"), name_given=False).name == "multitask"


@pytest.mark.parametrize("chosen", ["a b", "-x", ".x", "täst"])  # Ray takes all of these
def test_an_id_that_cannot_be_a_folder_of_runs_is_refused(job, chosen):
    job(chosen)
    with pytest.raises(ConfigError, match=f"submission id '{chosen}' cannot name a run.*name=..."):
        named_after_job(Config(), name_given=False)
    assert named_after_job(Config(name="given"), name_given=True).name == "given"


def test_a_source_is_a_path_where_there_is_one_and_else_a_name(tmp_path, monkeypatch, job):
    (tmp_path / "here" / "weights" / "videomae").mkdir(parents=True)
    (tmp_path / "home" / "theirs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    field = "video_encoder.pretrained"
    assert absolute_source("weights/videomae", field) == str(tmp_path / "here/weights/videomae")
    assert absolute_source(str(tmp_path / "here"), field) == str(tmp_path / "here")
    assert absolute_source("MCG-NJU/videomae-base", field) == "MCG-NJU/videomae-base"
    assert absolute_source("theirs", field) == "theirs"
    job("first")
    with pytest.raises(ConfigError, match="video_encoder.pretrained is 'weights/videomae', and this is a job"):
        absolute_source("weights/videomae", field)
    assert absolute_source("MCG-NJU/videomae-base", field) == "MCG-NJU/videomae-base"
    monkeypatch.setenv("DEEPCORO_HOME", str(tmp_path / "home"))
    assert absolute_source("theirs", field) == str(tmp_path / "home/theirs")


def test_sources_of_weights_become_absolute_and_what_was_given_beside_them_stays(
    tiny_config, dataset_folder, tmp_path, monkeypatch
):
    (tmp_path / "weights").mkdir()
    (tmp_path / "best.pt").touch()
    monkeypatch.chdir(tmp_path)
    dataset = PreparedDataset.open(dataset_folder)
    given = ["video_encoder.pretrained=weights", "video_encoder.depth=5", "text_encoder.pretrained=best.pt"]
    config = resolve(tiny_config().override(given), dataset, dataset.units("train", "video", None))
    assert config.video_encoder.pretrained == str(tmp_path / "weights")
    assert config.text_encoder.pretrained == str(tmp_path / "best.pt")
    assert (config.video_encoder.depth, config.video_encoder.width) == (5, None)
