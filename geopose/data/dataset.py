"""Turns records into samples: reads the files, augments, normalises.

In: `ImageRecord`s. Out: dictionaries of tensors with the keys of `geopose.keys`, ready for torch's
default collate. The augmentation of a sample follows from (seed, epoch, index) alone, so neither
the number of loader workers nor the number of processes changes what is drawn, and a run resumed at
an epoch goes on exactly as it would have.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from geopose import keys
from geopose.augment.common_gsd import Resize
from geopose.augment.spatial import Pixels
from geopose.data.heights import MaskedHeights, open_agl_m
from geopose.data.layout import JPEG2000_SUFFIXES, ImageRecord, check_same_size
from geopose.data.rgb import open_image
from geopose.data.targets import Variances, make_targets, variance_targets
from geopose.data.vflow import read_vflow
from geopose.errors import InputError
from geopose.models.normalization import CHANNEL_ORDERS, IMAGENET, Normalization, normalize_image
from geopose.schema.numbers import is_whole

if TYPE_CHECKING:  # predictions augment nothing, and do without the packages that it needs
    from geopose.augment.build import Augmentation

_Files = tuple[Pixels, tuple[Pixels, float, float] | None, float]  # RGB, truth, gsd

logger = logging.getLogger(__name__)
_warned = False


class SampleError(InputError):
    """An InputError that stays one line when it comes out of a loader worker.

    torch builds the error of a worker anew, with the worker's whole traceback as its message. The
    last line of that holds the message proper.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class GeoposeDataset(Dataset[dict[str, Any]]):
    """Samples of a list of images.

    Args:
        records: the images.
        channel_order: "rgb" or "bgr", as the model wants it.
        augmentation: from `build_augmentation`; None = whole images as they are.
        has_targets: read heights and flow as well.
        seed: of the augmentation.
        repeats: how often each image is drawn in an epoch, each time augmented anew; the length is
            `len(records) * repeats`.
        cache: keep decoded files in memory; each loader worker keeps its own.
        normalization: of the model's input.
        variances: of the truth of every city, if samples are to have them as targets.
        plain: takes the place of the augmentation after `set_plain(True)`.
        gsd_m: metres per pixel that images are brought to, before the augmentation; None = they
            keep their own.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        channel_order: str,
        augmentation: "Augmentation | None" = None,
        has_targets: bool = True,
        seed: int = 0,
        repeats: int = 1,
        cache: bool = False,
        normalization: Normalization = IMAGENET,
        variances: Mapping[str, Variances] | None = None,
        plain: "Augmentation | None" = None,
        gsd_m: float | None = None,
    ) -> None:
        if channel_order not in CHANNEL_ORDERS:
            raise InputError(f"channel_order is {channel_order!r}, expected rgb or bgr")
        if not is_whole(seed, 0):
            raise InputError(f"seed is {seed!r}, expected a whole number from 0")
        if augmentation is not None and not has_targets:
            raise ValueError("an augmentation changes scale and gsd: it needs the targets")
        self.records = list(records)
        self.channel_order = channel_order
        self.normalization = normalization
        self.augmentation = augmentation
        self.has_targets = has_targets
        self.seed = seed
        self.gsd_m = gsd_m
        self.repeats = repeats
        self._cache: dict[int, _Files] | None = {} if cache else None
        self._variances = variances
        self._plain = plain
        # In shared memory, so that loader workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._is_plain = torch.zeros((), dtype=torch.bool).share_memory_()
        warn_unconverted(self.records)

    def __len__(self) -> int:
        return len(self.records) * self.repeats

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's augmentations; call it before iterating over the loader."""
        self._epoch.fill_(epoch)

    def set_plain(self, is_plain: bool) -> None:
        """Whether the next samples are drawn by `plain`; as `set_epoch`."""
        self._is_plain.fill_(is_plain)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._named(index)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Of a loader, whose sampler may draw an image more often than `repeats`: indices from
        the length on are further draws of the same images."""
        return [self._named(index) for index in indices]

    def _named(self, index: int) -> dict[str, Any]:
        """A sample; what is wrong with it is said in one line, also by a worker."""
        try:
            return self._sample(index)
        except SampleError:
            raise
        except InputError as error:
            raise SampleError(str(error)) from error

    def _sample(self, index: int) -> dict[str, Any]:
        record = self.records[index % len(self.records)]
        pixels, truth, gsd_m = self._files(index % len(self.records))
        targets: dict[str, Tensor] = {}
        augmentation = self._plain if bool(self._is_plain) else self.augmentation
        if truth is not None and augmentation is not None:
            augmentation.set_seed(self._sample_seed(index))
            heights, scale_px_per_m, angle_rad = truth
            rgb, agl_m, gsd_m, scale_px_per_m, angle_rad = augmentation(
                pixels, heights, gsd_m, scale_px_per_m, angle_rad
            )
            targets = make_targets(agl_m, scale_px_per_m, angle_rad)
        else:
            rgb = _all(pixels)
            if truth is not None:
                targets = make_targets(_all(truth[0]), *truth[1:])
        if self._variances is not None:
            targets |= variance_targets(self._variances[record.city], record.gsd_m / gsd_m)
        return {
            keys.INPUT_IMAGE_KEY: normalize_image(rgb, self.channel_order, self.normalization),
            keys.INPUT_IMAGE_ID_KEY: record.image_id,
            keys.INPUT_INDEX_KEY: index % len(self.records),
            keys.INPUT_CITY_NAME: record.city,
            keys.INPUT_GROUND_SAMPLE_DISTANCE: _scalar(gsd_m),
            **targets,
        }

    def _files(self, number: int) -> _Files:
        """What the files of a record hold, from memory if they have been kept.

        Raw files are only opened: what is read of them depends on the crop, but for a common gsd.
        """
        if self._cache is None:
            return self._at_gsd(self._opened(number))
        if number not in self._cache:
            pixels, truth, gsd_m = self._at_gsd(self._opened(number))
            kept = truth and (_all(truth[0]), *truth[1:])
            self._cache[number] = _all(pixels), kept, gsd_m
        return self._cache[number]

    def _opened(self, number: int) -> _Files:
        record = self.records[number]
        (rgb, unknown), truth = open_image(record.rgb_file(), record.rgb), None
        if self.has_targets:
            agl = record.agl_file()
            if agl is None or record.vflow is None:
                raise InputError(f"{record.where}: there are no heights and flow to learn from")
            agl_m = open_agl_m(agl)
            check_same_size(record, rgb.shape, agl_m.shape)
            known = agl_m if unknown is None else MaskedHeights(agl_m, unknown)
            truth = (known, *read_vflow(record.vflow))
        return rgb, truth, record.gsd_m

    def _at_gsd(self, files: _Files) -> _Files:
        """Image and heights brought to the common gsd, if there is one."""
        rgb, truth, gsd_m = files
        height, width = rgb.shape[:2]
        resize = Resize.between((height, width), gsd_m, self.gsd_m)
        if resize.zoom == 1.0:
            return files
        if truth is not None:
            agl_m, scale_px_per_m, angle_rad = truth
            truth = resize.heights(_all(agl_m)), scale_px_per_m * resize.zoom, angle_rad
        return resize.rgb(_all(rgb)), truth, gsd_m / resize.zoom

    def _sample_seed(self, index: int) -> int:
        sequence = np.random.SeedSequence([self.seed, int(self._epoch), index])
        return int(sequence.generate_state(1)[0])


def _all(pixels: Pixels) -> NDArray:
    """A whole image or height map, whether it is in memory or in a raw file."""
    return pixels[:, :]


def worker_init_fn(worker_id: int) -> None:
    """For DataLoader: one thread for each worker, OpenCV's pool would fight with the others'."""
    del worker_id  # nothing is seeded here: samples carry their own seeds
    cv2.setNumThreads(0)


def _scalar(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float32)


def warn_unconverted(records: Sequence[ImageRecord]) -> None:
    """Says once in each process that JPEG 2000 will be decoded, or that raw files are outdated."""
    global _warned
    slow = sum(record.rgb_file().suffix.lower() in JPEG2000_SUFFIXES for record in records)
    outdated = [path for record in records for path in record.outdated_raw()]
    if _warned or not (slow or outdated):
        return
    _warned = True
    if outdated:
        logger.warning(
            "%d raw files are older than what they were made of, or were made of other files, "
            "and are not read, the first is %s; run convert_j2k.py --format raw again",
            len(outdated),
            outdated[0],
        )
    if slow:
        logger.warning(
            "%d of %d images are read from .j2k, several times slower than PNG; "
            "run convert_j2k.py once",
            slow,
            len(records),
        )
