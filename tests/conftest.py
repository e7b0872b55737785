"""Shared by all tests: one thread, no network, and a small synthetic data set made once.

Tests run on the CPU, whatever the machine has: results are compared bit for bit, and two processes
on one GPU would refuse to start. `GEOPOSE_TEST_GPU=1` runs those marked `gpu`, and no others.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before torch looks; processes of tests inherit it.
os.environ.update({} if os.environ.get("GEOPOSE_TEST_GPU") else {"CUDA_VISIBLE_DEVICES": ""})
os.environ["HF_HUB_OFFLINE"] = "1"  # an accidental download is an error, not a wait

from pathlib import Path

import pytest

# Folders of tests that train networks, run whole commands, or start interpreters.
LONG = ("training", "inference", "checkpoints", "system", "tests")


def pytest_collection() -> None:
    """What test modules need. A process that only hands out tests does without the seconds."""
    import torch

    from geopose.system.torchvision_shim import ensure_torchvision

    ensure_torchvision()  # before a test module imports timm
    torch.set_num_threads(1)
    # Autograd looks for devices once. After an export to ONNX it finds one that is none, starts a
    # thread for it, and refuses to work in forks of this process from then on (tests/forked_run).
    torch.zeros(1, requires_grad=True).sum().backward()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test runs on what it is for: those marked `gpu` on one, all others without.

    Long ones come first, so that no process has one left when the others have ended.
    """
    items.sort(key=lambda item: item.path.parent.name not in LONG)
    on_gpu = bool(os.environ.get("GEOPOSE_TEST_GPU"))
    skip = pytest.mark.skip(reason=f"GEOPOSE_TEST_GPU is {'' if on_gpu else 'not '}set")
    for item in items:
        if ("gpu" in item.keywords) is not on_gpu:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted sample city: 4 cities of 3 training and 1 test scene of 96 px. Do not change."""
    from geopose.convert import convert_directory
    from geopose.sample_city.writer import write_dataset

    folder = tmp_path_factory.mktemp("sample")
    write_dataset(folder, train=3, test=1, size=96, seed=3)
    convert_directory(folder, workers=1, progress=False)
    return folder
