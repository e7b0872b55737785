"""Writes a synthetic data set in the challenge's layout.

In: counts, size, seed. Out: a data directory as `geopose.data.layout` reads it, plus the truth of
the test scenes in a folder of its own. All scenes are synthetic; `sample_city.json` says so and
holds the arguments, so that a rerun can complete the same data set and never mixes two.
"""

import csv
import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np

from geopose.data.heights import write_agl_cm
from geopose.data.layout import agl_name, vflow_name
from geopose.data.rgb import write_j2k
from geopose.data.vflow import write_vflow
from geopose.errors import InputError, RunError
from geopose.files.atomic import atomic_path, partial_files
from geopose.files.lock import NAME as LOCK
from geopose.files.lock import locked
from geopose.files.writable import check_folder_target
from geopose.sample_city.view.district_view import district_parameters, render_district
from geopose.sample_city.view.lidar import chosen
from geopose.sample_city.view.render import render_scene, scene_id, shape_of
from geopose.sample_city.world.cities import CITIES, EASY, REAL, scene_parameters
from geopose.sample_city.world.district import read_district
from geopose.system.progress import progress_bar

MARKER = "sample_city.json"
TRUTH_DIR = "test_truth"
LIDAR_REPORT = "lidar.json"
_FOLDERS = ("train", "test", TRUTH_DIR)
FIRST_TEST_INDEX = 500_000  # test scenes never coincide with training scenes of any count
_VERSION = 1  # raise when the same arguments would give other bytes
_REAL_VERSION = 2  # the same for the preset real and for surface models, which look like it


@dataclass(frozen=True)
class Surface:
    """A surface model whose scenes make one more city; the sum tells its content apart."""

    path: str
    cell_m: float | None
    name: str
    sha256: str


@dataclass(frozen=True)
class SampleSpec:
    """What defines a data set: the same values give the same bytes of every file.

    `train` and `test` are numbers of scenes PER CITY; `size` is (height, width) in pixels; `lidar`
    is the share of the training scenes whose heights are as from a lidar, not exact.
    """

    train: int
    test: int
    size: tuple[int, int]
    seed: int
    cities: tuple[str, ...]
    preset: str = EASY
    dsm: tuple[Surface, ...] = ()
    lidar: float = 0.0

    def marker(self) -> dict[str, object]:
        """Content of the marker file."""
        version = _REAL_VERSION if self.preset == REAL or self.dsm else _VERSION
        content = {"synthetic": True, "made_by": "geopose.data.sample_city", "version": version}
        facts = asdict(self)
        if self.preset == EASY:
            del facts["preset"]  # as before there were presets: such data sets are not made anew
        for surface in facts["dsm"]:
            del surface["path"]  # the same file elsewhere gives the same scenes
        if not self.dsm:
            del facts["dsm"]
        if not self.lidar:
            del facts["lidar"]
        return json.loads(json.dumps(content | facts))

    @property
    def city_names(self) -> tuple[str, ...]:
        """The synthetic cities, then those of surface models."""
        return (*self.cities, *(surface.name for surface in self.dsm))

    def surface(self, city: str) -> Surface | None:
        """The surface model of a city; None if it is synthetic."""
        return next((surface for surface in self.dsm if surface.name == city), None)

    def gsd_m(self, city: str, index: int) -> float:
        """Metres per pixel of a scene."""
        if self.surface(city) is not None:
            return district_parameters(city, index, self.seed).gsd_m
        return scene_parameters(city, index, self.seed, self.preset).gsd_m

    def surveyed(self, split: str, city: str, index: int) -> bool:
        """Whether a scene's heights are as from a lidar; those of test scenes are exact."""
        return split == "train" and chosen(city, index, self.seed, self.lidar)

    def scenes(self) -> list[tuple[str, str, int]]:
        """(split, city, index) of every scene, in the order of the CSV files."""
        splits = (("train", 0, self.train), ("test", FIRST_TEST_INDEX, self.test))
        return [
            (split, city, first + i)
            for split, first, count in splits
            for city in self.city_names
            for i in range(count)
        ]


