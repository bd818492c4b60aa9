"""The tab HParams of a sweep, asked of TensorBoard's own backend: each trial a line, what was searched and found."""

from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups, metadata

from deepcoro.launch.search import FIELDS
from deepcoro.launch.sweep_board import STATE, write_board, write_line
from deepcoro.training.board import Board
from deepcoro.training.validation import post_results
from tests.launch.sweep_study import LR, MRR, STRATEGY, leave_runs, study_of

ROWS = (
    ("complete", {9: 0.5}, 1e-2),
    ("pruned", {3: 0.25}, 1e-5),
    ("failed", "it broke", 1e-4),
)


def asked(folder):
    """The columns and the lines that TensorBoard shows of a folder."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={"scalars": 100})
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(
        base_plugin.TBContext(data_provider=provider, flags=SimpleNamespace(), logdir=str(folder))
    )
    request = RequestContext()
    metadata = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(
        request, "", True, metadata, context.hparams_from_data_provider(request, "", None)
    )
    wanted = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING],
        col_params=[{"metric": info.name} for info in experiment.metric_infos],
        start_index=0,
        slice_size=100,
        include_metrics=True,
    )
    groups = list_session_groups.Handler(request, context, "", wanted).run().session_groups
    return experiment, {group.sessions[0].name: group for group in groups}


@pytest.fixture
def sweep(tmp_path, tiny_config):
    study, config = study_of(ROWS), tiny_config()
    leave_runs(study, tmp_path, config)
    for number, step in ((0, 9), (1, 3)):  # as the loop of a run does
        run = tmp_path / "trials" / f"trial_{number:04d}"
        board = Board(run, 1)
        post_results(board, run, config.merge({"training": {"num_steps": 9}}), [step])
        board.close()
    return study, tmp_path, config


def test_each_trial_is_a_line_with_its_values(sweep):
    study, folder, config = sweep
    write_board(study, folder, config)
    experiment, lines = asked(folder)
    shown = [info.name for info in experiment.hparam_infos if info.differs]
    assert set(shown) == {STATE, LR, STRATEGY}
    assert experiment.metric_infos[0].name.tag == f"validation/{MRR}"
    by_run = {name.split("/")[1]: group for name, group in lines.items()}
    assert sorted(by_run) == ["trial_0000", "trial_0001", "trial_0002"]
    found = {
        run: (
            group.hparams[STATE].string_value,
            group.hparams[LR].number_value,
            group.hparams[STRATEGY].string_value,
            {value.name.tag: value.value for value in group.metric_values}.get(f"validation/{MRR}"),
        )
        for run, group in by_run.items()
    }
    assert found == {
        "trial_0000": ("complete", 1e-2, "random", 0.5),
        "trial_0001": ("pruned", 1e-5, "tube", 0.25),
        "trial_0002": ("fail", 1e-4, "random", None),
    }
    assert by_run["trial_0002"].sessions[0].status == api_pb2.STATUS_FAILURE


def test_a_line_is_written_once(sweep):
    study, folder, config = sweep
    first = write_board(study, folder, config)
    assert len(first) == 4  # three lines and the columns
    assert write_board(study, folder, config) == []
    run = folder / "confirm" / "default-seed_1"
    line = write_line(run, config, [LR], "confirmed", 9)
    assert write_line(run, config, [LR], "confirmed", 9) == line
    experiment, lines = asked(folder)
    assert lines["confirm/default-seed_1/tensorboard"].hparams[LR].number_value == config.optim.lr
    assert {info.name for info in experiment.hparam_infos if info.differs} == {STATE, LR, STRATEGY}


def test_a_field_without_a_default_has_the_type_of_what_was_tried(tmp_path, tiny_config):
    name, config = "optim.logit_lr", tiny_config()
    assert config.optim.logit_lr is None
    for number, (tried, kind) in enumerate(
        (
            ([1e-3, None, 2e-3], api_pb2.DATA_TYPE_FLOAT64),
            ([None], api_pb2.DATA_TYPE_STRING),
            ([None, 1.0, "2 epochs"], api_pb2.DATA_TYPE_STRING),
        )
    ):
        study = optuna.create_study(direction="maximize")
        for value in tried:
            study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={FIELDS: {name: value}}))
        folder = tmp_path / str(number)
        write_board(study, folder, config)
        (path,) = (folder / "tensorboard").iterdir()
        events = [event for event in LegacyEventFileLoader(str(path)).Load() if event.HasField("summary")]
        data = metadata.parse_experiment_plugin_data(events[0].summary.value[0].metadata.plugin_data.content)
        assert {info.name: info.type for info in data.hparam_infos}[name] == kind
