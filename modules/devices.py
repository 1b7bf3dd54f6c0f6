"""The machines a run is on: backend, hosts and devices, how exactly they repeat, and how precisely they compute."""

import contextlib
import importlib
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# TensorFlow's start-up messages say nothing to the user; an error still comes as an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Left to itself TensorFlow uses oneDNN only on CPUs with AVX-512 VNNI or AMX; without it 3-D training takes four times as long.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
# Several hosts ask one another whether to stop once in so many steps: asking at each would make every step wait for the slowest.
AGREE_STEPS = 20
# (host index, number of hosts). We do not ask JAX: asking initialises its devices before `--deterministic` can act.
_host = (0, 1)

log = logging.getLogger("mri")


def import_keras() -> None:
    """Imports Keras and TensorFlow without TensorFlow's start-up messages.

    Its libraries write them to the process's standard error before any setting of its own takes effect, so the file descriptor
    itself is turned away for that moment; what goes wrong still comes as an exception.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import keras
        import tensorflow as tf

        on_cpu = not tf.config.list_physical_devices("GPU")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
    if keras.backend.backend() == "tensorflow" and on_cpu:
        # `enable_op_determinism` makes each operation repeatable, but not the order in which several threads run them, and sums
        # of gradients depend on it. Each operation still uses all cores: no time is lost.
        try:
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            log.warning("TensorFlow was in use before: this run may not be repeatable bit for bit")


def start_backend(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy, TensorFlow and Keras, and makes results repeatable bit for bit: on a CPU always, on a GPU where asked to.

    On a CPU nothing is lost by it. On a GPU TensorFlow has no XLA then, and all backends choose slower kernels.
    """
    if deterministic and os.environ.get("KERAS_BACKEND") == "jax":
        # Read by JAX when it first looks for devices.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    import_keras()
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    backend, on_gpu = keras.backend.backend(), _has_gpu()
    if backend != "tensorflow":
        # TensorFlow only reads files then and must not take the GPU's memory.
        tf.config.set_visible_devices([], "GPU")
        tf.random.set_seed(seed)
    elif deterministic or not on_gpu:
        tf.config.experimental.enable_op_determinism()
    if backend == "torch" and deterministic:
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if deterministic and on_gpu:
        cost = "without XLA, " if backend == "tensorflow" else ""
        log.info("deterministic kernels: %sslower than without --deterministic; images_per_s in history.csv says by how much", cost)
    elif deterministic:
        log.info("deterministic kernels: no cost, a CPU has no others here")


# ------------------------------------------------------------------------------------------------- several hosts and devices


def start_hosts(coordinator: str | None = None, hosts: int | None = None, host: int | None = None) -> None:
    """Joins the processes of a run, one a host, where there are several; call it before anything is computed.

    They are those of a Slurm step of several tasks, which JAX finds by itself, or those that the arguments name.

    Args:
        coordinator: `HOST:PORT` of host 0, reachable from all.
        hosts: How many; 1 leaves a Slurm step's tasks alone.
        host: Which of them this is, from 0.

    Raises:
        ValueError: If the arguments are incomplete or wrong, or the backend is not JAX.
    """
    global _host
    given = (coordinator, hosts, host)
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if hosts == 1 or (given == (None,) * 3 and tasks == 1):
        return
    if given != (None,) * 3:
        if None in given:
            raise ValueError(f"Expected --coordinator, --hosts and --host together. Received: {given}. Give all three.")
        if not 0 <= host < hosts:
            raise ValueError(f"Expected --host from 0 to below --hosts, {hosts}. Received: {host}. Number the hosts from 0.")
        if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdigit():
            raise ValueError(f"Expected --coordinator HOST:PORT of host 0. Received: {coordinator}. Give an address all hosts can reach.")
    import_keras()
    import keras

    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Expected KERAS_BACKEND=jax for several hosts. Received: {keras.backend.backend()}. Set it and install jax, or give --hosts 1."
        )
    import jax

    if coordinator is None:
        hosts, host = tasks, int(os.environ["SLURM_PROCID"])
    if not jax.distributed.is_initialized():
        # Once one host has failed, the others are ended after this time.
        jax.distributed.initialize(coordinator, hosts, host, shutdown_timeout_seconds=60)
    _host = host, hosts


def find_host() -> tuple[int, int]:
    """Which host this is, and of how many: (0, 1) if it is alone."""
    return _host


def is_main() -> bool:
    """Whether this host is the one that writes."""
    return find_host()[0] == 0


def any_host(flag: bool) -> bool:
    """Whether the flag is set on any host; all have to ask."""
    if find_host()[1] == 1:
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(process_allgather(np.int32(flag)).any())


