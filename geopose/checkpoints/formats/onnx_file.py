"""The network as an .onnx file, and what such a file says about itself.

Only the network is in the file (see `geopose.models.exportable`): what happens to an image
before and after it is told by the file's metadata. Input `image` is N x 3 x H x W float32, in the
order of `channel_order` and normalised as `normalization` says; `gsd` is N x 1, metres per pixel.
Outputs are `agl` (N x 1 x H x W, metres), `magnitude` (N x 1 x H x W, pixels), `scale` (N x 1,
pixels per metre) and `direction` (N x 2, (sin a, cos a) of any length). N, H and W are free.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from geopose.checkpoints.formats.facts import (
    METADATA_KEY,
    NO_GAINS,
    Gains,
    facts_from_text,
    facts_to_text,
)
from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.errors import InputError, RunError, one_line
from geopose.files.atomic import atomic_path
from geopose.models.exportable import INPUTS, OUTPUTS, ExportableNetwork

_TRACED_SIZE = (2, 97, 130)  # batch, height and width; any would do
_DOMAINS = {"", "ai.onnx"}


def export_onnx(path: Path, loaded: LoadedModel, facts: Mapping[str, Any]) -> None:
    """Writes a network as an .onnx file, atomically.

    Args:
        path: the file.
        loaded: the network, on the CPU.
        facts: of its checkpoint; they go into the metadata.

    Raises:
        RunError: the network has a part that cannot be exported, or the file cannot be written.
    """
    batch, height, width = _TRACED_SIZE
    example = torch.zeros(batch, 3, height, width), torch.full((batch, 1), 0.5)
    free = torch.export.Dim.DYNAMIC
    shapes = {"image": {0: free, 2: free, 3: free}, "gsd": {0: free}}
    network = ExportableNetwork(loaded.model)
    model = traced(network, example, list(INPUTS), list(OUTPUTS), loaded.source, shapes)
    _name_sizes(model.graph)
    write_onnx(path, model, _metadata(loaded, facts))


def traced(
    network: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    source: str,
    shapes: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    """A network as ONNX.

    Args:
        network: with tensors as arguments and as results.
        example: arguments of the sizes to trace.
        inputs: names of the arguments.
        outputs: names of the results.
        source: where the network is from, for messages.
        shapes: which sizes are free; None = all are as in the example.

    Raises:
        RunError: the network has a part that cannot be exported.
    """
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")  # of torch's exporter, about itself
            program = torch.onnx.export(
                network.eval(),
                example,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = one_line(error, 200)
        raise RunError(f"{source}: cannot be exported to ONNX ({reason})") from error
    assert program is not None
    return program.model_proto


def write_onnx(path: Path, model: onnx.ModelProto, metadata: dict[str, str]) -> None:
    """Writes a network with its metadata, atomically."""
    onnx.helper.set_model_props(model, metadata)
    with atomic_path(path) as temporary:
        onnx.save_model(model, str(temporary))


def _name_sizes(graph: onnx.GraphProto) -> None:
    """Calls the free sizes batch, height and width in place of the exporter's numbers."""
    dims = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
    image = dims["image"]
    names = {image[0].dim_param: "batch", image[2].dim_param: "height", image[3].dim_param: "width"}
    for value in [*graph.input, *graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
    del graph.value_info[:]  # sizes of what is between, under the old names


def _metadata(loaded: LoadedModel, facts: Mapping[str, Any]) -> dict[str, str]:
    """What a stranger needs to use the file, in words; and the facts, for this program."""
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    return {
        "channel_order": loaded.channel_order,
        "normalization": "(x - 255 * mean) / (255 * std), x from 0 to 255, mean and std by plane "
        "as stored: the first belongs to the first plane, whatever its colour",
        **{key: json.dumps(values) for key, values in loaded.normalization._asdict().items()},
        "units": "gsd: metres per pixel; agl: metres; magnitude: pixels; scale: pixels per metre; "
        "direction: (sin a, cos a) not normalised, flow (x right, y down) = agl * scale * "
        "(sin a, cos a)",
        "downsample": str(loaded.downsample),
        "images_brought_to": f"{loaded.gsd_m!r} metres per pixel" if loaded.gsd_m else "as given",
        "scale_and_gsd_of": "reduced image" if loaded.scale_is_downsampled else "full image",
        "calibration": _gains_in_words(loaded.gains),
        "parameters": str(count),
        METADATA_KEY: facts_to_text({**facts, "parameters": count}),
    }


def _gains_in_words(gains: Gains) -> str:
    """For a stranger; this program goes by the facts."""
    if gains == NO_GAINS:
        return "none"
    agl, magnitude = gains
    return (
        f"not in the network: multiply agl by {agl!r}, magnitude by {magnitude!r} and scale by "
        f"{magnitude / agl!r}"
    )


def read_onnx_facts(path: Path) -> dict[str, Any]:
    """What an exported file says about itself, after a look at whether it is safe to run.

    Raises:
        InputError: unreadable, not exported by this program, other inputs or outputs, weights
            outside of the file, or operators that are not ONNX's own.
    """
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable ONNX file; copy or download it again") from error
    _check_graphs(model, path)
    facts = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY)
    return facts_from_text(facts, str(path))


def _check_graphs(model: onnx.ModelProto, path: Path) -> None:
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name for value in graph.input} - weights
    outputs = {value.name for value in graph.output}
    if inputs != set(INPUTS) or outputs != set(OUTPUTS):
        raise InputError(
            f"{path}: has inputs {sorted(inputs)} and outputs {sorted(outputs)}, needed are "
            f"{sorted(INPUTS)} and {sorted(OUTPUTS)}"
        )
    functions = {(function.domain, function.name) for function in model.functions}
    for nodes in [graph.node, *(function.node for function in model.functions)]:
        _check_nodes(nodes, functions, path)
    for tensor in _tensors(model):
        _check_inside(tensor, path)
    if graph.sparse_initializer:
        raise InputError(f"{path}: holds sparse weights, which are not possible here")


def _check_nodes(nodes: Any, functions: set[tuple[str, str]], path: Path) -> None:
    """Operators of ONNX itself, with everything they need inside of the file."""
    for node in nodes:
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in functions:
            raise InputError(
                f"{path}: uses the operator {node.domain}.{node.op_type}; only ONNX's own run here"
            )
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                _check_nodes(graph.node, functions, path)


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message, whatever it is a part of: weights, dense and sparse, constants,
    branches, functions, and parts that nobody has thought of."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in _parts(value):
                yield from _tensors(part)


def _parts(value: Any) -> Iterable[Any]:
    """The messages of a field, which holds one or several."""
    return [value] if hasattr(value, "ListFields") else value


def _check_inside(tensor: onnx.TensorProto, path: Path) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise InputError(
            f"{path}: keeps weights in other files, which are not read; save it as one file"
        )
