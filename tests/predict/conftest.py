"""Runs with a bundle that OpenVINO computes too, and a slice to predict."""

import shutil
from pathlib import Path

import pytest
from engine_helpers import save_bundle

from modules.predict import engines
from modules.predict.convert import convert_bundle


@pytest.fixture
def on_cpu(monkeypatch):
    """Makes the machine one without a GPU and with OpenVINO."""
    monkeypatch.setattr(engines, "has_nvidia", lambda: False)
    monkeypatch.setattr(engines, "has_openvino", lambda: True)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run's folder with a converted bundle; read only."""
    pytest.importorskip("openvino")
    run = tmp_path_factory.mktemp("runs") / "run"
    convert_bundle(save_bundle(run, norm="instance"), run)
    return run


@pytest.fixture(scope="session")
def slice_path(phantoms):
    """One slice of the phantom, larger than what the model sees."""
    return sorted((phantoms / "hipmri" / "keras_slices_test").iterdir())[0]


@pytest.fixture
def own_run(run, tmp_path):
    """A copy of `run` to spoil."""
    return Path(shutil.copytree(run, tmp_path / "own"))
