"""Assembles a training run from its config and runs it; what enters is the composed config, what
leaves is a run directory with checkpoints, logs and the config itself.
"""

import contextlib
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from geopose.augment.levels import LEVELS
from geopose.checkpoints.formats.facts import GSD_RANGE
from geopose.checkpoints.remote.credentials import hide_credentials
from geopose.construct import plain
from geopose.distributed import (
    exchange_errors,
    init_from_env,
    is_distributed,
    is_main,
    local_world_size,
    shutdown,
    together,
    world_size,
)
from geopose.errors import GeoposeError, InputError, RunError
from geopose.files.atomic import atomic_path
from geopose.losses.total import build_loss
from geopose.models.build import build_model, channel_order, model_slug
from geopose.schema.old_keys import without_old_arguments
from geopose.system.devices import is_out_of_memory
from geopose.system.memory import keep_freed_memory
from geopose.system.signals import StopSignal
from geopose.training.callbacks.order import build_callbacks
from geopose.training.callbacks.stop import TimeBudget
from geopose.training.check import check_batch_norm, check_config, check_metrics, fitting_loss
from geopose.training.data.loaders import build_loaders, end_workers
from geopose.training.data.resources import choose_resources
from geopose.training.ema import build_ema
from geopose.training.initial_weights import WEIGHTS_KEYS, apply_initial_weights
from geopose.training.optim import build_optimizer, build_scheduler
from geopose.training.precision import Precision
from geopose.training.resume.fits import check_driver, check_fits
from geopose.training.resume.ownership import Ownership
from geopose.training.resume.position import LAST, STATE
from geopose.training.resume.run_files import rewind
from geopose.training.runner import GeoposeRunner, RunParts, build_engine
from geopose.training.start import LAUNCH_FILE, Start, abandon, choose_start, launch_name
from geopose.training.sync_bn import synchronise_batchnorm

logger = logging.getLogger(__name__)


def _apply_switches(cfg: Mapping[str, Any]) -> None:
    if cfg["deterministic"]:
        logger.info(
            "deterministic=true: on a GPU steps are slower (no search for the fastest kernels) and "
            "take more memory (gradients of resized maps); with the same seed they repeat"
        )
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(bool(cfg["deterministic"]), warn_only=True)
    torch.autograd.set_detect_anomaly(bool(cfg["detect_anomaly"]))


def _build_model(start: Start, device: torch.device) -> nn.Module:
    cfg = start.cfg
    torch.manual_seed(cfg["seed"])
    is_resumed = start.payload is not None
    has_weights = bool(is_resumed or cfg["checkpoint"] or cfg["transfer_encoder_decoder"])
    model: Any = build_model(cfg["model"], load_pretrained=not has_weights)
    if not is_resumed:
        apply_initial_weights(model, cfg)
    if cfg["freeze_encoder"]:
        model.encoder.requires_grad_(False)
    if cfg["sync_bn"] and is_distributed():
        model = synchronise_batchnorm(model, device)
    return model


def _header(cfg: Mapping[str, Any], loaders: Mapping[str, Any]) -> dict[str, Any]:
    """What every checkpoint of the run says beside its weights."""
    images = [record.gsd_m for record in loaders["train"].dataset.records]
    finest, coarsest = LEVELS[cfg["train"]["augmentations"]].spatial.gsd_factors
    return {
        "channel_order": channel_order(cfg["model"]),
        GSD_RANGE: [min(images) * finest, max(images) * coarsest],
        "checkpoint_data": {"config": cfg},
    }


def _first_folder(cfg: Mapping[str, Any], run_dir: Path) -> Path:
    return run_dir / f"checkpoints_{cfg['runner']['checkpoints'][0]['name']}"