def write_dataset(
    out_dir: Path | str,
    train: int,
    test: int,
    size: int | tuple[int, int] = 512,
    seed: int = 0,
    workers: int = 1,
    cities: Sequence[str] = tuple(CITIES),
    preset: str = EASY,
    dsm: Sequence[Path | str] = (),
    dsm_cell_m: float | None = None,
    lidar: float = 0.0,
) -> int:
    """Writes, or completes, a synthetic data set.

    Args:
        out_dir: data directory; must be new, empty, or hold this very data set.
        train: training scenes per city.
        test: test scenes per city; their truth goes to `out_dir/test_truth`.
        size: pixels, one number or (height, width).
        seed: another seed gives other scenes.
        workers: processes; the files do not depend on it.
        cities: which synthetic cities.
        preset: as in `render_scene`.
        dsm: surface models, each the geometry of one more city (as in `read_district`).
        dsm_cell_m: side of their cells in metres; None = as the files say.
        lidar: share of the training scenes whose heights are as a lidar would have them, with what
            is wrong with each in `out_dir/lidar.json`. Truth of test scenes is always exact.

    Returns:
        Number of scenes rendered now (scenes already complete are kept).

    Raises:
        InputError: bad arguments, or a directory that holds something else. Nothing is written.
        RunError: a file cannot be written.
    """
    spec = _checked_spec(train, test, size, seed, workers, cities, preset)
    if not 0.0 <= lidar <= 1.0:
        raise InputError(f"lidar {lidar:g}: give a share of the training scenes, 0 to 1")
    spec = replace(spec, dsm=_surfaces(dsm, dsm_cell_m, cities), lidar=float(lidar))
    if not spec.city_names:
        raise InputError("no cities: name at least one, or a surface model with --dsm")
    root = Path(out_dir)
    _check_target(root)
    with locked(root, "OUT_DIR"):
        return _write_all(root, spec, workers)


def _write_all(root: Path, spec: SampleSpec, workers: int) -> int:
    """Everything that is not there yet; returns the number of scenes rendered."""
    _claim(root, spec)
    for folder in _FOLDERS:
        for suffix in (".j2k", ".tif", ".json"):
            for stale in partial_files(root / folder, suffix):
                stale.unlink(missing_ok=True)
    jobs = [
        (root, split, city, index, spec)
        for split, city, index in spec.scenes()
        if not all(path.exists() for path in _scene_files(root, split, city, index))
        or (spec.surveyed(split, city, index) and not _report_file(root, city, index).exists())
    ]
    for _ in progress_bar(
        _run(jobs, workers), total=len(jobs), desc="synthetic scenes", unit="scene"
    ):
        pass
    _write_tables(root, spec)
    return len(jobs)


def _checked_spec(
    train: int,
    test: int,
    size: int | tuple[int, int],
    seed: int,
    workers: int,
    cities: Sequence[str],
    preset: str,
) -> SampleSpec:
    if train < 0 or test < 0 or train + test == 0:
        raise InputError(f"train {train} and test {test}: need 0 or more, together at least 1")
    if max(train, test) > FIRST_TEST_INDEX:
        raise InputError(f"train {train}, test {test}: at most {FIRST_TEST_INDEX} per city")
    if workers < 1:
        raise InputError(f"workers {workers}: use 1 or more")
    if len(set(cities)) != len(cities):
        raise InputError(f"cities '{' '.join(cities)}': name each wanted city once")
    for city in cities:
        scene_parameters(city, 0, seed, preset)
    return SampleSpec(train, test, shape_of(size), seed, tuple(cities), preset)


