"""Shares of captioning tasks, and of texts predicted in parallel."""

import pytest

from deepcoro.config import Config
from deepcoro.errors import ConfigError


def test_by_default_captioning_is_asked_for_reports_word_by_word():
    part = Config().captioning
    assert not part.tasks.in_use
    assert part.tasks.shares == {"report": 1, "aref": 0, "gcap": 0}
    assert part.parallel_share == 0


def test_shares_are_of_any_sum():
    tasks = Config().override(["captioning.tasks.aref=2", "captioning.tasks.gcap=1"]).captioning.tasks
    assert tasks.in_use
    assert tasks.shares == {"report": 0.25, "aref": 0.5, "gcap": 0.25}
    assert not Config().override(["captioning.tasks.report=7"]).captioning.tasks.in_use
    only = Config().override(["captioning.tasks.report=0", "captioning.tasks.gcap=0.1"]).captioning.tasks
    assert only.shares == {"report": 0, "aref": 0, "gcap": 1}


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["captioning.tasks.report=0"], "all 0: give report, aref or gcap"),
        (["captioning.tasks.aref=-0.1"], "captioning.tasks.aref.*greater than or equal to 0"),
        (["captioning.tasks.gcap=.inf"], "captioning.tasks.gcap.*finite"),
        (["captioning.tasks.caption=1"], "unknown key 'captioning.tasks.caption'; the nearest known is"),
        (["captioning.parallel_share=1"], "captioning.parallel_share.*less than 1"),
        (["data.unit=study", "captioning.tasks.aref=1"], "aref and gcap name a frame of one clip.*level=clip"),
    ],
)
def test_senseless_shares_are_refused(assignments, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        Config().override(assignments)


def test_clips_of_studies_may_have_tasks():
    config = Config().override(["data.unit=study", "captioning.level=clip", "captioning.tasks.aref=1"])
    assert config.needs_clip_texts


def test_they_are_saved_with_the_run(tmp_path):
    config = Config().override(["captioning.tasks.aref=0.3", "captioning.parallel_share=0.75"])
    config.save(tmp_path / "config.yaml")
    assert Config.load(tmp_path / "config.yaml") == config
