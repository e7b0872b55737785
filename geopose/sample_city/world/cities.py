"""The four synthetic cities: what each looks like and how it is photographed.

In: a city's name, scene index and seed. Out: the `SceneParameters` of one scene. Nothing here is a
real place; SYA..SYD read "synthetic A..D".
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from geopose.errors import InputError
from geopose.geometry import wrap_angle
from geopose.sample_city.world.look import Look, drawn_look
from geopose.sample_city.world.mesh import Color
from geopose.sample_city.world.relief import FLAT, Relief, drawn_relief

Range = tuple[float, float]


@dataclass(frozen=True)
class CityStyle:
    """Everything that makes one city differ from the others. Angles in degrees.

    `azimuths_deg` are ranges of the flow angle (0 = down the image, 90 = right);
    `sun_azimuth_deg` has the same sense and points towards the sun. `blocks` weighs the uses of
    `plan.BLOCKS`. `tower_m` is the range of high-rises; its upper end, about the tallest roof of
    the city, also sets how far beyond the image the world is built.
    """

    name: str
    gsd_m: Range
    off_nadir_deg: Range
    azimuths_deg: tuple[Range, ...]
    sun_elevation_deg: Range
    sun_azimuth_deg: Range
    block_m: Range
    depth_m: Range
    street_m: Range
    blocks: dict[str, float]
    storeys: Range
    tower_m: Range
    tree_density: float
    walls: tuple[Color, ...]
    flat_roofs: tuple[Color, ...]
    pitched_roofs: tuple[Color, ...]
    asphalt: Color
    pavement: Color
    grass: Color
    soil: Color
    crown: Color
    tint: Color
    haze: Range
    clutter: float = 0.0  # how much lies on roofs and ground beyond the bare necessities
    clumps: float = 0.0  # share of the trees that stand in groups
    rarer: float = 0.0  # share of the buildings whose plan is a cross, a star, steps or a court
    viaduct: float = 0.0  # chance of a road on piers over a street


@dataclass(frozen=True)
class SceneParameters:
    """One photograph: its camera, its sun, its random stream."""

    style: CityStyle
    gsd_m: float
    off_nadir_rad: float
    angle_rad: float
    sun_elevation_rad: float
    sun_azimuth_rad: float
    haze: float
    look: Look
    rng: np.random.Generator = field(repr=False)
    relief: Relief = FLAT

    @property
    def scale_px_per_m(self) -> float:
        """Pixels of flow per metre of height: tan(off-nadir) / gsd."""
        return math.tan(self.off_nadir_rad) / self.gsd_m

    @property
    def k(self) -> tuple[float, float]:
        """Flow per metre of height, (x, y) pixels."""
        scale = self.scale_px_per_m
        return scale * math.sin(self.angle_rad), scale * math.cos(self.angle_rad)

    @property
    def sun_k(self) -> tuple[float, float]:
        """The same for the sun as camera: towards the sun, (x, y) pixels per metre."""
        reach = 1.0 / (math.tan(self.sun_elevation_rad) * self.gsd_m)
        return reach * math.sin(self.sun_azimuth_rad), reach * math.cos(self.sun_azimuth_rad)


SUBURB = CityStyle(
    name="SYA",
    gsd_m=(0.34, 0.39),
    off_nadir_deg=(24.0, 35.0),
    azimuths_deg=((0.0, 65.0),),
    sun_elevation_deg=(44.0, 58.0),
    sun_azimuth_deg=(10.0, 55.0),
    block_m=(70.0, 130.0),
    depth_m=(58.0, 76.0),
    street_m=(9.0, 15.0),
    blocks={"houses": 5.0, "apartments": 2.6, "commercial": 1.8, "park": 0.5, "pond": 0.3},
    storeys=(3.0, 9.0),
    tower_m=(24.0, 40.0),
    tree_density=1.0,
    walls=((214, 205, 190), (190, 172, 150), (168, 120, 98), (222, 220, 214), (176, 182, 186)),
    flat_roofs=((176, 172, 166), (206, 204, 200), (130, 126, 122), (158, 146, 130)),
    pitched_roofs=((112, 98, 90), (98, 96, 98), (132, 106, 86), (86, 78, 76), (140, 122, 108)),
    asphalt=(98, 97, 98),
    pavement=(168, 164, 156),
    grass=(98, 110, 72),
    soil=(138, 120, 92),
    crown=(52, 76, 38),
    tint=(1.0, 1.0, 0.98),
    haze=(0.01, 0.04),
)

DOWNTOWN = CityStyle(
    name="SYB",
    gsd_m=(0.41, 0.46),
    off_nadir_deg=(18.0, 29.0),
    azimuths_deg=((290.0, 360.0),),
    sun_elevation_deg=(48.0, 62.0),
    sun_azimuth_deg=(-50.0, -15.0),
    block_m=(70.0, 120.0),
    depth_m=(60.0, 100.0),
    street_m=(14.0, 24.0),
    blocks={"downtown": 8.0, "apartments": 1.4, "commercial": 0.7, "park": 0.7, "parking": 0.5},
    storeys=(4.0, 14.0),
    tower_m=(45.0, 115.0),
    tree_density=0.6,
    walls=((196, 192, 186), (150, 156, 164), (172, 150, 128), (120, 104, 94), (220, 218, 214)),
    flat_roofs=(
        (160, 158, 156),
        (198, 197, 196),
        (112, 110, 110),
        (138, 130, 122),
        (214, 212, 208),
    ),
    pitched_roofs=((104, 100, 100), (124, 108, 96)),
    asphalt=(84, 84, 88),
    pavement=(160, 158, 156),
    grass=(92, 104, 72),
    soil=(128, 116, 98),
    crown=(50, 72, 42),
    tint=(0.98, 1.0, 1.04),
    haze=(0.03, 0.08),
)

DRYLAND = CityStyle(
    name="SYC",
    gsd_m=(0.47, 0.53),
    off_nadir_deg=(26.0, 37.0),
    azimuths_deg=((105.0, 180.0),),
    sun_elevation_deg=(50.0, 66.0),
    sun_azimuth_deg=(120.0, 165.0),
    block_m=(95.0, 180.0),
    depth_m=(80.0, 130.0),
    street_m=(14.0, 22.0),
    blocks={"industrial": 4.0, "commercial": 3.0, "apartments": 1.8, "parking": 0.4, "houses": 0.9},
    storeys=(3.0, 8.0),
    tower_m=(24.0, 45.0),
    tree_density=0.35,
    walls=((216, 200, 172), (200, 176, 142), (226, 218, 204), (184, 158, 128), (170, 166, 160)),
    flat_roofs=((214, 208, 198), (184, 174, 160), (232, 228, 220), (150, 146, 142)),
    pitched_roofs=((150, 156, 162), (178, 184, 186), (158, 118, 98), (128, 138, 146)),
    asphalt=(118, 114, 108),
    pavement=(184, 174, 158),
    grass=(134, 132, 86),
    soil=(184, 158, 122),
    crown=(82, 92, 54),
    tint=(1.05, 1.0, 0.92),
    haze=(0.02, 0.05),
)

OLD_TOWN = CityStyle(
    name="SYD",
    gsd_m=(0.54, 0.60),
    off_nadir_deg=(22.0, 36.0),
    azimuths_deg=((50.0, 120.0),),
    sun_elevation_deg=(38.0, 52.0),
    sun_azimuth_deg=(65.0, 105.0),
    block_m=(65.0, 125.0),
    depth_m=(58.0, 95.0),
    street_m=(11.0, 18.0),
    blocks={"courtyard": 6.0, "apartments": 1.4, "houses": 1.4, "park": 0.9, "church": 0.2},
    storeys=(4.0, 8.0),
    tower_m=(28.0, 55.0),
    tree_density=0.8,
    walls=((224, 204, 166), (214, 186, 150), (230, 222, 204), (204, 164, 130), (196, 196, 188)),
    flat_roofs=((170, 164, 156), (140, 136, 132), (190, 184, 176)),
    pitched_roofs=((152, 100, 80), (142, 92, 76), (164, 116, 94), (130, 90, 78), (122, 104, 94)),
    asphalt=(108, 106, 104),
    pavement=(166, 158, 148),
    grass=(94, 108, 70),
    soil=(150, 132, 104),
    crown=(58, 82, 40),
    tint=(1.02, 1.0, 0.97),
    haze=(0.02, 0.06),
)

ALL_BLOCKS = tuple(
    dict.fromkeys(name for s in (SUBURB, DOWNTOWN, DRYLAND, OLD_TOWN) for name in s.blocks)
)
CITIES: dict[str, CityStyle] = {s.name: s for s in (SUBURB, DOWNTOWN, DRYLAND, OLD_TOWN)}


EASY, MIXED, REAL = "easy", "mixed", "real"
PRESETS = (EASY, MIXED, REAL)


def scene_parameters(city: str, index: int, seed: int, preset: str = EASY) -> SceneParameters:
    """Draws camera and sun of scene `index` of a city; the same arguments give the same scene.

    Args:
        city: one of CITIES.
        index: 0 or more.
        seed: 0 or more.
        preset: `easy`: one camera, light and look a city, the sun behind the sensor. `mixed`: the
            same plans, in colours and under a camera drawn for every scene. `real`: everything
            drawn anew for every scene, the sun anywhere.

    Raises:
        InputError: unknown city or preset, or a negative index or seed.
    """
    if city not in CITIES:
        raise InputError(f"unknown synthetic city '{city}': choose from {', '.join(CITIES)}")
    if preset not in PRESETS:
        raise InputError(f"unknown preset '{preset}': choose from {', '.join(PRESETS)}")
    if index < 0 or seed < 0:
        raise InputError(f"scene index {index} and seed {seed} must not be negative")
    style = CITIES[city]
    name = city if preset == EASY else f"{city} {preset}"
    stream = np.random.SeedSequence([seed, int.from_bytes(name.encode()), index])
    rng = np.random.default_rng(stream)
    if preset == REAL:
        return real_scene(style, rng)
    if preset == MIXED:
        return _mixed_scene(style, rng)
    azimuth = style.azimuths_deg[int(rng.integers(len(style.azimuths_deg)))]
    return SceneParameters(
        style=style,
        gsd_m=round(float(rng.uniform(*style.gsd_m)), 4),
        off_nadir_rad=math.radians(rng.uniform(*style.off_nadir_deg)),
        angle_rad=wrap_angle(math.radians(rng.uniform(*azimuth))),
        sun_elevation_rad=math.radians(rng.uniform(*style.sun_elevation_deg)),
        sun_azimuth_rad=math.radians(rng.uniform(*style.sun_azimuth_deg)),
        haze=float(rng.uniform(*style.haze)),
        look=Look(),
        rng=rng,
    )


def _mixed_scene(style: CityStyle, rng: np.random.Generator) -> SceneParameters:
    """A scene of the preset `mixed`: the city's plan in colours of its own, the sun behind it.

    Cities then differ in what stands in them, and in their air (haze, a slight tint): what is
    learnt in some can be asked for in another.
    """
    drawn = _recoloured(style, rng)
    colours = {name: getattr(drawn, name) for name in _COLOURS}
    angle = float(rng.uniform(0.0, 2 * math.pi))
    return SceneParameters(
        style=replace(style, **colours),
        gsd_m=round(float(np.exp(rng.uniform(math.log(0.3), math.log(0.6)))), 4),
        off_nadir_rad=math.asin(rng.uniform(0.15, math.sin(math.radians(36.0)))),
        angle_rad=angle,
        sun_elevation_rad=math.radians(rng.uniform(38.0, 66.0)),
        sun_azimuth_rad=wrap_angle(angle + math.radians(rng.uniform(-45.0, 45.0))),
        haze=float(rng.uniform(*style.haze)),
        look=Look(),
        rng=rng,
    )


def real_scene(style: CityStyle, rng: np.random.Generator) -> SceneParameters:
    """A scene of the preset `real`: any camera and sun, the style's plan in colours of its own."""
    off_nadir = math.degrees(math.asin(rng.uniform(0.05, math.sin(math.radians(36.0)))))
    return SceneParameters(
        style=_recoloured(style, rng),
        gsd_m=round(float(np.exp(rng.uniform(math.log(0.27), math.log(0.75)))), 4),
        off_nadir_rad=math.radians(off_nadir),
        angle_rad=float(rng.uniform(0.0, 2 * math.pi)),
        sun_elevation_rad=math.radians(rng.uniform(24.0, 76.0)),
        sun_azimuth_rad=float(rng.uniform(0.0, 2 * math.pi)),
        haze=float(rng.uniform(0.0, 0.09)),
        look=drawn_look(rng),
        rng=rng,
        relief=drawn_relief(rng),
    )


