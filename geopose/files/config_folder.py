"""Where the shipped configs are: `configs/` of a checkout, `geopose/configs` once installed."""

from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]
FOLDER = "configs"


def config_folder() -> Path:
    """The folder of `config.yaml`, its groups and `inference/`."""
    installed = _HERE / FOLDER  # the wheel puts them there, see pyproject.toml
    return installed if installed.is_dir() else _HERE.parent / FOLDER


def shipped_or_own(path: Path) -> Path:
    """The file that a name means: one that is there, else a shipped one named `configs/...`.

    So `configs/inference/NAME.yaml` works from any folder, as it does from a checkout.
    """
    if path.is_file() or path.parts[:1] != (FOLDER,):
        return path
    shipped = config_folder().joinpath(*path.parts[1:])
    return shipped if shipped.is_file() else path
