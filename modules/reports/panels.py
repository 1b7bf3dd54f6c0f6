"""Pages of captioned panels above their legends, laid out in pixels, and the writing of any figure."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import IdentityTransform

from modules.data.files import replace_file

DPI = 110
INK = "#222222"
TITLE_POINTS, TEXT_POINTS = 11.5, 9.5
MARGIN, GAP = 14, 8  # pixels
_LINE, _SWATCH = 20, 12  # pixels
_NARROWEST_SLOT = 200  # pixels; the legend of the differences must fit below a narrow panel

Entry = tuple[str | None, str]  # colour of the swatch, or None for no swatch, and text
Legend = tuple[int, int, Sequence[Entry]]  # the columns it lies under, first to one past the last, and its entries


@dataclass(frozen=True)
class Panel:
    """Pixels, with the texts above and on them.

    Attributes:
        pixels: (rows, columns, 3) in [0, 255].
        caption: Text above the panel.
        note: Text in its upper left corner.
        letters: Letters at its left, right, upper and lower edge; None where they are not known.
        bar: Length in pixels of a scale bar in the lower left corner, and the text of that length.
    """

    pixels: np.ndarray
    caption: str = ""
    note: str = ""
    letters: tuple[str, str, str, str] | None = None
    bar: tuple[int, str] | None = None


@dataclass(frozen=True)
class _Page:
    """A figure with places in pixels from the upper left corner."""

    figure: Figure
    height: int

    def write(self, x: float, y: float, text: str, **style) -> None:
        style: dict[str, Any] = {"va": "center", "color": INK, "fontsize": TEXT_POINTS, **style}
        self.figure.text(x, self.height - y, escape(text), transform=IdentityTransform(), parse_math=False, **style)

    def write_lines(self, y: float, lines: Sequence[str], height: int, **style) -> None:
        for i, line in enumerate(lines):
            self.write(MARGIN, y + (i + 0.5) * height, line, **style)

    def draw_box(self, x: float, y: float, width: float, height: float, **style) -> None:
        corner = (x, self.height - y - height)
        self.figure.add_artist(Rectangle(corner, width, height, lw=0.6, transform=IdentityTransform(), **style))

    def draw_entry(self, x: float, y: float, colour: str | None, text: str) -> None:
        if colour:
            self.draw_box(x, y + (_LINE - _SWATCH) / 2, _SWATCH, _SWATCH, fc=colour, ec=INK)
        self.write(x + (_SWATCH + 6 if colour else 0), y + _LINE / 2, text)

    def draw_panel(self, x: int, y: int, panel: Panel) -> None:
        """Draws a panel and its marks; (x, y) is its upper left corner."""
        rows, columns = panel.pixels.shape[:2]
        # figimage copies pixels one to one; axes would resample the contours.
        self.figure.figimage(np.rint(panel.pixels).astype(np.uint8), x, self.height - y - rows, origin="upper")
        # White text with a black rim, as on any scanner's console, can be read on air, on fat and on a painted class.
        style = {"color": "white", "weight": "bold", "path_effects": [withStroke(linewidth=2.5, foreground="black")]}
        if panel.note:
            self.write(x + 5, y + 4, panel.note, ha="left", **style | {"va": "top"})
        if panel.letters:
            left, right, top, bottom = panel.letters
            self.write(x + 5, y + rows / 2, left, ha="left", **style)
            self.write(x + columns - 5, y + rows / 2, right, ha="right", **style)
            self.write(x + columns / 2, y + 4, top, ha="center", **style | {"va": "top"})
            self.write(x + columns / 2, y + rows - 4, bottom, ha="center", **style | {"va": "bottom"})
        if panel.bar:
            length, text = panel.bar
            self.draw_box(x + 8, y + rows - 12, length, 4, fc="white", ec="black")
            self.write(x + 8, y + rows - 15, text, ha="left", **style | {"va": "bottom"})


def write_panels(
    path: Path,
    grid: Sequence[Sequence[Panel]],
    title: str,
    legends: Sequence[Legend],
    *,
    footer: str = "",
    narrowest: int = _NARROWEST_SLOT,
) -> Path:
    """Writes a page: title, rows of panels under their captions, legends, footer.

    Args:
        path: PNG to write; its folder is made if missing.
        grid: Rows of panels; the last may be shorter. Each panel is in the middle of its slot, which is as wide as the widest panel
            of the column.
        title: Text above the panels, wrapped to the width of the page.
        legends: Legends below the panels, side by side.
        footer: Small print, wrapped as the title is.
        narrowest: Least width of a slot, in pixels.

    Returns:
        `path`.
    """
    slots = [max(narrowest, *(row[column].pixels.shape[1] for row in grid if column < len(row))) for column in range(len(grid[0]))]
    lefts = list(accumulate((slot + GAP for slot in slots), initial=MARGIN))
    width = lefts[-1] - GAP + MARGIN
    figure = Figure(dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    lines = _wrap_text(figure, title, width - 2 * MARGIN, fontsize=TITLE_POINTS, weight="bold")
    small = _wrap_text(figure, footer, width - 2 * MARGIN, fontsize=TEXT_POINTS)
    # `y` goes down the page. The page's height follows from the legends, so these are laid out before anything is drawn.
    y = MARGIN + len(lines) * (_LINE + 2) + (6 if lines else 0)
    tops = []
    for row in grid:
        y += _LINE if any(panel.caption for panel in row) else 0
        tops.append(y)
        y += max(panel.pixels.shape[0] for panel in row) + GAP
    y += 2
    cells = [
        (lefts[first] + across, y + down, colour, text)
        for first, last, entries in legends
        for across, down, colour, text in _arrange_legend(figure, entries, lefts[last] - GAP - lefts[first])
    ]
    bottom = max(down for _, down, _, _ in cells) + _LINE
    height = bottom + (6 + len(small) * _LINE if small else 0) + MARGIN - 4
    figure.set_size_inches((width + 0.5) / DPI, (height + 0.5) / DPI)  # the canvas rounds down
    page = _Page(figure, height)
    page.write_lines(MARGIN, lines, _LINE + 2, fontsize=TITLE_POINTS, weight="bold")
    for row, top in zip(grid, tops, strict=True):
        for panel, left, slot in zip(row, lefts, slots, strict=False):
            centre = left + slot // 2
            page.write(centre, top - _LINE / 2 - 1, panel.caption, ha="center")
            page.draw_panel(centre - panel.pixels.shape[1] // 2, top, panel)
    for left, top, colour, text in cells:
        page.draw_entry(left, top, colour, text)
    page.write_lines(bottom + 6, small, _LINE, color="#555555")
    return save_figure(figure, path)


def list_classes(
    class_names: Sequence[str], colours: Sequence[str], present: Sequence[bool] | np.ndarray, scores: dict[str, float]
) -> list[Entry]:
    """Lists the legend of a comparison: every class that is scored or present, with its Dice where there is one."""
    entries = []
    for value, name in enumerate(class_names[1:], start=1):
        if name in scores:
            dice = scores[name]
            entries.append((colours[value - 1], f"{name}: " + ("absent" if np.isnan(dice) else f"Dice {dice:.3f}")))
        elif present[value]:
            entries.append((colours[value - 1], name))
    return entries or [(None, "no structure in truth or prediction")]


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a PNG in one step, so that no reader meets half of it."""
    with replace_file(path) as temporary:
        # Level 3 takes a third of the time of the usual 6. Its files are as large, to a few parts in a hundred.
        figure.savefig(temporary, format="png", dpi=DPI, pil_kwargs={"compress_level": 3})
    return Path(path)


