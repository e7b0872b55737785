"""An .onnx file run by ONNX Runtime."""

import logging
from pathlib import Path
from typing import Any

import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state
import torch
from torch import Tensor

from geopose.errors import InputError, RunError, one_line
from geopose.inference.engines.engine import Engine
from geopose.models.exportable import INPUTS, OUTPUTS, named_outputs

logger = logging.getLogger(__name__)

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_RUNTIME_ERRORS: tuple[type[Exception], ...] = (  # onnxruntime's own have no common base
    RuntimeError,
    ValueError,
    *(
        kind
        for kind in vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)


class OnnxNetwork(Engine):
    """An .onnx file that is called like the network it was exported from.

    It runs where the images are: on a CUDA device if onnxruntime can, else on the CPU.

    Args:
        path: a file that `read_onnx_facts` accepts.

    Raises:
        InputError: onnxruntime cannot run the file.
    """

    uses_torch_memory = False  # what it takes, torch's counters do not see

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._session(torch.device("cpu"))  # finds out whether it can be run at all

    def forward(self, image: Tensor, gsd_m: Tensor) -> dict[str, Tensor]:
        """The network's outputs, where the images are."""
        session = self._session(image.device)
        values = (image.float(), gsd_m.float())
        feed = {n: v.cpu().numpy() for n, v in zip(INPUTS, values, strict=True)}
        try:
            found = session.run(list(OUTPUTS), feed)
        except _RUNTIME_ERRORS as error:
            raise RunError(f"{self.path}: {one_line(error, 200)}") from error
        return named_outputs(found, image.device)

    def _session(self, device: torch.device) -> onnxruntime.InferenceSession:
        """The session for a device; the first call for it makes it."""
        if str(device) not in self._sessions:
            self._sessions[str(device)] = self._start(device)
        return self._sessions[str(device)]

    def _start(self, device: torch.device) -> onnxruntime.InferenceSession:
        providers: list[Any] = [_CPU]
        if device.type == "cuda":
            if _CUDA in onnxruntime.get_available_providers():
                providers.insert(0, (_CUDA, {"device_id": device.index or 0}))
            else:
                logger.warning(
                    "%s runs on the CPU: onnxruntime has no CUDA here (install onnxruntime-gpu)",
                    self.path,
                )
                return self._session(torch.device("cpu"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # it would repeat in many lines what is raised
        try:
            return onnxruntime.InferenceSession(str(self.path), options, providers=providers)
        except _RUNTIME_ERRORS as error:
            raise InputError(
                f"{self.path}: onnxruntime cannot run it ({one_line(error, 200)})"
            ) from error
