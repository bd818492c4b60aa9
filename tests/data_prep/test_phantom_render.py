"""Projection and picture of phantoms, against the geometry of cylinders and the law of Beer and Lambert."""

import numpy as np
import pytest

from data_prep.phantom.cines import take_cines
from data_prep.phantom.contrast import Bolus
from data_prep.phantom.findings import Lesion
from data_prep.phantom.heart import Motion
from data_prep.phantom.lumen import open_lumen
from data_prep.phantom.opacity import contrast_path
from data_prep.phantom.preset import preset_named
from data_prep.phantom.projection import Camera, frame_tree, view_angles
from data_prep.phantom.render import GAMMA, SCATTER, expose, thickness, transmit
from data_prep.phantom.study import draw_patient
from deepcoro.errors import UserError
from deepcoro.reports.grammar import Finding

EASY = preset_named("easy")
STILL = Motion(heart_rate=60, start=0.0, lvef=60, breath=0.0, scale=0.0)
FULL = Bolus(start=-100.0, duration=1000.0, speed=1e6)


def opened(tree, lesions=()):
    return open_lumen(tree, lesions, np.random.default_rng(0))


def cylinder(radius, sine=1.0, spacing=0.5, size=64):
    """Thickness map of a long cylinder along a row; `sine` of its angle to the ray. One pixel is one mm."""
    x = np.arange(-10, size + 10, spacing)[None, :]
    full = np.full_like(x, 1.0)
    return thickness(x, 31.3 * full, radius * full, spacing / sine * full, size)[0]


@pytest.mark.parametrize("radius", [0.3, 1.0, 2.4, 6.0])
@pytest.mark.parametrize("sine", [1.0, 0.5])
def test_a_cylinder_has_its_cross_section(radius, sine):
    across = cylinder(radius, sine)[:, 20:44]
    np.testing.assert_allclose(across.sum(axis=0), np.pi * radius**2 / sine, rtol=0.02)


def test_a_cylinder_has_the_chord_of_a_circle():
    rows = np.arange(64) - 31.3
    chord = 2 * np.sqrt(np.maximum(8.0**2 - rows**2, 0))
    inside = np.abs(rows) < 7
    np.testing.assert_allclose(cylinder(8.0)[inside, 32], chord[inside], rtol=0.02)
    np.testing.assert_allclose(cylinder(8.0, sine=0.5)[inside, 32], 2 * chord[inside], rtol=0.02)
    assert cylinder(8.0)[np.abs(rows) > 9.2].max() == 0


def test_discs_at_the_border_are_cut_and_outside_left_out():
    x, y = np.array([[0.0, 30.0, 200.0]]), np.array([[0.0, 15.0, 15.0]])
    drawn = thickness(x, y, np.full((1, 3), 3.0), np.ones((1, 3)), 31)
    assert drawn.shape == (1, 31, 31)
    assert drawn[0, 0, 0] > 0.9
    assert 1.3 * np.pi * 9 * 0.5 < drawn.sum() < np.pi * 9 * 1.2


def test_the_patients_left_is_on_the_right_and_the_spine_moves_with_the_arm():
    left, back, head = np.array([30.0, 0, 0]), np.array([0, 80.0, 0]), np.array([0, 0, 30.0])
    middle = 49.5
    x, y, _ = Camera(0, 0, 100, 100).project(np.stack([left, head]))
    assert x[0] == pytest.approx(middle + 30)
    assert y[1] == pytest.approx(middle - 30)
    assert Camera(40, 0, 100, 100).project(back)[0] > middle + 30  # LAO: the spine is on the right
    assert Camera(-40, 0, 100, 100).project(back)[0] < middle - 30
    assert Camera(0, 30, 100, 100).project(back)[1] < middle  # cranial: what lies behind moves up


