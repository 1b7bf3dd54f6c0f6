"""Folders of images and labels as people have them, for the tests of the data set `folder`."""

import cv2
import nibabel as nib
import numpy as np


def plant(root, *names):
    """Makes empty files below a folder, and returns the folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(path, array):
    """Writes an array in the format that the name says, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.lower().endswith((".png", ".tif", ".tiff")):
        # OpenCV chooses the format by a suffix in lower case, and mangles some names.
        path.write_bytes(cv2.imencode(path.suffix.lower(), array)[1].tobytes())
    else:
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def write_pairs(root, names, values=(0, 1), shape=(8, 6, 4), suffix=".nii.gz", images="images", labels="labels"):
    """Writes noise with labels that hold the values; returns the folder."""
    rng = np.random.default_rng(0)
    for name in names:
        write(root / images / f"{name}{suffix}", rng.integers(1, 200, shape).astype(np.uint8))
        label = np.resize(np.array(values, np.uint8), shape)
        write(root / labels / f"{name}{suffix}", label)
    return root
