"""Pairs of images and labels, by the names that people give to files and folders."""

import pytest
from folder_helpers import plant

from modules.data.folder_layouts import find_pairs
from modules.data.folder_set import find_hint, search_folder

NO_IMAGE, NO_LABEL = "label(s) without an image of their name", "image(s) without a label of their name"


def _search(root):
    """Searches a folder; returns {name: files of a pair, images before the label}, and what is left out."""
    found = search_folder(root)
    files = {pair.name: [path.relative_to(root).as_posix() for path in (*pair.images, pair.label)] for pair in found.pairs}
    assert len(files) == len(found.pairs)
    return files, found.left_out


@pytest.mark.parametrize(
    "pair",
    [
        ("images/a.png", "labels/a.png"),
        ("images/a.png", "masks/a.tif"),
        ("Images/a.nii", "Ground Truth/a.NII.GZ"),
        ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz"),
        ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),
        ("img/a.png", "segmentation/a_seg.png"),
        ("images/a.png", "masks/a_mask.png"),
        ("images/a.png", "masks/mask_a.png"),
        ("images/image_07.png", "labels/label_07.png"),
        ("img07.png", "mask07.png"),
        ("a.nii.gz", "a_seg.nii.gz"),
        ("p/a.nii.gz", "p/a-label.nii"),
        ("a.nii", "a.seg.nii"),
        ("a b ü.nii", "a b ü mask.nii"),
        ("volume-0.nii", "segmentation-0.nii"),
        ("train/images/a.png", "train/masks/a.png"),
        ("images/train/a.png", "masks/train/a.png"),
        ("train/a.png", "train_masks/a_mask.png"),
        ("trainimages/a.png", "trainlabels/a.png"),
        ("images/p1/a.png", "labels/p1/a.png"),
        ("p1/images/a.png", "p1/labels/a.png"),
        ("case1/t1.nii.gz", "case1/seg.nii.gz"),
        ("case1/images/t1.nii.gz", "case1/labels/mask.nii.gz"),
        ("case1/image/mri.nii.gz", "case1/label/tumour.nii.gz"),
        ("case1/mri.nii.gz", "case1/tumour_mask.nii.gz"),
        ("images/a_T1.nii.gz", "labels/a.nii.gz"),
        ("T1/a.nii.gz", "labels/a.nii.gz"),
        ("scans/p1/a.nii.gz", "labels/a.nii.gz"),
        ("keras_slices_train/case_005_slice_0.nii.png", "keras_slices_seg_train/seg_005_slice_0.nii.png"),
        ("semantic_MRs_anon/a.nii", "semantic_labels_anon/a.nii"),
        ("Training_Set/IBSR_07/IBSR_07.nii.gz", "Training_Set/IBSR_07/IBSR_07_seg.nii.gz"),
        ("images/left_roi.png", "labels/left_roi.png"),
        ("other/left_roi.png", "labels/left_roi.png"),
        ("Bilder/ä 1.nii", "Masken/ä 1.nii"),
        ("imagesVa/a_0000.nii", "labelsVa/a_0000.nii"),
        ("val/a.png", "valannot/a.png"),
        ("brain_segmentation/images/a.png", "brain_segmentation/labels/a.png"),
    ],
    ids="+".join,
)
def test_a_pair_is_found_in_every_spelling(tmp_path, pair):
    files, left_out = _search(plant(tmp_path, *pair, ".DS_Store", "images/._a.nii.gz", "labels/.a.png.swp"))
    assert list(files.values()) == [list(pair)]
    assert not left_out


@pytest.mark.parametrize(
    ("files", "channels"),
    [
        (("imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii"), ("0000", "0001")),
        (("B_1/B_1_flair.nii", "B_1/B_1_t1.nii", "B_1/B_1_t1ce.nii", "B_1/B_1_seg.nii"), ("flair", "t1", "t1ce")),
        (("p1/FLAIR.nii", "p1/T1.nii", "p1/seg.nii"), ("FLAIR", "T1")),
        (("p1/p1_FLAIR.nii", "p1/p1_T1.nii", "p1/mask.nii"), ("FLAIR", "T1")),
        (("images/p1/FLAIR.nii", "images/p1/T1.nii", "labels/p1.nii"), ("FLAIR", "T1")),
        (("images/FLAIR/p1.nii", "images/T1/p1.nii", "labels/p1.nii"), ("FLAIR", "T1")),
        (("images/B_1/B_1_flair.nii", "images/B_1/B_1_t1.nii", "images/B_1/B_1_seg.nii"), ("flair", "t1")),
    ],
    ids=lambda value: value[0],
)
def test_channels_by_number_by_ending_and_by_folder(tmp_path, files, channels):
    found = search_folder(plant(tmp_path, *files))
    (pair,) = found.pairs
    assert [path.relative_to(tmp_path).as_posix() for path in (*pair.images, pair.label)] == list(files)
    assert pair.channels == channels


