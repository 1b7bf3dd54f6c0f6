"""Names and colours of classes in the files of ITK-SNAP and 3D Slicer."""

import pytest
from output_helpers import save_bands

from modules.data.class_tables import choose_classes
from modules.data.colours import PALETTE, list_colours
from modules.data.label_values import LabelValues
from modules.predict.bundle import ModelBundle
from modules.predict.class_files import list_segments, list_values, write_class_files


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {name: ModelBundle.load(save_bands(folder / name, regions=name == "regions"), "keras") for name in ("classes", "regions")}


def test_both_files_have_the_values_names_and_colours_of_our_pictures(bundles, tmp_path):
    write_class_files(tmp_path, list_values(bundles["classes"]))
    # #E69F00 and #56B4E9.
    assert list_colours(3) == list(PALETTE[:2]) == ["#E69F00", "#56B4E9"]
    lines = [line for line in (tmp_path / "itksnap_labels.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line.split(maxsplit=7) for line in lines] == [
        ["0", "0", "0", "0", "0", "0", "0", '"background"'],
        ["3", "230", "159", "0", "1", "1", "1", '"grey matter"'],
        ["170", "86", "180", "233", "1", "1", "1", "\"the 'core'\""],
    ]
    lines = [line.split() for line in (tmp_path / "slicer_labels.ctbl").read_text().splitlines() if not line.startswith("#")]
    assert lines == [
        ["0", "background", "0", "0", "0", "0"],
        ["3", "grey_matter", "230", "159", "0", "255"],
        ["170", "the_'core'", "86", "180", "233", "255"],
    ]


def test_values_of_regions_are_named_as_pictures_show_them_and_segments_as_they_are(bundles):
    assert [(row.value, row.name, row.colour) for row in list_values(bundles["regions"])] == [
        (3, 'grey matter without the "core"', PALETTE[0]),
        (170, 'the "core"', PALETTE[1]),
    ]
    assert [(row.value, row.name, row.parts) for row in list_segments(bundles["regions"])] == [
        (3, "grey matter", (1, 2)),
        (170, 'the "core"', (2,)),
    ]


def test_the_files_name_the_classes_of_a_folder_of_labels(bundles, tmp_path):
    write_class_files(tmp_path, list_values(bundles["classes"]))
    labels = tmp_path / "a.nii.gz"
    classes = choose_classes([labels], [LabelValues((0, 3, 170), 3)], (), [tmp_path])
    assert classes.names == ("background", "grey matter", "the 'core'")
    assert classes.values == {0: 0, 3: 1, 170: 2}


def test_files_of_other_classes_are_replaced_with_a_warning(bundles, tmp_path, caplog):
    write_class_files(tmp_path, list_values(bundles["classes"]))
    write_class_files(tmp_path, list_values(bundles["classes"]))
    assert not caplog.text
    write_class_files(tmp_path, list_values(bundles["regions"]))
    assert f"{tmp_path / 'itksnap_labels.txt'} described other classes and is replaced" in caplog.text
    assert "without" in (tmp_path / "itksnap_labels.txt").read_text()
