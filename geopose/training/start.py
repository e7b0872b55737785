"""Decides where a run writes, and whether it starts or goes on from what is there.

In: the composed config and what the user has set explicitly. Out: the run directory, the config
that counts, and the `last.pth` to go on from, the same on every rank.
"""

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from geopose.checkpoints.formats.pth import load_checkpoint
from geopose.distributed import broadcast_object, is_main, together, world_size
from geopose.errors import InputError, one_line
from geopose.models.build import model_slug
from geopose.models.legacy import current_model_config
from geopose.schema.check import defaults
from geopose.schema.old_keys import without_old_keys
from geopose.training.config import Dataset, Loader, Optimizer, Runner, Train, ValidLoader
from geopose.training.resume.form import check_form
from geopose.training.resume.ownership import Ownership
from geopose.training.resume.position import LAST, PREVIOUS, STATE
from geopose.words import DEMO

logger = logging.getLogger(__name__)

LAUNCH_FILE = "launch"  # which launcher a run belongs to, so that its restarts find it
_MAX_NAMED = 5
# What may differ from the session before: it does not change what is learned from what.
_FREE = (
    "experiment", "resume", "checkpoint", "find_unused", "detect_anomaly", "dataset.data_dir",
    "dataset.places",
    "train.epochs", "train.early_stopping", "train.max_minutes", "train.save_every_minutes",
    "train.show", "train.loaders", "train.threads", "train.cache", "train.max_skipped_share",
    "runner.top_k",
)  # fmt: skip
# Mappings with the same keys in every run.
_BLOCKS: Mapping[str, type] = {
    "train": Train,
    "train.loaders.train": Loader,
    "train.loaders.valid": ValidLoader,
    "optimizer": Optimizer,
    "runner": Runner,
    "dataset": Dataset,
}


@dataclass(frozen=True)
class Start:
    """Attributes:
    run_dir: of the run.
    cfg: the config that counts, for a resumed run that of its beginning with the user's changes.
    payload: the checkpoint to go on from; None = from the beginning.
    source: the file that it was read from.
    """

    run_dir: Path
    cfg: dict[str, Any]
    payload: Mapping[str, Any] | None = None
    source: Path | None = None


def choose_start(
    cfg: dict[str, Any], overrides: Sequence[str] | None, owner: Ownership | None = None
) -> Start:
    """Finds out what this command is to do. All ranks call it together.

    Args:
        cfg: the composed config.
        overrides: the user's arguments (`key=value`); keys that are not among them follow the run
            that is resumed. None = every key counts as set by the user.
        owner: takes the run directory, if it is there, before anything in it is read.

    Raises:
        InputError: a run is there that differs, must not be resumed, or is going on; or there is
            none.
    """
    named = together(lambda: str(_run_dir(cfg)) if is_main() else "")
    run_dir = Path(broadcast_object(named))

    def take() -> None:
        if owner is not None and run_dir.is_dir():
            with contextlib.suppress(OSError):  # of a finished run nothing but reading is wanted
                owner.take(run_dir)

    together(take)
    return together(lambda: _start_in(run_dir, cfg, overrides))


def _run_dir(cfg: Mapping[str, Any]) -> Path:
    """Where this command writes. A new directory is made at once, so that no other run takes it."""
    if cfg["resume"] and cfg["checkpoint"] == DEMO:
        raise InputError(f"checkpoint={DEMO} is no run that could go on; leave resume=true out")
    if cfg["experiment"]:
        return Path(cfg["experiment"])
    if cfg["resume"] and cfg["checkpoint"]:
        return Path(cfg["checkpoint"]).absolute().parent.parent
    earlier = _earlier_attempt()
    if earlier is not None:
        return earlier
    stamp = time.strftime("%y%m%d_%H_%M")
    base = Path("runs") / f"{stamp}_{model_slug(cfg['model'])}_fold{cfg['dataset']['fold']}"
    for number in count(1):  # several runs may start in the same minute
        path = base if number == 1 else base.with_name(f"{base.name}_{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"{path}: cannot be made ({error}); give experiment=DIR") from error
        return path
    raise AssertionError("count has no end")


def abandon(run_dir: Path) -> None:
    """Removes a run directory that was made and not used, and `runs` if there is no other."""
    with contextlib.suppress(OSError):  # not empty: it has been used
        run_dir.rmdir()
        run_dir.parent.rmdir()


def launch_name() -> str:
    """Names the launcher that started this process: the same again when it restarts its workers."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')} {os.getppid()}"


def _earlier_attempt() -> Path | None:
    """The directory that this launcher's workers wrote to before they were restarted."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
        return None
    found = [path for path in Path("runs").glob(f"*/{LAUNCH_FILE}") if path.is_file()]
    own = [path for path in found if path.read_text(encoding="utf-8") == launch_name()]
    return max(own, key=lambda path: path.stat().st_mtime).parent if own else None


def _start_in(run_dir: Path, cfg: dict[str, Any], overrides: Sequence[str] | None) -> Start:
    folder = run_dir / f"checkpoints_{cfg['runner']['checkpoints'][0]['name']}"
    here = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    if cfg["resume"] and not (cfg["checkpoint"] or cfg["experiment"]):
        raise InputError("resume=true: say which run, with experiment=DIR or checkpoint=FILE")
    if cfg["resume"] and cfg["checkpoint"]:
        given = Path(cfg["checkpoint"])
        if given.absolute().parent.parent != run_dir.absolute():
            raise InputError(
                f"{given}: resume=true goes on in the checkpoint's own run directory; leave "
                f"experiment={run_dir} out, or resume"
            )
        here = [given]
    if not here:
        if any(run_dir.glob("checkpoints_*/*.pth")) and not (run_dir / LAUNCH_FILE).is_file():
            raise InputError(f"{run_dir}: already holds checkpoints; give another experiment=DIR")
        return Start(run_dir, cfg)
    if cfg["resume"] is False:
        raise InputError(f"{run_dir}: already holds a run; give another experiment=DIR")
    path, payload = _first_readable(here)
    try:
        return Start(run_dir, _continued(cfg, payload, overrides, path), payload, path)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: the config in it is not that of a training ({one_line(error, 80)}); give "
            "another experiment=DIR"
        ) from error


