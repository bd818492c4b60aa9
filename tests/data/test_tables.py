"""Prepared tables -> units: what is refused, what a filter keeps, how studies are grouped."""

import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepcoro.data import table_files, tables
from deepcoro.data.schema import STUDIES_SCHEMA, VIDEOS_SCHEMA, check_columns
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError


@pytest.fixture(scope="module", autouse=True, params=["held", "mapped"])
def place(request, tmp_path_factory):
    """All tests of this file run on tables in memory, and on tables that are mapped: nobody may see a difference."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "mapped":
            patch.setattr(table_files, "_IN_MEMORY_BYTES", -1)
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("shelf")))
        yield request.param


@pytest.fixture(scope="module")
def dataset(dataset_folder, place):
    opened = PreparedDataset.open(dataset_folder)
    assert (opened.tables.source is not None) == (place == "mapped")
    return opened


@pytest.fixture
def small(make_dataset, tmp_path):
    """A dataset whose tables a test may spoil: ``small(table, change)`` rewrites one and opens the dataset."""
    studies = [{"study_id": "a"}, {"study_id": "b", "split": "val"}]
    folder = Path(make_dataset(tmp_path, studies, [{"study_id": "a"}, {"study_id": "b"}]))

    def spoil(name, change):
        path = folder / f"{name}.parquet"
        pq.write_table(change(pq.read_table(path)), path)
        return PreparedDataset.open(str(folder))

    return spoil


def ids(units):
    return [[video["video_id"] for video in units.video_rows(u)] for u in range(len(units))]


def test_a_video_is_a_unit_with_its_study(dataset):
    units = dataset.units("train", "video")
    assert sorted(v for [v] in ids(units)) == ["v0", "v1", "v2", "v3", "v4", "v5", "v6"]
    for unit, [video] in enumerate(ids(units)):
        study = units.study_row(unit)["study_id"]
        assert study == {"v0": "s0", "v1": "s0", "v2": "s1", "v3": "s2", "v4": "s3", "v5": "s3", "v6": "s4"}[video]
        assert units.column("study_id")[unit] == study
    assert not units.whole_study


def test_a_study_is_a_unit_with_its_videos_in_acquisition_order(dataset):
    units = dataset.units("train", "study")
    assert sorted(ids(units)) == [["v1", "v0"], ["v2"], ["v3"], ["v4", "v5"], ["v6"]]
    assert {tuple(v): units.study_row(u)["study_id"] for u, v in enumerate(ids(units))}["v4", "v5"] == "s3"
    assert sorted(units.column("study_id")) == ["s0", "s1", "s2", "s3", "s4"]
    assert units.column("study_id", np.array([4, 0, 4])).tolist() == units.column("study_id")[[4, 0, 4]].tolist()


def write_tables(folder, studies, videos, **how):
    """Tables without a single cine on disk; rows name what matters."""
    folder.mkdir(parents=True, exist_ok=True)
    study = {"patient_id": "p", "split": "train"}
    video = {"uri": "x.avi", "num_frames": 9, "height": 8, "width": 8, "fps": 15.0, "partial": False}
    for name, rows, usual, schema in (
        ("studies", studies, study, STUDIES_SCHEMA),
        ("videos", videos, video, VIDEOS_SCHEMA),
    ):
        table = pa.Table.from_pylist([usual | row for row in rows], schema=schema)
        pq.write_table(table, folder / f"{name}.parquet", **how)
    (folder / "dataset.json").write_text("{}")
    return str(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    splits=st.lists(st.sampled_from(["train", "val"]), min_size=1, max_size=5),
    cines=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([None, -(2**31), -1, 0, 1, 2**31 - 1])), min_size=1, max_size=12
    ),
    chance=st.randoms(use_true_random=False),
    rows_at_once=st.integers(1, 4),
)
def test_order_of_units_is_study_then_acquisition_then_id(tmp_path, splits, cines, chance, rows_at_once):
    studies = [{"study_id": f"s{i}", "patient_id": f"p{i}", "split": split} for i, split in enumerate(splits)]
    names = [f"v{i:02d}" for i in range(len(cines))]
    chance.shuffle(names)
    videos = [
        {"video_id": name, "study_id": f"s{study % len(splits)}", "acquisition_order": order}
        for name, (study, order) in zip(names, cines)
    ]
    opened = PreparedDataset.open(write_tables(tmp_path / "d", studies, videos, row_group_size=rows_at_once))
    for split in {splits[study % len(splits)] for study, _ in cines}:
        kept = [v for v in videos if splits[int(v["study_id"][1:])] == split]
        kept.sort(key=lambda v: (v["study_id"], v["acquisition_order"] is None, v["acquisition_order"], v["video_id"]))
        assert ids(opened.units(split)) == [[v["video_id"]] for v in kept]
        by_study = opened.units(split, "study")
        assert [v for unit in ids(by_study) for v in unit] == [v["video_id"] for v in kept]
        assert by_study.column("study_id").tolist() == sorted({v["study_id"] for v in kept})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_rows_are_read_across_chunks(sizes, data):
    lists = [
        pa.array([[{"a": 10 * c + i}] * i for i in range(size)], pa.list_(pa.struct([("a", pa.int64())])))
        for c, size in enumerate(sizes)
    ]
    table = pa.table(
        {
            "number": pa.chunked_array(
                [pa.array(range(10 * c, 10 * c + len(x)), pa.int64()) for c, x in enumerate(lists)]
            ),
            "boxes": pa.chunked_array(lists),
        }
    )
    rows = data.draw(st.lists(st.integers(0, max(0, len(table) - 1)), max_size=8 if len(table) else 0))
    expected = table.to_pylist()
    assert table_files.Rows(table).read(np.array(rows, np.int64)) == [expected[row] for row in rows]


def test_splits_and_their_numbers(dataset):
    assert ids(dataset.units("val")) == [["v7"]]
    assert ids(dataset.units("test")) == [["v8"]]
    assert dataset.num_studies() == {"train": 5, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("keep", "wanted"),
    [
        ("acquisition == 'diagnostic'", {"v0", "v2", "v3", "v4", "v5", "v6"}),
        ("coronary_tree == 'left' and acquisition == 'diagnostic'", {"v0", "v3", "v4"}),
        ("lvef > 40", {"v0", "v1"}),  # of the study; unknown is not above 40
        ("lvef < 40 or coronary_tree == 'right'", {"v1", "v2", "v5"}),
        ("not partial", {"v0", "v1", "v2", "v3", "v4", "v5", "v6"}),
        ("study_id in ['s0', 's1']", {"v0", "v1", "v2"}),
        ("coronary_tree.isna()", {"v2", "v6"}),
        ("dominance == 'right' and primary_angle < 0", {"v0"}),
    ],
)
def test_a_filter_keeps_what_fulfils_it(dataset, keep, wanted):
    assert {v for [v] in ids(dataset.units("train", keep=keep))} == wanted


def test_a_filter_may_look_at_other_rows(dataset):
    # Of the training cines v0, v1 have 60, v2 has 30: the mean is 50, whatever is held out.
    assert {v for [v] in ids(dataset.units("train", keep="lvef > lvef.mean()"))} == {"v0", "v1"}


@pytest.mark.parametrize(
    ("keep", "in_pieces"),
    [
        ("coronary_tree == 'left' and not partial", True),
        ("coronary_tree.isna() or acquisition.str.startswith('pc')", True),
        ("study_id in ['s0', 's3'] and acquisition_order > 1", True),
        ("lvef > lvef.mean()", False),
        ("acquisition_order == acquisition_order.max()", False),
        ("lvef.rank() > 1", False),
        ("sqrt(lvef) > 5", False),
    ],
)
def test_a_filter_in_pieces_keeps_what_it_keeps_as_a_whole(dataset, monkeypatch, keep, in_pieces):
    whole = ids(dataset.units("train", keep=keep))
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 2)
    assert (len(list(tables._windows(9, keep))) > 1) == in_pieces
    assert ids(dataset.units("train", keep=keep)) == whole


def test_a_filter_takes_videos_out_of_studies(dataset):
    units = dataset.units("train", "study", "acquisition == 'diagnostic'")
    assert sorted(ids(units)) == [["v0"], ["v2"], ["v3"], ["v4", "v5"], ["v6"]]
    assert [units.study_row(u)["study_id"] for u in range(len(units))] == ["s0", "s1", "s2", "s3", "s4"]


@pytest.mark.parametrize(
    "keep",
    ["acquisitoin == 'pci'", "lvef >", "lvef", "lvef + 1", "1 == 1", "True", "x = 3", "findings == 1", "import os"],
)
def test_an_expression_that_cannot_be_used_is_refused(dataset, keep):
    with pytest.raises(DataError, match=r"data\.filter"):
        dataset.units("train", keep=keep)


def test_a_filter_that_cannot_be_read_names_the_columns(dataset):
    with pytest.raises(DataError, match="acquisitoin.*acquisition.*lvef"):
        dataset.units("train", keep="acquisitoin == 'pci'")


def test_nothing_left_says_the_numbers(dataset):
    with pytest.raises(DataError, match="'train' is empty after data.filter 'lvef > 99'.*5 train, 1 val, 1 test"):
        dataset.units("train", keep="lvef > 99")


def test_an_empty_split_is_refused_with_the_numbers(small):
    opened = small("studies", lambda t: t)
    with pytest.raises(DataError, match="'test' is empty.*1 train, 1 val, 0 test"):
        opened.units("test")


@pytest.mark.parametrize(("table", "column"), [("studies", "patient_id"), ("videos", "num_frames"), ("videos", "uri")])
def test_a_missing_column_is_named(small, table, column):
    with pytest.raises(DataError, match=rf"{table}\.parquet: column '{column}' is missing"):
        small(table, lambda t: t.drop_columns([column]))


def test_an_optional_column_may_be_missing(small):
    opened = small("studies", lambda t: t.drop_columns(["lvef", "findings"]))
    assert opened.studies.schema.equals(STUDIES_SCHEMA)
    assert opened.units("train").study_row(0)["findings"] is None


def test_an_empty_required_value_and_a_wrong_type_are_named(small):
    with pytest.raises(DataError, match=r"studies\.parquet: column 'patient_id' has 2 empty"):
        small("studies", lambda t: t.set_column(1, "patient_id", pa.nulls(2, pa.string())))
    with pytest.raises(DataError, match=r"column 'patient_id'"):
        small("studies", lambda t: t.set_column(1, "patient_id", pa.array([[1], [2]])))


def test_a_wrong_type_is_named():
    table = pa.table({"study_id": ["a"], "patient_id": ["p"], "split": ["train"], "lvef": ["good"]})
    with pytest.raises(DataError, match="here: column 'lvef' is string, expected float"):
        check_columns(table, STUDIES_SCHEMA, "here")


def test_empty_values_are_counted_over_all_row_groups(tmp_path):
    studies = [{"study_id": "a"}, {"study_id": "b"}, {"study_id": "c", "patient_id": None}]
    videos = [{"video_id": "v", "study_id": "a"}]
    schema = pa.schema([field.with_nullable(True) for field in STUDIES_SCHEMA])
    folder = Path(write_tables(tmp_path, [{"study_id": "a"}], videos))
    rows = [{"patient_id": None, "split": "train"} | row for row in studies]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "studies.parquet", row_group_size=1)
    with pytest.raises(DataError, match="column 'patient_id' has 3 empty"):
        PreparedDataset.open(str(folder))


def replace(column, values):
    def change(table):
        place = table.schema.get_field_index(column)
        return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))

    return change


def test_a_patient_in_two_splits_is_refused(small):
    with pytest.raises(DataError, match="patient stands in two splits"):
        small("studies", replace("patient_id", ["p", "p"]))


def test_two_studies_of_a_patient_in_one_split_are_fine(make_dataset, tmp_path):
    studies = [{"study_id": "a", "patient_id": "p"}, {"study_id": "b", "patient_id": "p"}]
    opened = PreparedDataset.open(make_dataset(tmp_path, studies, [{"study_id": "a"}, {"study_id": "b"}]))
    assert len(opened.units("train")) == 2


def test_unknown_splits_double_studies_and_lost_videos_are_refused(small):
    with pytest.raises(DataError, match="unseen"):
        small("studies", replace("split", ["train", "unseen"]))


def test_a_study_that_stands_twice_is_refused(small):
    with pytest.raises(DataError, match="study_id must be unique"):
        small("studies", lambda t: pa.concat_tables([t, t]))


def test_a_video_of_no_study_is_refused(small):
    with pytest.raises(DataError, match="1 videos name a study_id that studies.parquet lacks"):
        small("videos", replace("study_id", ["a", "nobody"]))


@pytest.mark.parametrize("name", ["studies.parquet", "videos.parquet", "dataset.json"])
def test_a_missing_file_is_named(make_dataset, tmp_path, name):
    folder = make_dataset(tmp_path, [{"study_id": "a"}], [{"study_id": "a"}])
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name):
        PreparedDataset.open(folder)


def test_a_file_that_is_no_parquet_and_a_folder_that_is_not_there(make_dataset, tmp_path):
    folder = make_dataset(tmp_path / "d", [{"study_id": "a"}], [{"study_id": "a"}])
    (tmp_path / "d" / "videos.parquet").write_text("nonsense")
    with pytest.raises(DataError, match=r"videos\.parquet is not a Parquet file"):
        PreparedDataset.open(folder)
    with pytest.raises(DataError, match="nowhere"):
        PreparedDataset.open(str(tmp_path / "nowhere"))


def test_a_damaged_card_is_a_data_error(make_dataset, tmp_path):
    folder = make_dataset(tmp_path, [{"study_id": "a"}], [{"study_id": "a"}])
    (tmp_path / "dataset.json").write_text('{"pixel_mean": 1')
    with pytest.raises(DataError, match=r"dataset\.json"):
        PreparedDataset.open(folder)


def test_a_uri_opens_as_a_folder_does(dataset_folder, dataset):
    opened = PreparedDataset.open(f"file://{dataset_folder}")
    assert opened.videos.equals(dataset.videos)
    assert opened.card == dataset.card == json.loads(Path(dataset_folder, "dataset.json").read_text())


def test_many_rows_stay_columns(make_dataset, tmp_path):
    folder = Path(make_dataset(tmp_path, [{"study_id": "a"}], [{"study_id": "a"}]))
    table, number = pq.read_table(folder / "videos.parquet"), 50_000
    many = table.take(np.zeros(number, np.int64))
    place = many.schema.get_field_index("video_id")
    many = many.set_column(place, many.schema.field(place), pa.array([f"v{i}" for i in range(number)]))
    pq.write_table(many, folder / "videos.parquet")
    units = PreparedDataset.open(str(folder)).units("train", "study")
    assert len(units) == 1
    assert len(units.video_rows(0)) == number


def test_units_read_the_same_after_a_journey(dataset):
    units = dataset.units("train", "study", "not partial")
    arrived = pickle.loads(pickle.dumps(units, protocol=5))
    assert [arrived.video_rows(u) for u in range(len(units))] == [units.video_rows(u) for u in range(len(units))]
    assert [arrived.study_row(u) for u in range(len(units))] == [units.study_row(u) for u in range(len(units))]
    assert arrived.has_text().tolist() == units.has_text().tolist()


def test_texts_of_clips_need_a_tree_or_a_report(make_dataset, tmp_path):
    found = [{"segment": "prox_lad", "stenosis": 80, "occlusion": "none"}]
    studies = [
        {"study_id": "s0", "findings": found},
        {"study_id": "s1", "findings": found},
        {"study_id": "s2", "report": "As it stands."},
        {"study_id": "s3"},
    ]
    videos = [
        {"study_id": "s0"},
        {"study_id": "s0", "coronary_tree": "left"},
        *[{"study_id": f"s{number}"} for number in (1, 1, 2, 3)],
    ]
    units = PreparedDataset.open(make_dataset(tmp_path, studies, videos)).units("train", "study")
    assert units.has_text().tolist() == [True, True, True, False]
    assert units.has_text(of_clips=True).tolist() == [True, False, True, False]


def test_a_filter_reads_the_attributes_of_videos_and_of_studies(make_dataset, tmp_path):
    studies = [
        {"study_id": "s0", "attributes": [("site", "north"), ("kind_class", "of the study")]},
        {"study_id": "s1"},
    ]
    videos = [
        {"study_id": "s0", "attributes": [("kind_class", "Left Coronary")]},
        {"study_id": "s0"},
        {"study_id": "s1", "attributes": [("kind_class", "Graft"), ("fps", "not the column")]},
    ]
    dataset = PreparedDataset.open(make_dataset(tmp_path, studies, videos))

    def kept(expression):
        return [v for [v] in ids(dataset.units("train", keep=expression))]

    assert kept("kind_class == 'Left Coronary'") == ["v0"]
    assert kept("kind_class == 'of the study'") == ["v1"]  # of a name in both, the video's goes before
    assert kept("kind_class != 'Graft' and fps > 1") == ["v0", "v1"]  # a column goes before an attribute
    assert kept("site.isna()") == ["v2"]
    with pytest.raises(DataError, match="cannot be read"):
        kept("other_class == 'Graft'")
