"""Keys that configs no longer have: what holds them is read as before, or refused by name."""

from pathlib import Path
from typing import Any

import pytest

from geopose.checkpoints.formats.pth import load_checkpoint, save_checkpoint
from geopose.construct import plain
from geopose.errors import InputError
from geopose.schema.old_keys import OLD_KEYS, without_old_arguments
from geopose.training.check import check_config
from geopose.training.fit import fit
from tests.training_run import composed, tiny_overrides

INPUTS = "{image: INPUT_IMAGE_KEY, gsd: INPUT_GROUND_SAMPLE_DISTANCE}"
LAST = Path("checkpoints_mean_r2") / "last.pth"


def with_old_keys(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config as an older version has composed it."""
    result = {
        group: dict(block) if isinstance(block, dict) else block for group, block in cfg.items()
    }
    for dotted, value in OLD_KEYS.items():
        group, _, name = dotted.partition(".")
        result[group][name] = value
    return result


def test_old_configs_are_today_s() -> None:
    cfg = plain(composed())
    old = with_old_keys(cfg)
    assert len(old["runner"]) == len(cfg["runner"]) + 2
    assert check_config(old) == check_config(cfg)


@pytest.mark.parametrize("dotted", OLD_KEYS)
def test_another_value_in_a_config_is_refused(dotted: str) -> None:
    old = with_old_keys(plain(composed()))
    group, _, name = dotted.partition(".")
    old[group][name] = "other"
    with pytest.raises(InputError, match=f"{dotted}=other: this key has gone"):
        check_config(old)


@pytest.mark.parametrize(
    "argument",
    [
        "loss.aggregation=sum",
        "+loss.aggregation='sum'",
        f"runner.input_keys={INPUTS}",
        "runner.input_keys.gsd=INPUT_GROUND_SAMPLE_DISTANCE",
        "++runner.input_key=[INPUT_IMAGE_KEY,INPUT_GROUND_SAMPLE_DISTANCE]",
        "optimizer.encoder_lr_factor=1",
    ],
)
def test_old_arguments_are_left_out(argument: str) -> None:
    kept = ["train.epochs=3", "--help", "loss.losses.agl.weight=2"]
    assert without_old_arguments([argument, *kept]) == kept


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("loss.aggregation=mean", r"loss\.aggregation=mean: .*sum is all"),
        ("loss.aggregation=sum,mean", r"loss\.aggregation=sum,mean: "),
        ("loss.aggregation=[", r"loss\.aggregation=\["),
        ("runner.input_keys.image=OTHER", r"runner\.input_keys\.image=OTHER: .*INPUT_IMAGE_KEY"),
        ("optimizer.encoder_lr_factor=0.1", r"encoder_lr_factor=0\.1: .*layerwise={encoder"),
    ],
)
def test_old_arguments_with_another_value_are_refused(argument: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        without_old_arguments([argument])


@pytest.mark.parametrize("is_same_command", [True, False])
def test_a_run_of_an_older_version_goes_on(
    sample_dir: Path, tmp_path: Path, is_same_command: bool
) -> None:
    """Its config has keys that have gone, and lacks those that have come since."""
    run = tmp_path / "run"
    arguments = tiny_overrides(sample_dir, run, "train.epochs=1", "train.mixup=0")
    fit(composed(*arguments), arguments)
    payload = load_checkpoint(run / LAST)
    old = with_old_keys(payload["checkpoint_data"]["config"])
    del old["train"]["mixup"], old["train"]["loaders"]["train"]["prefetch"], old["find_unused"]
    payload["checkpoint_data"]["config"] = old
    save_checkpoint(run / LAST, payload)

    again = tiny_overrides(sample_dir, run) if is_same_command else [f"experiment={run}"]
    again = [argument for argument in again if not argument.startswith("train.epochs")]
    fit(composed(*again, "train.epochs=2"), [*again, "train.epochs=2", "loss.aggregation=sum"])
    last = load_checkpoint(run / LAST)
    assert last["epoch"] == 2
    cfg = last["checkpoint_data"]["config"]
    assert cfg["train"]["loaders"]["train"]["prefetch"] == 4
    assert "aggregation" not in cfg["loss"]
