"""Prediction by a command: which scans are predicted, scored, skipped and never replaced."""

import csv
import json
import shutil
from dataclasses import replace

import cv2
import keras
import numpy as np
import pytest
from command_helpers import expect_one_line

import predict
import train
from modules.data.case import LabelRule
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.networks import with_head
from modules.predict.bundle import ModelBundle
from modules.predict.cases import PredictionOptions
from modules.predict.postprocess import Postprocessing, Step
from modules.run.prediction_flags import parse_prediction


@pytest.fixture
def scans(phantoms, tmp_path):
    """Copies three slices of one OASIS scan to `images` and their labels to `labels`; returns the images."""
    for kind, prefix in (("", "case"), ("seg_", "seg")):
        folder = tmp_path / ("labels" if kind else "images")
        folder.mkdir()
        for path in sorted((phantoms / "oasis" / f"keras_png_slices_{kind}test").glob(f"{prefix}_*"))[:3]:
            shutil.copy(path, folder)
    return sorted((tmp_path / "images").iterdir())


def _predict(runs, tmp_path, *argv):
    return predict.main([*map(str, argv), "--model", str(runs["oasis"]), "--output", str(tmp_path / "out")])


def _read_cases(tmp_path, level="slice"):
    with (tmp_path / "out" / "scores.csv").open() as file:
        return list(dict.fromkeys(row["case"] for row in csv.DictReader(file) if row["level"] == level))


def test_a_bad_file_does_not_end_the_others_and_a_later_call_does_what_is_missing(runs, scans, tmp_path, capsys):
    labels = ["--labels", tmp_path / "labels"]
    names = [path.name.removesuffix(".nii.png") for path in scans]
    whole = scans[1].read_bytes()
    scans[1].write_bytes(whole[:-9])
    (tmp_path / "images" / "notes.txt").touch()
    assert _predict(runs, tmp_path, tmp_path / "images", *labels) == 3
    text = capsys.readouterr().out
    assert f"failed: Expected a whole PNG of one picture in {scans[1]}" in text
    assert "2 done, 1 failed, 0 skipped" in text
    assert f"1 file(s) of other kinds below {tmp_path / 'images'} are left out" in text
    assert _read_cases(tmp_path) == [names[0], names[2]]
    # Two of three slices do not give the scan's score.
    assert _read_cases(tmp_path, "volume") == []

    scans[1].write_bytes(whole)
    assert _predict(runs, tmp_path, tmp_path / "images", *labels) == 0
    # The scan is scored as one, so all its slices are predicted.
    assert "3 done, 0 failed, 0 skipped" in capsys.readouterr().out
    scores = (tmp_path / "out" / "scores.csv").read_text()
    assert _read_cases(tmp_path) == names
    assert len(_read_cases(tmp_path, "volume")) == 1

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_prediction.png")}
    assert _predict(runs, tmp_path, tmp_path / "images", *labels) == 0
    assert f"0 done, 0 failed, 3 skipped, whose files are there already ({names[0]}, " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "out" / "scores.csv").read_text() == scores
    next(iter(before)).unlink()
    assert _predict(runs, tmp_path, tmp_path / "images") == 0
    assert "1 done, 0 failed, 2 skipped" in capsys.readouterr().out
    for more in (["--overwrite"], ["--overlap", "0.25"]):
        assert _predict(runs, tmp_path, tmp_path / "images", *more) == 0
        assert "3 done, 0 failed, 0 skipped" in capsys.readouterr().out


def test_the_exit_status_says_whether_any_scan_failed(tmp_path, write_picture, capsys):
    image = keras.Input((16, 16, 1))
    model = with_head(keras.Model(image, keras.layers.Conv2D(1, 1)(image)))
    rule = LabelRule({0: 0, 255: 1})
    ModelBundle(model, Preprocessing(2, shape=(16, 16)), Window((16, 16)), ("background", "a"), ("T1",), rule).save(tmp_path / "bundle")
    good = write_picture("good.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:-9])
    for number, (images, status) in enumerate((([good], 0), ([good, bad], 3), ([bad], 2))):
        flags = ["--model", str(tmp_path / "bundle"), "--engine", "keras", "--output", str(tmp_path / f"out{number}")]
        assert predict.main([*map(str, images), *flags]) == status
    assert capsys.readouterr().err.count("Expected a whole PNG of one picture") == 1


def test_postprocessing_is_applied_unless_left_out_and_an_ensemble_takes_what_is_shared(tmp_path, write_picture, capsys):
    image = keras.Input((16, 16, 1))
    # Foreground is what is brighter than the middle.
    layer = keras.layers.Conv2D(
        1, 1, kernel_initializer=keras.initializers.Constant(100), bias_initializer=keras.initializers.Constant(-50)
    )
    model, rule = with_head(keras.Model(image, layer(image))), LabelRule({0: 0, 255: 1})
    picture, reference = np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8)
    picture[2:8, 2:8] = picture[12, 12] = reference[2:8, 2:8] = 255
    path = write_picture("scan.png", picture)
    write_picture("labels/scan.png", reference)
    plain = ModelBundle(model, Preprocessing(2, shape=(16, 16)), Window((16, 16)), ("background", "a"), ("T1",), rule)
    plain.save(tmp_path / "plain")
    replace(plain, postprocessing=Postprocessing((Step("keep_largest", 1),))).save(tmp_path / "bundle")

    def run(folder, *flags, models=("bundle",)):
        argv = [str(path), "--model", *(str(tmp_path / name) for name in models), "--engine", "keras", "--output", str(tmp_path / folder)]
        assert predict.main([*argv, "--labels", str(tmp_path / "labels"), "--probabilities", *flags]) == 0
        label = cv2.imread(str(tmp_path / folder / "scan_prediction.png"), cv2.IMREAD_UNCHANGED)
        with (tmp_path / folder / "scores.csv").open() as file:
            return label, next(csv.DictReader(file))["dice"], capsys.readouterr().out

    label, dice, text = run("out")
    np.testing.assert_array_equal(label, reference)
    assert dice == "1.0"
    assert "postprocessing: keep the largest object of a\n" in text
    probabilities = (tmp_path / "out" / "scan_probabilities.npz").read_bytes()
    # The same folder: an option that changed counts as missing.
    label, dice, text = run("out", "--no-postprocess")
    np.testing.assert_array_equal(label, picture)
    # 2 * 36 / (36 + 37)
    assert float(dice) == 72 / 73
    assert "postprocessing: left out" in text
    assert (tmp_path / "out" / "scan_probabilities.npz").read_bytes() == probabilities
    label, _, text = run("both", models=("bundle", "plain"))
    np.testing.assert_array_equal(label, picture)
    assert "postprocessing: the steps that not all models of the ensemble share are left out" in text
    np.testing.assert_array_equal(run("twice", models=("bundle", "bundle"))[0], reference)


