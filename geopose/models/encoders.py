"""Image encoders: N x 3 x H x W in, a pyramid of feature maps (fine to coarse) out.

Every encoder is a timm feature extractor. The names under which old checkpoints know theirs
(pytorch-toolbelt's classes) are constructors of the same class here: the parameters are the same.
"""

import http.client
import logging
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import huggingface_hub
import timm
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from geopose.errors import InputError
from geopose.models.blocks import activation_layer

logger = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_PRETRAINED_CHOICES = {"auto": "auto", True: True, False: False, "true": True, "false": False}


class TimmEncoder(nn.Module):
    """Any timm model that offers `features_only`, by name.

    Args:
        name: timm's model name, with or without the weights' tag.
        pretrained: "auto" = ImageNet weights if they can be had, else one warning and a random
            start; True = the weights or an InputError; False = a random start.
        layers: which of the model's maps to take, fine to coarse (0 is the finest); None = all.
        drop_path_rate: stochastic depth in training; 0 also suits models that have none.
        activation: replaces the model's own; None = keep it.

    Attributes:
        channels, strides: of the maps that `forward` returns.

    Raises:
        InputError: unknown model, layers it does not have, strides that do not double.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = "auto",
        layers: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {}
        if drop_path_rate:
            options["drop_path_rate"] = drop_path_rate
        if activation is not None:
            options["act_layer"] = type(activation_layer(activation))
        self.encoder = _create(name, pretrained, options)
        info: Any = self.encoder.feature_info
        channels, strides = info.channels(), info.reduction()
        self._maps_last_channel = getattr(self.encoder, "output_fmt", "NCHW") == "NHWC"
        self.layers = tuple(range(len(channels)) if layers is None else layers)
        if len(self.layers) < 2 or not set(self.layers) <= set(range(len(channels))):
            raise InputError(
                f"encoder {name}: layers {list(self.layers)} not possible; it has {len(channels)} "
                "maps, numbered from 0; give at least two"
            )
        self.channels = tuple(int(channels[i]) for i in self.layers)
        self.strides = tuple(int(strides[i]) for i in self.layers)
        if any(b <= a for a, b in zip(self.strides, self.strides[1:], strict=False)):
            raise InputError(
                f"encoder {name}: strides {list(self.strides)} do not grow from map to map; a "
                "U-Net needs a pyramid (fine to coarse)"
            )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps of `channels` x H / `strides`; H and W must be multiples of the largest stride."""
        maps = self.encoder(image)
        maps = [maps[i] for i in self.layers]
        return [m.permute(0, 3, 1, 2) for m in maps] if self._maps_last_channel else maps


def _create(name: str, pretrained: bool | str, options: dict[str, Any]) -> nn.Module:
    """The timm feature extractor, with weights as `pretrained` asks."""
    wanted = _PRETRAINED_CHOICES.get(pretrained)
    if wanted is None:
        raise InputError(f"encoder.pretrained: expected auto, true or false, got {pretrained!r}")
    with warnings.catch_warnings():
        # timm warns that a name has a newer spelling; old checkpoints say the old one for ever.
        warnings.filterwarnings("ignore", message="Mapping deprecated model name")
        if not isinstance(name, str) or not timm.is_model(name):
            raise InputError(f"encoder.name: timm knows no model {name!r} (see timm.list_models())")

        def build(**weights: Any) -> nn.Module:
            try:
                return timm.create_model(name, features_only=True, **weights, **options)
            except (TypeError, AttributeError, NotImplementedError) as error:
                raise InputError(f"encoder.name: {name} cannot be used here: {error}") from error

        if wanted is False:
            return build(pretrained=False)
        source, problem = _find_weights(name)
        if problem is None:
            try:
                return build(pretrained=True, pretrained_cfg_overlay=source)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                problem = str(error)
        if wanted is True:
            raise InputError(
                f"encoder.pretrained: no ImageNet weights for {name}: {problem}. Connect to the "
                "network, or fill the Hugging Face cache, or set model.encoder.pretrained=false"
            )
        logger.warning("%s starts from random weights: %s", name, problem)
        return build(pretrained=False)


def _find_weights(name: str) -> tuple[dict[str, Any] | None, str | None]:
    """Where timm should take the weights from, or why there are none.

    The cache is looked up first and given to timm as a file, so that a machine without network
    does not wait; a quick probe then spares it the minute that the hub's retries take.

    Returns:
        (overlay of timm's pretrained config or None, problem or None).
    """
    config = get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        return None, "timm lists no weights for it"
    if not config.hf_hub_id:
        return None, _probe(str(config.url))
    for file in WEIGHT_FILES:
        cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, file)
        if isinstance(cached, str):
            return {"file": cached}, None
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None, f"{config.hf_hub_id} is not in the cache, and HF_HUB_OFFLINE is set"
    return None, _probe(huggingface_hub.constants.ENDPOINT)


def _probe(url: str) -> str | None:
    """None if the server answers anything at all within seconds, else what went wrong."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # an answer, even if it is a refusal of this very request
    except (OSError, http.client.HTTPException) as error:
        return f"{url} cannot be reached ({getattr(error, 'reason', error)})"
    return None


def _published(name: str, default_drop_path_rate: float) -> Callable[..., TimmEncoder]:
    """A constructor with the arguments of pytorch-toolbelt's class for this timm model."""

    def encoder(
        pretrained: bool | str = True,
        layers: Sequence[int] = (1, 2, 3, 4),
        activation: str = "silu",
        drop_path_rate: float = default_drop_path_rate,
    ) -> TimmEncoder:
        return TimmEncoder(name, pretrained, layers, drop_path_rate, activation)

    return encoder


def _efficientnet_v2(
    model_name: str = "efficientnetv2_rw_s",
    pretrained: bool | str = True,
    layers: Sequence[int] | None = None,
    activation: str = "silu",
    drop_path_rate: float = 0.0,
) -> TimmEncoder:
    """pytorch-toolbelt's TimmEfficientNetV2."""
    return TimmEncoder(model_name, pretrained, layers, drop_path_rate, activation)


_TOOLBELT = "pytorch_toolbelt.modules.encoders."
_DROP_PATH_RATES = (0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2)  # toolbelt's defaults, B0 to B7
ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "geopose.models.encoders.TimmEncoder": TimmEncoder,
    _TOOLBELT + "TimmEfficientNetV2": _efficientnet_v2,
    **{
        f"{_TOOLBELT}{prefix}B{i}Encoder": _published(f"tf_efficientnet_b{i}.ns_jft_in1k", rate)
        for prefix in ("Timm", "")
        for i, rate in enumerate(_DROP_PATH_RATES)
    },
}
