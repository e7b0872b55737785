"""The shipped inference configs run; ensembles mix kinds of models.

Small networks in the published format stand in for the published ones, under their file names.
What comes out is compared with networks called by hand, view by view, with torch's own rot90 and
flip and with vectors turned by hand.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from geopose import keys
from geopose.checkpoints.formats.pth import LABELS_CONVERTED
from geopose.checkpoints.load import load_model
from geopose.cli import run_command
from geopose.data.heights import read_agl_m
from geopose.data.rgb import read_rgb
from geopose.data.vflow import read_vflow
from geopose.inference.config import load_config
from geopose.inference.submission.command import submit
from geopose.models.normalization import normalize_image
from tests.tiny_run import (
    ROOT,
    model_config,
    payload_of,
    tiny_payload,
    write_config,
    write_split,
)

SHIPPED = sorted(path for path in (ROOT / "configs/inference").glob("fp32_*.yaml"))
SIZES = ((64, 96), (50, 37))
HEADS = "geopose.models.heads."
# The parts that tell the published architectures apart.
B7_UNET = {"agl_head": {"_target_": HEADS + "SimpleAGLHead", "embedding_size": 8}}
RDTSC_UNET = {
    "decoder": {"block_type": "residual_unet", "upsample": "rdtsc", "channels": [8, 12]},
    "agl_head": {"_target_": HEADS + "AGLHead", "num_upsample_blocks": 1, "activation": "silu"},
}
Predict = Callable[[Tensor, float], tuple[Tensor, float, Tensor]]


class Pose(NamedTuple):
    """What the files of one image say."""

    agl_m: np.ndarray
    scale: float
    angle: float


def _published(path: Path, seed: int, downsample: int = 1, **parts: Any) -> Path:
    """A file as the second place wrote them: the network under `model.config` with an activation
    beside its parts, old parameter names, no word on channels or labels.
    """
    inner = {"activation": "silu", "notes": "read by nobody", **model_config(**parts)}
    target = inner.pop("_target_")
    del inner["channel_order"]
    model = {"_target_": target, "config": inner}
    read = {key: value for key, value in inner.items() if key != "notes"}
    payload = payload_of({**model, "config": read}, seed)
    config = payload["checkpoint_data"]["config"]
    config["model"] = model
    config["train"]["downsample"] = downsample
    weights = {
        re.sub(r"(blocks\.\d)\.norm(\d)\.", r"\1.abn\2.bn.", name)
        if not parts.get("decoder")
        else name: value
        for name, value in payload["model_state_dict"].items()
    }
    torch.save(
        {
            "model_state_dict": weights,
            "checkpoint_data": {"config": config},
            "epoch": 3,
            "optimizer_state_dict": {"state": {}, "param_groups": []},
            "valid_metrics": {"r2": np.float64(0.8)},
        },
        path,
    )
    return path


def _ours(path: Path, seed: int, downsample: int = 1) -> Path:
    """A file as trained here."""
    payload = tiny_payload(seed)
    payload["checkpoint_data"]["config"]["train"]["downsample"] = downsample
    torch.save({**payload, "label_downsample": LABELS_CONVERTED}, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, neither square."""
    return write_split(tmp_path_factory.mktemp("images") / "data", SIZES)


def _run(config: Path, data: Path, out: Path, *more: str) -> list[Pose]:
    overrides = [f"submission_dir={out}", "inference.num_workers=0", *more]
    assert run_command(submit, [str(config), "--data-dir", str(data), *overrides]) == 0
    names = [f"{out}/submission/ABC_{number:03d}" for number in range(len(SIZES))]
    return [Pose(read_agl_m(f"{n}_AGL.tif"), *read_vflow(f"{n}_VFLOW.json")) for n in names]


def _predictor(path: Path) -> Predict:
    """A network on an RGB image: heights, scale, and direction as a unit vector."""
    loaded = load_model(path)

    def predict(rgb: Tensor, gsd_m: float) -> tuple[Tensor, float, Tensor]:
        planes = normalize_image(rgb.permute(1, 2, 0).numpy(), loaded.channel_order)[None]
        with torch.inference_mode():
            out = loaded.model(planes, torch.tensor([[gsd_m]]))
        direction = out[keys.OUTPUT_VFLOW_DIRECTION][0]
        unit = direction / direction.norm()
        return out[keys.OUTPUT_AGL_MASK][0, 0], float(out[keys.OUTPUT_VFLOW_SCALE]), unit

    return predict