@pytest.mark.parametrize(
    ("slices", "label", "image"),
    [
        ("images/case1/a.dcm images/case1/b.dcm", "labels/case1.nii.gz", "images/case1"),
        ("images/case1/IM1 images/case1/IM2", "labels/case1_seg.nrrd", "images/case1"),
        ("images/case1/study/series/a.dcm images/case1/study/series/b.dcm", "labels/case1.nii.gz", "images/case1"),
        ("batch2/case1/1.2/a.dcm", "batch2/case1_seg.nii.gz", "batch2/case1"),
        ("case1/a.dcm case1/b.dcm", "case1_seg.nii.gz", "case1"),
        ("case1/a.dcm case1/b.dcm", "case1/seg.nii.gz", "case1"),
        ("case1/a.dcm case1/b.dcm", "case1/case1_seg.nii.gz", "case1"),
        ("case1/dicom/a.dcm case1/dicom/b.dcm", "case1/seg.nii.gz", "case1/dicom"),
        ("case1/images/a.dcm case1/images/b.dcm", "case1/labels/seg.nii.gz", "case1/images"),
        ("case1/study/T1/a.dcm case1/study/T1/b.dcm", "case1/seg.nii.gz", "case1/study"),
        ("case1/dicom/a.dcm case1/dicom/b.dcm", "case1/label/tumour.nii.gz", "case1/dicom"),
        ("train/images/p1/a.dcm", "train/labels/p1.nii.gz", "train/images/p1"),
        ("images/case1.dcm", "labels/case1.png", "images/case1.dcm"),
    ],
)
def test_a_folder_of_dicom_slices_is_one_image(tmp_path, slices, label, image):
    plant(tmp_path, label)
    for name in slices.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    files, left_out = _search(tmp_path)
    assert list(files.values()) == [[image, label]]
    assert not left_out


def test_folders_of_dicom_series_are_channels_and_what_is_no_scan_stays_out(tmp_path):
    plant(tmp_path, *(f"images/p{number}/{name}/1.dcm" for number in range(2) for name in ("t1", "t2")), "labels/p0.nii", "labels/p1.nii")
    plant(tmp_path, "images/p1/note.pdf", "images/p1/junk.xyz", "images/DICOMDIR", "out/p1_prediction.dcm")
    found = search_folder(tmp_path)
    assert [(pair.name, pair.channels) for pair in found.pairs] == [("p0", ("t1", "t2")), ("p1", ("t1", "t2"))]
    assert not found.left_out
    assert found.others == {".xyz": 1, "without a suffix": 1, ".dcm": 1}


def test_a_single_image_named_after_its_folder_is_no_channel_of_that_name(tmp_path):
    plant(tmp_path, *(f"p{number}/{name}.nii" for number in range(3) for name in (f"p{number}", "seg")))
    found = search_folder(tmp_path)
    assert [(pair.name, pair.channels) for pair in found.pairs] == [("p0", ()), ("p1", ()), ("p2", ())]


def test_numbers_of_slices_are_no_channels(tmp_path):
    names = [f"a_{number:04d}.png" for number in range(3)]
    files, _ = _search(plant(tmp_path, *(f"images/{name}" for name in names), *(f"labels/{name}" for name in names)))
    assert [len(paths) for paths in files.values()] == [2, 2, 2]
    # Nor are slices in the folder of one whole label.
    files, left_out = _search(plant(tmp_path / "b", *(f"p1/{number:03d}.png" for number in range(3)), "p1/mask.png"))
    assert (files, len(left_out[NO_LABEL]), left_out[NO_IMAGE]) == ({}, 3, ["p1/mask.png"])


def test_names_that_begin_alike_stay_apart(tmp_path):
    plant(tmp_path, "p1_T1.nii", "p1_T2.nii", "p1_seg.nii", "p1_b_T1.nii", "p1_b_T2.nii", "p1_b_seg.nii")
    files, left_out = _search(tmp_path)
    assert files == {"p1": ["p1_T1.nii", "p1_T2.nii", "p1_seg.nii"], "p1_b": ["p1_b_T1.nii", "p1_b_T2.nii", "p1_b_seg.nii"]}
    assert not left_out


