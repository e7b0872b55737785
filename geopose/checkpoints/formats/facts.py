"""What a checkpoint says beside its weights: taken from its payload, checked, made plain.

Facts are JSON: they travel in the metadata of .safetensors and .onnx files as they do in a .pth.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from geopose.errors import InputError
from geopose.models.build import channel_order
from geopose.schema.numbers import is_number, is_whole

LABELS_CONVERTED = "converted"
METADATA_KEY = "geopose"  # under which files that are not .pth keep their facts
MAX_VALUES = 100_000
MAX_DEPTH = 60
GSD_RANGE = "gsd_range_m"  # least and largest gsd of the images that were learned from, [m, m]
# Published files do not say it. Their images are WorldView-3's and -2's, of 0.31 and 0.46 m at
# nadir and coarser the more oblique. It is what those sensors give; the challenge's own table of
# gsd was not looked into.
CHALLENGE_GSD_M = (0.3, 0.6)
CALIBRATION = "calibration"  # gains of heights and flow, and how they were found
_LARGEST_GAIN = 100.0
_COMMON_GSD_M = (0.01, 100.0)  # wider than what training takes; beyond, sizes are no numbers
_CARRIED = (
    "channel_order", "label_downsample", "versions", "units", "averaged_from", GSD_RANGE, "recipe",
    CALIBRATION,
)  # fmt: skip
# The names under which trainers of several years keep the same thing.
_EPOCH_KEYS = ("epoch", "stage_epoch_step", "global_epoch_step")
_METRICS_KEYS = ("metrics", "epoch_metrics")


class Gains(NamedTuple):
    """What a network's heights and lengths of flow are multiplied by, its scale by their ratio."""

    agl: float = 1.0
    magnitude: float = 1.0


NO_GAINS = Gains()


def to_plain(value: Any, where: str) -> Any:
    """A copy made of dicts with text keys, lists, text, numbers, true, false and None.

    Args:
        value: from a file that nobody vouches for.
        where: how messages name it.

    Raises:
        InputError: something else is in it, or so much that it is no description any more.
    """
    left = MAX_VALUES

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise InputError(
                f"{where}: refused, holds over {MAX_VALUES} values or {MAX_DEPTH} deep"
            )
        if value is None or isinstance(value, bool | float | str):
            return value
        if isinstance(value, int) and abs(value) < 2**64:
            return value
        if isinstance(value, Tensor) and value.numel() == 1:
            return value.item()
        if isinstance(value, Mapping):
            return {str(walk(key, depth + 1)): walk(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set):
            return [walk(item, depth + 1) for item in value]
        raise InputError(
            f"{where}: holds a {type(value).__name__}, only numbers, text and plain containers can "
            "be there"
        )

    return walk(value, 0)


def facts_of(payload: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The facts of a checkpoint, whatever trainer wrote it.

    Returns:
        `checkpoint_data` (config, and epoch and metrics if known), `channel_order`, and those of
        `label_downsample`, `versions`, `units`, `averaged_from`, `gsd_range_m`, `recipe` and
        `calibration` that the file has.

    Raises:
        InputError: they hold what cannot be there, or an unknown channel order.
    """
    data = payload["checkpoint_data"]
    facts = {key: to_plain(payload[key], f"{where}: {key}") for key in _CARRIED if key in payload}
    facts["checkpoint_data"] = {"config": to_plain(data["config"], f"{where}: config")}
    for name, keys in (("epoch", _EPOCH_KEYS), ("metrics", _METRICS_KEYS)):
        found = [place[key] for place in (data, payload) for key in keys if key in place]
        if found:
            facts["checkpoint_data"][name] = to_plain(found[0], f"{where}: {name}")
    order = facts.get("channel_order") or channel_order(data["config"]["model"])
    if order not in ("rgb", "bgr"):
        raise InputError(f"{where}: channel_order is {order!r}, must be rgb or bgr")
    facts["channel_order"] = order
    return facts


def downsample_of(facts: Mapping[str, Any], where: str) -> int:
    """By how much images are reduced before the network; 1 = not."""
    train = facts["checkpoint_data"]["config"].get("train")
    downsample = (train.get("downsample") if isinstance(train, Mapping) else None) or 1
    if not is_whole(downsample, 1, 16):
        raise InputError(
            f"{where}: train.downsample is {downsample!r}, must be a whole number from 1 to 16"
        )
    return downsample


def common_gsd_of(facts: Mapping[str, Any], where: str) -> float | None:
    """Metres per pixel that images are brought to before the network; None = they keep theirs.

    Raises:
        InputError: what the file says is no length, or images would be reduced as well.
    """
    train = facts["checkpoint_data"]["config"].get("train")
    gsd_m = train.get("gsd_m") if isinstance(train, Mapping) else None
    if gsd_m is None:
        return None
    least, most = _COMMON_GSD_M
    if not is_number(gsd_m) or not least <= gsd_m <= most:
        raise InputError(
            f"{where}: train.gsd_m is {gsd_m!r}, must be a length from {least:g} to {most:g} metres"
        )
    if downsample_of(facts, where) > 1:
        raise InputError(f"{where}: train.gsd_m is set, so train.downsample must be 1")
    return float(gsd_m)


def gsd_range_of(facts: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    """The least and the largest gsd of the images, as given, that a network was trained on, in
    metres per pixel: what its file says, the challenge's for published files, or None = unknown.

    Raises:
        InputError: what the file says is no range.
    """
    known = facts.get(GSD_RANGE)
    if known is None:
        return CHALLENGE_GSD_M if _is_published(facts) else None
    numbers = isinstance(known, list) and all(type(value) in (int, float) for value in known)
    if not numbers or len(known) != 2 or not 0 < known[0] <= known[1] < math.inf:
        raise InputError(f"{where}: {GSD_RANGE} is {known!r}, must be two lengths, the least first")
    return float(known[0]), float(known[1])


def gains_of(facts: Mapping[str, Any], where: str) -> Gains:
    """What a network's outputs are to be multiplied by; 1 if its file says nothing of it.

    Raises:
        InputError: what the file says are no gains.
    """
    known = facts.get(CALIBRATION)
    if known is None:
        return NO_GAINS
    gains = [known.get(name) if isinstance(known, Mapping) else None for name in Gains._fields]
    if not all(type(gain) in (int, float) and 0 < gain < _LARGEST_GAIN for gain in gains):  # type: ignore[operator]
        raise InputError(
            f"{where}: {CALIBRATION} must hold {' and '.join(Gains._fields)}, numbers above 0 and "
            f"below {_LARGEST_GAIN:g}; take the file that it was made of"
        )
    return Gains(*map(float, gains))  # type: ignore[arg-type]


def _is_published(facts: Mapping[str, Any]) -> bool:
    """Whether a file was written by the trainer of the published models: it kept the config of its
    data, and said nothing about labels."""
    return "dataset" in facts["checkpoint_data"]["config"] and not facts.get("label_downsample")


def facts_to_text(facts: Mapping[str, Any]) -> str:
    """Facts as a file's metadata holds them."""
    return json.dumps(facts)


def facts_from_text(text: str | None, where: str) -> dict[str, Any]:
    """The reverse of `facts_to_text`; InputError if the file did not come from here."""
    if text is None:
        raise InputError(
            f"{where}: does not say which network it is (no {METADATA_KEY!r} in its metadata); "
            "write it with python -m geopose.checkpoints export"
        )
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its {METADATA_KEY!r} metadata is not readable") from error
    if not isinstance(facts, dict):
        raise InputError(f"{where}: its {METADATA_KEY!r} metadata is not a mapping")
    return facts
