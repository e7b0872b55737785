"""How a scene is lit and photographed: light, atmosphere, optics, tone.

In: a random stream. Out: a `Look`. The defaults are the preset `easy`: always the same light, soft
shadows, no stretch. `drawn_look` is the preset `real`: drawn anew for every scene, from ranges
around what benchmarks/looks.py measured in WorldView-3 images (docs/benchmarks.md).
"""

from dataclasses import dataclass

import numpy as np

from geopose.sample_city.world.mesh import Color

Range = tuple[float, float]
WHITEST = 0.9  # share of the light that the brightest wall reflects


@dataclass(frozen=True)
class Look:
    """Light and sensor of one photograph.

    Attributes:
        sun: light of the sun on level ground, linear (red, green, blue).
        sky: the same of the whole sky.
        bounce: light that walls get from sunlit ground around them, share of `sun`.
        steepest: sunlight on a surface that faces the sun, at most so many times level ground's.
        texture: factor on the mottle of all surfaces.
        saturation: 0 = grey, 1 = the colours of the surfaces; bands of real sensors overlap.
        psf_px: deviation of the blur by optics and sampling.
        sharpening: strength of the vendor's sharpening; 0 = none.
        colour_blur_px: deviation of the colours' blur, which are seen at a coarser resolution than
            brightness and fused with it; 0 = as sharp.
        fringe_px: (x, y) by which the colour bands miss each other; red is off by it to one side
            of the sharp brightness, blue to the other. Edges get red and blue seams.
        windows: contrast of windows and walls, 0..1.
        walls: factor on the light that walls reflect, as far as `WHITEST`.
        noise: range of the noise's deviation, grey values.
        stretch: (share of pixels at black, at white, gamma, grey level of black in 0..1, colour
            cast); None = no stretch.
        balance: share of the stretch's black and white that each colour has for itself; 1 makes
            the brightest of every band white.
        j2k_ratio: bytes of the image over bytes of its JPEG 2000 file.
    """

    sun: Color = (0.80, 0.76, 0.68)
    sky: Color = (0.28, 0.32, 0.385)
    bounce: float = 0.0
    steepest: float = 1.35
    texture: float = 1.0
    saturation: float = 0.8
    psf_px: float = 0.62
    sharpening: float = 0.0
    colour_blur_px: float = 0.0
    fringe_px: tuple[float, float] = (0.0, 0.0)
    windows: float = 1.0
    walls: float = 1.0
    noise: Range = (1.2, 2.4)
    stretch: tuple[float, float, float, float, Color] | None = None
    balance: float = 0.0
    j2k_ratio: float = 8.0


def drawn_look(rng: np.random.Generator) -> Look:
    """One look of the preset `real`."""
    warmth, blue = float(rng.uniform(0.9, 1.06)), float(rng.uniform(1.3, 2.4))
    level = float(rng.uniform(0.07, 0.25))
    black, white = (float(10 ** rng.uniform(*r)) for r in ((-4.0, -2.3), (-3.2, -1.1)))
    floor = float(rng.uniform(0.0, 0.22))
    red, green, blue_cast = (float(c) for c in rng.normal(1.0, 0.03, 3))
    return Look(
        sun=(0.78, 0.76, 0.76 * warmth),
        sky=(level / blue**0.5, level, level * blue**0.8),
        bounce=float(rng.uniform(0.15, 0.8)),
        steepest=2.6,
        texture=float(rng.uniform(0.6, 2.0)),
        saturation=float(rng.uniform(0.7, 1.0)),
        psf_px=float(rng.uniform(0.4, 0.85)),
        sharpening=float(rng.uniform(0.0, 1.0)),
        colour_blur_px=float(rng.uniform(0.0, 1.8)),
        windows=float(rng.uniform(0.15, 0.8)),
        noise=(0.8, 4.0),
        stretch=(black, white, float(rng.uniform(1.6, 2.7)), floor, (red, green, blue_cast)),
        balance=float(max(rng.uniform(-0.6, 0.8), 0.0)),
        j2k_ratio=float(np.exp(rng.uniform(np.log(4.0), np.log(24.0)))),
        fringe_px=(float(rng.normal(0.0, 0.4)), float(rng.normal(0.0, 0.4))),
        walls=float(rng.uniform(0.9, 2.2)),
    )
