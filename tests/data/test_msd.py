"""Folders of the Decathlon's kind, in both layouts, with their quirks and their errors."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from msd_helpers import make_tiny

from dataset import DATASETS
from modules import phantom
from modules.data.cache import prepare_cases
from modules.data.case import Case, read_case, read_volume, rename
from modules.data.msd import LABEL_RENAMES, find_msd, read_description
from modules.data.preprocess import Preprocessing
from modules.data.spec import choose_target, find_cases, load_spec


@pytest.fixture(scope="module", params=[False, True], ids=["decathlon", "nnunet"])
def whole(request, tmp_path_factory):
    return phantom.write_msd(tmp_path_factory.mktemp("msd") / "msd", subjects=4, shape=(24, 32, 24), nnunet=request.param)


@pytest.fixture
def root(whole, tmp_path):
    """A copy that may be broken."""
    return shutil.copytree(whole, tmp_path / "msd")


def _edit(root, **values):
    """Changes or, with None, removes entries of `dataset.json`."""
    path = root / "dataset.json"
    record = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def _is_nnunet(root):
    return "channel_names" in json.loads((root / "dataset.json").read_text())


# ----------------------------------------------------------------------------------------------- what is found


def test_both_layouts_describe_themselves_alike(whole):
    description = read_description(whole)
    assert description["channels"] == ("T1", "T2")
    assert description["class_names"] == ("background", "Anterior", "Posterior")
    assert description["label_values"] == {0: 0, 1: 1, 2: 2}
    assert description["title"]
    assert description["suffix"] == (".nii.gz" if _is_nnunet(whole) else None)
    assert description["licence"] == ("not stated in dataset.json" if _is_nnunet(whole) else "as the program that drew it")


def test_labelled_cases_are_found_and_can_be_read(whole):
    spec = load_spec(DATASETS["msd"], whole)
    cases = find_cases(spec, whole)
    stem = "case" if _is_nnunet(whole) else "hippocampus"
    # Two and five are for testing and have no label.
    assert [case.case_id for case in cases] == [f"{stem}_{number:03d}" for number in (1, 3, 4, 6)]
    assert [len(case.image_paths) for case in cases] == [2 if _is_nnunet(whole) else 1] * 4
    assert len({case.subject_id for case in cases}) == 4
    for case in cases:
        image = read_volume(case.image_paths)
        spec.preprocessing.check(image, spec.channels, case.case_id)
        assert set(np.unique(read_case(case, spec)[1])) == {0, 1, 2}
        assert spec.label_rule.name_label(case.image_paths[0].name) == case.label_path.name


def test_channels_come_in_their_order(whole):
    case = find_msd(whole)[0]
    first, second = (read_volume(case.image_paths).array[..., channel] for channel in range(2))
    if _is_nnunet(whole):
        np.testing.assert_array_equal(read_volume(case.image_paths[:1]).array[..., 0], first)
        assert [path.name[-11:] for path in case.image_paths] == ["0000.nii.gz", "0001.nii.gz"]
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("nnunet", [False, True])
def test_labels_with_gaps_become_classes_without(tmp_path, nnunet):
    labels = {"background": 0, "oedema": 1, "core": 3} if nnunet else {"0": "background", "1": "oedema", "3": "core"}
    root = make_tiny(tmp_path / "gaps", labels, nnunet)
    spec = load_spec(DATASETS["msd"], root)
    assert spec.class_names == ("background", "oedema", "core")
    assert spec.label_rule.values == {0: 0, 1: 1, 3: 2}
    assert choose_target(spec, ()) == spec
    assert spec.label_rule.output_values == (0, 1, 3)
    label = np.zeros((4, 5, 6), np.uint8)
    label[0, 0, :2] = 1, 3
    nib.save(nib.Nifti1Image(label, np.eye(4)), root / "labelsTr" / "a.nii.gz")
    case = find_msd(root)[0]
    np.testing.assert_array_equal(read_case(case, spec)[1][0, 0, :3], [1, 2, 0])


def test_labels_are_sorted_by_value_not_by_name(tmp_path):
    labels = {str(value): f"part {value}" for value in (10, 9, 2, 1, 0)}
    assert read_description(make_tiny(tmp_path / "a", labels, nnunet=False))["class_names"] == tuple(
        f"part {value}" for value in (0, 1, 2, 9, 10)
    )
    channels = {str(value): f"channel {value}" for value in (10, 9, 2, 1, 0, 3, 4, 5, 6, 7, 8)}
    root = make_tiny(tmp_path / "b", {"background": 0, "a": 1}, channel_names=channels)
    assert read_description(root)["channels"] == tuple(f"channel {value}" for value in range(11))


def test_left_and_right_change_places(tmp_path):
    labels = {"background": 0, "right hippocampus": 1, "left hippocampus": 2}
    spec = load_spec(DATASETS["msd"], make_tiny(tmp_path / "a", labels))
    assert (spec.mirrored_indices(), spec.one_sided) == (((1, 2),), False)
    regions = {**labels, "right hippocampus": [1, 3], "left hippocampus": [2, 4]}
    spec = load_spec(DATASETS["msd"], make_tiny(tmp_path / "b", regions, regions_class_order=[1, 2]))
    assert (spec.mirrored_indices(), spec.one_sided) == ((), True)


def test_another_file_ending_and_names_with_points(tmp_path):
    root = make_tiny(tmp_path / "a", {"background": 0, "a": 1}, file_ending=".nii")
    for name in ("imagesTr/x.1_y_0000.nii", "labelsTr/x.1_y.nii"):
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), root / name)
    assert [case.case_id for case in find_msd(root)] == ["a", "b", "x.1_y"]
    _edit(root, file_ending=".mat")
    with pytest.raises(ValueError, match=r"Expected a `file_ending` of .nii, .*dataset.json. Received: '.mat'"):
        find_msd(root)
    for name in ("imagesTr/y_0000.mha", "labelsTr/y.nrrd"):
        (root / name).touch()
    _edit(root, file_ending=".mha")
    assert [case.case_id for case in find_msd(root)] == ["y"]


def test_each_channel_has_a_file_of_its_own(tmp_path):
    root = make_tiny(tmp_path / "a", {"background": 0, "a": 1}, channel_names={"0": "T1", "1": "T2"})
    _edit(root, dataset={"a": {"images": ["imagesTr/a_0000.nii.gz", "./imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}})
    with pytest.raises(ValueError, match="Expected a file of its own for each channel of a in .*dataset.json"):
        find_msd(root)


def test_what_a_desktop_leaves_behind_is_passed_over(root):
    for name in ("imagesTr/._hippocampus_001.nii.gz", "imagesTr/._case_001_0000.nii.gz", "labelsTr/.DS_Store"):
        (root / name).write_bytes(b"\0")
    assert len(find_msd(root)) == 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("case_001_0000.nii.gz", "case_001.nii.gz"),
        ("case_001_0012.nii", "case_001.nii"),
        ("hippocampus_001.nii.gz", "hippocampus_001.nii.gz"),
        ("a_12345.nii.gz", "a_12345.nii.gz"),
    ],
)
def test_names_of_labels(name, expected):
    assert rename(name, LABEL_RENAMES) == expected


# --------------------------------------------------------------------------------------- what is said of broken ones


def test_no_description(root):
    (root / "dataset.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"Expected .*dataset.json, which describes the data set. Received: nothing there. .*--data"
    ):
        find_msd(root)


@pytest.mark.parametrize("text", ["{", "[]", "3", "null", '"labels"', "\xff", ""])
def test_a_description_that_is_none(root, text):
    (root / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"^Expected (JSON|`labels` of one value each and `modality` or `channel_names`) in .*dataset.json"
    ):
        find_msd(root)


def test_a_description_without_labels_or_channels(root):
    _edit(root, labels=None)
    with pytest.raises(ValueError, match=r"Expected `labels` .*dataset.json. Received: no `labels`. Correct the file."):
        find_msd(root)
    _edit(root, labels={"background": 0, "a": 1}, modality=None, channel_names=None)
    with pytest.raises(ValueError, match=r"Received: no `modality`"):
        find_msd(root)


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "a": [1, "b"]},
        {"background": 0, "a": [[1, 2]]},
        {"background": 0, "a": None},
        {"background": 0, "a": "b"},
        {"background": 0, "-1": "a"},
        ["background", "a"],
        None,
        "a",
    ],
)
def test_labels_that_are_no_values(tmp_path, labels):
    root = make_tiny(tmp_path / "a", labels)
    with pytest.raises(ValueError, match="Expected `labels` of one value each .*Correct the file"):
        find_msd(root)


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"background": 0}, r"\[0\]"),
        ({}, r"\[\]"),
        ({"a": 1, "b": 2}, r"\[1, 2\]"),
        ({"background": 0, "a": 1, "b": 1}, r"\[0, 1, 1\]"),
        ({"background": 0, "a": 255}, r"\[0, 255\]"),
        ({"background": -1, "a": 0}, r"\[-1, 0\]"),
    ],
)
def test_labels_that_cannot_be_classes(tmp_path, labels, values):
    root = make_tiny(tmp_path / "a", labels)
    with pytest.raises(ValueError, match=rf"labels of different names and values from 0 .*Received: 1 channels, labels {values} named "):
        find_msd(root)


def test_no_channel(tmp_path):
    root = make_tiny(tmp_path / "a", {"background": 0, "a": 1}, channel_names={})
    with pytest.raises(ValueError, match="Expected a channel, .*Received: 0 channels"):
        find_msd(root)


def test_two_classes_of_one_name(tmp_path):
    root = make_tiny(tmp_path / "a", {"0": "background", "1": "a", "2": "a"}, nnunet=False)
    with pytest.raises(ValueError, match="'a'"):
        find_msd(root)


@pytest.mark.parametrize("which", ["image", "label"])
def test_an_incomplete_pair(root, which):
    case = find_msd(root)[1]
    path = case.image_paths[-1] if which == "image" else case.label_path
    path.unlink()
    with pytest.raises(ValueError, match=rf"Expected .*{path.name}.*Received: nothing there. .*(Add it|remove the case)"):
        find_msd(root)


@pytest.mark.parametrize("channels", [("0000",), ("0000", "0001")])
def test_a_case_of_nnunet_without_its_first_channel_is_not_passed_over(tmp_path, channels):
    root = phantom.write_msd(tmp_path / "msd", subjects=3, shape=(16, 16, 16), nnunet=True)
    for channel in channels:
        (root / "imagesTr" / f"case_003_{channel}.nii.gz").unlink()
    with pytest.raises(ValueError, match="case_003"):
        find_msd(root)


def test_no_images(root):
    for path in (root / "imagesTr").iterdir():
        path.unlink()
    _edit(root, training=None)
    with pytest.raises(FileNotFoundError, match=r"Expected images in .*imagesTr. Received: none. Give the data set's folder with `--data`"):
        find_msd(root)
    shutil.rmtree(root / "imagesTr")
    with pytest.raises(FileNotFoundError, match="Received: none"):
        find_msd(root)


def test_a_list_of_no_cases(tmp_path):
    root = make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False, training=[])
    with pytest.raises(FileNotFoundError, match=r"Expected cases in `training` of .*dataset.json. Received: none. List them, or remove"):
        find_msd(root)


def test_a_decathlon_folder_without_a_list_is_read_as_it_lies(tmp_path):
    root = make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False)
    _edit(root, training=None)
    assert find_msd(root) == [Case(name, name, (root / f"imagesTr/{name}.nii.gz",), root / f"labelsTr/{name}.nii.gz") for name in "ab"]
    (root / "labelsTr/a.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"Expected .*labelsTr/a.nii.gz for case a. Received: nothing there"):
        find_msd(root)


@pytest.mark.parametrize("nnunet", [False, True])
def test_pairs_of_different_endings_are_all_found(tmp_path, nnunet):
    root = make_tiny(tmp_path / "a", {"background": 0, "a": 1} if nnunet else {"0": "background", "1": "a"}, nnunet)
    image = root / f"imagesTr/a{'_0000' if nnunet else ''}.nii.gz"
    image.rename(image.with_name(image.name.replace(".nii.gz", ".NII.GZ")))
    nib.save(nib.load(root / "labelsTr/b.nii.gz"), root / "labelsTr/b.nii")
    (root / "labelsTr/b.nii.gz").unlink()
    first, second = find_msd(root)
    assert (first.case_id, first.image_paths[0].name[-7:], second.label_path.name) == ("a", ".NII.GZ", "b.nii")
    assert rename(first.image_paths[0].name, LABEL_RENAMES) == "a.NII.GZ"
    shutil.copy(root / "labelsTr/b.nii", root / "labelsTr/a.nii")
    if nnunet:
        with pytest.raises(ValueError, match=r"Expected one file of the name a in .*labelsTr. Received: a.nii and a.nii.gz. Remove one."):
            find_msd(root)


@pytest.mark.parametrize(
    ("nnunet", "labels", "values"),
    [
        (True, {"background": 0, "1": 2, "2": 3, "3": 1}, {"background": 0, "3": 1, "1": 2, "2": 3}),
        (False, {"0": "background", "2": "1", "3": "2", "1": "3"}, {"background": 0, "3": 1, "1": 2, "2": 3}),
        (True, {"0": "background", "1": "a"}, {"background": 0, "a": 1}),
        (False, {"background": "0", "a": 1.0}, {"background": 0, "a": 1}),
    ],
)
def test_names_of_digits_are_read_as_the_layout_writes_them(tmp_path, nnunet, labels, values):
    description = read_description(make_tiny(tmp_path / "a", labels, nnunet))
    assert dict(zip(description["class_names"], description["label_values"], strict=True)) == values


@pytest.mark.parametrize("value", [1.5, True, "1.5"])
def test_a_value_that_is_no_whole_number_becomes_none(tmp_path, value):
    root = make_tiny(tmp_path / "a", {"background": 0, "a": value})
    with pytest.raises(ValueError, match=r"Received: labels .*which have no whole numbers for values"):
        find_msd(root)


def test_the_mapping_of_nnunet_says_where_the_files_are(tmp_path):
    listed = {name: {"images": [f"scans/{name}_0000.nii.gz"], "label": f"masks/{name}.nii.gz"} for name in ("a", "b")}
    root = make_tiny(tmp_path / "a", {"background": 0, "a": 1}, dataset=listed)
    (root / "imagesTr").rename(root / "scans")
    (root / "labelsTr").rename(root / "masks")
    assert find_msd(root) == [Case(name, name, (root / f"scans/{name}_0000.nii.gz",), root / f"masks/{name}.nii.gz") for name in "ab"]
    (root / "masks/b.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"Expected .*masks/b.nii.gz, which dataset.json lists. Received: nothing there"):
        find_msd(root)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "Expected a mapping from cases to their files in `dataset`"),
        (["a"], "Expected a mapping"),
        ({"a": ["imagesTr/a_0000.nii.gz"]}, "Expected a name, `images` and `label` of each case in `dataset` of .*Received: 'a'"),
        ({"a": {"images": ["imagesTr/a_0000.nii.gz"]}}, "Expected a name, `images` and `label`"),
        ({"../a": {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}}, r"Received: '\.\./a'"),
        ({"a": {"images": [], "label": "labelsTr/a.nii.gz"}}, "Expected 1 images, one a channel, of a in .*Received: 0"),
    ],
)
def test_a_mapping_of_nnunet_that_is_wrong(tmp_path, mapping, message):
    root = make_tiny(tmp_path / "a", {"background": 0, "a": 1}, dataset=mapping)
    with pytest.raises(ValueError, match=message):
        find_msd(root)


@pytest.mark.parametrize("nnunet", [False, True])
def test_another_number_of_cases_than_promised_is_said(tmp_path, nnunet, caplog):
    labels = {"background": 0, "a": 1} if nnunet else {"0": "background", "1": "a"}
    root = make_tiny(tmp_path / "a", labels, nnunet, numTraining=2)
    assert len(find_msd(root)) == 2
    assert not caplog.messages
    _edit(root, numTraining="7")
    find_msd(root)
    assert caplog.messages == [f"{root}/dataset.json says numTraining '7', but 2 training cases are there"]


def test_a_case_listed_twice(tmp_path):
    root = make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False)
    pair = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    _edit(root, training=[pair, {"image": "imagesTr/b.nii.gz", "label": "labelsTr/b.nii.gz"}, pair])
    with pytest.raises(ValueError, match=r"Expected each case once in .*dataset.json. Received: a twice. Correct the file."):
        find_msd(root)


@pytest.mark.parametrize("entry", ["./imagesTr/a.nii.gz", {"image": "./imagesTr/a.nii.gz"}, 3, None])
def test_an_entry_that_is_no_pair(tmp_path, entry):
    root = make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False, training=[entry])
    with pytest.raises(ValueError, match=r"Expected image and label of each training case in .*dataset.json. Received: "):
        find_msd(root)


@pytest.mark.parametrize("training", [5, [{"image": ["imagesTr/a.nii.gz"], "label": "labelsTr/a.nii.gz"}], [{"image": None, "label": 1}]])
def test_a_list_of_cases_of_other_types(tmp_path, training):
    root = make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False, training=training)
    with pytest.raises(ValueError, match="dataset.json"):
        find_msd(root)


def test_channels_of_another_number_are_named(tmp_path):
    root = make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False, modality={"0": "T1", "1": "T2"})
    spec = load_spec(DATASETS["msd"], root)
    with pytest.raises(ValueError, match=r"Expected 2 channel\(s\) \(T1, T2\) for this model. Received: 1 in .*a.nii.gz"):
        prepare_cases(find_msd(root), spec, Preprocessing(3), tmp_path / "cache")
