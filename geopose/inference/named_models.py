"""What `--model` means: a shipped name, an inference config or a checkpoint in, its config out."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from geopose.checkpoints.remote.download import Patience
from geopose.checkpoints.remote.fetch import fetch_all, is_url, speak_of_namesake
from geopose.errors import GeoposeError, InputError
from geopose.files.config_folder import config_folder, shipped_or_own
from geopose.inference.config import InferenceConfig, config_of_checkpoint, load_config
from geopose.words import DEFAULT, DEMO, MODEL_NAMES

logger = logging.getLogger(__name__)

_PUBLISHED = {
    DEFAULT: "fp32_0.8914_b6_rdtsc_unet_fold9_b7_unet_fold0_d4_bo1.yaml",
    "published-4": "fp32_0.8910_b7_fold0_b7_rdtsc_fold1_b6_rdtsc_fold89_bo1_d4.yaml",
    "published-9": "fp32_0.8914_b7_fold0_b7_rdtsc_fold1_b6_rdtsc_fold9_bo3_d4.yaml",
}
_DEMO_IS = "a small network trained on synthetic scenes, for demonstration"
_CONFIG_SUFFIXES = (".yaml", ".yml")
# Where nobody asked for a download, a machine without a network must not wait for one.
_BRIEF = Patience(timeout_s=10.0, delays_s=(1.0,))


def resolve_model(name: str | None = None, overrides: Sequence[str] = ()) -> InferenceConfig:
    """The models that a user means, ready to be built: whatever was at a URL has been fetched.

    One of `MODEL_NAMES` is that shipped model, whatever lies in the working directory: a file or
    folder of this name is spoken of and reached by `./NAME`. What ends with .yaml is an inference
    config, anything else the path or URL of a checkpoint.

    Args:
        name: what the user said; None = `DEFAULT`.
        overrides: `key=value` of an inference config, such as `ensemble.tta=null` or
            `inference.precision=fp32`; they win over what the model says. A checkpoint by itself
            is averaged over the 8 views of d4.

    Returns:
        A config; its `submission_dir` means nothing where predictions go elsewhere.

    Raises:
        InputError: no such model, a config or file that cannot be used, or (without a name) the
            default's files are neither here nor to be had.
        RunError: a download that was asked for broke off again and again.
    """
    config = _config(DEFAULT if name is None else name, overrides)
    sources = [source for entry in config.models for source in entry.sources]
    if name is not None:
        fetch_all(sources)
        return config
    try:
        fetch_all(sources, _BRIEF)
    except GeoposeError as error:
        raise InputError(
            f"no --model is given and the default, {DEFAULT}, is not to be had: {error}; or give "
            f"--model {DEMO}, a small network that is here"
        ) from error
    return config


def in_words(name: str | None) -> str:
    """What a user chose, for files that others will read."""
    if name == DEMO:
        return f"{DEMO}: {_DEMO_IS}"
    return name or DEFAULT


def _config(name: str, overrides: Sequence[str]) -> InferenceConfig:
    if name in MODEL_NAMES:
        speak_of_namesake(name)
        return _shipped(name, overrides)
    path = shipped_or_own(Path(name))
    if is_url(name):
        if name.lower().endswith(_CONFIG_SUFFIXES):
            raise InputError(f"{name}: configs are read from files; download it first")
        return config_of_checkpoint(name, overrides)
    if path.suffix.lower() in _CONFIG_SUFFIXES:
        # The folder of the predictions is said elsewhere, and a config may leave it out.
        return load_config(path, [*overrides, "submission_dir=."])
    if not path.expanduser().is_file():
        raise InputError(
            f"{name}: no such model; give an inference YAML, a checkpoint or its URL (looked from "
            f"{Path.cwd()}), or one of {', '.join(MODEL_NAMES)}"
        )
    return config_of_checkpoint(name, overrides)


def _shipped(name: str, overrides: Sequence[str]) -> InferenceConfig:
    if name != DEMO:
        return load_config(config_folder() / "inference" / _PUBLISHED[name], overrides)
    logger.warning("%s: %s", DEMO, _DEMO_IS)
    return replace(config_of_checkpoint(DEMO, overrides), source=Path(DEMO))
