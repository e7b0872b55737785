"""Trains a model.

python train.py                           # the default on $DRIVENDATA_OVERHEAD_GEOPOSE
python train.py dataset.data_dir=DIR model=b7_unet train=light_768 batch_size=4
torchrun --nproc_per_node=2 train.py model=b6_rdtsc_unet    # several processes
python train.py --help                    # every group and its options
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from geopose.cli import EXIT_INPUT, leave, run_command
from geopose.errors import InputError
from geopose.old_keys import without_old_arguments

CONFIGS = Path(__file__).resolve().parent / "configs"
_status: list[int] = []  # exit code of each run that Hydra started


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def _train(config: DictConfig) -> None:
    def run(argv: Sequence[str] | None) -> None:
        from geopose.training.fit import fit  # heavy imports once the config is known to be good

        fit(config, list(HydraConfig.get().overrides.task))

    _status.append(1)  # stands if the run ends in a way that nobody expected
    _status[-1] = run_command(run)


def _bad_group(arguments: Sequence[str]) -> str | None:
    """The argument that gives a config group a value that is no name, at which Hydra breaks."""
    groups = [path.name for path in CONFIGS.iterdir() if path.is_dir()]
    pattern = re.compile(rf"({'|'.join(groups)})=(null|[\d.+-]*)")
    return next((argument for argument in arguments if pattern.fullmatch(argument)), None)


def main() -> int:
    """Runs Hydra and returns an exit code: 2 for a config that does not compose."""
    # torch.distributed.launch adds this argument; the environment says the same.
    launcher = ("--local-rank", "--local_rank")
    arguments = [arg for arg in sys.argv[1:] if not arg.startswith(launcher)]
    try:
        sys.argv[1:] = without_old_arguments(arguments)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_INPUT
    if bad := _bad_group(sys.argv[1:]):
        sys.stderr.write(f"error: {bad}: name one of the group's options (see train.py --help)\n")
        return EXIT_INPUT
    if {"--help", "-h"} & set(sys.argv[1:]):
        from geopose.training.help import register_help

        register_help(CONFIGS)
    try:
        _train()
    except BrokenPipeError:  # the help, read by `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # Hydra has written its message
        return EXIT_INPUT if stop.code and not _status else int(stop.code or 0)
    return max(_status, default=0)


if __name__ == "__main__":
    leave(main())
