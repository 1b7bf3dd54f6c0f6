"""Reads pages as a browser would: the numbers with their places, and what a page would load or run."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

LOADS = ("src", "href", "poster", "srcset", "action", "data", "xlink:href")


class Page(HTMLParser):
    """A page's elements.

    Attributes:
        numbers: File, place, all digits and text of each `data` element.
        tags: Name and attributes of each element.
        text: All text, without scripts and styles.
        scripts: The text of each script.
    """

    def __init__(self, path):
        super().__init__()
        self.numbers, self.tags, self.text, self.scripts = [], [], "", []
        self._open = []
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in ("img", "input", "meta"):
            self._open.append(tag)
        if tag == "data":
            self.numbers.append([attributes["data-file"], attributes["data-at"], attributes["value"], ""])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        if self._open and self._open[-1] == "script":
            self.scripts.append(text)
        elif not self._open or self._open[-1] != "style":
            self.text += text
        if self._open and self._open[-1] == "data":
            self.numbers[-1][3] += text

    def list_loads(self):
        """Lists what the page would load from elsewhere: all but data within it and links to its own parts."""
        found = [value for _, attributes in self.tags for name, value in attributes.items() if name in LOADS and value]
        styles = " ".join(str(attributes.get("style", "")) for _, attributes in self.tags)
        found += re.findall(r"url\(([^)]*)\)", styles)
        return [value for value in found if not value.startswith(("data:image/", "#"))]


def look_up(content, pointer):
    """Returns what a JSON pointer leads to."""
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        content = content[int(key)] if isinstance(content, list) else content[key]
    return content


def check_numbers(page, folder, file):
    """Checks that each number of a JSON file is that of the file, with all digits and as it is shown; returns their places."""
    content, places = json.loads((folder / file).read_text()), []
    for name, pointer, value, text in page.numbers:
        if name != file:
            continue
        expected = look_up(content, pointer)
        places.append(pointer)
        if expected is None:
            assert (value, text) == ("", "\u2013")
            continue
        assert float(value) == expected, pointer
        if re.fullmatch(r"-?[\d,]+(\.\d+)?", text):
            digits = len(text.partition(".")[2])
            assert text == f"{expected:,.{digits}f}", pointer
    return places
