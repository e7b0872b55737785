"""Devices that are not here: which GPU a process takes, what is wrong with one, what it raises."""

import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from geopose import distributed
from geopose.errors import InputError, RunError
from geopose.inference.pipeline.background import Background
from geopose.system import devices
from geopose.system.devices import allow_tf32, is_out_of_memory, use_device


@pytest.mark.parametrize(("local", "visible", "gpu"), [(0, 1, 0), (1, 2, 1), (3, 1, 0)])
def test_a_process_takes_its_own_gpu_or_the_only_one_it_sees(local, visible, gpu, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    assert distributed.local_device() == torch.device("cuda", gpu)


def test_more_processes_than_gpus_are_one_line(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match="LOCAL_RANK=2: this process sees 2 GPUs"):
        distributed.local_device()


@pytest.mark.parametrize(("gpus", "is_refused"), [("aba", True), ("abc", False)])
def test_two_processes_on_one_gpu_are_refused_on_all(gpus: str, is_refused: bool) -> None:
    store = dist.HashStore()
    said: list[str] = []

    def process(rank: int) -> None:
        try:
            distributed.refuse_shared_gpus(store, rank, len(gpus), f"GPU-{gpus[rank]}")
        except InputError as error:
            said.append(str(error))

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(len(gpus))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == (len(gpus) if is_refused else 0)
    assert all("processes 0 and 2 are on one GPU (GPU-a)" in line for line in said)


def test_an_exchange_that_fails_is_one_line():
    words = "NCCL error in: x.cpp:1, unhandled cuda error\nLast error:\nCuda failure 'bad cable'"
    expected = r"between the processes failed \(Cuda failure 'bad cable'"
    with pytest.raises(RunError, match=expected), distributed.exchange_errors():
        raise dist.DistBackendError(words)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
        (None, False),
    ],
    ids=str,
)
def test_a_lack_of_memory_is_known_by_all_its_names(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_lack_of_memory_is_found_behind_other_errors():
    outer = RuntimeError("the compiler failed")
    outer.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert is_out_of_memory(outer)


def test_every_writer_thread_says_which_gpu_it_uses(monkeypatch):
    """One that has not said it opens a context on the first GPU."""
    said: dict[int, torch.device] = {}
    monkeypatch.setattr(
        "torch.cuda.set_device", lambda device: said.update({threading.get_ident(): device})
    )
    gpu, done = torch.device("cuda", 3), []
    writers = Background(2, 4, lambda: use_device(gpu))
    for _ in range(6):
        writers.put(lambda: done.append(said[threading.get_ident()]))
    writers.finish()
    assert done == [gpu] * 6


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_said_by_switches_that_other_libraries_can_read(allowed):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        allow_tf32(allowed)
        assert torch.backends.cuda.matmul.allow_tf32 is allowed  # raises if switches are mixed
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") is allowed
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is allowed
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(("cuda", "said"), [("13.0", "470.57.02"), (None, "without CUDA")])
def test_a_gpu_that_torch_cannot_use_is_said_once(cuda, said, monkeypatch, tmp_path, caplog):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\n")
    monkeypatch.setattr(devices, "_DRIVER", driver)
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices.warn_of_unusable_gpu.cache_clear()
    for _ in range(2):
        assert distributed.local_device().type == "cpu"
    (line,) = caplog.messages
    assert said in line
    assert line.endswith("computing on the CPU")


@pytest.mark.parametrize("hidden", [True, False])
def test_no_gpu_and_a_hidden_one_are_nothing_to_say(hidden, monkeypatch, tmp_path, caplog):
    driver = tmp_path / "version"
    if hidden:
        driver.touch()
    monkeypatch.setattr(devices, "_DRIVER", driver)
    monkeypatch.setattr(devices, "_FIRST_GPU", Path("/nowhere"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "" if hidden else "0")
    devices.warn_of_unusable_gpu.cache_clear()
    assert distributed.local_device().type == "cpu"
    assert caplog.messages == []
