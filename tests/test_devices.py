"""Several devices and several hosts: they train as one does, and one of them writes the files."""

import csv
import os
import platform
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import make_jax_environment

import train
from modules import devices, phantom

ROOT = Path(__file__).parents[1]
# Plain SGD, because Adam would scale up gradients of nearly zero with their rounding errors.
TINY = ["--dataset", "oasis", "--epochs", "6", "--base-filters", "2", "--levels", "1",
        "--dropout", "0", "--batch-size", "4", "--shape", "64", "64",
        "--optimizer", "sgd", "--learning-rate", "0.001", "--patience", "0"]  # fmt: skip
JAX = {
    "KERAS_BACKEND": "jax",
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    **make_jax_environment(),
}
TWO_JAX_DEVICES = JAX | {"XLA_FLAGS": f"{JAX.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()}
TENSORFLOW = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}

ONE_AND_TWO_DEVICES = """
import sys
if sys.argv[1] == "tensorflow":
    import tensorflow as tf
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import train
assert train.main([*sys.argv[2:], "--name", "one", "--devices", "1"]) == 0
assert train.main([*sys.argv[2:], "--name", "two"]) == 0
"""

# Only the second host is asked to stop, after the first epoch; then both resume.
TWO_HOSTS = """
import os, signal, sys, threading, time
from pathlib import Path
run, host, coordinator = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
hosts = ["--coordinator", coordinator, "--hosts", "2", "--host", host]
def stop():
    while not (run / "history.csv").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
if host == "1":
    threading.Thread(target=stop, daemon=True).start()
import train
assert train.main([*sys.argv[4:], "--name", run.name, *hosts]) == 130
assert train.main(["--resume", str(run), *hosts]) == 0
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN is for x86 here")
def test_tensorflow_computes_with_onednn_on_every_cpu():
    # TensorFlow has no public function for this. By default it uses oneDNN only on CPUs with AVX-512 VNNI or AMX.
    from tensorflow.python.util import _pywrap_util_port as port

    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    assert port.IsMklEnabled()


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Writes slices that fill no whole number of batches, neither in training nor in validation."""
    root = tmp_path_factory.mktemp("slices") / "oasis"
    phantom.write_oasis(root, subjects=(2, 1, 1), slices=5)
    return root


def _start(folder, environment, program, *arguments):
    """Starts a program with its output in a file of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    with (folder / "output.txt").open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=folder, env={**own, **environment, "PYTHONPATH": str(ROOT)}, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip


def _finish(processes, folders, timeout=900):
    """Waits for all processes and returns their output; no process outlives this."""
    try:
        for process in processes:
            process.wait(timeout)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    outputs = [(folder / "output.txt").read_text() for folder in folders]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(output[-3000:] for output in outputs)
    return outputs


def _find_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _read(run):
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def _check_same(run, other, epochs=6):
    """Checks that losses agree to five digits. Scores may differ by a few voxels whose classes have nearly equal logits."""
    rows, others = _read(run), _read(other)
    assert len(rows) == len(others) == epochs
    for row, twin in zip(rows, others, strict=True):
        for name in row.keys() - {"seconds", "images_per_s"}:
            tolerance = {"rtol": 1e-5} if "loss" in name or name in ("epoch", "learning_rate") else {"atol": 2e-3}
            np.testing.assert_allclose(float(row[name]), float(twin[name]), **{"rtol": 0, **tolerance}, err_msg=name)
    assert rows[0]["loss"] != rows[-1]["loss"]


@pytest.fixture(scope="module")
def jax_runs(slices, tmp_path_factory):
    """Trains the runs "one" on one device and "two" on two, under JAX, with batch normalisation and augmentation."""
    if find_spec("jax") is None:
        pytest.skip("jax is not installed")
    folder = tmp_path_factory.mktemp("jax")
    flags = [*TINY, "--data", slices, "--augment", "light"]
    _finish([_start(folder, TWO_JAX_DEVICES, ONE_AND_TWO_DEVICES, "jax", *flags)], [folder])
    return folder / "runs"


def test_two_devices_train_like_one_under_jax(jax_runs):
    _check_same(jax_runs / "one", jax_runs / "two")
    assert "cpu:0, cpu:1" in (jax_runs / "two" / "log.txt").read_text()


def test_two_hosts_train_like_one_and_stop_together(jax_runs, slices, tmp_path):
    coordinator = f"127.0.0.1:{_find_port()}"
    run, places = tmp_path / "host0" / "runs" / "both", [tmp_path / f"host{host}" for host in range(2)]
    flags = [*TINY, "--data", slices, "--augment", "light"]
    # A host need not compile again what it compiled before it stopped.
    environment = JAX | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    started = [_start(place, environment, TWO_HOSTS, run, host, coordinator, *flags) for host, place in enumerate(places)]
    first, second = _finish(started, places)
    _check_same(jax_runs / "one", run)
    assert first.count("stopped; go on with") == 1
    assert (run / "summary.json").is_file()
    assert [path.name for path in run.parent.iterdir()] == ["both"]
    # The second host says only that it was interrupted, and leaves nothing but the cases that it decoded.
    lines = [line for line in second.splitlines() if line and not line.startswith("[Gloo]")]
    assert lines == ["train.py: interrupted"], second
    assert {path.name for path in places[1].iterdir()} == {"cache", "output.txt"}


def test_tasks_of_slurm_find_one_another(tmp_path):
    pytest.importorskip("jax")
    program = """
