"""The parts of a page that show scores: tables of means by class, and pictures of single cases."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modules.reports.page import Album, Html, Source, element, join, make_table
from modules.scoring import Score

# Titles and digits of the scores; one that is not here is shown by its own name.
_TITLES = {
    "dice": ("Dice", 3),
    "iou": ("IoU", 3),
    "nsd": ("NSD", 3),
    "hd95_mm": ("HD95 mm", 2),
    "hd_mm": ("HD mm", 2),
    "assd_mm": ("ASSD mm", 2),
}
_ENDINGS = {"2": "nd", "3": "rd"}
_COUNTS = {"cases": "scored", "absent": "absent"}
_PICTURE = re.compile(r"(best|median|worst\d?)_(.*)", re.DOTALL)
EXPLANATION = (
    "Dice, IoU and NSD reach from 0 to 1, and 1 is perfect. Distances are in mm, and 0 is perfect. HD95 is the 95th percentile of the "
    "distances between both surfaces, and ASSD is their mean. NSD is the share of both surfaces that lies within a tolerance of the other. "
    "Where neither the truth nor the prediction of a case has a class, the class is absent. Means leave such cases out."
)


class Example(NamedTuple):
    """A test case with a picture: `name` is best, median, worst, worst2 and so on."""

    name: str
    case: str
    path: Path


def show_means(summary: Source, level: str, *, at: str, caption: str, intervals: bool = False) -> list[Html]:
    """Shows the scores of one level, a row a class, in tables that sort: the first has the usual scores, and a second all others.

    Args:
        summary: The file with the scores.
        level: "slice" or "volume".
        at: The entry of the file: `at / level / class / score`.
        caption: What the means are over.
        intervals: Whether each score is an entry with `mean`, `low`, `high` and `subjects`.

    Returns:
        One table, or two. A score that is known of no class is left out.
    """
    classes: Mapping[str, Any] = summary.get(at, level)
    names = [name for name in classes if name != "mean"]
    # The mean over classes lacks scores that are sums.
    keys = dict.fromkeys(key for name in classes for key in classes[name] if key not in _COUNTS)
    known = [key for key in keys if any(_is_known(summary, at, level, name, key, intervals) for name in classes)]
    # A cross-validation counts subjects only.
    counted = "test" if intervals else at
    counts = {key: title for key, title in _COUNTS.items() if summary.get(counted, level, names[0], key) is not None}
    show = summary.show_interval if intervals else summary.show

    def make_row(name: str, keys: Sequence[str], title: str) -> list[Any]:
        cells = [show(at, level, name, key, digits=_TITLES.get(key, ("", 2))[1]) if key in classes[name] else "" for key in keys]
        subjects = [summary.show(at, level, name, "dice", "subjects")] if intervals else []
        return [title, *cells, *subjects, *("" if name == "mean" else summary.show(counted, level, name, key) for key in counts)]

    tables = []
    for keys in ([key for key in known if key in _TITLES], [key for key in known if key not in _TITLES]):
        titles = [_TITLES.get(key, (key.replace("_", " "), 2))[0] for key in keys]
        head = ["class", *titles, *(["subjects"] if intervals else []), *counts.values()]
        rows = [make_row(name, keys, name) for name in names]
        foot = make_row("mean", keys, "mean over classes")
        tables += [make_table(head, rows, caption=caption, foot=foot, sortable=True)] if keys or not tables else []
    return tables


def _is_known(summary: Source, at: str, level: str, name: str, key: str, intervals: bool) -> bool:
    value = summary.get(at, level, name, key, *(["mean"] if intervals else []))
    return value is not None and not math.isnan(value)


def to_source(scores: Iterable[Score], file: str) -> Source:
    """Makes the rows of a table of scores numbers to show: `level / case / class / score`."""
    content: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for score in scores:
        content.setdefault(score.level, {}).setdefault(score.case, {})[score.class_name] = {"dice": score.dice, "hd95_mm": score.hd95_mm}
    return Source(file, content)


def find_examples(figures: Path) -> list[Example]:
    """Finds the pictures of single test cases, the best case first and then from the worst up."""
    found = []
    for path in sorted(figures.glob("comparison_*.png")):
        if match := _PICTURE.fullmatch(path.stem.removeprefix("comparison_")):
            found.append(Example(match[1], match[2], path))
    return sorted(found, key=lambda example: (example.name not in ("best", "median"), example.name))


def show_examples(figures: Path, table: Source, album: Album) -> Html | None:
    """Shows the Dice of the cases that have pictures, and the pictures."""
    examples = find_examples(figures)
    if not examples:
        return None
    levels = {case: level for level, cases in table.content.items() for case in cases}
    examples = [example for example in examples if example.case in levels]
    classes = list(dict.fromkeys(name for example in examples for name in table.get(levels[example.case], example.case) or ()))
    rows = []
    for example in examples:
        scores = [table.show(levels[example.case], example.case, name, "dice", digits=3) for name in classes]
        rows.append([example.case, name_rank(example.name), *scores])
    caption = "Dice of these test cases. They are ranked by the mean over the classes."
    parts: list[Any] = [make_table(["case", "rank", *classes], rows, caption=caption, sortable=True)]
    for example in examples:
        parts.append(element("h3", f"{example.case}, the {name_rank(example.name)}"))
        alt = f"Image, truth, prediction and their difference of {example.case}, the {name_rank(example.name)}"
        parts.append(album.show(example.path, f"{example.case}: image, truth, prediction and difference", alt))
    # Montages get what room is left.
    for example in examples:
        montage = example.path.with_name(example.path.name.replace("comparison_", "montage_", 1))
        if montage.is_file():
            title = f"{example.case}, the {name_rank(example.name)}: slices, with the prediction in colour and the truth as white dashes"
            parts.append(element("details", element("summary", title), album.show(montage, title, title)))
    return join(parts)


def name_rank(name: str) -> str:
    """Says the rank of an example in words: "3rd worst" for worst3."""
    number = name.removeprefix("worst")
    return f"{number}{_ENDINGS.get(number, 'th')} worst" if number.isdigit() else name
