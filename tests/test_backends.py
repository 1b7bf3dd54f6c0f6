"""Networks, losses and metrics under each other installed Keras backend, in a process of its own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


# The folders are apart, so that two workers can share them.
@pytest.mark.parametrize(
    "paths",
    [["tests/networks"], ["tests/model", "tests/predict/test_shapes.py", "tests/test_step_counts.py"]],
    ids=["networks", "model"],
)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_tests_pass(backend, paths):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
