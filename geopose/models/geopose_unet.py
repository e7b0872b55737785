"""The network: normalised image and gsd in; height, magnitude, scale and direction out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from geopose import keys
from geopose.construct import as_mapping, check_keys, construct, split_target
from geopose.errors import InputError
from geopose.geometry import vector_to_angle
from geopose.models.blocks import resize
from geopose.models.decoder import build_decoder
from geopose.models.encoders import ENCODERS
from geopose.models.heads import AGL_HEADS, ORIENTATION_HEADS, mean_direction
from geopose.models.legacy import current_model_config

_PARTS = {"encoder", "decoder", "agl_head", "orientation_head"}
# Of the config, for others to read; they do not build anything.
_LABELS = {"slug", "channel_order", "normalization"}


class HeadOutputs(NamedTuple):
    """What the heads of a network say.

    Attributes:
        agl: heights in metres, N x 1 x h x w at the resolution of the head.
        magnitude: pixels, likewise; None where the head predicts none.
        direction: (sin a, cos a) of any length, N x 2.
        scale: pixels per metre, N x 1, from an orientation head that predicts it, else None.
        flow: pixels, N x 2 x h x w, likewise.
    """

    agl: Tensor
    magnitude: Tensor | None
    direction: Tensor
    scale: Tensor | None
    flow: Tensor | None


def least_squares_scale(height_m: Tensor, magnitude_px: Tensor) -> Tensor:
    """Pixels per metre, N x 1, that best explain N x 1 x H x W magnitudes by heights.

    `sum(h m) / (sum(h h) + 0.01)`, always in float32: the sums of millions of pixels do not fit in
    16 bits, and autocast leaves products and sums in the type of their inputs.
    """
    height, magnitude = height_m.float(), magnitude_px.float()
    product = (height * magnitude).sum(dim=(2, 3))
    return product / (height.square().sum(dim=(2, 3)) + 0.01)


class GeoposeUNetModel(nn.Module):
    """U-Net with a height and an orientation head, for images of any size.

    Args:
        encoder: image -> maps, fine to coarse; with `channels` and `strides`.
        decoder: encoder maps -> decoder maps, fine to coarse.
        agl_head: (decoder maps, gsd) -> (height, magnitude or None), or a third value: further
            maps at its stride by their output key, {key: N x C x h x w}.
        orientation_head: encoder maps (decoder maps if it `reads_decoder`) -> Orientation.

    Attributes:
        stride: images are padded to multiples of it, at the right and the bottom.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        agl_head: nn.Module,
        orientation_head: nn.Module,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.agl_head = agl_head
        self.orientation_head = orientation_head
        self.stride = int(max(encoder.strides))  # type: ignore[arg-type, type-var]

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | None = None, **keywords: Any
    ) -> "GeoposeUNetModel":
        """Builds the network from the `model` node of a training configuration.

        Args:
            config: mapping with encoder, decoder, agl_head and orientation_head (and optionally
                slug and channel_order); or
            keywords: the same as keywords.

        Raises:
            InputError: constructor that is not allowed, unknown or missing key, impossible value.
        """
        parts = {**(as_mapping(config, "model") if config is not None else {}), **keywords}
        parts = current_model_config(parts)
        check_keys(parts, _PARTS | _LABELS, _PARTS, "model")
        encoder = construct(parts["encoder"], ENCODERS, "model.encoder")
        decoder = build_decoder(parts["decoder"], encoder.channels, encoder.strides)
        maps = decoder.output_spec
        agl_head = construct(
            parts["agl_head"],
            AGL_HEADS,
            "model.agl_head",
            channels=list(maps.channels),
            strides=list(maps.strides),
        )
        where = "model.orientation_head"
        head, _ = split_target(parts["orientation_head"], ORIENTATION_HEADS, where)
        source = maps if head.reads_decoder else encoder  # type: ignore[attr-defined]
        orientation_head = construct(
            parts["orientation_head"], ORIENTATION_HEADS, where, channels=list(source.channels)
        )
        if (
            not getattr(agl_head, "predicts_magnitude", True)
            and not orientation_head.predicts_scale
        ):
            raise InputError(
                "model.agl_head: a head without magnitude needs an orientation_head that predicts "
                "the scale (BasicOrientationScaleHead)"
            )
        return cls(encoder, decoder, agl_head, orientation_head)

    def forward(self, image: Tensor, gsd: Tensor) -> dict[str, Tensor]:
        """Predicts the pose of every image.

        Args:
            image: N x 3 x H x W, normalised, in the model's channel order; any H and W.
            gsd: N x 1, metres per pixel.

        Returns:
            OUTPUT_AGL_MASK (metres) and OUTPUT_MAGNITUDE_MASK (pixels), N x 1 x H x W, >= 0;
            OUTPUT_VFLOW_SCALE (pixels per metre) and OUTPUT_VFLOW_ANGLE (radians in [0, 2 pi)),
            N x 1; OUTPUT_VFLOW_DIRECTION (sin a, cos a), N x 2, not normalised; from a head that
            predicts it also OUTPUT_FLOW_MASK (pixels), N x 2 x H x W; and the further maps of a
            height head, N x C x H x W. All float32.
        """
        heads, maps = self._run_heads(image, gsd)
        size, head_stride = image.shape[-2:], int(self.agl_head.stride)  # type: ignore[arg-type]
        further = {key: to_image(x, size, self.stride, head_stride) for key, x in maps.items()}
        return {**finish(heads, size, self.stride, head_stride), **further}

    def heads(self, image: Tensor, gsd: Tensor) -> HeadOutputs:
        """What the heads say of the padded images; arguments as for a call."""
        return self._run_heads(image, gsd)[0]

    def _run_heads(self, image: Tensor, gsd: Tensor) -> tuple[HeadOutputs, dict[str, Tensor]]:
        """What all networks predict, and the further maps of this one."""
        height, width = image.shape[-2:]
        # Without asking whether there is anything to pad: a question would tie an exported network
        # to the sizes that answer like the one it was traced with.
        padding = (0, -width % self.stride, 0, -height % self.stride)
        encoded = self.encoder(F.pad(image, padding, mode="replicate"))
        decoded = self.decoder(encoded)
        agl, magnitude, *further = self.agl_head(decoded, gsd)
        reads_decoder = self.orientation_head.reads_decoder
        direction, scale, flow = self.orientation_head(decoded if reads_decoder else encoded)
        if direction is None:
            assert flow is not None  # a head gives one of them
            direction = mean_direction(without_padding(flow, (height, width), self.stride))
        heads = HeadOutputs(agl, magnitude, direction, scale, flow)
        return heads, further[0] if further else {}