def on_main(action: Callable[[], object]) -> None:
    """Lets the main host do something while the others wait for it; all have to call it.

    Raises:
        BaseException: What the action raises, on the main host.
        ValueError: On the others then, which cannot go on alone.
    """
    failure = None
    if is_main():
        try:
            action()
        except BaseException as error:  # Ctrl-C too: the others wait.
            failure = error
    failed = any_host(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise ValueError("Expected host 0 to go on. Received: an error there. Read what it printed.")


def agree(flag: Callable[[], bool]) -> Callable[[], bool]:
    """Turns a flag of each host into one that all see set at the same call, at most `AGREE_STEPS` calls after it was set on one."""
    if find_host()[1] == 1:
        return flag
    calls, agreed = 0, False

    def ask() -> bool:
        nonlocal calls, agreed
        calls += 1
        if not agreed and calls % AGREE_STEPS == 0:
            agreed = any_host(flag())
        return agreed

    return ask


def choose_devices(limit: int | None, batch_size: int) -> list[str]:
    """Names of the devices that share each batch.

    Args:
        limit: How many of each host; None for as many as can share a batch, GPUs where there are any.
        batch_size: Of all devices together.

    Raises:
        ValueError: If there are not so many, or they cannot share a batch equally.
    """
    import keras

    by_host = list_devices()
    torch = keras.backend.backend() == "torch"
    most = 1 if torch else min(map(len, by_host))
    if limit is None:
        limit = max((number for number in range(1, most + 1) if batch_size % (number * len(by_host)) == 0), default=most)
    if not 1 <= limit <= most:
        alone = torch and limit > 1
        remedy = (
            "PyTorch uses one here: set KERAS_BACKEND=jax or tensorflow for more." if alone else "Leave it out for as many as can be used."
        )
        raise ValueError(f"Expected --devices from 1 to {most}. Received: {limit}. {remedy}")
    chosen = [name for names in by_host for name in names[:limit]]
    if batch_size % len(chosen):
        raise ValueError(
            f"Expected a `batch_size` that {len(chosen)} devices can share equally. Received: {batch_size}. "
            "Choose a multiple, or fewer --devices."
        )
    return chosen


def distribute(devices: Sequence[str]) -> None:
    """Shares the batches of all that is built from here on among devices; a single one, or none, ends that.

    Sums over a batch are then sums over all devices. On TensorFlow each device sees its own part only where the network or the loss
    mixes samples: in batch normalisation and `--batch-dice`; and it limits the norm of its own part of the gradient.
    """
    import keras

    several = len(devices) > 1
    backend = keras.backend.backend()
    if backend == "jax":
        layout = keras.distribution.DataParallel(devices=list(devices), auto_shard_dataset=False) if several else None
        keras.distribution.set_distribution(layout)
    elif backend == "tensorflow":
        import tensorflow as tf

        if several:
            log.info("%d devices: batch normalisation, --batch-dice and --clip-norm see one device's part of a batch", len(devices))
        if several or tf.distribute.has_strategy():
            tf.distribute.experimental_set_strategy(tf.distribute.MirroredStrategy(devices) if several else None)


def count_replicas() -> int:
    """Over how many devices gradients are summed, so that a penalty counts that often: 1 but for TensorFlow on several."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def list_devices() -> list[list[str]]:
    """Names of the devices of each host, GPUs where there are any."""
    import keras

    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return [[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or ["cpu"]]
    if backend == "tensorflow":
        return [keras.distribution.list_devices()]
    import jax

    return [
        [f"{device.platform}:{device.id}" for device in jax.devices() if device.process_index == host]
        for host in range(jax.process_count())
    ]


# ---------------------------------------------------------------------------------------------------------------- precision


def choose_precision(precision: str) -> str:
    """What a network computes in, with weights in float32: sets Keras's policy for the layers built from here on, and returns its name.

    Args:
        precision: One of `PRECISIONS`; "auto" is bfloat16 on a GPU that has it (compute capability 8.0 or more), else float32.
    """
    import keras

    if precision == "auto":
        precision = "bfloat16" if _has_gpu() and _has_bfloat16() else "float32"
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    return precision


def _has_gpu() -> bool:
    import keras

    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_available()
    return any(name.startswith(("gpu", "cuda")) for name in keras.distribution.list_devices())


def _has_bfloat16() -> bool:
    import keras

    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_bf16_supported()
    if keras.backend.backend() == "jax":
        import jax

        return float(getattr(jax.devices()[0], "compute_capability", 0)) >= 8
    import tensorflow as tf

    device = tf.config.list_physical_devices("GPU")[0]
    return tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0)) >= (8, 0)


def describe_environment() -> dict[str, Any]:
    """Versions, backend, device and git commit, for `run.json` and the bundle."""
    from importlib.metadata import PackageNotFoundError, version

    import keras

    backend = keras.backend.backend()
    modules = [importlib.import_module(name) for name in dict.fromkeys(("keras", "tensorflow", "numpy", "nibabel", backend))]
    versions = {module.__name__: module.__version__ for module in modules}
    # Not imported for it, which takes a second; and not every platform has it.
    with contextlib.suppress(PackageNotFoundError):
        versions["openvino"] = version("openvino")
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:  # git is not installed
        git = ""
    return {
        "backend": backend,
        "devices": [name for names in list_devices() for name in names],
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "git_commit": git or None,
    }
