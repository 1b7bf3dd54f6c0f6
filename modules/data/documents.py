"""Documents that people can edit: JSON of bounded size and depth, rules for its fields, and values in few words for an error."""

import json
import math
import os
import reprlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# A list of a million cases takes about 150 MB.
MOST_BYTES = 1 << 29
MOST_DEPTH = 64
# The longest name of a class or a channel. Tables and pictures show them.
MOST_NAME = 200

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = 80
_shortener.maxlevel = 3


class Rule(NamedTuple):
    """A rule for one value of a document.

    Attributes:
        expected: The values that hold, in words.
        holds: Function that tells whether a value holds.
    """

    expected: str
    holds: Callable[[Any], bool]


def shorten(value: object) -> str:
    """Describes a value as `repr` does, but in at most 200 characters."""
    text = _shortener.repr(value)
    return text if len(text) <= 200 else f"{text[:180]}...{text[-17:]}"


def to_line(error: object, most: int = 1_200) -> str:
    """Describes an error in one line of at most `most` characters, of which a third are its end. It is never empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno is not None and isinstance(error.filename, str | bytes | os.PathLike):
        # The operating system's own words would be "[Errno 20] Not a directory: 'a.txt/b'".
        text = f"Expected to use {os.fsdecode(error.filename)}. Received: {error.strerror}. Check the path and its permissions."
    return text if len(text) <= most else f"{text[: most - most // 3 - 5]} ... {text[-(most // 3) :]}"


def read_json(path: Path, remedy: str, most: int = MOST_BYTES) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        remedy: A sentence that says what helps, for the error.
        most: The most bytes that the file may have.

    Raises:
        ValueError: If the file cannot be read, is no JSON in UTF-8, is too large or too deep, or has a key twice. The error names the file.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise ValueError(f"a file of {size:,} bytes, more than {most:,}")
        content = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_refuse_repeats)
        if _is_deep(content):
            raise RecursionError
    except RecursionError as error:
        raise ValueError(f"Expected JSON in {path}. Received: values nested more than {MOST_DEPTH} deep. {remedy}") from error
    except (OSError, ValueError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else to_line(error)
        raise ValueError(f"Expected JSON in {path}. Received: {reason}. {remedy}") from error
    return content


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of its pairs. Python would keep the last of two values for one key without a word."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shorten(next(key for key in keys if keys.count(key) > 1))} twice in one object")
    return result


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(MOST_DEPTH):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, dict | list)
        ]
    return bool(level)


# ------------------------------------------------------------------------------------------------------------------ rules


def whole(low: int, high: int) -> Rule:
    """Returns the rule of whole numbers from `low` to `high`."""
    return Rule(f"a whole number from {low:,} to {high:,}", lambda value: type(value) is int and low <= value <= high)


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Rule:
    """Returns the rule of finite numbers from `low` (or above it) to `high`."""
    least = "" if low == -math.inf else f" above {low:g}" if above else f" of {low:g} or more"
    words = least if high == math.inf else f"{least} and at most {high:g}"

    def holds(value: Any) -> bool:
        # A whole number may be too large for a float, so it is compared before anything else.
        inside = type(value) in (int, float) and low <= value <= high and not (above and value == low)
        return inside and abs(value) <= 1.7e308

    return Rule(f"a finite number{words}", holds)


def text(most: int = MOST_NAME, least: int = 0) -> Rule:
    """Returns the rule of texts of `least` to `most` printable characters."""
    return Rule(
        f"a text of {least:,} to {most:,} printable characters",
        lambda value: isinstance(value, str) and least <= len(value) <= most and value.isprintable(),
    )


def flag() -> Rule:
    """Returns the rule of true and false."""
    return Rule("true or false", lambda value: isinstance(value, bool))


def choice(options: Collection[Any]) -> Rule:
    """Returns the rule of some texts or numbers."""
    return Rule(
        f"one of {', '.join(map(repr, options))}",
        lambda value: any(type(value) is type(option) and value == option for option in options),
    )


def many(rule: Rule, low: int, high: int, *, distinct: bool = False) -> Rule:
    """Returns the rule of lists of `low` to `high` items that each follow a rule, and may have to be distinct."""
    number = f"{low:,}" if low == high else f"{low:,} to {high:,}"

    def holds(value: Any) -> bool:
        if not isinstance(value, list) or not low <= len(value) <= high or not all(map(rule.holds, value)):
            return False
        return not distinct or len({repr(item) for item in value}) == len(value)

    return Rule(f"a list of {number}{' distinct' if distinct else ''} items, each {rule.expected},", holds)


def optional(rule: Rule) -> Rule:
    """Returns the rule that also takes null."""
    return Rule(f"null or {rule.expected}", lambda value: value is None or rule.holds(value))


def mapping(keys: Rule, values: Rule, low: int = 0) -> Rule:
    """Returns the rule of objects of `low` entries or more, whose keys and values each follow a rule."""
    return Rule(
        f"an object of {f'{low:,} or more entries' if low else 'any entries'}, each key {keys.expected} and each value {values.expected},",
        lambda value: (
            isinstance(value, dict) and len(value) >= low and all(keys.holds(key) and values.holds(item) for key, item in value.items())
        ),
    )


def anything() -> Rule:
    """Returns the rule that takes any value."""
    return Rule("any value", lambda value: True)


def check_fields(content: Any, rules: Mapping[str, Rule], path: Path | str, remedy: str, *, within: str = "", others: bool = False) -> None:
    """Checks the fields of an object.

    Args:
        content: The object.
        rules: A rule for each field that it must have.
        path: Its file, for the error.
        remedy: A sentence that says what helps, for the error.
        within: The name of the object within the file; "" for the whole of it.
        others: Whether it may have other fields.

    Raises:
        ValueError: For the first fault: it names file and field, and says what was expected and received.
    """
    where = f"`{within}` of {path}" if within else str(path)
    if not isinstance(content, dict):
        raise ValueError(f"Expected an object with fields in {where}. Received: {shorten(content)}. {remedy}")
    dot = f"{within}." if within else ""
    for name in rules:
        if name not in content:
            raise ValueError(f"Expected the field `{dot}{name}` in {path}. Received: none of that name. {remedy}")
    if not others and (unknown := [name for name in content if name not in rules]):
        names = ", ".join(rules)
        raise ValueError(f"Expected no fields but {names} in {where}. Received: {shorten(unknown[0])}. {remedy}")
    for name, rule in rules.items():
        if not rule.holds(content[name]):
            raise refuse_field(f"{dot}{name}", rule.expected, shorten(content[name]), path, remedy)


def refuse_field(name: str, expected: str, received: str, path: Path | str, remedy: str) -> ValueError:
    """Returns the error of one field of a document."""
    return ValueError(f"Expected {expected.rstrip(',')} for `{name}` in {path}. Received: {received}. {remedy}")
