"""One process's share of a run: parts of images read ahead, predicted, written in the background.

The models wait for neither: processes decode the next images, copies to and from a GPU run beside
the computation, threads write what is done. All queues between them are bounded, so memory does not
grow with the number of images. An image that fails is named and the others go on; what concerns
more than one image (a full disk, a lack of memory) ends this process's work.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopose.errors import GeoposeError, InputError, RunError, StorageError
from geopose.inference.pipeline.background import Background
from geopose.inference.pipeline.decode import Reader
from geopose.inference.pipeline.device_copy import DeviceCopy
from geopose.inference.pipeline.idle_time import IdleTime
from geopose.inference.pipeline.progress import PartProgress
from geopose.inference.pipeline.task import Outputs, Part, Task
from geopose.inference.predict.ensemble import PoseEnsemble, do_nothing
from geopose.inference.predict.tta import HeightSpread, Prediction
from geopose.inference.workers.coordinator import Coordinator, WorkReport
from geopose.system.devices import is_out_of_memory, sent, use_device

_WRITERS = {"cpu": 1, "cuda": 3}  # threads; one 2048 x 2048 map takes a core 0.05 s
_WAITING = 2  # batches' results that may wait for a thread


class Pipeline:
    """Predicts the parts of images as these are claimed.

    Args:
        ensemble: None if no task needs it.
        device: where it is.
        reader: decodes.
        outputs: writes.
        batch_size: how many images of one size are predicted at once.
    """

    def __init__(
        self,
        ensemble: PoseEnsemble | None,
        device: torch.device,
        reader: Reader,
        outputs: Outputs,
        batch_size: int,
    ) -> None:
        self._ensemble = ensemble
        self._device = device
        self._reader = reader
        self._outputs = outputs
        self._batch_size = batch_size
        self._device_copy = DeviceCopy(device)
        self._idle_time = IdleTime(device)
        self._writers = Background(
            _WRITERS.get(device.type, 1), _WAITING * batch_size, partial(use_device, device)
        )
        self._counting = threading.Lock()

    def run(self, tasks: Sequence[Task], coordinator: Coordinator) -> WorkReport:
        """Does tasks until none is left; what went wrong is in the report.

        Args:
            tasks: all tasks of the run.
            coordinator: shares them out.
        """
        started = time.perf_counter()
        report = WorkReport()
        parts = self._reader.read(
            tasks, lambda: coordinator.claim(len(tasks)), coordinator.size, self._batch_size
        )
        try:
            with torch.inference_mode():
                for batch in batches(self._wanted(parts, coordinator), self._batch_size):
                    self._do(batch, coordinator, report)
            self._writers.finish()
        except GeoposeError as error:
            report.problem = error
        finally:
            self._writers.stop()
        report.work_s = time.perf_counter() - started
        self._idle_time.finish(self._reader.wait_s, self._writers.wait_s)
        report.input_wait_s = self._idle_time.input_wait_s
        report.output_wait_s = self._idle_time.output_wait_s
        return report

    def _wanted(self, parts: Iterable[Part], coordinator: Coordinator) -> Iterator[Part]:
        """Without what is left of images that have failed."""
        for part in parts:
            if self._outputs.skips(part):
                PartProgress(coordinator, 1, 0).finish()
            else:
                yield part

    def _do(self, batch: list[Part], coordinator: Coordinator, report: WorkReport) -> None:
        """Computes one batch and leaves what follows to the writers."""
        first = batch[0]
        progress = PartProgress(coordinator, len(batch), 0)
        if first.problem:
            self._fail(first, first.problem, coordinator, report)
        elif not first.task.predict:
            for part in batch:
                self._writers.put(self._draw_job(part, progress, report))
        elif first.rgb is None:
            self._writers.put(self._write_job(first, 0, lambda: [], progress, report))
        else:
            self._predict(batch, coordinator, report)

    def _fail(self, part: Part, problem: str, coordinator: Coordinator, report: WorkReport) -> None:
        self._outputs.fail(part)
        with self._counting:
            report.failed.append((part.task.name, problem))
        PartProgress(coordinator, 1, 0).finish()

    def _predict(self, batch: list[Part], coordinator: Coordinator, report: WorkReport) -> None:
        """Images that a model refuses fail, each by itself; the others go on."""
        try:
            self._start(batch, coordinator, report)
        except InputError as error:
            if len(batch) == 1:
                problem = f"{batch[0].task.name}: {error}"
                self._fail(batch[0], problem, coordinator, report)
                return
            for part in batch:
                self._predict([part], coordinator, report)

    def _start(self, batch: list[Part], coordinator: Coordinator, report: WorkReport) -> None:
        if self._ensemble is None:
            raise ValueError("nothing to predict with")
        self._idle_time.before(self._reader.wait_s, self._writers.wait_s)
        progress = PartProgress(coordinator, len(batch), self._ensemble.runs)
        arrived = predict(
            self._ensemble,
            self._device_copy,
            [part.rgb for part in batch if part.rgb is not None],
            [part.gsd_m for part in batch],
            self._outputs.fields,
            progress.step,
            HeightSpread() if self._outputs.wants_spread else None,
        )
        self._idle_time.after()
        for item, part in enumerate(batch):
            if part.rgb is not None:
                found = self._ensemble.unknown_gsd(part.gsd_m, part.rgb.shape[:2])
                report.unknown_gsds.add(part.task.name, found)
            self._writers.put(self._write_job(part, item, arrived, progress, report))

    def _write_job(
        self,
        part: Part,
        item: int,
        arrived: Callable[[], list[Tensor]],
        progress: PartProgress,
        report: WorkReport,
    ) -> Callable[[], None]:
        def write() -> None:
            try:
                finished = self._outputs.write(part, [field[item] for field in arrived()])
                with self._counting:
                    report.predicted += finished
            except StorageError as error:
                with self._counting:
                    report.failed.append((part.task.name, str(error)))
            progress.finish()

        return write

    def _draw_job(
        self, part: Part, progress: PartProgress, report: WorkReport
    ) -> Callable[[], None]:
        def draw() -> None:
            self._outputs.draw(part)
            with self._counting:
                report.drawn += 1
            progress.finish()

        return draw


Fields = Callable[[Prediction, Tensor | None], list[Tensor]]


def predict(
    ensemble: PoseEnsemble,
    device_copy: DeviceCopy,
    images: Sequence[NDArray[np.uint8]],
    gsd_m: Sequence[float],
    fields: Fields,
    on_run: Callable[[], None] = do_nothing,
    spread: HeightSpread | None = None,
) -> Callable[[], list[Tensor]]:
    """Starts predicting images of one size; the returned function waits for what comes out.

    Args:
        ensemble: on the device.
        device_copy: takes the images there and the results back.
        images: H x W x 3 RGB each.
        gsd_m: of each of them.
        fields: see `Outputs`.
        on_run: see `PoseEnsemble`.
        spread: the same.

    Returns:
        Gives the fields, N of each, in main memory.

    Raises:
        RunError: out of memory, wherever on the way.
    """
    try:
        pixels = device_copy.upload(images)
        sizes = sent(torch.tensor(gsd_m, dtype=torch.float32)[:, None], device_copy.device)
        prediction = ensemble(pixels, sizes, on_run, spread)
        spread_m = None if spread is None else spread.result()
        return device_copy.download(fields(prediction, spread_m))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        count, (height, width) = len(images), images[0].shape[:2]
        fewer = f"inference.batch_size below {count}, " if count > 1 else ""
        raise RunError(
            f"out of memory on {device_copy.device} with {count} image{'s' if count > 1 else ''} "
            f"of {width} x {height} px, one view and one model at a time; use {fewer}"
            "inference.precision=bf16 or fp16, downsample or smaller images"
        ) from error


def batches(parts: Iterable[Part], batch_size: int) -> Iterator[list[Part]]:
    """Groups parts that follow each other, have one size and need the same; others stand alone."""
    batch: list[Part] = []
    for part in parts:
        if batch and _kind(part) != _kind(batch[0]):
            yield batch
            batch = []
        batch.append(part)
        if part.rgb is None or len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _kind(part: Part) -> tuple[bool, tuple[int, ...]]:
    return part.task.predict, () if part.rgb is None else part.rgb.shape
