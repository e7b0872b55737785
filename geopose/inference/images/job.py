"""What predict.py does: its arguments in, checked, and one run over the images."""

import math
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from geopose import distributed
from geopose.cli import ArgumentParser
from geopose.errors import InputError, one_line
from geopose.files.writable import check_folder_target
from geopose.imagery.colours import parse_bands, parse_stretch
from geopose.imagery.map import parse_ground
from geopose.inference.build import known_gsd
from geopose.inference.config import InferenceConfig
from geopose.inference.dry_run import dry_run
from geopose.inference.images.found import find_images
from geopose.inference.images.leader import ImagesJob
from geopose.inference.images.options import build_parser
from geopose.inference.images.products import product_choice
from geopose.inference.images.source import ImageOptions
from geopose.inference.named_models import in_words, resolve_model
from geopose.inference.run import run_inference
from geopose.inference.workers.coordinator import Coordinator
from geopose.inference.workers.launch import (
    launched_coordinator,
    process_count,
    run_until_stopped,
    spawned_coordinator,
)

_LEAST_TILE_PX = 64


def run(arguments: Namespace) -> None:
    """Runs in this process, in several, or as one of a launcher's.

    Args:
        arguments: of predict.py.

    Raises:
        InputError: images, a model or an option that cannot be used.
        RunError: see `run_inference`.
    """
    if arguments.nproc is not None and distributed.launched():
        raise InputError("--nproc: torchrun has started the processes already; leave it out")
    job = _job_with(arguments, arguments.model, None)
    processes = distributed.world_size()
    if not distributed.launched():
        processes = process_count(arguments.nproc)
    if arguments.dry_run:
        if distributed.is_main():
            dry_run(job, processes)
        return
    work = partial(run_inference, job)
    coordinator: AbstractContextManager[Coordinator]
    if distributed.launched():
        coordinator = launched_coordinator()
    elif processes > 1:
        coordinator = spawned_coordinator(processes, work)
    else:
        coordinator = nullcontext(Coordinator.alone())
    run_until_stopped(coordinator, work)


class _Options(ArgumentParser):
    """Raises what a command would end with."""

    def error(self, message: str) -> NoReturn:
        """One line."""
        raise InputError(f"{one_line(message)} (options are those of predict.py --help)")


def _job_with(arguments: Namespace, model: str | None, config: InferenceConfig | None) -> ImagesJob:
    """The job of a command's arguments; `config`: the models, where they are there already."""
    choice, options = product_choice(arguments), _image_options(arguments)
    images = find_images(arguments.images)
    check_folder_target(arguments.out, "--out")
    if config is None:
        config = resolve_model(model, _overrides(arguments))
    return ImagesJob(
        replace(config, submission_dir=arguments.out),
        images,
        options,
        choice,
        arguments.flow,
        arguments.local_flow,
        None if options.native_gsd else known_gsd(config),
        in_words(model),
        arguments.force,
    )


def job_for(
    config: InferenceConfig, model: str | None, image: Path, out: Path, **options: object
) -> ImagesJob:
    """The job of one image with models that are there already.

    Args:
        config: the models.
        model: what the user called them.
        image: the file.
        out: folder of the products.
        options: as of the command, by their names with underscores; True = given.

    Raises:
        InputError: an unknown option, or whatever the command would refuse.
    """
    words = [str(image), "--out", str(out)]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if refused := {"model", "tta", "precision", "nproc", "dry_run"} & set(options):
        raise InputError(f"{', '.join(sorted(refused))}: not an option of one image; see load()")
    return _job_with(build_parser(_Options).parse_args(words), model, config)


def _overrides(arguments: Namespace) -> list[str]:
    """Of the model's config."""
    said = {
        "ensemble.tta": arguments.tta,
        "inference.precision": arguments.precision,
        "inference.num_workers": arguments.workers,
    }
    return [f"{key}={value}" for key, value in said.items() if value is not None]


def _image_options(arguments: Namespace) -> ImageOptions:
    gsd_m, tile = arguments.gsd, arguments.tile
    if gsd_m is not None and not (math.isfinite(gsd_m) and gsd_m > 0):
        raise InputError(f"--gsd is {gsd_m}, must be metres above 0")
    if tile < _LEAST_TILE_PX:
        raise InputError(f"--tile is {tile}, must be {_LEAST_TILE_PX} or more")
    overlap = tile // 4 if arguments.overlap is None else arguments.overlap
    if overlap > tile // 2:
        raise InputError(f"--overlap is {overlap}, must be at most half of the tile, {tile // 2}")
    return ImageOptions(
        gsd_m,
        arguments.native_gsd,
        parse_bands(arguments.bands),
        parse_stretch(arguments.stretch),
        arguments.nodata,
        _sensor(arguments.sensor),
        None if arguments.ground_height is None else parse_ground(arguments.ground_height),
        arguments.map is not None,
        tile,
        overlap,
    )


def _sensor(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        azimuth, incidence = map(float, text.split(","))
    except ValueError:
        azimuth = incidence = math.nan
    if not (math.isfinite(azimuth) and 0.0 <= incidence < 90.0):
        raise InputError(
            f"--sensor {text}: expected AZIMUTH,INCIDENCE in degrees, incidence from 0 to below 90"
        )
    return azimuth, incidence
