"""Counts parameters, operations and activation memory of every shipped network.

    python -m benchmarks.models            # prints the table
    python -m benchmarks.models --write    # puts it into docs/models.md
    python -m benchmarks.models model=v2s_unet model.decoder.block_type=ir_unet    # of a variant

Nothing is computed: torch's counters follow one image through the layers on the "meta" device,
where tensors have shapes and no values. So the figures are those of the network, on any machine.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from geopose.files.atomic import atomic_path
from geopose.models.build import build_model

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs/models.md"
SIDE_PX = 2048
NAMES = (
    "b7_unet", "b7_rdtsc_unet", "b6_rdtsc_unet",
    "v2l_rdtsc_unet", "v2s_flow_unet", "v2s_unet", "mobilenet_unet", "sample_unet",
    "convnext_tiny_unet", "convnext_large_unet", "convnextv2_base_unet", "caformer_s36_unet",
    "hrnet_w48_unet", "vit_large_sat_unet",
)  # fmt: skip
HEAD = (
    "| model | parameters, M | TFLOP | activations, MiB: inference | training |\n"
    "|---|---|---|---|---|\n"
)
_TABLE = re.compile(r"\| model \| parameters.*?(?=\n\n)", re.DOTALL)


@dataclass(frozen=True)
class Cost:
    """What a network costs for one image.

    Attributes:
        parameters: their number.
        flop: operations of convolutions and matrix products in one forward pass; a multiplication
            and an addition are two.
        inference_bytes: the most that tensors made by a forward pass without gradients hold at one
            time, in float32; weights and the input are not among them.
        training_bytes: the same for a forward and a backward pass; gradients of the weights are not
            among them.
    """

    parameters: int
    flop: int
    inference_bytes: int
    training_bytes: int


def shipped_model(*overrides: str) -> nn.Module:
    """A network of configs/model on the meta device, by train.py's arguments."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("config", list(overrides))
    with torch.device("meta"):
        return build_model(config.model, load_pretrained=False)


def count(model: nn.Module, *inputs: Tensor) -> Cost:
    """Counts what a network does with some inputs; everything on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    with torch.no_grad():
        inference = _peak_bytes(model.eval(), inputs, backward=False)
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flop=counter.get_total_flops(),
        inference_bytes=inference,
        training_bytes=_peak_bytes(model.train(), inputs, backward=True),
    )


def _peak_bytes(model: nn.Module, inputs: tuple[Tensor, ...], backward: bool) -> int:
    """The largest sum of live tensors that are neither weights, their gradients, nor inputs."""
    tracker = MemTracker()
    tracker.track_external(model, *inputs)
    with tracker:
        output: Any = model(*inputs)
        if backward:
            values = output.values() if isinstance(output, dict) else [output]
            torch.stack([value.mean() for value in values]).sum().backward()
    peaks = tracker.get_tracker_snapshot("peak")  # some networks make small tables on the CPU
    peak = peaks[torch.device("meta")]
    return sum(size for kind, size in peak.items() if getattr(kind, "name", "") in ("ACT", "TEMP"))


def row(name: str, *overrides: str) -> str:
    """The line of a network, chosen by train.py's arguments, in the table."""
    with torch.device("meta"):
        inputs = (torch.zeros(1, 3, SIDE_PX, SIDE_PX), torch.zeros(1, 1))
    cost = count(shipped_model(*overrides), *inputs)
    sizes = (f"{round(size / 2**20):,}" for size in (cost.inference_bytes, cost.training_bytes))
    figures = (f"{cost.parameters / 1e6:.1f}", f"{cost.flop / 1e12:.2f}", *sizes)
    return f"| `{name}` | {' | '.join(figures)} |"


def main() -> None:
    """Prints the table or writes it into the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("overrides", nargs="*", help="a variant to count, as train.py's arguments")
    parser.add_argument("--write", action="store_true", help="replace the table in docs/models.md")
    arguments = parser.parse_args()
    if arguments.overrides:
        print(HEAD + row(" ".join(arguments.overrides), *arguments.overrides))
        return
    table = HEAD + "\n".join(row(name, f"model={name}") for name in NAMES)
    if not arguments.write:
        print(table)
        return
    text, found = _TABLE.subn(table, DOCUMENT.read_text(encoding="utf-8"))
    if found != 1:
        raise SystemExit(f"{DOCUMENT}: {found} tables of models instead of one")
    with atomic_path(DOCUMENT) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
