"""Training losses: model output and batch in, one float32 total and its terms out.

Unknown pixels (NaN, or an explicit `ignore_value`) are left out of every mean: the divisor is the
number of valid pixels, and they send no gradient. All arithmetic is float32, also under autocast.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopose.construct import as_mapping, check_keys, construct
from geopose.errors import InputError
from geopose.schema.numbers import is_number
from geopose.schema.old_keys import without_old_keys

TOTAL_KEY = "loss"


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

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar float32 loss; 0 with zero gradient where no pixel is valid.

        Args:
            output: N x ..., any float dtype.
            target: the same shape, NaN = unknown.
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
            losses = self.pointwise(torch.where(valid, error, 0.0))
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

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar float32 loss of vectors N x C (any length)."""
        with torch.autocast(output.device.type, enabled=False):
            cosine = F.cosine_similarity(output.float(), target.float(), dim=1, eps=self.eps)
            distance = 1.0 - cosine
            if self.gamma != 1.0:
                shifted = distance.clamp(min=0.0) + self.FLOOR
                distance = shifted**self.gamma - self.FLOOR**self.gamma
            return distance.mean()

    def count(self, target: Tensor) -> Tensor:
        """How many samples the mean is taken over: a float64 scalar."""
        return torch.full((), len(target), dtype=torch.float64, device=target.device)


def _all_elements(target: Tensor) -> Tensor:
    return torch.full((), target.numel(), dtype=torch.float64, device=target.device)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "geopose.losses.HuberLossWithIgnore": HuberLossWithIgnore,
    "geopose.losses.MSELossWithIgnore": MSELossWithIgnore,
    "geopose.losses.SmoothL1LossWithIgnore": SmoothL1LossWithIgnore,
    "geopose.losses.LogCoshWithIgnore": LogCoshWithIgnore,
    "geopose.losses.CosineSimilarityLoss": CosineSimilarityLoss,
    "torch.nn.MSELoss": nn.MSELoss,
    "torch.nn.L1Loss": nn.L1Loss,
    "torch.nn.SmoothL1Loss": nn.SmoothL1Loss,
    "torch.nn.HuberLoss": nn.HuberLoss,
}

_TERM_KEYS = {"loss", "prefix", "target_key", "output_key", "weight"}


class LossSum(nn.Module):
    """Weighted sum of loss terms, each between one output and one target of the batch.

    Args:
        terms: (prefix, loss, output key, target key, weight) each.
    """

    def __init__(self, terms: list[tuple[str, nn.Module, str, str, float]]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(loss for _, loss, _, _, _ in terms)
        self._wiring = [(prefix, out, target, weight) for prefix, _, out, target, weight in terms]

    @property
    def prefixes(self) -> list[str]:
        """Names of the terms in `forward`'s result, beside the total."""
        return [prefix for prefix, _, _, _ in self._wiring]

    def check(self, outputs: Iterable[str], targets: Iterable[str]) -> None:
        """Refuses terms between fields that a model or a batch does not have.

        Raises:
            InputError: names the term and the field.
        """
        outputs, targets = set(outputs), set(targets)
        for prefix, output_key, target_key, _ in self._wiring:
            if output_key not in outputs:
                raise InputError(f"loss {prefix}: this model has no output {output_key}")
            if target_key not in targets:
                raise InputError(f"loss {prefix}: there is no target {target_key}")

    def forward(
        self, output: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`{"loss": weighted sum, prefix: term before its weight, ...}`, float32 scalars."""
        result: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        for loss, (prefix, output_key, target_key, weight) in zip(
            self.losses, self._wiring, strict=True
        ):
            predicted = output[output_key]
            with torch.autocast(predicted.device.type, enabled=False):
                term = loss(predicted.float(), batch[target_key].float())
                total = total + weight * term
            result[prefix] = term
        return {TOTAL_KEY: torch.as_tensor(total), **result}

    def counts(self, batch: Mapping[str, Tensor]) -> Tensor:
        """How many elements each term is a mean over, float64 in the order of `prefixes`.

        They follow from the targets alone. A mean over several batches, or over the batches of
        several processes, weighs each batch's mean by its count.
        """
        counts = []
        for loss, (_, _, target_key, _) in zip(self.losses, self._wiring, strict=True):
            target = batch[target_key]
            count = getattr(loss, "count", _all_elements)  # of torch's own losses
            counts.append(count(target))
        return torch.stack(counts)

    def weighted_sum(self, terms: Mapping[str, Tensor], factors: Tensor) -> Tensor:
        """The total with a further factor on each term.

        Args:
            terms: as `forward` returns them.
            factors: one for each term, in the order of `prefixes`.
        """
        # Numbers and no tensor of weights, which would have to be sent to the device at every step.
        values = torch.stack([weight * terms[prefix] for prefix, *_, weight in self._wiring])
        return (values * factors.to(values.dtype)).sum()


def build_loss(config: Any) -> LossSum:
    """The loss that a `configs/loss` mapping describes.

    Args:
        config: `{losses: {NAME: {loss: {_target_, ...}, target_key, output_key, weight (default
            1)}}}`, plain or OmegaConf; a NAME with null is left out. Published configs have a list
            of terms instead, each with its name as `prefix`.

    Raises:
        InputError: unknown key, loss that is not allowed, repeated name, no terms.
    """
    config = without_old_keys({"loss": as_mapping(config, "loss")})["loss"]
    check_keys(config, {"losses"}, {"losses"}, "loss")
    terms = [_build_term(term, where) for where, term in _terms(config["losses"])]
    prefixes = [term[0] for term in terms]
    for prefix in prefixes:
        if prefixes.count(prefix) > 1 or prefix == TOTAL_KEY:
            raise InputError(f"loss.losses: prefix {prefix!r} is taken; give every term its own")
    return LossSum(terms)


def _terms(losses: Any) -> list[tuple[str, Any]]:
    """(where it stands, term with its prefix) of every term."""
    if isinstance(losses, list):
        terms = [(f"loss.losses[{i}]", term) for i, term in enumerate(losses)]
    elif isinstance(losses, Mapping):
        named = [(name, f"loss.losses.{name}", term) for name, term in losses.items()]
        terms = [
            (where, {"prefix": name, **as_mapping(term, where)})
            for name, where, term in named
            if term is not None
        ]
    else:
        raise InputError(f"loss.losses: expected terms by name, got {losses!r}")
    if not terms:
        raise InputError("loss.losses: expected at least one term")
    return terms


def _build_term(term: Any, where: str) -> tuple[str, nn.Module, str, str, float]:
    term = as_mapping(term, where)
    check_keys(term, _TERM_KEYS, _TERM_KEYS - {"weight"}, where)
    weight = term.get("weight", 1.0)
    if not is_number(weight) or not weight >= 0.0:
        raise InputError(f"{where}.weight: expected a number >= 0, got {weight!r}")
    loss = construct(term["loss"], LOSSES, f"{where}.loss")
    names = (str(term["prefix"]), loss, str(term["output_key"]), str(term["target_key"]))
    return (*names, float(weight))
