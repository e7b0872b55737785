"""Says what a run would do: images, models, memory, time. Predicts one image, writes nothing."""

import logging
import resource
import time
from collections import Counter
from datetime import timedelta

import torch

from geopose import distributed
from geopose.cores import usable_cores
from geopose.data.io import read_rgb
from geopose.inference.build import build_ensemble, load_entry
from geopose.inference.config import InferenceConfig
from geopose.inference.launch import use_device
from geopose.inference.pipeline import predict
from geopose.inference.plan import Plan, Task
from geopose.inference.run import Leader, RunOptions
from geopose.inference.transfer import Transfer
from geopose.output.writer import to_centimetres

_LOG = logging.getLogger(__name__)


def dry_run(config: InferenceConfig, options: RunOptions, processes: int) -> None:
    """Logs what `run_inference` would do with the same arguments.

    Args:
        config: the run.
        options: of the command.
        processes: how many would share the images.

    Raises:
        GeoposeError: what would stop the run at its start.
    """
    use_device()
    device = distributed.local_device()
    if device.type == "cpu" and processes > 1:
        torch.set_num_threads(max(1, usable_cores() // processes))
    plan = Leader(config, options, device).plan()
    _LOG.info("%s, into %s (nothing is written now)", config.source, config.submission_dir)
    _LOG.info("%s", plan.summary())
    _log_sizes(plan)
    _log_models(config, plan)
    task = next((task for task in plan.tasks if task.predict and task.size != (0, 0)), None)
    if task is not None:
        _log_cost(config, plan, task, device, processes)


def _log_sizes(plan: Plan) -> None:
    sizes = Counter(task.size for task in plan.tasks if task.predict)
    for (height, width), count in sizes.items():
        what = f"{width} x {height} px" if height else "unreadable, they would fail"
        _LOG.info("  %d images: %s", count, what)


def _log_models(config: InferenceConfig, plan: Plan) -> None:
    how = ", ".join(f"{key} {value}" for key, value in plan.settings.items() if key != "models")
    _LOG.info("%d models, %s", len(config.models), how.replace("None", "null"))
    for entry in config.models:
        loaded = load_entry(entry)
        millions = sum(weights.numel() for weights in loaded.model.parameters()) / 1e6
        name = loaded.config["model"].get("slug") or type(loaded.model).__name__
        _LOG.info(
            "  %s: %s, %.1f M parameters%s", loaded.source, name, millions,
            f", images reduced by {loaded.downsample}" if loaded.downsample > 1 else "",
        )  # fmt: skip


def _log_cost(
    config: InferenceConfig, plan: Plan, task: Task, device: torch.device, processes: int
) -> None:
    """Memory and time of the largest image, and what follows for all of them."""
    to_predict = [t for t in plan.tasks if t.predict]
    ensemble = build_ensemble(config, device, -(-len(to_predict) // processes))
    rgb = read_rgb(task.record.rgb_file())
    started = time.perf_counter()
    with torch.inference_mode():
        pixels = Transfer(device).upload([rgb] * config.batch_size)
        gsd_m = torch.full((config.batch_size, 1), task.record.gsd_m, device=device)
        prediction = predict(ensemble, pixels, gsd_m, config.batch_size)
        to_centimetres(prediction.agl_m).agl_cm.cpu()
    seconds = (time.perf_counter() - started) / config.batch_size
    pixels_in_all = sum(t.size[0] * t.size[1] for t in to_predict)
    total_s = seconds * pixels_in_all / (task.size[0] * task.size[1]) / processes
    _LOG.info(
        "%s took %.2f s on %s, the first image and the start of the models included; about %s for "
        "all with %d process%s",
        task.record.rgb.name, seconds, device, timedelta(seconds=round(total_s)), processes,
        "" if processes == 1 else "es",
    )  # fmt: skip
    _LOG.info("memory of each process: %s", _memory(device))


def _memory(device: torch.device) -> str:
    host_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    text = f"{host_gb:.1f} GB"
    if device.type == "cuda":
        text += f", on the GPU {torch.cuda.max_memory_reserved(device) / 1e9:.1f} GB"
    return text
