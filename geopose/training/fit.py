"""Assembles a training run from its config and runs it; what enters is the composed config, what
leaves is a run directory with checkpoints, logs and the config itself.
"""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from catalyst.core.callback import Callback
from omegaconf import DictConfig, OmegaConf
from torch import nn

from geopose.construct import plain
from geopose.data.io import atomic_path
from geopose.distributed import (
    broadcast_object,
    init_from_env,
    is_distributed,
    is_main,
    shutdown,
    together,
    world_size,
)
from geopose.errors import InputError, RunError
from geopose.losses import build_loss
from geopose.models.build import build_model, channel_order
from geopose.training.budget import TimeBudget
from geopose.training.callbacks import (
    BackwardCallback,
    CheckpointCallback,
    EarlyStoppingCallback,
    LossCallback,
    OptimizerCallback,
    PanelCallback,
    PlateauCallback,
    ProgressCallback,
    ScoreCallback,
    TimeBudgetCallback,
)
from geopose.training.check import check_config, check_loss, check_metrics
from geopose.training.loaders import build_loaders
from geopose.training.optim import build_optimizer, build_scheduler
from geopose.training.resources import choose_resources
from geopose.training.runner import GeoposeRunner, RunParts, build_engine, resolve_precision
from geopose.training.transfer import apply_initial_weights
from geopose.training.wait import DataWaitCallback

logger = logging.getLogger(__name__)


def run_directory(cfg: Mapping[str, Any]) -> Path:
    """The directory of this run, the same on every rank.

    Raises:
        InputError: it already holds a run (on every rank alike).
    """
    slug, fold = cfg["model"]["slug"], cfg["dataset"]["fold"]
    stamp = time.strftime("%y%m%d_%H_%M")
    named = cfg["experiment"] or f"runs/{stamp}_{slug}_fold{fold}"
    path = Path(broadcast_object(str(named)))
    if not cfg["experiment"]:  # two runs may start in the same minute
        taken, base = 1, path
        while broadcast_object(path.exists()):
            taken += 1
            path = base.with_name(f"{base.name}_{taken}")
    if broadcast_object(any(path.glob("checkpoints_*/*.pth"))):
        problem = InputError(f"{path}: already holds a run; give another experiment=DIR")
        problem.on_every_rank = True
        raise problem
    return path


