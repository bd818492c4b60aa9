"""From lumen to picture: how thick the contrast lies over each pixel, and what the detector makes of it.

A vessel is a row of thin discs that face the detector, each as high as the distance to the next one. Along a straight
vessel of radius R their sum at distance d from its axis is the chord 2 sqrt(R^2 - d^2), longer where the vessel is
foreshortened: exactly the way of the ray through a cylinder.

Shape letters: T frames, P points, H W pixels.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

GREY_LEVELS = 255
GAMMA = 0.6  # of the display curve: it lifts the dark ground over the spine
SCATTER = 0.2  # share of the signal that is scatter, the same everywhere around


def thickness(x: np.ndarray, y: np.ndarray, radius: np.ndarray, height: np.ndarray, size: int) -> np.ndarray:
    """Sum discs into a map of thickness per frame.

    Args:
        x: columns of the discs' centres [T, P], pixels; discs outside the image are left out.
        y: their rows [T, P].
        radius: of the discs [T, P], pixels, above 0.
        height: of the discs [T, P], mm (times the concentration of contrast); below 0 it is taken away.
        size: H = W.

    Returns:
        [T, H, W] float32, mm. Every disc keeps its volume, pi R^2 times its height, however small it is.
    """
    num_frames = len(x)
    frame = np.broadcast_to(np.arange(num_frames)[:, None], x.shape)
    # Pixels that a disc touches on either side of its centre's pixel.
    reach = np.ceil(np.maximum(radius, 0.5) + 0.5).astype(int)
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    edge = int(reach.max(initial=1))
    padded = size + 2 * edge
    on = (np.abs(height) > 1e-4) & (np.minimum(column, row) >= 0) & (np.maximum(column, row) < size)
    total = np.zeros(num_frames * padded * padded)
    for k in np.unique(reach[on]):
        pick = on & (reach == k)
        px, py, r, h = (array[pick].astype(np.float32)[:, None] for array in (x, y, radius, height))
        cx, cy = column[pick][:, None], row[pick][:, None]
        offset = np.arange(-k, k + 1)
        dy, dx = (grid.ravel()[None, :] for grid in np.meshgrid(offset, offset, indexing="ij"))
        distance = np.hypot((cx - px).astype(np.float32) + dx, (cy - py).astype(np.float32) + dy)
        # The share of a pixel under the disc, nearly; a disc below a pixel is spread over its four neighbours.
        cover = np.clip(np.maximum(r, np.float32(0.5)) + np.float32(0.5) - distance, 0, 1)
        cover *= h * np.float32(np.pi) * r**2 / cover.sum(axis=1, keepdims=True)
        place = (frame[pick][:, None] * padded + cy + edge) * padded + cx + edge
        index = place + (dy * padded + dx)
        total += np.bincount(index.ravel(), cover.ravel(), minlength=total.size)
    maps = total.reshape(num_frames, padded, padded)[:, edge : edge + size, edge : edge + size]
    return maps.astype(np.float32)


def transmit(background: np.ndarray, path: np.ndarray, attenuation: float) -> np.ndarray:
    """Beer-Lambert: the share of the beam that gets through the chest and `path` mm of contrast, [T, H, W].

    `background` [H, W] is the chest's line integral; `attenuation` is that of the contrast in 1/mm.
    """
    return np.exp(-(background + np.float32(attenuation) * path))


def expose(
    background: np.ndarray,
    path: np.ndarray,
    opening: np.ndarray,
    attenuation: float,
    photons: float,
    rng: np.random.Generator | None,
) -> np.ndarray:
    """Take the cine: transmission, scatter, quantum noise, detector blur, grey levels.

    Args:
        background: line integral of the chest [H, W].
        path: thickness of contrast [T, H, W], mm.
        opening: of the collimator [H, W], 0 to 1.
        attenuation: of contrast, 1/mm.
        photons: a pixel detects behind nothing.
        rng: draws the noise; None for the expected picture.

    Returns:
        [T, H, W] uint8, dark vessels on a light ground.
    """
    size = path.shape[-1]
    # Scatter comes from the whole chest: the vessels hardly change it, so it is made once.
    veil = SCATTER * gaussian_filter(np.exp(-background), size / 8)
    counts = transmit(background, path, attenuation)
    counts *= 1 - SCATTER
    counts += veil
    counts *= photons * opening
    if rng is not None:
        counts = rng.poisson(counts).astype(np.float32)
    counts = gaussian_filter(counts, (0, 0.004 * size, 0.004 * size))
    white = photons * np.percentile((1 - SCATTER) * np.exp(-background) + veil, 99)
    grey = np.clip(counts * np.float32(1 / white), 0, 1) ** np.float32(GAMMA)
    return np.rint(GREY_LEVELS * grey).astype(np.uint8)
