"""Configuration in, network out: what training, inference and checkpoints call."""

from typing import Any, Literal

from geopose.construct import TARGET, as_mapping, split_target
from geopose.errors import InputError
from geopose.models.geopose_unet import GeoposeUNetModel
from geopose.models.legacy import current_model_config
from geopose.models.normalization import Normalization
from geopose.models.timm_models import listed_normalization

ChannelOrder = Literal["rgb", "bgr"]
MODELS = {
    "geopose.models.geopose_unet.GeoposeUNetModel.from_config": GeoposeUNetModel.from_config,
}


def _parts(model_config: Any) -> dict[str, Any]:
    """The model node in today's words, without `_target_`."""
    return split_target(current_model_config(model_config), MODELS, "model")[1]


def build_model(model_config: Any, load_pretrained: bool = True) -> GeoposeUNetModel:
    """The network that the `model` node of a training configuration describes.

    Args:
        model_config: mapping with `_target_`, encoder, decoder, agl_head, orientation_head, and
            optionally slug, channel_order and normalization; plain or OmegaConf.
        load_pretrained: False = never look for ImageNet weights, whatever the configuration says
            (a checkpoint's weights follow).

    Raises:
        InputError: a `_target_` that is not on the allow-list (it is not imported), unknown or
            missing keys, values that do not fit together.
    """
    parts = _parts(model_config)
    if not load_pretrained and "encoder" in parts:
        parts["encoder"] = {**as_mapping(parts["encoder"], "model.encoder"), "pretrained": False}
    return GeoposeUNetModel.from_config(**parts)


def channel_order(model_config: Any) -> ChannelOrder:
    """Which order the network wants its channels in; "bgr" where the configuration says nothing.

    The published models were trained on images as OpenCV reads them, and their files do not say so.
    """
    order = _parts(model_config).get("channel_order", "bgr")
    if order not in ("rgb", "bgr"):
        raise InputError(f"model.channel_order: expected rgb or bgr, got {order!r}")
    return order


def normalization(model_config: Any) -> Normalization:
    """Mean and deviation of the images that the network takes.

    `model.normalization` is `encoder` = what timm lists for the encoder's weights, or numbers, see
    `Normalization.from_config`; ImageNet's where nothing is said.

    Raises:
        InputError: neither.
    """
    parts = _parts(model_config)
    said = parts.get("normalization")
    if said == "encoder":
        name = as_mapping(parts.get("encoder", {}), "model.encoder").get("name", "")
        said = listed_normalization(str(name))
        if said is None:
            raise InputError(
                f"model.normalization: timm lists no weights for the encoder {name!r}; give "
                "{mean: [...], std: [...]}, or null for ImageNet's"
            )
    return Normalization.from_config(said, "model.normalization")


def model_slug(model_config: Any) -> str:
    """The short name of the architecture, for run directories and tables."""
    parts = _parts(model_config)
    return str(parts.get("slug") or as_mapping(parts.get("encoder", {}), "model.encoder")[TARGET])
