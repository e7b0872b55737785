"""Training and validation loaders of a run: records -> folds -> samples -> batches."""

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from geopose.augment.build import build_augmentation
from geopose.augment.common_gsd import LARGEST_ZOOM, Resize
from geopose.data.checks.truth import check_truth
from geopose.data.dataset import GeoposeDataset, worker_init_fn
from geopose.data.folds import PLACE, split_fold
from geopose.data.image_size import image_size
from geopose.data.layout import ImageRecord, check_sizes, resolve_data_dir
from geopose.data.layouts.splits import read_split
from geopose.data.places.table import places_file, read_places
from geopose.data.targets import VARIANCES, Variances
from geopose.distributed import ShardSampler, is_main, local_world_size, rank, world_size
from geopose.errors import InputError
from geopose.models.build import channel_order, normalization
from geopose.system.shared_memory import free_shared_bytes, workers_that_fit
from geopose.system.signals import ignore_in_worker
from geopose.training.data.data_wait import TimedLoader
from geopose.training.data.resources import Resources
from geopose.training.data.sampler import BalancedSampler, ResumableSampler, SizeBatches
from geopose.training.data.variances import city_variances

logger = logging.getLogger(__name__)

_PLENTY_BYTES = 8 << 30  # of shared memory: no need to know how large a batch is
FAST_IMAGES = 64  # what train.fast leaves of either part