def escape(text: str) -> str:
    """Escapes what no font can draw: the bytes of a file name that is not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _measure_text(figure: Figure, text: str, **style) -> float:
    """Measures the width of a text in pixels."""
    drawn = figure.text(0, 0, text, parse_math=False, **style)
    width = drawn.get_window_extent().width
    drawn.remove()
    return width


def _wrap_text(figure: Figure, text: str, width: float, **style) -> list[str]:
    """Breaks a text into lines of at most `width` pixels, between words where it can."""
    text = escape(text)
    columns = max(len(text), 1)
    lines = textwrap.wrap(text, columns)
    while columns > 1 and any(_measure_text(figure, line, **style) > width for line in lines):
        columns -= max(1, columns // 16)
        lines = textwrap.wrap(text, columns)
    return lines


def _arrange_legend(figure: Figure, entries: Sequence[Entry], width: int) -> list[tuple[float, int, str | None, str]]:
    """Places entries row by row in as many equal columns as fit: (x, y, colour, text), in pixels from the top left corner."""
    texts = []
    for _, text in entries:
        # A name too long for its panels is cut, not wrapped, so that the rows stay even.
        lines = _wrap_text(figure, text, width - _SWATCH - 24, fontsize=TEXT_POINTS)
        texts.append(lines[0] + ("\u2026" if len(lines) > 1 else ""))
    column = max(_measure_text(figure, text, fontsize=TEXT_POINTS) for text in texts) + _SWATCH + 24
    per_row = max(1, int((width + 18) // column))
    return [
        ((i % per_row) * column, (i // per_row) * _LINE, colour, text)
        for i, ((colour, _), text) in enumerate(zip(entries, texts, strict=True))
    ]
