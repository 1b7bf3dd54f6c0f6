"""The machines of a run: backend, hosts and devices, whether results repeat bit for bit, and the precision of the computation."""

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

from modules.backend_choice import add_xla_flag, has_jax_for_gpu, has_nvidia, require_backend

# TensorFlow's start-up messages say nothing to the user; an error still comes as an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# By default TensorFlow uses oneDNN only on CPUs with AVX-512 VNNI or AMX. Without oneDNN, 3-D training takes four times as long.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
# Several hosts ask one another only once in this many steps whether to stop. Otherwise every step would wait for the slowest host.
AGREE_STEPS = 20
# (host index, number of hosts). We do not ask JAX: asking initialises its devices before `--deterministic` can act.
_host = (0, 1)

log = logging.getLogger("mri")


def import_keras() -> None:
    """Imports Keras and TensorFlow without TensorFlow's start-up messages.

    TensorFlow's libraries write to the process's standard error before any setting of TensorFlow takes effect. We therefore redirect
    the file descriptor itself during the import. An error still comes as an exception.
    """
    require_backend()
    if name_backend() == "jax" and has_jax_for_gpu():
        # XLA by itself lays volumes out with channels first, which cuDNN's fast kernels for bfloat16 do not read.
        add_xla_flag("xla_gpu_force_conv_nhwc")
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    # Keras reads `keras.json` while it is imported, and refuses what it does not know there. There is none below this name.
    home = None if "keras" in sys.modules else os.environ.get("KERAS_HOME", "")
    if home is not None:
        os.environ["KERAS_HOME"] = os.devnull
    # Keras imports these where it finds them, for tables and pictures of its own. That takes a second, and ours need neither. Matplotlib
    # also ends the import where a notebook set MPLBACKEND. In `sys.modules` None forbids an import, which typeshed does not know.
    unwanted = [name for name in ("matplotlib", "pandas") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(unwanted))  # ty: ignore[no-matching-overload]
    try:
        os.dup2(null, 2)
        import keras
        import tensorflow as tf

        on_cpu = not tf.config.list_physical_devices("GPU")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
        for name in unwanted:
            del sys.modules[name]
        if home is not None:
            _restore_home(home)
    _set_keras()
    if keras.backend.backend() == "tensorflow" and on_cpu:
        # `enable_op_determinism` makes each operation repeatable, but not the order in which several threads run the operations. Sums
        # of gradients depend on that order. Each operation still uses all cores, so no time is lost.
        try:
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            log.warning("TensorFlow was in use before: this run may not be repeatable bit for bit")


def _restore_home(home: str) -> None:
    """Gives Keras the folder that it downloads weights to, after an import without one; "" for the folder of its own choice."""
    del os.environ["KERAS_HOME"]
    if home:
        os.environ["KERAS_HOME"] = home
    user = os.path.expanduser("~")
    home = home or os.path.join(user if os.access(user, os.W_OK) else "/tmp", ".keras")
    if "keras.src.backend.config" in sys.modules:
        sys.modules["keras.src.backend.config"].__dict__["_KERAS_DIR"] = home


def name_backend() -> str:
    """Names the backend that Keras will have, without importing it."""
    return os.environ["KERAS_BACKEND"]


def _set_keras() -> None:
    """Gives Keras the settings that this program is written for, whatever `keras.json` or its variables say."""
    import keras

    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    # With a limit, Keras would end every training early without a word.
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)