def without_padding(x: Tensor, size: Sequence[int], stride: int) -> Tensor:
    """N x C x h x w maps of padded images, less the cells that show nothing of the images.

    Args:
        x: the maps, at any resolution.
        size: height and width of the images.
        stride: images were padded to multiples of it, at the right and the bottom.
    """
    (height, width), (rows, columns) = size, x.shape[-2:]
    below, right = -height % stride, -width % stride
    below, right = below * rows // (height + below), right * columns // (width + right)
    return F.pad(x, (0, -right, 0, -below))  # a slice would be tied to the traced size


def to_image(x: Tensor, size: Sequence[int], stride: int, head_stride: int | None = None) -> Tensor:
    """Maps of a head at the size of the images, in float32.

    Args:
        x: N x C x h x w, of the padded images.
        size: height and width of the images.
        stride: images were padded to multiples of it.
        head_stride: pixels of the padded images for one of the maps; None = not known.
    """
    height, width = size
    below, right = -height % stride, -width % stride
    x = x.float() if head_stride == 1 else resize(x.float(), (height + below, width + right))
    return F.pad(x, (0, -right, 0, -below))  # a slice would be tied to the traced size


def finish(
    heads: HeadOutputs, size: Sequence[int], stride: int, head_stride: int
) -> dict[str, Tensor]:
    """A network's outputs from those of its heads, in float32.

    Args:
        heads: of the padded images.
        size: height and width of the images.
        stride: images were padded to multiples of it.
        head_stride: pixels of the padded images for one of the height maps.

    Returns:
        As `GeoposeUNetModel`.
    """
    agl = to_image(heads.agl, size, stride, head_stride)
    magnitude = heads.magnitude
    if magnitude is not None:
        magnitude = to_image(magnitude, size, stride, head_stride)
    scale = heads.scale
    if scale is None:
        assert magnitude is not None  # one of them is predicted, see `from_config`
        scale = least_squares_scale(agl, magnitude)
    if magnitude is None:
        magnitude = agl * scale[:, :, None, None]
    direction = heads.direction.float()
    outputs = {
        keys.OUTPUT_AGL_MASK: agl,
        keys.OUTPUT_MAGNITUDE_MASK: magnitude,
        keys.OUTPUT_VFLOW_SCALE: scale,
        keys.OUTPUT_VFLOW_ANGLE: vector_to_angle(direction)[:, None],
        keys.OUTPUT_VFLOW_DIRECTION: direction,
    }
    if heads.flow is not None:
        flow = heads.flow.contiguous()  # as the targets; two channels are faster so, too
        outputs[keys.OUTPUT_FLOW_MASK] = to_image(flow, size, stride)
    return outputs
