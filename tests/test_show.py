"""`python dataset.py show`: its choice of cases, its drawing, and its own errors."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

import dataset
from modules import phantom, reports
from modules.data.case import Case, Volume, read_case
from modules.data.draws import AUGMENTATIONS, Augmentation, Effect
from modules.data.spec import find_cases, load_spec
from modules.reports import sheet
from modules.run.samples import choose_case, choose_scans, make_sample

CLASSES = ("background", "bladder", "rectum", "prostate")


def read_png(path: Path) -> np.ndarray:
    """Decodes a PNG to RGB (rows, columns, 3)."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture[..., ::-1].astype(int)


def count_colour(picture: np.ndarray, colour: str) -> int:
    """Counts the pixels of exactly this colour."""
    return int((np.abs(picture - np.rint(255 * np.array(to_rgb(colour)))) <= 1).all(axis=-1).sum())


@pytest.fixture
def sample() -> tuple[Volume, np.ndarray]:
    """Makes a slice (32, 24) and its label: a body around an organ, class 1 around class 3."""
    rows, columns = np.mgrid[:32, :24]
    label = np.zeros((32, 24), np.int32)
    label[4:28, 4:20], label[12:20, 8:16] = 1, 3
    return Volume((rows + columns + 1.0)[..., np.newaxis].astype(np.float32), None, (1.0, 1.0)), label


# ---------------------------------------------------------------------------------------------------------------- drawing


def test_one_line_between_two_classes_in_the_colour_of_the_smaller():
    label = np.zeros((20, 20), np.uint8)
    label[2:18, 2:18], label[8:12, 8:12] = 2, 1
    painted = sheet._outline(np.full((20, 20), 100.0), label, reports.PALETTE[:2])
    small, large = (count_colour(painted, colour) for colour in reports.PALETTE[:2])
    # The rim of 4x4 pixels has 12, and that of 16x16 has 60. The larger class has no rim along the smaller one. Nothing else is painted.
    assert (small, large) == (12, 60)
    assert count_colour(painted, "#646464") == 400 - 72


def test_outlines_of_structures_of_one_pixel_survive_shrinking():
    label = np.zeros((40, 40), np.uint8)
    label[17, 17] = 1
    painted = sheet._outline(np.zeros((10, 10)), label, reports.PALETTE[:1])
    assert count_colour(painted, reports.PALETTE[0]) >= 1


def test_cases_are_true_to_the_spacing(sample):
    image, label = sample
    square = sheet._cut_best(image, label, CLASSES, "axial").fit(4, 400)
    wide = sheet._cut_best(replace(image, spacing_mm=(1.0, 2.0)), label, CLASSES, "axial").fit(4, 400)
    assert square[0] / square[1] == pytest.approx(32 / 24, abs=0.01)
    assert wide[0] / wide[1] == pytest.approx(32 / 48, abs=0.01)


