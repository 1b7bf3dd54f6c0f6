"""The machine as a plan must know it: cores, memory, device, and the peaks of memory that a process has reached."""

import contextlib
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from modules.backend_choice import has_jax_for_gpu, has_nvidia

_CGROUP = Path("/proc/self/cgroup")
# JAX takes this share of a GPU's memory, where no variable of its own says otherwise.
JAX_SHARE = 0.75


@dataclass(frozen=True)
class Hardware:
    """The machine that a plan is made for.

    Attributes:
        kind: "cpu" or "gpu".
        name: The device's name.
        cores: Number of CPU cores that this process may use.
        memory_bytes: Memory of the host.
        device_bytes: Memory of one GPU; 0 without.
        bfloat16: Whether the device computes in bfloat16.
    """

    kind: str = "cpu"
    name: str = ""
    cores: int = 1
    memory_bytes: int = 0
    device_bytes: int = 0
    bfloat16: bool = False


def describe_hardware() -> Hardware:
    """Describes the machine; imports the backend."""
    from modules import devices

    on_gpu, names = devices.has_gpu(), [name for names in devices.list_devices() for name in names]
    return Hardware(
        kind="gpu" if on_gpu else "cpu",
        name=names[0] if on_gpu and names else "",
        cores=count_cores(),
        memory_bytes=find_memory(),
        device_bytes=_find_device_memory() if on_gpu else 0,
        bfloat16=devices.has_bfloat16() if on_gpu else has_cpu_bfloat16(),
    )


def look_up_hardware(*, ask: bool = False) -> Hardware:
    """Describes the machine as far as it shows without the backend.

    Args:
        ask: Whether to ask the backend how much of the GPU's memory it takes: none, if it was installed without CUDA.
    """
    memory = _ask_driver() if has_nvidia() else 0
    memory = int(memory * _find_share()) if memory and ask else memory
    bfloat16 = _ask_for_bfloat16() if memory else has_cpu_bfloat16()
    return Hardware("gpu" if memory else "cpu", "", count_cores(), find_memory(), memory, bfloat16)


def _find_share() -> float:
    """Finds the share of a GPU's memory that the backend takes at most; 0 where it computes on the CPU."""
    from modules import devices

    if devices.name_backend() == "jax":
        # We do not ask JAX: asking initialises its devices before `--deterministic` can act.
        return float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", JAX_SHARE)) if has_jax_for_gpu() else 0.0
    devices.import_keras()
    return float(devices.has_gpu())


def count_cores() -> int:
    """Counts the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def find_memory() -> int:
    """Returns the bytes of memory that this process may take: the machine's, its container's or its job's; 0 where nobody says."""
    if not hasattr(os, "sysconf"):
        return 0
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _list_limits(_CGROUP):
        with contextlib.suppress(OSError, ValueError):
            least = min(least, int(path.read_text()))
    return least


def _list_limits(group: Path) -> list[Path]:
    """Lists the files that may bound the memory of this process: those of its control group and of all above it.

    A job of Slurm has a group of its own. A container sees its group as the root.

    Args:
        group: Linux's file of the groups that a process is in.
    """
    limits = []
    with contextlib.suppress(OSError, ValueError):
        for line in group.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers == "" or "memory" in controllers.split(","):
                # Of the second version of control groups, and of the first.
                root, file = ("", "memory.max") if controllers == "" else ("memory", "memory.limit_in_bytes")
                limits += [Path("/sys/fs/cgroup", root, part.relative_to("/"), file) for part in (Path(name), *Path(name).parents)]
    return limits


def has_cpu_bfloat16() -> bool:
    """Returns whether the CPU has instructions for bfloat16, as Linux lists them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return bool({"avx512_bf16", "amx_bf16"} & set(line.split()))
    return False


def read_peak() -> int:
    """Returns the peak of this process's memory in bytes, since its start or since `reset_peak`."""
    return _read_status("VmHWM")


def read_memory() -> int:
    """Returns this process's memory in bytes; its peak where the system does not say."""
    return _read_status("VmRSS")


def _read_status(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak() -> None:
    """Makes Linux forget the peak of this process's memory so far; other systems keep it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def read_device_peak() -> int:
    """Returns the peak of the first GPU's memory in bytes, as the backend counts it; 0 without one."""
    import keras

    from modules import devices

    if not devices.has_gpu():
        return 0
    if keras.backend.backend() == "jax":
        import jax

        return int((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))
    if keras.backend.backend() == "torch":
        return int(devices.import_torch().cuda.max_memory_allocated())
    import tensorflow as tf

    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


def is_lack_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory does not suffice: Python's and NumPy's, or a backend's, which we do not import here."""
    known = type(error).__name__ in ("ResourceExhaustedError", "OutOfMemoryError")
    return known or isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


def _find_device_memory() -> int:
    import keras

    from modules import devices

    if keras.backend.backend() == "jax":
        import jax

        return int((jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0))
    if keras.backend.backend() == "torch":
        return int(devices.import_torch().cuda.get_device_properties(0).total_memory)
    return _ask_driver()


def _ask_driver() -> int:
    """Asks NVIDIA's tool for the memory of the first GPU, because TensorFlow does not say; 0 where the tool is missing."""
    with contextlib.suppress(ValueError):
        return int(_query_driver("memory.total")) << 20
    return 0


def _ask_for_bfloat16() -> bool:
    """Asks NVIDIA's tool whether the first GPU computes in bfloat16; False where it does not say."""
    with contextlib.suppress(ValueError):
        return float(_query_driver("compute_cap")) >= 8
    return False


def _query_driver(field: str) -> str:
    """Returns what NVIDIA's tool says of the first GPU; "" where it is missing or does not know the field."""
    import subprocess

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.split()
        return found[0] if found else ""
    return ""
