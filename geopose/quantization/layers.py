"""Layers of an OpenVINO graph: which decide about digits and stay as they are, which are in 8 bits.

A layer here is an operation with weights: a convolution or a matrix product.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from geopose.inference.engines.openvino_engine import HeadsGraph

_KINDS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")
_WIDE = 32  # planes, of which a matrix unit takes 64 in 8 bits, and 32 in 16, at a time
_NO_OPERATION = ("Parameter", "Constant", "Result")
_8_BITS = ("i8", "u8")
_MAPS = ("agl", "magnitude")  # heads whose results are maps of heights and flow lengths
_MODULE = re.compile(r"__module\.model\.(.+?)/")


def layers_of(graph: Any) -> list[Any]:
    """The layers, in the order of computation."""
    return [node for node in graph.get_ordered_ops() if _is_layer(node)]


def digits(heads: HeadsGraph) -> list[str]:
    """The operations that decide about digits, by OpenVINO's name.

    Those are the first layers behind the image and narrow ones, whose rounding all that follows
    would carry on and which 8 bits hardly make faster; the last layer before each result and
    whatever comes after it; all that nothing but the direction, the scale or the flow follows from;
    and the layer that takes the ground sampling beside maps of another range. Whether an operation
    has weights makes no difference: a mean of maps that were rounded to 8 bits before is another
    direction.
    """
    graph = heads.graph
    results = dict(zip(heads.given, graph.get_results(), strict=True))
    to_maps = {x.get_name() for x in _reach([results[n] for n in _MAPS if n in results], _before)}
    kept = [node for node in graph.get_ops() if node.get_name() not in to_maps]
    kept += _reach(results.values(), _before, _is_layer)
    kept += _reach(graph.get_parameters(), _after, _is_layer)  # of the image and of its gsd
    kept += [node for node in graph.get_ops() if _is_narrow(node)]
    return sorted({x.get_friendly_name() for x in kept if x.get_type_name() not in _NO_OPERATION})


def not_in_8_bits(graph: Any) -> list[str]:
    """Layers of a quantised graph that compute in floating point, by OpenVINO's name."""
    return [node.get_friendly_name() for node in layers_of(graph) if not _takes_8_bits(node)]


def readable(name: str) -> str:
    """The module of the network that a layer was made of, if its name tells."""
    found = _MODULE.match(name)
    return found.group(1) if found else name


def _is_layer(node: Any) -> bool:
    return node.get_type_name() in _KINDS


def _is_narrow(node: Any) -> bool:
    """Whether a convolution takes fewer planes than a matrix unit takes values at a time."""
    if node.get_type_name() != "Convolution":
        return False
    return int(node.input(1).get_partial_shape()[1].get_length()) < _WIDE


def _before(node: Any) -> Iterator[Any]:
    """What a node takes."""
    return (port.get_source_output().get_node() for port in node.inputs())


def _after(node: Any) -> Iterator[Any]:
    """What takes a node's results."""
    return (port.get_node() for output in node.outputs() for port in output.get_target_inputs())


def _reach(
    starts: Iterable[Any],
    step: Callable[[Any], Iterable[Any]],
    ends: Callable[[Any], bool] = lambda node: False,
) -> Iterator[Any]:
    """All nodes from some on, step by step; nothing beyond one that ends the way."""
    waiting, seen = list(starts), set()
    while waiting:
        node = waiting.pop()
        if node.get_name() not in seen:
            seen.add(node.get_name())
            yield node
            if not ends(node):
                waiting += step(node)


def _takes_8_bits(layer: Any) -> bool:
    """Whether a layer's second input, its weights, comes from 8 bits or a rounding to them."""
    weights = layer.input(1).get_source_output().get_node()
    return any(
        node.get_type_name() == "FakeQuantize"
        or (
            node.get_type_name() == "Constant"
            and node.get_element_type().get_type_name() in _8_BITS
        )
        for node in _reach([weights], _before, _is_layer)
    )
