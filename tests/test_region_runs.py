"""A data set of nnU-Net's regions and its label to ignore, from `dataset.json` to pictures, scores and other programs."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from command_helpers import expect_one_line

import dataset
import predict
import train
from modules import phantom
from modules.predict.bundle import ModelBundle
from modules.run.proof import hash_weights

# The phantom's anterior part keeps its value 1. Its posterior part becomes 4, and the left quarter of each scan is ignored.
POSTERIOR, IGNORED = 4, 7
LABELS = {"background": 0, "hippocampus": [1, POSTERIOR], "posterior": POSTERIOR, "ignore": IGNORED}
TINY = ["--epochs", "1", "--base-filters", "2", "--levels", "1", "--batch-size", "4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder in nnU-Net's layout. Nobody judged any voxel of its case 1."""
    root = phantom.write_msd(tmp_path_factory.mktemp("regions") / "msd", subjects=6, shape=(16, 16, 16), nnunet=True)
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(content | {"labels": LABELS, "regions_class_order": [1, POSTERIOR]}))
    for path in (root / "labelsTr").iterdir():
        stored = nib.load(path)
        label = np.where(np.asarray(stored.dataobj) == 2, POSTERIOR, np.asarray(stored.dataobj)).astype(np.uint8)
        label[: None if path.name.startswith("case_001") else 4] = IGNORED
        nib.save(nib.Nifti1Image(label, stored.affine), path)
    return root


def _train(root, name, *flags):
    places = ["--runs", str(root.parent / "runs"), "--cache", str(root.parent / "cache"), "--name", name]
    assert train.main(["--dataset", "msd", "--data", str(root), *TINY, *places, *flags]) == 0
    return root.parent / "runs" / name


@pytest.fixture(scope="module")
def run(root):
    """A tiny run on the regions; read only."""
    return _train(root, "regions", "--mode", "slice", "--shape", "16", "16", "--augment", "light", "--class-weights", "balanced")


@pytest.fixture(scope="module")
def predictions(root, run, tmp_path_factory):
    """The folder of what `predict.py` makes of all images, with probabilities and scores; read only."""
    folder = tmp_path_factory.mktemp("predictions")
    argv = [str(root / "imagesTr"), "--labels", str(root / "labelsTr"), "--model", str(run), "--output", str(folder)]
    assert predict.main([*argv, "--probabilities"]) == 0
    return folder


def _read(path):
    return np.asarray(nib.load(path).dataobj)


def _read_table(path):
    with path.open() as file:
        return {(row["case"], row["class"]): row for row in csv.DictReader(file)}


def test_training_judges_each_region_and_names_what_nobody_judged(run):
    log = (run / "log.txt").read_text()
    assert "train: every voxel of 1 case(s) is ignored, so that they count for nothing: case_001" in log
    assert "the last epoch is kept; validation measures hippocampus, posterior" in log
    columns = (run / "history.csv").read_text().splitlines()[0].split(",")
    assert {"val_dice_hippocampus", "val_dice_posterior", "iou_posterior"} <= set(columns)
    assert not any("ignore" in column for column in columns)
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["test"]["volume"]) == list(summary["intervals"]["volume"]) == ["hippocampus", "posterior", "mean"]
    assert list((run / "figures").glob("comparison_*.png"))
    assert "no postprocessing: objects of regions overlap" in log


def test_the_fingerprint_counts_regions_and_no_ignored_voxel(root, run):
    measured = json.loads((run / "fingerprint.json").read_text())["pooled"]["classes"]
    labels = [_read(root / "labelsTr" / f"{name}.nii.gz") for name in json.loads((run / "run.json").read_text())["splits"]["train"]]
    assert list(measured) == ["background", "hippocampus", "posterior"]
    for name, values in (("background", [0]), ("hippocampus", [1, POSTERIOR]), ("posterior", [POSTERIOR])):
        counts = [int(np.isin(label, values).sum()) for label in labels]
        assert measured[name] == {"voxels": sum(counts), "cases": sum(count > 0 for count in counts)}


def test_a_bundle_of_regions_has_a_sigmoid_each(run):
    bundle = ModelBundle.load(run, "keras")
    assert (bundle.class_names, bundle.num_maps) == (("background", "hippocampus", "posterior"), 2)
    assert bundle.model.layers[-1].activation.__name__ == "sigmoid"


def test_label_maps_are_painted_in_order_with_the_files_own_values(predictions):
    seen = set()
    for path in sorted(predictions.glob("*_prediction.nii.gz")):
        prediction, maps = _read(path), _read(path.with_name(path.name.replace("prediction", "probabilities")))
        assert maps.shape == (*prediction.shape, 2)
        painted = np.where(maps[..., 1] > 0.5, POSTERIOR, np.where(maps[..., 0] > 0.5, 1, 0))
        np.testing.assert_array_equal(prediction, painted)
        seen |= set(np.unique(prediction).tolist())
    assert POSTERIOR in seen <= {0, 1, POSTERIOR}


