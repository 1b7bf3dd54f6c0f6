"""Helpers that read pictures for their tests."""

from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
from matplotlib.colors import to_rgb

CLASSES = ("background", "bladder", "rectum", "prostate")
NAN = float("nan")


def read_png(path: Path) -> np.ndarray:
    """Decodes a PNG to RGB (rows, columns, 3)."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture[..., ::-1].astype(np.int16)


def find_colour(picture: np.ndarray, colour: str) -> np.ndarray:
    """Mask (rows, columns) of the pixels of exactly this colour."""
    return (np.abs(picture - np.rint(255 * np.array(to_rgb(colour))).astype(np.int16)) <= 1).all(axis=-1)


def store(volume: dict, codes: str) -> dict:
    """Stores the volume with its axes in another order, as nibabel does."""
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    stored = {name: nib.Nifti1Image(volume[name], volume["affine"]).as_reoriented(turn) for name in volume if name != "affine"}
    assert nib.aff2axcodes(stored["image"].affine) == tuple(codes)
    return {name: np.asarray(one.dataobj) for name, one in stored.items()} | {"affine": stored["image"].affine}
