"""A network and images with truth in, gains for its heights and flow out, with what they bring."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geopose.calibration.fit import Fit, ImageSums, fit
from geopose.checkpoints.formats.facts import CALIBRATION, NO_GAINS
from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.data.folds import NUM_FOLDS, PLACE, split_fold
from geopose.data.heights import read_agl_m
from geopose.data.layout import ImageRecord
from geopose.data.layouts.splits import read_split
from geopose.data.places.table import places_file, read_places
from geopose.data.rgb import read_rgb, unknown_in
from geopose.data.vflow import read_vflow
from geopose.errors import InputError, RunError
from geopose.inference.predict.ensemble import Member, PoseEnsemble
from geopose.inference.predict.tta import Tta
from geopose.quantization.calibration import shuffled
from geopose.quantization.score import with_truth
from geopose.system.progress import progress_bar
from geopose.words import HELD_OUT

logger = logging.getLogger(__name__)

_MOST_OFF_DEG = 15.0  # a cosine of 0.97
_PUBLISHED_SPLIT = "region_stratified"  # how published configs call what is stratified by city


@dataclass(frozen=True)
class Options:
    """What the command's options choose.

    Attributes:
        data_dir: holds the images. layout: of it.
        split: "train", "test", or HELD_OUT: those of train that the network has not learned from.
        fold: in place of the one that the file says, or None.
        images: how many to fit on, at most; None = all.
        tta: their views.
        force: write gains that do not help, too.
    """

    data_dir: Path
    layout: str
    split: str
    fold: int | None
    images: int | None
    tta: str | None
    force: bool


def calibrated_facts(
    loaded: LoadedModel, facts: Mapping[str, Any], options: Options
) -> dict[str, Any]:
    """The facts of a network's file with the gains that fit its images best.

    Args:
        loaded: the network; gains that its file has already are fitted anew.
        facts: of its file.
        options: of the command.

    Raises:
        InputError: no images with truth, or a file that does not say which it has not learned from.
        RunError: a prediction that is not finite, or gains that do not help (unless `force`).
    """
    records, chosen = _images(facts, options, loaded.source)
    if loaded.gains != NO_GAINS:
        logger.info("%s: is calibrated already, which is done anew", loaded.source)
    member = Member(replace(loaded, gains=NO_GAINS)).eval()
    sums = _sums(member, records, options.tta)
    _warn_of_directions(sums, loaded.source)
    found = fit(sums)
    _say(found, len(records), chosen)
    if not found.helps and not options.force:
        raise RunError(
            f"{loaded.source}: the score of images that the gains were not fitted on does not "
            "rise; nothing was written; use more images, or --force"
        )
    calibration = {
        **found.gains._asdict(),
        "images": len(records),
        "split": chosen,
        "views": options.tta or "null",
        "score": found.summary(),
    }
    return {**facts, CALIBRATION: calibration}


def _warn_of_directions(sums: Sequence[ImageSums], source: str) -> None:
    """A flow that points elsewhere scores best if it is short, whatever its true length."""
    off_deg = math.degrees(float(np.mean([image.off_rad for image in sums])))
    if off_deg > _MOST_OFF_DEG:
        logger.warning(
            "%s: its directions are off by %.0f degrees on average, so the gain of flow makes up "
            "for that, and scales get too small; use more views (--tta) or a better network",
            source,
            off_deg,
        )


def _say(found: Fit, images: int, chosen: str) -> None:
    logger.info("heights x %.4f, length of flow x %.4f", *found.gains)
    logger.info("score of these %d images (%s): %.5f -> %.5f", images, chosen, found.before,
                found.after)  # fmt: skip
    if math.isfinite(found.halves[1]):
        logger.info("fitted on one half, measured on the other: %.5f -> %.5f", *found.halves)
    else:
        logger.warning("too few images to fit on one half and to measure on the other")


def _images(
    facts: Mapping[str, Any], options: Options, source: str
) -> tuple[list[ImageRecord], str]:
    """The images, and in words which they are."""
    held_out = options.split == HELD_OUT
    records = read_split(options.data_dir, "train" if held_out else options.split, options.layout)
    words = options.split
    if held_out:
        fold, kind, count, table = _fold(facts, options, source)
        places = None
        if kind == PLACE:
            places = read_places(places_file(options.data_dir, table), records)
        records, words = split_fold(records, fold, kind, count, places)[1], f"train, fold {fold}"
    known = with_truth(shuffled(records))[: options.images]
    if not known:
        raise InputError(
            f"{options.data_dir}: no image ({words}) has truth to fit on; choose another --split"
        )
    return known, words


def _fold(
    facts: Mapping[str, Any], options: Options, source: str
) -> tuple[int, str, int, str | None]:
    """Number, kind and count of folds of a network's training, and its table of places."""
    dataset = facts["checkpoint_data"]["config"].get("dataset")
    said: Mapping[str, Any] = dataset if isinstance(dataset, Mapping) else {}
    fold = said.get("fold") if options.fold is None else options.fold
    if fold is None:
        raise InputError(
            f"{source}: does not say which fold it has not learned from; give --fold N, or "
            "--split train or test"
        )
    kind = said.get("fold_split") or "stratified"
    kind = "stratified" if kind == _PUBLISHED_SPLIT else kind
    return fold, kind, said.get("num_folds") or NUM_FOLDS, said.get("places")


def _sums(member: Member, records: Sequence[ImageRecord], tta: str | None) -> list[ImageSums]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ensemble = PoseEnsemble([member], Tta.from_name(tta), device=device).eval()
    with torch.inference_mode():
        bar = progress_bar(records, desc="predict", unit="image")
        return [_predicted(ensemble, record, device) for record in bar]


def _predicted(ensemble: PoseEnsemble, record: ImageRecord, device: torch.device) -> ImageSums:
    assert record.agl is not None
    assert record.vflow is not None
    rgb = torch.from_numpy(read_rgb(record.rgb_file())).permute(2, 0, 1)[None].contiguous()
    found = ensemble(rgb.to(device), torch.tensor([[record.gsd_m]], device=device))
    agl_m = found.agl_m[0, 0].clamp(min=0).cpu().numpy()  # no file holds less
    scale, angle = (float(x) for x in (found.scale_px_per_m[0], found.angle_rad[0]))
    if not (np.isfinite(agl_m).all() and math.isfinite(scale) and math.isfinite(angle)):
        raise RunError(f"{record.where}: the prediction is not finite")
    true_m, unknown = read_agl_m(record.agl), unknown_in(record.rgb)
    if unknown is not None and unknown.shape == true_m.shape:
        true_m[unknown] = np.nan
    if true_m.shape != agl_m.shape:
        raise InputError(f"{record.where}: image and heights differ in size")
    return ImageSums.of(record.city, (agl_m, scale, angle), (true_m, *read_vflow(record.vflow)))
