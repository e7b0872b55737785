"""From light to an image of eight bits: tint, haze, optics, tone, noise.

In: linear radiance and the scene's look. Out: RGB uint8.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.sample_city.world.cities import SceneParameters
from geopose.sample_city.world.look import Look

_HAZE_COLOR = np.array([0.62, 0.70, 0.80], np.float32)
_AIRLIGHT = np.array([0.84, 1.0, 1.22], np.float32)  # colour of what is left at black
_SAMPLED = 20_000  # pixels that a stretch's black and white are taken from

Light = NDArray[np.float32]


def expose(scene: SceneParameters, linear: Light) -> NDArray[np.uint8]:
    """H x W x 3 linear radiance to RGB uint8."""
    rng, look = scene.rng, scene.look
    gain = rng.uniform(0.94, 1.1) * np.diag(scene.style.tint)
    mix = gain @ (look.saturation * np.eye(3) + (1.0 - look.saturation) / 3.0)
    haze = scene.haze * _HAZE_COLOR
    radiance = cv2.transform(linear, np.column_stack([mix, haze]).astype(np.float32))
    blurred = np.asarray(cv2.GaussianBlur(radiance, (5, 5), look.psf_px), np.float32)
    if look.colour_blur_px > 0.0:
        blurred = _fused(blurred, look)
    if look.stretch is None:
        shown = np.asarray(cv2.sqrt(blurred) * 255.0, np.float32)
    else:
        shown = _stretched(rng, blurred, look)
    noise = rng.standard_normal(shown.shape, np.float32)
    shown += noise * np.float32(rng.uniform(*look.noise))
    return np.clip(shown + 0.5, 0, 255).astype(np.uint8)


def _fused(image: Light, look: Look) -> Light:
    """Brightness as it is, colours from a blurred image, as pan-sharpening leaves them."""
    soft = np.asarray(cv2.GaussianBlur(image, (0, 0), look.colour_blur_px), np.float32)
    for channel, side in ((0, 1.0), (2, -1.0)) if look.fringe_px != (0.0, 0.0) else ():
        move = np.array([[1, 0, side * look.fringe_px[0]], [0, 1, side * look.fringe_px[1]]])
        band = np.ascontiguousarray(soft[..., channel])
        size = band.shape[::-1]
        soft[..., channel] = cv2.warpAffine(band, move, size, borderMode=cv2.BORDER_REPLICATE)
    grey = cv2.transform(image, np.full((1, 3), 1 / 3, np.float32))
    soft_grey = cv2.transform(soft, np.full((1, 3), 1 / 3, np.float32))
    share = (grey + 0.02) / (soft_grey + 0.02)
    return np.asarray(soft * share[..., None], np.float32)


def _stretched(rng: np.random.Generator, image: Light, look: Look) -> Light:
    """Tone as vendors set it: shares of the pixels at black and white, a gamma, sharpening."""
    assert look.stretch is not None
    black, white, gamma, floor, cast = look.stretch
    sample = rng.choice(image.reshape(-1, 3), _SAMPLED) if image.size > 3 * _SAMPLED else image
    grey = sample.reshape(-1, 3).mean(axis=1)
    low, high = np.quantile(grey, (black, 1.0 - white))
    low = min(float(low), 0.8 * float(np.quantile(grey, 0.02)))
    black_at, white_at = np.float32(low), np.float32(max(float(high), low + 0.05))
    if look.balance > 0.0:
        own = np.quantile(sample.reshape(-1, 3), (black, 1.0 - white), axis=0)
        dark, bright = (np.float32(look.balance * (own[i] - (low, high)[i])) for i in (0, 1))
        black_at, white_at = black_at + np.minimum(dark, 0.0), white_at + bright
    shown = np.clip((image - black_at) / np.maximum(white_at - black_at, 0.05), 1e-4, 4.0)
    lift = floor * _AIRLIGHT
    shown = lift + (1.0 - lift) * cv2.pow(shown, 1.0 / gamma)
    shown = shown * (255.0 * np.array(cast, np.float32))
    if look.sharpening > 0.0:
        shown += look.sharpening * (shown - cv2.GaussianBlur(shown, (0, 0), 1.0))
    return np.asarray(shown, np.float32)
