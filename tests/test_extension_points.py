"""Each thing that docs/architecture.md says can be added in few files is added here, and used.

What a change of a source file would add to a list, a test adds to the very list; YAML files lie in
a folder of the user's.
"""

from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from torch import Tensor, nn

from geopose import evaluation, keys
from geopose.augment import levels
from geopose.augment.build import build_augmentation
from geopose.augment.spatial import SpatialRange
from geopose.checkpoints.load import load_model
from geopose.construct import plain
from geopose.convert import convert_directory
from geopose.data import layouts
from geopose.data.layouts import splits
from geopose.data.layouts.splits import LAYOUTS, read_split
from geopose.data.targets import TARGETS
from geopose.errors import InputError
from geopose.inference.submission.command import submit
from geopose.losses.terms import LOSSES
from geopose.losses.total import build_loss
from geopose.models.blocks import BLOCK_TYPES, activation_layer, conv3x3
from geopose.models.build import build_model
from geopose.models.heads import (
    AGL_HEADS,
    ORIENTATION_HEADS,
    AGLHead,
    BasicOrientationHead,
    Orientation,
)
from geopose.training.fit import fit
from tests.tiny_run import ROOT, run_script, write_config
from tests.training_run import CONFIGS, TINY

HEADS = "geopose.models.heads"
TARGET_TALL, OUTPUT_TALL = "TARGET_TALL_MASK", "OUTPUT_TALL_MASK"  # would stand in geopose/keys.py
LAYOUT = '''
from pathlib import Path
from geopose.data.layout import ImageRecord

def read_split(data_dir, split):
    """One folder for both splits, file names say it all."""
    return [
        ImageRecord(
            image_id=rgb.stem.removesuffix("_RGB"),
            city=rgb.name[:3],
            gsd_m=0.5,
            rgb=rgb,
            agl=Path(str(rgb).replace("_RGB.j2k", "_AGL.tif")),
            vflow=Path(str(rgb).replace("_RGB.j2k", "_VFLOW.json")),
        )
        for rgb in sorted((data_dir / "train").glob("*_RGB.j2k"))
        if rgb.name.startswith("SYD") == (split == "test")
    ]
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of YAML files beside the shipped ones: GROUP/OPTION.yaml."""
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


def write_option(own: Path, group: str, text: str) -> None:
    path = own / group / "mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# Mine.\n{text}")


def composed(own: Path, *overrides: str) -> Any:
    """The config that `train.py --config-dir own` composes from these arguments."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", [f"hydra.searchpath=[file://{own}]", *overrides])


class Tukey(nn.Module):
    """A loss: nothing beyond a distance costs more than at it."""

    def __init__(self, reach: float = 5.0) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return torch.nan_to_num(output - target).abs().clamp(max=self.reach).mean()


class MaskedBce(nn.Module):
    """A loss of logits, without the unknown pixels."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        known = ~target.isnan()
        return nn.functional.binary_cross_entropy_with_logits(output[known], target[known])


class OneConv(nn.Sequential):
    """A decoder block."""

    def __init__(self, in_channels: int, out_channels: int, activation: str = "silu") -> None:
        super().__init__(conv3x3(in_channels, out_channels), activation_layer(activation))


class TallHead(AGLHead):
    """A height head that also says, for every pixel, whether what is seen is tall."""

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_upsample_blocks: int = 0,
        embedding_size: int | None = None,
        output_gain: float = 1.0,
        tall_bias: float = 0.0,
    ) -> None:
        super().__init__(
            channels, strides, num_upsample_blocks, embedding_size, output_gain=output_gain
        )
        self.tall = conv3x3(channels[0], 1)
        nn.init.constant_(self.tall.bias, tall_bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor], gsd_m: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return *super().forward(maps, gsd_m), {OUTPUT_TALL: self.tall(maps[0])}


class DownHead(BasicOrientationHead):
    """An orientation head: everything leans down."""

    def __init__(self, channels: list[int], embedding_size: int = 0) -> None:
        super().__init__(channels)

    def forward(self, maps: list[Tensor]) -> Orientation:
        direction = super().forward(maps).direction
        return Orientation(direction * 0.0 + torch.tensor([0.0, 1.0]))


def tall_target(agl_m: Tensor, scale_px_per_m: float, angle_rad: float) -> Tensor:
    """What is above 5 m; unknown where the height is."""
    return torch.where(agl_m.isnan(), agl_m, (agl_m > 5.0).float())


class Posterize(A.ImageOnlyTransform):
    """An augmentation step."""

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        return img & 0b1100_0000


def test_a_loss_is_a_class_in_one_file_and_yaml(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "geopose.losses.Tukey", Tukey)
    write_option(
        own,
        "loss",
        "defaults: [base, _self_]\nlosses: {agl: {loss: {_target_: geopose.losses.Tukey}}}",
    )
    loss = build_loss(composed(own, "loss=mine", "loss.losses.magnitude=null").loss)
    batch = {f"TARGET_{k}": torch.zeros(2, 2) for k in ("AGL_MASK", "VFLOW_DIRECTION")}
    output = {f"OUTPUT_{k}": torch.full((2, 2), 9.0) for k in ("AGL_MASK", "VFLOW_DIRECTION")}
    assert loss(output, batch)["agl"] == 5.0


def test_an_encoder_is_yaml_alone(own: Path) -> None:
    write_option(
        own,
        "model",
        "defaults: [sample_unet, _self_]\n"
        "encoder: {name: test_mambaout, layers: [0, 1, 2]}\ndecoder: {channels: [8, 12]}",
    )
    model = build_model(composed(own, "model=mine").model, load_pretrained=False)
    outputs = model.eval()(torch.zeros(1, 3, 64, 96), torch.ones(1, 1))
    assert outputs[keys.OUTPUT_AGL_MASK].shape == (1, 1, 64, 96)


def test_a_block_and_heads_are_a_class_in_one_file_and_yaml(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BLOCK_TYPES, "one_conv", OneConv)
    monkeypatch.setitem(AGL_HEADS, f"{HEADS}.TallHead", TallHead)
    monkeypatch.setitem(ORIENTATION_HEADS, f"{HEADS}.DownHead", DownHead)
    write_option(
        own,
        "model",
        "defaults: [sample_unet, _self_]\n"
        "decoder: {block_type: one_conv}\n"
        f"agl_head: {{_target_: {HEADS}.TallHead, tall_bias: -1.0}}\n"
        f"orientation_head: {{_target_: {HEADS}.DownHead}}",
    )
    model = build_model(composed(own, "model=mine").model, load_pretrained=False)
    assert isinstance(model.decoder.blocks[0], OneConv)  # type: ignore[index, union-attr]
    outputs = model.eval()(torch.rand(2, 3, 70, 61), torch.ones(2, 1))
    assert outputs[keys.OUTPUT_VFLOW_ANGLE].tolist() == [[0.0], [0.0]]
    assert outputs[OUTPUT_TALL].shape == (2, 1, 70, 61)
    assert outputs[OUTPUT_TALL].dtype == torch.float32


def test_an_augmentation_is_added_in_one_file(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    level = levels.Level(SpatialRange(symmetries=True), lambda: [Posterize(p=1)])
    monkeypatch.setitem(levels.LEVELS, "poster", level)
    write_option(own, "train", "defaults: [base, _self_]\naugmentations: poster\ncrop_size: 16")
    train = plain(composed(own, "train=mine"))["train"]
    crop = build_augmentation(train["augmentations"], train["crop_size"])
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert np.unique(crop(image, np.zeros((40, 40), np.float32), 0.5, 1.0, 0.0).image).tolist() == [
        0, 64, 128, 192,
    ]  # fmt: skip


@pytest.fixture
def folder_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A reader in a file of its own, as if it lay in geopose/data/layouts."""
    name = "one_folder"
    (tmp_path / f"{name}.py").write_text(LAYOUT)
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path)])
    found = splits._readers()
    assert set(found) == {*LAYOUTS, name}
    monkeypatch.setitem(LAYOUTS, name, found[name])
    return name


def test_a_name_outside_of_the_folder_of_layouts_is_not_imported(sample_dir: Path) -> None:
    with pytest.raises(InputError, match="layout is 'os', expected challenge"):
        read_split(sample_dir, "train", "os")


def test_convert_reads_what_a_layout_lists(
    tmp_path: Path, sample_dir: Path, folder_layout: str
) -> None:
    copy = tmp_path / "data"
    (copy / "train").mkdir(parents=True)
    for path in (sample_dir / "train").glob("SY[AD]_*"):
        if path.suffix != ".png":
            (copy / "train" / path.name).symlink_to(path)
    done = convert_directory(copy, 1, progress=False, layout=folder_layout)
    assert done.converted == 6
    assert len(list((copy / "train").glob("*.png"))) == 6


def test_a_layout_and_a_per_pixel_output_from_training_to_the_score(
    tmp_path: Path,
    own: Path,
    sample_dir: Path,
    folder_layout: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The output: names, target and head, a file each, and YAML for the loss and the head."""
    monkeypatch.setitem(TARGETS, TARGET_TALL, tall_target)
    monkeypatch.setitem(AGL_HEADS, f"{HEADS}.TallHead", TallHead)
    monkeypatch.setitem(LOSSES, "geopose.losses.MaskedBce", MaskedBce)
    write_option(
        own,
        "loss",
        "defaults: [huber_cos, _self_]\nlosses:\n  tall:\n    loss: {_target_: "
        f"geopose.losses.MaskedBce}}\n    output_key: {OUTPUT_TALL}\n    target_key: {TARGET_TALL}",
    )
    run_dir = tmp_path / "run"
    config = composed(
        own,
        *TINY,
        "loss=mine",
        f"model.agl_head={{_target_: {HEADS}.TallHead}}",
        "train.epochs=1",
        f"dataset.data_dir={sample_dir}",
        f"dataset.layout={folder_layout}",
        f"experiment={run_dir}",
    )
    fit(config)
    assert "tall" in (run_dir / "metrics.csv").read_text().splitlines()[0]
    best = run_dir / "checkpoints_mean_r2/best.pth"
    outputs = load_model(best).model(torch.rand(1, 3, 50, 50), torch.ones(1, 1))
    assert outputs[OUTPUT_TALL].shape == (1, 1, 50, 50)
    inference = write_config(tmp_path / "predict.yaml", [best])
    submit([str(inference), "--data-dir", str(sample_dir), "--layout", folder_layout])
    predicted = tmp_path / "out/submission"
    assert len(list(predicted.glob("SYD_*_AGL.tif"))) == 3
    result = evaluation.evaluate(predicted, sample_dir, layout=folder_layout)
    assert list(result["cities"]) == ["SYD"]


def test_truth_of_a_data_directory_must_be_there(tmp_path: Path, sample_dir: Path) -> None:
    with pytest.raises(InputError, match="there are no heights and flow to compare with"):
        evaluation.evaluate(tmp_path, sample_dir, layout="challenge")


def test_own_options_lie_in_a_folder_of_ones_own(own: Path) -> None:
    write_option(own, "model", "defaults: [sample_unet, _self_]\nslug: of_my_own")
    done = run_script(
        ROOT / "train.py", "--config-dir", own, "model=mine", "--cfg", "job", "--package", "model"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "slug: of_my_own" in done.stdout.splitlines()
    assert "  name: test_resnet" in done.stdout.splitlines()
