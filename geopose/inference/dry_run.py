"""Says what a run would do: images, models, memory, time. Tries one image, writes nothing."""

import logging
import resource
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray

from geopose import distributed
from geopose.inference.build import build_ensemble, load_entry
from geopose.inference.config import InferenceConfig
from geopose.inference.pipeline.device_copy import DeviceCopy
from geopose.inference.pipeline.pipeline import predict
from geopose.inference.pipeline.task import Plan, Task
from geopose.inference.predict.ensemble import PoseEnsemble, check_views, held_bytes
from geopose.inference.predict.tta import Tta
from geopose.inference.run import Job
from geopose.system.cores import usable_cores
from geopose.system.devices import use_device

logger = logging.getLogger(__name__)


def dry_run(job: Job, processes: int) -> None:
    """Logs what `run_inference` would do with the same job.

    Args:
        job: images and what becomes of them.
        processes: how many would share the images.

    Raises:
        GeoposeError: what would stop the run at its start.
    """
    device = distributed.local_device()
    use_device(device)
    if device.type == "cpu" and processes > 1:
        torch.set_num_threads(max(1, usable_cores() // processes))
    config, leader = job.config, job.leader(device)
    plan = leader.plan()
    logger.info("%s, into %s (nothing is written now)", config.source, leader.root)
    logger.info("%s", plan.summary())
    _log_sizes(plan)
    _log_models(config, plan)
    task = next((task for task in plan.tasks if task.predict and task.size != (0, 0)), None)
    if task is not None:
        _log_cost(config, plan, task, device, processes)


def _log_sizes(plan: Plan) -> None:
    sizes = Counter(task.size for task in plan.tasks if task.predict)
    for (height, width), count in sizes.items():
        what = f"{width} x {height} px" if height else "unreadable, they would fail"
        tiles = sum(t.parts for t in plan.tasks if t.predict and t.size == (height, width))
        noun = "tiles" if tiles > count else "images"
        logger.info("  %d %s: %s", max(tiles, count), noun, what)


def _log_models(config: InferenceConfig, plan: Plan) -> None:
    how = ", ".join(f"{key} {value}" for key, value in plan.settings.items() if key != "models")
    logger.info("%d models, %s", len(config.models), how.replace("None", "null"))
    for entry in config.models:
        loaded = load_entry(entry)
        check_views(loaded, Tta.from_name(config.tta))
        count = sum(weights.numel() for weights in loaded.model.parameters())
        name = loaded.config["model"].get("slug") or type(loaded.model).__name__
        logger.info(
            "  %s: %s%s%s%s", loaded.source, name,
            f", {count / 1e6:.1f} M parameters" if count else "",  # an engine keeps its own
            f", images reduced by {loaded.downsample}" if loaded.downsample > 1 else "",
            f", images brought to {loaded.gsd_m:g} m/px" if loaded.gsd_m else "",
        )  # fmt: skip


def _log_cost(
    config: InferenceConfig, plan: Plan, task: Task, device: torch.device, processes: int
) -> None:
    """Memory and time of the largest image, and what follows for all of them."""
    part = task.read(0)
    if part.rgb is None:
        logger.info("%s cannot be tried: %s", task.name, part.problem or "its first tile is empty")
        return
    shape = torch.Size((config.batch_size, 3, *part.rgb.shape[:2]))
    sample, times = _sample(config, device, shape)
    pixels_in_all = times * plan.pixels
    ensemble = build_ensemble(sample, device, int(pixels_in_all / processes))
    first_s, seconds = _timed(ensemble, device, [part.rgb] * sample.batch_size, part.gsd_m)
    rate = pixels_in_all / (shape[2] * shape[3]) / processes  # images of this size
    total_s = first_s + seconds * max(0.0, rate - sample.batch_size)
    logger.info(
        "%s%s took %.2f s on %s%s; about %s for all with %d process%s",
        "one view of " if sample.tta != config.tta else "", task.name, seconds, device,
        f", the start {first_s:.1f} s" if first_s > seconds else "",
        timedelta(seconds=round(total_s)), processes, "" if processes == 1 else "es",
    )  # fmt: skip
    if any(getattr(member, "gsd_m", None) for member in ensemble.members):
        logger.info(
            "images are brought to one gsd: one of another than that image's takes time and memory "
            "by the square of it"
        )
    held = held_bytes(Tta.from_name(config.tta), config.tta_mode, shape)
    held -= held_bytes(
        Tta.from_name(sample.tta), sample.tta_mode, torch.Size((sample.batch_size, *shape[1:]))
    )
    logger.info("memory of each process: %s", _memory(device, held))


def _timed(
    ensemble: PoseEnsemble, device: torch.device, images: list[NDArray[np.uint8]], gsd_m: float
) -> tuple[float, float]:
    """Seconds of the first batch, and of each image of later ones.

    A GPU is asked twice: the first time it loads its libraries, tries kernels for every layer and
    perhaps compiles, which no other image pays for.
    """
    device_copy, took = DeviceCopy(device), []
    with torch.inference_mode():
        for _ in range(1 if device.type == "cpu" else 2):
            started = time.perf_counter()
            predict(
                ensemble, device_copy, images, [gsd_m] * len(images), lambda found, _: [found.agl_m]
            )()
            took.append(time.perf_counter() - started)
    return took[0], took[-1] / len(images)


def _sample(
    config: InferenceConfig, device: torch.device, shape: torch.Size
) -> tuple[InferenceConfig, float]:
    """What is tried, and how many times as long an image takes.

    On a CPU views and images go through a network one after the other, so one view of one image
    tells what all will take. A GPU takes as many at once as fit, so all are tried.
    """
    if device.type != "cpu":
        return config, 1.0
    image, gsd_m = torch.empty(shape, device="meta"), torch.empty(shape[0], 1, device="meta")
    looks = [view.look(image, gsd_m).image for view in Tta.from_name(config.tta).views]
    times = sum(look.numel() for look in looks) / image.numel()
    return replace(config, tta=None, batch_size=1), times


def _memory(device: torch.device, not_tried: int) -> str:
    """Of this process and, if there is one, its GPU.

    Args:
        device: where the models ran.
        not_tried: bytes that a run takes beside what was tried; 0 on a GPU.
    """
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + not_tried
    text = f"{host / 1e9:.1f} GB"
    if device.type == "cuda":
        text += f", on the GPU {torch.cuda.max_memory_reserved(device) / 1e9:.1f} GB"
    return text