def test_draw_cases_says_which_class_none_of_them_holds(sample, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(sheet, "write_panels", lambda path, grid, title, legends, **_: seen.update(grid=grid, legends=legends) or path)
    affine_image = replace(sample[0], affine=np.eye(4), spacing_mm=(0.9375, 1.5))
    reports.draw_cases(tmp_path / "cases.png", {"one": sample, "two": (affine_image, sample[1])}, CLASSES, title="title")
    assert [text for _, text in seen["legends"][0][2]] == ["bladder", "rectum: in none of these", "prostate"]
    assert [panel.caption for panel in seen["grid"][0]] == ["one", "32x24", "two", "32x24, 0.938x1.5 mm"]


def test_a_volume_is_cut_where_its_structures_are():
    image = np.random.default_rng(0).random((10, 12, 14, 1)).astype(np.float32)
    label = np.zeros((10, 12, 14), np.uint8)
    label[2:5, 3:10, 6:9] = 1
    cut = sheet._cut_best(Volume(image, np.diag([2, 1, 1, 1.0]), (2.0, 1.0, 1.0)), label, CLASSES, "coronal", whole=True)
    # The centre of mass along the second axis is 6. The axes x and z remain, and a voxel is 2 mm along x.
    assert cut.place == "coronal, 7 of 12"
    assert cut.extent == (14, 20)
    assert cut.label.sum() == 9
    assert cut.letters == ("R", "L", "S", "I")


@pytest.mark.parametrize("name", ["light", "strong", "synthetic"])
def test_each_effect_has_three_panels_and_the_preset_a_row(sample, tmp_path, monkeypatch, name):
    seen = {}
    monkeypatch.setattr(sheet, "write_panels", lambda path, grid, title, legends, **_: seen.update(grid=grid) or path)
    reports.draw_augmentation(tmp_path / "a.png", *sample, CLASSES, AUGMENTATIONS[name], title="title")
    panels = [panel for row in seen["grid"][:-1] for panel in row]
    titles = [panel.caption.removesuffix(": original") for panel in panels[::3]]
    assert titles == {
        "light": ["flip", "rotation", "scaling", "gamma", "contrast", "brightness"],
        "strong": [
            "flip", "rotation", "scaling", "shear", "shift", "elastic", "bias", "blur", "lowres", "noise", "gamma", "contrast",
            "brightness",
        ],
        "synthetic": ["synthetic", "rotation", "scaling", "bias", "blur", "lowres", "noise", "gamma", "contrast", "brightness"],
    }[name]  # fmt: skip
    assert len(panels) == 3 * len(titles)
    assert [panel.caption for panel in seen["grid"][-1]] == [f"all together, draw {number}" for number in range(1, 7)]
    for original, strongest, _ in zip(panels[::3], panels[1::3], panels[2::3], strict=True):
        assert (original.pixels != strongest.pixels).any(), original.caption


def test_captions_tell_the_strongest_and_the_range():
    augmentation = Augmentation(rotation=Effect(0.3, -10, 10), blur=Effect(0.1, 0.5, 1))
    alone = Augmentation(rotation=Effect(1.0, 10, 10))
    drawn, flips, captions = sheet._describe("rotation", alone, augmentation)
    assert drawn == Augmentation(rotation=Effect(1.0, -10, 10))
    assert flips is None
    assert captions == ("strongest, 10\u00b0", "drawn from \u00b110\u00b0")
    assert sheet._describe("blur", Augmentation(blur=Effect(1.0, 1, 1)), augmentation)[2] == ("strongest, 1 vx", "drawn from 0.5 to 1 vx")


def test_flips_swap_classes_with_sides_in_volumes():
    label = np.zeros((6, 4, 4), np.int32)
    label[:2], label[4:] = 1, 2
    image = Volume(label[..., np.newaxis].astype(np.float32), np.eye(4), (1.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    [(array, changed)] = sheet._apply(image, label, [(Augmentation(flip=1.0), (0,))], [rng], [(1, 2)])
    np.testing.assert_array_equal(array, image.array[::-1])
    # The classes are mirrored and then exchanged, so the class on the left is still the left one.
    np.testing.assert_array_equal(changed, label)


def test_nothing_to_draw_is_an_error(sample, tmp_path):
    with pytest.raises(ValueError, match="Expected an `augmentation` with effects. Received: one without."):
        reports.draw_augmentation(tmp_path / "a.png", *sample, CLASSES, Augmentation(), title="title")
    with pytest.raises(ValueError, match="Expected `cases` to draw. Received: none."):
        reports.draw_cases(tmp_path / "a.png", {}, CLASSES, title="title")
    volume = Volume(np.zeros((4, 4, 4, 1), np.float32), np.eye(4), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"Expected `plane` in \('axial', 'coronal', 'sagittal'\). Received: 'oblique'."):
        reports.draw_cases(tmp_path / "a.png", {"a": (volume, np.zeros((4, 4, 4), int))}, CLASSES, title="title", plane="oblique")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------- choosing


def test_scans_are_of_different_subjects_and_labelled(tmp_path):
    cases = []
    for subject in ("s0", "s1", "s2", "s3"):
        label = None if subject == "s0" else tmp_path / "label"
        for volume, index in itertools.product((f"{subject}_1", f"{subject}_2"), range(3)):
            cases.append(Case(f"{volume}_{index}", subject, (tmp_path / "image",), label, None, volume, index))
    scans = choose_scans(cases, 6, seed=1)
    assert sorted(scan[0].subject_id for scan in scans) == ["s1", "s2", "s3"]
    assert all(len(scan) == 3 and len({case.volume_id for case in scan}) == 1 for scan in scans)
    assert choose_scans(cases, 2, seed=1) == choose_scans(cases, 2, seed=1)
    assert len({tuple(scan[0].case_id for scan in choose_scans(cases, 1, seed=seed)) for seed in range(20)}) > 1
    with pytest.raises(ValueError, match="Expected cases with labels to show. Received: 6 without. Add a label."):
        choose_scans(cases[:6], 6, seed=1)


def test_the_slice_shown_holds_the_structures(phantoms):
    spec = load_spec(dataset.DATASETS["lgg"], phantoms / "lgg")
    [scan] = choose_scans(find_cases(spec, phantoms / "lgg"), 1, seed=0)
    _, label = read_case(choose_case(scan, spec), spec)
    assert len(scan) == 4
    assert label.any()


@pytest.mark.parametrize("name", ["hipmri", "hipmri3d", "msd", "ibsr18"])
def test_samples_are_what_a_training_sees(phantoms, name):
    spec = load_spec(dataset.DATASETS[name], phantoms / name)
    [scan] = choose_scans(find_cases(spec, phantoms / name), 1, seed=0)
    image, label = make_sample(choose_case(scan, spec), spec, seed=0)
    assert image.array.shape == (*label.shape, len(spec.channels))
    assert image.array.dtype == np.float32
    assert label.any()
    # Slices are halved four times, and the shortest axis of these volumes at least once.
    assert all(size % (16 if label.ndim == 2 else 2) == 0 for size in label.shape)
    again = make_sample(choose_case(scan, spec), spec, seed=0)
    np.testing.assert_array_equal(image.array, again[0].array)


# ---------------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize("name", ["hipmri", "lgg", "ibsr18"])
def test_show_draws_cases(phantoms, tmp_path, name, capsys):
    path = tmp_path / "deep" / "sheet.png"
    assert dataset.main(["show", "--dataset", name, "--data", str(phantoms / name), "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"picture: {path}\n"
    picture = read_png(path)
    assert count_colour(picture, reports.PALETTE[0]) > 50
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_labels_that_lie_elsewhere_are_shown_only_where_the_user_says_so(phantoms, tmp_path, capsys):
    root = tmp_path / "hipmri"
    (label,) = list((phantoms / "hipmri" / "keras_slices_seg_train").iterdir())[:1]
    image = phantoms / "hipmri" / "keras_slices_train" / label.name.replace("seg_", "case_")
    for path in (image, label):
        (root / path.parent.name).mkdir(parents=True)
        affine = np.eye(4)
        affine[0, 3] = 30 * (path == label)
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), affine), root / path.parent.name / path.name)
    flags = ["show", "--dataset", "hipmri", "--data", str(root), "--output", str(tmp_path / "a.png")]
    assert dataset.main(flags) == 2
    assert "with `--ignore-geometry`" in capsys.readouterr().err
    assert dataset.main([*flags, "--ignore-geometry"]) == 0
    assert f"--ignore-geometry: label {root / label.parent.name / label.name} is used voxel by voxel" in capsys.readouterr().out
    assert (tmp_path / "a.png").is_file()


def test_show_draws_effects_and_repeats(phantoms, tmp_path):
    drawn = []
    for number, seed in enumerate((1, 1, 2)):
        command = ["show", "--dataset", "msd", "--data", str(phantoms / "msd"), "--augment", "light", "--seed", str(seed)]
        assert dataset.main([*command, "--output", str(tmp_path / f"{number}.png")]) == 0
        drawn.append((tmp_path / f"{number}.png").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_file_itself_is_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phantom.write_lgg(tmp_path / "data" / "lgg-phantom", subjects=2, slices=2)
    command = [sys.executable, dataset.__file__, "show", "--dataset", "lgg", "--demo", "--augment", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "picture: show_lgg.png\n", "")
    assert (tmp_path / "show_lgg.png").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND. See --help."),
        (["show"], "the following arguments are required: --dataset. See --help."),
        (["show", "--dataset", "lgg", "--augment", "medium"], "argument --augment: invalid choice: 'medium'"),
        (["show", "--dataset", "lgg", "--output", "sheet.jpg"], "Expected `--output` ending in .png. Received: sheet.jpg."),
        (["show", "--dataset", "lgg", "--data", "nowhere"], "Expected the data set 'lgg' in the folder nowhere. Received: no such folder."),
        (["show", "--dataset", "lgg", "--data", "nowhere", "--demo"], "Expected either `demo` or `data`."),
    ],
)
def test_errors_are_one_line_and_status_2(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert dataset.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("dataset.py: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_choices_of_the_flag_are_the_augmentations(tmp_path):
    for name in AUGMENTATIONS:
        assert dataset._parse(["show", "--dataset", "lgg", "--augment", name]).augment == name
    assert dataset._parse(["show", "--dataset", "lgg", "--augment"]).augment == "strong"
    assert dataset._parse(["show", "--dataset", "lgg"]).augment == "none"