def _first_readable(paths: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    for number, path in enumerate(paths):
        try:
            return path, _resumable(path)
        except InputError as error:
            if number == len(paths) - 1:
                raise
            if is_main():
                logger.warning("%s; going on from %s instead", error, paths[number + 1])
    raise AssertionError("no path given")


def _resumable(path: Path) -> dict[str, Any]:
    payload = load_checkpoint(path)
    if STATE not in payload:
        raise InputError(
            f"{path}: holds no training state to resume from; give last.pth of a run, or "
            "checkpoint= without resume=true to start from its weights"
        )
    check_form(payload, STATE, path)
    return payload


def _continued(
    cfg: Mapping[str, Any], payload: Mapping[str, Any], overrides: Sequence[str] | None, path: Path
) -> dict[str, Any]:
    """The config of a resumed run; refuses changes to what its weights have come from."""
    saved = _with_new_keys(without_old_keys(payload["checkpoint_data"]["config"]), cfg)
    if current_model_config(cfg["model"]) == saved["model"]:
        saved["model"] = deepcopy(cfg["model"])  # a published form: read in today's words
    wanted = deepcopy(dict(cfg)) if overrides is None else _changed(saved, cfg, overrides)
    _leave_out_new(wanted, saved, overrides or ())
    before, now = _flat(saved), _flat(wanted)
    differing = [
        f"{key}={before.get(key)}, not {now.get(key)}"
        for key in dict.fromkeys((*before, *now))
        if before.get(key) != now.get(key) and not _is_free(key)
    ]
    if differing:
        more = f" and {len(differing) - _MAX_NAMED} more" if len(differing) > _MAX_NAMED else ""
        raise InputError(
            f"{path.parent.parent}: holds a run with {'; '.join(differing[:_MAX_NAMED])}{more}; "
            "give another experiment=DIR, or the settings that it was started with"
        )
    processes = payload[STATE]["processes"]
    if processes != world_size():
        raise InputError(
            f"{path}: the run has {processes} processes, not {world_size()}; go on with as many, "
            "or start a new one with checkpoint= and another experiment=DIR"
        )
    return {**wanted, "checkpoint": saved.get("checkpoint")}


def _with_new_keys(saved: Mapping[str, Any], cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config with the keys that newer versions have added: they mean what the run has done
    without them, or where the schema does not say, what is composed now."""
    result = {**deepcopy(dict(cfg)), **deepcopy(dict(saved))}
    for block, schema in _BLOCKS.items():
        own, composed = result, cfg
        for name in block.split("."):
            own, composed = own[name], composed[name]
        for key, value in {**composed, **defaults(schema)}.items():
            own.setdefault(key, deepcopy(value))
    return result


def _leave_out_new(
    wanted: dict[str, Any], saved: Mapping[str, Any], overrides: Sequence[str]
) -> None:
    """Takes keys out that options of today have and those of an older run had not.

    They mean what the run has done: ImageNet's normalisation, and terms that its network has.
    """
    chosen = any(override.startswith("model.normalization") for override in overrides)
    if not chosen and "normalization" not in saved["model"]:
        wanted["model"].pop("normalization", None)
    terms, own = wanted["loss"].get("losses"), saved["loss"].get("losses")
    if isinstance(terms, dict) and isinstance(own, Mapping):
        for name, term in terms.items():
            if isinstance(term, dict) and "if_predicted" not in (own.get(name) or {}):
                term.pop("if_predicted", None)


def _changed(
    saved: Mapping[str, Any], cfg: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """The saved config with the parts that the user has set now."""
    result = deepcopy(dict(saved))
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        keys = override.key_or_group.split("@")[0].split(".")
        source: Any = cfg
        for key in keys:
            source = source.get(key) if isinstance(source, Mapping) else None
        target: Any = result
        for key in keys[:-1]:
            target = target.setdefault(key, {})
        target[keys[-1]] = deepcopy(source)
    return result


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {dotted key: value}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _FREE)