from modules import devices
devices.start_hosts()
host, hosts = devices.find_host()
print("asked", host, hosts, devices.any_host(False), devices.any_host(host == 1))
devices.on_main(lambda: print("once"))
"""
    step = JAX | {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    step |= {"JAX_COORDINATOR_PORT": str(_find_port())}
    places = [tmp_path / f"task{task}" for task in range(2)]
    tasks = [{"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(2)]
    outputs = _finish([_start(place, step | task, program) for place, task in zip(places, tasks, strict=True)], places)
    assert "asked 0 2 False True" in outputs[0]
    assert "asked 1 2 False True" in outputs[1]
    assert ["once" in output for output in outputs] == [True, False]


def test_two_devices_train_like_one_under_tensorflow(slices, tmp_path):
    # The penalty is not part of the reported loss, but its effect on the weights shows in the next epochs.
    flags = [*TINY, "--data", slices, "--epochs", "3", "--norm", "instance", "--weight-decay", "1", "--no-batch-dice"]
    (output,) = _finish([_start(tmp_path, TENSORFLOW, ONE_AND_TWO_DEVICES, "tensorflow", *flags)], [tmp_path])
    _check_same(tmp_path / "runs" / "one", tmp_path / "runs" / "two", epochs=3)
    assert "2 devices: batch normalisation" in output


def test_a_seed_decides_the_first_weights():
    def draw(seed):
        devices.start_backend(seed)
        return keras.ops.convert_to_numpy(keras.initializers.GlorotUniform()((3, 4)))

    first = draw(7)
    np.testing.assert_array_equal(draw(7), first)
    assert not np.array_equal(draw(8), first)


def test_hosts_need_jax(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(ValueError, match="Expected KERAS_BACKEND=jax for several hosts. Received: tensorflow. Set it"):
        devices.start_hosts("node1:1234", 2, 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ValueError, match="Expected KERAS_BACKEND=jax for several hosts"):
        devices.start_hosts()
    devices.start_hosts(hosts=1)
    assert devices.find_host() == (0, 1)
    assert devices.is_main()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("node1:1234", 2, None), "Expected --coordinator, --hosts and --host together. Received: .*None"),
        (("node1:1234", 2, 2), "Expected --host from 0 to below --hosts, 2. Received: 2"),
        (("node1", 2, 0), "Expected --coordinator HOST:PORT of host 0. Received: node1"),
    ],
)
def test_incomplete_and_wrong_hosts_are_refused(given, text):
    with pytest.raises(ValueError, match=text):
        devices.start_hosts(*given)


def test_devices_that_cannot_share_a_batch_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(devices, "list_devices", lambda: [["gpu:0", "gpu:1", "gpu:2"], ["gpu:3", "gpu:4"]])
    assert devices.choose_devices(None, 8) == ["gpu:0", "gpu:1", "gpu:3", "gpu:4"]
    assert devices.choose_devices(1, 2) == ["gpu:0", "gpu:3"]
    assert devices.choose_devices(None, 6) == ["gpu:0", "gpu:3"]
    for limit, batch_size in ((2, 6), (None, 7)):
        with pytest.raises(ValueError, match=f"Expected a `batch_size` that 4 devices can share equally. Received: {batch_size}. Choose"):
            devices.choose_devices(limit, batch_size)
    for limit in (0, 3):
        with pytest.raises(ValueError, match=f"Expected --devices from 1 to 2. Received: {limit}. Leave it out for as many"):
            devices.choose_devices(limit, 12)


def test_torch_uses_one_device(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    monkeypatch.setattr(devices, "list_devices", lambda: [["first", "second"]])
    assert devices.choose_devices(None, 3) == ["first"]
    with pytest.raises(ValueError, match="Expected --devices from 1 to 1. Received: 2. PyTorch uses one here"):
        devices.choose_devices(2, 4)


def test_hosts_agree_once_in_so_many_calls(monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "find_host", lambda: (0, 2))
    monkeypatch.setattr(devices, "any_host", lambda flag: asked.append(flag) or len(asked) == 2)
    ask = devices.agree(lambda: False)
    answers = [ask() for _ in range(3 * devices.AGREE_STEPS)]
    # The second question shows the other host's flag; after that no host asks any more.
    assert answers == [False] * (2 * devices.AGREE_STEPS - 1) + [True] * (devices.AGREE_STEPS + 1)
    assert asked == [False, False]


def test_a_failure_of_the_main_host_ends_the_others(monkeypatch):
    def fail():
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        devices.on_main(fail)
    monkeypatch.setattr(devices, "find_host", lambda: (1, 2))
    monkeypatch.setattr(devices, "any_host", lambda flag: True)
    with pytest.raises(ValueError, match="Expected host 0 to go on. Received: an error there"):
        devices.on_main(fail)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("nonsense", r"Expected KERAS_BACKEND in \('tensorflow', 'jax', 'torch'\). Received: 'nonsense'"),
        ("torch", "Install torch, or leave"),
    ],
)
def test_a_backend_that_is_unknown_or_not_installed_is_refused(monkeypatch, capsys, backend, message):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        devices.import_keras()
    # A training says so before it reads any scan.
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setattr(train, "load", lambda settings: pytest.fail("it read data"))
    assert train.main(["--dataset", "oasis"]) == 2
    assert message.replace("\\", "") in capsys.readouterr().err


@pytest.mark.parametrize(("backend", "capability", "has"), [
    ("torch", (7, 5), False), ("torch", (8, 0), True), ("torch", (12, 0), True),
    ("jax", "7.5", False), ("jax", "10.0", True), ("jax", "gfx90a", False),
])  # fmt: skip
def test_bfloat16_is_that_of_the_gpu_and_not_an_emulation(backend, capability, has, monkeypatch):
    device = SimpleNamespace(compute_capability=capability)
    cuda = SimpleNamespace(get_device_capability=lambda: capability, is_bf16_supported=lambda: True)
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(devices=lambda: [device]))
    monkeypatch.setattr(devices, "import_torch", lambda: SimpleNamespace(cuda=cuda))
    assert devices.has_bfloat16() == has


def test_a_gpu_that_the_backend_does_not_find_is_told(monkeypatch, caplog):
    monkeypatch.setattr(devices, "has_nvidia", lambda: True)
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    devices.start_backend(1)
    assert caplog.messages[0].startswith(f"an NVIDIA GPU is here, but {keras.backend.backend()} finds none and computes on the CPU")