def _surfaces(
    paths: Sequence[Path | str], cell_m: float | None, cities: Sequence[str]
) -> tuple[Surface, ...]:
    """What is known of the surface models; each is read once, so that a bad one is found now."""
    found = []
    for path in paths:
        district = _district(str(path), cell_m)
        digest = sha256(Path(path).read_bytes()).hexdigest()
        found.append(Surface(str(path), cell_m, district.name, digest))
    names = [*cities, *(surface.name for surface in found)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--dsm: two cities would be called {name}; rename a file")
    return tuple(found)


_district = lru_cache(maxsize=4)(read_district)


def _check_target(root: Path) -> None:
    """Raises InputError if there is something that is no directory, or nothing can be written."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file: name a directory to write to")
    check_folder_target(root, "OUT_DIR")


def _claim(root: Path, spec: SampleSpec) -> None:
    """Makes the directory ours, or refuses to mix data sets."""
    marker = root / MARKER
    if marker.is_file():
        try:
            present = json.loads(marker.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{marker} cannot be read: choose another directory") from error
        if present != spec.marker():
            raise InputError(
                f"{root} holds a synthetic data set made with other arguments "
                f"(see {marker}): choose another directory or delete it"
            )
    try:
        if not marker.is_file() and not _is_unused(root):
            raise InputError(f"{root} is not empty and no synthetic data set: choose a new one")
        root.mkdir(parents=True, exist_ok=True)
        for stale in partial_files(root, marker.suffix):
            stale.unlink(missing_ok=True)
        with atomic_path(marker) as partial:  # before anything else: it says whose the rest is
            partial.write_text(json.dumps(spec.marker(), indent=1) + "\n")
        for folder in _FOLDERS:
            (root / folder).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {root}: {error.strerror}") from error


def _is_unused(root: Path) -> bool:
    """Whether a directory holds no more than a run leaves that was killed before its marker."""
    if not root.exists():
        return True
    ours = {*partial_files(root, Path(MARKER).suffix), root / LOCK}
    return all(
        path in ours or (path.name in _FOLDERS and path.is_dir() and not any(path.iterdir()))
        for path in root.iterdir()
    )


def _scene_files(root: Path, split: str, city: str, index: int) -> tuple[Path, Path, Path]:
    """(RGB, AGL, VFLOW) paths of a scene."""
    rgb = f"{scene_id(city, index)}_RGB.j2k"
    truth = root / ("train" if split == "train" else TRUTH_DIR)
    return root / split / rgb, truth / agl_name(rgb), truth / vflow_name(rgb)


def _report_file(root: Path, city: str, index: int) -> Path:
    """Where it says what is wrong with the heights of a training scene."""
    return root / "train" / f"{scene_id(city, index)}_LIDAR.json"


def _run(jobs: list[tuple], workers: int) -> Iterator[None]:
    """Renders all jobs; yields after each."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            _write_scene(*job)
            yield
        return
    # Spawned: a forked copy of a program with threads can wait for ever for a lock of theirs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_prepare_worker) as pool:
        futures = [pool.submit(_write_scene, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "a rendering process died, perhaps for want of memory: use fewer --workers, "
                "the same command completes the data set"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    """One thread per process; an interrupt is the parent's business."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_scene(root: Path, split: str, city: str, index: int, spec: SampleSpec) -> None:
    surface, lidar = spec.surface(city), spec.surveyed(split, city, index)
    if surface is None:
        scene = render_scene(city, index, spec.size, spec.seed, spec.preset, lidar)
    else:
        district = _district(surface.path, surface.cell_m)
        scene = render_district(district, index, spec.size, spec.seed, lidar)
    rgb, agl, vflow = _scene_files(root, split, city, index)
    write_vflow(vflow, scene.scale_px_per_m, scene.angle_rad)
    height_m = scene.agl_m if scene.measured_m is None else scene.measured_m
    if lidar:  # before the heights: none are there without a word of what they are
        with atomic_path(_report_file(root, city, index)) as partial:
            partial.write_text(json.dumps(scene.survey, indent=1) + "\n")
    write_agl_cm(agl, np.where(scene.nodata, np.nan, height_m), allow_nodata=True)
    write_j2k(rgb, scene.rgb, ratio=scene.parameters.look.j2k_ratio)


def _write_tables(root: Path, spec: SampleSpec) -> None:
    """The three CSV files, last: a data set without them is not finished."""
    metadata, train, test = [("id", "city", "gsd")], [("id", "agl", "json", "rgb")], [("id", "rgb")]
    for split, city, index in spec.scenes():
        name, (rgb, agl, vflow) = scene_id(city, index), _scene_files(root, split, city, index)
        gsd_m = spec.gsd_m(city, index)
        metadata.append((name, city, f"{gsd_m:.4f}"))
        if split == "train":
            train.append((name, agl.name, vflow.name, rgb.name))
        else:
            test.append((name, rgb.name))
    if spec.lidar:
        _write_lidar_report(root, spec)
    tables = (("metadata", metadata), ("geopose_train", train), ("geopose_test", test))
    for name, rows in tables:
        with atomic_path(root / f"{name}.csv") as partial, partial.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def _write_lidar_report(root: Path, spec: SampleSpec) -> None:
    """Which heights are not exact, and what is wrong with each scene's."""
    about = (
        "Heights of these training scenes imitate a lidar: they are NOT exact. Shares are of a "
        "scene's pixels. All other heights, and those of test scenes, are exact."
    )
    scenes = {
        scene_id(city, index): json.loads(_report_file(root, city, index).read_text())
        for split, city, index in spec.scenes()
        if spec.surveyed(split, city, index)
    }
    with atomic_path(root / LIDAR_REPORT) as partial:
        content = {"synthetic": True, "about": about, "scenes": scenes}
        partial.write_text(json.dumps(content, indent=1) + "\n")