_COLOURS = (  # what `_recoloured` paints anew, beside all else that it draws
    "walls", "flat_roofs", "pitched_roofs", "asphalt", "pavement", "grass", "soil", "crown",
)  # fmt: skip
_RARER = {  # weights of the blocks that only this preset has
    "row_houses": 1.0,
    "stadium": 0.25,
    "deck": 0.7,
    "podium": 0.6,
    "terminal": 0.35,
    "construction": 0.6,
    "river": 0.35,
}


def _greys(rng: np.random.Generator, low: float, high: float, count: int) -> tuple[Color, ...]:
    """Colours of any brightness in a range, most of them slightly warm, some strongly."""
    colors: list[Color] = []
    for _ in range(count):
        value, warm = float(rng.uniform(low, high)), float(rng.normal(0.02, 0.025))
        if rng.random() < 0.18:
            warm = float(rng.uniform(0.05, 0.25))
        shade = float(rng.normal(0.0, 0.01))
        red, blue = value * (1 + warm), value * (1 - warm)
        colors.append((min(red, 252.0), value * (1 + shade), min(blue, 252.0)))
    return tuple(colors)


def _recoloured(style: CityStyle, rng: np.random.Generator) -> CityStyle:
    """The style with palettes, clutter and a mix of blocks of this scene alone."""
    green, dry = float(rng.uniform(70, 135)), float(rng.uniform(0.75, 1.15))
    leaf, leaf_red = float(rng.uniform(52, 104)), float(rng.uniform(0.65, 0.95))
    blocks = dict.fromkeys(ALL_BLOCKS, 0.25) | style.blocks
    blocks |= {"campus": float(rng.uniform(1.0, 6.0))} | _RARER
    asphalt = float(rng.uniform(76, 165))
    low, high = style.tower_m
    return replace(
        style,
        blocks={name: weight * float(rng.uniform(0.2, 1.8)) for name, weight in blocks.items()},
        tower_m=(low * 0.8, high * float(rng.uniform(0.7, 1.1))),
        street_m=(style.street_m[0], style.street_m[1] * float(rng.uniform(0.9, 1.3))),
        tree_density=float(rng.uniform(0.2, 2.2)),
        walls=(*_greys(rng, 70, 250, 4), *_greys(rng, 190, 250, 2)),
        flat_roofs=(*_greys(rng, 50, 250, 4), *_greys(rng, 205, 252, 2)),
        pitched_roofs=_greys(rng, 60, 190, 5),
        asphalt=_greys(rng, asphalt, asphalt + 1, 1)[0],
        pavement=_greys(rng, 130, 225, 1)[0],
        grass=(green * dry, green, green * float(rng.uniform(0.55, 0.8))),
        soil=_greys(rng, 110, 200, 1)[0],
        crown=(leaf * leaf_red, leaf, leaf * float(rng.uniform(0.5, 0.95))),
        clutter=float(rng.uniform(0.3, 2.0)),
        clumps=float(rng.uniform(0.0, 0.8)),
        rarer=float(rng.uniform(0.05, 0.5)),
        viaduct=0.18,
    )
