"""The table of `--cases`: columns, paths, and what is wrong with a row."""

import pytest
from folder_helpers import plant

from modules.data.case_table import read_case_table


def _read(folder, text, name="t.csv", root=None):
    plant(folder, "a.nii", "a_seg.nii", "b c ü.nii", "deep/b_seg.NII.GZ", "t2/a.nii", "notes.txt")
    (folder / name).write_bytes(text.encode())
    return read_case_table(folder / name, root or folder)


def test_rows_are_pairs_and_paths_are_the_tables(tmp_path):
    found = _read(tmp_path, "\ufeffimage;label;subject;split;age\na.nii;a_seg.nii;s1;Training;50\nb c ü.nii;deep/b_seg.NII.GZ;s2;test;60\n")
    assert [(pair.name, pair.images, pair.label, pair.subject, pair.split) for pair in found.pairs] == [
        ("a", (tmp_path / "a.nii",), tmp_path / "a_seg.nii", "s1", "train"),
        ("b c ü", (tmp_path / "b c ü.nii",), tmp_path / "deep/b_seg.NII.GZ", "s2", "test"),
    ]
    assert found.left_out == {"column that is not read": ["age"]}
    assert found.tables == (tmp_path / "t.csv",)


def test_channels_are_columns(tmp_path):
    (pair,) = _read(tmp_path, "label\tImage_T2\timage_T1\tcase\na_seg.nii\tt2/a.nii\ta.nii\tx\n", "t.tsv").pairs
    assert (pair.name, pair.images, pair.channels) == ("x", (tmp_path / "t2/a.nii", tmp_path / "a.nii"), ("T2", "T1"))
    (pair,) = _read(tmp_path, "image_10,image_9,label\na.nii,t2/a.nii,a_seg.nii\n").pairs
    assert (pair.images, pair.channels) == ((tmp_path / "t2/a.nii", tmp_path / "a.nii"), ("9", "10"))


def test_paths_may_be_those_of_the_data_too(tmp_path):
    (tmp_path / "lists").mkdir()
    plant(tmp_path / "data", "i/a.nii", "i/a_seg.nii")
    (pair,) = _read(tmp_path / "lists", "image,label\ni/a.nii,i/a_seg.nii\n", root=tmp_path / "data").pairs
    assert pair.images == (tmp_path / "data/i/a.nii",)


def test_a_row_may_name_a_folder_of_dicom_slices_or_a_file_of_many_frames(tmp_path):
    plant(tmp_path, "series/1.dcm", "frames.dcm")
    found = _read(tmp_path, "image,label\nseries,a_seg.nii\nframes.dcm,deep/b_seg.NII.GZ\n")
    assert [(pair.name, pair.images) for pair in found.pairs] == [
        ("series", (tmp_path / "series",)),
        ("frames", (tmp_path / "frames.dcm",)),
    ]


def test_a_row_without_a_label_is_left_out(tmp_path):
    found = _read(tmp_path, "image,label\na.nii,a_seg.nii\nt2/a.nii,\n")
    assert (len(found.pairs), found.left_out) == (1, {"row without a label": ["a (row 3)"]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expected a table in .*t.csv. Received: an empty file"),
        ("file,mask\na.nii,b.nii\n", r"Expected the columns image \(or image_0, image_1, ...\) and label, .*Received: \['file', 'mask'\]"),
        ("image,image,label\na,b,c\n", "Received: 'image' twice"),
        ("image,image_0,label\na,b,c\n", "Expected the columns image"),
        ("image,label\n,a_seg.nii\n", "Expected a file for `image` in row 2 of .*t.csv. Received: none. Fill it in"),
        (
            "image,label\nx.nii,a_seg.nii\n",
            "Expected the image .*x.nii, as row 2 of .*t.csv says. Received: no such file. Paths are relative",
        ),
        ("image,label\nt2\\a.nii,a_seg.nii\n", r"Received: no such file. .* Write / in place of \\."),
        (
            "image,label\nnotes.txt,a_seg.nii\n",
            r"Expected for `image` a file ending in .nii, .* in row 2 of .*Received: .*notes.txt. Convert it",
        ),
        ("image,label,split\na.nii,a_seg.nii,third\n", "Expected `split` as train, validate or test in row 2 of .*Received: 'third'"),
        ("image,label,subject\na.nii,a_seg.nii,s\nt2/a.nii,a_seg.nii,\n", "Expected `subject` in every row of .*, or in none"),
        ("image,label\na.nii,a_seg.nii\na.nii,deep/b_seg.NII.GZ\n", "Expected each image once in .*t.csv. Received: .*a.nii again for a"),
        ("image,label,case\na.nii,a_seg.nii,../x\n", "Expected a case's name without folders in row 2"),
    ],
)
def test_what_is_wrong_is_said_with_its_row(tmp_path, text, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        _read(tmp_path, text)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a table in .*no.csv. Received: no such file"):
        read_case_table(tmp_path / "no.csv", tmp_path)
