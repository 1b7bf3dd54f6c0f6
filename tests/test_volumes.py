"""Volumes through the commands: the three modes, the scan's own grid in every orientation, ensembles, mirroring."""

import csv
import json
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import keras
import nibabel as nib
import numpy as np
import pytest
from page_helpers import Page, check_numbers

import predict
import train
from dataset import DATASETS
from modules.data.case import Case, LabelRule, Volume
from modules.data.formats import write_label_like
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.data.ranges import TrainingRanges, measure_scan
from modules.networks import build, with_head
from modules.predict.bundle import ModelBundle
from modules.predict.cases import PredictionOptions, predict_cases, predict_images
from modules.predict.departures import Departures

TINY = [
    *("--epochs", "2", "--base-filters", "2", "--levels", "1", "--batch-size", "2", "--norm", "instance", "--patches-per-case", "2"),
    # A label map is the likeliest class of each voxel only without steps after it.
    *("--postprocess", "none", "--predict-precision", "float32"),
]


def _train(folder, data, name, *flags):
    places = ["--runs", str(folder / "runs"), "--cache", str(folder / "cache"), "--name", name]
    assert train.main(["--dataset", data.name, "--data", str(data), *TINY, *places, *flags]) == 0
    return folder / "runs" / name


LESSONS = ["--augment", "light", "--loss", "dice:1+focal:0.5", "--class-weights", "balanced", "--batch-dice"]
RUNS = {
    "msd-patch": ("msd", ["--shape", "16", "16", "16", "--sampling", "weighted", "--class-probabilities", "1", "2", "3"]),
    "hipmri3d-volume": ("hipmri3d", ["--network", "segresnet", "--shape", "16", "16", "8", "--loss", "dice"]),
    "ibsr18-patch": ("ibsr18", ["--spacing", "9", "9", "9", "--intensity", "percentile", *LESSONS]),
    "ibsr18-axial": ("ibsr18", ["--mode", "slice", "--plane", "axial"]),
    "ibsr18-coronal": ("ibsr18", ["--mode", "slice"]),
    "ibsr18-sagittal": ("ibsr18", ["--mode", "slice", "--plane", "sagittal", "--shape", "32", "32"]),
}


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory):
    """Trains one tiny run of each kind; read only."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: _train(folder, phantoms / data, name, *flags) for name, (data, flags) in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_volumes_leaves_scores_in_millimetres_and_pictures(runs, phantoms, name):
    run = runs[name]
    bundle = ModelBundle.load(run)
    with (run / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    record = json.loads((run / "run.json").read_text())
    assert {row["level"] for row in rows} == {"volume"}
    assert {row["case"] for row in rows} == set(record["splits"]["test"])
    assert {row["class"] for row in rows} == set(bundle.class_names[1:])
    assert all(float(row["reference_ml"]) > 0 and float(row["hd_mm"]) >= float(row["hd95_mm"]) > 0 for row in rows)
    pictures = {path.name.split("_")[0] for path in (run / "figures").iterdir()}
    assert pictures == {"accuracy.png", "comparison", "dice.png", "loss.png", "montage", "reliability.png", "slices"}
    assert check_numbers(page := Page(run / "report.html"), run, "summary.json")
    assert page.list_loads() == []
    assert (len(bundle.window.sizes), len(bundle.model.input_shape)) == (3, 4 if "al" in name.split("-")[1] else 5)


def test_balanced_weights_are_those_of_the_training_labels(runs, phantoms):
    log = (runs["ibsr18-patch"] / "log.txt").read_text()
    weights = [float(value) for value in log.partition("weights of the classes in the loss: ")[2].splitlines()[0].split(", ")]
    assert np.mean(weights) == pytest.approx(1, abs=1e-3)
    assert weights[1] == max(weights)  # CSF is the rarest
    assert weights[0] == min(weights)


def test_modes_make_the_windows_they_promise(runs):
    windows = {name: ModelBundle.load(run).window.sizes for name, run in runs.items()}
    assert windows["msd-patch"] == (16, 16, 16)
    assert windows["ibsr18-sagittal"] == (1, 32, 32)
    assert windows["ibsr18-coronal"][1] == windows["ibsr18-axial"][2] == 1
    volume = ModelBundle.load(runs["hipmri3d-volume"])
    assert (volume.window.sizes, volume.preprocessing.shape, volume.preprocessing.resize) == ((16, 16, 8), (16, 16, 8), True)


@pytest.mark.parametrize("name", ["msd-patch", "hipmri3d-volume", "ibsr18-patch", "ibsr18-coronal"])
def test_a_label_map_lies_on_the_scans_own_grid(runs, phantoms, tmp_path, name):
    data = RUNS[name][0]
    cases = DATASETS[data].find(phantoms / data)
    for case in cases[:2]:
        source = nib.load(case.image_paths[0])
        argv = [str(case.image_paths[0]), "--model", str(runs[name]), "--output", str(tmp_path), "--probabilities"]
        assert predict.main(argv) == 0
        result = nib.load(next(tmp_path.glob(f"{case.image_paths[0].name.split('.')[0]}_prediction.nii*")))
        spatial = source.shape if data == "ibsr18" else source.shape[:3]
        assert result.shape == spatial
        np.testing.assert_array_equal(result.affine, source.affine)
        probabilities = nib.load(next(tmp_path.glob(f"{case.image_paths[0].name.split('.')[0]}_probabilities.nii*"))).get_fdata()
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
        np.testing.assert_array_equal(probabilities.argmax(axis=-1), np.asarray(result.dataobj).reshape(source.shape[:3]))


def test_scores_of_predict_equal_those_of_train(runs, phantoms, tmp_path):
    run = runs["msd-patch"]
    names = json.loads((run / "run.json").read_text())["splits"]["test"]
    images = [str(phantoms / "msd" / "imagesTr" / f"{name}.nii.gz") for name in names]
    labels = str(phantoms / "msd" / "labelsTr")
    assert predict.main([*images, "--model", str(run), "--labels", labels, "--output", str(tmp_path)]) == 0
    assert (tmp_path / "scores.csv").read_text() == (run / "scores.csv").read_text()


def test_an_ensemble_is_the_mean_of_its_probabilities(runs, phantoms, tmp_path):
    image = phantoms / "ibsr18" / "Test_Set"
    members = [runs[name] for name in ("ibsr18-axial", "ibsr18-coronal", "ibsr18-sagittal", "ibsr18-patch")]
    outputs = []
    for number, models in enumerate([*([member] for member in members), members]):
        argv = [str(image), "--model", *map(str, models), "--output", str(tmp_path / str(number)), "--probabilities"]
        assert predict.main(argv) == 0
        outputs.append(nib.load(next((tmp_path / str(number)).rglob("*_probabilities.nii.gz"))).get_fdata())
    np.testing.assert_allclose(outputs[-1], np.mean(outputs[:-1], axis=0), atol=1e-5)
    assert not np.allclose(outputs[0], outputs[1], atol=1e-3)


def test_models_of_other_classes_make_no_ensemble(runs, phantoms, tmp_path, capsys):
    argv = [str(phantoms / "ibsr18" / "Test_Set"), "--model", str(runs["ibsr18-patch"]), str(runs["hipmri3d-volume"])]
    assert predict.main([*argv, "--output", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "Expected models of the same class_names for an ensemble, ('background', 'CSF'" in lines[0]


def test_channels_in_files_of_their_own_are_one_case(runs, phantoms, tmp_path, capsys):
    from modules import phantom

    root = phantom.write_msd(tmp_path / "raw", subjects=4, shape=(24, 32, 24), nnunet=True)
    together = tmp_path / "together"
    argv = ["--model", str(runs["msd-patch"])]
    assert predict.main([str(root / "imagesTr"), *argv, "--output", str(together), "--labels", str(root / "labelsTr")]) == 0
    predictions = sorted(together.glob("*_prediction.nii.gz"))
    assert len(predictions) == 4
    assert not any("_0000" in path.name for path in predictions)
    alone = sorted((root / "imagesTr").glob("*_0000.nii.gz"))[0]
    capsys.readouterr()
    assert predict.main([str(alone), *argv]) == 2
    assert "Expected 2 channels of" in capsys.readouterr().err


def test_a_file_whose_name_only_ends_in_a_number_is_a_case_of_its_own(runs, phantoms, tmp_path):
    source = sorted((phantoms / "msd" / "imagesTr").iterdir())[0]
    for name in ("scan_2019.nii.gz", "scan_2020.nii.gz"):
        (tmp_path / name).write_bytes(source.read_bytes())
    argv = [str(tmp_path / "scan_*.nii.gz"), "--model", str(runs["msd-patch"]), "--output", str(tmp_path / "out")]
    assert predict.main(argv) == 0
    assert len(list((tmp_path / "out").glob("*_prediction.nii.gz"))) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "oasis", "--mode", "patch"], "Expected `mode` 'slice' for 'oasis', which is a set of slices. Received: 'patch'"),
        (["--dataset", "ibsr18", "--network", "unet2d"], "Expected a 3-D `network` for mode 'patch', one of ('plain_unet', "),
        (["--dataset", "ibsr18", "--mode", "slice", "--network", "unet3d"], "Expected a 2-D `network` for mode 'slice', one of ('effi"),
        (["--dataset", "ibsr18", "--shape", "32"], "Expected `shape` of 3 numbers for 'ibsr18' in mode 'patch'. Received: (32,)"),
        (
            ["--dataset", "ibsr18", "--mode", "patch", "--shape", "32", "32"],
            "Expected `shape` of 3 numbers for 'ibsr18' in mode 'patch'. Received: (32, 32)",
        ),
        (
            ["--dataset", "ibsr18", "--epochs", "1", "--shape", "30", "32", "32"],
            "multiples of 8 for network 'plain_unet'. Received: (30, 32, 32)",
        ),
        (["--dataset", "ibsr18", "--spacing", "1"], "Expected `spacing` of 3 numbers"),
        (["--dataset", "ibsr18", "--class-probabilities", "1", "1"], "Expected `class_probabilities` of 4 numbers"),
        (["--dataset", "ibsr18", "--class-probabilities", "1", "1", "-1", "0"], "Expected `class_probabilities` of 0 or more"),
        (
            ["--dataset", "ibsr18", "--spacing", "1", "0", "1"],
            "Expected `spacing` of numbers above 0. Received: --spacing 1 0 1",
        ),
        (["--dataset", "ibsr18", "--stop-at-dice", "2"], "Expected `stop_at_dice` from 0 to 1. Received: 2.0"),
        (["--dataset", "ibsr18", "--shape", "16", "16", "16", "--heads", "3"], "unrecognized arguments"),
        (["--dataset", "ibsr18", "--shape", "16", "16", "16", "--num-heads", "3"], "options of network 'plain_unet'"),
    ],
)
def test_bad_flags_stop_with_one_line_and_leave_nothing(phantoms, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRI_DATA", str(phantoms))
    assert train.main(flags) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    # What was measured of the scans is right whatever the flags were.
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


# ------------------------------------------------------------------------------------------------------------ orientations


def _orientations():
    """Lists all 48 orientations: the world axis of each voxel axis, and its sign."""
    return [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def _store(array, affine, axes, signs):
    """Returns array and affine of the scan as a file of another orientation stores it."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        matrix[axis, new] = sign
        matrix[axis, 3] = 0 if sign > 0 else array.shape[axis] - 1
    stored = array.transpose(axes)
    return stored[tuple(slice(None, None, sign) for sign in signs)], affine @ matrix


