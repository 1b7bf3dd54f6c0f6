"""Models without a training that find known classes: bands of brightness, and regions that lie within one another."""

import keras
import numpy as np

from modules.data.case import LabelRule
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.data.regions import Region
from modules.networks import with_head
from modules.predict.bundle import ModelBundle

# An oblique grid: columns of right angles, none along an axis.
TURN = np.array([[0.8, -0.36, 0.48], [0.6, 0.48, -0.64], [0.0, 0.8, 0.6]])
SPACING, ORIGIN = (0.7, 1.3, 2.1), (-31.5, 12.25, 107.0)
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN * SPACING
AFFINE[:3, 3] = ORIGIN
CORNERS = np.array([[0, 0, 0, 1], [6, 5, 4, 1], [6, 0, 4, 1], [0, 5, 0, 1]]).T

CLASSES = ("background", "grey matter", 'the "core"')
VALUES = (0, 3, 170)


def save_bands(folder, dims=3, *, regions=False, classes=CLASSES, values=VALUES, source="ibsr18"):
    """Saves a bundle whose two classes are voxels above a third and above two thirds of a scan's range; returns its folder.

    As regions they lie within one another: the first holds the second.
    """
    image = keras.Input((*(8,) * dims, 1))
    kernel, bias = ((300, 300), (-100, -200)) if regions else ((0, 300, 600), (0, -100, -300))
    convolution = keras.layers.Conv2D if dims == 2 else keras.layers.Conv3D
    layer = convolution(len(kernel), 1)
    network = keras.Model(image, layer(image))
    layer.set_weights([np.reshape(np.float32(kernel), (*(1,) * dims, 1, -1)), np.float32(bias)])
    rule = LabelRule({value: index for index, value in enumerate(values)}, source=source)
    found = (Region((1, 2), 1), Region((2,), 2)) if regions else ()
    bundle = ModelBundle(
        with_head(network, regions=regions), Preprocessing(dims), Window((8,) * dims), classes, ("T1",), rule, regions=found,
        provenance={"run": "bands"},
    )  # fmt: skip
    bundle.save(folder)
    return folder


def find_bands(array):
    """The class indices that such a model finds in a scan."""
    scaled = (array - array.min()) / (array.max() - array.min())
    return (scaled > 1 / 3).astype(np.uint8) + (scaled > 2 / 3)


def draw_scan(shape=(7, 6, 5)):
    """A scan whose voxels lie well within a band: numbers around 0, 150 and 300."""
    rng = np.random.default_rng(3)
    scan = rng.integers(0, 3, shape) * 150 + rng.integers(0, 20, shape)
    scan.flat[:2] = 0, 330
    return scan.astype(np.int16)
