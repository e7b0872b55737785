"""Loss terms: one output and one target in, a float32 mean over what is known out.

Unknown pixels (NaN, or an explicit `ignore_value`) are left out of every mean: the divisor is the
number of valid pixels, and they send no gradient. All arithmetic is float32, also under autocast.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _MaskedPixelLoss(nn.Module, ABC):
    """Mean of a function of the pixel errors over the valid pixels of a batch.

    Args:
        ignore_value: a target value that means "unknown" beside NaN; None = NaN only.
        fraction: in (0, 1]; below 1, only this share of every sample's valid pixels counts,
            the ones with the smallest errors (trimmed loss; at least one pixel a sample).
    """

    def __init__(self, ignore_value: float | None = None, fraction: float = 1.0) -> None:
        super().__init__()
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"fraction must be in (0, 1], got {fraction}")
        self.ignore_value = ignore_value
        self.fraction = fraction

    @abstractmethod
    def pointwise(self, error: Tensor) -> Tensor:
        """Loss of every pixel from its error (output - target), same shape."""

    def forward(self, output: Tensor, target: Tensor, factor: Tensor | None = None) -> Tensor:
        """Scalar float32 loss; 0 with zero gradient where no pixel is valid.

        Args:
            output: N x ..., any float dtype.
            target: the same shape, NaN = unknown.
            factor: N x 1, of the losses of every sample's pixels; the divisor stays their number.
        """
        if output.shape != target.shape:
            raise ValueError(
                f"output {tuple(output.shape)} and target {tuple(target.shape)} differ"
            )
        with torch.autocast(output.device.type, enabled=False):
            target = target.float()
            valid = self._valid(target)
            # The masking comes before any arithmetic whose derivative could be NaN: NaN * 0 is NaN.
            error = output.float() - torch.where(valid, target, 0.0)
            losses = _times(self.pointwise(torch.where(valid, error, 0.0)), factor)
            if self.fraction < 1.0:
                losses, valid = self._trim(losses, valid)
            return torch.where(valid, losses, 0.0).sum() / valid.sum().clamp(min=1)

    def count(self, target: Tensor) -> Tensor:
        """How many pixels of a target (N x ...) the mean is taken over: a float64 scalar."""
        kept = self._valid(target).flatten(1).sum(dim=1).double()
        return (kept * self.fraction).ceil().sum() if self.fraction < 1.0 else kept.sum()

    def _valid(self, target: Tensor) -> Tensor:
        valid = ~torch.isnan(target)
        return valid if self.ignore_value is None else valid & (target != self.ignore_value)

    def _trim(self, losses: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The losses of every sample in rising order, and which of them are kept."""
        losses, valid = losses.flatten(1), valid.flatten(1)
        order = torch.where(valid, losses, math.inf).detach().argsort(dim=1)
        keep = (valid.sum(dim=1, keepdim=True).double() * self.fraction).ceil()
        kept = torch.arange(losses.shape[1], device=losses.device)[None] < keep
        return losses.gather(1, order), kept


class HuberLossWithIgnore(_MaskedPixelLoss):
    """Quadratic below `delta` (0.5 e^2), linear above: delta * (|e| - delta / 2)."""

    def __init__(
        self, delta: float = 1.0, ignore_value: float | None = None, fraction: float = 1.0
    ) -> None:
        super().__init__(ignore_value, fraction)
        if delta <= 0.0:
            raise ValueError(f"delta must be positive, got {delta}")
        self.delta = delta

    def pointwise(self, error: Tensor) -> Tensor:
        """Huber function of every error."""
        return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.delta)


class MSELossWithIgnore(_MaskedPixelLoss):
    """Mean of e^2."""

    def pointwise(self, error: Tensor) -> Tensor:
        """Square of every error."""
        return error.square()


class SmoothL1LossWithIgnore(_MaskedPixelLoss):
    """|e| - 0.5 above 1, e^2 / 2 below."""

    def pointwise(self, error: Tensor) -> Tensor:
        """Smooth L1 function of every error."""
        return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")


class LogCoshWithIgnore(_MaskedPixelLoss):
    """ln(cosh(e)), written so that it neither overflows nor costs anything at e = 0."""

    def pointwise(self, error: Tensor) -> Tensor:
        """ln cosh e = |e| + ln(1 + exp(-2|e|)) - ln 2."""
        size = error.abs()
        return size + F.softplus(-2.0 * size) - math.log(2.0)


