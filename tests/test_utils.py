"""Settings, presets and flags, and how errors reach the user."""

import importlib.metadata
import importlib.util
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


def test_a_command_may_have_a_status_of_its_own():
    assert run_command("predict.py", lambda: 3) == 3


def test_a_defect_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command("train.py", lambda: 1 // 0)


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
for _ in range(4):
    network.train_on_batch(draws.random((8, 256, 128, 1), np.float32), draws.integers(0, 6, (8, 256, 128)))
print(hash_weights(network))
"""


def test_two_processes_train_to_the_same_bits_at_full_size():
    # Small networks are repeatable whatever the threads do; only one of real size shows whether a training is.
    root = Path(utils.__file__).parent
    runs = [subprocess.run([sys.executable, "-c", STEPS], cwd=root, capture_output=True, text=True, check=True) for _ in range(2)]
    assert len(runs[0].stdout.strip()) == 64
    assert runs[0].stdout == runs[1].stdout
