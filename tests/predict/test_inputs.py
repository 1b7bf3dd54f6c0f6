"""The search for images: folders, links, names, and reference labels that lie among the scans."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset import DATASETS
from modules.data.case import LabelRule
from modules.data.msd import LABEL_RENAMES
from modules.predict.inputs import find_images, make_cases

RULES = [spec.label_rule for spec in DATASETS.values()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes empty files in the working folder."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def _find(*paths):
    """Finds the images, and the sub-folders of their results."""
    return {str(image.path): image.folder for image in find_images(paths, RULES).images}


def _bundle(channels=1, spatial_dims=3, renames=LABEL_RENAMES):
    return SimpleNamespace(
        channels=("T1",) * channels,
        preprocessing=SimpleNamespace(spatial_dims=spatial_dims),
        label_rule=LabelRule({0: 0, 1: 1}, renames=renames),
    )


def test_scans_whose_names_begin_alike_are_all_found(folder):
    folder("images/p01.nii.gz", "images/p01_2019.nii.gz", "images/p01_0001.NII")
    assert len(_find("images")) == len(_find("images/*")) == len(_find(*map(str, Path("images").iterdir()))) == 3


@pytest.mark.parametrize(
    "label",
    [
        "s/sub-01_dseg.nii.gz", "s/sub-01_T1w_dseg.nii", "s/sub-01_T1w_seg.nii.gz", "s/sub-01_mask.nii.gz", "s/sub-01_T1w_label.NII.GZ",
        "derivatives/x/sub-01_space-T1w_desc-brain_mask.nii.gz", "s/sub-01_label-GM_probseg.nii.gz", "s/sub-01_T1w-label.nii",
        "labels/sub-01_T1w.nii.gz", "s/masks/sub-01_T1w.nii", "s/label.nii.gz", "s/mask.nii", "s/sub-01.seg.nii", "s/sub-01_manual.nii.gz",
        "s/sub-01_ground_truth.nii", "s/segmentation-01_T1w.nii", "x/mask_sub-01_T1w.nii",
    ],
)  # fmt: skip
def test_reference_labels_among_the_scans_are_left_out_and_named(folder, label):
    folder("s/sub-01_T1w.nii.gz", label)
    search = find_images(["."], RULES)
    assert [str(image.path) for image in search.images] == ["s/sub-01_T1w.nii.gz"]
    assert search.remarks == [f"1 reference label(s) among the images are left out: {Path(label).name}"]
    assert not search.failures


def test_a_name_that_begins_like_a_label_needs_its_image(folder):
    folder("volume-0.nii", "volume-10.nii", "segmentation-0.nii", "segmentation-1.nii", "mask.nii")
    assert list(_find(".")) == ["segmentation-1.nii", "volume-0.nii", "volume-10.nii"]


def test_labels_of_nnunet_lie_in_a_folder_of_labels(folder):
    folder("imagesTr/p01_0000.nii.gz", "labelsTr/p01.nii.gz")
    assert _find(".") == {"imagesTr/p01_0000.nii.gz": "imagesTr"}
    assert _find("labelsTr") == {"labelsTr/p01.nii.gz": ""}


def test_a_file_that_is_named_is_a_label_only_beside_its_image(folder):
    folder("a_mask.nii", "a.nii", "b_seg.nii")
    assert _find("a_mask.nii", "b_seg.nii") == {"a_mask.nii": "", "b_seg.nii": ""}
    assert _find("a_mask.nii", "a.nii", "b_seg.nii") == {"a.nii": "", "b_seg.nii": ""}
    folder("p/T1.nii", "p/mask.nii", "q/mask.nii")
    assert list(_find("p/T1.nii", "p/mask.nii", "q/mask.nii")) == ["p/T1.nii", "q/mask.nii"]


def test_a_folder_of_labels_alone_says_what_it_takes_them_for(folder):
    folder("x/a_seg.nii", "y/a_prediction.nii")
    (failure,) = find_images(["x"], RULES).failures
    assert str(failure) == "Expected images. Received: x/a_seg.nii, which looks like a reference label. Give it as a file."
    (failure,) = find_images(["y"], RULES).failures
    assert "at y. Received: only 1 file(s) of earlier output. Check the path." in str(failure)


def test_names_of_earlier_output_are_left_out_and_counted(folder):
    folder("x/a.nii", "x/a_prediction.nii", "x/b_overlay.png", "x/notes.txt")
    search = find_images(["x"], RULES)
    assert [image.path.name for image in search.images] == ["a.nii"]
    assert search.remarks == [
        "2 file(s) at x with names of earlier output (_prediction, _prediction.seg, _overlay, _probabilities) are left out",
        "1 file(s) of other kinds below x are left out",
    ]


def test_linked_folders_are_entered_without_going_round(folder):
    root = folder("patient1/a.nii", "study/b.nii", "study/.hidden/c.nii")
    for name, target in (("p1", "patient1"), ("up", "."), ("self", "study")):
        (root / "study" / name).symlink_to(root / target, target_is_directory=True)
    (root / "patient1" / "back").symlink_to(root / "study", target_is_directory=True)
    assert _find("study") == {"study/b.nii": "", "study/p1/a.nii": "p1"}


def test_a_link_to_nothing_is_an_image_that_fails_later(folder):
    root = folder("study/a.nii")
    (root / "study" / "b.nii").symlink_to(root / "gone.nii")
    assert list(_find("study")) == ["study/a.nii", "study/b.nii"]


def test_sub_folders_are_mirrored_and_names_told_apart(folder):
    folder("p1/T1.nii.gz", "p2/T1.nii.gz", "p2/T2.nii.gz", "p2/T2.nii")
    assert _find("p1/T1.nii.gz", "p1") == {"p1/T1.nii.gz": ""}
    assert _find("p1/T1.nii.gz", "p2/T1.nii.gz") == _find("p*/T1.nii.gz") == {"p1/T1.nii.gz": "p1", "p2/T1.nii.gz": "p2"}
    search = find_images(["."], RULES)
    assert [(image.folder, image.path.name) for image in search.images] == [("p1", "T1.nii.gz"), ("p2", "T1.nii.gz"), ("p2", "T2.nii")]
    assert "Expected images of different names. Received: p2/T2.nii and p2/T2.nii.gz." in str(search.failures[0])


def test_a_path_that_is_wrong_does_not_end_the_others(folder):
    folder("a.nii", "notes.txt")
    search = find_images(["a.nii", "notes.txt", "absent.nii"], RULES)
    assert len(search.images) == 1
    assert [str(failure)[:16] for failure in search.failures] == ["Expected an imag", "Expected images "]


def test_cases_are_named_by_their_sub_folder_and_find_their_labels_there(folder):
    root = folder("s/p1/T1.nii.gz", "s/p2/T1.nii.gz", "l/p1/T1.nii", "l/p2/T1.nii", "l/other.nii")
    cases, failures = make_cases(find_images(["s"], RULES).images, root / "l", _bundle())
    assert [(case.case_id, case.subject_id, case.label_path) for case in cases] == [
        (f"{name}/T1", f"{name}/T1", root / f"l/{name}/T1.nii") for name in ("p1", "p2")
    ]
    assert failures == []


def test_labels_with_an_ending_are_found_and_missing_ones_are_said(folder):
    root = folder("s/a_1.nii", "s/a_2.nii", "s/b_1.nii", "l/a_1_dseg.nii.gz", "l/a_2.nii")
    cases, failures = make_cases(find_images(["s"], RULES).images, root / "l", _bundle(spatial_dims=2))
    assert [(case.case_id, case.volume_id, case.label_path and case.label_path.name) for case in cases] == [
        ("a_1", "a", "a_1_dseg.nii.gz"), ("a_2", "a", "a_2.nii"), ("b_1", "b", None),
    ]  # fmt: skip
    assert [str(failure) for failure in failures] == [
        f"Expected a label for s/b_1.nii. Received: no b_1.nii in {root / 'l'}. Without it, it is not scored."
    ]
    with pytest.raises(FileNotFoundError, match=r"Expected a folder of reference labels at nowhere. Received: no such folder"):
        make_cases([], Path("nowhere"), _bundle())
    with pytest.raises(FileNotFoundError, match=r"Expected a label for s/b_1.nii"):
        make_cases(find_images(["s/b_1.nii"], RULES).images, root / "l", _bundle())


def test_a_label_is_found_whichever_way_its_accents_are_written(folder):
    root = folder("s/Zo\u00e9.nii", "l/Zoe\u0301.nii.gz")
    (case,), failures = make_cases(find_images(["s"], RULES).images, root / "l", _bundle())
    assert (case.case_id, case.label_path, failures) == ("Zo\u00e9", root / "l/Zoe\u0301.nii.gz", [])


def test_one_label_is_never_that_of_two_scans(folder):
    root = folder("s/p1/T1.nii", "s/p2/T1.nii", "l/p1/T1.nii", "m/T1.nii", "n/a_seg.nii", "n/a_mask.nii", "t/a.nii")
    cases, failures = make_cases(find_images(["s"], RULES).images, root / "l", _bundle())
    assert [case.label_path for case in cases] == [root / "l/p1/T1.nii", None]
    (failure,) = failures
    assert str(failure).startswith(f"Expected a label of its own for s/p2/T1.nii. Received: {root}/l/p1/T1.nii, which s/p1/T1.nii has too.")
    with pytest.raises(ValueError, match=r"label of its own for s/p1/T1.nii. Received: .*m/T1.nii, which s/p2/T1.nii has too"):
        make_cases(find_images(["s"], RULES).images, root / "m", _bundle())
    with pytest.raises(ValueError, match=r"Expected one label for t/a.nii. Received: .*n/a_mask.nii and .*n/a_seg.nii"):
        make_cases(find_images(["t"], RULES).images, root / "n", _bundle())


def test_the_label_of_a_name_that_another_begins_with_is_not_taken(folder):
    root = folder("s/p01.nii", "s/p01_2019.nii", "s/p02_0000.nii", "l/p01.nii", "l/p01_2019.nii", "l/p02.nii")
    for _ in range(2):
        cases, failures = make_cases(find_images(["s"], RULES).images, root / "l", _bundle())
        labels = {case.case_id: case.label_path and case.label_path.name for case in cases}
        two = "p01_2019.nii" if not failures else None
        assert labels == {"p01": "p01.nii", "p01_2019": two, "p02_0000": "p02.nii"}
        (root / "l/p01_2019.nii").unlink(missing_ok=True)
    assert (
        str(failures[0]) == f"Expected a label for s/p01_2019.nii. Received: no p01_2019.nii in {root / 'l'}. Without it, it is not scored."
    )


def test_a_case_that_lacks_a_channel_does_not_end_the_others(folder):
    folder("s/a_0000.nii", "s/a_0001.NII", "s/b_0000.nii", "s/c.nii")
    cases, failures = make_cases(find_images(["s"], RULES).images, None, _bundle(channels=2))
    assert [(case.case_id, len(case.image_paths)) for case in cases] == [("a", 2), ("c", 1)]
    assert [str(failure) for failure in failures] == ["Expected 2 channels of s/b_0000.nii. Received: no b_0001.nii. Give all its files."]


@pytest.mark.parametrize(
    ("names", "case"),
    [
        (("a/a_pre_t1.nii", "a/a_t1.nii"), "a/a"),
        (("p1/pre_t1.nii", "p1/t1.nii"), "p1/p1"),
        (("pre_t1/a.nii", "t1/a.nii"), "a"),
        (("x/pre_t1/a.nii.gz", "x/t1/a.NII"), "x/a"),
        (("a-pre_t1.nii", "a-t1.nii"), "a"),
    ],
    ids=lambda value: str(value),
)
def test_files_with_the_names_of_the_channels_are_one_case(folder, names, case):
    folder(*names, "lone_t1.nii", "labels/a_seg.nii")
    bundle = _bundle()
    bundle.channels = ("t1", "pre_t1")
    cases, failures = make_cases(find_images(["."], RULES).images, None, bundle)
    assert not failures
    # A file without the other channel stays alone, and the model will say what it lacks.
    assert {one.case_id: tuple(map(str, one.image_paths)) for one in cases} == {case: names[::-1], "lone_t1": ("lone_t1.nii",)}


def test_labels_of_channels_lie_in_a_folder_of_labels(folder):
    folder("images/p1/t1.nii", "images/a_t1.nii", "labels/p1.nii", "labels/a.nii")
    assert list(_find(".")) == ["images/a_t1.nii", "images/p1/t1.nii"]


def test_channels_of_one_name_are_told_by_number_alone(folder):
    folder("a_T1.nii", "a_0000.nii", "a_0001.nii")
    cases, _ = make_cases(find_images(["."], RULES).images, None, _bundle(2))
    assert {one.case_id: len(one.image_paths) for one in cases} == {"a": 2, "a_T1": 1}


def test_labels_of_bids_are_found_by_the_rule_of_the_training(folder):
    folder("sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_FLAIR.nii", "derivatives/m/sub-1_dseg.nii")
    bundle = _bundle(renames=((r"_T1w((?i:\.nii))$", r"_dseg\1"),))
    cases, lacking = make_cases(find_images(["sub-1/anat/sub-1_T1w.nii"], RULES).images, Path("derivatives"), bundle)
    assert (cases[0].label_path, lacking) == (Path("derivatives/m/sub-1_dseg.nii"), [])


def test_labels_of_bids_are_found_without_such_a_rule(folder):
    folder(
        *(f"sub-{number}/anat/sub-{number}_T1w.nii" for number in range(1, 6)),
        "derivatives/m/sub-1_dseg.nii", "derivatives/m/sub-1_space-MNI152_dseg.nii", "derivatives/m/sub-1_desc-brain_mask.nii",
        "derivatives/m/sub-2_label-lesion_mask.nii", "derivatives/m/sub-3_ses-2_dseg.nii", "derivatives/m/sub-4_desc-brain_mask.nii",
        "derivatives/m/sub-5_desc-a_dseg.nii", "derivatives/m/sub-5_desc-b_dseg.nii",
    )  # fmt: skip
    cases, lacking = make_cases(find_images(["."], RULES).images, Path("derivatives"), _bundle())
    assert [(case.subject_id, case.label_path and case.label_path.name) for case in cases] == [
        ("sub-1", "sub-1_dseg.nii"),
        ("sub-2", "sub-2_label-lesion_mask.nii"),
        ("sub-3", None),
        ("sub-4", None),
        ("sub-5", None),
    ]
    assert ["no sub-3_T1w.nii in" in str(lacking[0]), "no sub-4_T1w.nii in" in str(lacking[1])] == [True, True]
    assert "Expected one label for sub-5/anat/sub-5_T1w.nii. Received: derivatives/m/sub-5_desc-a_dseg.nii and " in str(lacking[2])
