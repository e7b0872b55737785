"""The synthetic cities: geometry against independent ray casting, files against their reader."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from geopose.cli import run_command
from geopose.data.heights import read_agl_m
from geopose.data.layouts.splits import read_split
from geopose.data.rgb import read_rgb
from geopose.data.vflow import read_vflow
from geopose.errors import InputError
from geopose.geometry import angle_to_vector, flow_px
from geopose.sample_city.__main__ import main
from geopose.sample_city.view.raster import GROUND_ID, View, rasterize
from geopose.sample_city.view.render import render_scene
from geopose.sample_city.view.shade import sun_mask
from geopose.sample_city.world.cities import CITIES, PRESETS, scene_parameters
from geopose.sample_city.world.mesh import (
    MeshBuilder,
    flat_building,
    gable_building,
    pyramid,
    regular_ring,
    shed_building,
)
from geopose.sample_city.world.plan import build_world
from geopose.sample_city.writer import write_dataset

GRAY = (128.0, 128.0, 128.0)


def turned_rectangle(cx, cy, length, width, turn):
    c, s = math.cos(turn), math.sin(turn)
    corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    half = [(a * length / 2, b * width / 2) for a, b in corners]
    return [(cx + c * u - s * v, cy + s * u + c * v) for u, v in half]


def march(inside, k, gsd_m, shape, z_max, step):
    """Highest Z (a multiple of `step`) at which a pixel's ray is inside a solid: brute force."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    seen = np.zeros(shape)
    for z in np.arange(0.0, z_max, step):
        hit = inside((x + z * k[0]) * gsd_m, (y + z * k[1]) * gsd_m, z)
        seen[hit] = z
    return seen


@pytest.mark.parametrize("angle_deg", [0.0, 37.0, 90.0, 160.0, 225.0, 301.0])
def test_solids_equal_a_brute_force_march(angle_deg):
    """Flat, gable, hip and shed roofs and a tree, some in front of others, in any direction."""
    gsd_m, shape, turn = 0.5, (96, 112), 0.4
    k = 1.3 * angle_to_vector(math.radians(angle_deg))
    builder = MeshBuilder()
    box, gable = (14.0, 20.0, 12.0, 9.0), (34.0, 16.0, 16.0, 8.0)
    shed, hip = (18.0, 36.0, 8.0, 6.0), (40.0, 36.0, 14.0, 8.0)
    flat_building(builder, turned_rectangle(*box, turn), 0.0, 15.0, GRAY, GRAY, 0)
    gable_building(builder, turned_rectangle(*gable, turn), 0.0, 6.0, 10.0, GRAY, GRAY, 0)
    shed_building(builder, turned_rectangle(*shed, turn), 0.0, 4.0, 7.0, GRAY, GRAY, 0)
    gable_building(builder, turned_rectangle(*hip, turn), 0.0, 5.0, 9.0, GRAY, GRAY, 0, hip=3.0)
    builder.ellipsoid(27.0, 27.0, 8.0, 4.0, 3.0, GRAY)

    def local(x, y, solid):
        dx, dy = x - solid[0], y - solid[1]
        c, s = math.cos(turn), math.sin(turn)
        u, v = c * dx + s * dy, -s * dx + c * dy
        return u, v, (abs(u) <= solid[2] / 2) & (abs(v) <= solid[3] / 2)

    def inside(x, y, z):
        hit = local(x, y, box)[2] & (z <= 15.0)
        _, v, within = local(x, y, gable)
        hit |= within & (z <= 10.0 - abs(v))
        _, v, within = local(x, y, shed)
        hit |= within & (z <= 5.5 + v * 0.5)
        u, v, within = local(x, y, hip)
        hit |= within & (z <= 9.0 - abs(v)) & (z <= 5.0 + (7.0 - abs(u)) * 4.0 / 3.0)
        return hit | (((x - 27) ** 2 + (y - 27) ** 2) / 16 + (z - 8) ** 2 / 9 <= 1.0)

    seen = rasterize(builder.build(), View((k[0], k[1]), gsd_m, (0, 0), shape)).z_m
    wanted = march(inside, k, gsd_m, shape, 16.0, 0.01)
    error = np.abs(seen - wanted)
    assert (wanted > 0.5).mean() > 0.2
    # a march in steps can miss a sliver that the exact test hits, so a few pixels may differ
    assert (error > 0.0101).mean() < 0.002


