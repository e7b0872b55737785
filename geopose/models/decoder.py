"""The U-Net decoder: encoder maps in (fine to coarse), decoder maps out (fine to coarse)."""

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_toolbelt.modules.decoders.unet import UNetDecoder
from pytorch_toolbelt.modules.interfaces import FeatureMapsSpecification

from geopose.construct import as_mapping, check_keys
from geopose.errors import InputError
from geopose.models.blocks import BLOCK_TYPES, UPSAMPLES
from geopose.schema.numbers import is_whole


def _choice(name: Any, options: Mapping[str, Any], where: str) -> Any:
    if not isinstance(name, str) or name not in options:
        raise InputError(f"{where}: unknown value {name!r} (known: {', '.join(sorted(options))})")
    return options[name]


def build_decoder(
    config: Any, encoder_channels: Sequence[int], encoder_strides: Sequence[int]
) -> UNetDecoder:
    """The decoder that a `model.decoder` mapping describes.

    Args:
        config: `{block_type: unet, upsample: bilinear, channels: [fine, ..., coarse],
            activation: silu}`; `channels` has one entry less than the encoder has maps.
        encoder_channels: of the encoder's maps, fine to coarse.
        encoder_strides: likewise.

    Returns:
        A module that takes and returns lists of maps, fine to coarse. From the coarsest map on:
        upsample, concatenate [upsampled, skip], block; `blocks.0` is the coarsest.

    Raises:
        InputError: unknown key or value, wrong number of channels.
    """
    config = as_mapping(config, "model.decoder")
    allowed = {"block_type", "upsample", "channels", "activation"}
    check_keys(config, allowed, {"channels"}, "model.decoder")
    channels = config["channels"]
    wanted = len(encoder_channels) - 1
    if not isinstance(channels, list) or not all(is_whole(c, 1) for c in channels):
        raise InputError(f"model.decoder.channels: expected positive integers, got {channels!r}")
    if len(channels) != wanted:
        raise InputError(
            f"model.decoder.channels: {len(channels)} given, the encoder's "
            f"{len(encoder_channels)} maps need {wanted} (fine to coarse)"
        )
    activation = config.get("activation", "silu")
    try:
        return UNetDecoder(
            FeatureMapsSpecification(tuple(encoder_channels), tuple(encoder_strides)),
            out_channels=channels,
            block_type=_choice(
                config.get("block_type", "unet"), BLOCK_TYPES, "model.decoder.block_type"
            ),
            upsample_block=_choice(
                config.get("upsample", "bilinear"), UPSAMPLES, "model.decoder.upsample"
            ),
            block_kwargs={"activation": activation},
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"model.decoder: {error}") from error
