"""Reads tables of text as people save them: commas, semicolons or tabs, any end of line, and a mark of the encoding in front."""

import csv
from pathlib import Path

DELIMITERS = ",;\t"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """Reads a text in UTF-8, or in UTF-16 where its first bytes say so, as spreadsheets save "Unicode text".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is text of another encoding, or none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a table in {path}. Received: no such file. Check the path.")
    try:
        data = path.read_bytes()
        return data.decode("utf-16" if data.startswith(_UTF16_MARKS) else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Expected a table of UTF-8 text in {path}. Received: {error}. Save it as CSV UTF-8.") from error


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Reads a table of text, separated by commas, semicolons or tabs.

    Returns:
        The cells of the first row, and those of the others, without space around them. Empty rows are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, or no text that `read_text` reads.
    """
    lines = read_text(path).splitlines()
    first = next(iter(lines), "")
    delimiter = max(DELIMITERS, key=lambda mark: (first.count(mark), -DELIMITERS.index(mark)))
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    except csv.Error as error:
        raise ValueError(f"Expected a table in {path}. Received: {error}. Save it as CSV UTF-8.") from error
    rows = [row for row in rows if any(row)]
    if not rows:
        raise ValueError(f"Expected a table in {path}. Received: an empty file. Write its columns into the first line.")
    return rows[0], rows[1:]
