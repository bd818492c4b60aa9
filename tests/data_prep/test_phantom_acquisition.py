"""Cines of the rich phantoms: views, rates, dose, motion, distractors; and the archive that they make."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from click.testing import CliRunner

from data_prep.phantom.acquisition import draw_distractors, draw_views, take_rich_cines
from data_prep.phantom.cines import take_cines
from data_prep.phantom.cli import phantom
from data_prep.phantom.contrast import Bolus
from data_prep.phantom.detector import Detector
from data_prep.phantom.generate import write_phantom
from data_prep.phantom.heart import draw_heart
from data_prep.phantom.preset import preset_named, with_views
from data_prep.phantom.projection import view_angles
from data_prep.phantom.study import draw_patient
from data_prep.phantom.thorax import Thorax
from deepcoro.data.schema import BOX_TYPE
from deepcoro.errors import UserError
from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import segments_of_tree

STANDARD, HARD = preset_named("standard"), preset_named("hard")
DETECTOR = Detector(gamma=0.7, white=99.0, scatter=0.2, blur=0.3, sharpen=0.0, round_field=True)
QUIET = replace(
    STANDARD.realism, panning_share=0.0, weak_injection_share=0.0, reflux_share=0.0, sternal_wires_share=0.0,
    pacing_wire_share=0.0, ecg_leads_share=0.0, breath_share=0.0, num_views=(2, 2), frame_rates={15.0: 1.0},
)  # fmt: skip


def with_knobs(**knobs):
    return replace(STANDARD, lesion_share=0.0, realism=replace(QUIET, **knobs))


def cines(preset, size=64, seconds=1.0, index=0):
    return list(take_cines(draw_patient(4, index, preset), 4, preset, size, round(15 * seconds), 15.0))


def test_views_are_different_standard_ones_of_both_trees():
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(300):
        views = draw_views(STANDARD, STANDARD.realism, rng)
        assert len(set(views)) == len(views)
        assert {side for side, _ in views} == {"left", "right"}
        assert [side for side, _ in views] == sorted(side for side, _ in views)  # the left tree first
        assert all(view in STANDARD.views[side] for side, view in views)
        counts.add(len(views))
    assert counts == {2, 3, 4, 5, 6, 7, 8}


@pytest.mark.parametrize("rate", [7.5, 15.0, 30.0])
def test_a_cine_lasts_equally_long_at_every_frame_rate(rate):
    for cine in cines(with_knobs(frame_rates={rate: 1.0}), size=32, seconds=2.0):
        assert cine.fps == rate
        assert len(cine.frames) == 2 * rate


def test_the_same_patient_gives_the_same_cines_and_another_another():
    one, again, other = cines(HARD, 48, index=1), cines(HARD, 48, index=1), cines(HARD, 48, index=2)
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
    assert not np.array_equal(one[0].frames[:4], other[0].frames[:4])


def test_noise_falls_with_the_square_root_of_the_dose():
    flat, path, opening = (
        np.zeros((96, 96), np.float32),
        np.full((2, 96, 96), 4.0, np.float32),
        np.ones((96, 96), np.float32),
    )

    def spread(photons):
        # A tenth of the picture is bright, so that the rest is far from the white end of the display.
        ground = flat.copy()
        ground[:, 10:] = 1.0
        frames = DETECTOR.expose(lambda t: ground, path, opening, 0.1, photons, 0.5, np.random.default_rng(0))
        return frames[:, 20:80, 40:].astype(float).std()

    assert spread(400.0) / spread(6400.0) == pytest.approx(4, rel=0.15)


def test_expected_grey_without_noise():
    """A flat chest: primary and scatter behind 4 mm of contrast, relative to the same without, through the curve."""
    ground, opening = np.zeros((32, 32), np.float32), np.ones((32, 32), np.float32)
    path = np.stack([np.zeros((32, 32)), np.full((32, 32), 4.0)]).astype(np.float32)
    frames = DETECTOR.expose(lambda t: ground, path, opening, 0.25, 1000.0, 0.5, None)
    assert np.all(frames[0] == 255)
    np.testing.assert_allclose(frames[1], 255 * (0.8 * np.exp(-1.0) + 0.2) ** 0.7, atol=1.5)


def test_the_table_moves_all_of_the_chest_and_a_breath_the_diaphragm():
    rng = np.random.default_rng(0)
    thorax = Thorax(rng.random((30, 30)), rng.random((30, 30)), margin=5)
    ground = thorax.moved(np.array([0, 3]), np.array([0, -2]), np.array([0, 0]))
    np.testing.assert_array_equal(ground(1)[:-2, 3:], ground(0)[2:, :-3])
    breathing = thorax.moved(np.zeros(2, int), np.zeros(2, int), np.array([0, 4]))
    np.testing.assert_allclose(breathing(1) - thorax.still[5:25, 5:25], thorax.diaphragm[9:29, 5:25])


def test_panning_moves_boxes_and_picture_together():
    still = replace(with_knobs(), lesion_share=1.0, motion_scale=0.0)
    panned = replace(still, realism=replace(still.realism, panning_share=1.0, panning=(25.0, 25.0)))
    patient = draw_patient(4, 1, still)
    assert patient.findings
    moved = 0.0
    for preset, most in ((still, 1e-6), (panned, 1.0)):
        ways = []
        for cine in take_cines(patient, 4, preset, 64, 30, 15.0):
            for segment in {box["segment"] for box in cine.boxes}:
                places = [
                    box["x0"] + box["x1"] + box["y0"] + box["y1"] for box in cine.boxes if box["segment"] == segment
                ]
                ways.append(np.ptp(places))
        assert max(ways) <= most
        moved = max(ways)
    assert moved > 0.05


def test_distractors_come_as_often_as_the_preset_says_and_only_the_pacing_wire_follows_the_heart():
    rng = np.random.default_rng(0)
    heart = draw_heart(rng, STANDARD)
    drawn = [draw_distractors(heart, HARD.realism, rng) for _ in range(150)]
    on_chest = [bool(len(chest.points)) for chest, _ in drawn]
    in_heart = [bool(len(inner.points)) for _, inner in drawn]
    assert np.mean(on_chest) == pytest.approx(1 - 0.7 * 0.5, abs=0.12)
    assert np.mean(in_heart) == pytest.approx(0.25, abs=0.11)
    assert max(chest.follow.max(initial=0) for chest, _ in drawn) == 0
    wire = next(inner for _, inner in drawn if len(inner.points))
    assert wire.follow.min() < 0.01  # it is held where it comes in
    assert wire.follow.max() == 1  # and fixed at its tip
    tip = wire.points[wire.follow == 1][0]
    assert heart.to_place(tip)[0] > 0.2


@pytest.mark.parametrize("knob", ["sternal_wires_share", "ecg_leads_share", "pacing_wire_share"])
def test_distractors_are_in_the_picture_before_contrast(knob):
    plain, with_thing = (
        cines(with_knobs(**{knob: share}), 128, 0.3)[1].frames[0].astype(float) for share in (0.0, 1.0)
    )
    darker = plain - with_thing
    assert (darker > 15).sum() > 30


def test_a_weak_injection_is_dilute_and_comes_in_beats():
    times = np.arange(0, 4, 0.02)
    good = Bolus(0.0, 10.0, 100.0).concentration(np.zeros(1), times)[50:, 0]
    weak = Bolus(0.0, 10.0, 100.0, peak=0.5, pulse=0.4, heart_rate=60).concentration(np.zeros(1), times)[50:, 0]
    assert good.min() > 0.99
    assert weak.max() == pytest.approx(0.5, rel=0.02)
    assert weak.min() == pytest.approx(0.5 * 0.6, rel=0.02)
    assert np.ptp(times[50:][np.flatnonzero(weak > 0.498)]) > 0.9  # the peak returns with the next beat


def test_contrast_darkens_the_picture_and_nothing_is_drawn_behind_the_blades():
    for cine in cines(with_knobs(), 96, 2.0):
        frames = cine.frames.astype(float)
        assert frames[20].mean() < frames[0].mean() - 1
        assert frames[:, 0, 0].max() == 0
        assert 40 < frames[:, 24:72, 24:72].mean() < 230


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rich") / "archive"
    preset = with_views(STANDARD, (2, 3))
    return folder, write_phantom(folder, 5, 3, preset, size=48, num_frames=12, masks=True)


def test_the_tables_of_a_rich_archive_are_true(archive):
    folder, summary = archive
    reports = {row["study_id"]: row for row in pq.read_table(folder / "reports.parquet").to_pylist()}
    table = pq.read_table(folder / "videos.parquet")
    assert table.schema.field("boxes").type.value_type == BOX_TYPE
    videos = {row["sop_instance_uid"]: row for row in table.to_pylist()}
    views = {side: [view_angles(view) for view in STANDARD.views[side]] for side in ("left", "right")}
    frames = 0
    files = sorted((folder / "dicom").rglob("*.dcm"))
    assert len(files) == summary.num_videos == len(videos)
    assert 10 <= len(files) <= 15
    for path in files:
        data = pydicom.dcmread(path)
        row, report = videos[data.SOPInstanceUID], reports[data.StudyInstanceUID]
        angles = np.array([data.PositionerPrimaryAngle, data.PositionerSecondaryAngle], dtype=float)
        assert min(np.abs(angles - view).max() for view in views[row["coronary_tree"]]) < 5 * STANDARD.angle_jitter
        rate = 1000 / float(data.FrameTime)
        assert min(abs(rate - known) for known in (7.5, 15, 30)) < 0.01
        assert data.NumberOfFrames == round(12 / 15 * rate)
        frames += data.NumberOfFrames
        found = {finding["segment"] for finding in report["findings"]}
        in_tree = set(segments_of_tree(row["coronary_tree"], report["dominance"]))
        for box in row["boxes"]:
            assert box["segment"] in found & in_tree
            assert 0 <= box["frame"] < data.NumberOfFrames
            assert 0 <= box["x0"] < box["x1"] <= 1
            assert 0 <= box["y0"] < box["y1"] <= 1
        mask = np.load(folder / "masks" / f"{data.SOPInstanceUID}.npz")["mask"]
        assert mask.shape == (data.NumberOfFrames, 48, 48)
    assert frames == summary.num_frames
    for report in reports.values():
        for finding in report["findings"]:
            Finding.from_dict(finding)  # raises if it is not valid
        assert report["report"]


def test_the_number_of_processes_and_of_studies_changes_nothing(archive, tmp_path):
    write_phantom(tmp_path, 2, 3, with_views(STANDARD, (2, 3)), size=48, num_frames=12, masks=True, num_processes=2)
    files = sorted((tmp_path / "dicom").rglob("*.dcm"))
    assert len(files) >= 4
    for path in files:
        assert (archive[0] / path.relative_to(tmp_path)).read_bytes() == path.read_bytes()
    for name in ("reports.parquet", "videos.parquet"):
        columns = [c for c in pq.read_table(tmp_path / name).column_names if c != "split"]
        made, whole = (pq.read_table(folder / name).select(columns) for folder in (tmp_path, archive[0]))
        assert made.equals(whole.slice(0, len(made)))


def test_masks_are_not_added_to_an_archive_without_them(tmp_path):
    plain = {"num_studies": 1, "size": 32, "num_frames": 2}
    write_phantom(tmp_path, **plain)
    assert not (tmp_path / "masks").exists()
    with pytest.raises(UserError, match="masks"):
        write_phantom(tmp_path, **plain, masks=True)


def test_command_with_views_and_masks(tmp_path):
    arguments = ["--output", str(tmp_path / "x"), "--num-studies", "1", "--size", "32", "--num-frames", "4"]
    result = CliRunner().invoke(phantom, [*arguments, "--preset", "hard", "--views", "2", "2", "--masks"])
    assert result.exit_code == 0, result.output
    assert "2 cines" in result.output
    assert len(list((tmp_path / "x" / "masks").glob("*.npz"))) == 2


@pytest.mark.parametrize(
    ("preset", "views"), [("easy", (2, 3)), ("standard", (1, 3)), ("hard", (4, 3)), ("hard", (2, 10))]
)
def test_views_out_of_range_are_refused(preset, views):
    with pytest.raises(UserError, match="views"):
        with_views(preset_named(preset), views)


def test_rich_cines_need_no_lesions():
    preset = with_knobs()
    patient = draw_patient(0, 0, preset)
    assert patient.findings == []
    taken = list(take_rich_cines(patient, 0, preset, preset.realism, 32, 0.4, masks=False))
    assert all(cine.boxes == [] for cine in taken)


@pytest.mark.parametrize(
    "wrong",
    [
        {"breath_share": 1.2},
        {"percent": (40, 100)},
        {"percent": (90, 40)},
        {"twigs": 9.0},
        {"kinds": {"aneurysm": 1.0}},
        {"kinds": {"focal": 0.0}},
        {"dominance": {"middle": 1.0}},
        {"frame_rates": {}},
    ],
)
def test_knobs_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        replace(STANDARD.realism, **wrong)
