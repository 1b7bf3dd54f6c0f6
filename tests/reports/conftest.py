"""A slice, a volume and a recorder of pages for the tests of pictures."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure


@pytest.fixture
def scan() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth image (48, 32), its truth with three classes, and a prediction moved by two rows."""
    rows, columns = np.mgrid[:48, :32]
    image = (100 + 3 * rows + columns).astype(np.float32)
    label = np.zeros((48, 32), np.int32)
    label[8:16, 6:26], label[20:30, 10:20], label[36:38, 4:28] = 1, 2, 3
    return image, label, np.roll(label, 2, axis=0)


@dataclass
class Drawn:
    """Records the last pages: texts with their places, panels with their boxes, in pixels from the lower left corner."""

    texts: list[tuple[str, float, float]]
    panels: list[tuple[int, int, int, int]]  # x, y, columns, rows

    @property
    def words(self) -> list[str]:
        return [text for text, _, _ in self.texts]

    def letters_in(self, panel: int) -> dict[str, tuple[float, float]]:
        x, y, columns, rows = self.panels[panel]
        return {
            text: (left - x, up - y)
            for text, left, up in self.texts
            if text in "LRAPSI" and 0 <= left - x <= columns and 0 <= up - y <= rows
        }

    def clear(self) -> None:
        self.texts.clear()
        self.panels.clear()


@pytest.fixture
def drawn(monkeypatch) -> Drawn:
    page = Drawn([], [])
    write, draw = Figure.text, Figure.figimage

    def record_text(self, x, y, text, **style):
        if (x, y) != (0, 0) and text:  # at the origin texts are only measured
            page.texts.append((text, x, y))
        return write(self, x, y, text, **style)

    def record_panel(self, pixels, x, y, **style):
        page.panels.append((x, y, pixels.shape[1], pixels.shape[0]))
        return draw(self, pixels, x, y, **style)

    monkeypatch.setattr(Figure, "text", record_text)
    monkeypatch.setattr(Figure, "figimage", record_panel)
    return page


@pytest.fixture
def volume() -> dict:
    """Makes a volume (12, 16, 10) along RAS+ without symmetry, with two classes, a prediction moved to the left, and its affine."""
    x, y, z = np.mgrid[:12, :16, :10]
    image = (50 + 5 * x + 3 * y + 7 * z).astype(np.float32)
    label = np.zeros((12, 16, 10), np.uint8)
    label[3:9, 4:11, 2:8], label[7:9, 9:11, 6:8] = 1, 2
    return {
        "image": image,
        "label": label,
        "prediction": np.roll(label, -1, axis=0),
        "affine": nib.affines.from_matvec(np.diag([1, 1.5, 3])),
    }
