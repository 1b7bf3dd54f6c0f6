"""Settings, presets and flags, and how errors reach the user."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import utils
from modules import devices
from utils import run_command


def test_environment_is_described_without_git_and_openvino(monkeypatch, tmp_path):
    assert ("openvino" in devices.describe_environment()["versions"]) == bool(importlib.util.find_spec("openvino"))

    def find(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", find)
    monkeypatch.setenv("PATH", str(tmp_path))
    described = devices.describe_environment()
    assert described["git_commit"] is None
    assert described["versions"]["keras"]
    assert "openvino" not in described["versions"]
    assert described["devices"]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("a\n b"), 2), (FileNotFoundError("c"), 2), (KeyboardInterrupt(), 130), (None, 0)]
)
def test_an_error_is_one_line(capsys, error, status):
    def command():
        if error:
            raise error

    assert run_command("train.py", command) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (status != 0)
    if status == 2:
        assert lines[0] == f"train.py: error: {' '.join(str(error).split())}"


def test_an_operation_that_does_not_repeat_is_one_line(capsys):
    def command():
        raise RuntimeError(
            "max_pool3d_with_indices_backward_cuda does not have a deterministic implementation, but you set ... You can turn off."
        )

    assert run_command("train.py", command) == 2
    assert capsys.readouterr().err.startswith("train.py: error: Expected operations that repeat bit for bit. Received: max_pool3d")


def test_an_error_of_the_operating_system_names_its_path(capsys):
    assert run_command("train.py", lambda: Path(__file__).joinpath("a.txt").touch()) == 2
    assert capsys.readouterr().err == (
        f"train.py: error: Expected to use {__file__}/a.txt. Received: Not a directory. Check the path and its permissions.\n"
    )


def test_a_command_may_have_a_status_of_its_own():
    assert run_command("predict.py", lambda: 3) == 3


def test_a_defect_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command("train.py", lambda: 1 // 0)


class ResourceExhaustedError(Exception):
    """Stands for TensorFlow's, which is known by its name alone."""


@pytest.mark.parametrize(
    ("error", "received"),
    [
        (MemoryError(), "none left"),
        (MemoryError("Unable to allocate\n 9 TiB"), "Unable to allocate 9 TiB"),
        (ResourceExhaustedError("OOM"), "OOM"),
    ],
)
def test_a_lack_of_memory_is_one_line(capsys, error, received):
    def command():
        raise error

    assert run_command("train.py", command) == 2
    assert capsys.readouterr().err == (
        f"train.py: error: Expected enough memory. Received: {received}. Free some, or choose smaller scans, windows or batches.\n"
    )


# Logs and prints under the console that the test gives it.
TALK = """
import sys, utils
def command():
    utils.start_log()
    utils.log.info("Großhirn %s", chr(0xdce9))
    utils.log.info("more")
    open("done", "w").close()
    raise ValueError("nein: ß")
sys.exit(utils.run_command("train.py", command))
"""


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "utf-8"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=lambda environment: next(iter(environment)),
)
def test_any_console_takes_any_text(tmp_path, environment):
    root = Path(utils.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(root), **environment}
    (tmp_path / "talk.py").write_text(TALK, encoding="utf-8")
    done = subprocess.run([sys.executable, "talk.py"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"train.py: error: nein: ")
    assert b"Gro" in done.stdout
    assert done.stdout.endswith(b"more\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "> /dev/full", "| true"])
def test_a_console_that_is_gone_ends_no_command(tmp_path, closed):
    root = Path(utils.__file__).parent
    (tmp_path / "talk.py").write_text(TALK, encoding="utf-8")
    # The reader of the pipe ends before the first line arrives.
    command = f"set -o pipefail; (sleep 0.1; exec {sys.executable} talk.py) {closed}"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert (tmp_path / "done").is_file()
    assert done.stderr == ("" if "2>" in closed else "train.py: error: nein: ß\n")


# Uses Keras and Matplotlib under a user's own settings.
SURROUNDINGS = """
from modules import devices
devices.import_keras()
import keras, numpy as np
from modules import reports
config = keras.config
print(config.backend(), config.image_data_format(), config.floatx(), config.epsilon(), config.max_epochs(), config.dtype_policy().name)
reports.draw_overlay("a.png", np.arange(64.0).reshape(8, 8, 1), np.eye(8, dtype=int), ("background", "one"), title="a")
"""


@pytest.mark.parametrize("extra", [{}, {"floatx": "float8", "nnx_enabled": True}], ids=["known", "unknown"])
def test_settings_of_keras_and_matplotlib_in_the_users_home_change_nothing(tmp_path, extra):
    root = Path(utils.__file__).parent
    (tmp_path / "plain").mkdir()
    (tmp_path / "own").mkdir()
    keras = {"floatx": "float16", "epsilon": 0.1, "backend": "numpy", "image_data_format": "channels_first"}
    (tmp_path / "own" / "keras.json").write_text(json.dumps(keras | extra))
    # Matplotlib looks into the working folder first, and refuses what is not UTF-8.
    if extra:
        (tmp_path / "own" / "matplotlibrc").write_bytes(b"font.family: Gr\xfc\n")
    (tmp_path / "own" / "rc").mkdir()
    (tmp_path / "own" / "rc" / "matplotlibrc").write_text("font.size: 30\nsavefig.facecolor: red\ntext.color: green\nfont.family: serif\n")
    own = {
        "KERAS_HOME": str(tmp_path / "own"),
        "MATPLOTLIBRC": str(tmp_path / "own" / "rc"),
        "MPLBACKEND": "module://not_there",
        "KERAS_MAX_EPOCHS": "1",
    }
    texts = {}
    for name, environment in (("plain", {}), ("own", own)):
        environment = {**os.environ, "PYTHONPATH": str(root), **environment}
        environment.pop("KERAS_BACKEND", None)
        done = subprocess.run(
            [sys.executable, "-c", SURROUNDINGS], cwd=tmp_path / name, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        texts[name] = done.stdout
    assert texts["own"] == texts["plain"] == "tensorflow channels_last float32 1e-07 None float32\n"
    assert (tmp_path / "own" / "a.png").read_bytes() == (tmp_path / "plain" / "a.png").read_bytes()


STEPS = """
from modules import devices
devices.start_backend(42)
import keras, numpy as np
from modules import networks
from modules.model.losses import SegmentationLoss
from modules.run.proof import hash_weights
network = networks.build("unet2d", (256, 128, 1), 6, base_filters=16)
network.compile(optimizer="adam", loss=SegmentationLoss("dice_ce"))
draws = np.random.default_rng(0)
for _ in range(2):
    network.train_on_batch(draws.random((8, 256, 128, 1), np.float32), draws.integers(0, 6, (8, 256, 128)))
print(hash_weights(network))
"""


def test_two_processes_train_to_the_same_bits_at_full_size():
    # Small networks repeat in any order of the threads; only one of real size tests the training.
    root = Path(utils.__file__).parent
    processes = [subprocess.Popen([sys.executable, "-c", STEPS], cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert len(outputs[0].strip()) == 64
    assert outputs[0] == outputs[1]
