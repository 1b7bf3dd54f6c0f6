"""Shared fixtures: tiny files in every format, phantoms, and the real scans where they are there."""

import os
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from helpers import make_jax_environment

from modules import devices

if os.environ.get("KERAS_BACKEND") == "jax":
    # JAX reads them when it is imported.
    os.environ.update(make_jax_environment())
# This comes before any test uses TensorFlow, because its threads cannot be set later.
devices.import_keras()

# Files whose tests take longest, the longest first. A worker must not begin one of them when the other worker is nearly done.
LONG = (
    *("test_resume", "test_devices", "test_backends", "test_commands", "test_predict", "test_networks", "test_volumes", "test_utils"),
    *("test_convert", "test_engines", "test_guides", "test_training_parts"),
)
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    """Begins with the tests that take longest; without it, pytest-xdist begins with the files that have most tests."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Escapes captured file names that are not UTF-8: pytest-xdist cannot send them to the process that reports."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode("utf-8")) for name, text in report.sections]
    return report


@pytest.fixture
def write_nifti(tmp_path):
    """Writes an array as NIfTI below `tmp_path` and returns its path."""

    def write(name, array, affine=None, zooms=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
        if zooms:
            image.header.set_zooms(zooms)
        nib.save(image, path)
        return path

    return write


@pytest.fixture
def write_picture(tmp_path):
    """Writes an array as PNG or TIFF below `tmp_path`, channels in RGB order, and returns its path."""

    def write(name, array):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), array if array.ndim == 2 else array[..., ::-1])
        return path

    return write


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """A folder with a tiny phantom of each data set in its layout; read only."""
    from dataset import DATASETS
    from modules import phantom

    root = tmp_path_factory.mktemp("phantoms")
    phantom.write_hipmri(root / "hipmri", subjects=(3, 1, 2), slices=4)
    phantom.write_oasis(root / "oasis", subjects=(2, 1, 1), slices=4)
    phantom.write_lgg(root / "lgg", subjects=4, slices=4)
    phantom.write_hipmri3d(root / "hipmri3d", subjects=5, shape=(32, 32, 16))
    phantom.write_ibsr18(root / "ibsr18", subjects=(3, 1, 1), shape=(32, 24, 32))
    phantom.write_msd(root / "msd", subjects=4, shape=(24, 32, 24))
    phantom.write_folder(root / "folder", subjects=4, shape=(24, 32, 24))
    # A data set that is added to the catalogue is tested with the rest.
    for name, spec in DATASETS.items():
        if not (root / name).is_dir():
            spec.write_phantom(root / name)
    return root


class _Runs(dict):
    """Maps the name of a data set to the folder of its tiny run, which is trained when a test first asks for it."""

    def __init__(self, folder, phantoms):
        super().__init__()
        self._folder, self._phantoms = folder, phantoms

    def __missing__(self, name):
        from command_helpers import train_tiny

        self[name] = train_tiny(self._folder, self._phantoms / name)
        return self[name]


@pytest.fixture(scope="session")
def runs(phantoms, tmp_path_factory):
    """Tiny runs by the names of their data sets; read only."""
    return _Runs(tmp_path_factory.mktemp("runs"), phantoms)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real scans; the test is skipped where it is not there."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real scans are not there: ../shared/data")
    return REAL_DATA
