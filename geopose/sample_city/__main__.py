"""Command: writes a synthetic data set, pictures of the synthetic cities, or both."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from geopose.cli import ArgumentParser, run_command
from geopose.errors import InputError
from geopose.files.writable import check_folder_target
from geopose.sample_city.view.picture import write_picture
from geopose.sample_city.world.cities import CITIES, EASY
from geopose.sample_city.world.district import district_name
from geopose.sample_city.writer import write_dataset


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `python -m geopose.sample_city`."""
    parser = ArgumentParser(
        prog="python -m geopose.sample_city",
        description="Renders SYNTHETIC oblique city scenes with exact height and vertical flow.",
    )
    parser.add_argument("--out", type=Path, help="data directory to write or complete")
    parser.add_argument("--train", type=int, default=10, help="training scenes per city (10)")
    parser.add_argument("--test", type=int, default=2, help="test scenes per city (2)")
    parser.add_argument("--size", type=int, default=512, help="side in pixels (512)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes (0)")
    parser.add_argument("--workers", type=int, default=1, help="processes (1)")
    parser.add_argument("--cities", nargs="*", default=list(CITIES), help=" ".join(CITIES))
    parser.add_argument(
        "--preset",
        default=EASY,
        help="easy: one look and camera a city, sun behind the sensor (default); mixed: the same "
        "plans, any colours and camera; real: as varied as the world",
    )
    parser.add_argument(
        "--dsm",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="surface models (GeoTIFF, metres): one more city each, real heights, invented colours",
    )
    parser.add_argument(
        "--dsm-cell", type=float, metavar="M", help="side of their cells, if the files do not say"
    )
    parser.add_argument(
        "--lidar",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the training scenes with heights as from lidar: noise, ragged edges, gaps, "
        "another date; lidar.json says which (0). Truth of test scenes is always exact",
    )
    parser.add_argument(
        "--picture", type=Path, metavar="DIR", help="also write DIR/sample_city_<CITY>.jpg"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see `--help`.

    Raises:
        InputError: bad arguments.
        RunError: a file cannot be written.
    """
    args = build_parser().parse_args(argv)
    if args.out is None and args.picture is None:
        raise InputError("nothing to do: give --out DIR, --picture DIR or both")
    if args.picture is not None:
        check_folder_target(args.picture, "--picture")
    if args.out is not None:
        _write_data_set(args)
    if args.picture is not None:
        for city in args.cities:
            path = write_picture(args.picture, city, args.seed, preset=args.preset)
            sys.stdout.write(f"picture of synthetic city {city}: {path}\n")


def _write_data_set(args: argparse.Namespace) -> None:
    done = write_dataset(
        args.out,
        args.train,
        args.test,
        args.size,
        args.seed,
        args.workers,
        args.cities,
        args.preset,
        args.dsm,
        args.dsm_cell,
        args.lidar,
    )
    names = [*args.cities, *(district_name(path) for path in args.dsm)]
    total = (args.train + args.test) * len(names)
    sys.stdout.write(
        f"synthetic data set in {args.out}: {args.train} training and {args.test} test scenes of "
        f"{args.size} px per city, cities {' '.join(names)} "
        f"({done} of {total} rendered now)\n"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
