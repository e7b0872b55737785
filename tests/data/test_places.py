"""Images of one place are found by their heights, from any side, and stay in one fold."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from geopose.cli import run_command
from geopose.data.folds import split_fold
from geopose.data.heights import write_agl_cm
from geopose.data.layouts.splits import read_split
from geopose.data.places.__main__ import main
from geopose.data.places.search import Rule, find_links, places_of
from geopose.data.places.table import read_places, write_places
from geopose.data.rgb import write_png
from geopose.data.vflow import write_vflow
from geopose.errors import InputError
from geopose.geometry import angle_to_vector, vector_to_angle
from geopose.sample_city.view.raster import View, rasterize
from geopose.sample_city.world.cities import scene_parameters
from geopose.sample_city.world.plan import build_world
from tests.tiny_data import REALDATA, write_data_dir
from tests.training_run import train

SIDE = 384


@dataclass(frozen=True)
class Seen:
    """Heights as an image shows them, and its flow."""

    agl_m: NDArray[np.float32]
    scale: float
    angle: float
    gsd_m: float

    def cropped(self, rows: slice, columns: slice) -> "Seen":
        """A part of the image."""
        return replace(self, agl_m=self.agl_m[rows, columns])

    def turned(self) -> "Seen":
        """By a quarter, against the clock."""
        x, y = angle_to_vector(self.angle)
        return replace(
            self, agl_m=np.rot90(self.agl_m).copy(), angle=float(vector_to_angle(np.array([y, -x])))
        )


def seen_from(city: str, index: int, angle: float | None = None, lean: float = 1.0) -> Seen:
    """A synthetic scene, from its own side or another one."""
    scene = scene_parameters(city, index, 0)
    world = build_world(scene, (SIDE * scene.gsd_m, SIDE * scene.gsd_m))
    if angle is not None:
        off_nadir = scene.off_nadir_rad * lean
        scene = replace(scene, angle_rad=angle, off_nadir_rad=off_nadir)
    view = View(scene.k, scene.gsd_m, (0, 0), (SIDE, SIDE))
    agl_m = rasterize(world.mesh.build(), view).z_m
    return Seen(agl_m, scene.scale_px_per_m, scene.angle_rad, scene.gsd_m)


def write_images(root: Path, images: dict[str, Seen]) -> Path:
    """A data directory of these images, CITY_name; their colours do not matter."""
    (root / "train").mkdir(parents=True)
    meta, rows = ["id,city,gsd"], ["id,agl,json,rgb"]
    for name, seen in images.items():
        stem = root / "train" / name
        write_png(Path(f"{stem}_RGB.png"), np.zeros((*seen.agl_m.shape, 3), np.uint8))
        write_agl_cm(Path(f"{stem}_AGL.tif"), seen.agl_m, allow_nodata=True)
        write_vflow(Path(f"{stem}_VFLOW.json"), seen.scale, seen.angle)
        meta.append(f"{name},{name.split('_')[0]},{seen.gsd_m}")
        rows.append(f"{name},{name}_AGL.tif,{name}_VFLOW.json,{name}_RGB.png")
    (root / "metadata.csv").write_text("\n".join(meta) + "\n")
    (root / "geopose_train.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cities: one scene of SYA in five views, one of SYC in two halves, and others."""
    half = SIDE // 2
    images = {f"SYA_{number}": seen_from("SYA", number) for number in range(4)}
    images |= {
        "SYA_0other": seen_from("SYA", 0, 3.0, 0.7),
        "SYA_0turned": seen_from("SYA", 0, 5.0).turned(),
        "SYA_0left": seen_from("SYA", 0, 1.8).cropped(slice(0, SIDE), slice(0, half + 40)),
        "SYA_0low": seen_from("SYA", 0, 4.0).cropped(slice(half - 40, SIDE), slice(0, SIDE)),
    }
    images |= {f"SYC_{number}": seen_from("SYC", number) for number in range(1, 4)}
    whole = seen_from("SYC", 0)
    for name, left in (("SYC_0a", 0), ("SYC_0b", SIDE // 3)):
        images[name] = whole.cropped(slice(0, SIDE), slice(left, left + 2 * SIDE // 3))
    return write_images(tmp_path_factory.mktemp("places") / "data", images)


def _plain(steps: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    return steps


def test_planted_views_are_found_and_nothing_else(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--data-dir", str(planted), "--turns", "12"])
    assert capsys.readouterr().out == (
        "SYA: 4 places, 8 images\nSYC: 4 places, 5 images\n"
        "all: 8 places, 13 images; the largest, SYA_0, has 5\n"
    )
    places = read_places(planted / "places.csv", read_split(planted, "train"))
    assert {name for name, place in places.items() if place == "SYA_0"} == {
        "SYA_0", "SYA_0other", "SYA_0turned", "SYA_0left", "SYA_0low",
    }  # fmt: skip
    assert places["SYC_0b"] == "SYC_0a"


def test_different_scenes_are_different_places(tmp_path: Path) -> None:
    images = {f"{c}_{n}": seen_from(c, n) for c in ("SYB", "SYD") for n in range(8)}
    records = read_split(write_images(tmp_path / "data", images), "train")
    assert find_links(records, Rule(turns=8), _plain) == []


@pytest.mark.skipif(not (REALDATA / "jax068_wv3").is_dir(), reason="real views are not here")
def test_nine_real_views_are_one_place() -> None:
    records = read_split(REALDATA / "jax068_wv3", "train")
    links = find_links(records, Rule(), _plain)
    assert len(links) >= 25  # of 36 pairs
    assert (
        set(places_of(records, links).values()) == {"068001"}
        or len(set(places_of(records, links).values())) == 1
    )


def test_places_stay_in_one_fold_and_cities_in_all(tmp_path: Path) -> None:
    data_dir = write_data_dir(tmp_path / "data", ["ARG"] * 40 + ["JAX"] * 60, size=(8, 8))
    records = read_split(data_dir, "train")
    places = {r.image_id: f"{r.city}{int(r.image_id) // 3}" for r in records}
    seen: list[str] = []
    for fold in range(5):
        learnt, valid = split_fold(records, fold, "place", 5, places)
        assert not {places[r.image_id] for r in learnt} & {places[r.image_id] for r in valid}
        assert len(learnt) + len(valid) == 100
        assert abs(sum(r.city == "ARG" for r in valid) - 8) <= 3
        seen += [r.image_id for r in valid]
    assert sorted(seen) == [r.image_id for r in records]
    with pytest.raises(InputError, match=r"5 folds of whole places .* there are 2 places"):
        split_fold(records, 0, "place", 5, {r.image_id: r.city for r in records})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "table of places cannot be read .*python -m geopose.data.places"),
        ("id,spot\n000,a\n", "column place is missing"),
        ("id,place\n000,a\n000,b\n", "row 3: id '000' is there twice"),
        ("id,place\n000,a\n001,\n", "row 3: place of '001' is empty"),
        ("id,place\n000,a\n", r"row 3 \(001\) is not in it"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(
    tmp_path: Path, text: str | None, message: str
) -> None:
    records = read_split(write_data_dir(tmp_path / "data", ["JAX", "JAX"], (8, 8)), "train")
    if text is not None:
        (tmp_path / "places.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_places(tmp_path / "places.csv", records)


def test_tables_are_read_as_written(tmp_path: Path) -> None:
    records = read_split(write_data_dir(tmp_path / "data", ["JAX", "OMA"], (8, 8)), "train")
    write_places(tmp_path / "p.csv", {"000": "a, b", "001": "c", "999": "d"})
    assert read_places(tmp_path / "p.csv", records) == {"000": "a, b", "001": "c"}


def test_training_by_place(sample_dir: Path, tmp_path: Path) -> None:
    records, table = read_split(sample_dir, "train"), tmp_path / "places.csv"
    write_places(table, {r.image_id: f"place {n // 2}" for n, r in enumerate(records)})
    with pytest.raises(InputError, match="table of places cannot be read"):
        train(sample_dir, tmp_path / "none", "dataset.fold_split=place")
    by_place = ("dataset.fold_split=place", f"dataset.places={table}", "train.epochs=1")
    run = train(sample_dir, tmp_path / "run", *by_place)
    assert (run / "checkpoints_mean_r2" / "best.pth").is_file()


@pytest.mark.parametrize("option", ["--least=0", "--equal=2", "--overlap=-1"])
def test_options_out_of_range_are_one_line(
    planted: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, ["--data-dir", str(planted), option]) == 2
    error = capsys.readouterr().err
    assert error.strip().count("\n") <= 1
    assert option.split("=")[0] in error
