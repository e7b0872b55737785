"""What one image becomes: prediction files, their record, a picture."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geopose.data.heights import metres, read_agl_m
from geopose.data.layout import viz_name
from geopose.data.vflow import read_vflow
from geopose.errors import RunError
from geopose.files.stamp import FileStamp
from geopose.inference.pipeline.task import Part
from geopose.inference.predict.tta import Prediction
from geopose.inference.resume.manifest import Journal, Record
from geopose.inference.submission.folder import SubmissionFolder
from geopose.inference.submission.tasks import Read
from geopose.output.writer import (
    check_misfits,
    discard_prediction,
    output_names,
    to_centimetres,
    write_prediction,
)

logger = logging.getLogger(__name__)

_DRAWING = threading.Lock()  # matplotlib is not made for several threads


_mentioned: list[str] = []


def _mention_unknown(name: str, count: int, pixels: int) -> None:
    """Says once what heights of pixels without data are worth: files must hold a number there."""
    if not _mentioned:
        logger.warning(
            "%s declares %d of its %d pixels to be no data: the heights written there mean "
            "nothing, and pictures leave them out (said once, of the first such image)",
            name,
            count,
            pixels,
        )
    _mentioned.append(name)


@dataclass(frozen=True)
class SubmissionOutputs:
    """Writes into a submission folder; safe to use from several threads.

    Attributes:
        folder: exists already.
        settings: fingerprint that goes into the records.
        journal: takes the records.
        visualize: draw a picture of each image.
    """

    folder: SubmissionFolder
    settings: str
    journal: Journal
    visualize: bool

    wants_spread = False

    def skips(self, part: Part) -> bool:
        """An image is one part here."""
        return False

    def fields(self, prediction: Prediction, spread_m: Tensor | None) -> list[Tensor]:
        """Heights as they are stored, what cannot be, and (scale in px/m, angle in radians)."""
        heights = to_centimetres(prediction.agl_m)
        flow = torch.cat([prediction.scale_px_per_m, prediction.angle_rad], dim=1).double()
        return [heights.agl_cm, heights.misfits, flow]

    def write(self, part: Part, fields: Sequence[Tensor]) -> bool:
        """All files of an image.

        Raises:
            StorageError: the prediction holds what files cannot; nothing of the image is left.
            RunError: a file cannot be written.
        """
        image = _read_image(part)
        agl_cm, misfits, flow = fields
        self.fail(part)
        agl_file, _ = output_names(part.task.name)
        check_misfits(misfits, agl_cm.shape[1], str(self.folder.predictions / agl_file))
        scale_px_per_m, angle_rad = flow.tolist()
        stored = agl_cm.numpy().astype(np.uint16)
        write_prediction(self.folder.predictions, part.task.name, stored, scale_px_per_m, angle_rad)
        self.journal.add(part.task.name, self._record(image))
        if image.unknown is not None:
            unknown = int(np.count_nonzero(image.unknown))
            _mention_unknown(part.task.name, unknown, image.unknown.size)
        if self.visualize:
            self._draw(image, metres(stored), scale_px_per_m, angle_rad)
        return True

    def draw(self, part: Part) -> None:
        """The picture of a prediction that is kept.

        Raises:
            GeoposeError: a file cannot be read or written.
        """
        agl_file, vflow_file = output_names(part.task.name)
        agl_m = read_agl_m(self.folder.predictions / agl_file)
        flow = read_vflow(self.folder.predictions / vflow_file)
        self._draw(_read_image(part), agl_m, *flow)

    def fail(self, part: Part) -> None:
        """Removes what an earlier run left of an image that is done anew or has failed.

        Raises:
            RunError: it cannot be removed.
        """
        if not part.task.predict:
            return
        try:
            discard_prediction(self.folder.predictions, part.task.name)
            (self.folder.pictures / viz_name(part.task.name)).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot remove {error.filename}: {error.strerror}") from error

    def _record(self, image: Read) -> Record:
        names = output_names(image.task.name)
        try:
            files = {name: FileStamp.of_file(self.folder.predictions / name) for name in names}
        except OSError as error:
            raise RunError(f"cannot read {error.filename} again: {error.strerror}") from error
        return Record(self.settings, image.source, image.task.record.gsd_m, files)

    def _draw(
        self, image: Read, agl_m: np.ndarray, scale_px_per_m: float, angle_rad: float
    ) -> None:
        if image.unknown is not None:
            agl_m = np.where(image.unknown, np.nan, agl_m)
        from geopose.output.preview import save_visualization  # imports matplotlib, rarely needed

        picture = self.folder.pictures / viz_name(image.task.name)
        with _DRAWING:
            save_visualization(picture, image.rgb, agl_m, scale_px_per_m, angle_rad)


def _read_image(part: Part) -> Read:
    if not isinstance(part.more, Read):
        raise ValueError("an image that could not be read has no prediction")
    return part.more
