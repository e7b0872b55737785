"""What python -m geopose.checkpoints does, command by command: options in, files and words out."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from geopose.calibration.command import Options as CalibrationOptions
from geopose.calibration.command import calibrated_facts
from geopose.checkpoints.export import (
    WRITERS,
    check_target,
    locked_target,
    write_for_deepness,
    write_network,
)
from geopose.checkpoints.formats.given import GivenNetwork, read_network
from geopose.checkpoints.formats.pth import load_checkpoint
from geopose.checkpoints.info import describe
from geopose.checkpoints.load import load_model, read_facts
from geopose.checkpoints.remote.fetch import Source, fetch, fetch_all, file_sha256, is_url
from geopose.checkpoints.remote.listed import listed_sources
from geopose.data.layout import resolve_data_dir
from geopose.errors import InputError, one_line, printable
from geopose.files.config_folder import shipped_or_own
from geopose.quantization.command import Options, write_quantized
from geopose.words import DEEPNESS, HELD_OUT, INT8, ONNX, PTH, SAFETENSORS

_LONGEST = 2000  # characters of a line of `info`; what follows is no description any more


def _say_hash(path: Path) -> None:
    sys.stdout.write(printable(f"{file_sha256(path)}  {path}") + "\n")


def _fetch(args: argparse.Namespace) -> None:
    """Everything that the configs name, downloaded, and its hashes."""
    sources: list[Source] = []
    for text in args.what:
        if is_url(text):
            sources.append(Source(text))
        else:
            sources += listed_sources(shipped_or_own(Path(text)))
    for path in dict.fromkeys(fetch_all(sources)):
        _say_hash(path)


def _given(args: argparse.Namespace) -> GivenNetwork | None:
    """The network that the command line names."""
    if args.model is not None:
        return read_network(args.model, args.channel_order)
    if args.channel_order is not None:
        raise InputError("--channel-order goes with --model; a file with a config says its own")
    return None


def _info(args: argparse.Namespace) -> None:
    given = _given(args)
    for number, name in enumerate(args.files):
        path = fetch(Source(name))
        sys.stdout.write(printable(f"{'' if number == 0 else chr(10)}{path}") + "\n")
        for key, value in describe(path, given).items():
            sys.stdout.write(f"  {key + ':':<15} {one_line(value, _LONGEST)}\n")


def _average(args: argparse.Namespace) -> None:
    """Mean weights, with the first file's config and a word about where they come from."""
    if len(args.files) < 2:
        raise InputError("average: give at least two files")
    check_target(args.output, args.force, (PTH, SAFETENSORS))
    given = _given(args)
    paths = fetch_all([Source(name) for name in args.files])
    loaded = load_model(paths, given)
    facts = read_facts(paths[0], given)
    facts["checkpoint_data"] = {"config": facts["checkpoint_data"]["config"]}
    facts["averaged_from"] = [{"file": p.name, "sha256": file_sha256(p)} for p in paths]
    write_network(args.output, loaded, facts)
    _say_hash(args.output)


def _export(args: argparse.Namespace) -> None:
    if (args.purpose is None) != (args.gsd is None):
        raise InputError(f"--for {DEEPNESS} and --gsd go together; give both or none")
    check_target(args.output, args.force, tuple(WRITERS) if args.purpose is None else (ONNX,))
    given = _given(args)
    path = fetch(Source(args.file))
    load_checkpoint(path, given)  # an .onnx file has no weights to export
    facts = read_facts(path, given)
    if args.recipe is not None:
        facts["recipe"] = args.recipe
    loaded = load_model(path, given)
    if args.purpose == DEEPNESS:
        write_for_deepness(args.output, loaded, facts, args.gsd)
    else:
        write_network(args.output, loaded, facts)
    _say_hash(args.output)


def _calibrate(args: argparse.Namespace) -> None:
    """The same weights, with gains in the file's header."""
    check_target(args.output, args.force, (PTH, SAFETENSORS))
    if args.fold is not None and args.split != HELD_OUT:
        raise InputError(f"--fold goes with --split {HELD_OUT}; leave one of them out")
    given = _given(args)
    options = CalibrationOptions(
        resolve_data_dir(args.data_dir), args.layout, args.split, args.fold, args.images,
        None if args.tta == "null" else args.tta, args.force,
    )  # fmt: skip
    path = fetch(Source(args.file))
    load_checkpoint(path, given)  # an .onnx or .int8 file has no weights to write
    loaded = load_model(path, given)
    write_network(args.output, loaded, calibrated_facts(loaded, read_facts(path, given), options))
    _say_hash(args.output)


def _quantize(args: argparse.Namespace) -> None:
    check_target(args.output, args.force, (INT8,))
    given = _given(args)
    options = Options(
        resolve_data_dir(args.data_dir), args.layout, args.split, args.images, args.size,
        args.measure, None if args.tta == "null" else args.tta, args.max_drop,
    )  # fmt: skip
    path = fetch(Source(args.file))
    loaded, facts = load_model(path, given), read_facts(path, given)
    source = {"file": path.name, "sha256": file_sha256(path)}
    with locked_target(args.output):
        write_quantized(args.output, loaded, facts, source, options)
    _say_hash(args.output)


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "fetch": _fetch,
    "info": _info,
    "average": _average,
    "export": _export,
    "calibrate": _calibrate,
    "quantize": _quantize,
}
