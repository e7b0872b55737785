"""Which images networks are shown at a ground sampling that they have not learned from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geopose.inference.predict.tta import Tta

# Images a tenth beyond are not worth resampling, and 1.15 times larger ones were seen to do well;
# of images half as large again as known ones, heights were seen to explode.
_FAR = 1.3


@dataclass(frozen=True)
class UnknownGsd:
    """At what ground samplings, metres per pixel, a network sees an image that it does not know.

    Attributes:
        source: the network's file.
        known_m: finest and coarsest that it has learned from.
        least_m: finest of the views that are well beyond that.
        most_m: the coarsest.
    """

    source: str
    known_m: tuple[float, float]
    least_m: float
    most_m: float

    def __or__(self, other: "UnknownGsd") -> "UnknownGsd":
        """Both together; the network is the same."""
        least_m, most_m = min(self.least_m, other.least_m), max(self.most_m, other.most_m)
        return UnknownGsd(self.source, self.known_m, least_m, most_m)


def unknown_gsd(
    members: Iterable[Any], tta: Tta, gsd_m: float, size: Sequence[int]
) -> list[UnknownGsd]:
    """What views show an image at that is well beyond what networks know, one for each of these.

    Args:
        members: each a `Member`; one that says no range, or brings images to its own gsd, has no
            say.
        tta: the views.
        gsd_m: of the image.
        size: (height, width) of the image.
    """
    shown = [view.gsd_m(gsd_m, size) for view in tta.views]
    found = {}
    for member in members:
        known = getattr(member, "gsd_range_m", None)
        if known is None or getattr(member, "gsd_m", None) is not None:
            continue
        beyond = [each for each in shown if not known[0] / _FAR <= each <= known[1] * _FAR]
        if beyond:
            found[member.source] = UnknownGsd(member.source, known, min(beyond), max(beyond))
    return list(found.values())


class UnknownGsds:
    """Those of many images, by network; pickled with a process's report."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, UnknownGsd]] = {}  # source -> image -> what

    def add(self, image: str, found: Iterable[UnknownGsd]) -> None:
        """Adds what was found of an image, or of a part of it."""
        for each in found:
            images = self._found.setdefault(each.source, {})
            images[image] = images[image] | each if image in images else each

    def merge(self, other: "UnknownGsds") -> None:
        """Adds those of another process."""
        for images in other._found.values():
            for image, found in images.items():
                self.add(image, [found])

    def lines(self) -> Iterator[str]:
        """One for each network, for the user."""
        for source in sorted(self._found):
            yield _in_words(self._found[source])


def _in_words(images: Mapping[str, UnknownGsd]) -> str:
    first, *others = images.values()
    for other in others:
        first |= other
    were = "image was" if len(images) == 1 else "images were"
    return (
        f"{first.source} has learned from {_span(*first.known_m)} per pixel, and {len(images)} "
        f"{were} shown to it at {_span(first.least_m, first.most_m)}: what it says of them may be "
        "far off. Use a network that knows them, or views of one size such as d4, or predict.py "
        "without --native-gsd, which resamples"
    )


def _span(least_m: float, most_m: float) -> str:
    least, most = f"{least_m:.3g}", f"{most_m:.3g}"
    return f"{most} m" if least == most else f"{least} to {most} m"
