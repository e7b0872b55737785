"""Image encoders: N x 3 x H x W in, a pyramid of feature maps (fine to coarse) out.

Every encoder is a timm feature extractor. The names under which old checkpoints know theirs
(pytorch-toolbelt's classes) are constructors of the same class here: the parameters are the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from geopose.errors import InputError
from geopose.models.blocks import activation_layer
from geopose.models.timm_models import bare_model, feature_extractor
from geopose.schema.numbers import is_whole


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
        self.encoder = feature_extractor(name, pretrained, options)
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


class VitEncoder(nn.Module):
    """A plain vision transformer as a pyramid: maps of four depths, brought to four strides.

    Every map of a plain transformer has the stride of its patches. As in DPT (Ranftl et al.,
    "Vision Transformers for Dense Prediction", 2021), each is projected and then enlarged four- and
    twofold by transposed convolutions, left, or halved by a convolution.

    Args:
        name: timm's model name, such as vit_large_patch16_dinov3.sat493m; images may have any size.
        pretrained: as TimmEncoder.
        channels: of the maps that come out, fine to coarse.
        layers: which blocks' outputs to take, from 0; None = the ends of four equal parts.
        drop_path_rate: stochastic depth in training.

    Attributes:
        channels, strides: of the maps that `forward` returns.

    Raises:
        InputError: unknown model, one that is no plain transformer of patches of a multiple of 4
            pixels, or layers that it does not have.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = "auto",
        channels: Sequence[int] = (96, 192, 384, 768),
        layers: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"dynamic_img_size": True}
        if drop_path_rate:
            options["drop_path_rate"] = drop_path_rate
        if layers is not None:
            options["out_indices"] = _four(layers, f"encoder {name}: layers")
        else:
            options["out_indices"] = _ends_of_quarters(name)
        self.encoder = feature_extractor(name, pretrained, options)
        info: Any = self.encoder.feature_info
        widths, strides = info.channels(), set(info.reduction())
        if len(strides) != 1 or min(strides) % 4:
            raise InputError(
                f"encoder {name}: strides {sorted(strides)} are not those of a plain transformer "
                "with patches of a multiple of 4 pixels; use TimmEncoder"
            )
        patch = int(strides.pop())
        self.channels = tuple(_four(channels, f"encoder {name}: channels"))
        self.strides = (patch // 4, patch // 2, patch, 2 * patch)
        self.project = nn.ModuleList(
            nn.Conv2d(width, out, 1) for width, out in zip(widths, self.channels, strict=True)
        )
        finest, fine, _, coarse = self.channels
        self.resize = nn.ModuleList(
            (
                nn.ConvTranspose2d(finest, finest, 4, 4),
                nn.ConvTranspose2d(fine, fine, 2, 2),
                nn.Identity(),
                nn.Conv2d(coarse, coarse, 3, 2, 1),
            )
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps of `channels` x H / `strides`; H and W must be multiples of the largest stride."""
        maps = self.encoder(image)
        return [
            resize(project(x))
            for x, project, resize in zip(maps, self.project, self.resize, strict=True)
        ]


def _four(values: Any, where: str) -> list[int]:
    if not isinstance(values, list | tuple) or len(values) != 4:
        raise InputError(f"{where}: expected four whole numbers, got {values!r}")
    if not all(is_whole(value, 0) for value in values):
        raise InputError(f"{where}: expected four whole numbers, got {values!r}")
    return list(values)


def _ends_of_quarters(name: str) -> list[int]:
    """The last block of each quarter of a transformer's blocks."""
    depth = len(getattr(bare_model(name), "blocks", ()))
    if depth < 4:
        raise InputError(
            f"encoder {name}: is no plain transformer of at least four blocks; use TimmEncoder"
        )
    return [depth * part // 4 - 1 for part in (1, 2, 3, 4)]


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
    "geopose.models.encoders.VitEncoder": VitEncoder,
    _TOOLBELT + "TimmEfficientNetV2": _efficientnet_v2,
    **{
        f"{_TOOLBELT}{prefix}B{i}Encoder": _published(f"tf_efficientnet_b{i}.ns_jft_in1k", rate)
        for prefix in ("Timm", "")
        for i, rate in enumerate(_DROP_PATH_RATES)
    },
}
