"""The programs: what the scripts at the top of the repository and the installed commands start.

Each takes its arguments from the command line and ends with an exit code.
"""

from typing import NoReturn

from geopose.cli import leave, open_streams, run_command


def train() -> NoReturn:
    """train.py, geopose-train."""
    open_streams()
    from geopose.training.command import train as command

    leave(command())


def submit() -> NoReturn:
    """submit.py, geopose-submit."""
    from geopose.inference.submission.command import submit as command

    raise SystemExit(run_command(command))


def submit_ddp() -> NoReturn:
    """submit_ddp.py, geopose-submit-ddp."""
    from geopose.inference.submission.command import submit_ddp as command

    raise SystemExit(run_command(command))


def evaluate() -> NoReturn:
    """evaluate.py, geopose-evaluate."""
    from geopose.evaluation import main as command

    raise SystemExit(run_command(command))


def convert() -> NoReturn:
    """convert_j2k.py, geopose-convert."""
    from geopose.convert import main as command

    raise SystemExit(run_command(command))


def rectify() -> NoReturn:
    """rectify.py, geopose-rectify."""
    from geopose.imagery.command import main as command

    raise SystemExit(run_command(command))


def predict() -> NoReturn:
    """predict.py, geopose-predict."""
    from geopose.inference.images.command import predict as command

    raise SystemExit(run_command(command))
