"""A network run by torch, as loaded or through torch.compile, in 32 or 16 bits.

BatchNorm is folded before, for GPUs (see folding.py); anything else that could be fused is left to
torch.compile.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopose.checkpoints.remote.fetch import checkpoint_cache
from geopose.errors import one_line
from geopose.inference.engines.engine import Engine
from geopose.inference.engines.precision import input_type
from geopose.models.blocks import GsdConv
from geopose.models.geopose_unet import GeoposeUNetModel
from geopose.system.devices import is_out_of_memory

logger = logging.getLogger(__name__)

_VALUES_AT_ONCE = 2**26  # that are converted to float32 for the last convolution: 256 MiB
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


class TorchNetwork(Engine):
    """A network as loaded, with its maps in the layout and the number format that are fastest.

    Args:
        model: from a checkpoint, float32 in eval mode; it is changed in place.
        precision: as resolved for the device.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.kind = input_type(precision)
        if self.kind != torch.float32:
            _reduce_precision(model, self.kind)  # type: ignore[arg-type]
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor, gsd_m: Tensor) -> dict[str, Tensor]:
        """The network's outputs."""
        return self._run(image.to(self.kind, memory_format=torch.channels_last), gsd_m)

    def _run(self, image: Tensor, gsd_m: Tensor) -> dict[str, Tensor]:
        return self.model(image, gsd_m)


class CompiledNetwork(TorchNetwork):
    """The same through torch.compile, once for each size of image; what fails runs as it is.

    What the compiler makes is kept in the cache of checkpoints, so later runs start sooner.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__(model, precision)
        os.environ.setdefault(_CACHE_VARIABLE, str(checkpoint_cache() / "compiled"))
        # Each network has its own share of the number of shapes that torch compiles at most; its
        # annotations do not know the option yet.
        options: dict[str, Any] = {"dynamic": False, "isolate_recompiles": True}
        self._compiled: Any = torch.compile(self.model, **options)

    def _run(self, image: Tensor, gsd_m: Tensor) -> dict[str, Tensor]:
        if self._compiled is not None:
            try:
                return self._compiled(image, gsd_m)
            except Exception as error:  # whatever a compiler, a driver or a missing g++ raises
                if is_out_of_memory(error):
                    raise
                self._compiled = None
                reason = f"{type(error).__name__}: {one_line(error, 200)}"
                logger.warning("torch.compile failed, going on without it: %s", reason)
        return super()._run(image, gsd_m)


def _reduce_precision(model: GeoposeUNetModel, kind: torch.dtype) -> None:
    """Converts a network to 16 bits in place.

    What decides about digits stays in float32: the last convolutions of the height head (the whole
    head where gsd enters them), the orientation head, and the least squares of the scale. So do
    the factors of BatchNorms, as under autocast.
    """
    head: nn.Module = model.agl_head
    last = [
        (name, part)
        for name, part in head.named_modules()
        if isinstance(part, nn.Conv2d) and part.out_channels == 1
    ]
    if any(isinstance(part, GsdConv) for _, part in last):
        model.agl_head = _Float32Head(head)
    else:
        for name, part in last:
            head.set_submodule(name, _Float32Conv(part))
    model.orientation_head = _Float32Head(model.orientation_head)
    _convert(model, kind)


def _convert(module: nn.Module, kind: torch.dtype) -> None:
    """Converts what is not to stay as it is."""
    if isinstance(module, (_Float32Head, _Float32Conv, nn.modules.batchnorm._BatchNorm)):
        return
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    for values in own:
        if values.is_floating_point():
            values.data = values.data.to(kind)
    for child in module.children():
        _convert(child, kind)


class _Float32Head(nn.Module):
    """A head that computes in float32 behind a network of 16 bits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.stride = getattr(head, "stride", None)
        self.reads_decoder = getattr(head, "reads_decoder", False)

    def forward(self, maps: Sequence[Tensor], *gsd_m: Tensor) -> Any:
        """What the head says of these maps."""
        return self.head([x.float() for x in maps], *gsd_m)


class _Float32Conv(nn.Module):
    """A convolution to one plane that computes in float32: heights need more than 16 bits.

    Some rows are converted at a time: all of them would be 2 GB for an image of 2048 x 2048.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.reach = conv.kernel_size[0] // 2

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W of any type -> N x 1 x H x W, float32."""
        count = max(1, _VALUES_AT_ONCE // (x.shape[0] * x.shape[1] * x.shape[3]))
        starts = range(0, x.shape[2], count)
        return torch.cat([self._rows(x, start, start + count) for start in starts], dim=2)

    def _rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Some rows of the result; beyond the edge the maps are 0."""
        height, reach = x.shape[2], self.reach
        stop = min(stop, height)
        above, below = min(reach, start), min(reach, height - stop)
        part = x[:, :, start - above : stop + below].float()
        part = F.pad(part, (reach, reach, reach - above, reach - below))
        return F.conv2d(part, self.conv.weight, self.conv.bias)
