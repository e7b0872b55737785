"""python -m geopose.checkpoints COMMAND: fetch, describe, average, export, calibrate, quantise.

Options alone; what the commands do is in `command`, which takes seconds to import.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geopose.cli import ArgumentParser, positive_int, run_command
from geopose.data.layouts.splits import SPLITS, add_data_options
from geopose.words import (
    CHANNEL_ORDERS,
    DEEPNESS,
    DEMO,
    HELD_OUT,
    INT8,
    MAX_DROP,
    NETWORK_SUFFIXES,
    PTH,
    SAFETENSORS,
    TTA_NAMES,
)


def _metres(text: str) -> float:
    """Argument type: a length of more than 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of metres above 0")
    return value


def _limit(text: str) -> float:
    """Argument type: how far a score may fall."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _add_views(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--tta",
        choices=["null", *(name for name in TTA_NAMES if name)],
        default=default,
        help="views for that (default: %(default)s)",
    )


def _add_quantize(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    quantize = commands.add_parser(
        "quantize",
        parents=parents,
        help="the network in 8 bits for a CPU, calibrated on your images",
        description="Weights and maps in 8 bits, calibrated on images of a data directory. Where "
        "they have truth, the official score is measured before and after, and a file that loses "
        "too much is not written. Needs the extra int8; running the file needs openvino alone.",
    )
    quantize.add_argument("file", metavar="FILE")
    quantize.add_argument("output", type=Path, metavar="OUT", help=INT8)
    add_data_options(quantize)
    quantize.add_argument(
        "--split", choices=SPLITS, default="train", help="whose images (default: %(default)s)"
    )
    quantize.add_argument(
        "--images",
        type=positive_int,
        default=64,
        metavar="N",
        help="to calibrate on (default: %(default)s)",
    )
    quantize.add_argument(
        "--size",
        type=positive_int,
        default=1024,
        metavar="PX",
        help="of larger images a part with this side is shown for that (default: %(default)s)",
    )
    quantize.add_argument(
        "--measure",
        type=positive_int,
        default=16,
        metavar="N",
        help="images with truth to measure the score on, whole, other ones if there are any "
        "(default: %(default)s)",
    )
    _add_views(quantize, "d4")
    quantize.add_argument(
        "--max-drop",
        type=_limit,
        metavar="X",
        help=f"of the score, beyond which nothing is written (default: {MAX_DROP} where there is "
        "truth)",
    )


def _whole(text: str) -> int:
    """Argument type: a number of a fold."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _add_calibrate(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    calibrate = commands.add_parser(
        "calibrate",
        parents=parents,
        help="the same weights, with gains of heights and flow that raise the score",
        description="Predicts images with truth, finds what heights and lengths of flow are best "
        "multiplied by (networks say too little of tall buildings), says the official score "
        "before and after, and writes the network with that in its header, which everything that "
        "predicts goes by. A file that scores no better on images that it was not fitted on is "
        "not written, unless --force.",
    )
    calibrate.add_argument("file", metavar="FILE")
    calibrate.add_argument("output", type=Path, metavar="OUT", help=f"{PTH} or {SAFETENSORS}")
    add_data_options(calibrate)
    calibrate.add_argument(
        "--split",
        choices=(HELD_OUT, *SPLITS),
        default=HELD_OUT,
        help="whose images: those of the fold that the network has not learned from, as its file "
        "says, or all of a split (default: %(default)s)",
    )
    calibrate.add_argument("--fold", type=_whole, metavar="N", help="another fold than that")
    calibrate.add_argument(
        "--images", type=positive_int, metavar="N", help="to fit on, at most (default: all)"
    )
    _add_views(calibrate, "null")


def _add_fetch(commands: Any) -> None:
    fetch = commands.add_parser(
        "fetch",
        help="download what configs name, so that a machine can be taken offline",
        description="Download every URL of the configs into the cache ($GEOPOSE_CACHE, else torch "
        "hub's folder), check what is there already, and print SHA-256 hashes.",
    )
    fetch.add_argument("what", nargs="+", metavar="CONFIG | URL", help="inference config, or URL")


def _add_info(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    info = commands.add_parser(
        "info",
        parents=parents,
        help="what a file is: network, fold, epoch, scores, hash",
    )
    info.add_argument("files", nargs="+", metavar="FILE")


def _add_average(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    average = commands.add_parser(
        "average", parents=parents, help="mean weights of several files of one network"
    )
    average.add_argument("files", nargs="+", metavar="FILE")
    average.add_argument(
        "-o", "--output", required=True, type=Path, metavar="OUT", help=f"{PTH} or {SAFETENSORS}"
    )


def _add_export(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export",
        parents=parents,
        help="the network alone, without what training left in the file",
    )
    export.add_argument("file", metavar="FILE")
    export.add_argument("output", type=Path, metavar="OUT", help=" or ".join(NETWORK_SUFFIXES))
    export.add_argument("--recipe", metavar="TEXT", help="how the network was made; OUT says it")
    export.add_argument(
        "--for",
        dest="purpose",
        choices=(DEEPNESS,),
        help="an .onnx file that gives heights to this plugin of QGIS (with --gsd)",
    )
    export.add_argument(
        "--gsd",
        type=_metres,
        metavar="M",
        help="metres per pixel of the images that it will see (with --for)",
    )


def _network_options() -> ArgumentParser:
    """Of every command that reads a network."""
    network = ArgumentParser(add_help=False)
    network.add_argument(
        "--model",
        type=Path,
        metavar="YAML",
        help="the network of files that hold weights alone, such as configs/model/b7_unet.yaml",
    )
    network.add_argument(
        "--channel-order",
        choices=CHANNEL_ORDERS,
        help="what that network reads, if not what the YAML says (bgr if it says nothing)",
    )
    return network


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m geopose.checkpoints",
        description="Fetch, describe, average, export, calibrate and quantise checkpoint files. "
        f"FILE is a path, a URL, or {DEMO}: the network in the package.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    network, force = _network_options(), ArgumentParser(add_help=False)
    force.add_argument("--force", action="store_true", help="overwrite a file that is there")
    _add_fetch(commands)
    _add_info(commands, [network])
    for add in (_add_average, _add_export, _add_calibrate, _add_quantize):
        add(commands, [network, force])
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one of the commands; see `--help`."""
    args = _parser().parse_args(argv)
    from geopose.checkpoints.command import COMMANDS  # torch, which --help need not wait for

    COMMANDS[args.command](args)


if __name__ == "__main__":
    sys.exit(run_command(main))
