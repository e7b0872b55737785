"""What one image becomes: prediction files, their record, a picture."""

import logging
import threading
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from geopose.data.heights import metres, read_agl_m
from geopose.data.layout import viz_name
from geopose.data.vflow import read_vflow
from geopose.errors import RunError
from geopose.files.stamp import FileStamp
from geopose.inference.pipeline.decode import Decoded
from geopose.inference.submission.folder import SubmissionFolder
from geopose.inference.submission.manifest import Journal, Record
from geopose.output.writer import check_misfits, discard_prediction, output_names, write_prediction

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
class Stored:
    """One image's prediction in main memory, as it goes into the files.

    Attributes:
        agl_cm: H x W int32.
        misfits: 3 numbers, see `Centimetres`.
        flow: scale in px/m and angle in radians.
    """

    agl_cm: Tensor
    misfits: Tensor
    flow: Tensor


@dataclass(frozen=True)
class Outputs:
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

    def write(self, image: Decoded, stored: Stored) -> None:
        """All files of an image.

        Raises:
            StorageError: the prediction holds what files cannot; nothing of the image is left.
            RunError: a file cannot be written.
        """
        name = image.name
        agl_file, _ = output_names(name)
        self.discard(image)
        width = stored.agl_cm.shape[1]
        check_misfits(stored.misfits, width, str(self.folder.predictions / agl_file))
        scale_px_per_m, angle_rad = stored.flow.tolist()
        agl_cm = stored.agl_cm.numpy().astype(np.uint16)
        write_prediction(self.folder.predictions, name, agl_cm, scale_px_per_m, angle_rad)
        self.journal.add(name, self._record(image))
        if image.unknown is not None:
            _mention_unknown(name, int(np.count_nonzero(image.unknown)), image.unknown.size)
        if self.visualize:
            self._draw(image, metres(agl_cm), scale_px_per_m, angle_rad)

    def draw(self, image: Decoded) -> None:
        """The picture of a prediction that is kept.

        Raises:
            GeoposeError: a file cannot be read or written.
        """
        agl_file, vflow_file = output_names(image.name)
        agl_m = read_agl_m(self.folder.predictions / agl_file)
        self._draw(image, agl_m, *read_vflow(self.folder.predictions / vflow_file))

    def discard(self, image: Decoded) -> None:
        """Removes what an earlier run left of an image that is done anew or has failed.

        Raises:
            RunError: it cannot be removed.
        """
        try:
            discard_prediction(self.folder.predictions, image.name)
            (self.folder.pictures / viz_name(image.name)).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot remove {error.filename}: {error.strerror}") from error

    def _record(self, image: Decoded) -> Record:
        if image.source is None:
            raise ValueError("an image that could not be read has no prediction")
        try:
            files = {
                name: FileStamp.of_file(self.folder.predictions / name)
                for name in output_names(image.name)
            }
        except OSError as error:
            raise RunError(f"cannot read {error.filename} again: {error.strerror}") from error
        return Record(self.settings, image.source, image.task.record.gsd_m, files)

    def _draw(
        self, image: Decoded, agl_m: np.ndarray, scale_px_per_m: float, angle_rad: float
    ) -> None:
        if image.rgb is None:
            raise ValueError("an image that could not be read cannot be drawn")
        if image.unknown is not None:
            agl_m = np.where(image.unknown, np.nan, agl_m)
        from geopose.output.preview import save_visualization  # imports matplotlib, rarely needed

        picture = self.folder.pictures / viz_name(image.name)
        with _DRAWING:
            save_visualization(picture, image.rgb, agl_m, scale_px_per_m, angle_rad)
