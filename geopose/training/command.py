"""The command train.py: arguments in, Hydra composes the config; one training for each job."""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from geopose.cli import EXIT_INPUT, run_command
from geopose.errors import InputError, one_line
from geopose.files.config_folder import config_folder
from geopose.files.yaml_file import check_yaml_folder
from geopose.schema.hydra_words import in_words, options_first
from geopose.schema.old_keys import without_old_arguments
from geopose.schema.typed import quoted_for_hydra
from geopose.system.optional import needs_extra

_FOLDER_OPTIONS = ("--config-dir", "-cd", "--config-path", "-cp")
_HELP = {"--help", "-h", "--hydra-help"}
_MULTIRUN = {"-m", "--multirun"}
_PATHS = ("experiment", "checkpoint", "transfer", "transfer_encoder_decoder", "dataset.data_dir")
_status: list[int] = []  # exit code of each run that Hydra started


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
def _run(config: DictConfig) -> None:
    def run(argv: Sequence[str] | None) -> None:
        with needs_extra("train", "training"):
            from geopose.training.fit import fit

        fit(config, list(HydraConfig.get().overrides.task))

    _status.append(1)  # stands if the run ends in a way that nobody expected
    _status[-1] = run_command(run)


def _check_own_configs(arguments: Sequence[str]) -> None:
    """Looks at the YAML files of folders that the user names, before Hydra reads them.

    Raises:
        InputError: one of them is none, or of a size that no config has.
    """
    for number, argument in enumerate(arguments):
        name, is_one, value = argument.partition("=")
        if name in _FOLDER_OPTIONS:
            folder = value if is_one else "".join(arguments[number + 1 : number + 2])
            check_yaml_folder(Path(folder))


def _bad_group(arguments: Sequence[str]) -> str | None:
    """The argument that gives a config group a value that is no name, at which Hydra breaks."""
    groups = [path.name for path in config_folder().iterdir() if path.is_dir()]
    pattern = re.compile(rf"({'|'.join(groups)})=(null|[\d.+-]*)")
    return next((argument for argument in arguments if pattern.fullmatch(argument)), None)


def train() -> int:
    """Runs Hydra on sys.argv and returns an exit code: 2 for a config that does not compose."""
    # torch.distributed.launch adds this argument; the environment says the same.
    launcher = ("--local-rank", "--local_rank")
    arguments = [arg for arg in sys.argv[1:] if not arg.startswith(launcher)]
    try:
        arguments = without_old_arguments(arguments)
        arguments = quoted_for_hydra(arguments, _PATHS, bool(_MULTIRUN & set(arguments)))
        sys.argv[1:] = options_first(arguments) if not _HELP & set(arguments) else arguments
    except InputError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return EXIT_INPUT
    if bad := _bad_group(sys.argv[1:]):
        sys.stderr.write(f"error: {bad}: name one of the group's options (see train.py --help)\n")
        return EXIT_INPUT
    if _HELP & set(sys.argv[1:]):
        from geopose.training.help import register_help

        register_help(config_folder())
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come here; it would print a part of the stack
    try:
        _check_own_configs(sys.argv[1:])
        with ExitStack() as stack:
            if _MULTIRUN & set(sys.argv[1:]):  # of a sweep it notes what nobody reads
                folder = stack.enter_context(TemporaryDirectory(prefix="geopose-sweep-"))
                sys.argv.append(f"hydra.sweep.dir='{folder}'")
            _run()
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        sys.stderr.write(f"error: {in_words(error)}\n")
        return EXIT_INPUT
    except InputError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return EXIT_INPUT
    except BrokenPipeError:  # the help, read by `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # Hydra has written its message
        return EXIT_INPUT if stop.code and not _status else int(stop.code or 0)
    return max(_status, default=0)
