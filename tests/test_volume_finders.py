"""Folders of volumes as their finders in dataset.py read them: HipMRI 3-D and IBSR18, with their quirks and their errors."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dataset import DATASETS, find_hipmri3d, find_ibsr18
from modules import phantom
from modules.data.case import Case, read_case, read_volume
from modules.data.spec import find_cases, load_spec
from modules.data.splits import SPLITS, split_cases
from modules.predict.inputs import find_images

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
