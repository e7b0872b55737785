""".int8 files: a network in 8 bits for OpenVINO, and what the file says of it.

In: OpenVINO's description of a graph (XML) and its weights. Out: one safetensors file with both as
plain bytes (`graph`, `weights`) and, as JSON in its metadata, the facts of the checkpoint that it
was made of and how (`quantized`). Nothing in it is unpickled or run; the graph may only hold
OpenVINO's own operations and weights that lie in the file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from geopose.checkpoints.formats.facts import METADATA_KEY, facts_from_text, facts_to_text, to_plain
from geopose.errors import InputError, RunError, one_line
from geopose.files.atomic import atomic_path
from geopose.models.geopose_unet import HeadOutputs
from geopose.schema.numbers import is_whole
from geopose.words import INT8

_GRAPH, _WEIGHTS = "graph", "weights"
_OPSET = re.compile(r"opset\d{1,3}")
_LARGEST_STRIDE = 1024
_LONGEST = 300  # characters of a line about a file


def write_int8(path: Path, graph: bytes, weights: bytes, facts: Mapping[str, Any]) -> None:
    """Writes a quantised network atomically.

    Args:
        path: the file.
        graph: OpenVINO's XML. weights: what it refers to.
        facts: of the checkpoint, with `quantized` and `parameters`.

    Raises:
        RunError: the file cannot be written.
    """
    tensors = {
        name: np.frombuffer(content, np.uint8)
        for name, content in ((_GRAPH, graph), (_WEIGHTS, weights))
    }
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, {METADATA_KEY: facts_to_text(facts)})
        except SafetensorError as error:
            raise RunError(f"cannot write {path}: {error}") from error


def read_int8_facts(path: Path) -> dict[str, Any]:
    """What a file says about itself; its graph stays on disk.

    Returns:
        The facts of the checkpoint it was made of, with `quantized` in plain containers: heads,
        stride, head_stride, and in words whatever else it says.

    Raises:
        InputError: unreadable, not written by this program, or heads that are none.
    """
    try:
        with safe_open(path, "np") as file:
            text, names = (file.metadata() or {}).get(METADATA_KEY), set(file.keys())
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error
    facts = facts_from_text(text, str(path))
    quantized = to_plain(facts.get("quantized"), f"{path}: quantized")
    if names != {_GRAPH, _WEIGHTS} or not isinstance(quantized, dict):
        raise InputError(
            f"{path}: holds no quantised network; write it with "
            "python -m geopose.checkpoints quantize"
        )
    _check_heads(quantized, path)
    return {**facts, "quantized": quantized}


def read_int8_graph(path: Path) -> tuple[bytes, bytes]:
    """The graph and its weights, after a look at whether the graph is safe to run.

    Raises:
        InputError: unreadable, operations that are not OpenVINO's own, or weights that are not in
            the file.
    """
    try:
        with safe_open(path, "np") as file:
            graph, weights = (file.get_tensor(name).tobytes() for name in (_GRAPH, _WEIGHTS))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error
    _check_graph(graph, len(weights), path)
    return graph, weights


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: not a readable {INT8} file ({one_line(error, 120)}); copy or download it again"
    )


def _check_heads(quantized: Mapping[str, Any], path: Path) -> None:
    """What turns the graph's outputs into a prediction."""
    said, known = quantized.get("heads"), HeadOutputs._fields
    heads = set(said) if isinstance(said, list) and all(x in known for x in said) else set()
    enough = {"agl", "direction"} <= heads and heads & {"magnitude", "scale"}
    if not enough or said != [name for name in known if name in heads]:
        raise InputError(
            f"{path}: its heads are {one_line(said, 100)}, must be some of {', '.join(known)}"
        )
    for key in ("stride", "head_stride"):
        if not is_whole(quantized.get(key), 1, _LARGEST_STRIDE):
            raise InputError(
                f"{path}: {key} is {one_line(quantized.get(key), 40)}, must be a whole number "
                f"from 1 to {_LARGEST_STRIDE}"
            )


def _check_graph(graph: bytes, size: int, path: Path) -> None:
    """Operations of OpenVINO itself, whose constants lie in the `size` bytes of weights."""
    if b"<!" in graph:  # a document type, whose entities could grow or name other files
        raise InputError(f"{path}: its graph holds declarations, which are not read")
    try:
        root = ElementTree.fromstring(graph)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    for layer in root.iter("layer"):
        if not _OPSET.fullmatch(layer.get("version", "")):
            raise InputError(
                f"{path}: uses the operation {one_line(layer.get('version'), 40)}."
                f"{one_line(layer.get('type'), 40)}; only OpenVINO's own run here"
            )
    for data in root.iter("data"):
        begin, count = data.get("offset", "0"), data.get("size", "0")
        inside = begin.isdecimal() and count.isdecimal() and len(begin + count) < 40
        if "offset" in data.attrib and not (inside and int(begin) + int(count) <= size):
            raise InputError(f"{path}: its graph asks for weights that are not in it")


def calibration_in_words(quantized: Mapping[str, Any]) -> str:
    """On what a network was calibrated, and what that did to its score; one line.

    Args:
        quantized: as `read_int8_facts` returns it.
    """
    shown, score = (quantized.get(key) for key in ("calibration", "score"))
    words = "calibration not said"
    if isinstance(shown, Mapping):
        images, split, digest = (shown.get(key) for key in ("images", "split", "sha256"))
        words = f"calibrated on {images} {split} images ({str(digest)[:12]})"
    if not isinstance(score, Mapping):
        return one_line(f"{words}, score not measured", _LONGEST)
    before, after, images, views = (score.get(k) for k in ("before", "after", "images", "views"))
    return one_line(
        f"{words}, score {before} -> {after} ({images} images, views {views})", _LONGEST
    )