def _assemble(start: Start, device: torch.device) -> RunParts:
    """Everything that can fail on bad input comes before the run directory is made."""
    cfg = start.cfg
    train, optimizer_cfg = cfg["train"], cfg["optimizer"]
    workers = train["loaders"]
    resources = choose_resources(
        workers["train"]["num_workers"],
        workers["valid"]["num_workers"],
        train["threads"],
        device,
        local_world_size(),
    )
    if device.type == "cpu":
        torch.set_num_threads(resources.threads)
    precision = Precision(_precision_name(optimizer_cfg), device)
    criterion = build_loss(cfg["loss"])
    loaders = build_loaders(cfg, resources, device, criterion.batch_keys)
    _check_same_data(start, loaders)
    model = _build_model(start, device)
    criterion = fitting_loss(model, criterion)
    check_metrics(cfg, criterion.prefixes)
    check_batch_norm(model, cfg, len(loaders["train"].sampler))  # type: ignore[arg-type]
    model = model.to(device)
    channels_last = cfg["channels_last"] and precision.likes_channels_last
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision.adapt(model)
    optimizer = build_optimizer(model, optimizer_cfg, world_size())
    steps = -(-len(loaders["train"]) // optimizer_cfg["accumulation"]) * train["epochs"]
    budget = TimeBudget(train["max_minutes"])
    scheduler = build_scheduler(
        optimizer,
        cfg["scheduler"],
        lambda step: max(step / steps, budget.share_used),
        optimizer_cfg["lr"] * world_size(),
        cfg["runner"]["main_mode"],
    )
    ema = build_ema(model, train["ema"])
    header = _header(cfg, loaders)
    callbacks = build_callbacks(cfg, start.run_dir, budget, header)
    if start.payload is not None:
        _check_resume(start, model, ema, optimizer, scheduler, precision)
    return RunParts(
        model=model,
        ema=ema,
        criterion=criterion,
        optimizer=optimizer,
        scheduler=scheduler,
        loaders=loaders,
        callbacks=callbacks,
        engine=build_engine(device),
        precision=precision,
        channels_last=channels_last,
        header={**header, "data_checksum": _data_checksum(loaders)},
        run_dir=start.run_dir,
        last_folder=_first_folder(cfg, start.run_dir),
        cfg=cfg,
        payload=start.payload,
    )


def _check_resume(
    start: Start,
    model: nn.Module,
    ema: ModelEmaV3 | None,
    optimizer: Optimizer,
    scheduler: Any,
    precision: Precision,
) -> None:
    """Refuses a checkpoint that is not one of this run, as long as nothing has been written."""
    assert start.payload is not None
    assert start.source is not None
    payload, path = start.payload, start.source
    networks = [model] if ema is None else [model, ema.module]

    def build(network: nn.Module) -> Optimizer:
        return build_optimizer(network, {**start.cfg["optimizer"], "layerwise": {}}, world_size())

    check_fits(payload, payload[STATE], networks, optimizer, build, path)
    for name, driver in (("scheduler", scheduler), ("scaler", precision.scaler)):
        key = f"{name}_state_dict"
        check_driver(payload[key], driver.state_dict(), key, path)


def _precision_name(optimizer_cfg: Mapping[str, Any]) -> str:
    """`fp16` is how published configs spell it; true means fp16, whatever `precision` says."""
    fp16 = optimizer_cfg["fp16"]
    if fp16 is None:
        return optimizer_cfg["precision"]
    return "fp16" if fp16 else "fp32"


def _data_checksum(loaders: Mapping[str, Any]) -> int:
    """Of the ids of the training and the validation images."""
    ids = [
        [record.image_id for record in loaders[key].dataset.records] for key in ("train", "valid")
    ]
    return zlib.crc32(repr(ids).encode())


def _check_same_data(start: Start, loaders: Mapping[str, Any]) -> None:
    if start.payload and start.payload["data_checksum"] != _data_checksum(loaders):
        raise InputError(
            f"{start.cfg['dataset']['data_dir']}: other images than those that the run in "
            f"{start.run_dir} was started with; give another experiment=DIR"
        )


def _make_run_directory(start: Start, owner: Ownership) -> None:
    """Makes it on rank 0, with the whole config in it; a resumed one goes back to its checkpoint.

    Raises:
        InputError: it cannot be made, or another training has begun in it meanwhile.
    """
    if not is_main():
        return
    run_dir = start.run_dir
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        owner.take(run_dir)
        if start.payload is None and (_first_folder(start.cfg, run_dir) / LAST).is_file():
            raise InputError(
                f"experiment: another run has begun in {run_dir}; give another experiment=DIR"
            )
        if (run_dir / LAUNCH_FILE).is_file():  # ours: what is there may be cut back
            rewind(run_dir, start.payload[STATE]["files"] if start.payload else {})
        (run_dir / LAUNCH_FILE).write_text(launch_name(), encoding="utf-8")
        with atomic_path(run_dir / "config.yaml") as temporary:
            OmegaConf.save(OmegaConf.create(start.cfg), temporary)
    except OSError as error:
        raise InputError(f"{run_dir}: cannot be made ({error}); give another experiment=DIR") from (
            error
        )


def fit(config: DictConfig, overrides: Sequence[str] | None = None) -> Path:
    """Trains as `config` says, or goes on with the run that is in its run directory.

    Args:
        config: the composed training config (configs/config.yaml and its groups).
        overrides: what the user has set in it (`key=value`); the other keys follow the run that is
            resumed. None = all of them count as set.

    Returns:
        The run directory, with `config.yaml`, `metrics.csv`, `tensorboard/` and `checkpoints_*/`.

    Raises:
        InputError: bad config or data, or another run is there; nothing has been written.
        RunError: too many losses are not finite, a checkpoint cannot be written, or the exchange
            between the processes failed.
        Stopped: a signal asked for it; everything is saved.
    """
    device = init_from_env()
    if device.type == "cpu":
        keep_freed_memory()
    owner = Ownership()
    with exchange_errors(), StopSignal() as signals, contextlib.closing(owner):
        cfg, own = together(lambda: _checked(config, overrides))
        start = choose_start(cfg, own, owner)
        start = replace(start, cfg=together(lambda: check_config(start.cfg)))
        _apply_switches(start.cfg)
        if _is_finished(start):
            logger.info("%s: finished already; nothing to do", start.run_dir)
        else:
            parts = _prepare(start, device, owner)
            _announce(start, parts, device)
            try:
                _run(parts, signals)
            finally:
                end_workers(parts.loaders.values())
            _report(start.cfg, parts)
    # Not after an error: the others would fail at the closed connection, and the launcher would end
    # this process before it has said what was wrong.
    shutdown()
    return start.run_dir


def _plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers; what it says goes into files, passwords must not."""
    cfg: dict[str, Any] = plain(config)
    for key in WEIGHTS_KEYS:
        if isinstance(cfg.get(key), str):
            cfg[key] = hide_credentials(cfg[key])
    return cfg


def _prepare(start: Start, device: torch.device, owner: Ownership) -> RunParts:
    try:
        parts = together(lambda: _assemble(start, device))
    except GeoposeError:
        owner.close()
        if is_main() and not start.cfg["experiment"] and start.payload is None:
            abandon(start.run_dir)
        raise
    together(lambda: _make_run_directory(start, owner))
    return parts


def _checked(
    config: DictConfig, overrides: Sequence[str] | None
) -> tuple[dict[str, Any], list[str] | None]:
    """What `fit` is given, without keys that have gone."""
    own = None if overrides is None else without_old_arguments(overrides)
    return check_config(_plain(config)), own


def _is_finished(start: Start) -> bool:
    """All epochs done, or ended early by settings that have not changed since."""
    if start.payload is None:
        return False
    state, train = start.payload[STATE], start.cfg["train"]
    before = start.payload["checkpoint_data"]["config"]["train"]
    same = all(train[key] == before[key] for key in ("early_stopping", "max_minutes"))
    return state["epoch"] >= train["epochs"] or (state["stopped_early"] and same)


def _run(parts: RunParts, signals: StopSignal) -> None:
    """Trains; failures that a user can understand become one line."""
    cfg = parts.cfg
    try:
        GeoposeRunner(parts, signals).run()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise RunError(
                f"out of memory with batch_size={cfg['batch_size']} and "
                f"train.crop_size={cfg['train']['crop_size']}; lower one of them"
            ) from error
        if is_distributed() and "peer" in str(error):
            raise RunError("another process of this run has failed; its message says why") from (
                error
            )
        raise


def _announce(start: Start, parts: RunParts, device: torch.device) -> None:
    processes = world_size()
    logger.info(
        "training %s on %s in %s, %d process%s of %d threads: "
        "%d batches of %d an epoch, %d validation images; run directory %s",
        model_slug(start.cfg["model"]),
        device,
        parts.precision.name,
        processes,
        "" if processes == 1 else "es",
        torch.get_num_threads(),
        len(parts.loaders["train"]),
        start.cfg["batch_size"],
        len(parts.loaders["valid"].dataset),  # type: ignore[arg-type]
        start.run_dir,
    )
    if start.payload is not None:
        _announce_resume(start)


def _announce_resume(start: Start) -> None:
    assert start.payload is not None
    state = start.payload[STATE]
    logger.info("resumed after epoch %d, batch %d of the next", state["epoch"], state["batch"])
    before, now = (
        config["train"]["epochs"]
        for config in (start.payload["checkpoint_data"]["config"], start.cfg)
    )
    if before != now:
        logger.info("train.epochs %d -> %d: the rate follows the new schedule", before, now)
    version = start.payload["versions"]["torch"]
    if version != str(torch.__version__):
        logger.warning(
            "the run was started with torch %s, this is %s: it goes on, but not bit for bit as it "
            "would have",
            version,
            torch.__version__,
        )


def _report(cfg: Mapping[str, Any], parts: RunParts) -> None:
    first = cfg["runner"]["checkpoints"][0]
    best = getattr(parts.callbacks[f"checkpoints_{first['name']}"], "best", None)
    text = "undefined" if best is None else f"{best:.4f}"
    logger.info("best %s %s; checkpoints in %s", first["metric"], text, parts.last_folder)
