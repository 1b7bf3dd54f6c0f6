"""Tables of text, however a spreadsheet saved them."""

import pytest

from modules.data.tables import read_table

TEXT = "case;subject\na;Müller\n\nb ; x,y \n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("mark", [";", "\t"])
def test_marks_ends_and_encodings_of_spreadsheets_are_read(tmp_path, mark, encoding, end):
    path = tmp_path / "table.csv"
    path.write_bytes(TEXT.replace(";", mark).replace("\n", end).encode(encoding))
    assert read_table(path) == (["case", "subject"], [["a", "Müller"], ["b", "x,y"]])


def test_other_encodings_and_empty_tables_are_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(ValueError, match=r"Expected a table of UTF-8 text in .*table.csv. Received: .* Save it as CSV UTF-8."):
        read_table(path)
    path.write_bytes(b"\xff\xfeabc")
    with pytest.raises(ValueError, match="Expected a table of UTF-8 text in"):
        read_table(path)
    path.write_text(" ,\n\n")
    with pytest.raises(ValueError, match="Received: an empty file"):
        read_table(path)
    with pytest.raises(FileNotFoundError, match="Received: no such file"):
        read_table(tmp_path / "absent.csv")