def test_roof_corners_lie_at_ground_minus_height_times_k():
    height_m, gsd_m, k = 20.0, 0.5, (0.6, -0.9)
    ring = turned_rectangle(40.0, 40.0, 24.0, 16.0, 0.0)  # ground pixels 56..104, 64..96
    builder = MeshBuilder()
    flat_building(builder, ring, 0.0, height_m, GRAY, GRAY, 0)
    z = rasterize(builder.build(), View(k, gsd_m, (0, 0), (140, 140))).z_m
    rows, columns = np.nonzero(z == height_m)
    assert (columns.min(), columns.max()) == (56 - 12, 104 - 12)
    assert (rows.min(), rows.max()) == (64 + 18, 96 + 18)
    flow = flow_px(z, math.hypot(*k), math.atan2(*k))
    landed_x, landed_y = columns + flow[0][rows, columns], rows + flow[1][rows, columns]
    assert landed_x.min() == pytest.approx(56, abs=1e-4)
    assert landed_y.max() == pytest.approx(96, abs=1e-4)


def test_facade_is_a_linear_ramp_on_the_side_the_flow_points_to():
    builder = MeshBuilder()
    flat_building(builder, turned_rectangle(30.0, 30.0, 20.0, 20.0, 0.0), 0.0, 30.0, GRAY, GRAY, 0)
    z = rasterize(builder.build(), View((0.0, 1.0), 1.0, (0, 0), (64, 64))).z_m
    column = z[:, 30]  # roof: rows 20..40 minus 30 px; facade: rows 10..40, foot at 40
    np.testing.assert_allclose(column[:11], 30.0)
    np.testing.assert_allclose(column[10:41], np.arange(30.0, -1.0, -1.0), atol=1e-4)
    assert not column[41:].any()


def cast(mesh, pixels, k, gsd_m):
    """Highest hit of every pixel's ray with all triangles and ellipsoids, plainly in 3-D."""
    direction = np.array([k[0] * gsd_m, k[1] * gsd_m, 1.0])
    origins = np.column_stack([pixels * gsd_m, np.zeros(len(pixels))])
    best = np.zeros(len(pixels))
    for second in (1, 2, 3):
        a, b, c = mesh.verts[:, 0], mesh.verts[:, second], mesh.verts[:, second + 1]
        normal = np.cross(b - a, c - a)
        toward = normal @ direction
        usable = np.abs(toward) > 1e-9
        a, b, c, normal, toward = (v[usable] for v in (a, b, c, normal, toward))
        for i, origin in enumerate(origins):
            z = ((a - origin) * normal).sum(axis=1) / toward
            point = origin + z[:, None] * direction
            inside = np.ones(len(a), bool)
            for p, q in ((a, b), (b, c), (c, a)):
                inside &= (np.cross(q - p, point - p) * normal).sum(axis=1) >= 0.0
            best[i] = max(best[i], z[inside].max(initial=0.0))
    for i, origin in enumerate(origins):
        span = np.array([[1.0, 1.0, 0.0]]) / mesh.ellipsoids[:, 3:4] ** 2
        span[:, 2] = mesh.ellipsoids[:, 4] ** -2.0
        away = origin - mesh.ellipsoids[:, :3]
        p = (span * direction**2).sum(axis=1)
        q = (span * direction * away).sum(axis=1)
        r = (span * away**2).sum(axis=1) - 1.0
        root = q * q - p * r
        z = (np.sqrt(root[root >= 0]) - q[root >= 0]) / p[root >= 0]
        best[i] = max(best[i], z.max(initial=0.0))
    return best


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("city", list(CITIES))
def test_height_of_a_whole_scene_equals_plain_ray_casting(city, preset):
    scene = render_scene(city, 4, (150, 170), 1, preset)
    parameters = scene_parameters(city, 4, 1, preset)
    mesh = build_world(parameters, (170 * scene.gsd_m, 150 * scene.gsd_m)).mesh.build()
    pixels = np.random.default_rng(0).integers(0, (170, 150), (60, 2))
    wanted = cast(mesh, pixels.astype(float), parameters.k, scene.gsd_m)
    seen = scene.agl_m[pixels[:, 1], pixels[:, 0]]
    assert (np.abs(seen - wanted) < 2e-3).mean() >= 59 / 60  # a pixel centre on an edge may differ
    assert (wanted > 2.0).any()


