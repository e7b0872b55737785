"""Training losses: model output and batch in, one float32 total and its terms out.

Unknown pixels (NaN, or an explicit `ignore_value`) are left out of every mean: the divisor is the
number of valid pixels, and they send no gradient. All arithmetic is float32, also under autocast.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopose import keys
from geopose.construct import arguments_of, as_mapping, check_keys, construct
from geopose.errors import InputError
from geopose.geometry import flow_map
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


def _all_elements(target: Tensor) -> Tensor:
    return torch.full((), target.numel(), dtype=torch.float64, device=target.device)


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

# What a term may divide or multiply the losses of a sample by: batch fields of N x 1.
_FACTORS = {
    "norm_key": (keys.TARGET_AGL_VARIANCE, keys.TARGET_FLOW_VARIANCE),
    "weight_key": (keys.TARGET_LEAN, keys.TARGET_VFLOW_SCALE),
}
_DIRECTION_EPS = 1e-3  # shorter directions are not brought to length 1


def _pose_flow(output: Mapping[str, Tensor]) -> Tensor:
    direction = F.normalize(output[keys.OUTPUT_VFLOW_DIRECTION].float(), eps=_DIRECTION_EPS)
    return flow_map(output[keys.OUTPUT_MAGNITUDE_MASK].float(), direction)


# Outputs that follow from those of the network: {name: (how, what of)}.
_DERIVED: dict[str, tuple[Callable[[Mapping[str, Tensor]], Tensor], set[str]]] = {
    keys.OUTPUT_POSE_FLOW: (_pose_flow, {keys.OUTPUT_MAGNITUDE_MASK, keys.OUTPUT_VFLOW_DIRECTION}),
}


class _Term(NamedTuple):
    """A term: what its loss compares, what it costs, and its factor for each sample."""

    prefix: str
    loss: nn.Module
    output_key: str
    target_key: str
    weight: float = 1.0
    norm_key: str | None = None  # the losses of a sample are divided by this field,
    weight_key: str | None = None  # and multiplied by that

    def value(self, output: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch before the term's weight, a float32 scalar."""
        if self.output_key in _DERIVED:
            predicted = _DERIVED[self.output_key][0](output)
        else:
            predicted = output[self.output_key].float()
        factors = [batch[self.norm_key].reciprocal()] if self.norm_key else []
        factors += [batch[self.weight_key]] if self.weight_key else []
        factor = [torch.stack(factors).prod(dim=0)] if factors else []  # torch's own take none
        return self.loss(predicted, batch[self.target_key].float(), *factor)


class LossSum(nn.Module):
    """Weighted sum of loss terms, each between one output and one target of the batch."""

    def __init__(self, terms: list[_Term]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(term.loss for term in terms)  # for .to(device)
        self._terms = terms

    @property
    def prefixes(self) -> list[str]:
        """Names of the terms in `forward`'s result, beside the total."""
        return [term.prefix for term in self._terms]

    @property
    def batch_keys(self) -> set[str]:
        """The fields of a batch that the terms read."""
        fields = [(t.target_key, t.norm_key, t.weight_key) for t in self._terms]
        return {key for term in fields for key in term if key is not None}

    def check(self, outputs: Iterable[str], targets: Iterable[str]) -> None:
        """Refuses terms between fields that a model or a batch does not have.

        Raises:
            InputError: names the term and the field.
        """
        outputs, targets = set(outputs), set(targets)
        for term in self._terms:
            _, needed = _DERIVED.get(term.output_key, (None, {term.output_key}))
            for name in sorted(needed - outputs):
                raise InputError(f"loss {term.prefix}: this model has no output {name}")
            for key in (term.target_key, term.norm_key, term.weight_key):
                if key is not None and key not in targets:
                    raise InputError(f"loss {term.prefix}: there is no target {key}")

    def forward(
        self, output: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`{"loss": weighted sum, prefix: term before its weight, ...}`, float32 scalars."""
        result: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        for term in self._terms:
            with torch.autocast(batch[term.target_key].device.type, enabled=False):
                result[term.prefix] = term.value(output, batch)
                total = total + term.weight * result[term.prefix]
        return {TOTAL_KEY: torch.as_tensor(total), **result}

    def counts(self, batch: Mapping[str, Tensor]) -> Tensor:
        """How many elements each term is a mean over, float64 in the order of `prefixes`.

        They follow from the targets alone. A mean over several batches, or over the batches of
        several processes, weighs each batch's mean by its count.
        """
        counts = []
        for term in self._terms:
            count = getattr(term.loss, "count", _all_elements)  # of torch's own losses
            counts.append(count(batch[term.target_key]))
        return torch.stack(counts)

    def weighted_sum(self, terms: Mapping[str, Tensor], factors: Tensor) -> Tensor:
        """The total with a further factor on each term.

        Args:
            terms: as `forward` returns them.
            factors: one for each term, in the order of `prefixes`.
        """
        # Numbers and no tensor of weights, which would have to be sent to the device at every step.
        values = torch.stack([term.weight * terms[term.prefix] for term in self._terms])
        return (values * factors.to(values.dtype)).sum()


def build_loss(config: Any) -> LossSum:
    """The loss that a `configs/loss` mapping describes.

    Args:
        config: `{losses: {NAME: {loss: {_target_, ...}, target_key, output_key, weight (default
            1), norm_key, weight_key}}}`, plain or OmegaConf; a NAME with null is left out. The last
            two name fields of the batch by which each sample's losses are divided and multiplied.
            Published configs have a list of terms instead, each with its name as `prefix`.

    Raises:
        InputError: unknown key, loss that is not allowed or takes no factors, repeated name, no
            terms.
    """
    config = without_old_keys({"loss": as_mapping(config, "loss")})["loss"]
    check_keys(config, {"losses"}, {"losses"}, "loss")
    terms = [_build_term(term, where) for where, term in _terms(config["losses"])]
    prefixes = [term.prefix for term in terms]
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


def _build_term(given: Any, where: str) -> _Term:
    term = as_mapping(given, where)
    check_keys(term, set(_Term._fields), {"prefix", "loss", "output_key", "target_key"}, where)
    weight = term.get("weight", 1.0)
    if not is_number(weight) or not weight >= 0.0:
        raise InputError(f"{where}.weight: expected a number >= 0, got {weight!r}")
    loss = construct(term["loss"], LOSSES, f"{where}.loss")
    for name, allowed in _FACTORS.items():
        if term.get(name) not in (None, *allowed):
            raise InputError(f"{where}.{name}: {term[name]!r} is none of {', '.join(allowed)}")
        if term.get(name) and "factor" not in arguments_of(loss.forward)[0]:
            raise InputError(f"{where}.{name}: a {type(loss).__name__} takes no factors")
    names = {name: str(term[name]) for name in ("prefix", "output_key", "target_key")}
    return _Term(**{**term, **names, "loss": loss, "weight": float(weight)})
