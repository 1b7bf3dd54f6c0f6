"""Self-contained HTML pages: they open by a double click, load nothing, and run no script but their own.

All text that reaches a page is escaped, unless it is `Html`. A number is shown with its file, its place there and all its digits, so
that a reader or a test can look it up.
"""

import base64
import hashlib
import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from modules.data.files import replace_file

ASSETS = Path(__file__).parent / "assets"
# A page may be mailed. What does not fit stays in the folder of pictures.
MOST_BYTES = 7_500_000
# Larger pictures are stored as WebP, which takes a fraction of a PNG.
_LARGE_PICTURE = 100_000
_VOID = ("img", "input", "meta")
UNKNOWN = "\u2013"

Section = tuple[str, Any]


class Html(str):
    """Text that is HTML already."""


def element(tag: str, *content: Any, **attributes: Any) -> Html:
    """Makes an element.

    Args:
        tag: Its name.
        *content: Elements, and other values as text. None is left out.
        **attributes: Its attributes. `_` in a name becomes `-`, and one at the end is dropped, as in `class_`. True is an attribute
            without a value; None and False are left out.
    """
    start = tag
    for name, value in attributes.items():
        if value is not None and value is not False:
            name = name.rstrip("_").replace("_", "-")
            start += f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
    return Html(f"<{start}>" if tag in _VOID else f"<{start}>{join(content)}</{tag}>")


def join(content: Iterable[Any]) -> Html:
    """Joins elements and texts; texts are escaped."""
    return Html("".join(part if isinstance(part, Html) else html.escape(str(part)) for part in content if part is not None))


@dataclass(frozen=True)
class Source:
    """A JSON file whose numbers a page shows.

    Attributes:
        file: Its name, as the page says it.
        content: What it holds.
    """

    file: str
    content: Mapping[str, Any]

    def get(self, *place: str) -> Any:
        """Returns the value at a place, such as `("test", "slice", "brain", "dice")`; None where there is none. Lists count from "0"."""
        value: Any = self.content
        for key in place:
            if isinstance(value, list):
                value = value[int(key)] if int(key) < len(value) else None
            else:
                value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def show(self, *place: str, digits: int = 0, form: Callable[[float], str] | None = None) -> Html:
        """Shows the number at a place.

        Args:
            *place: Its place.
            digits: Digits after the point.
            form: Function that writes the number in the place of `digits`, such as in another unit.
        """
        value = self.get(*place)
        known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        text = (form(value) if form else f"{value:,.{digits}f}") if known else UNKNOWN
        # JSON pointers (RFC 6901) write these two signs in another way.
        pointer = "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in place)
        return element("data", text, value=repr(value) if known else "", data_file=self.file, data_at=pointer)

    def show_interval(self, *place: str, digits: int = 3) -> Html:
        """Shows mean and 95 % interval of the entry at a place; the mean alone where the interval is not known."""
        mean = self.show(*place, "mean", digits=digits)
        if self.get(*place, "low") is None or math.isnan(self.get(*place, "low")):
            return mean
        low, high = (self.show(*place, end, digits=digits) for end in ("low", "high"))
        return join([mean, element("small", " [", low, " to ", high, "]")])


def make_table(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], *, caption: Any, foot: Sequence[Any] | None = None, sortable: bool = False
) -> Html:
    """Makes a table whose first column names the rows.

    Args:
        head: Titles of the columns.
        rows: The cells of each row.
        caption: What the table shows.
        foot: The cells of a last row, which stays last when the table is sorted.
        sortable: Whether a click on a title sorts the rows.
    """

    def make_row(cells: Sequence[Any]) -> Html:
        return element("tr", element("th", cells[0], scope="row"), *(element("td", cell) for cell in cells[1:]))

    parts = [
        element("caption", caption),
        element("thead", element("tr", *(element("th", title, scope="col") for title in head))),
        element("tbody", *map(make_row, rows)),
        element("tfoot", make_row(foot)) if foot else None,
    ]
    return element("div", element("table", *parts, class_="sortable" if sortable else None), class_="wide")


def make_facts(facts: Mapping[str, Any]) -> Html:
    """Makes a list of facts by name; those that are None or "" are left out."""
    pairs = [(element("dt", name), element("dd", fact)) for name, fact in facts.items() if fact is not None and fact != ""]
    return element("dl", *(part for pair in pairs for part in pair))


def make_list(items: Iterable[Any]) -> Html:
    """Makes a list of points."""
    return element("ul", *(element("li", item) for item in items))


class Album:
    """The pictures of a page, as long as there is room."""

    def __init__(self, room: int = MOST_BYTES) -> None:
        """Takes the number of bytes that pictures may take."""
        self._room = room

    def take(self, size: int) -> bool:
        """Takes room for so many bytes; returns whether there was enough."""
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits

    def show(self, path: Path, caption: str, alt: str) -> Html:
        """Shows a picture, or says where it lies if the page is full."""
        away = f"{caption}: see {path.parent.name}/{path.name}. This page has no room for it."
        return self.find_room(path, caption, alt) or element("p", away)

    def find_room(self, path: Path, caption: str, alt: str) -> Html | None:
        """Shows a picture; None if the page is full."""
        kind, data = "png", path.read_bytes()
        if len(data) > _LARGE_PICTURE and (pixels := cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)) is not None:
            done, smaller = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, 82])
            if done and smaller.size < len(data):
                kind, data = "webp", smaller.tobytes()
        url = to_url(f"image/{kind}", data)
        if not self.take(len(url)):
            return None
        return element("figure", element("img", src=url, alt=alt), element("figcaption", caption))


def to_url(kind: str, data: bytes) -> str:
    """Returns data of a MIME type as a URL that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def write_page(path: Path, title: str, sections: Sequence[Section], *, lead: Any = None) -> Path:
    """Writes a page.

    Args:
        path: File to write.
        title: Its title.
        sections: Title and content of each section. Sections without content are left out.
        lead: What stands above them.

    Returns:
        `path`.
    """
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # A browser runs this script only, whatever else a name of a class or a path may have brought in, and loads nothing.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    sections = [(name, content) for name, content in sections if content]
    links = [element("li", element("a", name, href=f"#part{number}")) for number, (name, _) in enumerate(sections)]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(style)),
    )
    parts = [
        element("section", element("h2", name, id=f"part{number}"), content, aria_labelledby=f"part{number}")
        for number, (name, content) in enumerate(sections)
    ]
    header = element("header", element("h1", title), lead, element("nav", element("ul", *links), aria_label="Sections"))
    body = element("body", header, element("main", *parts), element("script", Html(script)))
    with replace_file(path) as temporary:
        # A file name that is not UTF-8 is shown with escapes.
        text = f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