def test_closed_surfaces_have_no_holes():
    """Every pixel inside the outline of a many-sided tower shows the tower."""
    builder, gsd_m, k = MeshBuilder(), 0.37, (0.71, 0.93)
    ring = regular_ring(30.0, 32.0, 11.3, 20, 0.123)
    flat_building(builder, ring, 0.0, 21.7, GRAY, GRAY, 0, parapet_m=0.9)
    pyramid(builder, regular_ring(30.0, 32.0, 6.0, 20, 0.2), 20.0, 27.0, GRAY)
    ids = rasterize(builder.build(), View(k, gsd_m, (0, 0), (150, 150))).ids
    for line in (*(ids != GROUND_ID), *(ids != GROUND_ID).T):
        assert np.count_nonzero(np.diff(line.astype(np.int8))) <= 2


def test_shadow_falls_away_from_the_sun():
    scene = dataclasses.replace(
        scene_parameters("SYA", 0, 0),
        gsd_m=0.5,
        off_nadir_rad=0.0,
        sun_elevation_rad=math.radians(45.0),
        sun_azimuth_rad=math.radians(90.0),  # towards the right edge
    )
    builder = MeshBuilder()
    flat_building(builder, turned_rectangle(30.0, 30.0, 10.0, 10.0, 0.0), 0.0, 10.0, GRAY, GRAY, 0)
    mesh, view = builder.build(), View((0.0, 0.0), 0.5, (0, 0), (120, 120))
    lit = sun_mask(scene, mesh, view, rasterize(mesh, view))
    assert lit[60, 60] == 1  # roof: columns 50..70
    assert not lit[60, 32:49].any()  # shadow: 10 m = 20 px to the left
    assert lit[60, 72:].all()
    assert lit[60, :29].all()
    assert lit[:49].all()
    assert lit[72:].all()


def test_shadow_lands_on_a_roof_seen_from_the_side():
    scene = dataclasses.replace(
        scene_parameters("SYA", 0, 0),
        gsd_m=0.5,
        sun_elevation_rad=math.radians(45.0),
        sun_azimuth_rad=math.radians(90.0),
    )
    builder = MeshBuilder()
    flat_building(builder, turned_rectangle(30.0, 30.0, 40.0, 40.0, 0.0), 0.0, 5.0, GRAY, GRAY, 0)
    flat_building(builder, turned_rectangle(30.0, 30.0, 6.0, 6.0, 0.0), 5.0, 15.0, GRAY, GRAY, 0)
    mesh, view = builder.build(), View((0.0, 0.8), 0.5, (0, 0), (120, 120))
    lit = sun_mask(scene, mesh, view, rasterize(mesh, view))
    # the lower roof is seen 4 px up; the tower, columns 54..66, throws 10 m = 20 px to the left
    assert not lit[52:60, 36:52].any()
    assert lit[52:60, 22:32].all()
    assert lit[52:60, 68:98].all()
    assert lit[44:48, 34:52].all()
    assert lit[65, 22:98].all()


