"""Small published checkpoint files through every command that takes one.

What is in the files is pasted in `tests.published_facts` and below, and not taken from configs/ or
the code. A small network in the published form; for those in full see test_models_published.
"""

import copy
import json
import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from geopose.checkpoints.__main__ import main
from geopose.checkpoints.load import load_model
from geopose.cli import run_command
from geopose.errors import InputError
from geopose.inference.submission.command import submit
from geopose.models.build import build_model
from geopose.training.fit import fit
from geopose.training.initial_weights import apply_initial_weights
from tests.published_facts import (
    CONFIGS,
    REFERENCE,
    published_payload,
)
from tests.published_runs import NOTHING, assert_both_commands, assert_predicted
from tests.tiny_run import write_config, write_split
from tests.training_run import composed, tiny_overrides, weights

HEADS = "geopose.models.heads."
SMALL = {
    "_target_": "geopose.models.geopose_unet.GeoposeUNetModel.from_config",
    "config": {
        "slug": "small",
        "activation": "silu",
        "encoder": {
            "_target_": "pytorch_toolbelt.modules.encoders.TimmB0Encoder",
            "pretrained": True,
        },
        "decoder": {"channels": [16, 24, 32]},
        "agl_head": {"_target_": "geopose.models.heads.AGLHead"},
        "orientation_head": {"_target_": "geopose.models.heads.BasicOrientationHead"},
    },
}
# The same network in today's words: what the published constructors took if they were not told.
SMALL_TODAY: dict[str, Any] = {
    "_target_": "geopose.models.geopose_unet.GeoposeUNetModel.from_config",
    "encoder": {
        "_target_": "geopose.models.encoders.TimmEncoder",
        "name": "tf_efficientnet_b0.ns_jft_in1k",
        "layers": [1, 2, 3, 4],
        "activation": "silu",
        "drop_path_rate": 0.05,
    },
    "decoder": {
        "block_type": "unet", "upsample": "bilinear", "channels": [16, 24, 32],
        "activation": "silu",
    },
    "agl_head": {
        "_target_": HEADS + "AGLHead", "num_upsample_blocks": 1, "dropout_rate": 0.0,
        "activation": "relu",
    },
    "orientation_head": {
        "_target_": HEADS + "BasicOrientationHead", "dropout_rate": 0.0, "activation": "relu",
    },
}  # fmt: skip


def changed(**parts: Any) -> dict[str, Any]:
    """The small published model with keys of its parts added or replaced."""
    model: dict[str, Any] = copy.deepcopy(SMALL)
    for name, change in parts.items():
        part = model["config"].setdefault(name, {})
        model["config"][name] = {**part, **change} if isinstance(part, dict) else change
    return model


def today(**parts: dict[str, Any]) -> dict[str, Any]:
    """The small model in today's words, likewise."""
    return {**SMALL_TODAY, **{name: {**SMALL_TODAY[name], **c} for name, c in parts.items()}}


