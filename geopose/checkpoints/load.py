"""A checkpoint file (or several to average) in, a network ready for inference out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geopose.checkpoints.formats.contents import check_network, settled
from geopose.checkpoints.formats.facts import (
    common_gsd_of,
    downsample_of,
    facts_of,
    gains_of,
)
from geopose.checkpoints.formats.given import GivenNetwork
from geopose.checkpoints.formats.int8_file import read_int8_facts
from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.checkpoints.formats.pth import (
    ENGINE_FILES,
    check_kind,
    load_checkpoint,
    load_weights,
)
from geopose.checkpoints.weights import check_fit, current_names, load_weights_strict, mean_weights
from geopose.errors import InputError
from geopose.models.build import build_model
from geopose.models.legacy import current_model_config
from geopose.system.optional import needs_extra
from geopose.words import INT8

# Keys of model configs that only matter to training, or to people.
_NO_DIFFERENCE = {"pretrained", "slug", "dropout_rate", "drop_path_rate"}


def load_model(
    paths: str | Path | Sequence[str | Path], given: GivenNetwork | None = None
) -> LoadedModel:
    """Builds the network that a checkpoint describes and fills it with its weights.

    Weights are the only large thing in memory: not read are a .pth's optimizer state and, for an
    average, more than a small part of one file at a time.

    Args:
        paths: one .pth or .safetensors file, or several whose weights are averaged.
        given: the network of files that hold weights alone.

    Returns:
        The model in eval mode on the CPU, with channel order and downsampling.

    Raises:
        InputError: unreadable file, unknown constructor, weights that do not fit, or files to
            average that disagree on the network, its channel order, downsampling or calibration.
    """
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    source = " + ".join(file.name for file in files) if len(files) > 1 else str(files[0])
    facts = _common_facts(files, source, given)
    return LoadedModel.from_facts(_network(files, facts, source, given), facts, source)


def read_facts(path: Path, given: GivenNetwork | None = None) -> dict[str, Any]:
    """What a checkpoint says about itself (see `facts_of`); its weights stay on disk.

    Args:
        path: the file.
        given: the network of a file that holds weights alone.

    Returns:
        As `facts_of`; of an .onnx or .int8 file also `parameters`, of the latter `quantized`.

    Raises:
        InputError: unreadable, or a file that does not say its network, or a second one given.
    """
    if path.suffix not in ENGINE_FILES:
        return facts_of(load_checkpoint(path, given), str(path))
    if given is not None:
        raise InputError(
            f"{path}: an {path.suffix} file is a network itself; leave {given.source} out"
        )
    if path.is_file():
        check_kind(path)
    facts = read_int8_facts(path) if path.suffix == INT8 else _onnx_facts(path)
    check_network(facts, path)
    facts = {**facts, "checkpoint_data": settled(facts["checkpoint_data"], path)}
    count, quantized = facts.get("parameters"), facts.get("quantized")
    return {
        **facts_of(facts, str(path)),
        "parameters": count if isinstance(count, int) else None,
        **({"quantized": quantized} if path.suffix == INT8 else {}),
    }


def _onnx_facts(path: Path) -> dict[str, Any]:
    with needs_extra("onnx", str(path)):  # here, as it takes a second and is rarely needed
        from geopose.checkpoints.formats.onnx_file import read_onnx_facts
    return read_onnx_facts(path)


def _network(
    files: Sequence[Path], facts: Mapping[str, Any], source: str, given: GivenNetwork | None
) -> nn.Module:
    """The network that facts describe, with the mean weights of files, float32, in eval mode."""
    try:
        model = _build(facts["checkpoint_data"]["config"]["model"])
    except InputError as error:
        raise InputError(f"{given.source if given else files[0]}: {error}") from error
    for file in files:
        weights = load_weights(file)["model_state_dict"]
        check_fit(model, current_names(weights, str(file)), str(file))
    load_weights_strict(model, mean_weights(files, source), source)
    return model.float().eval()


def _common_facts(files: Sequence[Path], source: str, given: GivenNetwork | None) -> dict[str, Any]:
    """Facts of the first file, after a look at whether the others go with it."""
    if len(files) > 1:
        facts = [facts_of(load_checkpoint(file, given), str(file)) for file in files]
    else:
        facts = [read_facts(files[0], given)]
    for other in facts[1:]:
        for what, differs in (
            ("channel order", other["channel_order"] != facts[0]["channel_order"]),
            ("downsample", downsample_of(other, source) != downsample_of(facts[0], source)),
            ("common gsd", common_gsd_of(other, source) != common_gsd_of(facts[0], source)),
            ("label_downsample", other.get("label_downsample") != facts[0].get("label_downsample")),
            ("calibration", gains_of(other, source) != gains_of(facts[0], source)),
            ("network", _model_config(other) != _model_config(facts[0])),
        ):
            if differs:
                raise InputError(f"{source}: cannot be averaged, they differ in {what}")
    return facts[0]


def _model_config(facts: Mapping[str, Any]) -> Any:
    """The model's config without what makes no difference to its predictions."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in _NO_DIFFERENCE}
        return value

    return strip(current_model_config(facts["checkpoint_data"]["config"]["model"]))


def _build(model_config: Mapping[str, Any]) -> nn.Module:
    """The network without memory for its weights (on the meta device) where that is possible."""
    try:
        with torch.device("meta"):
            model: nn.Module = build_model(model_config, load_pretrained=False)
    except (InputError, RuntimeError, NotImplementedError):
        return build_model(model_config, load_pretrained=False)  # or says what is wrong
    if _computes_more_than_it_saves(model):
        return build_model(model_config, load_pretrained=False)
    return model


def _computes_more_than_it_saves(model: nn.Module) -> bool:
    """Whether there are tensors which no file holds, so that they must be computed."""
    saved = model.state_dict()
    return any(name not in saved for name, _ in model.named_buffers()) or any(
        isinstance(value, Tensor) for module in model.modules() for value in vars(module).values()
    )