def test_predict_lays_windows_as_the_scores_of_a_training_do():
    assert parse_prediction(["a.nii"]).overlap == PredictionOptions().overlap == 0.5


def test_a_scan_without_its_label_is_predicted_and_not_scored(runs, scans, tmp_path, capsys):
    missing = tmp_path / "labels" / scans[0].name.replace("case_", "seg_")
    missing.unlink()
    assert _predict(runs, tmp_path, tmp_path / "images", "--labels", tmp_path / "labels") == 3
    assert f"failed: Expected a label for {scans[0]}. Received: no {missing.name} or " in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*_prediction.png"))) == 3
    assert len(_read_cases(tmp_path)) == 2


def test_scans_of_one_name_never_replace_each_other(runs, scans, tmp_path, capsys):
    for number, scan in enumerate(scans[:2]):
        (tmp_path / f"p{number}").mkdir()
        shutil.copy(scan, tmp_path / f"p{number}" / "T1.png")
    first, second = tmp_path / "p0" / "T1.png", tmp_path / "p1" / "T1.png"
    assert _predict(runs, tmp_path, first) == 0
    before = (tmp_path / "out" / "T1_prediction.png").read_bytes()
    capsys.readouterr()
    expect_one_line(capsys, _predict(runs, tmp_path, second), f"Received: a file made of {first}. Name another --output, or replace it")
    assert (tmp_path / "out" / "T1_prediction.png").read_bytes() == before
    assert _predict(runs, tmp_path, second, "--overwrite") == 0
    assert (tmp_path / "out" / "T1_prediction.png").read_bytes() != before
    assert _predict(runs, tmp_path, first, second) == 0
    assert (tmp_path / "out" / "p0" / "T1_prediction.png").read_bytes() == before
    assert (tmp_path / "out" / "p1" / "T1_overlay.png").is_file()


def test_files_of_unknown_origin_are_not_replaced(runs, scans, tmp_path, capsys):
    path = tmp_path / "out" / scans[0].name.replace(".nii.png", "_prediction.png")
    path.parent.mkdir()
    path.write_text("mine")
    expect_one_line(capsys, _predict(runs, tmp_path, scans[0]), "which is not in predictions.jsonl")
    assert path.read_text() == "mine"


def test_label_maps_of_a_run_compare_as_the_run_does(runs, phantoms, tmp_path, capsys):
    data = phantoms / "oasis"
    assert _predict(runs, tmp_path, data / "keras_png_slices_test") == 0
    compare = ["--compare", str(runs["oasis"]), str(tmp_path / "out"), "--labels", str(data / "keras_png_slices_seg_test")]
    assert train.main([*compare, "--output", str(tmp_path / "compared")]) == 0
    content = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert (content["level"], [row["class_name"] for row in content["differences"]]) == (
        "volume",
        ["CSF", "grey matter", "white matter", "mean"],
    )
    assert {row["difference"] for row in content["differences"]} == {0}
    assert content["models"][1] == {"name": "out", "path": str(tmp_path / "out")}
    # A map that is missing is named.
    lost = min((tmp_path / "out").glob("*_prediction.png"))
    lost.unlink()
    capsys.readouterr()
    name = lost.name.removesuffix("_prediction.png")
    expect_one_line(capsys, train.main(compare), f"Expected a label map of each test case in {tmp_path / 'out'}. Received: none of {name}.")


def test_the_tolerance_of_surfaces_needs_labels_and_fits_the_classes(runs, scans, tmp_path, capsys):
    for flags, message in (
        (["--tolerance-mm", "1"], "Expected --labels beside --tolerance-mm. Received: none, and nothing is scored. Name their folder."),
        (["--tolerance-mm", "1", "0", "--labels", "x"], "Expected --tolerance-mm above 0. Received: 0. Give mm."),
        (
            ["--tolerance-mm", "1", "2", "--labels", tmp_path / "labels"],
            "Expected `tolerance_mm` of one number, or of 3 for CSF, grey matter, white matter. Received: 2 numbers. Leave it out for",
        ),
    ):
        expect_one_line(capsys, _predict(runs, tmp_path, scans[0], *flags), message)
