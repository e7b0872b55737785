"""Which images networks are shown at a ground sampling that they have not learned from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geopose.inference.predict.tta import Tta

# A view some percent larger does well where the image itself is known; half as large again, a
# network's heights were seen to explode.
_FAR = 1.25


@dataclass(frozen=True)
class UnknownGsd:
    """What one image was shown as.

    Attributes:
        least_m: finest ground sampling of its views that is unknown, metres per pixel.
        most_m: the coarsest.
        known_m: what the network has learned from.
        source: the network's file.
    """

    least_m: float
    most_m: float
    known_m: tuple[float, float]
    source: str

    def __or__(self, other: "UnknownGsd") -> "UnknownGsd":
        """Both together; the network is the first one's."""
        least_m, most_m = min(self.least_m, other.least_m), max(self.most_m, other.most_m)
        return UnknownGsd(least_m, most_m, self.known_m, self.source)


def unknown_gsd(
    members: Iterable[Any], tta: Tta, gsd_m: float, size: Sequence[int]
) -> UnknownGsd | None:
    """What views show an image at that is well beyond what a network knows; None = nothing.

    Args:
        members: each a `Member`; one that says no range, or brings images to its own gsd, has no
            say.
        tta: the views.
        gsd_m: of the image.
        size: (height, width) of the image.
    """
    shown = [view.gsd_m(gsd_m, size) for view in tta.views]
    for member in members:
        known = getattr(member, "gsd_range_m", None)
        if known is None or getattr(member, "gsd_m", None) is not None:
            continue
        beyond = [each for each in shown if not known[0] / _FAR <= each <= known[1] * _FAR]
        if beyond:
            return UnknownGsd(min(beyond), max(beyond), known, member.source)
    return None


def in_words(found: Mapping[str, UnknownGsd]) -> str:
    """One line about all images of which something is known; `found` must not be empty."""
    first, *others = found.values()
    for other in others:
        first |= other
    count = len(found)
    images = "1 image was" if count == 1 else f"{count} images were"
    return (
        f"{images} shown at {_span(first.least_m, first.most_m)} per pixel to a network that has "
        f"learned from {_span(*first.known_m)} ({first.source}): what it says of them may be far "
        "off. predict.py without --native-gsd brings images to what networks know; views of one "
        "size, such as d4, leave them there"
    )


def _span(least_m: float, most_m: float) -> str:
    least, most = f"{least_m:.3g}", f"{most_m:.3g}"
    return f"{most} m" if least == most else f"{least} to {most} m"