def test_cone_beam_magnifies_what_is_near_the_source():
    behind = Camera(0, 0, 100, 100).project(np.array([10.0, 75.0, 0]))  # 75 mm nearer to a source at 750 mm
    assert behind[0] - 49.5 == pytest.approx(10 * 750 / 675)
    assert behind[2] == pytest.approx(750 / 675)


def test_rays_are_the_inverse_of_projection():
    camera = Camera(33, -21, 140, 32, (5.0, -8.0))
    source, rays = camera.rays()
    x, y, _ = camera.project(source + 700 * rays)
    rows, columns = np.mgrid[:32, :32]
    np.testing.assert_allclose(x, columns, atol=1e-6)
    np.testing.assert_allclose(y, rows, atol=1e-6)


def test_views_are_read():
    assert view_angles("LAO 45 CRA 25") == (45, 25)
    assert view_angles("RAO 30 CAU 20") == (-30, -20)
    assert view_angles("AP CRA 30") == (0, 30)
    assert view_angles("RAO 10") == (-10, 0)
    with pytest.raises(UserError, match="LAO 30 CRA 20"):
        view_angles("left 30")


def picture(side, lesions, size):
    """Thickness of one still frame of patient 0, with what is needed to look at a place in it."""
    tree = draw_patient(0, 0, EASY).trees[side]
    camera = frame_tree(tree.points, *view_angles(EASY.views[side][0]), 128.0, size)
    return tree, camera, contrast_path(opened(tree, lesions), camera, STILL, FULL, np.zeros(1), catheter=False)[0]


def test_occlusion_takes_the_distal_vessel_out_of_the_picture():
    lesion = Lesion(Finding(segment="mid_rca", stenosis=100, occlusion="total"), centre=0.4, length=0.5)
    tree, camera, open_ = picture("right", (), 64)
    closed = picture("right", (lesion,), 64)[2]
    for name, visible in {"prox_rca": True, "dist_rca": False, "pda": False, "posterolateral": False}.items():
        x, y, _ = camera.project(tree.points[tree.course(name)[5:-5]])  # the ends are thinner than a pixel
        column, row = np.rint(x).astype(int), np.rint(y).astype(int)
        assert open_[row, column].min() > 0.3, name
        if visible:
            assert closed[row, column].min() > 0.3
        else:
            assert closed[row, column].max() == 0, name
    assert np.all(closed <= open_ + 1e-4)


