"""What lies around the heart: attenuation of chest, spine, ribs, heart shadow and diaphragm, and the collimator.

All of it stands still and is made once a cine. Amplitudes are line integrals of attenuation: 0.7 halves the beam.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from data_prep.phantom.heart import Heart
from data_prep.phantom.preset import Preset
from data_prep.phantom.projection import Camera

SPINE = np.array([-25.0, 85.0, 0.0])  # its middle at the level of the heart, mm from the heart's centre


def chest(camera: Camera, heart: Heart, rng: np.random.Generator, preset: Preset) -> np.ndarray:
    """Draw the attenuation of everything but the coronary tree, [size, size] float32; 0 in the clearest place."""
    size = camera.size
    right = (np.arange(size) - (size - 1) / 2) / size * camera.field_of_view  # mm at the isocentre
    x, y = right[None, :], -right[:, None]
    attenuation = 0.0095 * heart_shadow(camera, heart)
    attenuation += _spine(camera, x, y, rng)
    attenuation += _diaphragm(camera.field_of_view, x, y, rng)
    attenuation += _ribs(x, y, rng)
    attenuation += clouds(size, rng) * preset.texture
    attenuation += descending_catheter(camera, rng)
    attenuation = gaussian_filter(attenuation, 0.003 * size)
    return (attenuation - np.percentile(attenuation, 1)).clip(0).astype(np.float32)


def heart_shadow(camera: Camera, heart: Heart) -> np.ndarray:
    """Length of every ray within blood and muscle, mm: ellipsoids for ventricles, atria and great vessels."""
    source, rays = camera.rays()
    ventricles = heart.axes / np.array([heart.radius * 1.2, heart.radius * 1.2, heart.length * 0.68])[:, None]
    atria = np.eye(3) / np.array([52.0, 45.0, 48.0])[:, None]
    great_vessels = np.eye(3) / np.array([30.0, 32.0, 85.0])[:, None]
    total = np.zeros((camera.size, camera.size))
    for shape, centre, share in (
        (ventricles, (-4.0, 0.0, 2.0), 1.0),
        (atria, (-32.0, 22.0, 14.0), 0.55),
        (great_vessels, (-22.0, 10.0, 75.0), 0.6),
    ):
        start, along = shape @ (source - np.array(centre)), rays @ shape.T
        a, b, c = (along**2).sum(-1), along @ start, start @ start - 1
        total += share * 2 * np.sqrt(np.maximum(b**2 - a * c, 0)) / a
    return gaussian_filter(total, 0.022 * camera.size)


def _spine(camera: Camera, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    column, _, scale = camera.project(SPINE)
    middle = (column - (camera.size - 1) / 2) / camera.size * camera.field_of_view
    width = 21.0 * scale / (camera.size / camera.field_of_view)
    lean = rng.normal(0, 0.04)
    away = (x - middle - lean * y) / width
    period = 25.0
    level = (y + rng.uniform(0, period)) / period * 2 * np.pi
    bodies = 1 + 0.10 * np.sign(np.cos(level)) * np.abs(np.cos(level)) ** 0.6
    edge = 1 / (1 + np.exp((np.abs(away) - 1) / 0.10))
    mediastinum = np.exp(-((away / 2.1) ** 2))
    return 0.75 * edge * bodies + 0.45 * mediastinum


def _diaphragm(field_of_view: float, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top = -field_of_view * rng.uniform(0.30, 0.40)
    middle = rng.uniform(-25, 25)
    dome = top - ((x - middle) / 150.0) ** 2 * 60.0
    depth = np.maximum(dome - y, 0)
    return 0.8 * (1 - np.exp(-depth / 14.0))


def _ribs(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bands with bright middles and dense rims, one every intercostal space, sloping down from the spine."""
    slope, bend, space = rng.normal(0, 0.25), rng.normal(0, 0.0015), rng.uniform(27, 33)
    level = (y - slope * x - bend * x**2 + rng.uniform(0, space)) % space - space / 2
    rim = np.exp(-(((np.abs(level) - 5.5) / 1.6) ** 2))
    return 0.10 * rim + 0.06 / (1 + np.exp((np.abs(level) - 6.0) / 1.0))


def clouds(size: int, rng: np.random.Generator, rough: float = 0.035) -> np.ndarray:
    """Anatomical noise: the spectrum of a chest falls with about the third power of frequency; lung marks are finer.

    `rough` is the standard deviation of the finer part.
    """
    down, across = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    frequency = np.hypot(down, across) * size
    frequency[0, 0] = np.inf
    total = np.zeros((size, size))
    for fall, amount in ((1.45, 0.12), (1.0, rough)):
        white = np.fft.rfft2(rng.standard_normal((size, size)))
        noise = np.fft.irfft2(white * frequency**-fall, s=(size, size))
        total += amount * noise / noise.std()
    return total


def descending_catheter(camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """The catheter on its way up the descending aorta, beside the spine: a straight thin line."""
    ends = SPINE + np.array([[12.0, -20.0, 120.0], [5.0, -18.0, -120.0]]) + rng.normal(0, 4, (2, 3))
    (left, right), (top, bottom), _ = camera.project(ends)
    column, row = np.arange(camera.size)[None, :], np.arange(camera.size)[:, None]
    away = column - left - (row - top) / (bottom - top) * (right - left)
    return 0.22 * np.exp(-((away * camera.field_of_view / camera.size / 1.1) ** 2))


def collimator(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the opening of the collimator: 1 inside an octagon with soft edges, 0 behind the blades."""
    side = np.linspace(-1, 1, size)
    x, y = np.abs(side[None, :] + rng.uniform(-0.02, 0.02)), np.abs(side[:, None] + rng.uniform(-0.02, 0.02))
    blade = rng.uniform(0.94, 0.99, 2)
    corner = rng.uniform(1.42, 1.55)
    inside = np.minimum(np.minimum(blade[0] - x, blade[1] - y), (corner - x - y) / np.sqrt(2))
    return np.clip(inside / 0.02, 0, 1).astype(np.float32)
