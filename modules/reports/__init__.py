"""Pictures of a run: training curves, and predictions drawn over their scans.

Everything is drawn with matplotlib's object-oriented interface and the Agg canvas, never `pyplot`. There is no global state, so
several threads may draw at once, and no display is needed. Files are written under a temporary name and then renamed, so that a
reader of the run folder never meets half a picture.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modules.data.colours import PALETTE
from modules.reports import shipped_style  # noqa: F401  (before all that draw)
from modules.reports.candidates import draw_candidates
from modules.reports.curves import find_kept_epoch, plot_history
from modules.reports.folds import draw_folds
from modules.reports.montage import draw_montage
from modules.reports.painting import DIFFERENCE_COLOURS, DIFFERENCE_NAMES, difference_map
from modules.reports.pairs import draw_pairs
from modules.reports.reliability import draw_reliability
from modules.reports.sheet import Checked, draw_augmentation, draw_cases, draw_checked
from modules.reports.slices import draw_slice_comparison, draw_slice_overlay
from modules.reports.viewer import cut_viewer, write_viewer
from modules.reports.volumes import draw_volume_comparison, draw_volume_overlay

__all__ = [
    "DIFFERENCE_COLOURS",
    "DIFFERENCE_NAMES",
    "PALETTE",
    "Checked",
    "cut_viewer",
    "difference_map",
    "draw_augmentation",
    "draw_candidates",
    "draw_cases",
    "draw_checked",
    "draw_comparison",
    "draw_folds",
    "draw_montage",
    "draw_overlay",
    "draw_pairs",
    "draw_reliability",
    "find_kept_epoch",
    "plot_history",
    "write_viewer",
]


def draw_comparison(
    path: Path,
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str,
    scores: dict[str, float] | None = None,
    spacing_mm: Sequence[float] | None = None,
    affine: np.ndarray | None = None,
) -> Path:
    """Draws image, truth, prediction and their difference side by side.

    A slice is drawn as it is stored. A volume is drawn in three planes through its structures. Each plane lies at the centre of mass
    of the truth, or of the prediction where the truth is empty. Every class weighs the same in it.

    With an affine these planes are axial, coronal and sagittal in the radiological convention: the patient's right is on the viewer's
    left. The order of the stored axes does not matter. An oblique scan is turned to the closest of these planes, not resampled.

    Args:
        path: PNG to write; its folder is made if missing.
        image: Intensities (*S) or (*S, C), of any range; S is (rows, columns) or (x, y, z). Three channels are shown as red, green
            and blue. Of any other number the first is shown. The window is the 1st to 99th percentile of the voxels that are not 0,
            in the slice or in the whole volume.
        label: Integer class map (*S).
        prediction: Integer class map (*S).
        class_names: K names, background first.
        title: Text above the panels, wrapped to their width.
        scores: Dice in [0, 1] by class name, for the legend. NaN is shown as "absent".
        spacing_mm: Size of a voxel along each axis of S. The default of a volume is the affine's. Without one, voxels are as long as
            wide.
        affine: (4, 4), voxel indices of a volume to millimetres in RAS+. Without it a volume's axes are shown as stored and carry no
            letters. Slices do not need it.

    Returns:
        `path`.

    Raises:
        ValueError: Shapes, types, class values, `scores`, `spacing_mm` or `affine` do not fit one another.
    """
    path = Path(path)
    if _is_volume("label", label):
        return draw_volume_comparison(path, image, label, prediction, class_names, title, scores, spacing_mm, affine)
    return draw_slice_comparison(path, image, label, prediction, class_names, title, scores, spacing_mm)


def draw_overlay(
    path: Path,
    image: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str,
    spacing_mm: Sequence[float] | None = None,
    affine: np.ndarray | None = None,
) -> Path:
    """Draws an image beside the same image with its prediction. The legend gives the size of each class found.

    Arguments, errors and the returned path are those of `draw_comparison`.
    """
    path = Path(path)
    if _is_volume("prediction", prediction):
        return draw_volume_overlay(path, image, prediction, class_names, title, spacing_mm, affine)
    return draw_slice_overlay(path, image, prediction, class_names, title, spacing_mm)


def _is_volume(name: str, classes: np.ndarray) -> bool:
    shape = np.shape(classes)
    if len(shape) not in (2, 3):
        raise ValueError(f"Expected `{name}` of a slice (rows, columns) or a volume (x, y, z). Received: {shape}.")
    return len(shape) == 3