def test_ids_name_the_face_whose_height_is_seen():
    parameters = scene_parameters("SYD", 1, 0)
    extent_m = 200 * parameters.gsd_m
    mesh = build_world(parameters, (extent_m, extent_m)).mesh.build()
    seen = rasterize(mesh, View(parameters.k, parameters.gsd_m, (0, 0), (200, 200)))
    assert not seen.z_m[seen.ids == GROUND_ID].any()
    rows, columns = np.nonzero((seen.ids >= 0) & (seen.ids < mesh.face_count))
    z, verts = seen.z_m[rows, columns], mesh.verts[seen.ids[rows, columns]]
    ground = np.column_stack([columns, rows]) + z[:, None] * np.array(parameters.k)
    points = np.column_stack([ground * parameters.gsd_m, z])[:, None]
    # the seen point lies in the plane and in the bounding box of the face that is named
    assert (points > verts.min(axis=1, keepdims=True) - 1e-2).all()
    assert (points < verts.max(axis=1, keepdims=True) + 1e-2).all()
    normal = np.cross(verts[:, 1] - verts[:, 0], verts[:, 2] - verts[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    assert np.abs(((points[:, 0] - verts[:, 0]) * normal).sum(axis=1)).max() < 1e-2


def test_scale_angle_and_gsd_follow_the_camera():
    for city, style in CITIES.items():
        drawn = [scene_parameters(city, index, 7) for index in range(30)]
        for scene in drawn:
            expected = math.tan(scene.off_nadir_rad) / scene.gsd_m
            assert scene.scale_px_per_m == pytest.approx(expected)
            assert 0.0 <= scene.angle_rad < 2 * math.pi
            assert style.gsd_m[0] <= scene.gsd_m <= style.gsd_m[1]
            assert scene.k == pytest.approx(expected * angle_to_vector(scene.angle_rad))
        assert len({scene.angle_rad for scene in drawn}) == 30
    share = {  # each city has a random stream of its own
        round((scene_parameters(city, 0, 7).gsd_m - s.gsd_m[0]) / (s.gsd_m[1] - s.gsd_m[0]), 1)
        for city, s in CITIES.items()
    }
    assert len(share) > 1
    gsds = sorted(style.gsd_m for style in CITIES.values())
    assert all(a[1] < b[0] for a, b in itertools.pairwise(gsds))


def test_scene_is_reproducible_and_every_argument_counts():
    first = render_scene("SYB", 2, 96, 5)
    again = render_scene("SYB", 2, 96, 5)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.agl_m, again.agl_m)
    for other in (
        render_scene("SYB", 3, 96, 5),
        render_scene("SYB", 2, 96, 6),
        render_scene("SYD", 2, 96, 5),
    ):
        assert other.angle_rad != first.angle_rad
        assert (other.rgb != first.rgb).any()
    assert (first.image_id, first.city) == ("SYB_000002", "SYB")


@pytest.mark.parametrize("city", list(CITIES))
def test_no_data_share_and_heights_are_plausible(city):
    for index in range(3):
        scene = render_scene(city, index, (256, 300), 0)
        assert scene.rgb.shape == (256, 300, 3)
        assert 0.005 <= scene.nodata.mean() <= 0.03
        assert scene.agl_m.min() >= 0.0
        assert 6.0 < scene.agl_m.max() < 130.0
        assert 0.02 < (scene.agl_m > 2.5).mean() < 0.9


def test_in_the_preset_real_the_sun_says_nothing_of_the_lean():
    scenes = [scene_parameters(city, i, 0, "real") for city in CITIES for i in range(60)]
    apart = np.array([scene.sun_azimuth_rad - scene.angle_rad for scene in scenes])
    assert np.hypot(np.cos(apart).mean(), np.sin(apart).mean()) < 0.15
    spread = {
        "off_nadir": np.degrees([scene.off_nadir_rad for scene in scenes]),
        "sun": np.degrees([scene.sun_elevation_rad for scene in scenes]),
        "gsd": 100 * np.array([scene.gsd_m for scene in scenes]),
    }
    for name, low, high in (("off_nadir", 6, 33), ("sun", 28, 72), ("gsd", 30, 70)):
        assert spread[name].min() < low, name
        assert spread[name].max() > high, name
    easy = [scene_parameters("SYA", i, 0) for i in range(60)]
    assert all(abs(s.sun_azimuth_rad - math.radians(32)) < 0.4 for s in easy)


def test_in_the_preset_mixed_every_city_is_seen_by_every_camera_with_the_sun_behind_it():
    for city in CITIES:
        scenes = [scene_parameters(city, i, 0, "mixed") for i in range(60)]
        sun = np.array([scene.sun_azimuth_rad - scene.angle_rad for scene in scenes])
        assert np.cos(sun).min() > 0.7
        angles = np.array([scene.angle_rad for scene in scenes])
        assert np.hypot(np.cos(angles).mean(), np.sin(angles).mean()) < 0.3
        gsds = [scene.gsd_m for scene in scenes]
        assert (min(gsds) < 0.33, max(gsds) > 0.55) == (True, True)
        lean = np.degrees([scene.off_nadir_rad for scene in scenes])
        assert (lean.min() < 12, lean.max() > 33) == (True, True)
        own = CITIES[city]
        for name in ("blocks", "storeys", "tower_m", "tree_density", "clutter", "rarer", "viaduct"):
            assert all(getattr(scene.style, name) == getattr(own, name) for scene in scenes), name
        for name in ("walls", "flat_roofs", "pitched_roofs", "asphalt", "grass", "soil", "crown"):
            assert len({getattr(scene.style, name) for scene in scenes}) == len(scenes), name


@pytest.mark.parametrize("city", list(CITIES))
def test_scenes_of_the_preset_real_differ_from_easy_and_repeat(city):
    first, again = (render_scene(city, 1, 96, 0, "real") for _ in range(2))
    np.testing.assert_array_equal(first.rgb, again.rgb)
    easy = render_scene(city, 1, 96, 0)
    assert (easy.rgb != first.rgb).any()
    assert easy.angle_rad != first.angle_rad


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_files_do_not_depend_on_workers_and_a_rerun_completes(tmp_path):
    arguments = {"train": 1, "test": 1, "size": (64, 80), "seed": 3, "cities": ("SYA", "SYC")}
    assert write_dataset(tmp_path / "one", workers=1, **arguments) == 4
    write_dataset(tmp_path / "two", workers=2, **arguments)
    wanted = files_of(tmp_path / "one")
    assert files_of(tmp_path / "two") == wanted
    (tmp_path / "two" / "train" / "SYC_000000_AGL.tif").unlink()
    (tmp_path / "two" / "metadata.csv").unlink()
    assert write_dataset(tmp_path / "two", workers=1, **arguments) == 1
    assert files_of(tmp_path / "two") == wanted
    for change in ({"seed": 4}, {"train": 2}, {"size": 64}, {"cities": ("SYA",)}):
        with pytest.raises(InputError, match="other arguments"):
            write_dataset(tmp_path / "two", workers=1, **(arguments | change))
    assert files_of(tmp_path / "two") == wanted


def test_data_set_reads_back_as_rendered(tmp_path):
    root = tmp_path / "data"
    write_dataset(root, train=2, test=1, size=96, seed=1, workers=1, cities=("SYB", "SYD"))
    train, test = read_split(root, "train"), read_split(root, "test")
    assert [r.image_id for r in train] == ["SYB_000000", "SYB_000001", "SYD_000000", "SYD_000001"]
    assert [r.city for r in test] == ["SYB", "SYD"]
    assert not {r.image_id for r in train} & {r.image_id for r in test}
    for record in (*train, *test):
        scene = render_scene(record.city, int(record.image_id[4:]), 96, 1)
        truth = root / ("train" if record in train else "test_truth")
        agl_m = read_agl_m(truth / f"{record.image_id}_AGL.tif")
        np.testing.assert_array_equal(np.isnan(agl_m), scene.nodata)
        np.testing.assert_allclose(agl_m[~scene.nodata], scene.agl_m[~scene.nodata], atol=0.0051)
        flow = read_vflow(truth / f"{record.image_id}_VFLOW.json")
        assert flow == pytest.approx((scene.scale_px_per_m, scene.angle_rad))
        assert record.gsd_m == scene.gsd_m
        difference = read_rgb(record.rgb).astype(int) - scene.rgb
        assert np.abs(difference).mean() < 8.0
    assert json.loads((root / "sample_city.json").read_text())["synthetic"] is True
    assert not list((root / "test").glob("*AGL*"))


def test_a_data_set_of_the_former_preset_real_is_not_completed_with_other_scenes(tmp_path):
    arguments = {"train": 1, "test": 0, "size": 64, "cities": ("SYA",)}
    for preset, version in (("easy", 1), ("real", 2)):
        root = tmp_path / preset
        write_dataset(root, preset=preset, **arguments)
        marker = root / "sample_city.json"
        assert json.loads(marker.read_text())["version"] == version
    marker.write_text(marker.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(InputError, match="other arguments"):
        write_dataset(root, preset="real", **arguments)


def test_command_writes_and_says_that_it_is_synthetic(tmp_path, capsys):
    out = tmp_path / "new" / "sample"
    argv = ["--out", str(out), "--train", "1", "--test", "0", "--size", "64", "--cities", "SYA"]
    assert run_command(main, argv) == 0
    line = capsys.readouterr().out.strip()
    assert "synthetic" in line
    assert str(out) in line
    assert len(read_split(out, "train")) == 1


def test_pictures_are_small_and_show_three_panels(tmp_path, capsys):
    folder = tmp_path / "docs" / "images"
    assert run_command(main, ["--picture", str(folder), "--cities", "SYA", "SYB"]) == 0
    assert capsys.readouterr().out.count("synthetic") == 2
    for city in ("SYA", "SYB"):
        path = folder / f"sample_city_{city}.jpg"
        assert path.stat().st_size < 250_000
        assert read_rgb(path).shape[1] > 3 * 400
    assert len(list(folder.iterdir())) == 2
    arguments = ["--picture", str(tmp_path / "mixed"), "--cities", "SYA", "--preset", "mixed"]
    assert run_command(main, arguments) == 0
    easy, mixed = (read_rgb(f / "sample_city_SYA.jpg") for f in (folder, tmp_path / "mixed"))
    assert easy.shape != mixed.shape or (easy != mixed).mean() > 0.1


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--cities", "ROM"], "ROM"),
        (["--size", "8"], "8"),
        (["--train", "-1"], "-1"),
        (["--train", "0", "--test", "0"], "at least 1"),
        (["--workers", "0"], "workers 0"),
        (["--seed", "-3"], "-3"),
        (["--cities", "SYA", "SYA"], "once"),
        (["--preset", "surreal"], "easy, mixed, real"),
        (["--cities"], "no cities"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(tmp_path, capsys, extra, said):
    out = tmp_path / "sample"
    assert run_command(main, ["--out", str(out), *extra]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ")
    assert "\n" not in message
    assert said in message
    assert not out.exists()


def test_a_folder_for_pictures_is_checked_before_anything_is_rendered(tmp_path, capsys):
    out = tmp_path / "sample"
    assert run_command(main, ["--out", str(out), "--picture", "/dev/null/x"]) == 2
    assert capsys.readouterr().err.startswith("error: --picture: cannot write to /dev/null/x")
    assert not out.exists()


def test_foreign_directory_and_file_are_refused(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for target in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        assert run_command(main, ["--out", str(target)]) == 2
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert run_command(main, []) == 2


@pytest.mark.parametrize(
    ("city", "faces", "corners", "rgb", "agl_m"),
    [
        ("SYA", 961, 177061.052, 125.762, 0.8029),
        ("SYB", 3076, 1041687.801, 150.337, 10.2805),
        ("SYC", 2571, 914560.799, 181.847, 4.2792),
        ("SYD", 1617, 550696.197, 134.263, 9.3048),
    ],
)
def test_scenes_of_the_preset_easy_stay_what_they_are(city, faces, corners, rgb, agl_m):
    """Quickstart and benchmarks rest on them: what is new belongs to the preset `real`."""
    scene = render_scene(city, 0, 96, 0)
    parameters = scene_parameters(city, 0, 0)
    mesh = build_world(parameters, (96 * scene.gsd_m, 96 * scene.gsd_m)).mesh.build()
    assert mesh.face_count == faces
    assert mesh.verts.sum() == pytest.approx(corners, rel=1e-9)
    assert scene.rgb.mean() == pytest.approx(rgb, abs=0.02)
    assert scene.agl_m.mean() == pytest.approx(agl_m, abs=1e-3)