@cache
def _state(words: str, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state = build_model(json.loads(words), load_pretrained=False).state_dict()
    for name, value in state.items():
        if name.startswith("agl_head") and value.ndim == 4:
            value *= 3.0  # heights that differ from pixel to pixel
    return state


def small_payload(model: dict[str, Any], words: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """A file's content: `model` as its config, random weights of the network of `words`."""
    state = _state(json.dumps(words), seed)
    names = {n: re.sub(r"(blocks\.\d)\.norm(\d)\.", r"\1.abn\2.bn.", n) for n in state}
    config = {**CONFIGS["b6_rdtsc_unet"], "model": model}
    return published_payload(config, {names[n]: value for n, value in state.items()})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the small network. Do not change."""
    path = tmp_path_factory.mktemp("small") / "small.pth"
    torch.save(small_payload(SMALL, SMALL_TODAY), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of 64 px."""
    return write_split(tmp_path_factory.mktemp("images") / "data", [(64, 64)])


# --- The small network: what its config means


def test_a_published_config_means_what_the_published_code_made_of_it(small: Path) -> None:
    expected = build_model(SMALL_TODAY, load_pretrained=False).eval()
    assert str(load_model(small).model) == str(expected)


@pytest.mark.parametrize(
    ("published", "words"),
    [
        ({"activation": "relu"}, {"decoder": {"activation": "relu"}}),
        (
            {"activation": "relu", "decoder": {"activation": "elu", "block_type": "residual_unet"}},
            {"decoder": {"activation": "elu", "block_type": "residual_unet"}},
        ),
        ({"decoder": {"upsample": "rdtsc"}}, {"decoder": {"upsample": "rdtsc"}}),
        (
            {"encoder": {"layers": [0, 1, 2, 3]}},
            {"encoder": {"layers": [0, 1, 2, 3]}},
        ),
        (
            {"agl_head": {"_target_": HEADS + "SimpleAGLHead"}},
            {"agl_head": {"_target_": HEADS + "SimpleAGLHead", "embedding_size": 64}},
        ),
        (
            {"agl_head": {"num_upsample_blocks": 2, "activation": "silu", "dropout_rate": 0.3}},
            {"agl_head": {"num_upsample_blocks": 2, "activation": "silu", "dropout_rate": 0.3}},
        ),
        (
            {"agl_head": {"agl_activation": "softplus", "agl_transformation": "sqrt"}},
            {"agl_head": {"agl_activation": "softplus", "agl_transformation": "sqrt"}},
        ),
    ],
)
def test_defaults_of_the_published_code(
    published: dict[str, Any], words: dict[str, dict[str, Any]]
) -> None:
    expected = today(**words)
    if expected["agl_head"]["_target_"].endswith("SimpleAGLHead"):
        del expected["agl_head"]["num_upsample_blocks"]
    with torch.device("meta"):
        found, wanted = (build_model(c, False) for c in (changed(**published), expected))
    assert str(found) == str(wanted)


def test_keys_that_the_published_code_did_not_read_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = changed(
        num_channels={"any": 4},
        head={"_target_": "os.system"},
        decoder={"attention": "scse", "unet_block": "x", "normalization": "group_norm"},
        agl_head={"embedding_size": 64},
    )
    torch.save(small_payload(model, SMALL_TODAY), tmp_path / "a.pth")
    with caplog.at_level(logging.INFO, "geopose.checkpoints"):
        for _ in range(2):
            load_model([tmp_path / "a.pth"] * 2)
    assert caplog.messages == [
        f"{tmp_path}/a.pth: keys of its config without effect: model.config.num_channels, "
        "model.config.head, model.config.decoder.attention, model.config.decoder.unet_block, "
        "model.config.decoder.normalization, model.config.agl_head.embedding_size"
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decoder": {"block_type": "dc_unet"}}, r"decoder\.block_type: dc_unet .*not built here"),
        ({"decoder": {"block_type": "vnet"}}, "vnet"),
        ({"decoder": {"upsample": "cubic"}}, "cubic"),
        ({"agl_head": {"_target_": HEADS + "OnlyAGLHead"}}, "published OnlyAGLHead .*not built"),
        ({"agl_head": {"_target_": HEADS + "HyperColumnAGLHead"}}, "HyperColumnAGLHead"),
        (
            {"orientation_head": {"_target_": HEADS + "BasicOrientationScaleHead"}},
            "BasicOrientationScaleHead",
        ),
        ({"agl_head": {"agl_activation": "tanhh"}}, "tanhh"),
        ({"agl_head": {"agl_transformation": "log"}}, "log"),
        ({"agl_head": {"width": 3}}, "width"),
        ({"encoder": {"depth": 3}}, "depth"),
        ({"agl_head": {"_target_": "os.system"}}, r"os\.system"),
        ({"agl_head": {"_target_": [1]}}, "_target_"),
    ],
)  # fmt: skip
def test_what_would_build_another_network_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    torch.save(small_payload(changed(**change), SMALL_TODAY), tmp_path / "a.pth")
    with pytest.raises(InputError, match=rf"a\.pth: .*{said}") as caught:
        load_model(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (changed(head={}), "unknown key 'head'"),
        (changed(decoder={"blocks": 1}), "unknown key 'blocks'"),
        (changed(agl_head={"embedding_size": 64}), "unknown key 'embedding_size'"),
        ({**SMALL, "neck": {}}, "'neck' stands beside 'config'"),
        ({**SMALL_TODAY, "activation": "silu"}, "unknown key 'activation'"),
    ],
)
def test_a_model_configured_here_stays_strict(model: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_model(model, load_pretrained=False)


@pytest.mark.parametrize("activation", ["relu", "softplus", "none"])
@pytest.mark.parametrize("transformation", ["identity", "sqrt", "exp"])
def test_both_branches_end_as_the_head_is_told(activation: str, transformation: str) -> None:
    from geopose.models.heads import AGLHead

    ends = {"agl_activation": activation, "agl_transformation": transformation}
    head = AGLHead([8], [4], **ends, output_gain=2.0).eval()  # type: ignore[arg-type]
    raw = AGLHead([8], [4], agl_activation="none").eval()
    raw.load_state_dict(head.state_dict())
    maps, gsd_m = [10 * torch.randn(2, 8, 9, 7)], torch.ones(2, 1)
    acts = {"relu": torch.relu, "softplus": torch.nn.functional.softplus, "none": lambda x: x}
    after = {"identity": lambda x: x, "sqrt": torch.sqrt, "exp": torch.exp}
    for found, plain in zip(head(maps, gsd_m), raw(maps, gsd_m), strict=True):
        expected = 2 * after[transformation](acts[activation](plain))
        torch.testing.assert_close(found, expected, equal_nan=True)
    head(maps, gsd_m)[0].nansum().backward()
    if activation == "relu":  # also where the square root of zero has an endless slope
        assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


# --- The small network: commands


@pytest.mark.skipif(REFERENCE.is_dir(), reason="its twin of full size runs in their place")
def test_both_commands_predict(small: Path, data: Path, tmp_path: Path) -> None:
    assert_both_commands(small, data, tmp_path)


def test_exported_and_averaged_files_predict_the_same(  # of .onnx files: see test_onnx
    small: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, ["info", str(small)]) == 0
    assert "TimmB0Encoder; [16, 24, 32]; AGLHead; BasicOrientation" in capsys.readouterr().out
    for suffix in (".pth", ".safetensors"):
        assert run_command(main, ["export", str(small), str(tmp_path / f"e{suffix}")]) == 0
    mean = tmp_path / "mean.safetensors"
    assert run_command(main, ["average", str(small), str(small), "-o", str(mean)]) == 0
    for name in ("e.pth", "e.safetensors", "mean.safetensors"):
        config = write_config(tmp_path / "c.yaml", [tmp_path / name])
        out = tmp_path / f"out_{name}"
        arguments = [str(config), "--data-dir", str(data), f"submission_dir={out}"]
        assert run_command(submit, arguments) == 0
        assert_predicted(out, data, small)


def test_a_training_starts_from_a_published_file_and_goes_on(
    small: Path, sample_dir: Path, tmp_path: Path
) -> None:
    """The network of the run is in the published form, too."""
    arguments = ("scheduler=disabled", "optimizer.lr=1e-12", f"checkpoint={small}")
    for epochs in (1, 2):
        cfg = composed(*tiny_overrides(sample_dir, tmp_path / "run", *arguments))
        OmegaConf.set_struct(cfg, False)
        cfg.model = changed(encoder={"pretrained": False})
        cfg.train.epochs = epochs
        run = fit(cfg)
    last = run / "checkpoints_mean_r2" / "last.pth"
    assert torch.load(last, weights_only=False)["epoch"] == 2
    start = {re.sub(r"abn(\d)\.bn", r"norm\1", n): value for n, value in weights(small).items()}
    for name, value in weights(last).items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(value, start[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("key", NOTHING)
def test_all_three_ways_to_start_take_a_published_file(small: Path, key: str) -> None:
    model = build_model(SMALL_TODAY, load_pretrained=False)
    apply_initial_weights(model, {**NOTHING, key: str(small), "model": SMALL})
    start = {re.sub(r"abn(\d)\.bn", r"norm\1", n): value for n, value in weights(small).items()}
    for name, value in model.state_dict().items():
        if "encoder" not in key or name.startswith(("encoder.", "decoder.")):
            assert torch.equal(value, start[name]), name
