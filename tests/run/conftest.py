"""A finished run's folder, and an environment without a tracking server."""

import cv2
import numpy as np
import pytest


@pytest.fixture
def _environment(monkeypatch, tmp_path):
    """Names no tracking server, and works in a folder of its own."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    # Files left in the current folder must not land in the project.
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path):
    """A run's folder with what a finished run has in it."""
    folder = tmp_path / "runs" / "first"
    (folder / "bundle").mkdir(parents=True)
    (folder / "figures").mkdir()
    (folder / "bundle" / "bundle.json").write_text("{}")
    (folder / "summary.json").write_text("{}")
    (folder / "scores.csv").write_text("case\n")
    cv2.imwrite(str(folder / "figures" / "loss.png"), np.full((20, 30, 3), 200, np.uint8))
    return folder
