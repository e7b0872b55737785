"""The loss of a training: model output and batch in, one float32 total and its terms out."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopose import keys
from geopose.construct import arguments_of, as_mapping, check_keys, construct
from geopose.errors import InputError
from geopose.geometry import flow_map
from geopose.losses.terms import LOSSES
from geopose.schema.numbers import is_number
from geopose.schema.old_keys import without_old_keys

TOTAL_KEY = "loss"

logger = logging.getLogger(__name__)
# What a term may divide or multiply the losses of a sample by: batch fields of N x 1.
_FACTORS = {
    "norm_key": (keys.TARGET_AGL_VARIANCE, keys.TARGET_FLOW_VARIANCE),
    "weight_key": (keys.TARGET_LEAN, keys.TARGET_VFLOW_SCALE),
}
_DIRECTION_EPS = 1e-3  # shorter directions are not brought to length 1


def _all_elements(target: Tensor) -> Tensor:
    return torch.full((), target.numel(), dtype=torch.float64, device=target.device)


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
    if_predicted: bool = False  # left out with a network that has no such output

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

    def fitting(self, outputs: Iterable[str], targets: Iterable[str]) -> "LossSum":
        """The terms that a network and a batch have the fields for.

        Args:
            outputs: of the network. A term that is `if_predicted` goes if its output is not there.
            targets: of a batch.

        Raises:
            InputError: another term lacks a field; names both. Or no term is left.
        """
        outputs, targets = set(outputs), set(targets)
        terms = []
        for term in self._terms:
            _, needed = _DERIVED.get(term.output_key, (None, {term.output_key}))
            missing = sorted(needed - outputs)
            if missing and term.if_predicted:
                logger.info("loss %s: left out, this model has no %s", term.prefix, missing[0])
                continue
            if missing:
                raise InputError(f"loss {term.prefix}: this model has no output {missing[0]}")
            for key in (term.target_key, term.norm_key, term.weight_key):
                if key is not None and key not in targets:
                    raise InputError(f"loss {term.prefix}: there is no target {key}")
            terms.append(term)
        if not terms:
            raise InputError("loss.losses: this model has the output of none of them")
        return LossSum(terms)

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
            1), norm_key, weight_key, if_predicted}}}`, plain or OmegaConf; a NAME with null is left
            out. norm_key and weight_key name fields of the batch by which each sample's losses are
            divided and multiplied.
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
    if not isinstance(term.get("if_predicted", False), bool):
        raise InputError(f"{where}.if_predicted: {term['if_predicted']!r} is not true or false")
    loss = construct(term["loss"], LOSSES, f"{where}.loss")
    for name, allowed in _FACTORS.items():
        if term.get(name) not in (None, *allowed):
            raise InputError(f"{where}.{name}: {term[name]!r} is none of {', '.join(allowed)}")
        if term.get(name) and "factor" not in arguments_of(loss.forward)[0]:
            raise InputError(f"{where}.{name}: a {type(loss).__name__} takes no factors")
    names = {name: str(term[name]) for name in ("prefix", "output_key", "target_key")}
    return _Term(**{**term, **names, "loss": loss, "weight": float(weight)})
