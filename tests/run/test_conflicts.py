"""Settings that quietly undo each other are named or refused."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import make_fingerprint

import predict
import train
from dataset import DATASETS
from modules.data.case import Case
from modules.data.preprocess import Preprocessing
from modules.model.losses import LOSSES
from modules.run.conflicts import OVERLAP_LOSSES, VOXEL_LOSSES, describe_conflicts
from modules.run.plan import make_plan
from modules.run.settings import Settings

VOLUMES = dataclasses.replace(DATASETS["ibsr18"], defaults={"plane": "coronal"})
SLICES = DATASETS["hipmri"]


class _Prepared:
    """A validation case that holds all classes but the last of HipMRI."""

    classes = (0, 1, 2, 3, 4)


def _describe(spec, split=None, **values):
    settings = Settings(spec.name, **{"epochs": 20, "batch_size": 2, **spec.defaults, **values})
    plan = make_plan(settings, spec, make_fingerprint([(32,) * spec.spatial_dims] * 3))
    settings = plan.resolve(settings)
    splits = {name: [Case(name, name, (), split=name if name == split else None)] for name in ("train", "validate", "test")}
    return describe_conflicts(SimpleNamespace(settings=settings, spec=spec, plan=plan, splits=splits, prepared={"validate": [_Prepared()]}))


IDLE = [
    (SLICES, {"cycles": 4}, "--cycles has no effect: only --schedule cosine_restarts has cycles"),
    (SLICES, {"patches_per_case": 4}, "--patches-per-case has no effect: only --mode patch draws patches"),
    (VOLUMES, {"sampling": "uniform", "mode": "volume"}, "--sampling has no effect: whole volumes leave no place to choose"),
    (
        VOLUMES,
        {"sampling": "weighted", "mode": "slice"},
        "--sampling has no effect: only --mode patch weighs classes; slices come evenly",
    ),
    (
        VOLUMES,
        {"class_probabilities": (1.0, 1.0, 1.0, 1.0)},
        "--class-probabilities has no effect: only --mode patch with --sampling weighted reads it",
    ),
    (VOLUMES, {"plane": "axial", "mode": "patch"}, "--plane has no effect: only slices of volumes lie across a plane"),
    (SLICES, {"plane": "axial"}, "--plane has no effect: only slices of volumes lie across a plane"),
    (
        VOLUMES,
        {"spacing": (1.0, 1.0, 1.0), "mode": "volume", "shape": (32, 32, 32)},
        "--spacing has no effect: every scan is resampled to --shape",
    ),
    (
        VOLUMES,
        {"spacing": (2.0, 2.0, 2.0), "resample": "none", "mode": "patch"},
        "--resample has no effect: --spacing says the size of a voxel",
    ),
    (SLICES, {"resample": "median"}, "--resample has no effect: only patches and slices of volumes have the median voxel size"),
    (SLICES, {"predict_mirror": "try", "augment": "mild"}, "--predict-mirror has no effect: --augment mild does not flip"),
    (SLICES, {"interpolation": "cubic"}, "--interpolation has no effect: no scan is resampled"),
    (
        SLICES,
        {"intensity": "fixed"},
        "--intensity has no effect: 'hipmri' states no scale, mean and deviation, so intensities stay as they are",
    ),
    (SLICES, {"batch_dice": True, "loss": "ce+focal:2"}, "--batch-dice has no effect: --loss ce+focal:2 has no overlaps"),
    (VOLUMES, {"batch_dice": True, "batch_size": 1}, "--batch-dice has no effect: a batch is one sample"),
    (SLICES, {"optimizer": "adamw"}, "--optimizer has no effect: adamw without --weight-decay is adam"),
    (SLICES, {"patience": 9, "epochs": 9}, "--patience has no effect: the training ends after 9 epochs anyway"),
    (
        SLICES,
        {"stop_at_dice": 0.9},
        "--stop-at-dice has no effect: no validation label holds prostate, so not every class can be that good",
    ),
]


@pytest.mark.parametrize(("spec", "values", "line"), IDLE, ids=lambda value: value.split()[0] if isinstance(value, str) else "")
def test_a_setting_without_effect_is_named(spec, values, line):
    assert _describe(spec, **values) == [line]


def test_what_has_an_effect_is_not_told():
    assert _describe(SLICES) == []
    assert _describe(VOLUMES, mode="volume", shape=(32, 32, 32), interpolation="cubic") == []
    # Without a shape the window follows from the resampled scans.
    assert _describe(VOLUMES, mode="volume", spacing=(1.0, 1.0, 1.0)) == []
    weighted = {"sampling": "weighted", "class_probabilities": (1.0, 1.0, 1.0, 1.0), "patches_per_case": 2, "batch_dice": True}
    assert _describe(VOLUMES, mode="patch", **weighted) == []
    assert _describe(SLICES, schedule="cosine_restarts", cycles=4, optimizer="adamw", weight_decay=0.1, patience=8, epochs=9) == []
    assert _describe(SLICES, predict_mirror="try", augment="light") == []
    assert _describe(VOLUMES, mode="patch", resample="median") == []
    # Slices come evenly where the user says so, and whoever switches something off knows that it does nothing.
    assert _describe(SLICES, sampling="uniform", batch_dice=False, loss="ce", patience=0) == []
    fixed = dataclasses.replace(SLICES, preprocessing=Preprocessing(2, shape=(256, 128), scale=255.0))
    assert _describe(fixed, intensity="fixed") == []


def test_fractions_of_official_splits_and_of_folds():
    assert _describe(SLICES, "validate", validate_fraction=0.3, test_fraction=0.3) == [
        "--validate-fraction has no effect: the data set has a validation set of its own"
    ]
    told = ["--test-fraction has no effect: the test set is the data set's own or the fold's"]
    assert _describe(SLICES, "test", validate_fraction=0.3, test_fraction=0.3) == told
    assert _describe(SLICES, "validate", validate_fraction=0.3, test_fraction=0.3, folds=2, fold=0) == told


def test_class_weights_of_one_class_need_a_loss_over_voxels():
    spec = dataclasses.replace(SLICES, class_names=("background", "body"))
    assert _describe(spec, loss="dice+tversky", class_weights="balanced") == [
        "--class-weights has no effect: the overlap of one class has no other weight"
    ]
    assert _describe(spec, loss="dice_ce", class_weights="balanced") == []


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_are_of_the_kinds_that_the_lines_say(name):
    rng = np.random.default_rng(0)
    label, logits = rng.integers(0, 2, (2, 8)), rng.normal(size=(2, 8, 1)).astype(np.float32)

    def differ(**options):
        return not np.allclose(np.asarray(LOSSES[name](label, logits, **options)), np.asarray(LOSSES[name](label, logits)))

    assert differ(batch=True) == (name not in VOXEL_LOSSES)
    assert differ(class_weights=(1.0, 3.0)) == (name not in OVERLAP_LOSSES)


def test_accumulation_without_an_update_is_refused(phantoms, tmp_path, capsys):
    places = ["--data", str(phantoms / "oasis"), "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    assert train.main(["--dataset", "oasis", "--epochs", "2", "--batch-size", "16", "--accumulate", "3", *places]) == 2
    error = capsys.readouterr().err
    assert "Expected `accumulate` up to the 2 steps of the whole training. Received: 3, which never makes an update" in error
    assert not (tmp_path / "runs").exists()


def test_flips_of_sides_that_nobody_knows_are_refused():
    spec = dataclasses.replace(SLICES, mirrored_labels=(("bone", "rectum"),))
    settings = Settings("hipmri", augment="light")
    with pytest.raises(
        ValueError, match=r"Expected volumes for `augment` with flips .*\(bone and rectum\). Received: 2-D files of 'hipmri'"
    ):
        make_plan(settings, spec, make_fingerprint([(32, 32)] * 3))
    make_plan(Settings("hipmri"), spec, make_fingerprint([(32, 32)] * 3))
    make_plan(settings, SLICES, make_fingerprint([(32, 32)] * 3))


@pytest.mark.parametrize(
    "flag", ["--mirror", "--labels x", "--overlap 0.2", "--engine keras", "--model x", "--overwrite", "--probabilities"]
)
def test_an_export_reads_no_flags_of_a_prediction(capsys, flag):
    assert predict.main(["run", "--export", "onnx", *flag.split()]) == 2
    assert f"Expected --export alone with a run. Received: {flag.split()[0]} too" in capsys.readouterr().err
