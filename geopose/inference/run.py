"""The inference loop, the same for one process and for many: test images in, an archive out.

Every process predicts its own share of the images and writes their files; the first one packs the
archive when all are done. An image that fails is named and the others go on, but then there is no
archive and the run has failed.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from geopose import distributed
from geopose.cores import usable_cores
from geopose.data.dataset import warn_unconverted
from geopose.data.io import partial_files, read_rgb
from geopose.data.layout import ImageRecord, read_split, viz_name
from geopose.errors import GeoposeError, InputError, RunError
from geopose.inference.build import build_ensemble
from geopose.inference.config import InferenceConfig
from geopose.inference.ensemble import PoseEnsemble
from geopose.inference.tta import Prediction
from geopose.output.archive import write_archive
from geopose.output.preview import save_visualization
from geopose.output.writer import discard_prediction, output_names, write_prediction
from geopose.targets import check_folder_target

_LOG = logging.getLogger(__name__)

ARCHIVE_NAME = "submission_compressed.tar.gz"
PREDICTIONS_FOLDER = "submission"
PICTURES_FOLDER = "visualization"
MAX_NAMED = 3  # failed images in the final error; all of them are logged


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        images: number of images of the test split.
        seconds: from the first image to the finished archive.
        archive: the file that was written.
    """

    images: int
    seconds: float
    archive: Path


@dataclass(frozen=True)
class _Image:
    """One image as a loader hands it over: its record's number, and its pixels or what failed."""

    index: int
    rgb: Tensor | None  # H x W x 3 uint8
    problem: str = ""


class _Images(Dataset[_Image]):
    """Reads images; a file that cannot be read is reported with the item, not raised."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self._records = records

    def __getitem__(self, index: int) -> _Image:
        try:
            return _Image(index, torch.from_numpy(read_rgb(self._records[index].rgb_file())))
        except GeoposeError as error:
            return _Image(index, None, str(error))


def run_inference(config: InferenceConfig, data_dir: Path, visualize: bool = False) -> RunReport:
    """Predicts the test split and writes the submission.

    Called on every process of a run with the same arguments. Nothing is written before the data,
    the folder and all models have been checked.

    Args:
        config: models, views, batch size, folder.
        data_dir: with `metadata.csv`, `geopose_test.csv` and `test/`.
        visualize: also write a picture for each image.

    Raises:
        InputError: data, a folder or a checkpoint that cannot be used.
        RunError: some images failed (all others are written), or the run itself broke.
    """
    device = distributed.local_device()
    distributed.together(lambda: check_submission_dir(config, visualize))
    records = distributed.together(lambda: read_split(data_dir, "test"))
    ensemble = distributed.together(lambda: build_ensemble(config, device))
    folder = config.submission_dir / PREDICTIONS_FOLDER
    archive = config.submission_dir / ARCHIVE_NAME
    distributed.together(lambda: _make_folders(config.submission_dir, visualize))
    if distributed.is_main():
        warn_unconverted(records)
        if config.fp16 and device.type != "cuda":
            _LOG.warning("inference.fp16 needs a CUDA device; computing in float32")
    started = time.perf_counter()
    outputs = _Outputs(config.submission_dir, records, visualize)
    failed = distributed.together(lambda: _predict_all(config, records, ensemble, device, outputs))
    everywhere = sorted(chain.from_iterable(distributed.gather_objects(failed)))
    if everywhere:
        raise RunError(_failure([line for _, line in everywhere], len(records), folder))
    distributed.together(lambda: _pack(archive, folder, records))
    seconds = time.perf_counter() - started
    if distributed.is_main():
        _LOG.info(
            "%d images in %.1f s (%.2f s each, %d process%s on %s): %s",
            len(records), seconds, seconds / len(records), distributed.world_size(),
            "" if distributed.world_size() == 1 else "es", device.type, archive,
        )  # fmt: skip
    return RunReport(len(records), seconds, archive)


def check_submission_dir(config: InferenceConfig, visualize: bool) -> None:
    """Finds out whether the output folders can be made, without making them.

    Raises:
        InputError: they cannot.
    """
    if not distributed.is_main():
        return
    names = (PREDICTIONS_FOLDER, PICTURES_FOLDER) if visualize else (PREDICTIONS_FOLDER,)
    check_folder_target(config.submission_dir, "submission_dir")
    for name in names:
        check_folder_target(config.submission_dir / name, "submission_dir")
    archive = config.submission_dir / ARCHIVE_NAME
    if archive.is_dir():
        raise InputError(f"submission_dir: {archive} is a directory; remove it")


def _make_folders(submission_dir: Path, visualize: bool) -> None:
    """Creates the output folders; an archive of an earlier run must not outlive its files."""
    if not distributed.is_main():
        return
    try:
        (submission_dir / PREDICTIONS_FOLDER).mkdir(parents=True, exist_ok=True)
        for path in partial_files(submission_dir / PREDICTIONS_FOLDER, ".*"):
            path.unlink()
        if visualize:
            (submission_dir / PICTURES_FOLDER).mkdir(exist_ok=True)
        (submission_dir / ARCHIVE_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"submission_dir: cannot write to {submission_dir}: {error.strerror}"
        ) from error


class _Outputs:
    """Writes what one image's prediction becomes."""

    def __init__(
        self, submission_dir: Path, records: Sequence[ImageRecord], visualize: bool
    ) -> None:
        self.folder = submission_dir / PREDICTIONS_FOLDER
        self.pictures = submission_dir / PICTURES_FOLDER
        self.records = records
        self.visualize = visualize

    def write(self, image: _Image, prediction: Prediction, item: int) -> None:
        """Files of the item-th image of a batch; RunError if its prediction cannot be stored."""
        name = self.records[image.index].rgb.name
        agl_m = prediction.agl_m[item, 0].cpu().numpy()
        scale_px_per_m = float(prediction.scale_px_per_m[item])
        angle_rad = float(prediction.angle_rad[item])
        write_prediction(self.folder, name, agl_m, scale_px_per_m, angle_rad)
        if self.visualize and image.rgb is not None:
            picture = self.pictures / viz_name(name)
            save_visualization(picture, image.rgb.numpy(), agl_m, scale_px_per_m, angle_rad)

    def discard(self, image: _Image) -> None:
        """Removes an earlier run's files of an image that failed in this one."""
        discard_prediction(self.folder, self.records[image.index].rgb.name)


