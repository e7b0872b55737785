"""What `auto` means for loader workers and threads."""

import pytest
import torch

from geopose.errors import InputError
from geopose.training.data import resources
from geopose.training.data.resources import Resources, choose_resources
from geopose.training.precision import resolve_precision

NATIVE, NONE = {"avx512_bf16": True}, {"avx512_bf16": False, "amx_bf16": False}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "usable_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_a_cpu_keeps_its_cores_for_the_network() -> None:
    assert choose_resources("auto", "auto", "auto", CPU, 1) == Resources(1, 1, 16)
    assert choose_resources("auto", "auto", "auto", CPU, 4) == Resources(1, 1, 4)


def test_a_gpu_gets_its_share_of_the_cores_as_workers() -> None:
    assert choose_resources("auto", "auto", "auto", GPU, 1).train_workers == 8
    assert choose_resources("auto", "auto", "auto", GPU, 8).train_workers == 2


def test_a_launchers_thread_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose_resources("auto", "auto", "auto", CPU, 1).threads == 1
    assert choose_resources("auto", "auto", 3, CPU, 1).threads == 3


@pytest.mark.parametrize("value", [-1, 1.5, "many", True])
def test_other_values_are_refused_by_key(value: object) -> None:
    with pytest.raises(InputError, match=r"train\.loaders\.train\.num_workers"):
        choose_resources(value, "auto", "auto", CPU, 1)  # type: ignore[arg-type]


def test_amp_on_a_cpu_is_bf16_only_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: NATIVE)
    assert resolve_precision("amp", CPU) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: NONE)
    assert resolve_precision("amp", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
