"""The command predict.py: images of any kind and size in, map-ready products out.

What a run needs is imported when the arguments are known: it takes seconds, and `--help` needs none
of it.
"""

from collections.abc import Sequence

from geopose.inference.images.options import build_parser


def predict(argv: Sequence[str] | None = None) -> None:
    """predict.py: the run in this process, in several, or as a launcher's."""
    arguments = build_parser().parse_intermixed_args(argv)
    from geopose.inference.images.job import run

    run(arguments)
