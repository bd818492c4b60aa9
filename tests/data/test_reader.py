"""One unit at one position -> one row: what it shows, what it says, and that it is the same wherever it is read."""

import numpy as np
import pytest

from deepcoro.data.masking import STRATEGIES, Masking
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.reports.vocabulary import SEGMENTS


@pytest.fixture(scope="module")
def read(dataset_folder, report_tokenizer, tiny_config):
    """``read(*assignments, training, split)`` -> a function from positions and video (or study) names to a Batch."""

    def build(*assignments, training=False, split="train", tokenizer=report_tokenizer):
        config = tiny_config(*assignments)
        units = PreparedDataset.open(dataset_folder).units(split, config.data.unit)
        name = "study_id" if config.data.unit == "study" else "video_id"
        place = {units.video_rows(u)[0][name]: u for u in range(len(units))}
        reader = UnitReader(config, units, tokenizer, training)

        def rows(names, positions=None):
            indices = np.array([place[n] for n in names])
            return reader.read(np.arange(len(names)) if positions is None else np.array(positions), indices)

        return rows

    return build


def test_shapes_and_types_are_those_of_the_batch(read, tiny_config):
    batch = read()(["v0", "v2", "v3"])
    assert {
        key: (value.shape, str(value.dtype))
        for key, value in batch.items()
        if value.dtype.kind != "U" and key != "input_ids"
    } == {
        "clip": ((3, 1, 4, 24, 24), "uint8"),
        "valid": ((3, 1), "bool"),
        "angles": ((3, 1, 2), "float32"),
        "view_index": ((3, 1), "int64"),
        "mask_order": ((3, 1, tiny_config().num_tokens), "uint16"),
        "text_length": ((3,), "int32"),
        "prefix_length": ((3,), "int32"),
        "task": ((3,), "int8"),
        "has_report": ((3,), "bool"),
        "report_key": ((3,), "int64"),
        "study_key": ((3,), "int64"),
        "boxes": ((3, 1, 8, 5), "float32"),
        "position": ((3,), "int64"),
        "num_lost": ((3,), "int64"),
        "num_cut": ((3,), "int64"),
    }
    assert batch["unit_id"].tolist() == ["v0", "v2", "v3"]


def test_the_clip_shows_the_frames_of_the_middle(read):
    # 24 frames at 15 a second, 4 at 7.5: 1.533 - 0.4 s are left over, half of it is 8.5 frames. Frame t has level
    # 20 + 6 t.
    levels = read()(["v0"])["clip"][0, 0].mean(axis=(1, 2))
    assert np.abs(levels - (20 + 6 * np.array([8, 10, 12, 14]))).max() <= 2


def test_evaluation_is_the_same_at_any_position_but_for_the_mask(read):
    one, two = read()(["v0", "v5"], [0, 1]), read()(["v5", "v0"], [7, 8])
    assert np.array_equal(one["clip"], two["clip"][::-1])
    assert np.array_equal(one["report_key"], two["report_key"][::-1])


def test_evaluation_repeats_itself_exactly(read):
    one, two = read()(["v0", "v2", "v6"]), read()(["v0", "v2", "v6"])
    other_run = read("seed=7")(["v0", "v2", "v6"])  # of another seed: the same clips and masks, to be compared
    for key in one:
        assert np.array_equal(one[key], two[key], equal_nan=one[key].dtype.kind == "f")
        assert np.array_equal(one[key], other_run[key], equal_nan=one[key].dtype.kind == "f")


