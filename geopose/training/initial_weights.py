"""Weights that a run starts from: all of a checkpoint, a part of it, or whatever fits."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from geopose.checkpoints.formats.contents import says_network, with_network
from geopose.checkpoints.formats.facts import common_gsd_of, downsample_of
from geopose.checkpoints.formats.pth import load_weights
from geopose.checkpoints.remote.fetch import Source, fetch
from geopose.checkpoints.weights import load_weights_strict
from geopose.errors import InputError
from geopose.models.build import channel_order, model_slug, normalization
from geopose.models.legacy import rename_state_dict

logger = logging.getLogger(__name__)

WEIGHTS_KEYS = ("checkpoint", "transfer", "transfer_encoder_decoder")
PARTS = ("encoder.", "decoder.")


def apply_initial_weights(model: nn.Module, cfg: Mapping[str, Any]) -> None:
    """Loads what `checkpoint`, `transfer` or `transfer_encoder_decoder` name, if anything.

    Raises:
        InputError: unreadable or unfitting file, nothing in common, or another channel order.
    """
    for key, loader in (
        ("checkpoint", _load_all),
        ("transfer_encoder_decoder", _load_encoder_decoder),
        ("transfer", _load_matching),
    ):
        if cfg[key]:
            path = str(fetch(Source(str(cfg[key]))))
            payload = load_weights(path)
            _check_channel_order(payload, cfg, path)
            _tell_other_images(payload, cfg, path)
            try:
                weights = rename_state_dict(payload["model_state_dict"])
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
            try:
                loader(model, weights, path)
            except InputError as error:
                raise InputError(f"{error}{_remedy(key, payload, path)}") from error


def _remedy(key: str, payload: Mapping[str, Any], path: str) -> str:
    """What to give for weights that do not fit; names the file's network if it says so."""
    told = ""
    if says_network(payload):
        data = with_network(payload, Path(path))["checkpoint_data"]
        told = f" ({model_slug(data['config']['model'])})"
    fits = "" if key == "transfer" else ", or transfer=FILE, which takes what fits"
    return f"; give the model that it was trained with{told}{fits}"


def _check_channel_order(payload: Mapping[str, Any], cfg: Mapping[str, Any], path: str) -> None:
    wanted = channel_order(cfg["model"])
    source = payload.get("channel_order")
    if source is None and says_network(payload):
        data = with_network(payload, Path(path))["checkpoint_data"]
        source = channel_order(data["config"]["model"])
    if source is None:
        logger.info(
            "%s: weights alone, which do not say their channel order; taken for %s, as this model",
            path,
            wanted,
        )
    elif source != wanted:
        raise InputError(
            f"{path}: trained on {source} images, this model reads {wanted}; "
            f"add model.channel_order={source}"
        )


def _tell_other_images(payload: Mapping[str, Any], cfg: Mapping[str, Any], path: str) -> None:
    """A warning where this run's images are of other sizes or colours: a choice, or forgotten.

    A file that says it in a way that is not understood here may still be started from.
    """
    if not says_network(payload):
        return
    try:
        theirs = _images(with_network(payload, Path(path))["checkpoint_data"]["config"], path)
        ours = _images(cfg, "this run")
    except InputError as error:
        logger.info("how its images were shown is not compared: %s", error)
        return
    differing = [
        f"{key}={theirs[key]} (here {ours[key]})" for key in ours if ours[key] != theirs[key]
    ]
    if differing:
        logger.warning(
            "%s: trained with %s; give the same unless the weights are to learn other images",
            path,
            ", ".join(differing),
        )


def _images(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a training config does to images before its network sees them."""
    facts = {"checkpoint_data": {"config": config}}
    mean, std = normalization(config["model"])
    return {
        "train.downsample": downsample_of(facts, where),
        "train.gsd_m": common_gsd_of(facts, where),
        "model.normalization": {"mean": list(mean), "std": list(std)},
    }


def _load_all(model: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    load_weights_strict(model, weights, path)
    logger.info("weights from %s: all %d tensors", path, len(weights))


def _load_encoder_decoder(model: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    own = model.state_dict()
    heads = {key: value for key, value in own.items() if not key.startswith(PARTS)}
    part = {key: value for key, value in weights.items() if key.startswith(PARTS)}
    load_weights_strict(model, {**heads, **part}, path)
    logger.info("encoder and decoder from %s: %d tensors", path, len(part))


def _load_matching(model: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    own = model.state_dict()
    fits = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    if not fits:
        raise InputError(f"{path}: not one parameter fits this model")
    model.load_state_dict({**own, **fits})
    logger.info(
        "transfer from %s: %d of the model's %d tensors taken, %d of the file's unused",
        path,
        len(fits),
        len(own),
        len(weights) - len(fits),
    )
