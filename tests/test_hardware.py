"""The machine as a plan knows it, and the peak of a process's memory."""

import os
from pathlib import Path

import numpy as np
import pytest

from modules import devices, hardware
from modules.hardware import is_lack_of_memory, look_up_hardware, read_memory, read_peak, reset_peak


class ResourceExhaustedError(Exception):
    """An error of TensorFlow by its name."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (np._core._exceptions._ArrayMemoryError((1 << 50,), np.dtype(np.uint8)), True),
        (ResourceExhaustedError(), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), True),
        (RuntimeError("another"), False),
        (ValueError("RESOURCE_EXHAUSTED"), False),
    ],
)
def test_errors_of_memory_are_known_by_their_kind(error, expected):
    assert is_lack_of_memory(error) == expected


def test_a_gpu_that_is_hidden_is_none(monkeypatch):
    told = {"memory.total": "8192", "compute_cap": "8.6"}
    monkeypatch.setattr(hardware, "_query_driver", lambda field: told[field])
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter([Path("/dev/nvidia0")]))
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert (look_up_hardware().kind, look_up_hardware().device_bytes) == ("cpu", 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert (look_up_hardware().kind, look_up_hardware().device_bytes, look_up_hardware().bfloat16) == ("gpu", 8 << 30, True)
    # The plan of a training that measures nothing is made for the device that the backend finds.
    for share, kind in ((0.0, "cpu"), (0.5, "gpu")):
        monkeypatch.setattr(hardware, "_find_share", lambda share=share: share)
        assert (look_up_hardware(ask=True).kind, look_up_hardware(ask=True).device_bytes) == (kind, share * (8 << 30))
    assert look_up_hardware().device_bytes == 8 << 30
    # An older GPU computes in float32, and so does one whose driver does not know the question.
    for capability in ("7.5", ""):
        told["compute_cap"] = capability
        assert (look_up_hardware().kind, look_up_hardware().bfloat16) == ("gpu", False)
    # A machine whose driver does not answer trains on its CPU.
    told["memory.total"] = ""
    assert look_up_hardware().kind == "cpu"
    assert look_up_hardware().cores >= 1


@pytest.mark.parametrize(
    ("backend", "found", "share"), [("jax", True, 0.75), ("jax", False, 0), ("tensorflow", True, 1), ("tensorflow", False, 0)]
)
def test_a_gpu_has_the_memory_that_the_backend_takes(monkeypatch, backend, found, share):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.setattr(hardware, "has_jax_for_gpu", lambda: found)
    for name, value in (("name_backend", backend), ("has_gpu", found), ("import_keras", None)):
        monkeypatch.setattr(devices, name, lambda value=value: value)
    assert hardware._find_share() == share
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert hardware._find_share() == (0.9 if share == 0.75 else share)


def test_the_memory_of_a_job_is_bounded_by_the_groups_above_it(tmp_path):
    group = tmp_path / "cgroup"
    group.write_text("5:cpu,cpuacct:/other\n4:memory:/slurm/job_7\n0::/system.slice\n")
    assert list(map(str, hardware._list_limits(group))) == [
        "/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/system.slice/memory.max",
        "/sys/fs/cgroup/memory.max",
    ]
    assert hardware._list_limits(tmp_path / "none") == []
    assert 0 < hardware.find_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_peak_of_memory_is_forgotten_and_measured():
    reset_peak()
    before = read_peak()
    array = np.ones(200 << 20, np.uint8)
    assert read_peak() >= before
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("only Linux forgets a peak")
    assert read_peak() >= before + (190 << 20)
    assert read_memory() >= before + (100 << 20)
    del array
    # What is there now is no peak.
    assert read_memory() < read_peak() - (100 << 20)
    reset_peak()
    assert read_peak() < before + (100 << 20)