def start_backend(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy, TensorFlow and Keras, and makes results repeatable bit for bit: on a CPU always, on a GPU if asked to.

    On a CPU this costs nothing. On a GPU TensorFlow then has no XLA, and all backends choose slower kernels.
    """
    if deterministic and os.environ.get("KERAS_BACKEND") == "jax":
        add_xla_flag("xla_gpu_deterministic_ops")
    import_keras()
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    backend, on_gpu = keras.backend.backend(), has_gpu()
    if has_nvidia() and not on_gpu:
        log.warning("an NVIDIA GPU is here, but %s finds none and computes on the CPU: install its version for CUDA", backend)
    if backend != "tensorflow":
        # TensorFlow only reads files here, and must not take the GPU's memory.
        tf.config.set_visible_devices([], "GPU")
        tf.random.set_seed(seed)
    elif deterministic or not on_gpu:
        tf.config.experimental.enable_op_determinism()
    if backend == "torch" and deterministic:
        torch = import_torch()
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if deterministic and on_gpu:
        cost = "without XLA, " if backend == "tensorflow" else ""
        log.info("deterministic kernels: %sslower than without --deterministic; images_per_s in history.csv says by how much", cost)
    elif deterministic:
        log.info("deterministic kernels: no cost, a CPU has no others here")


# ------------------------------------------------------------------------------------------------- several hosts and devices


def start_hosts(coordinator: str | None = None, hosts: int | None = None, host: int | None = None) -> None:
    """Joins the processes of a run, one a host, where there are several; must be called before anything is computed.

    Either the arguments name the processes, or they are the tasks of a Slurm step, which JAX finds by itself.

    Args:
        coordinator: `HOST:PORT` of host 0, reachable from all hosts.
        hosts: Number of hosts; 1 leaves a Slurm step's tasks alone.
        host: Index of this host, from 0.

    Raises:
        ValueError: If the arguments are incomplete or wrong, or the backend is not JAX.
    """
    global _host
    given = (coordinator, hosts, host)
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if hosts == 1 or (given == (None,) * 3 and tasks == 1):
        return
    if given != (None,) * 3:
        if coordinator is None or hosts is None or host is None:
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

    if hosts is None or host is None:
        hosts, host = tasks, int(os.environ["SLURM_PROCID"])
    if not jax.distributed.is_initialized():
        # If one host fails, JAX ends the others after this time.
        jax.distributed.initialize(coordinator, hosts, host, shutdown_timeout_seconds=60)
    _host = host, hosts


def find_host() -> tuple[int, int]:
    """Returns the index of this host and the number of hosts: (0, 1) for a single host."""
    return _host


def is_main() -> bool:
    """Returns whether this host is the one that writes files."""
    return find_host()[0] == 0


def any_host(flag: bool) -> bool:
    """Returns whether the flag is set on any host; all hosts must call this together."""
    if find_host()[1] == 1:
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(process_allgather(np.int32(flag)).any())


def on_main(action: Callable[[], object]) -> None:
    """Runs an action on the main host while the others wait; all hosts must call this together.

    Raises:
        BaseException: Any error of the action, on the main host.
        ValueError: On the other hosts after such an error, because they cannot go on alone.
    """
    failure = None
    if is_main():
        try:
            action()
        except BaseException as error:  # Ctrl-C too, because the other hosts wait for an answer.
            failure = error
    failed = any_host(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise ValueError("Expected host 0 to go on. Received: an error there. Read what it printed.")


def agree(flag: Callable[[], bool]) -> Callable[[], bool]:
    """Makes a shared flag of each host's own: all hosts see it set at the same call.

    That is at most `AGREE_STEPS` calls after the flag was set on one host.
    """
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
    """Chooses the devices that share each batch, and returns their names.

    Args:
        limit: Number of devices of each host; None for as many as can share a batch, GPUs where there are any.
        batch_size: Samples of all devices together.

    Raises:
        ValueError: If there are too few devices, or they cannot share a batch equally.
    """
    import keras

    by_host = list_devices()
    on_torch = keras.backend.backend() == "torch"
    most = 1 if on_torch else min(map(len, by_host))
    if limit is None:
        limit = max((number for number in range(1, most + 1) if batch_size % (number * len(by_host)) == 0), default=most)
    if not 1 <= limit <= most:
        remedy = (
            "PyTorch uses one here: set KERAS_BACKEND=jax or tensorflow for more."
            if on_torch and limit > 1
            else "Leave it out for as many as can be used."
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
    """Shares the batches of everything that is built from here on among devices; a single device, or none, ends that.

    Sums over a batch are then sums over all devices. TensorFlow differs where the network or the loss mixes samples: in batch
    normalisation and `--batch-dice` each device sees its own part only. Each device there also limits the norm of its own part of the
    gradient.
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
    """Counts the devices over which gradients are summed, since a penalty counts that often: 1 except for TensorFlow on several."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def list_devices() -> list[list[str]]:
    """Lists the names of the devices of each host, GPUs where there are any."""
    import keras

    backend = keras.backend.backend()
    if backend == "torch":
        torch = import_torch()
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
    """Sets the precision that the layers built from here on compute in, and returns its name. Weights stay float32.

    Args:
        precision: One of `PRECISIONS`; "auto" is bfloat16 on a GPU that has it (compute capability 8.0 or more), else float32.
    """
    import keras

    if precision == "auto":
        precision = "bfloat16" if has_gpu() and has_bfloat16() else "float32"
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    return precision


def import_torch() -> Any:
    """Imports PyTorch by name, because only its own backend needs it and a type checker need not find it."""
    return importlib.import_module("torch")


def has_gpu() -> bool:
    """Returns whether the backend sees a GPU."""
    import keras

    if keras.backend.backend() == "torch":
        return import_torch().cuda.is_available()
    return any(name.startswith(("gpu", "cuda")) for name in keras.distribution.list_devices())


def has_bfloat16() -> bool:
    """Returns whether the GPU computes in bfloat16."""
    import keras

    if keras.backend.backend() == "torch":
        # PyTorch also says yes where it would compute in float32 and round.
        return import_torch().cuda.get_device_capability() >= (8, 0)
    if keras.backend.backend() == "jax":
        import jax

        # A GPU of another maker has a name here.
        major = str(getattr(jax.devices()[0], "compute_capability", "")).partition(".")[0]
        return major.isdigit() and int(major) >= 8
    import tensorflow as tf

    device = tf.config.list_physical_devices("GPU")[0]
    return tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0)) >= (8, 0)


def describe_environment() -> dict[str, Any]:
    """Describes versions, backend, devices and git commit, for `run.json` and the bundle."""
    from importlib.metadata import PackageNotFoundError, version

    import keras

    backend = keras.backend.backend()
    modules = [importlib.import_module(name) for name in dict.fromkeys(("keras", "tensorflow", "numpy", "nibabel", backend))]
    versions = {module.__name__: module.__version__ for module in modules}
    # We ask for the version without importing OpenVINO, which takes a second. Not every platform has OpenVINO.
    with contextlib.suppress(PackageNotFoundError):
        versions["openvino"] = version("openvino")
    git, root = "", Path(__file__).parents[1]
    # An installed package may lie within somebody's repository, whose commit says nothing about it.
    if (root / ".git").exists():
        with contextlib.suppress(OSError):  # git may not be installed
            command = ["git", "rev-parse", "HEAD"]
            git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "backend": backend,
        "devices": [name for names in list_devices() for name in names],
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "git_commit": git or None,
    }