def test_what_is_no_part_of_a_pair_is_left_out_for_a_reason(tmp_path):
    plant(tmp_path, "images/a.png", "images/b.png", "labels/a.png", "labels/c.png", "images/a_overlay.png", "photos.jpg", "runs/r/f.png")
    plant(tmp_path, "runs/r/run.json", "runs/r/figures/loss.png")
    found = search_folder(tmp_path)
    assert [pair.name for pair in found.pairs] == ["a"]
    assert found.left_out == {
        "earlier output of predict.py": ["images/a_overlay.png"],
        "picture in the folder of a run or a model": ["runs/r/f.png", "runs/r/figures/loss.png"],
        NO_IMAGE: ["labels/c.png"],
        NO_LABEL: ["images/b.png"],
    }
    assert found.others == {".jpg": 1}


def test_a_case_that_lacks_a_channel_is_left_out(tmp_path):
    plant(tmp_path, *(f"p{number}/{name}.nii" for number in range(3) for name in ("t1", "t2", "seg")))
    (tmp_path / "p1/t2.nii").unlink()
    found = search_folder(tmp_path)
    assert [pair.name for pair in found.pairs] == ["p0", "p2"]
    assert found.left_out == {"case without t2, where most have t1, t2": ["p1/t1.nii"]}


@pytest.mark.parametrize(
    "files",
    [
        ("images/a.png", "labels/a.png", "masks/a.png"),
        ("a.nii", "a_seg.nii", "a_mask.nii"),
        ("benign (1).png", "benign (1)_mask.png", "benign (1)_mask_1.png"),
        ("images/a.png", "labels/a.png", "labels/a_mask.png"),
        ("p1/t1.nii", "p1/t2.nii", "p1/seg.nii", "p1/mask.nii"),
        ("p1_t1.nii", "p1_t2.nii", "p1_seg.nii", "p1_mask.nii"),
        ("images/a.png", "labels/a.png", "labels/a.tif"),
        ("p1/FLAIR.nii", "p1/T1.nii", "p1/T1_mask.nii", "p1/mask.nii"),
        ("a.nii", "a_seg.nii", "labels/a_seg.nii"),
        ("images/a.nii", "images/a_seg.nii", "labels/a_seg.nii"),
    ],
    ids="+".join,
)
def test_two_labels_of_one_image_are_refused(tmp_path, files):
    with pytest.raises(ValueError, match=r"^Expected one label for .* Received: .* and .*\. Remove one, or list the pairs in a table"):
        search_folder(plant(tmp_path, *files))


def test_two_images_of_one_label_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^Expected one image for the label .*labels/a.nii. Received: .*a.nii and .*a.nii.gz. Remove one"):
        search_folder(plant(tmp_path, "images/a.nii", "images/a.nii.gz", "labels/a.nii"))


def test_folders_say_the_split(tmp_path):
    names = [
        "train/images/a.png",
        "train/labels/a.png",
        "val/images/a.png",
        "val/labels/a.png",
        "Testing/images/a.png",
        "Testing/labels/a.png",
    ]
    assert sorted(pair.split for pair in search_folder(plant(tmp_path, *names)).pairs) == ["test", "train", "validate"]
    # A folder of nothing but a test set is no split.
    found = search_folder(plant(tmp_path / "b", "test/images/a.png", "test/labels/a.png"))
    assert [pair.split for pair in found.pairs] == [None]


def test_splits_may_divide_images_or_labels_alone(tmp_path):
    plant(tmp_path, "train/a.png", "test/b.png", "labels/a.png", "labels/b.png")
    assert sorted((pair.name, pair.split) for pair in search_folder(tmp_path).pairs) == [("a", "train"), ("b", "test")]
    plant(tmp_path / "x", "images/a.png", "images/b.png", "labels/train/a.png", "labels/test/b.png")
    assert sorted((pair.name, pair.split) for pair in search_folder(tmp_path / "x").pairs) == [("a", "train"), ("b", "test")]
    # A label of the other split is none.
    files, left_out = _search(plant(tmp_path / "y", "train/images/a.png", "test/labels/a.png"))
    assert (files, set(left_out)) == ({}, {NO_IMAGE, NO_LABEL})


def test_folders_of_people_are_kept(tmp_path):
    plant(tmp_path, "images/Site A/p1/a.png", "labels/Site A/p1/a.png", "train/p2/b.png", "train/p2/b_mask.png")
    assert sorted(pair.folder for pair in search_folder(tmp_path).pairs) == [("Site A", "p1"), ("p2",)]


