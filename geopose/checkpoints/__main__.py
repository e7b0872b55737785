"""python -m geopose.checkpoints COMMAND: checkpoint files fetched."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from geopose.checkpoints.fetch import Source, fetch_all, file_sha256, is_url
from geopose.cli import ArgumentParser, run_command
from geopose.inference.config import load_config


def _fetch(args: argparse.Namespace) -> None:
    """Everything that the configs name, downloaded, and its hashes."""
    sources: list[Source] = []
    for text in args.what:
        if is_url(text):
            sources.append(Source(text))
        else:
            entries = load_config(Path(text)).models
            sources += [source for entry in entries for source in entry.sources]
    for path in dict.fromkeys(fetch_all(sources)):
        sys.stdout.write(f"{file_sha256(path)}  {path}\n")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m geopose.checkpoints",
        description="Fetch checkpoint files.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    fetch = commands.add_parser(
        "fetch",
        help="download what configs name, so that a machine can be taken offline",
        description="Download every URL of the configs into the cache ($GEOPOSE_CACHE, else torch "
        "hub's folder), check what is there already, and print SHA-256 hashes.",
    )
    fetch.add_argument("what", nargs="+", metavar="CONFIG | URL", help="inference config, or URL")
    fetch.set_defaults(run=_fetch)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one of the commands; see `--help`."""
    args = _parser().parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