@pytest.mark.parametrize("percent", [50, 80])
def test_stenosis_narrows_the_projected_lumen_by_its_percent(percent):
    lesion = Lesion(Finding(segment="mid_rca", stenosis=percent), centre=0.5, length=0.6)
    tree, camera, open_ = picture("right", (), 512)
    narrowed = picture("right", (lesion,), 512)[2]
    course = tree.course("mid_rca")
    place = tree.points[course[len(course) // 2]]
    x, y, scale = camera.project(place)
    # Along the axis the ray passes the whole diameter, so the thickness there shrinks like the diameter does.
    centre = np.s_[int(y) - 1 : int(y) + 3, int(x) - 1 : int(x) + 3]
    assert narrowed[centre].max() / open_[centre].max() == pytest.approx(1 - percent / 100, abs=0.05)
    # A profile across the vessel holds the cross-section, which shrinks with its square.
    along = np.subtract(*(np.array(camera.project(tree.points[course[len(course) // 2 + d]])[:2]) for d in (3, -3)))
    across = np.array([-along[1], along[0]]) / np.hypot(*along)
    steps = np.arange(-20, 20, 0.25)
    columns, rows = np.rint(x + steps * across[0]).astype(int), np.rint(y + steps * across[1]).astype(int)
    areas = [picture_[rows, columns].sum() * 0.25 / scale for picture_ in (open_, narrowed)]
    assert areas[1] / areas[0] == pytest.approx((1 - percent / 100) ** 2, abs=0.05)


@pytest.mark.parametrize("view", ["LAO 30 CRA 20", "RAO 30"])
def test_the_picture_holds_the_volume_of_the_tree_from_every_side(view):
    tree = draw_patient(0, 0, EASY).trees["right"]
    camera = frame_tree(tree.points, *view_angles(view), 160.0, 128)
    path = contrast_path(opened(tree), camera, STILL, FULL, np.zeros(1), catheter=False)
    scale = camera.project(tree.points)[2]
    gap = np.linalg.norm(tree.points - tree.points[tree.upstream], axis=1)
    volume_in_pixels = (np.pi * tree.radius**2 * gap * scale**2).sum()  # mm of height on an area in pixels
    assert path.sum() == pytest.approx(volume_in_pixels, rel=0.01)


def test_distal_segments_darken_later():
    tree = draw_patient(0, 0, EASY).trees["right"]
    camera = frame_tree(tree.points, 30, 20, 128.0, 64)
    times = np.arange(24) / 15
    path = contrast_path(opened(tree), camera, STILL, Bolus(0.1, 2.0, 150.0), times, catheter=False)
    arrivals = []
    for name in ("prox_rca", "mid_rca", "dist_rca", "pda"):
        end = tree.course(name)[-4]
        x, y, _ = camera.project(tree.points[end])
        arrivals.append(times[(path[:, round(float(y)), round(float(x))] > 0.05).argmax()])
        assert arrivals[-1] == pytest.approx(0.1 + tree.arc[end] / 150, abs=0.15)
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] > arrivals[0] + 0.4


def test_beer_lambert():
    chest = np.zeros((4, 4), np.float32)
    path = np.full((1, 4, 4), 3.0, np.float32)
    once, twice = transmit(chest, path, 0.25), transmit(chest, 2 * path, 0.25)
    np.testing.assert_allclose(once, 0.4723666, rtol=1e-5)  # exp(-0.75)
    np.testing.assert_allclose(twice, once**2, rtol=1e-5)
    np.testing.assert_allclose(transmit(chest + 1, path, 0.25), once / np.e, rtol=1e-5)


def test_expected_grey_without_noise():
    chest = np.zeros((32, 32), np.float32)
    path = np.stack([np.zeros((32, 32)), np.full((32, 32), 4.0)]).astype(np.float32)
    frames = expose(chest, path, np.ones_like(chest), 0.25, 1000.0, None)
    behind_contrast = (1 - SCATTER) * np.exp(-1.0) + SCATTER
    assert np.all(frames[0] == 255)
    np.testing.assert_allclose(frames[1], 255 * behind_contrast**GAMMA, atol=1)


def test_noise_is_poisson():
    """Far from the ends of the display curve, grey varies by gamma * grey / sqrt(photons), less the detector's blur."""
    chest = np.zeros((256, 256), np.float32)
    chest[:, :128] = 5.0
    path = np.full((1, 256, 256), 4.0, np.float32)
    opening = np.ones_like(chest)
    noisy = expose(chest, path, opening, 0.25, 400.0, np.random.default_rng(0))[0, 100:156, 200:250].astype(float)
    quiet = expose(chest, path, opening, 0.25, 40000.0, np.random.default_rng(0))[0, 100:156, 200:250].astype(float)
    noisy, quiet = (part - part.mean(axis=0) for part in (noisy, quiet))
    assert noisy.std() / quiet.std() == pytest.approx(10, rel=0.25)


def test_cines_have_a_shape_darken_with_contrast_and_move():
    patient = draw_patient(1, 0, EASY)
    cines = list(take_cines(patient, 1, EASY, size=64, num_frames=12, fps=7.5))
    assert [cine.tree for cine in cines] == ["left", "right"]
    for cine in cines:
        assert cine.frames.shape == (12, 64, 64)
        assert cine.frames.dtype == np.uint8
        assert cine.frames[:, 0, 0].max() < 30  # behind the collimator
        assert cine.frames[0].astype(float).mean() > cine.frames[8].astype(float).mean()
        assert 40 < cine.frames.mean() < 160
