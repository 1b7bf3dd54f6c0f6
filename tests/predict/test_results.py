"""The findings in each scan: counted by hand, kept by later calls, and never pixels for millilitres."""

import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest
from command_helpers import expect_one_line
from output_helpers import AFFINE, save_bands

import predict
from modules import reports
from modules.data.regions import Region
from modules.predict.results import measure_classes, measure_sizes


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {dims: save_bands(folder / str(dims), dims) for dims in (2, 3)}


@pytest.fixture
def run(bands, tmp_path, monkeypatch):
    """Predicts paths into `out` without drawing them; returns the exit status."""
    monkeypatch.setattr(reports, "draw_overlay", lambda path, *_, **__: path.touch())

    def call(*argv, dims=3):
        flags = ["--model", str(bands[dims]), "--engine", "keras", "--output", str(tmp_path / "out")]
        return predict.main([*map(str, argv), *flags])

    return call


def _read_rows(tmp_path):
    with (tmp_path / "out" / "volumes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _read_json(tmp_path):
    return json.loads((tmp_path / "out" / "results.json").read_text())


def _make_scan():
    """Two grey boxes of 8 and 2 voxels, and a bright one of 6 that touches the first at a corner of its own class alone."""
    scan = np.zeros((9, 8, 7), np.int16)
    scan[1:3, 1:3, 1:3] = 150
    scan[6, 6, 4:6] = 150
    scan[4:6, 1:4, 5] = 300
    return scan


def test_voxels_components_and_ml_by_hand(run, tmp_path, write_nifti):
    write_nifti("in/sub-07/anat/sub-07_T1w.nii.gz", _make_scan(), AFFINE)
    assert run(tmp_path / "in") == 0
    rows = _read_rows(tmp_path)
    assert list(rows[0]) == ["level", "subject", "case", "class", "voxels", "ml", "components"]
    case = "sub-07/anat/sub-07_T1w"
    # A voxel has 0.7 * 1.3 * 2.1 mm3 = 1.911 mm3.
    assert [list(row.values()) for row in rows] == [
        ["volume", "sub-07", case, "grey matter", "10", "0.01911", "2"],
        ["volume", "sub-07", case, 'the "core"', "6", "0.011466", "1"],
    ]
    content = _read_json(tmp_path)
    (result,) = content["cases"]
    assert content["scans"] == []
    assert (result["case"], result["subject"], result["shape"]) == (case, "sub-07", [9, 8, 7])
    assert result["files"] == [f"{case}_prediction.nii.gz", f"{case}_overlay.png"]
    assert result["images"] == [str(tmp_path / "in" / f"{case}.nii.gz")]
    assert result["spacing_mm"] == pytest.approx((0.7, 1.3, 2.1))
    assert [(model["run"], model["engine"], len(model["bundle_json_sha256"])) for model in result["models"]] == [("bands", "keras", 64)]
    assert 0 < result["seconds"] < 600
    assert result["classes"][1] == {
        "name": 'the "core"', "voxels": 6, "ml": 0.011466, "components": 1, "value": 170, "colour": "#56B4E9",
    }  # fmt: skip


def test_regions_are_measured_whole_and_nothing_is_no_component():
    label = np.zeros((4, 4, 4), np.uint8)
    label[0, 0, :3] = 1, 2, 1
    label[3, 3, 3] = 2
    names, regions = ("background", "whole", "core"), (Region((1, 2), 1), Region((2,), 2))
    whole, core = measure_classes(label, names, regions, (1.0, 2.0, 5.0))
    assert (whole["voxels"], whole["ml"], whole["components"]) == (4, 0.04, 2)
    assert (core["voxels"], core["ml"], core["components"]) == (2, 0.02, 2)
    assert measure_sizes(label, names, regions, (10.0, 10.0, 10.0)) == {"whole": (4, 4.0), "core": (2, 2.0)}
    assert measure_sizes(label, names, (), (10.0, 10.0, 10.0)) == {"whole": (2, 2.0), "core": (2, 2.0)}
    (nothing,) = measure_classes(np.zeros((3, 3), np.uint8), ("background", "a"))
    assert nothing == {"name": "a", "voxels": 0, "ml": None, "components": 0}


def test_a_slice_of_a_known_spacing_has_no_thickness_and_so_no_ml():
    (one,) = measure_classes(np.ones((3, 3), np.uint8), ("background", "a"), spacing_mm=(1.0, 1.0))
    assert one == {"name": "a", "voxels": 9, "ml": None, "components": 1}


def _write_slices(write_picture, names=("p1_slice_0", "p1_slice_1", "p1_slice_10", "other")):
    for number, name in enumerate(names):
        picture = np.zeros((16, 16), np.uint8)
        picture[2:4, 2 : 4 + number] = 100
        picture[10, 10] = 240
        write_picture(f"in/{name}.png", picture)


def test_slices_have_voxels_and_their_scan_has_the_sum_but_no_ml(run, tmp_path, write_picture):
    _write_slices(write_picture)
    assert run(tmp_path / "in", dims=2) == 0
    rows = [[row["level"], row["case"], row["voxels"], row["ml"], row["components"]] for row in _read_rows(tmp_path)]
    assert rows[::2] == [
        # The picture without a number is a scan of its own.
        ["slice", "other", "10", "", "1"],
        ["slice", "p1_slice_0", "4", "", "1"],
        ["slice", "p1_slice_1", "6", "", "1"],
        ["slice", "p1_slice_10", "8", "", "1"],
        ["volume", "p1", "18", "", ""],
    ]
    content = _read_json(tmp_path)
    assert [(scan["scan"], scan["slices"]) for scan in content["scans"]] == [("p1", 3)]
    assert content["scans"][0]["classes"][1] == {"name": 'the "core"', "voxels": 3, "ml": None, "components": None}
    assert {case["spacing_mm"] for case in content["cases"]} == {None}


def test_a_scan_that_lacks_a_slice_has_no_sum(run, tmp_path, write_picture):
    _write_slices(write_picture)
    damaged = tmp_path / "in" / "p1_slice_1.png"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert run(tmp_path / "in", dims=2) == 3
    assert [row["case"] for row in _read_rows(tmp_path)][::2] == ["other", "p1_slice_0", "p1_slice_10"]
    assert _read_json(tmp_path)["scans"] == []


def test_later_calls_keep_the_rows_and_a_call_that_was_killed_loses_none(run, tmp_path, write_nifti, capsys):
    for name in ("a", "b"):
        write_nifti(f"in/{name}.nii.gz", _make_scan(), AFFINE)
    out = tmp_path / "out"
    assert run(tmp_path / "in" / "a.nii.gz") == 0
    assert run(tmp_path / "in" / "b.nii.gz") == 0
    names = ("results.json", "volumes.csv", "itksnap_labels.txt", "slicer_labels.ctbl")
    before = {name: (out / name).read_bytes() for name in names}
    assert [row["case"] for row in _read_rows(tmp_path)] == ["a", "a", "b", "b"]
    # A killed call leaves the record alone.
    for name in names:
        (out / name).unlink()
    capsys.readouterr()
    assert run(tmp_path / "in") == 0
    assert "0 done, 0 failed, 2 skipped" in capsys.readouterr().out
    assert {name: (out / name).read_bytes() for name in names} == before
    (out / "a_prediction.nii.gz").unlink()
    assert run(tmp_path / "in" / "b.nii.gz") == 0
    assert [row["case"] for row in _read_rows(tmp_path)] == ["b", "b"]


def test_a_record_without_results_is_completed(run, tmp_path, write_nifti, capsys):
    path = write_nifti("a.nii.gz", _make_scan(), AFFINE)
    assert run(path) == 0
    record = tmp_path / "out" / "predictions.jsonl"
    entry = json.loads(record.read_text().splitlines()[-1])
    record.write_text(json.dumps({name: value for name, value in entry.items() if name not in ("files", "result")}) + "\n")
    (tmp_path / "out" / "volumes.csv").unlink()
    capsys.readouterr()
    assert run(path) == 0
    assert "1 done, 0 failed, 0 skipped" in capsys.readouterr().out
    assert len(_read_rows(tmp_path)) == 2


def test_a_file_of_an_earlier_model_is_written_anew(run, tmp_path, write_nifti, capsys):
    pytest.importorskip("SimpleITK")
    path = write_nifti("a.nii.gz", _make_scan(), AFFINE)
    assert run(path, "--save", "seg.nrrd") == 0
    # Another option makes another label map, and nobody wants the segmentation.
    assert run(path, "--overlap", "0.25") == 0
    assert _read_json(tmp_path)["cases"][0]["files"] == ["a_prediction.nii.gz", "a_overlay.png"]
    before = (tmp_path / "out" / "a_prediction.seg.nrrd").stat().st_mtime_ns
    capsys.readouterr()
    assert run(path, "--overlap", "0.25", "--save", "seg.nrrd") == 0
    assert "1 done" in capsys.readouterr().out
    assert (tmp_path / "out" / "a_prediction.seg.nrrd").stat().st_mtime_ns > before
    # A call that wants less knows the file still.
    assert run(path, "--overlap", "0.25", "--format", "nrrd") == 0
    files = ["a_prediction.nrrd", "a_overlay.png", "a_prediction.nii.gz", "a_prediction.seg.nrrd"]
    assert _read_json(tmp_path)["cases"][0]["files"] == files


def test_the_files_of_a_folder_of_scans_are_those_of_the_scans(run, tmp_path):
    """`--output` may be the folder of the scans; a second call finds the scans alone."""
    pytest.importorskip("SimpleITK")
    (tmp_path / "out").mkdir()
    nib.save(nib.Nifti1Image(_make_scan(), AFFINE), tmp_path / "out" / "a.nii.gz")
    for _ in range(2):
        assert run(tmp_path / "out", "--save", "seg.nrrd") == 0
        assert [case["case"] for case in _read_json(tmp_path)["cases"]] == ["a"]


def test_subjects_are_those_of_the_user_and_a_later_call_corrects_them(run, tmp_path, write_nifti, capsys):
    for name in ("a_1", "a_2", "b_1"):
        write_nifti(f"in/{name}.nii.gz", _make_scan(), AFFINE)
        write_nifti(f"labels/{name}.nii.gz", np.zeros(_make_scan().shape, np.uint8), AFFINE)
    labels = ["--labels", tmp_path / "labels"]
    assert run(tmp_path / "in", *labels) == 0
    assert [row["subject"] for row in _read_rows(tmp_path)][::2] == ["a_1", "a_2", "b_1"]
    capsys.readouterr()
    assert run(tmp_path / "in", *labels, "--subjects", "^(.)_") == 0
    text = capsys.readouterr().out
    assert "0 done, 0 failed, 3 skipped" in text
    # The means are over two subjects.
    assert re.search(r"grey matter +0.000 \[.* 2 +0\n", text), text
    assert [row["subject"] for row in _read_rows(tmp_path)][::2] == ["a", "a", "b"]
    assert [case["subject"] for case in _read_json(tmp_path)["cases"]] == ["a", "a", "b"]
    with (tmp_path / "out" / "scored_cases.csv").open(newline="") as file:
        assert [row["subject"] for row in csv.DictReader(file)] == ["a", "a", "b"]
    expect_one_line(capsys, run(tmp_path / "in", "--subjects", "^(a)_"), "Expected the subject of every case from `subjects`, ^(a)_.")


def test_tables_that_cannot_be_written_do_not_hide_that_the_label_maps_are_there(run, tmp_path, write_nifti, capsys):
    path = write_nifti("a.nii.gz", _make_scan(), AFFINE)
    (tmp_path / "out" / "results.json").mkdir(parents=True)
    assert run(path) == 3
    text = capsys.readouterr().out
    assert "failed: Expected to write " in text
    assert "results.json to its end. Received: Is a directory." in text
    assert "1 done, 1 failed, 0 skipped" in text
    assert (tmp_path / "out" / "a_prediction.nii.gz").is_file()
