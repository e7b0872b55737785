"""timm's feature extractors by name, with pretrained weights where they can be had."""

import http.client
import logging
import urllib.error
import urllib.request
import warnings
from typing import Any

import huggingface_hub
import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from geopose.errors import InputError

logger = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_PRETRAINED_CHOICES = {"auto": "auto", True: True, False: False, "true": True, "false": False}


def feature_extractor(name: str, pretrained: bool | str, options: dict[str, Any]) -> nn.Module:
    """timm's model as a list of feature maps.

    Args:
        name: timm's name, with or without the weights' tag.
        pretrained: auto, True or False, see TimmEncoder.
        options: further arguments of timm's constructor.

    Raises:
        InputError: unknown model, one without feature maps, or weights that cannot be had.
    """
    wanted = _PRETRAINED_CHOICES.get(pretrained)
    if wanted is None:
        raise InputError(f"encoder.pretrained: expected auto, true or false, got {pretrained!r}")
    with warnings.catch_warnings():
        # timm warns that a name has a newer spelling; old checkpoints say the old one for ever.
        warnings.filterwarnings("ignore", message="Mapping deprecated model name")
        _check_name(name)

        def build(**weights: Any) -> nn.Module:
            try:
                return timm.create_model(name, features_only=True, **weights, **options)
            except (TypeError, AttributeError, AssertionError, NotImplementedError) as error:
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


def bare_model(name: str) -> nn.Module:
    """timm's whole model without memory for its weights, to be asked how it is built.

    Raises:
        InputError: unknown model.
    """
    _check_name(name)
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def listed_normalization(name: str) -> dict[str, list[float]] | None:
    """Mean and deviation that a model's weights were learned with; None = timm lists no weights.

    Raises:
        InputError: a tag of weights that timm does not know.
    """
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise InputError(f"encoder.name: {name}: {error}") from error
    return None if config is None else {"mean": [*config.mean], "std": [*config.std]}


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not timm.is_model(name):
        raise InputError(f"encoder.name: timm knows no model {name!r} (see timm.list_models())")


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
