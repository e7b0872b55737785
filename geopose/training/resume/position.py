"""Where a run stands: what `last.pth` holds beside the weights, and how a run goes on from it.

Random numbers are not in it: they follow from the seed and the position (seeding.py).
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.distributed import gather_objects, is_distributed, is_main, rank, together, world_size
from geopose.errors import RunError
from geopose.training.resume.run_files import file_sizes

LAST = "last.pth"
PREVIOUS = "previous.pth"
STATE = "resume"


def _callback_states(runner: Any, per_rank: bool) -> dict[str, Any]:
    return {
        name: callback.state_dict()
        for name, callback in runner.callbacks.items()
        if hasattr(callback, "state_dict") and getattr(callback, "is_per_rank", False) is per_rank
    }


def snapshot(runner: Any, is_epoch_end: bool) -> dict[str, Any]:
    """The run's position: small, so that it can be taken at any time. All ranks call it together.

    Args:
        runner: the GeoposeRunner.
        is_epoch_end: validated and all; otherwise `runner.epoch_batch` batches of it are done.
    """
    own: dict[str, Any] = {}
    if not is_epoch_end:
        own["callbacks"] = _callback_states(runner, per_rank=True)
        if is_distributed():  # BatchNorm statistics differ until validation
            own["buffers"] = [buffers(network) for network in runner.networks]
    runner.flush_log()
    return {
        "epoch": runner.epoch_step if is_epoch_end else runner.epoch_step - 1,
        "batch": 0 if is_epoch_end else runner.epoch_batch,
        "stopped_early": is_epoch_end and runner.need_early_stop,
        "updates": runner.updates,
        "batch_step": runner.batch_step,
        "sample_step": runner.sample_step,
        "processes": world_size(),
        "callbacks": _callback_states(runner, per_rank=False),
        "ranks": gather_objects(own),
        "files": file_sizes(runner.run_dir) if is_main() else {},
    }


def buffers(network: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's buffers on the CPU."""
    return {name: buffer.cpu().clone() for name, buffer in network.named_buffers()}


def write_last(runner: Any, folder: Path, header: Mapping[str, Any], state: Mapping) -> None:
    """Writes `last.pth`; the one before it stays as `previous.pth`. All ranks call it together.

    Raises:
        RunError: it cannot be written; what was there before is intact.
    """
    together(lambda: _write_last(runner, folder, header, state) if is_main() else None)


def _write_last(runner: Any, folder: Path, header: Mapping[str, Any], state: Mapping) -> None:
    done = {"epoch": state["epoch"], "metrics": runner.finished_metrics}
    payload = {
        **header,
        **done,
        "checkpoint_data": {**header["checkpoint_data"], **done},
        "model_state_dict": runner.network.state_dict(),
        "optimizer_state_dict": runner.optimizer.state_dict(),
        "scheduler_state_dict": runner.scheduler.state_dict(),
        "scaler_state_dict": runner.precision.scaler.state_dict(),
        STATE: dict(state),
    }
    if runner.ema is not None:
        payload["ema_state_dict"] = runner.ema.module.state_dict()
    last, previous = folder / LAST, folder / PREVIOUS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(last, payload, keep=previous)
    except OSError as error:
        raise RunError(f"{folder}: cannot write a checkpoint ({error})") from error


def restore(runner: Any, payload: Mapping[str, Any]) -> None:
    """Puts a run that has just been set up where a checkpoint left it.

    Args:
        runner: the GeoposeRunner, with model, optimizer and callbacks made.
        payload: `last.pth` as load_checkpoint returns it.
    """
    state = payload[STATE]
    runner.network.load_state_dict(payload["model_state_dict"])
    if runner.ema is not None:
        runner.ema.module.load_state_dict(payload["ema_state_dict"])
    # Copies: what has been read lies in the file, which will be replaced.
    load_optimizer(runner.optimizer, payload["optimizer_state_dict"])
    runner.scheduler.load_state_dict(copy.deepcopy(payload["scheduler_state_dict"]))
    if payload["scaler_state_dict"]:
        runner.precision.scaler.load_state_dict(copy.deepcopy(payload["scaler_state_dict"]))
    own = state["ranks"][rank()]
    for network, values in zip(runner.networks, own.get("buffers", []), strict=False):
        for name, buffer in network.named_buffers():
            buffer.copy_(values[name])
    for name, callback in runner.callbacks.items():
        for states in (state["callbacks"], own.get("callbacks", {})):
            if name in states:
                callback.load_state_dict(states[name])
    runner.epoch_step, runner.epoch_batch = state["epoch"], state["batch"]
    runner.updates = state["updates"]
    runner.batch_step, runner.sample_step = state["batch_step"], state["sample_step"]
    runner.finished_metrics = copy.deepcopy(payload["metrics"])


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Puts an optimizer where `state` left it; how it computes stays as it was built.

    Args:
        optimizer: of the same kind and parameters.
        state: its `state_dict()`, after `check_fits`; also of a version that did not fuse updates.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups = [
        {
            key: saved[key] if key == "params" or _moves(own, saved.get(key)) else own
            for key, own in group.items()
        }
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    values = {
        number: {name: _laid_out(value, parameters[number]) for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    optimizer.load_state_dict({"param_groups": groups, "state": values})


def _moves(own: Any, saved: Any) -> bool:
    """Whether a setting of a group changes while an optimizer works: numbers do."""
    is_setting = isinstance(own, bool) or not isinstance(own, int | float | Tensor)
    return not is_setting and saved is not None


def _laid_out(value: Any, parameter: Tensor) -> Any:
    """A copy of a state, in memory as its parameter is: the file's strides are nobody's."""
    if not isinstance(value, Tensor):
        return value
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.clone(memory_format=torch.contiguous_format)
