"""The network of files that hold weights alone: a model YAML in, what such a file lacks out."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from geopose.construct import plain
from geopose.errors import InputError, one_line
from geopose.files.yaml_file import check_yaml, load_yaml
from geopose.models.build import ChannelOrder, channel_order
from geopose.models.legacy import current_model_config, has_published_names
from geopose.models.normalization import CHANNEL_ORDERS

logger = logging.getLogger(__name__)

_WARNED: set[Path] = set()  # files, so that each is spoken of once in a process


@dataclass(frozen=True)
class GivenNetwork:
    """What a user says about files without a config.

    Attributes:
        source: the YAML that describes the network.
        text: its content in today's words, as JSON.
        said_order: of the channels, said apart from the YAML; None = as the YAML says.
    """

    source: Path
    text: str
    said_order: ChannelOrder | None = None

    @property
    def model(self) -> dict[str, Any]:
        """The `model` node of a config."""
        config: dict[str, Any] = json.loads(self.text)
        return config

    @property
    def order(self) -> ChannelOrder:
        """Of the channels."""
        return self.said_order or channel_order(self.model)

    def facts_for(self, payload: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """What a checkpoint would say beside its weights.

        Args:
            payload: of the file, with `model_state_dict`.
            path: the file.

        Raises:
            InputError: the file says another channel order, or names that are none.
        """
        own = payload.get("channel_order")
        if self.said_order is None and own not in (None, self.order):
            raise InputError(
                f"{path}: its channels are {own!r}, those of {self.source} {self.order!r}; "
                "say which with channel_order"
            )
        self._warn_of_order(payload["model_state_dict"], path)
        return {
            "channel_order": self.order,
            "checkpoint_data": {"config": {"model": self.model}},
        }

    def _warn_of_order(self, names: Iterable[str], path: Path) -> None:
        doubtful = self.said_order is None and self.order == "rgb" and path not in _WARNED
        if doubtful and has_published_names(names):
            _WARNED.add(path)
            logger.warning(
                "%s: taken to read rgb, as %s says, but its parameters have the names of the "
                "published models, which read bgr; if it is one of them, say channel_order bgr",
                path,
                self.source,
            )


def read_network(path: Path, said_order: object = None) -> GivenNetwork:
    """The network that a model YAML describes.

    Args:
        path: like those of configs/model, `defaults` included, or in the published form.
        said_order: rgb or bgr where that is said apart from the YAML, else None.

    Raises:
        InputError: unreadable file, unknown key, or an order that is none.
    """
    if said_order is not None and said_order not in CHANNEL_ORDERS:
        raise InputError(f"channel_order is {said_order!r}, must be {' or '.join(CHANNEL_ORDERS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such model YAML (looked from {Path.cwd()})")
    try:
        model = current_model_config(plain(_composed(path)))
        channel_order(model)
        text = json.dumps(model, sort_keys=True)
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
    return GivenNetwork(path, text, said_order)  # type: ignore[arg-type]


def _parents(defaults: object, path: Path) -> list[Path]:
    """The files beside a YAML, and in folders beside it, that it may build on."""
    if not isinstance(defaults, ListConfig):
        return []
    beside = path.parent.glob("*.yaml")
    groups = [str(key) for entry in defaults if isinstance(entry, DictConfig) for key in entry]
    below = [file for group in groups for file in path.parent.glob(f"{group}/*.yaml")]
    return [file for file in (*beside, *below) if file.is_file()]


def _composed(path: Path) -> DictConfig:
    """A YAML file with what its `defaults` name, as Hydra puts it together."""
    try:
        config = load_yaml(path)
        if isinstance(config, DictConfig) and "defaults" in config:
            for file in _parents(config["defaults"], path):
                check_yaml(file)
            with initialize_config_dir(str(path.parent.resolve()), version_base="1.3"):
                config = compose(path.name)
    except (
        YAMLError,
        OmegaConfBaseException,
        HydraException,
        OSError,
        ValueError,
        RecursionError,
    ) as error:
        raise InputError(f"not a readable model YAML ({one_line(error, 200)})") from error
    if not isinstance(config, DictConfig):
        raise InputError("not a model YAML: it must hold encoder, decoder and heads")
    return config
