"""Large tables: mapped from this machine's temporary directory, made once, never stale, never half."""

import errno
import os
import pickle
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from deepcoro.data import table_files
from deepcoro.data.schema import STUDIES_SCHEMA, VIDEOS_SCHEMA
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError

NUMBER = 50


@pytest.fixture(autouse=True)
def shelf(tmp_path, monkeypatch):
    """Every table is large here; the folder that mapped ones are kept in."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(table_files, "_IN_MEMORY_BYTES", -1)
    table_files.reopen.cache_clear()
    return tmp_path / "tmp" / f"deepcoro-tables-{os.getuid()}"


def write(table, file):
    pq.write_table(table, file, row_group_size=16, compression="none")


@pytest.fixture
def folder(tmp_path):
    """Fifty studies of one video each, in several row groups."""
    place = tmp_path / "prepared"
    place.mkdir()
    study = {"split": "train"}
    video = {"uri": "x.avi", "num_frames": 9, "height": 8, "width": 8, "fps": 15.0, "partial": False}
    studies = [study | {"study_id": f"s{i:02d}", "patient_id": f"p{i:02d}"} for i in range(NUMBER)]
    videos = [video | {"study_id": f"s{i:02d}", "video_id": f"v{i:02d}"} for i in range(NUMBER)]
    for name, rows, schema in (("studies", studies, STUDIES_SCHEMA), ("videos", videos, VIDEOS_SCHEMA)):
        write(pa.Table.from_pylist(rows, schema=schema), place / f"{name}.parquet")
    (place / "dataset.json").write_text("{}")
    return place


def kept(shelf):
    return sorted(place for place in shelf.iterdir() if place.is_dir())


def reorder(folder, first, second):
    """Swap two rows: another content in a file of the same size, with the same extremes in every row group."""
    table, order = pq.read_table(folder / "videos.parquet"), np.arange(NUMBER)
    order[[first, second]] = order[[second, first]]
    write(table.take(order), folder / "videos.parquet")


def test_tables_are_those_of_the_parquet_files(folder):
    opened = PreparedDataset.open(str(folder))
    assert opened.studies.equals(pq.read_table(folder / "studies.parquet"))
    assert opened.videos.equals(pq.read_table(folder / "videos.parquet"))
    assert opened.tables.study_of_video.tolist() == list(range(NUMBER))


def test_nothing_is_held_in_memory(folder):
    before = pa.total_allocated_bytes()
    opened = PreparedDataset.open(str(folder))
    assert pa.total_allocated_bytes() == before
    assert opened.videos.nbytes > 1000


def test_tables_are_written_once_and_for_their_owner_alone(folder, shelf):
    PreparedDataset.open(str(folder))
    [place] = kept(shelf)
    assert shelf.stat().st_mode & 0o777 == 0o700
    written = {file.name: file.stat().st_mtime_ns for file in place.iterdir()}
    assert set(written) == {"studies.arrow", "videos.arrow", "study_of_video.npy"}
    PreparedDataset.open(f"{folder}/../prepared")
    assert kept(shelf) == [place]
    assert {file.name: file.stat().st_mtime_ns for file in place.iterdir()} == written


def test_an_address_keeps_its_links(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    units = PreparedDataset.open(f"{tmp_path}/link").units("train")
    assert units.tables.source[0] == f"{tmp_path}/link"
    assert pickle.loads(pickle.dumps(units)).video_rows(0) == units.video_rows(0)


def test_a_rewritten_file_is_noticed_though_its_size_and_footer_are_the_same(folder):
    reorder(folder, 0, 0)  # as it was, but written by the same means
    size = (folder / "videos.parquet").stat().st_size
    first = PreparedDataset.open(str(folder))
    reorder(folder, 3, 4)
    assert (folder / "videos.parquet").stat().st_size == size
    second = PreparedDataset.open(str(folder))
    assert second.tables.source == first.tables.source  # neither size nor footer tell them apart
    assert second.videos["video_id"].to_pylist()[3:5] == ["v04", "v03"]
    assert first.videos["video_id"].to_pylist()[3:5] == ["v03", "v04"]  # who has it open, keeps it


def test_units_travel_as_an_address(folder):
    units = PreparedDataset.open(str(folder)).units("train")
    buffers = []
    inside = pickle.dumps(units, protocol=5, buffer_callback=buffers.append)
    assert b"v00" not in inside
    assert sum(buffer.raw().nbytes for buffer in buffers) == 4 * NUMBER
    assert pickle.loads(inside, buffers=buffers).tables is pickle.loads(inside, buffers=buffers).tables


def test_another_process_without_the_mapped_files_makes_its_own(folder, tmp_path):
    # As on another machine, whose temporary directory is another.
    units = PreparedDataset.open(str(folder)).units("train")
    (tmp_path / "units").write_bytes(pickle.dumps(units))
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import pickle, sys; from deepcoro.data import table_files; table_files._IN_MEMORY_BYTES = -1\n"
        "units = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(*[units.video_rows(u)[0]['video_id'] for u in range(len(units))])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "units")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(tmp_path / "elsewhere")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [f"v{i:02d}" for i in range(NUMBER)]
    assert len(kept(tmp_path / "elsewhere" / f"deepcoro-tables-{os.getuid()}")) == 1


def test_units_of_a_dataset_that_has_changed_are_refused(folder):
    units = pickle.dumps(PreparedDataset.open(str(folder)).units("train"))
    table = pq.read_table(folder / "videos.parquet")
    pq.write_table(table.slice(0, NUMBER - 1), folder / "videos.parquet")
    with pytest.raises(DataError, match="other tables than those this run was started with"):
        pickle.loads(units)


def test_many_may_open_at_the_same_time(folder, shelf):
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(PreparedDataset.open, [str(folder)] * 16))
    assert len(kept(shelf)) == 1
    assert all(one.videos.equals(opened[0].videos) for one in opened)


def test_what_a_killed_writer_left_is_cleared_away(folder, shelf):
    (shelf / "0123.partial").mkdir(parents=True)
    (shelf / "0123.partial" / "videos.arrow").write_bytes(b"half")
    PreparedDataset.open(str(folder))
    assert len(kept(shelf)) == 1
    assert not list(shelf.glob("*.partial"))


@pytest.mark.parametrize("name", ["studies.arrow", "videos.arrow", "study_of_video.npy"])
def test_a_file_that_a_cleaner_took_is_made_again(folder, shelf, name):
    expected = PreparedDataset.open(str(folder)).videos
    [place] = kept(shelf)
    (place / name).unlink()
    opened = PreparedDataset.open(str(folder))
    assert opened.videos.equals(expected)
    assert (place / name).exists()


def test_unsound_tables_are_not_kept(folder, shelf):
    table = pq.read_table(folder / "videos.parquet")
    lost = pc.replace_with_mask(
        table["study_id"].combine_chunks(), pc.equal(table["video_id"], "v07").combine_chunks(), "nobody"
    )
    pq.write_table(table.set_column(1, table.schema.field(1), lost), folder / "videos.parquet")
    for _ in range(2):
        with pytest.raises(DataError, match="1 videos name a study_id"):
            PreparedDataset.open(str(folder))
        assert kept(shelf) == []


def test_a_full_disk_is_told(folder, shelf, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(table_files, "_write_file", no_room)
    with pytest.raises(DataError, match=r"No space left on device.*TMPDIR"):
        PreparedDataset.open(str(folder))
    assert kept(shelf) == []


def test_the_longest_unused_tables_go_first(folder, shelf):
    first = PreparedDataset.open(str(folder))
    [place] = kept(shelf)
    for number in range(1, 6):
        other = folder.with_name(f"other{number}")
        other.mkdir()
        for file in folder.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        PreparedDataset.open(str(other))
        if number < 4:
            PreparedDataset.open(str(folder))  # in use again
            os.utime(place, ns=(2**62 + number, 2**62 + number))
    assert len(kept(shelf)) == 4
    assert place in kept(shelf)
    assert first.units("train").video_rows(49)[0]["video_id"] == "v49"