def test_a_position_gives_the_same_row_in_any_company(read):
    together = read(training=True)(["v0", "v1", "v2", "v3"], [10, 11, 12, 13])
    alone = read(training=True)(["v2"], [12])
    for key in ("clip", "mask_order", "angles", "boxes", "report_key"):
        assert np.array_equal(together[key][2], alone[key][0], equal_nan=True)
    elsewhere = read(training=True)(["v2"], [13])
    assert not np.array_equal(elsewhere["clip"], alone["clip"])
    assert not np.array_equal(elsewhere["mask_order"], alone["mask_order"])
    assert not np.array_equal(read("seed=1", training=True)(["v2"], [12])["clip"], alone["clip"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_gives_a_position_its_mask_in_any_company(read, strategy):
    chosen = (f"masked_modeling.strategy={strategy}", "masked_modeling.mask_ratio=0.5")
    together = read(*chosen, training=True)(["v0", "v1", "v2"], [10, 11, 12])["mask_order"]
    alone = read(*chosen, training=True)(["v2"], [12])["mask_order"]
    assert np.array_equal(together[2], alone[0])
    assert np.array_equal(np.sort(together, axis=-1), np.broadcast_to(np.arange(18, dtype=np.uint16), (3, 1, 18)))


def test_the_motion_strategy_looks_at_the_clip_of_the_row(read, monkeypatch):
    seen = []
    order = Masking.order
    monkeypatch.setattr(Masking, "order", lambda self, rng, clip: seen.append(clip) or order(self, rng, clip))
    batch = read("masked_modeling.strategy=motion", "data.unit=study", "data.num_videos=2")(["s0"])
    assert len(seen) == 2 and np.array_equal(np.stack(seen), batch["clip"][0])


def test_a_clip_is_told_what_is_in_view(read, report_tokenizer):
    batch = read()(["v0", "v1"])
    left, right = (report_tokenizer.decode(ids) for ids in batch["input_ids"])
    assert "80% stenosis" in left
    assert "RCA" not in left
    assert "occlusion" in right
    assert "LAD" not in right


def test_equal_texts_have_equal_keys(read):
    key = read()(["v0", "v4", "v1", "v5", "v2"])["report_key"]
    assert key[0] == key[1] != key[2] == key[3]
    assert len(set(key.tolist())) == 3


SEVERE = "contrastive.severity_weight=0.5"


def test_a_row_has_the_severity_of_what_its_text_is_about(read):
    # Cines of s0: 80% in the left tree, an occlusion in the right. v2 has a report without findings, v3 neither.
    batch = read(SEVERE)(["v0", "v1", "v2", "v3"])
    assert batch["severity"].tolist() == [80, 100, 0, 0]
    assert batch["severity"].dtype == np.float32
    assert "clip_severity" not in batch
    studies = read(SEVERE, "data.unit=study", "data.num_videos=2")(["s0", "s1", "s2"])
    assert studies["severity"].tolist() == [100, 0, 0]
    assert "clip_severity" not in studies


def test_a_clip_of_a_study_has_the_severity_of_its_tree(read):
    levels = ("data.unit=study", "data.num_videos=2", "contrastive.level=clip")
    batch = read(SEVERE, *levels)(["s0", "s1", "s2"])
    assert batch["view_index"][0].tolist() == [0, 1]  # v1, of the right tree, was made first
    assert batch["clip_severity"].tolist() == [[100, 80], [0, 0], [0, 0]]
    assert batch["clip_severity"].dtype == np.float32
    assert batch["severity"].tolist() == [100, 0, 0]


def test_without_a_weight_of_severity_no_row_has_one(read):
    for levels in ((), ("data.unit=study",), ("data.unit=study", "contrastive.level=clip")):
        assert not [name for name in read(*levels)([("s0" if levels else "v0")]) if "severity" in name]


def test_no_text_keeps_its_place_without_report(read):
    batch = read()(["v0", "v3", "v2"])
    assert batch["has_report"].tolist() == [True, False, True]
    assert batch["valid"].all()
    assert batch["text_length"][1] == 2


def test_an_undecodable_video_keeps_its_place_and_counts_for_nothing(read):
    batch = read()(["v0", "v6", "v2"])
    assert batch["unit_id"].tolist() == ["v0", "v6", "v2"]
    assert batch["valid"][:, 0].tolist() == [True, False, True]
    assert batch["has_report"].tolist() == [True, False, True]
    assert (batch["clip"][1] == 0).all()
    assert np.array_equal(np.sort(batch["mask_order"][1, 0]), np.arange(18))
    assert "v6.avi" in batch["problem"][1]
    assert batch["problem"][[0, 2]].tolist() == ["", ""] and batch["num_lost"].tolist() == [0, 1, 0]


def test_text_is_padded_to_the_batch(read):
    short, both = read()(["v2"]), read()(["v2", "v0"])
    assert short["input_ids"].shape[1] == short["text_length"][0]
    assert both["input_ids"].shape[1] == both["text_length"].max() > short["input_ids"].shape[1]


def test_a_study_gives_its_views_and_whole_report(read, report_tokenizer):
    study = ("data.unit=study", "data.num_videos=3")
    batch = read(*study)(["s0", "s1", "s4"])
    assert batch["valid"].tolist() == [[True, True], [True, False], [False, False]]
    assert batch["has_report"].tolist() == [True, True, False]
    assert batch["unit_id"].tolist() == ["s0", "s1", "s4"]
    text = report_tokenizer.decode(batch["input_ids"][0])
    assert "80% stenosis" in text
    assert "occlusion" in text
    assert batch["angles"][0, 1, 0] == -20.0  # v0 was made second
    assert np.isnan(batch["angles"][0, 0]).all()


def test_views_of_a_study_have_masks_of_their_own(read):
    order = read("data.unit=study", "data.num_videos=2")(["s0"])["mask_order"][0]
    assert not np.array_equal(order[0], order[1])


def test_without_a_tokenizer_rows_carry_no_tokens(read):
    batch = read(tokenizer=None)(["v0"])
    assert "input_ids" not in batch
    assert batch["has_report"].tolist() == [True]


def test_boxes_lie_on_the_frames_of_the_clip(make_dataset, tmp_path, tiny_config):
    corners = {"x0": 0.25, "y0": 0.25, "x1": 0.5, "y1": 0.75}
    boxes = [{"segment": "d1", "frame": frame, **corners} for frame in (10, 11, 14)]
    folder = make_dataset(tmp_path, [{"study_id": "a"}], [{"study_id": "a", "boxes": boxes}])
    reader = UnitReader(tiny_config(), PreparedDataset.open(folder).units("train"), None, training=False)
    found = reader.read(np.array([0]), np.array([0]))["boxes"][0, 0]  # the clip has frames 8, 10, 12, 14
    assert np.allclose(found[:2], [[1, 0.25, 0.25, 0.5, 0.75], [3, 0.25, 0.25, 0.5, 0.75]])
    assert np.isnan(found[2:]).all()


def test_where_lesions_are_is_read_where_grounding_learns_it(make_dataset, tmp_path, tiny_config):
    corners = {"x0": 0.3, "y0": 0.3, "x1": 0.45, "y1": 0.45}
    shown = [{"segment": "d1", "frame": frame, **corners} for frame in range(24)]
    videos = [
        {"study_id": "a", "boxes": boxes, "coronary_tree": tree}
        for boxes, tree in ((shown, "left"), ([], "right"), (None, None))
    ]
    findings = [{"segment": "d1", "stenosis": 60, "occlusion": "none"}]
    folder = make_dataset(tmp_path, [{"study_id": "a", "findings": findings}], videos)
    units = PreparedDataset.open(folder).units("train")
    still = ("data.crop_scale=[1,1]", "data.frame_size=32")
    config = tiny_config("loss.weights.grounding=1", "grounding.cells_per_token=1", *still)
    assert config.grid == (2, 4, 4)
    batch = UnitReader(config, units, None, training=True).read(np.arange(3), np.arange(3))
    assert batch["tree"].tolist() == [[0], [1], [-1]]
    assert batch["lesions_known"].reshape(3, -1).mean(axis=1).tolist() == [1, 1, 0]
    wanted = np.zeros((2, 4, 4), np.int32)
    wanted[:, 1, 1] = 1 << SEGMENTS.index("d1")  # the middle, 0.375 of 4 tokens
    assert (batch["segments_at"][:, 0] == [wanted.ravel(), *2 * [np.zeros(32)]]).all()
    assert (batch["stenosis_at"] == np.where(batch["segments_at"] > 0, 60, -1)).all()
    assert (np.isfinite(batch["edges_at"]) == (batch["segments_at"] > 0)[..., None]).all()
    assert batch["edges_at"][0, 0, 5].tolist() == pytest.approx([1.2, 1.2, 1.8, 1.8])
    without = UnitReader(tiny_config(*still), units, None, training=True).read(*2 * [np.arange(1)])
    assert not {"segments_at", "lesions_known", "stenosis_at", "edges_at", "tree"} & without.keys()


def test_a_uri_with_a_scheme_and_an_absolute_path_are_read(make_dataset, tmp_path, tiny_config):
    make_dataset(tmp_path, [{"study_id": "a"}], [{"study_id": "a"}])
    for uri in (f"file://{tmp_path}/videos/v0.avi", f"{tmp_path}/videos/v0.avi"):
        folder = make_dataset(tmp_path / "x", [{"study_id": "a"}], [{"study_id": "a"}])
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(f"{folder}/videos.parquet")
        place = table.schema.get_field_index("uri")
        pq.write_table(table.set_column(place, table.schema.field(place), pa.array([uri])), f"{folder}/videos.parquet")
        reader = UnitReader(tiny_config(), PreparedDataset.open(folder).units("train"), None, training=False)
        assert reader.read(np.array([0]), np.array([0]))["valid"].all()


def test_a_dataset_at_a_uri_reads_as_the_folder_does(dataset_folder, tiny_config, report_tokenizer):
    batches = []
    for path in (dataset_folder, f"file://{dataset_folder}"):
        units = PreparedDataset.open(path).units("train")
        batches.append(UnitReader(tiny_config(), units, report_tokenizer, False).read(np.array([0]), np.array([0])))
    assert batches[0]["valid"].all()
    assert np.array_equal(batches[0]["clip"], batches[1]["clip"])