def _predict_all(
    config: InferenceConfig,
    records: Sequence[ImageRecord],
    ensemble: PoseEnsemble,
    device: torch.device,
    outputs: _Outputs,
) -> list[tuple[int, str]]:
    """`_predict_share`, with a lack of memory as an error that the user can act on."""
    try:
        return _predict_share(config, records, ensemble, device, outputs)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory on {device} with inference.batch_size={config.batch_size}; "
            "lower it, or use fewer models"
        ) from error


def _predict_share(
    config: InferenceConfig,
    records: Sequence[ImageRecord],
    ensemble: PoseEnsemble,
    device: torch.device,
    outputs: _Outputs,
) -> list[tuple[int, str]]:
    """Predicts and writes this process's images; returns (number, line) of each that failed."""
    share = distributed.shard(len(records))
    failed: list[tuple[int, str]] = []
    with (
        tqdm(
            total=len(share),
            unit="image",
            desc=f"process 1 of {distributed.world_size()}",
            disable=not distributed.is_main(),
        ) as progress,
        torch.inference_mode(),
    ):
        for batch in _batches(_load(records, share, config.num_workers), config.batch_size):
            if batch[0].rgb is None:
                failed.append((batch[0].index, batch[0].problem))
                outputs.discard(batch[0])
            else:
                prediction = _predict(ensemble, batch, records, device)
                for item, image in enumerate(batch):
                    try:
                        outputs.write(image, prediction, item)
                    except RunError as error:
                        failed.append((image.index, str(error)))
            progress.update(len(batch))
    return failed


def _load(records: Sequence[ImageRecord], share: range, workers: int) -> Iterator[_Image]:
    """Images of a share in order, read ahead by at most as many workers as there are cores."""
    workers = min(workers, len(share), usable_cores())
    loader = DataLoader(
        _Images(records),
        batch_size=None,
        sampler=list(share),
        num_workers=workers,
        # Spawned processes would start their workers by spawning: seconds each, and a worker that
        # loses its parent while it starts never ends.
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)


def _batches(images: Iterator[_Image], batch_size: int) -> Iterator[list[_Image]]:
    """Groups images that follow each other and have one size; an unreadable one stands alone."""
    batch: list[_Image] = []
    for image in images:
        fits = batch and image.rgb is not None and image.rgb.shape == _shape(batch[0])
        if batch and (not fits or len(batch) == batch_size):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def _shape(image: _Image) -> torch.Size | None:
    return None if image.rgb is None else image.rgb.shape


def _predict(
    ensemble: PoseEnsemble,
    batch: list[_Image],
    records: Sequence[ImageRecord],
    device: torch.device,
) -> Prediction:
    pixels = torch.stack([image.rgb for image in batch if image.rgb is not None])
    gsd_m = torch.tensor([[records[image.index].gsd_m] for image in batch])
    return ensemble(pixels.to(device).permute(0, 3, 1, 2).contiguous(), gsd_m.to(device))


def _failure(failed: list[str], count: int, folder: Path) -> str:
    """One line for the user; the full list goes to the log."""
    if distributed.is_main() and len(failed) > MAX_NAMED:
        for line in failed:
            _LOG.error("failed: %s", line)
    more = f"; and {len(failed) - MAX_NAMED} more, listed above" if len(failed) > MAX_NAMED else ""
    return (
        f"{len(failed)} of {count} images failed, no archive written (the others are in {folder}): "
        f"{'; '.join(failed[:MAX_NAMED])}{more}"
    )


def _pack(archive: Path, folder: Path, records: Sequence[ImageRecord]) -> None:
    """Archive of exactly this run's files, by the first process."""
    if not distributed.is_main():
        return
    names = [name for record in records for name in output_names(record.rgb.name)]
    others = {path.name for path in folder.iterdir()} - set(names)
    if others:
        _LOG.warning(
            "%d files in %s are not of this run and stay out of the archive", len(others), folder
        )
    write_archive(archive, folder, names)