def _oblique_affine():
    """Makes the affine of anisotropic voxels, turned a little about two axes, away from the origin."""
    one, other = np.radians(11), np.radians(-7)
    turn = np.array([[np.cos(one), -np.sin(one), 0], [np.sin(one), np.cos(one), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(other), -np.sin(other)], [0, np.sin(other), np.cos(other)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag((0.8, 1.1, 2.5))
    affine[:3, 3] = (-30, 12, 5)
    return affine


def _bundle(preprocessing, window, network="unet3d", **fields):
    keras.utils.set_random_seed(3)
    window = Window(window)
    return ModelBundle(
        model=with_head(build(network, (*window.shape, 1), 3, base_filters=2, levels=1, norm="instance")),
        preprocessing=preprocessing,
        window=window,
        class_names=("background", "left", "right"),
        channels=("T1",),
        label_rule=LabelRule({0: 0, 1: 1, 2: 2}),
        **fields,
    )


BUNDLES = {
    "patches": (Preprocessing(3, intensity="zscore", foreground_crop=True), (8, 16, 8), "unet3d"),
    "resampled": (Preprocessing(3, spacing_mm=(1.5, 1.0, 2.0), interpolation="cubic"), (16, 16, 8), "unet3d"),
    "whole": (Preprocessing(3, shape=(16, 16, 8), resize=True, intensity="percentile"), (16, 16, 8), "unet3d"),
    "slices": (Preprocessing(3, foreground_crop=True), (32, 1, 16), "unet2d"),
}


@pytest.mark.parametrize("kind", BUNDLES)
def test_the_prediction_is_the_same_in_world_space_in_all_48_orientations(tmp_path, kind):
    preprocessing, window, network = BUNDLES[kind]
    bundle = _bundle(preprocessing, window, network)
    rng = np.random.default_rng(0)
    image = np.zeros((19, 22, 14), np.int16)
    image[3:17, 2:20, 1:13] = rng.integers(1, 900, (14, 18, 12))
    affine = _oblique_affine()
    cases = []
    for number, (axes, signs) in enumerate(_orientations()):
        stored, stored_affine = _store(image, affine, axes, signs)
        path = tmp_path / f"{number}.nii"
        nib.save(nib.Nifti1Image(stored, stored_affine), path)
        cases.append(Case(str(number), str(number), (path,)))
    expected = None
    for item in predict_cases([bundle], cases, PredictionOptions(batch_size=4)):
        source = item.case.image_paths[0]
        written = tmp_path / f"{item.case.case_id}_prediction.nii"
        write_label_like(written, item.prediction, source)
        np.testing.assert_array_equal(nib.load(written).affine, nib.load(source).affine)
        found = nib.as_closest_canonical(nib.load(written))
        # The scan is RAS+ itself, so its canonical form is the scan before it was stored.
        np.testing.assert_allclose(found.affine, affine, atol=1e-4)
        found = np.asarray(found.dataobj)
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found, expected)
    assert expected.shape == image.shape
    assert len(np.unique(expected)) > 1


def test_a_known_label_comes_back_where_it_was(tmp_path):
    """A "network" that thresholds must find the very voxels, in every orientation, with anisotropic spacing."""
    inputs = keras.Input((8, 8, 8, 1))
    bright = keras.ops.sigmoid((inputs - 0.5) * 50)
    bundle = ModelBundle(
        model=keras.Model(inputs, bright),
        preprocessing=Preprocessing(3),
        window=Window((8, 8, 8)),
        class_names=("background", "bright"),
        channels=("T1",),
        label_rule=LabelRule({0: 0, 1: 1}),
    )
    rng = np.random.default_rng(1)
    image = rng.random((13, 9, 17)).astype(np.float32)
    for number, (axes, signs) in enumerate(_orientations()[::5]):
        stored, affine = _store(image, _oblique_affine(), axes, signs)
        path = tmp_path / f"{number}.nii.gz"
        nib.save(nib.Nifti1Image(stored, affine), path)
        (item,) = predict_cases([bundle], [Case("a", "a", (path,))])
        scaled = (stored - stored.min()) / (stored.max() - stored.min())
        np.testing.assert_array_equal(item.prediction, scaled > 0.5)


def test_mirroring_swaps_left_and_right(tmp_path):
    """A "network" that calls everything bright "left" is half right, because its mirror image says "right"."""
    inputs = keras.Input((8, 8, 8, 1))
    model = keras.Model(inputs, keras.ops.concatenate([1 - inputs, inputs, 0 * inputs], axis=-1))
    fields = {"class_names": ("background", "left", "right"), "channels": ("T1",), "label_rule": LabelRule({0: 0, 1: 1, 2: 2})}
    image = np.random.default_rng(0).random((9, 8, 10)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([-1.0, 1, 1, 1])), tmp_path / "image.nii")
    cases = [Case("a", "a", (tmp_path / "image.nii",))]
    results = []
    for swaps in ((), ((1, 2),)):
        bundle = ModelBundle(model=model, preprocessing=Preprocessing(3), window=Window((8, 8, 8)), mirrored_labels=swaps, **fields)
        (item,) = predict_cases([bundle], cases, PredictionOptions(mirror=True), keep_probabilities=True)
        results.append(item.probabilities)
    plain, swapped = results
    np.testing.assert_allclose(plain[..., 2], 0, atol=1e-6)
    # Four of the eight flips exchange left and right.
    np.testing.assert_allclose(swapped[..., 1], plain[..., 1] / 2, atol=1e-5)
    np.testing.assert_allclose(swapped[..., 2], plain[..., 1] / 2, atol=1e-5)
    np.testing.assert_allclose(swapped[..., 0], plain[..., 0], atol=1e-5)


@pytest.mark.parametrize("kind", BUNDLES)
def test_the_order_in_which_planes_are_made_changes_nothing(kind):
    bundle = _bundle(*BUNDLES[kind])
    array = np.random.default_rng(0).random((19, 22, 14, 1), np.float32)
    image = Volume(array, np.diag((0.8, 1.1, 2.5, 1)), (0.8, 1.1, 2.5))
    results = []
    for order in permutations(range(3)):
        (planes,) = ([*planes] for planes in predict_images(bundle, [image], PredictionOptions(mirror=True), order))
        results.append(np.stack(planes).transpose(*np.argsort(order), 3))
    for result in results:
        np.testing.assert_allclose(result, results[0], atol=1e-5)


def test_a_prediction_is_mirrored_only_along_what_the_training_flipped(runs, phantoms, tmp_path, capsys):
    scan = str(next((phantoms / "ibsr18" / "Test_Set").glob("*/IBSR_??.nii.gz")))
    flags = [scan, "--mirror", "--output", str(tmp_path)]
    assert ModelBundle.load(runs["ibsr18-patch"]).flipped_axes == (0, 1, 2)  # --augment light
    assert predict.main([*flags, "--model", str(runs["ibsr18-patch"])]) == 0
    assert ModelBundle.load(runs["ibsr18-coronal"]).flipped_axes == ()
    assert predict.main([*flags, "--model", str(runs["ibsr18-coronal"])]) == 2
    error = capsys.readouterr().err
    assert "Expected a model that was trained with flips for --mirror. Received: one trained without (--augment none)" in error
    # Of several models the error names the one.
    assert f" of run '{runs['ibsr18-coronal'].name}', which is worse" in error
    assert error.count("\n") == 1


def test_a_scan_that_leaves_what_was_trained_is_named(runs, phantoms, tmp_path, capsys):
    scan = next((phantoms / "ibsr18" / "Training_Set").glob("*/IBSR_??.nii.gz"))
    image = nib.load(scan)
    finer = tmp_path / "finer.nii.gz"
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine @ np.diag((0.6, 0.6, 0.6, 1))), finer)
    flags = ["--model", str(runs["ibsr18-coronal"]), "--output", str(tmp_path / "out")]
    assert predict.main([str(scan), str(finer), *flags]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "leaves what the model was trained on" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{finer} leaves what the model was trained on: voxels of ")
    # A field of view may be half as large.
    assert "field of view" not in lines[0]
    assert "contrast" not in lines[0]


def test_an_overlap_of_a_model_that_sees_scans_whole_is_told(runs, phantoms, tmp_path, capsys):
    scan = next((phantoms / "hipmri3d").glob("semantic_MRs*/*.nii.gz"))
    flags = [str(scan), "--model", str(runs["hipmri3d-volume"]), "--output", str(tmp_path)]
    told = "--overlap has no effect: the model sees each scan whole"
    for more, expected in ([], False), (["--overlap", "0.25"], True):
        assert predict.main([*flags, *more]) == 0
        assert (told in capsys.readouterr().out) == expected


def test_strange_scans_are_named_five_times_and_then_counted(caplog):
    bundle = _bundle(Preprocessing(3), (16, 16, 16))
    image = Volume(np.random.default_rng(0).random((8, 8, 8, 1), np.float32), np.eye(4), (1.0, 1.0, 1.0))
    large = Volume(image.array, np.diag((3, 3, 3, 1)), (3.0, 3.0, 3.0))
    trained = TrainingRanges.pool([measure_scan(image, bundle.preprocessing.measure(image))], 3)
    departures = Departures([replace(bundle, trained=trained), bundle])
    for number in range(7):
        for index in range(2):
            departures.check(Case(f"{number}_{index}", "a", (Path(f"{number}.nii"),), volume_id=str(number)), large)
    departures.check(Case("good", "a", (Path("good.nii"),)), image)
    assert departures.find(image) == []
    assert [text.split(" mm")[0] for text in departures.find(large)] == ["voxels of 3x3x3", "a field of view of 24x24x24"]
    departures.summarise()
    assert [record.getMessage().split()[0] for record in caplog.records] == [*(f"{number}.nii" for number in range(5)), "7"]
    assert caplog.records[-1].getMessage() == "7 scans leave what the model was trained on; the first 5 are named above"