def _plant_bids(root, *more, subjects=("01", "02")):
    for subject in subjects:
        plant(root, f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz", f"derivatives/manual/sub-{subject}/anat/sub-{subject}_dseg.nii.gz")
    return plant(root, *more)


def test_bids_by_subject(tmp_path):
    found = search_folder(_plant_bids(tmp_path, "dataset_description.json", "sub-01/func/sub-01_bold.nii.gz"))
    assert [(pair.name, pair.subject, pair.channels) for pair in found.pairs] == [
        ("sub-01_T1w", "sub-01", ("T1w",)),
        ("sub-02_T1w", "sub-02", ("T1w",)),
    ]
    assert found.left_out == {"other image than T1w": ["sub-01/func/sub-01_bold.nii.gz"]}
    assert found.layout == "BIDS, T1w with dseg"


def test_bids_by_session_and_space(tmp_path):
    for session in ("1", "2"):
        plant(tmp_path, f"sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz")
        for entities in ("desc-manual", "space-MNI152_desc-manual"):
            plant(tmp_path, f"derivatives/x/sub-01/ses-{session}/sub-01_ses-{session}_{entities}_dseg.nii.gz")
    found = search_folder(tmp_path)
    assert [(pair.name, pair.label.name) for pair in found.pairs] == [
        (f"sub-01_ses-{session}_T1w", f"sub-01_ses-{session}_desc-manual_dseg.nii.gz") for session in "12"
    ]
    assert len(found.left_out["derived file that is no label of a T1w"]) == 2


def test_bids_takes_the_image_that_its_labels_fit(tmp_path):
    plant(
        tmp_path,
        "sub-01/anat/sub-01_FLAIR.nii",
        "sub-01/anat/sub-01_dseg.nii",
        "sub-02/anat/sub-02_FLAIR.nii",
        "sub-02/anat/sub-02_dseg.nii",
    )
    plant(tmp_path, "sub-01/anat/sub-01_T1w.nii")
    assert {pair.channels for pair in search_folder(tmp_path).pairs} == {("FLAIR",)}
    plant(tmp_path / "c", "sub-1/dwi/sub-1_dwi.nii", "derivatives/sub-1/sub-1_msk.nii")
    assert len(search_folder(tmp_path / "c").pairs) == 1
    # Masks are labels where nothing better is there, but for those of the whole brain.
    plant(
        tmp_path / "b",
        "sub-01/anat/sub-01_T1w.nii",
        "derivatives/sub-01/sub-01_label-L_mask.nii",
        "derivatives/sub-01/sub-01_desc-brain_mask.nii",
    )
    assert [pair.label.name for pair in search_folder(tmp_path / "b").pairs] == ["sub-01_label-L_mask.nii"]


def test_bids_that_leaves_a_choice_is_refused(tmp_path):
    _plant_bids(tmp_path / "a", "derivatives/other/sub-01/anat/sub-01_dseg.nii.gz")
    with pytest.raises(ValueError, match=r"^Expected one label for .*sub-01_T1w.nii.gz. Received: .*manual.* and .*other"):
        search_folder(tmp_path / "a")
    plant(tmp_path / "b", "sub-01/anat/sub-01_run-1_T1w.nii", "sub-01/anat/sub-01_run-2_T1w.nii", "derivatives/sub-01/sub-01_dseg.nii")
    with pytest.raises(ValueError, match=r"^Expected one image for the label .*sub-01_dseg.nii. Received: .*run-1.* and .*run-2"):
        search_folder(tmp_path / "b")


def test_names_of_bids_without_its_labels_are_found_as_others_are(tmp_path):
    files, _ = _search(plant(tmp_path, "sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_T1w_seg.nii"))
    assert files == {"sub-01_T1w": ["sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_T1w_seg.nii"]}


def test_the_hint_names_a_pair_only_where_one_is(tmp_path):
    assert find_hint(tmp_path) == find_hint(tmp_path / "nowhere") == ""
    plant(tmp_path, "images/a.png", "images/b.png")
    assert find_hint(tmp_path) == ""
    plant(tmp_path, "masks/a.png")
    assert find_hint(tmp_path) == "1 pair(s) such as images/a.png with masks/a.png are there: `--dataset folder` reads them."


def test_an_empty_list_has_no_pairs(tmp_path):
    found = search_folder(tmp_path)
    find_pairs(tmp_path, [], found)
    assert (found.pairs, found.left_out, found.layout) == ([], {}, "")


def test_names_that_differ_are_a_pair_only_where_nothing_else_is_there(tmp_path):
    plant(tmp_path, "p1/mri.nii", "p1/tumour_mask.nii", "p1/kidney_mask.nii", "p2/t1.nii", "p2/t2.nii", "p2/tumour_mask.nii")
    plant(tmp_path, "p3/mri.nii", "p3/tumour_mask.nii", "images/a.nii", "labels/b.nii")
    files, left_out = _search(tmp_path)
    assert files == {"p3": ["p3/mri.nii", "p3/tumour_mask.nii"]}
    assert len(left_out[NO_IMAGE]) == len(left_out[NO_LABEL]) == 4
