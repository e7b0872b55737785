"""A checkpoint file in, what it is in words out."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from geopose.checkpoints.formats.facts import (
    CALIBRATION,
    GSD_RANGE,
    common_gsd_of,
    downsample_of,
    gains_of,
    gsd_range_of,
)
from geopose.checkpoints.formats.given import GivenNetwork
from geopose.checkpoints.formats.int8_file import calibration_in_words
from geopose.checkpoints.formats.pth import load_weights
from geopose.checkpoints.load import read_facts
from geopose.checkpoints.remote.fetch import file_sha256
from geopose.construct import TARGET
from geopose.models.build import model_slug
from geopose.models.legacy import current_model_config

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def describe(path: Path, given: GivenNetwork | None = None) -> dict[str, str]:
    """Architecture, slug, fold, epoch, metrics, parameters, channel order, downsample, versions
    and SHA-256 of a checkpoint, as text; what the file does not say is left out.

    Args:
        path: the file.
        given: the network of a file that holds weights alone.

    Raises:
        InputError: unreadable file, or a config that describes no network.
    """
    facts = read_facts(path, given)
    # An .onnx or .int8 file has folded some of its weights away, and says how many there were.
    count = facts.get("parameters") or _count(load_weights(path)["model_state_dict"])
    data = facts["checkpoint_data"]
    config = data["config"]
    described = {
        "architecture": _architecture(config["model"]),
        "slug": model_slug(config["model"]),
        "fold": _inner(config, "dataset", "fold"),
        "epoch": data.get("epoch"),
        "metrics": ", ".join(_numbers(data.get("metrics", {}))),
        "parameters": f"{count:,}",
        "channel order": facts["channel_order"],
        "downsample": downsample_of(facts, str(path)),
        "gsd": _gsd(facts, str(path)),
        "brought to": _common_gsd(facts, str(path)),
        "calibration": _calibration(facts, str(path)),
        "recipe": facts.get("recipe"),
        "precision": _precision(facts.get("quantized")),
        "made from": _made_from(facts.get("quantized")),
        "averaged from": ", ".join(item["file"] for item in facts.get("averaged_from", [])),
        "versions": _listed(facts.get("versions", {})),
        "sha256": file_sha256(path),
    }
    return {key: str(value) for key, value in described.items() if value not in (None, "")}


def _calibration(facts: Mapping[str, Any], where: str) -> str | None:
    """What heights and flow are multiplied by, by what images, and what that did to the score."""
    known = facts.get(CALIBRATION)
    if known is None:
        return None
    agl, magnitude = gains_of(facts, where)
    words = f"heights x {agl:.4f}, flow x {magnitude:.4f}"
    if images := known.get("images"):
        words += f", by {images} images ({known.get('split')}, views {known.get('views')})"
    score = known.get("score")
    if isinstance(score, Mapping):
        words += f", score {score.get('before')} -> {score.get('after')}"
        if "halves_after" in score:
            words += f", on the other half {score.get('halves_before')} -> {score['halves_after']}"
    return words


def _gsd(facts: Mapping[str, Any], where: str) -> str | None:
    """The range of gsd that a network knows."""
    known = gsd_range_of(facts, where)
    if known is None:
        return None
    said = f"{known[0]:.3g} to {known[1]:.3g} m/px"
    if GSD_RANGE in facts:
        return said
    return f"{said} (what the challenge's sensors give; the file does not say)"


def _common_gsd(facts: Mapping[str, Any], where: str) -> str | None:
    """The gsd that every image is resized to before the network."""
    gsd_m = common_gsd_of(facts, where)
    return None if gsd_m is None else f"{gsd_m:.3g} m/px"


def _precision(quantized: Mapping[str, Any] | None) -> str | None:
    """Of a file in 8 bits: what stays in floating point, and the calibration."""
    if quantized is None:
        return None
    layers = quantized.get("float_layers")
    count = len(layers) if isinstance(layers, list) else "some"
    made = quantized.get("versions")
    words = f" (by {_listed(made)})" if isinstance(made, Mapping) else ""
    return f"int8 but for {count} layers, {calibration_in_words(quantized)}{words}"


def _made_from(quantized: Mapping[str, Any] | None) -> str | None:
    source = quantized and quantized.get("source")
    return f"{source.get('file')} {source.get('sha256')}" if isinstance(source, Mapping) else None


def _listed(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _inner(config: Mapping[str, Any], section: str, key: str) -> Any:
    part = config.get(section)
    return part.get(key) if isinstance(part, Mapping) else None


def _count(weights: Mapping[str, Tensor]) -> int:
    """Numbers that training adjusts."""
    trained = (tensor for name, tensor in weights.items() if not name.endswith(_BUFFERS))
    return sum(tensor.numel() for tensor in trained if tensor.is_floating_point())


def _architecture(model_config: Any) -> str:
    """The parts by their constructors, with the encoder's name and the decoder's kind."""
    parts = current_model_config(model_config)
    words = []
    for name in ("encoder", "decoder", "agl_head", "orientation_head"):
        part = parts.get(name)
        part = part if isinstance(part, Mapping) else {}
        target = str(part.get(TARGET, "")).rpartition(".")[2]
        details = [part.get(key) for key in ("name", "block_type", "upsample", "channels")]
        words.append(" ".join(str(word) for word in [target, *details] if word))
    return "; ".join(words)


def _numbers(metrics: Any, prefix: str = "") -> Iterator[str]:
    """`valid/loss 0.5` for every number in nested metrics."""
    if isinstance(metrics, Mapping):
        for key, value in metrics.items():
            yield from _numbers(value, f"{prefix}/{key}" if prefix else key)
    elif isinstance(metrics, float):
        yield f"{prefix} {metrics:.6g}"
    elif metrics is not None:
        yield f"{prefix} {metrics}"
