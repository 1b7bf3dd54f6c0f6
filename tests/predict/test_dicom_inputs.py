"""Scans of every volume format through predict.py: the same label map in the same place, or one line."""

from dataclasses import replace

import keras
import nibabel as nib
import numpy as np
import pytest
from command_helpers import expect_one_line
from dicom_helpers import draw_volume, make_enhanced, make_file, write_series

import predict
from modules.data.case import LabelRule, read_case
from modules.data.formats import read_file
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.networks import with_head
from modules.predict.bundle import ModelBundle
from modules.predict.inputs import find_images, make_cases

OBLIQUE = (0.8, 0.6, 0, -0.36, 0.48, 0.8)
LOCALISER = {
    "SeriesInstanceUID": "1.2.3.1",
    "SeriesNumber": 1,
    "SeriesDescription": "3-plane loc",
    "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
}
FLAIR = {"SeriesInstanceUID": "1.2.3.5", "SeriesNumber": 5, "SeriesDescription": "FLAIR sag"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle for volumes: foreground is what is brighter than the middle of the range."""
    image = keras.Input((8, 8, 8, 1))
    layer = keras.layers.Conv3D(
        1, 1, kernel_initializer=keras.initializers.Constant(100), bias_initializer=keras.initializers.Constant(-50)
    )
    model, rule = with_head(keras.Model(image, layer(image))), LabelRule({0: 0, 7: 1})
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    ModelBundle(model, Preprocessing(3), Window((8, 8, 8)), ("background", "a"), ("T1",), rule).save(folder)
    return folder


@pytest.fixture
def run(bundle, tmp_path):
    """Predicts paths into `out`; returns the exit status."""

    def call(*argv):
        flags = ["--model", str(bundle), "--engine", "keras", "--output", str(tmp_path / "out")]
        return predict.main([*map(str, argv), *flags])

    return call


def _find(path, series=""):
    search = find_images([str(path)], [], series)
    return [(str(image.path.relative_to(path.parent)), image.folder, image.name, image.series) for image in search.images], search


def test_a_scan_has_the_same_label_map_in_every_format(run, tmp_path, capsys):
    sitk = pytest.importorskip("SimpleITK")
    volume = draw_volume()
    write_series(tmp_path / "in" / "dicom", volume, directions=OBLIQUE)
    frames = make_enhanced(volume, StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1")
    frames.save_as(tmp_path / "in" / "frames.dcm", enforce_file_format=True)
    stored = read_file(tmp_path / "in" / "dicom")
    array = np.ascontiguousarray(stored.array[..., 0])
    nib.save(nib.Nifti1Image(array, stored.affine), tmp_path / "in" / "nifti.nii.gz")
    nib.save(nib.MGHImage(array, stored.affine), tmp_path / "in" / "mgh.mgz")
    turned = sitk.ReadImage(str(tmp_path / "in" / "nifti.nii.gz"))
    # One is stored in another order of axes.
    sitk.WriteImage(sitk.PermuteAxes(turned, (2, 0, 1)), str(tmp_path / "in" / "itk.nrrd"), True)
    for key in turned.GetMetaDataKeys():
        turned.EraseMetaData(key)
    sitk.WriteImage(turned, str(tmp_path / "in" / "pair.mhd"))
    assert run(tmp_path / "in", "--probabilities", "--format", "nifti") == 0
    text = capsys.readouterr().out
    assert "6 done, 0 failed, 0 skipped" in text
    assert "of other kinds" not in text
    expected = (volume - volume.min()) / (volume.max() - volume.min()) > 0.5
    for name in ("dicom", "nifti", "mgh", "pair", "itk", "frames"):
        result = nib.load(tmp_path / "out" / f"{name}_prediction.nii.gz")
        label = np.asarray(result.dataobj)
        if name == "itk":
            assert label.shape == (5, 7, 6)
            label = label.transpose(1, 2, 0)
            affine = result.affine[:, [1, 2, 0, 3]]
        else:
            affine = result.affine
        np.testing.assert_array_equal(label, 7 * expected.transpose(2, 1, 0))
        if name != "frames":
            corners = np.array([[0, 0, 0, 1], [6, 5, 4, 1], [6, 0, 4, 1]]).T
            np.testing.assert_allclose(affine @ corners, stored.affine @ corners, atol=1e-4)
        assert nib.load(tmp_path / "out" / f"{name}_probabilities.nii.gz").shape == (*result.shape, 2)
    # A later call does what is missing, and sees a slice that was replaced.
    assert run(tmp_path / "in", "--probabilities", "--format", "nifti") == 0
    assert "0 done, 0 failed, 6 skipped" in capsys.readouterr().out
    write_series(tmp_path / "in" / "dicom", volume + np.int16(1), directions=OBLIQUE)
    assert run(tmp_path / "in", "--probabilities", "--format", "nifti") == 0
    assert "1 done, 0 failed, 5 skipped" in capsys.readouterr().out


def test_series_of_one_study_are_listed_and_chosen(run, tmp_path, capsys):
    folder, volume = tmp_path / "p1", draw_volume()
    write_series(folder, volume)
    write_series(folder / "flair", draw_volume((6, 7, 8)), **FLAIR)
    write_series(folder / "loc", volume[:1], **LOCALISER)
    expect_one_line(
        capsys,
        run(folder),
        f"Expected one DICOM series in {folder}. Received: 3 series: 1 '3-plane loc' (1 slice(s) of 7x6, MR, a localiser); 4 't1 mprage' "
        "(5 slice(s) of 7x6, MR); 5 'FLAIR sag' (6 slice(s) of 8x7, MR). To predict, choose one by --series UID, number or "
        "description; to train, give each a folder of its own.",
    )
    expect_one_line(capsys, run(folder, "--series", "t2"), "Expected one DICOM series of the UID, number or description 't2' in ")
    expect_one_line(capsys, run(folder, "--series", "a"), "'a' in ")
    for wanted in ("5", "1.2.3.5", "flair SAG", "sag"):
        assert _find(folder, wanted)[0] == [("p1", "", "p1_5_FLAIR_sag", "1.2.3.5")]
    assert run(folder, "--series", "5") == 0
    assert f"DICOM: series 5 'FLAIR sag' of {folder} is predicted; left out are 2 series: 1 '3-plane loc'" in capsys.readouterr().out
    assert nib.load(tmp_path / "out" / "p1_5_FLAIR_sag_prediction.nii.gz").shape == (8, 7, 6)


def test_the_only_series_beside_localisers_is_taken_and_the_others_are_told(tmp_path):
    write_series(tmp_path / "p1", draw_volume())
    write_series(tmp_path / "p1", draw_volume((1, 6, 7)), **LOCALISER)
    write_series(
        tmp_path / "p1" / "shot", np.zeros((1, 6, 21), np.uint8), SeriesInstanceUID="1.9", SamplesPerPixel=3, Columns=7,
        PhotometricInterpretation="RGB", PlanarConfiguration=0,
    )  # fmt: skip
    found, search = _find(tmp_path / "p1")
    assert found == [("p1", "", "p1", "1.2.3.4")]
    assert not search.failures
    assert "left out are 2 series: 1 '3-plane loc' (1 slice(s) of 7x6, MR, a localiser); 4 't1 mprage' (1 slice(s)" in search.remarks[0]


def test_each_channel_is_a_series_of_the_study_by_its_folder_or_description(bundle, tmp_path, capsys):
    model = replace(ModelBundle.load(bundle, "keras"), channels=("t1", "flair"))
    root, volume = tmp_path / "in", draw_volume()
    for number, (name, folders) in enumerate({"p1": ("T1", "flair"), "p2": ("a", "b")}.items()):
        own = {"StudyInstanceUID": f"1.{number}"}
        write_series(root / name / folders[1], volume + np.int16(1), **own, **FLAIR | {"SeriesInstanceUID": f"1.{number}.5"})
        write_series(root / name / folders[0], volume, SeriesInstanceUID=f"1.{number}.4", **own)
        write_series(root / name / "loc", volume[:1], **own, **LOCALISER | {"SeriesInstanceUID": f"1.{number}.1"})
    search = find_images([str(root)], [], "", model.channels)
    assert "series 4 't1 mprage' and series 5 'FLAIR sag' of " in search.remarks[0]
    cases, failures = make_cases(search.images, None, model)
    assert not failures
    assert not search.failures
    assert [(case.case_id, case.image_paths, case.series) for case in cases] == [
        (f"p{number + 1}", (root / f"p{number + 1}",) * 2, (f"1.{number}.4", f"1.{number}.5")) for number in range(2)
    ]
    image, _ = read_case(cases[0], replace(model, preprocessing=Preprocessing(3)))
    np.testing.assert_array_equal(image.array, np.stack([volume, volume + 1], axis=-1).transpose(2, 1, 0, 3))
    # No description names the second channel, or both name the first, or one names both.
    for first, second in (("t1", "t2"), ("t1 a", "t1 and flair"), ("t1 and flair", "t2")):
        for name, uid, description in (("a", "1.1.4", first), ("b", "1.1.5", second)):
            own = {"StudyInstanceUID": "1.1", "SeriesInstanceUID": uid, "SeriesDescription": description}
            write_series(root / "p2" / name, volume, **own)
        search = find_images([str(root)], [], "", model.channels)
        (failure,) = search.failures
        line = f"Expected a DICOM series for each channel of the model, t1, flair, in {root / 'p2'}. Received: 2 series: 4 't1"
        assert line in str(failure)
        assert len(search.images) == 2


def test_studies_are_scans_of_their_own_and_a_file_stands_for_its_series(tmp_path):
    root = tmp_path / "in"
    for number in range(2):
        write_series(root / f"p{number}" / "t1", draw_volume(), StudyInstanceUID=f"1.{number}", SeriesInstanceUID=f"1.{number}.1")
    assert _find(root)[0] == [(f"in/p{number}/t1", f"p{number}", "t1", f"1.{number}.1") for number in range(2)]
    files = sorted((root / "p0" / "t1").iterdir())
    search = find_images([*map(str, files), str(root / "p*" / "t1" / "*")], [])
    assert [(image.path, image.name) for image in search.images] == [(root / f"p{number}" / "t1", "t1") for number in range(2)]
    assert not search.failures
    files[0].write_bytes(files[0].read_bytes()[:300])
    found, search = _find(root)
    assert [name for name, *_ in found] == ["in/p1/t1"]
    assert f"Expected a whole DICOM file in {files[0]}. Received: " in str(search.failures[0])


def test_segmentations_of_several_studies_in_one_folder_do_not_join_them(tmp_path):
    for name in ("a", "b"):
        study = {"StudyInstanceUID": f"1.{ord(name)}"}
        write_series(tmp_path / "in" / name, draw_volume(), SeriesInstanceUID=f"1.{ord(name)}.1", **study)
        seg = make_file(draw_volume((1, 6, 7))[0], Modality="SEG", SeriesInstanceUID=f"1.{ord(name)}.2", **study)
        for folder, ending in (("out", "_prediction.dcm"), ("other", ".dcm")):
            (tmp_path / "in" / folder).mkdir(exist_ok=True)
            seg.save_as(tmp_path / "in" / folder / f"{name}{ending}", enforce_file_format=True)
    scans, search = _find(tmp_path / "in")
    # The name of a series is that of its own folder, wherever reports of its study lie.
    assert [scan[2] for scan in scans] == ["a", "b"]
    assert not search.failures
    assert search.remarks[-1].startswith("2 file(s) at ")
    assert "with names of earlier output" in search.remarks[-1]


def test_files_of_many_frames_are_scans_of_their_own(tmp_path):
    for number in range(2):
        fields = {"StudyInstanceUID": f"1.{number}", "SeriesInstanceUID": f"1.{number}.1"}
        (tmp_path / "in").mkdir(exist_ok=True)
        make_enhanced(draw_volume(), **fields).save_as(tmp_path / "in" / f"a.{number}.dcm", enforce_file_format=True)
    assert _find(tmp_path / "in")[0] == [(f"in/a.{number}.dcm", "", f"a.{number}", "") for number in range(2)]


def test_a_folder_without_a_name_gives_its_own(tmp_path, monkeypatch):
    write_series(tmp_path / "p1", draw_volume())
    monkeypatch.chdir(tmp_path / "p1")
    for path in (".", "IM0000"):
        (image,) = find_images([path], []).images
        assert (image.name, image.folder) == ("p1", "")


def test_a_wanted_series_needs_dicom_files(tmp_path, write_nifti):
    path = write_nifti("a.nii", np.zeros((3, 4, 5)))
    with pytest.raises(ValueError, match=r"Expected DICOM files for --series 3. Received: none among .*a.nii. Leave the flag out."):
        find_images([str(path)], [], "3")
    (tmp_path / "b.dcm").touch()
    (failure,) = find_images([str(tmp_path / "b.dcm")], []).failures
    assert "Expected a DICOM file in" in str(failure)
    assert "an empty file" in str(failure)
    (tmp_path / "c").mkdir()
    write_series(tmp_path / "c", draw_volume(), Modality="SR")
    (failure,) = find_images([str(tmp_path / "c")], []).failures
    assert "Received: DICOM files without pictures are left out: 1 series: 4 't1 mprage'" in str(failure)


def _drop_spacing(data, number):
    del data.PixelSpacing


def _lean(data, number):
    data.ImagePositionPatient[1] += 0.5 * number


def test_oddities_of_dicom_are_right_or_one_line_each(run, tmp_path, capsys):
    volume, root = draw_volume(dtype=np.uint16), tmp_path / "in"
    ways = {
        "missing": ({}, "a gap of 5 mm behind slice 2"),
        "doubled": ({}, "at one place"),
        "spacing": ({"change": _drop_spacing}, "Expected PixelSpacing in"),
        "tilt": ({"change": _lean}, "(gantry tilt)"),
        "bits": ({"RescaleSlope": 2, "RescaleIntercept": -5, "BitsStored": 12}, ""),
    }
    for name, (options, _) in ways.items():
        study = {"StudyInstanceUID": f"1.{len(name)}.{ord(name[0])}", "SeriesInstanceUID": f"1.{len(name)}.{ord(name[0])}.1"}
        paths = write_series(root / name, volume, **study, **options)
        if name == "missing":
            paths[2].unlink()
        if name == "doubled":
            write_series(root / name / "again", volume[:1], **study)
    assert run(root) == 3
    text = capsys.readouterr().out
    assert "1 done, 4 failed, 0 skipped" in text
    for name, (_, message) in ways.items():
        lines = [line for line in text.splitlines() if "failed: " in line and f"{root / name}" in line]
        assert len(lines) == bool(message), text
        assert all(message in line for line in lines)
    label = np.asarray(nib.load(tmp_path / "out" / "bits_prediction.nii.gz").dataobj)
    np.testing.assert_array_equal(label > 0, ((volume - volume.min()) / (volume.max() - volume.min()) > 0.5).transpose(2, 1, 0))