class EndPointLoss(_MaskedPixelLoss):
    """Mean length in pixels of the errors of flow vectors, N x 2 x H x W.

    A pixel is unknown where a component is. The length is that of an error with a third component
    ROUND, less ROUND: smooth where the error is 0.
    """

    ROUND = 1e-3  # pixels

    def pointwise(self, error: Tensor) -> Tensor:
        """Length of every vector, N x 1 x H x W."""
        squares = error.square().sum(dim=1, keepdim=True)
        return (squares + self.ROUND**2).sqrt() - self.ROUND

    def _valid(self, target: Tensor) -> Tensor:
        return super()._valid(target).all(dim=1, keepdim=True)


class LogScaleLoss(HuberLossWithIgnore):
    """Huber function of the error of ln(scale): as much for twice the scale as for half of it.

    asinh(scale / floor) is ln(2 scale / floor) well above the floor and straight near 0, so that a
    view without flow, and a scale that is predicted to be 0 or less, have a finite slope.

    Args:
        floor: scale in px/m that is as good as none; above 0.
        delta: error of the logarithm up to which its square counts, beyond which its size.
    """

    def __init__(self, floor: float = 0.1, delta: float = 0.1) -> None:
        super().__init__(delta)
        if floor <= 0.0:
            raise ValueError(f"floor must be positive, got {floor}")
        self.floor = floor

    def forward(self, output: Tensor, target: Tensor, factor: Tensor | None = None) -> Tensor:
        """Scalar float32 loss of scales N x 1 in px/m."""
        with torch.autocast(output.device.type, enabled=False):
            log, true_log = (torch.asinh(scale.float() / self.floor) for scale in (output, target))
            return super().forward(log, true_log, factor)


class CosineSimilarityLoss(nn.Module):
    """Mean over samples of (1 - cosine)^gamma between predicted and true direction.

    Args:
        eps: smallest vector length that the cosine divides by.
        gamma: exponent; below 1 the power has an infinite slope at a perfect match, which a small
            shift (FLOOR) makes finite: (d + f)^gamma - f^gamma is 0 and smooth at d = 0.
    """

    FLOOR = 1e-6

    def __init__(self, eps: float = 1e-3, gamma: float = 1.0) -> None:
        super().__init__()
        if eps <= 0.0 or gamma <= 0.0:
            raise ValueError(f"eps and gamma must be positive, got {eps} and {gamma}")
        self.eps = eps
        self.gamma = gamma

    def forward(self, output: Tensor, target: Tensor, factor: Tensor | None = None) -> Tensor:
        """Scalar float32 loss of vectors N x C (any length), each sample's times its factor."""
        with torch.autocast(output.device.type, enabled=False):
            cosine = F.cosine_similarity(output.float(), target.float(), dim=1, eps=self.eps)
            distance = 1.0 - cosine
            if self.gamma != 1.0:
                shifted = distance.clamp(min=0.0) + self.FLOOR
                distance = shifted**self.gamma - self.FLOOR**self.gamma
            return _times(distance, factor).mean()

    def count(self, target: Tensor) -> Tensor:
        """How many samples the mean is taken over: a float64 scalar."""
        return torch.full((), len(target), dtype=torch.float64, device=target.device)


def _times(losses: Tensor, factor: Tensor | None) -> Tensor:
    """Losses N x ... times one factor for each sample (N x 1)."""
    if factor is None:
        return losses
    return losses * factor.float().reshape(len(losses), *[1] * (losses.ndim - 1))


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "geopose.losses.HuberLossWithIgnore": HuberLossWithIgnore,
    "geopose.losses.MSELossWithIgnore": MSELossWithIgnore,
    "geopose.losses.SmoothL1LossWithIgnore": SmoothL1LossWithIgnore,
    "geopose.losses.LogCoshWithIgnore": LogCoshWithIgnore,
    "geopose.losses.CosineSimilarityLoss": CosineSimilarityLoss,
    "geopose.losses.EndPointLoss": EndPointLoss,
    "geopose.losses.LogScaleLoss": LogScaleLoss,
    "torch.nn.MSELoss": nn.MSELoss,
    "torch.nn.L1Loss": nn.L1Loss,
    "torch.nn.SmoothL1Loss": nn.SmoothL1Loss,
    "torch.nn.HuberLoss": nn.HuberLoss,
}
