"""Draws the pictures of docs/scores_in_pictures.md, from shapes made by formula: `python docs/pictures/draw_scores.py`.

Every number in them is what the program itself computes for that shape.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parents[1]))

import modules.reports  # noqa: E402, F401  (Matplotlib with its shipped settings)
from modules.scoring import Score, score_case  # noqa: E402

# Okabe and Ito's colours, which the colour-blind tell apart. They differ in lightness too.
BOTH, MISSED, FALSE = "#009E73", "#56B4E9", "#D55E00"
SIZE = 64


@dataclass(frozen=True)
class Example:
    """A label and a prediction, `(*S)` of 0 and 1, and what there is to see in them."""

    title: str
    label: np.ndarray
    prediction: np.ndarray

    def score(self, tolerance_mm: float = 1.0) -> Score:
        """Scores the prediction; a voxel is 1 mm long."""
        names = ("background", "organ")
        level, spacing_mm = ("slice", "volume")[self.label.ndim - 2], (1.0,) * self.label.ndim
        (score,) = score_case(
            self.label, self.prediction, names, level=level, case="a", spacing_mm=spacing_mm, tolerance_mm=(tolerance_mm,)
        )
        return score


def draw_disc(row: float, column: float, radius: float, size: int = SIZE) -> np.ndarray:
    """Draws a disc as a mask `(size, size)` of 0 and 1."""
    rows, columns = np.mgrid[:size, :size]
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius * (radius + 1)).astype(np.uint8)


def list_overlaps() -> list[Example]:
    """Lists predictions of one disc: a little too large, shifted, half of it, and at another place."""
    label = draw_disc(32, 32, 16)
    half = label.copy()
    half[:, 32:] = 0
    return [
        Example("1 mm too large", label, draw_disc(32, 32, 17)),
        Example("shifted by 5 mm", label, draw_disc(32, 37, 16)),
        Example("one half", label, half),
        Example("elsewhere", draw_disc(32, 16, 11), draw_disc(32, 47, 11)),
    ]


def list_sizes() -> list[Example]:
    """Lists discs of several sizes, each drawn 1 mm too large."""
    return [Example(f"radius {radius} mm", draw_disc(32, 32, radius), draw_disc(32, 32, radius + 1)) for radius in (24, 12, 6, 2)]


def list_distances() -> list[Example]:
    """Lists errors of a border: everywhere a little, one bump, one speck far away."""
    label = draw_disc(32, 28, 15)
    bump = label | draw_disc(32, 43, 5)
    speck = label.copy()
    speck[31:33, 61:63] = 1
    return [Example("1 mm everywhere", label, draw_disc(32, 28, 16)), Example("one bump", label, bump), Example("one speck", label, speck)]


def draw_lesions() -> Example:
    """Draws four lesions in one slice of a volume: three are found, one is missed, and one is false."""
    discs = [draw_disc(18, 18, 9), draw_disc(20, 46, 6), draw_disc(46, 18, 5), draw_disc(45, 44, 4)]
    found = [draw_disc(19, 20, 9), draw_disc(20, 46, 5), draw_disc(57, 57, 3), draw_disc(45, 45, 4)]
    label, prediction = (np.clip(sum(one), 0, 1).astype(np.uint8) for one in (discs, found))
    return Example("lesions", label[..., np.newaxis], prediction[..., np.newaxis])


def _paint(axes, example: Example) -> None:
    """Paints what both have, what is missed and what is false, and the border of the label."""
    from matplotlib.colors import to_rgb

    label, prediction = (mask.reshape(SIZE, SIZE).astype(bool) for mask in (example.label, example.prediction))
    picture = np.ones((SIZE, SIZE, 3))
    for mask, colour in ((label & prediction, BOTH), (label & ~prediction, MISSED), (~label & prediction, FALSE)):
        picture[mask] = to_rgb(colour)
    axes.imshow(picture, interpolation="nearest")
    # Each voxel has 8 points a side, so that the border follows its edges.
    fine = np.kron(label, np.ones((8, 8)))
    places = (np.arange(8 * SIZE) + 0.5) / 8 - 0.5
    axes.contour(places, places, fine, levels=[0.5], colors="black", linewidths=1.2)
    axes.set(xticks=[], yticks=[])
    axes.set_title(example.title, fontsize=11)


def _add_legend(figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    parts = [Patch(color=colour, label=text) for colour, text in ((BOTH, "in both"), (MISSED, "missed"), (FALSE, "false"))]
    parts.append(Line2D([], [], color="black", linewidth=1.2, label="border of the label"))
    figure.legend(handles=parts, loc="lower center", ncols=len(parts), fontsize=10, frameon=False)


def _draw_row(examples: list[Example], describe, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(2.6 * len(examples), 5.2), 3.9), dpi=110)
    for axes, example in zip(np.atleast_1d(figure.subplots(1, len(examples))), examples, strict=True):
        _paint(axes, example)
        axes.set_xlabel(describe(example.score()), fontsize=10)
    figure.subplots_adjust(left=0.02, right=0.98, top=0.92, bottom=0.28, wspace=0.08)
    _add_legend(figure)
    figure.savefig(path)


def _draw_tolerance(path: Path) -> None:
    """Draws the surface Dice of the three errors of a border against the tolerance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.9), dpi=110, layout="constrained")
    axes = figure.subplots()
    tolerances = np.arange(0.05, 6.05, 0.05)
    for example, colour, style in zip(list_distances(), (BOTH, FALSE, MISSED), ("-", "--", "-."), strict=True):
        axes.plot(tolerances, [example.score(tolerance).nsd for tolerance in tolerances], style, color=colour, label=example.title, lw=2)
    axes.set(xlabel="tolerance in mm", ylabel="normalised surface Dice (nsd)", ylim=(0, 1.03), xlim=(0, 6))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path)


def main() -> None:
    """Draws all pictures beside this file."""
    _draw_row(list_overlaps(), lambda score: f"dice {score.dice:.2f}\niou {score.iou:.2f}", FOLDER / "overlap.png")
    _draw_row(list_sizes(), lambda score: f"dice {score.dice:.2f}\nhd95 {score.hd95_mm:.1f} mm", FOLDER / "size.png")
    _draw_row(
        list_distances(),
        lambda score: f"dice {score.dice:.3f}\nhd {score.hd_mm:.1f} mm, hd95 {score.hd95_mm:.1f} mm\nassd {score.assd_mm:.2f} mm",
        FOLDER / "distances.png",
    )
    _draw_tolerance(FOLDER / "tolerance.png")
    _draw_row(
        [draw_lesions()],
        lambda score: (
            f"{score.found_lesions:.0f} of {score.lesions:.0f} found: sensitivity {score.lesion_sensitivity:.2f}\n"
            f"{score.false_lesions:.0f} false, dice of found {score.lesion_dice:.2f}\ndice of all voxels {score.dice:.2f}"
        ),
        FOLDER / "lesions.png",
    )


if __name__ == "__main__":
    main()
