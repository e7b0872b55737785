"""The commands submit.py and submit_ddp.py: arguments in, one run for each config.

Both do the same; submit_ddp.py starts the processes itself unless a launcher did. What a run needs
is imported when the arguments are known: it takes seconds, and `--help` needs none of it.
"""

from collections.abc import Sequence

from geopose.cli import ArgumentParser
from geopose.data.layouts.splits import add_data_options


def submit(argv: Sequence[str] | None = None) -> None:
    """submit.py: the run in this process (or as one of a launcher's)."""
    parser = _parser("Predict the test images and pack the submission.")
    arguments = parser.parse_intermixed_args(argv)
    from geopose.inference.submission.job import run_here

    run_here(arguments)


def submit_ddp(argv: Sequence[str] | None = None) -> None:
    """submit_ddp.py: the same run on every visible GPU, on N CPU processes, or under torchrun."""
    parser = _parser(
        "Predict the test images on every visible GPU, on several CPU processes (--nproc), or as "
        "part of a torchrun job, and pack the submission."
    )
    parser.add_argument(
        "--nproc",
        type=int,
        metavar="N",
        help="processes on this machine (default: one for each visible GPU, else one); "
        "not under torchrun, which decides itself",
    )
    arguments = parser.parse_intermixed_args(argv)
    from geopose.inference.submission.job import run_on_several

    run_on_several(arguments)


def _parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(description=description)
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="CONFIG | key=value",
        help="inference configs, run in turn, and values that override theirs, such as "
        "ensemble.tta=null inference.batch_size=2 submission_dir=out",
    )
    add_data_options(parser)
    parser.add_argument(
        "--visualize", action="store_true", help="also write a picture of every prediction"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="start over: predict every image, also those that an earlier run has finished",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be done, with which models, how much memory and time it will take "
        "(one image is predicted to find out), and write nothing",
    )
    return parser
