"""Pages hold all that they show, escape it, and say where each number stands."""

import base64
import hashlib

import cv2
import numpy as np
import pytest
from page_helpers import Page

from modules.reports.page import Album, Html, Source, element, join, make_facts, make_table, write_page

HOSTILE = '"><script>alert(1)</script><img src=http://x.example/a onerror=alert(2)>'


def test_texts_and_attributes_are_escaped_and_elements_are_not():
    assert element("p", "a<b", element("b", "&")) == "<p>a&lt;b<b>&amp;</b></p>"
    assert element("a", "x", href='"', class_="c", data_at="/a", hidden=True, title=None) == (
        '<a href="&quot;" class="c" data-at="/a" hidden>x</a>'
    )
    assert element("img", src="data:,") == '<img src="data:,">'
    assert join(["<", None, Html("<i></i>"), 1]) == "&lt;<i></i>1"
    assert isinstance(join([]), Html)


def test_numbers_say_their_file_place_and_digits():
    source = Source("s.json", {"a/b": {"~": [{"x": 1234.5678}]}, "none": None, "nan": float("nan"), "yes": True})
    assert source.show("a/b", "~", "0", "x", digits=2) == (
        '<data value="1234.5678" data-file="s.json" data-at="/a~1b/~0/0/x">1,234.57</data>'
    )
    assert source.show("a/b", "~", "0", "x", form=lambda value: f"{value / 2:.0f} halves").endswith(">617 halves</data>")
    for place in (("none",), ("nan",), ("yes",), ("missing", "x"), ("a/b", "~", "1", "x")):
        assert 'value=""' in source.show(*place)
        assert source.show(*place).endswith(">\u2013</data>")


def test_intervals_that_nobody_knows_are_left_out():
    source = Source("s.json", {"one": {"mean": 0.5, "low": None, "high": None}, "two": {"mean": 0.5, "low": 0.25, "high": 0.75}})
    assert "[" not in source.show_interval("one")
    two = source.show_interval("two")
    assert [part.split("<")[0] for part in two.split(">")[1::2]][:1] == ["0.500"]
    assert ">0.250</data> to <data" in two


@pytest.fixture
def page(tmp_path):
    facts = make_facts({HOSTILE: HOSTILE, "left out": ""})
    table = make_table([HOSTILE, "b"], [[HOSTILE, 1]], caption=HOSTILE, foot=["mean", 2], sortable=True)
    return write_page(tmp_path / "report.html", HOSTILE, [(HOSTILE, facts), ("empty", None), ("Table", table)], lead=element("p", "\udce9"))


def test_a_page_runs_its_own_script_only_and_loads_nothing(page):
    read = Page(page)
    assert read.list_loads() == []
    assert len(read.scripts) == 1
    assert "alert" not in read.scripts[0]
    assert not {"link", "iframe", "object", "base", "img"} & {tag for tag, _ in read.tags}
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert read.text.count("<script>alert(1)</script>") >= 5
    policy = next(attributes["content"] for tag, attributes in read.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(read.scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "http" not in read.scripts[0]


def test_a_page_has_parts_to_jump_to_and_tables_with_names(page):
    read = Page(page)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    links = [attributes["href"] for tag, attributes in read.tags if tag == "a"]
    assert links == [f"#{name}" for name in ids] == ["#part0", "#part1"]
    assert [attributes["scope"] for tag, attributes in read.tags if tag == "th"] == ["col", "col", "row", "row"]
    assert {"caption", "thead", "tbody", "tfoot", "main", "nav", "header", "h1", "h2", "title"} <= {tag for tag, _ in read.tags}
    assert "\\udce9" in read.text
    assert "left out" not in read.text
    assert "empty" not in read.text


def test_pictures_end_where_the_page_is_full(tmp_path):
    (tmp_path / "figures").mkdir()
    path = tmp_path / "figures" / "a.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (300, 300), np.uint8))
    assert path.stat().st_size > 80_000
    album = Album(200_000)
    shown = album.show(path, "noise", "grey noise")
    assert 'alt="grey noise"' in shown
    assert "<figcaption>noise</figcaption>" in shown
    rest = [album.show(path, "noise", "grey noise") for _ in range(2)]
    assert rest[-1] == "<p>noise: see figures/a.png. This page has no room for it.</p>"
    assert sum(len(part) for part in (shown, *rest)) < 201_000
    assert Album(10).find_room(path, "", "") is None
