"""Labels, predictions and their scores for the tests of scores and of their tables."""

import numpy as np
from scipy import ndimage

from modules.scoring import score_case

NAMES = ("background", "a", "b")


def score_arrays(label, prediction, names=NAMES, case="x", level="slice", spacing_mm=None, **options):
    """Scores nested lists or arrays as one case and returns one score for each class but the background."""
    return score_case(np.array(label), np.array(prediction), names, level=level, case=case, spacing_mm=spacing_mm, **options)


def draw_blobs(shape, seed, num_classes=3):
    """Draws a label and a prediction with several smooth blobs a class, some at the border. Most but not all voxels agree."""
    rng = np.random.default_rng(seed)
    fields = [[ndimage.gaussian_filter(rng.standard_normal(shape), 2.5) for _ in range(num_classes - 1)] for _ in range(2)]
    label, other = (np.stack([np.full(shape, 0.02), *of_classes]) for of_classes in fields)
    return label.argmax(axis=0).astype(np.uint8), (0.8 * label + 0.3 * other).argmax(axis=0).astype(np.uint8)