def _few(records: list[ImageRecord]) -> list[ImageRecord]:
    """FAST_IMAGES of the records, spread evenly over all of them and so over the cities."""
    count = min(len(records), FAST_IMAGES)
    return [records[number * len(records) // count] for number in range(count)]


def end_workers(loaders: Iterable[DataLoader]) -> None:
    """Ends the workers that outlive an epoch. They ignore SIGTERM, so nothing else would."""
    for loader in loaders:
        iterator, loader._iterator = loader._iterator, None
        if iterator is None:
            continue
        iterator._shutdown_workers()  # type: ignore[attr-defined]
        for worker in iterator._workers:  # type: ignore[attr-defined]
            if worker.is_alive():
                worker.kill()


def _start_worker(worker_id: int) -> None:
    worker_init_fn(worker_id)
    ignore_in_worker()


def _workers(count: int, prefetch: int) -> dict[str, Any]:
    """Worker processes that live as long as the run, and how many batches each prepares ahead."""
    if count == 0:
        return {"num_workers": 0}
    return {"num_workers": count, "persistent_workers": True, "prefetch_factor": prefetch}


def _size(record: ImageRecord, gsd_m: float | None) -> tuple[int, int]:
    """(height, width) of an image at the common gsd, if there is one."""
    return Resize.between(image_size(record.rgb_file()), record.gsd_m, gsd_m).size


def _check_one_size(records: list[ImageRecord], gsd_m: float | None) -> None:
    """Whole images are trained in one batch: InputError naming the first that does not fit."""
    sizes = [_size(record, gsd_m) for record in records]
    for record, (height, width) in zip(records, sizes, strict=True):
        if (height, width) != sizes[0]:
            raise InputError(
                f"{record.where}: {width} x {height} pixels, the first image has {sizes[0][1]} x "
                f"{sizes[0][0]}; set train.crop_size, or batch_size=1"
            )


def _check_enlarging(records: list[ImageRecord], gsd_m: float) -> None:
    """Raises InputError for images that would be enlarged to no use, and be refused later on."""
    coarsest = max(records, key=lambda record: record.gsd_m)
    if coarsest.gsd_m > LARGEST_ZOOM * gsd_m:
        raise InputError(
            f"{coarsest.where}: {coarsest.gsd_m:g} m per pixel, which train.gsd_m={gsd_m:g} would "
            f"enlarge {coarsest.gsd_m / gsd_m:.0f} times; set one nearer to the images'"
        )


def _sample_bytes(records: GeoposeDataset, whole: bool) -> int:
    """Size of the largest sample: of a crop the first one's, of whole images by their pixels."""
    sample = records[0]
    tensors = [value for value in sample.values() if isinstance(value, Tensor)]
    size = sum(value.nbytes for value in tensors)
    if not whole:
        return size
    areas = [h * w for h, w in (_size(record, records.gsd_m) for record in records.records)]
    return size * -(-max(areas) // areas[0])


def _room(
    records: GeoposeDataset, batch_size: int, name: str, workers: int, ahead: int, whole: bool
) -> dict[str, Any]:
    """Worker processes for a loader, as many as shared memory has room for.

    Args:
        records: what it loads.
        batch_size: of its batches.
        name: of the loader, for the message.
        workers: wanted.
        ahead: batches that each prepares.
        whole: whether its samples are whole images.
    """
    free = free_shared_bytes()
    if not workers or free is None or free > _PLENTY_BYTES:
        return _workers(workers, ahead)
    batch = batch_size * _sample_bytes(records, whole)
    fitting, shorter = workers_that_fit(workers, ahead, batch, free // local_world_size())
    if (fitting, shorter) != (workers, ahead) and is_main():
        logger.warning(
            "/dev/shm has %.0f MB free, and a batch of %s takes %.0f MB: %d of %d worker "
            "processes, %s; give the container more (docker run --shm-size=8g) for speed",
            free / 1e6, name, batch / 1e6, fitting, workers,
            f"{shorter} batches ahead" if fitting else "images are read between steps",
        )  # fmt: skip
    return _workers(fitting, shorter)


def _check_parts(
    cfg: Mapping[str, Any], train: list[ImageRecord], valid: list[ImageRecord]
) -> None:
    """Whether every process gets an image to validate on, whole images fit in one batch, and a
    common gsd is one for them."""
    if len(valid) < world_size():
        raise InputError(
            f"{len(valid)} validation images for {world_size()} processes; use fewer "
            "processes or a smaller dataset.num_folds"
        )
    gsd_m = cfg["train"]["gsd_m"]
    if gsd_m is not None:
        _check_enlarging([*train, *valid], gsd_m)
    if cfg["train"]["crop_size"] is None and cfg["batch_size"] > 1:
        _check_one_size(train, gsd_m)


def _parts(cfg: Mapping[str, Any]) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """The images to train and to validate on, checked."""
    dataset, train = cfg["dataset"], cfg["train"]
    data_dir = resolve_data_dir(dataset["data_dir"])
    records = read_split(data_dir, "train", dataset["layout"])
    check_sizes(records)
    check_truth(records)
    fold, kind, count = dataset["fold"], dataset["fold_split"], dataset["num_folds"]
    places = None
    if kind == PLACE:
        places = read_places(places_file(data_dir, dataset["places"]), records)
    parts = split_fold(records, fold, kind, count, places)
    if train["fast"]:
        parts = _few(parts[0]), _few(parts[1])
    _check_parts(cfg, *parts)
    return parts


_Variances = Mapping[str, Variances] | None


def _training_set(
    cfg: Mapping[str, Any], records: list[ImageRecord], variances: _Variances
) -> GeoposeDataset:
    train = cfg["train"]
    size = train["crop_size"], train["downsample"]
    return GeoposeDataset(
        records,
        channel_order(cfg["model"]),
        build_augmentation(train["augmentations"], *size, train["height_warp"]),
        seed=cfg["seed"],
        repeats=train["crops_per_image"],
        cache=train["cache"],
        normalization=normalization(cfg["model"]),
        variances=variances,
        plain=build_augmentation("none", *size),
        gsd_m=train["gsd_m"],
    )


def _validation_set(
    cfg: Mapping[str, Any], records: list[ImageRecord], variances: _Variances
) -> GeoposeDataset:
    downsample, cache = cfg["train"]["downsample"], cfg["train"]["cache"]
    whole = build_augmentation("none", None, downsample) if downsample > 1 else None
    return GeoposeDataset(
        records,
        channel_order(cfg["model"]),
        whole,
        cache=cache,
        normalization=normalization(cfg["model"]),
        variances=variances,
        gsd_m=cfg["train"]["gsd_m"],
    )


def _training_loader(cfg: Mapping[str, Any], samples: GeoposeDataset, **common: Any) -> DataLoader:
    shard = {"num_replicas": world_size(), "rank": rank(), "seed": cfg["seed"]}
    sampler: ResumableSampler = ResumableSampler(samples, **shard)
    if cfg["train"]["balance_cities"]:
        sampler = BalancedSampler(samples, **shard)
    return TimedLoader(
        samples,
        batch_size=cfg["batch_size"],
        sampler=sampler,
        drop_last=len(sampler) >= cfg["batch_size"],
        **common,
    )


def _validation_loader(samples: GeoposeDataset, batch_size: int, **common: Any) -> DataLoader:
    sizes = [_size(record, samples.gsd_m) for record in samples.records]
    batches = SizeBatches(ShardSampler(len(samples)), sizes, batch_size)
    return DataLoader(samples, batch_sampler=batches, **common)


def build_loaders(
    cfg: Mapping[str, Any],
    resources: Resources,
    device: torch.device,
    targets: Collection[str] = (),
) -> dict[str, DataLoader]:
    """`train` (augmented crops, sharded and shuffled) and `valid` (whole images, each once).

    Args:
        cfg: the whole config; `dataset`, `train`, `batch_size`, `seed` and the model's channel
            order are used.
        resources: worker processes of the loaders.
        device: where batches will go.
        targets: what the loss reads; the variances of the cities are estimated only if it does.

    Raises:
        InputError: data directory, CSV files, sizes or folds are wrong, or a rank has no image to
            validate on.
    """
    train_records, valid_records = _parts(cfg)
    variances: _Variances = None
    if not set(VARIANCES).isdisjoint(targets):
        variances = city_variances(train_records, {record.city for record in valid_records})
    train_set = _training_set(cfg, train_records, variances)
    valid_set = _validation_set(cfg, valid_records, variances)
    train_batch, loaders = cfg["batch_size"], cfg["train"]["loaders"]
    valid_batch = loaders["valid"]["batch_size"]
    train_workers = _room(
        train_set, train_batch, "training", resources.train_workers,
        loaders["train"]["prefetch"], whole=cfg["train"]["crop_size"] is None,
    )  # fmt: skip
    valid_workers = _room(
        valid_set, valid_batch, "validation", resources.valid_workers,
        loaders["valid"]["prefetch"], whole=True,
    )  # fmt: skip
    common = {"worker_init_fn": _start_worker, "pin_memory": device.type == "cuda"}
    return {
        "train": _training_loader(cfg, train_set, **train_workers, **common),
        "valid": _validation_loader(valid_set, valid_batch, **valid_workers, **common),
    }
