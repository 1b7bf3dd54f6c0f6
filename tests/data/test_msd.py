"""Folders of volumes: both layouts of the Decathlon's kind, HipMRI 3-D and IBSR18, with their quirks and their errors."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dataset import DATASETS, find_hipmri3d, find_ibsr18
from modules import phantom
from modules.data.cache import prepare_cases
from modules.data.case import Case, read_case, read_volume, rename
from modules.data.msd import LABEL_RENAMES, find_msd, read_description
from modules.data.preprocess import Preprocessing
from modules.data.spec import choose_target, find_cases, load_spec
from modules.data.splits import SPLITS, split_cases
from modules.predict.inputs import find_images


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


def _make_tiny(root, labels, nnunet=True, **values):
    """Writes a folder of two cases, one volume a channel, for tests of `dataset.json` alone."""
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    for case in ("a", "b"):
        for path in (f"imagesTr/{case}_0000.nii.gz" if nnunet else f"imagesTr/{case}.nii.gz", f"labelsTr/{case}.nii.gz"):
            nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), root / path)
    record = {"labels": labels, "channel_names" if nnunet else "modality": {"0": "T1"}}
    if not nnunet:
        record["training"] = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ("a", "b")]
    (root / "dataset.json").write_text(json.dumps(record | values))
    return root


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
    root = _make_tiny(tmp_path / "gaps", labels, nnunet)
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
    assert read_description(_make_tiny(tmp_path / "a", labels, nnunet=False))["class_names"] == tuple(
        f"part {value}" for value in (0, 1, 2, 9, 10)
    )
    channels = {str(value): f"channel {value}" for value in (10, 9, 2, 1, 0, 3, 4, 5, 6, 7, 8)}
    root = _make_tiny(tmp_path / "b", {"background": 0, "a": 1}, channel_names=channels)
    assert read_description(root)["channels"] == tuple(f"channel {value}" for value in range(11))


def test_another_file_ending_and_names_with_points(tmp_path):
    root = _make_tiny(tmp_path / "a", {"background": 0, "a": 1}, file_ending=".nii")
    for name in ("imagesTr/x.1_y_0000.nii", "labelsTr/x.1_y.nii"):
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), root / name)
    assert [case.case_id for case in find_msd(root)] == ["a", "b", "x.1_y"]
    _edit(root, file_ending=".mha")
    with pytest.raises(ValueError, match=r"Expected a `file_ending` of .nii, .*dataset.json. Received: '.mha'"):
        find_msd(root)


def test_each_channel_has_a_file_of_its_own(tmp_path):
    root = _make_tiny(tmp_path / "a", {"background": 0, "a": 1}, channel_names={"0": "T1", "1": "T2"})
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
        {"background": 0, "whole": [1, 2], "core": [2]},
        {"background": 0, "a": None},
        {"background": 0, "a": "b"},
        {"background": 0, "-1": "a"},
        ["background", "a"],
        None,
        "a",
    ],
)
def test_labels_that_are_no_values_such_as_regions(tmp_path, labels):
    root = _make_tiny(tmp_path / "a", labels)
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
    root = _make_tiny(tmp_path / "a", labels)
    with pytest.raises(ValueError, match=rf"labels of different names and values from 0 .*Received: 1 channels, labels {values} named "):
        find_msd(root)


def test_no_channel(tmp_path):
    root = _make_tiny(tmp_path / "a", {"background": 0, "a": 1}, channel_names={})
    with pytest.raises(ValueError, match="Expected a channel, .*Received: 0 channels"):
        find_msd(root)


def test_the_label_to_ignore_is_no_class(tmp_path):
    root = _make_tiny(tmp_path / "a", {"background": 0, "a": 1, "ignore": 2})
    with pytest.raises(ValueError, match="ignore"):
        find_msd(root)


def test_two_classes_of_one_name(tmp_path):
    root = _make_tiny(tmp_path / "a", {"0": "background", "1": "a", "2": "a"}, nnunet=False)
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
    root = _make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False, training=[])
    with pytest.raises(FileNotFoundError, match=r"Expected cases in `training` of .*dataset.json. Received: none. List them, or remove"):
        find_msd(root)


def test_a_decathlon_folder_without_a_list_is_read_as_it_lies(tmp_path):
    root = _make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False)
    _edit(root, training=None)
    assert find_msd(root) == [Case(name, name, (root / f"imagesTr/{name}.nii.gz",), root / f"labelsTr/{name}.nii.gz") for name in "ab"]
    (root / "labelsTr/a.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"Expected .*labelsTr/a.nii.gz for case a. Received: nothing there"):
        find_msd(root)


@pytest.mark.parametrize("nnunet", [False, True])
def test_pairs_of_different_endings_are_all_found(tmp_path, nnunet):
    root = _make_tiny(tmp_path / "a", {"background": 0, "a": 1} if nnunet else {"0": "background", "1": "a"}, nnunet)
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
    description = read_description(_make_tiny(tmp_path / "a", labels, nnunet))
    assert dict(zip(description["class_names"], description["label_values"], strict=True)) == values


@pytest.mark.parametrize("value", [1.5, True, "1.5"])
def test_a_value_that_is_no_whole_number_becomes_none(tmp_path, value):
    root = _make_tiny(tmp_path / "a", {"background": 0, "a": value})
    with pytest.raises(ValueError, match=r"Received: labels .*which have no whole numbers for values"):
        find_msd(root)


def test_the_mapping_of_nnunet_says_where_the_files_are(tmp_path):
    listed = {name: {"images": [f"scans/{name}_0000.nii.gz"], "label": f"masks/{name}.nii.gz"} for name in ("a", "b")}
    root = _make_tiny(tmp_path / "a", {"background": 0, "a": 1}, dataset=listed)
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
    root = _make_tiny(tmp_path / "a", {"background": 0, "a": 1}, dataset=mapping)
    with pytest.raises(ValueError, match=message):
        find_msd(root)


@pytest.mark.parametrize("nnunet", [False, True])
def test_another_number_of_cases_than_promised_is_said(tmp_path, nnunet, caplog):
    labels = {"background": 0, "a": 1} if nnunet else {"0": "background", "1": "a"}
    root = _make_tiny(tmp_path / "a", labels, nnunet, numTraining=2)
    assert len(find_msd(root)) == 2
    assert not caplog.messages
    _edit(root, numTraining="7")
    find_msd(root)
    assert caplog.messages == [f"{root}/dataset.json says numTraining '7', but 2 training cases are there"]


def test_a_case_listed_twice(tmp_path):
    root = _make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False)
    pair = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    _edit(root, training=[pair, {"image": "imagesTr/b.nii.gz", "label": "labelsTr/b.nii.gz"}, pair])
    with pytest.raises(ValueError, match=r"Expected each case once in .*dataset.json. Received: a twice. Correct the file."):
        find_msd(root)


@pytest.mark.parametrize("entry", ["./imagesTr/a.nii.gz", {"image": "./imagesTr/a.nii.gz"}, 3, None])
def test_an_entry_that_is_no_pair(tmp_path, entry):
    root = _make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False, training=[entry])
    with pytest.raises(ValueError, match=r"Expected image and label of each training case in .*dataset.json. Received: "):
        find_msd(root)


@pytest.mark.parametrize("training", [5, [{"image": ["imagesTr/a.nii.gz"], "label": "labelsTr/a.nii.gz"}], [{"image": None, "label": 1}]])
def test_a_list_of_cases_of_other_types(tmp_path, training):
    root = _make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False, training=training)
    with pytest.raises(ValueError, match="dataset.json"):
        find_msd(root)


def test_channels_of_another_number_are_named(tmp_path):
    root = _make_tiny(tmp_path / "a", {"0": "background", "1": "a"}, nnunet=False, modality={"0": "T1", "1": "T2"})
    spec = load_spec(DATASETS["msd"], root)
    with pytest.raises(ValueError, match=r"Expected 2 channel\(s\) \(T1, T2\) for this model. Received: 1 in .*a.nii.gz"):
        prepare_cases(find_msd(root), spec, Preprocessing(3), tmp_path / "cache")


# ----------------------------------------------------------------------------------------------------- HipMRI 3-D


@pytest.fixture(scope="module")
def pelves(tmp_path_factory):
    return phantom.write_hipmri3d(tmp_path_factory.mktemp("hipmri3d") / "hipmri3d", subjects=8, shape=(32, 32, 16))


@pytest.fixture
def pelves_copy(pelves, tmp_path):
    return shutil.copytree(pelves, tmp_path / "hipmri3d")


def test_hipmri3d_with_its_quirks(pelves):
    spec = load_spec(DATASETS["hipmri3d"], pelves)
    cases = {case.case_id: case for case in find_cases(spec, pelves)}
    assert list(cases) == [
        "B006_Week0", "Case_005_Week1", "Case_005_Week2", "Case_007_Week1", "Case_008_Week1", "Case_009_Week1", "Case_009_Week2",
        "Case_010_Week1", "Case_011_Week1", "Case_012_Week0",
    ]  # fmt: skip
    assert cases["B006_Week0"].subject_id == "patient_006"
    assert cases["B006_Week0"].label_path.name == "B006_Week0_SEMANTIC.nii.gz"
    assert cases["Case_005_Week1"].subject_id == cases["Case_005_Week2"].subject_id == "patient_005"
    nested = cases["Case_012_Week0"]
    assert nested.image_paths[0].relative_to(pelves) == Path("semantic_MRs_anon/Case_012_Week0_LFOV.nii/Case_012_Week0_LFOV.nii")
    assert len({case.subject_id for case in cases.values()}) == 8
    for case in cases.values():
        image = read_volume(case.image_paths)
        assert image.array.shape == ((36, 32, 14, 1) if case.subject_id == "patient_007" else (32, 32, 16, 1))
        read_case(case, spec)[1]


def test_hipmri3d_keeps_the_weeks_of_a_patient_together(pelves):
    cases = find_cases(DATASETS["hipmri3d"], pelves)
    for seed in range(20):
        splits, _ = split_cases(cases, (0.2, 0.2), seed)
        subjects = [{case.subject_id for case in members} for members in splits.values()]
        assert sum(map(len, subjects)) == len(set.union(*subjects)) == 8
        assert sum(map(len, splits.values())) == len(cases)


def test_hipmri3d_counts_one_patient_of_both_releases_once(pelves_copy):
    for name, twin in (("semantic_MRs_anon/{}_LFOV", "Case_006_Week1"), ("semantic_labels_anon/{}_SEMANTIC_LFOV", "Case_006_Week1")):
        source = pelves_copy / (name.format("Case_005_Week1") + ".nii.gz")
        shutil.copy(source, pelves_copy / (name.format(twin) + ".nii.gz"))
    cases = {case.case_id: case.subject_id for case in find_hipmri3d(pelves_copy)}
    assert cases["B006_Week0"] == cases["Case_006_Week1"]


def test_hipmri3d_finds_its_folders_under_other_names_and_passes_over_litter(pelves_copy):
    for name in ("MRs", "labels"):
        (pelves_copy / f"semantic_{name}_anon").rename(pelves_copy / f"semantic_{name}")
    (pelves_copy / "semantic_MRs" / "._Case_005_Week1_LFOV.nii.gz").write_bytes(b"\0")
    (pelves_copy / "semantic_MRs" / "readme.txt").write_text("")
    assert len(find_hipmri3d(pelves_copy)) == 10


def test_hipmri3d_says_what_is_wrong(pelves_copy, tmp_path):
    images, labels = pelves_copy / "semantic_MRs_anon", pelves_copy / "semantic_labels_anon"
    (labels / "Case_008_Week1_SEMANTIC_LFOV.nii.gz").rename(tmp_path / "aside.nii.gz")
    with pytest.raises(ValueError, match=r"Expected a label for .*Case_008_Week1_LFOV.nii.gz. Received: none under"):
        find_hipmri3d(pelves_copy)
    (tmp_path / "aside.nii.gz").rename(labels / "Case_008_Week1_SEMANTIC_LFOV.nii.gz")
    (images / "Case_008_Week1_LFOV.nii.gz").rename(tmp_path / "aside.nii.gz")
    with pytest.raises(ValueError, match=r"Expected an image for .*Case_008_Week1_SEMANTIC_LFOV.nii.gz. Received: none under"):
        find_hipmri3d(pelves_copy)
    for name in ("patient 8.nii.gz", "Case_008_Week1_SEMANTIC_LFOV.nii.gz"):
        (tmp_path / "aside.nii.gz").rename(images / name)
        with pytest.raises(ValueError, match=rf"Expected volumes named Case_<n>_Week<n>_.*Received: .*{name}. Rename or remove it"):
            find_hipmri3d(pelves_copy)
        (images / name).rename(tmp_path / "aside.nii.gz")
    shutil.copy(tmp_path / "aside.nii.gz", images / "Case_008_Week1_LFOV.nii.gz")
    (images / "again").mkdir()
    (tmp_path / "aside.nii.gz").rename(images / "again" / "Case_008_Week1_LFOV.nii.gz")
    with pytest.raises(ValueError, match=r"Expected one file for Case_008_Week1. Received: .* and .*. Remove one"):
        find_hipmri3d(pelves_copy)


@pytest.mark.parametrize("find", [find_hipmri3d, find_ibsr18])
def test_an_empty_folder_says_what_to_give(tmp_path, find):
    with pytest.raises(FileNotFoundError, match="Expected volumes in .*Received: none. Give the data set's folder with `--data`"):
        find(tmp_path)
    # Folders without files are no better.
    for name in ("semantic_MRs_anon", "semantic_labels_anon", "Training_Set", "Test_Set"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match="Received: none"):
        find(tmp_path)


@pytest.mark.parametrize("release", ["Case_005_Week1", "B006_Week0", "Case_012_Week0"])
def test_hipmri3d_names_its_labels_as_its_finder_finds_them(pelves, release):
    """B006_Week0_LFOV.nii.gz has its label in B006_Week0_SEMANTIC.nii.gz, without LFOV."""
    case = next(case for case in find_hipmri3d(pelves) if case.case_id == release)
    assert DATASETS["hipmri3d"].label_rule.name_label(case.image_paths[0].name) == case.label_path.name


def test_hipmri3d_labels_are_not_predicted(pelves):
    assert len(find_images([str(pelves)], [spec.label_rule for spec in DATASETS.values()]).images) == 10


# ----------------------------------------------------------------------------------------------------------- IBSR18


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    return phantom.write_ibsr18(tmp_path_factory.mktemp("ibsr18") / "ibsr18", subjects=(3, 2, 2), shape=(24, 20, 24))


@pytest.fixture
def brains_copy(brains, tmp_path):
    return shutil.copytree(brains, tmp_path / "ibsr18")


def test_ibsr18_with_its_quirks(brains):
    spec = load_spec(DATASETS["ibsr18"], brains)
    cases = find_cases(spec, brains)
    assert [(case.split, case.label_path is None) for case in sorted(cases, key=lambda case: SPLITS.index(case.split))] == [
        *[("train", False)] * 3, *[("validate", False)] * 2, *[("test", True)] * 2,
    ]  # fmt: skip
    for case in cases:
        assert case.case_id == case.subject_id == case.image_paths[0].parent.name
        image = read_volume(case.image_paths)
        assert image.array.shape == (24, 20, 24, 1)
        assert len(image.spacing_mm) == 3
        assert min(image.spacing_mm) > 0
        if case.label_path:
            assert set(np.unique(read_case(case, spec)[1])) <= {0, 1, 2, 3}
            assert spec.label_rule.name_label(case.image_paths[0].name) == case.label_path.name


def test_ibsr18_holds_out_a_test_set_for_the_one_without_labels(brains):
    cases = find_cases(DATASETS["ibsr18"], brains)
    splits, remarks = split_cases(cases)
    assert {name: len(members) for name, members in splits.items()} == {"train": 2, "validate": 2, "test": 1}
    assert remarks[0] == "2 case(s) without a label are left out."
    assert all(case.label_path for members in splits.values() for case in members)


def test_ibsr18_as_it_is_often_copied(brains_copy):
    # The copy has no validation set, labels in its test set, and files that are not packed.
    shutil.rmtree(brains_copy / "Validation_Set")
    for folder in (brains_copy / "Test_Set").iterdir():
        nib.save(nib.Nifti1Image(np.zeros((24, 20, 24), np.int16), np.eye(4)), folder / f"{folder.name}_seg.nii.gz")
    folder = brains_copy / "Training_Set" / "IBSR_07"
    for path in list(folder.iterdir()):
        nib.save(nib.load(path), folder / path.name.removesuffix(".gz"))
        path.unlink()
    cases = find_ibsr18(brains_copy)
    assert [(case.split, case.label_path is None) for case in cases] == [("train", False)] * 3 + [("test", False)] * 2
    assert cases[0] == Case("IBSR_07", "IBSR_07", (folder / "IBSR_07.nii",), folder / "IBSR_07_seg.nii", "train")


def test_ibsr18_says_what_is_wrong(brains_copy):
    folder = brains_copy / "Training_Set" / "IBSR_07"
    (folder / "IBSR_07_seg.nii.gz").rename(folder / "seg.nii.gz")
    with pytest.raises(ValueError, match=r"Expected a label for .*IBSR_07.nii.gz. Received: no .*IBSR_07_seg.nii.gz. Add it or remove"):
        find_ibsr18(brains_copy)
    (folder / "IBSR_07.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"Expected .*IBSR_07.nii.gz. Received: nothing there. Mend or remove the folder"):
        find_ibsr18(brains_copy)


def test_ibsr18_of_a_volume_in_two_files(brains_copy):
    for path in list((brains_copy / "Training_Set" / "IBSR_07").iterdir()):
        nib.save(nib.load(path), path.with_suffix(""))
    with pytest.raises(ValueError, match="IBSR_07"):
        find_ibsr18(brains_copy)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "folder", "number"), [("hipmri3d", "hipmri3d", 12), ("ibsr18", "ibsr18", 13), ("msd", "Task04_Hippocampus", 208)]
)
def test_real_folders_are_found(real_data, name, folder, number):
    spec = load_spec(DATASETS[name], real_data / folder)
    cases = find_cases(spec, real_data / folder)
    assert len(cases) == number
    image = read_volume(cases[0].image_paths)
    spec.preprocessing.check(image, spec.channels, cases[0].case_id)