def test_scores_are_those_of_the_regions_without_what_is_ignored(root, run, predictions):
    scores = _read_table(predictions / "scores.csv")
    # The run scored its test case alike.
    assert _read_table(run / "scores.csv").items() <= scores.items()
    for name in ("case_001", "case_003", "case_004"):
        label, prediction = _read(root / "labelsTr" / f"{name}.nii.gz"), _read(predictions / f"{name}_prediction.nii.gz")
        counted = label != IGNORED
        for region, values in (("hippocampus", [1, POSTERIOR]), ("posterior", [POSTERIOR])):
            row = scores[name, region]
            truth, guess = (np.isin(array, values) & counted for array in (label, prediction))
            assert (int(row["reference_voxels"]), int(row["voxels"])) == (truth.sum(), guess.sum())
            if name == "case_001":
                assert row["dice"] == row["hd95_mm"] == "nan"
            else:
                assert float(row["dice"]) == pytest.approx(2 * (truth & guess).sum() / (truth.sum() + guess.sum()))
                assert float(row["reference_ml"]) == pytest.approx(truth.sum() / 1000)


def test_mirrored_and_averaged_maps_are_painted_too(root, run, predictions, tmp_path):
    image = sorted(root.glob("imagesTr/case_003_*.nii.gz"))
    argv = [*map(str, image), "--model", str(run), str(run), "--probabilities", "--output"]
    assert predict.main([*argv, str(tmp_path / "a")]) == 0
    np.testing.assert_allclose(
        _read(tmp_path / "a" / "case_003_probabilities.nii.gz"), _read(predictions / "case_003_probabilities.nii.gz"), atol=1e-6
    )
    assert predict.main([*argv, str(tmp_path / "b"), "--mirror"]) == 0
    maps = _read(tmp_path / "b" / "case_003_probabilities.nii.gz")
    assert np.abs(maps - _read(predictions / "case_003_probabilities.nii.gz")).max() > 1e-4
    painted = np.where(maps[..., 1] > 0.5, POSTERIOR, np.where(maps[..., 0] > 0.5, 1, 0))
    np.testing.assert_array_equal(_read(tmp_path / "b" / "case_003_prediction.nii.gz"), painted)


def test_an_exported_model_says_how_regions_become_labels(run, tmp_path):
    assert predict.main(["--export", "savedmodel", str(run), "--output", str(tmp_path)]) == 0
    description = json.loads((tmp_path / "preprocessing.json").read_text())
    assert description["output"]["shape"][-1] == 2
    assert "by a sigmoid each" in description["output"]["values"]
    assert description["classes"][1:] == [
        {"index": 1, "name": "hippocampus", "value_in_file": 1, "values_of_region": [1, POSTERIOR]},
        {"index": 2, "name": "posterior", "value_in_file": POSTERIOR, "values_of_region": [POSTERIOR]},
    ]


@pytest.mark.parametrize("flags", [[], ["--augment", "light"]])
def test_the_data_set_can_be_shown(root, tmp_path, flags, monkeypatch):
    from modules.reports import sheet

    legends = []
    monkeypatch.setattr(sheet, "write_panels", lambda path, grid, title, legend, **rest: legends.append(legend[0][2]))
    assert dataset.main(["show", "--dataset", "msd", "--data", str(root), "--output", str(tmp_path / "a.png"), *flags]) == 0
    names = [text for _, text in legends[0]]
    assert names[:2] == ["hippocampus without posterior", "posterior"]
    assert names[2:] == ["ignore"]


def test_one_region_against_the_rest_ignores_the_same_voxels(root):
    run = _train(root, "target", "--target", "hippocampus", "--mode", "patch", "--shape", "8", "8", "8")
    bundle = ModelBundle.load(run, "keras")
    assert (bundle.class_names, bundle.regions) == (("background", "hippocampus"), ())
    assert (dict(bundle.label_rule.values), bundle.label_rule.output_values) == ({0: 0, 1: 1, POSTERIOR: 1, IGNORED: 255}, (0, 1))
    (name, _), row = next(iter(_read_table(run / "scores.csv").items()))
    label = _read(root / "labelsTr" / f"{name}.nii.gz")
    assert int(row["reference_voxels"]) == np.isin(label, [1, POSTERIOR]).sum()
    assert int(row["voxels"]) <= (label != IGNORED).sum()


def test_a_training_begins_from_a_model_of_regions(root, run, tmp_path, monkeypatch):
    held = []
    monkeypatch.setattr(train, "carry_out", lambda prepared, run, environment, **_: held.append(prepared))
    flags = ["--dataset", "msd", "--data", str(root), "--init", str(run), "--epochs", "1", "--batch-size", "4", "--shape", "16", "16"]
    places = ["--runs", str(tmp_path), "--cache", str(root.parent / "cache")]
    for target in ([], ["--target", "posterior"]):
        assert train.main([*flags, *places, *target, "--name", f"run{len(target)}"]) == 0
    same, other = held
    model = ModelBundle.load(run, "keras").model
    assert hash_weights(same.network) == hash_weights(model)
    assert (same.begun.weights[0], same.begun.lines) == (same.begun.weights[1], ())
    # A region alone keeps its own logit, the second.
    for old, new in zip(model.get_layer("logits").get_weights(), other.network.get_layer("logits").get_weights(), strict=True):
        np.testing.assert_array_equal(new[..., 0], old[..., 1])
    assert "init: classes: background, posterior as there" in other.describe()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions_class_order": [1]}, "Expected 2 values, one a region ('hippocampus', 'posterior'), in `regions_class_order` of"),
        ({"labels": LABELS | {"ignore": 2}}, "Expected the highest value of all labels, and at most 255, for 'ignore' in"),
    ],
)
def test_a_wrong_description_is_one_line(root, tmp_path, capsys, change, message):
    content = json.loads((root / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(content | change))
    expect_one_line(capsys, train.main(["--dataset", "msd", "--data", str(tmp_path)]), message)
