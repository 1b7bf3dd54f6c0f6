"""Documents that people edit: bounded reading, rules for fields, and errors in one bounded line."""

import math
import re

import pytest

from modules.data.documents import (
    MOST_DEPTH,
    check_fields,
    choice,
    flag,
    many,
    mapping,
    number,
    optional,
    read_json,
    shorten,
    text,
    to_line,
    whole,
)


@pytest.mark.parametrize(
    ("content", "received"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"a": "\xff"}', "codec can't decode"),
        (b"[" * 1_000_000, "values nested more than 64 deep"),
        (b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1), "values nested more than 64 deep"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice in one object"),
        (b"9" * 5_000, "Exceeds the limit"),
        (b" " * 101_000, "a file of 101,000 bytes, more than 100,000"),
    ],
)
def test_what_is_no_json_is_refused_in_one_line(tmp_path, content, received):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^Expected JSON in .*a\.json\. Received: [^\n]*\. Correct it\.$") as error:
        read_json(path, "Correct it.", 100_000 if content[:1] == b" " else 1 << 20)
    assert received in str(error.value)
    assert len(str(error.value)) < 400


def test_json_that_is_missing_or_has_a_byte_order_mark(tmp_path):
    with pytest.raises(ValueError, match=r"Expected JSON in .*a.json. Received: No such file or directory. Correct it.$"):
        read_json(tmp_path / "a.json", "Correct it.")
    # Editors on Windows write such a mark.
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b"[" * MOST_DEPTH + b"]" * MOST_DEPTH)
    assert repr(read_json(tmp_path / "a.json", "")).count("[") == MOST_DEPTH


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (whole(1, 9), [1, 9], [0, 10, 1.0, True, "1", None, math.nan, 10**400]),
        (number(), [0, -1.5, 10**30], [math.nan, math.inf, -math.inf, True, "1", 10**400]),
        (number(0, 5, above=True), [1e-9, 5], [0, 5.1, -1]),
        (text(3, 1), ["a", "äöü"], ["", "abcd", "a\n", "\x1b", "\ud800", 3, None, ["a"]]),
        (flag(), [True, False], [0, 1, None, "true"]),
        (choice((2, 3)), [2, 3], [True, 2.0, "2", [], 4]),
        (choice(("a", "b")), ["a"], ["ab", "A", None, ["a"]]),
        (many(whole(0, 9), 1, 2, distinct=True), [[1], [1, 2]], [[], [1, 1], [1, 2, 3], [1, "2"], {"1": 1}, 1, None]),
        (optional(flag()), [None, True], [0]),
        (mapping(text(3), whole(0, 9), 1), [{"a": 1}], [{}, {"abcd": 1}, {"a": 10}, [["a", 1]]]),
    ],
)
def test_rules(rule, right, wrong):
    assert [value for value in right if not rule.holds(value)] == []
    assert [value for value in wrong if rule.holds(value)] == []


def test_the_first_wrong_field_is_named():
    rules = {"a": whole(1, 2), "b": flag()}
    check_fields({"a": 1, "b": True}, rules, "x.json", "Mend it.")
    for content, message in (
        ([], "Expected an object with fields in `c` of x.json. Received: []. Mend it."),
        ({"a": 1}, "Expected the field `c.b` in x.json. Received: none of that name. Mend it."),
        ({"a": 1, "b": True, "z": 0}, "Expected no fields but a, b in `c` of x.json. Received: 'z'. Mend it."),
        ({"a": 3, "b": 3}, "Expected a whole number from 1 to 2 for `c.a` in x.json. Received: 3. Mend it."),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            check_fields(content, rules, "x.json", "Mend it.", within="c")


def test_nothing_makes_a_line_long_or_empty():
    huge = "x" * 10_000_000
    assert shorten("a") == "'a'"
    for value in (
        huge,
        [huge] * 9,
        {huge: huge},
        [[[[[[huge]]]]]],
        list(range(10**6)),
        10**400,
        {str(index): [huge] for index in range(99)},
    ):
        assert len(shorten(value)) <= 200
    line = to_line(ValueError(f"Expected a\n name. Received: {huge}. Mend it."))
    assert len(line) == 1_200
    assert line.startswith("Expected a name. Received: xxx")
    assert line.endswith("xxx. Mend it.")
    assert to_line(ValueError()) == "ValueError"
    error = NotADirectoryError(20, "Not a directory", "a.txt/b")
    assert to_line(error) == "Expected to use a.txt/b. Received: Not a directory. Check the path and its permissions."
