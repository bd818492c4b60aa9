"""What TensorBoard's tab HParams is told of a run: a line of its fields and metrics, and the columns of the table.

TensorBoard takes the columns from one of the runs that it compares (the one that has ``experiment_columns``), and a
line from each that has ``session_line``; the metrics of a line are the newest scalars of its run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

from deepcoro.config import Config
from deepcoro.config_section import flatten
from deepcoro.config_training import LossWeights

USUAL = (  # fields that a line has whether or not they are defaults
    *(f"loss.weights.{name}" for name in LossWeights.model_fields if name != "distillation"),
    "masked_modeling.mask_ratio",
    *(f"optim.{name}" for name in ("lr", "text_lr", "captioning_lr", "mvm_lr")),
    "training.batch_size",
    "seed",
)
TRIAL_FILE = "trial.json"  # in the folder of a run that is a trial: its sweep writes the line, once it has ended
_PLACES = ("name", "root", "data.path")  # where a run lies says nothing of what it is
Value = float | str


def fields_of_line(config: Config, always: Collection[str] = ()) -> dict[str, Value]:
    """The fields of ``config`` that differ from their defaults, the usual ones, and those of ``always``."""
    fields, defaults = flat_fields(config), flat_fields(Config())
    kept = {*USUAL, *always}
    return {key: value for key, value in fields.items() if key in kept or value != defaults[key]}


def flat_fields(config: Config) -> dict[str, Value]:
    """Fields by dotted path, in the types of the tab: numbers stay, the rest is text as in YAML."""
    fields = {key: value for key, value in flatten(config.model_dump(mode="json")) if key not in _PLACES}
    return {key: as_value(value) for key, value in fields.items()}


def as_value(value: object) -> Value:
    """``value`` in the types of the tab."""
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else json.dumps(value)


def with_types_of(fields: Mapping[str, Value], tried: Mapping[str, Iterable[object]]) -> dict[str, Value]:
    """``fields`` with a value that tells the type of those that a search tries: a default of ``null`` is text, and what
    is tried instead of it may be numbers.

    Args:
        tried: by field, the values; those of ``None`` say nothing. Where any other is no number, the column is text.
    """
    found = dict(fields)
    for name, values in tried.items():
        if known := [as_value(value) for value in values if value is not None]:
            found[name] = next((value for value in known if isinstance(value, str)), known[0])
    return found


def experiment_columns(fields: Mapping[str, Value], shown: Collection[str], metrics: Iterable[str]) -> Summary:
    """Columns of the table.

    Every field is a column, empty where a run has a default: a field that only another run sets must not be hidden.

    Args:
        fields: by name, with a value that tells the type.
        shown: names of those that matter. Of many columns TensorBoard opens the first five: those that are said to
            differ, then by name.
        metrics: names of validation metrics, the important ones first.
    """
    experiment = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=key, type=_type_of(value), differs=key in shown) for key, value in fields.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"validation/{name}"), display_name=name) for name in metrics
        ],
    )
    return Summary(value=[_value(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))])


def session_line(fields: Mapping[str, Value], failed: bool = False) -> Summary:
    """The line of a run that has ended."""
    start = SessionStartInfo(start_time_secs=time.time())
    for key, value in fields.items():
        setattr(start.hparams[key], "string_value" if isinstance(value, str) else "number_value", value)
    status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
    end = SessionEndInfo(status=status, end_time_secs=time.time())
    return Summary(
        value=[
            _value(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
            _value(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
        ]
    )


def _type_of(value: Value) -> int:
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64


def _value(tag: str, data: HParamsPluginData) -> Summary.Value:
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