def _apply_switches(cfg: Mapping[str, Any]) -> None:
    if cfg["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(bool(cfg["deterministic"]), warn_only=True)
    torch.autograd.set_detect_anomaly(bool(cfg["detect_anomaly"]))


def _build_model(cfg: Mapping[str, Any]) -> nn.Module:
    torch.manual_seed(cfg["seed"])
    has_weights = bool(cfg["checkpoint"] or cfg["transfer_encoder_decoder"])
    model = build_model(cfg["model"], load_pretrained=not has_weights)
    apply_initial_weights(model, cfg)
    if cfg["channels_last"]:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _callbacks(cfg: Mapping[str, Any], run_dir: Path, budget: TimeBudget) -> dict[str, Callback]:
    runner, optimizer, train = cfg["runner"], cfg["optimizer"], cfg["train"]
    order = channel_order(cfg["model"])
    header = {"channel_order": order, "checkpoint_data": {"config": cfg}}
    callbacks: dict[str, Callback] = {
        "loss": LossCallback(),
        "backward": BackwardCallback(optimizer["accumulation"]),
        "optimizer": OptimizerCallback(optimizer["accumulation"], optimizer["clip_grad_norm"]),
        "schedule": PlateauCallback(runner["main_metric"]),
        "score": ScoreCallback(),
        "data_wait": DataWaitCallback(),
        "progress": ProgressCallback(),
    }
    for number, entry in enumerate(runner["checkpoints"]):
        callbacks[f"checkpoints_{entry['name']}"] = CheckpointCallback(
            run_dir / f"checkpoints_{entry['name']}",
            entry["metric"],
            entry["mode"],
            runner["top_k"],
            keep_last=number == 0,
            header=header,
        )
    if train["max_minutes"] is not None:
        callbacks["time_budget"] = TimeBudgetCallback(budget)
    if train["show"]:
        callbacks["panels"] = PanelCallback(order)
    if train["early_stopping"]:
        callbacks["early_stopping"] = EarlyStoppingCallback(
            train["early_stopping"], runner["main_metric"], runner["main_mode"]
        )
    return callbacks


def _assemble(cfg: dict[str, Any], device: torch.device, run_dir: Path) -> RunParts:
    """Everything that can fail on bad input comes before the run directory is made."""
    train = cfg["train"]
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    workers = train["loaders"]
    resources = choose_resources(
        workers["train"]["num_workers"],
        workers["valid"]["num_workers"],
        train["threads"],
        device,
        local,
    )
    if device.type == "cpu":
        torch.set_num_threads(resources.threads)
    loaders = build_loaders(cfg, resources, device)
    criterion = build_loss(cfg["loss"])
    check_metrics(cfg, criterion.prefixes)
    model = _build_model(cfg)
    check_loss(model, criterion, cfg["runner"]["input_keys"])
    optimizer = build_optimizer(model, cfg["optimizer"], world_size())
    steps = -(-len(loaders["train"]) // cfg["optimizer"]["accumulation"]) * train["epochs"]
    lr = cfg["optimizer"]["lr"] * world_size()
    budget = TimeBudget(train["max_minutes"])
    scheduler = build_scheduler(
        optimizer,
        cfg["scheduler"],
        lambda step: max(step / steps, budget.share_used),
        lr,
        cfg["runner"]["main_mode"],
    )
    return RunParts(
        model=model,
        criterion=criterion,
        optimizer=optimizer,
        scheduler=scheduler,
        loaders=loaders,
        callbacks=_callbacks(cfg, run_dir, budget),
        engine=build_engine(device, cfg["optimizer"]["precision"], cfg["find_unused"]),
        input_keys=cfg["runner"]["input_keys"],
        log_dir=run_dir / "tensorboard",
        epochs=train["epochs"],
        seed=cfg["seed"],
        mixup=float(train["mixup"]),
        channels_last=cfg["channels_last"],
    )


def _make_run_directory(cfg: Mapping[str, Any], run_dir: Path) -> None:
    """Makes it on rank 0, with the whole config in it."""
    if not is_main():
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with atomic_path(run_dir / "config.yaml") as temporary:
            OmegaConf.save(OmegaConf.create(dict(cfg)), temporary)
    except OSError as error:
        raise InputError(f"{run_dir}: cannot be made ({error}); give another experiment=DIR") from (
            error
        )


def fit(config: DictConfig) -> Path:
    """Trains as `config` says.

    Args:
        config: the composed training config (configs/config.yaml and its groups).

    Returns:
        The run directory, with `config.yaml`, `tensorboard/` and `checkpoints_*/`.

    Raises:
        InputError: bad config or data; nothing has been written.
        RunError: the loss is not finite, or a checkpoint cannot be written.
    """
    device = init_from_env()
    cfg = together(lambda: _checked(config))
    _apply_switches(cfg)
    run_dir = run_directory(cfg)
    parts = together(lambda: _assemble(cfg, device, run_dir))
    together(lambda: _make_run_directory(cfg, run_dir))
    _announce(cfg, parts, device, run_dir)
    _run(parts, cfg)
    _report(cfg, parts, run_dir)
    # Not after an error: the others would fail at the closed connection, and the launcher would end
    # this process before it has said what was wrong.
    shutdown()
    return run_dir


def _checked(config: DictConfig) -> dict[str, Any]:
    cfg = plain(config)
    check_config(cfg)
    return cfg


def _run(parts: RunParts, cfg: Mapping[str, Any]) -> None:
    """Trains; failures that a user can understand become one line."""
    try:
        GeoposeRunner(parts).run()
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory with batch_size={cfg['batch_size']} and "
            f"train.crop_size={cfg['train']['crop_size']}; lower one of them"
        ) from error
    except RuntimeError as error:
        if is_distributed() and "peer" in str(error):
            raise RunError("another process of this run has failed; its message says why") from (
                error
            )
        raise


def _announce(cfg: Mapping[str, Any], parts: RunParts, device: torch.device, run_dir: Path) -> None:
    processes = world_size()
    logger.info(
        "training %s on %s in %s, %d process%s of %d threads: "
        "%d batches of %d an epoch, %d validation images; run directory %s",
        cfg["model"]["slug"],
        device,
        resolve_precision(cfg["optimizer"]["precision"], device),
        processes,
        "" if processes == 1 else "es",
        torch.get_num_threads(),
        len(parts.loaders["train"]),
        cfg["batch_size"],
        len(parts.loaders["valid"].dataset),  # type: ignore[arg-type]
        run_dir,
    )


def _report(cfg: Mapping[str, Any], parts: RunParts, run_dir: Path) -> None:
    first = cfg["runner"]["checkpoints"][0]
    callback = parts.callbacks[f"checkpoints_{first['name']}"]
    best = getattr(callback, "best", None)
    if is_main():
        folder = run_dir / f"checkpoints_{first['name']}"
        logger.info("best %s %s; checkpoints in %s", first["metric"], f"{best:.4f}", folder)
