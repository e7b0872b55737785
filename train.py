"""Trains a model.

    python train.py                           # the default on $DRIVENDATA_OVERHEAD_GEOPOSE
    python train.py dataset.data_dir=DIR model=b7_unet train=light_768 batch_size=4
    torchrun --nproc_per_node=2 train.py model=b6_rdtsc_unet    # several processes
    python train.py --help                    # every group and its options
"""

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from geopose.cli import EXIT_INPUT, run_command

_status: list[int] = []


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def _train(config: DictConfig) -> None:
    from geopose.training.fit import fit  # heavy imports only once the config is known to be good

    def run(argv: Sequence[str] | None) -> None:
        fit(config)

    _status.append(run_command(run))


def main() -> int:
    """Runs Hydra and returns an exit code: 2 for a config that does not compose."""
    # torch.distributed.launch adds this argument; the environment says the same.
    launcher = ("--local-rank", "--local_rank")
    sys.argv[1:] = [arg for arg in sys.argv[1:] if not arg.startswith(launcher)]
    try:
        _train()
    except SystemExit as stop:  # Hydra has written its message
        return EXIT_INPUT if stop.code and not _status else int(stop.code or 0)
    return _status[0] if _status else 0


if __name__ == "__main__":
    sys.exit(main())