def _eight_views(predict: Predict, rgb: Tensor, gsd_m: float) -> list[tuple[Tensor, float, Tensor]]:
    """Answers of the eight views, brought back."""
    answers = []
    for mirrored in (False, True):
        for turns in range(4):
            seen = torch.rot90(rgb.flip(-1) if mirrored else rgb, turns, (-2, -1))
            agl_m, scale, (x, y) = predict(seen.contiguous(), gsd_m)
            for _ in range(turns):  # back clockwise: what points up then points right
                x, y = -y, x
            agl_m = torch.rot90(agl_m, -turns, (-2, -1))
            if mirrored:
                agl_m, x = agl_m.flip(-1), -x
            answers.append((agl_m, scale, torch.stack([x, y])))
    return answers


def _by_hand(models: list[Path], data: Path, number: int, tta_mode: str) -> Pose:
    """The ensemble of an image in either order of averaging."""
    rgb = torch.from_numpy(
        read_rgb(data / f"test/ABC_{number:03d}_RGB.{'j2k' if number % 2 else 'png'}")
    )
    views = [_eight_views(_predictor(m), rgb.permute(2, 0, 1), 0.3 + 0.1 * number) for m in models]
    stages = views if tta_mode == "model" else list(zip(*views, strict=True))
    direction = torch.zeros(2)
    for stage in stages:
        mean = sum(vector for _, _, vector in stage)
        direction += mean / mean.norm()
    every = [answer for stage in stages for answer in stage]
    agl_m = torch.stack([agl_m for agl_m, _, _ in every]).mean(0)
    angle = float(torch.atan2(direction[0], direction[1])) % (2 * np.pi)
    return Pose(agl_m.numpy(), float(np.mean([scale for _, scale, _ in every])), angle)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_config_runs_when_its_files_are_in_the_cache(
    path: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path))
    config = load_config(path)
    files = [entry.files[0] for entry in config.models]
    for seed, file in enumerate(files):
        assert file.parent == tmp_path
        _published(file, seed, **(RDTSC_UNET if "rdtsc" in file.name else B7_UNET))

    found = _run(path, data, tmp_path / "out")

    assert (tmp_path / "out/submission_compressed.tar.gz").is_file()
    for number, pose in enumerate(found):
        assert pose.agl_m.shape == SIZES[number]
        expected = _by_hand(files, data, number, config.tta_mode)
        assert expected.agl_m.std() > 0.02  # a flat map would prove nothing
        np.testing.assert_allclose(pose.agl_m, expected.agl_m, atol=0.0051)
        assert pose.scale == pytest.approx(expected.scale, rel=1e-4)
        assert pose.angle == pytest.approx(expected.angle, abs=1e-4)


def test_an_ensemble_of_every_kind_of_model_is_the_mean_of_its_members(
    data: Path, tmp_path: Path
) -> None:
    files = {
        "published": _published(tmp_path / "published.pth", 1, **B7_UNET),
        "half": _published(tmp_path / "half.pth", 2, downsample=2, **RDTSC_UNET),
        "ours": _ours(tmp_path / "ours.pth", 3),
        "ours_half": _ours(tmp_path / "ours_half.pth", 4, downsample=2),
        "again": _ours(tmp_path / "again.pth", 5),
    }
    members = [
        str(files["published"]),
        {"checkpoint": str(files["half"])},
        str(files["ours_half"]),
        {"checkpoint": str(files["ours"]), "downsample": 2},
        {"average_checkpoints": [str(files["ours"]), str(files["again"])]},
    ]
    config = write_config(tmp_path / "c.yaml", members)
    for mode in ("model", "ensemble"):
        mixed = _run(
            config, data, tmp_path / mode, "ensemble.tta=fliplr", f"ensemble.tta_mode={mode}"
        )
        if mode == "model":
            together = mixed
    alone = []
    for number, member in enumerate(members):
        single = write_config(tmp_path / f"{number}.yaml", [member])
        alone.append(_run(single, data, tmp_path / str(number), "ensemble.tta=fliplr"))

    for image, (first, second) in enumerate(zip(together, mixed, strict=True)):
        parts = [poses[image] for poses in alone]
        agl_m = np.mean([part.agl_m for part in parts], axis=0)
        scale = np.mean([part.scale for part in parts])
        for pose in (first, second):  # directions alone depend on the order
            np.testing.assert_allclose(pose.agl_m, agl_m, atol=0.0101)
            assert pose.scale == pytest.approx(scale, rel=1e-4)
        angle = np.angle(sum(np.exp(1j * part.angle) for part in parts)) % (2 * np.pi)
        assert first.angle == pytest.approx(angle, abs=1e-4)
    assert len({round(poses[0].scale, 6) for poses in alone}) == len(members)  # all are different
