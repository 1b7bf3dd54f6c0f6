"""The validation cases decide in which precision a model predicts, and one prediction serves postprocessing too."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from modules import hardware
from modules.data.case import Case, Predicted, Volume
from modules.predict import engines
from modules.predict.bundle import ModelBundle
from modules.predict.postprocess import FOREGROUND, Postprocessing, Step
from modules.run import validated
from modules.run.folder import RunFolder
from modules.run.validated import choose_precision, count_predictions, is_raised

PLAIN = {"slice": {"a": 0.9, "b": 0.5}, "volume": {"a": 0.92, "b": 0.6}}


@pytest.mark.parametrize(
    ("level", "name", "dice", "expected", "reason"),
    [
        ("slice", "a", 0.8991, "bfloat16", "it moves the mean Dice of each class by 0.0009 or less"),
        ("slice", "b", 0.4989, "float32", "bfloat16 moves the mean Dice of b by 0.0011"),
        # A better Dice is another one too, and a scan counts as its slices do.
        ("slice", "a", 0.9012, "float32", "bfloat16 moves the mean Dice of a by 0.0012"),
        ("volume", "b", 0.602, "float32", "bfloat16 moves the mean Dice of b by 0.002"),
    ],
)
def test_every_class_must_stay(level, name, dice, expected, reason):
    choice = choose_precision(PLAIN, {**PLAIN, level: PLAIN[level] | {name: dice}}, [], 7)
    assert (choice.precision, choice.reason, choice.cases) == (expected, reason, 7)
    assert choice.describe() == f"predictions on a CPU compute in {expected}: {reason} (7 validation case(s))"
    assert choice.to_json()["dice_float32"] == PLAIN
    assert choice.to_json()["moved"] == pytest.approx(abs(dice - PLAIN[level][name]))


def test_a_class_that_nobody_judged_is_no_reason_for_bfloat16():
    choice = choose_precision(PLAIN, PLAIN, ["c", "d"], 7)
    assert (choice.precision, choice.reason) == ("float32", "no validation label holds c, d")
    choice = choose_precision({}, {}, [], 0)
    assert (choice.precision, choice.reason) == ("float32", "no validation label holds any class")
    assert choice.to_json()["moved"] is None


def test_predictions_are_counted(monkeypatch):
    monkeypatch.setattr(engines, "has_openvino", lambda: True)
    found = {
        (postprocess, precision, able): count_predictions(postprocess, precision, bfloat16=able)
        for postprocess in ("learn", "none")
        for precision in ("auto", "float32")
        for able in (True, False)
    }
    assert [key for key, number in found.items() if number == 2] == [("learn", "auto", True), ("none", "auto", True)]
    assert {key[0] for key, number in found.items() if number == 1} == {"learn"}
    assert sum(found.values()) == 2 * 2 + 3
    monkeypatch.setattr(engines, "has_openvino", lambda: False)
    assert count_predictions("none", "auto", bfloat16=True) == 0


# A slice whose label holds 1,000 pixels of the background and of each class.
LABEL = np.repeat(np.arange(4, dtype=np.uint8), 1000).reshape(80, 50)


def _predict_with(wrong, speck=False, postprocess=False):
    """Makes a stand-in for `predict_cases` that gives class 1 to so many voxels of class 2, by the precision of the bundle."""
    asked = []

    def predict(bundles, cases, options):
        (bundle,) = bundles
        assert options.postprocess == postprocess
        asked.append(bundle.computed_in)
        if isinstance(wrong[bundle.computed_in], Exception):
            raise wrong[bundle.computed_in]
        for case in cases:
            prediction = LABEL.copy()
            prediction.reshape(-1)[2000 : 2000 + wrong[bundle.computed_in]] = 1
            if speck and bundle.computed_in == "bfloat16":
                prediction[0, 0] = 3
            yield Predicted(case, Volume(np.zeros((*LABEL.shape, 1), np.float32), np.eye(4), (1.0, 1.0)), LABEL, prediction)

    return predict, asked


CASES = [Case(f"case {number}", "s", ()) for number in range(3)]


@pytest.fixture
def run(runs, tmp_path, monkeypatch):
    """A copy of a finished run, on a machine whose CPU computes in bfloat16."""
    pytest.importorskip("openvino")
    monkeypatch.setattr(hardware, "has_cpu_bfloat16", lambda: True)
    monkeypatch.setattr(engines, "has_nvidia", lambda: False)
    shutil.copytree(runs["oasis"], tmp_path / "run")
    return RunFolder(tmp_path / "run")


# Of 1,000 voxels of a class one that is wrong makes a Dice of 2 * 999 / 1999, so it moves by 0.0005; two make 0.001.
@pytest.mark.parametrize(("wrong", "expected"), [(1, "bfloat16"), (2, "float32")])
def test_what_was_decided_is_in_the_bundle(run, monkeypatch, caplog, wrong, expected):
    predict, asked = _predict_with({"float32": 0, "bfloat16": wrong})
    monkeypatch.setattr(validated, "predict_cases", predict)
    with caplog.at_level("INFO", "mri"):
        bundle, entries = validated.decide(run, CASES, "none", "auto")
    assert asked == ["float32", "bfloat16"]
    assert (bundle.precision, bundle.computed_in) == (expected, expected)
    choice = entries["prediction_precision"]
    assert (choice["chosen"], choice["validation_cases"]) == (expected, 3)
    assert choice["moved"] == pytest.approx(1 - 2 * (1000 - wrong) / (2000 - wrong))
    assert choice["dice_float32"]["slice"] == {"CSF": 1.0, "grey matter": 1.0, "white matter": 1.0}
    shipped = ModelBundle.load(run.path)
    assert (shipped.precision, shipped.computed_in) == (expected, expected)
    assert shipped.provenance["prediction_precision"] == choice
    assert len([line for line in caplog.messages if line.startswith(f"predictions on a CPU compute in {expected}: ")]) == 1


def test_postprocessing_is_learnt_in_the_precision_that_is_shipped(run, monkeypatch):
    predict, asked = _predict_with({"float32": 0, "bfloat16": 0}, speck=True)
    monkeypatch.setattr(validated, "predict_cases", predict)
    bundle, entries = validated.decide(run, CASES, "learn", "auto")
    assert asked == ["float32", "bfloat16"]
    # Only in bfloat16 is there a speck to remove.
    assert bundle.postprocessing == ModelBundle.load(run.path).postprocessing == Postprocessing((Step("keep_largest", FOREGROUND),))
    assert entries["postprocessing"]["steps"][0]["changed_cases"] == 3


def test_a_model_that_fails_in_bfloat16_predicts_in_float32(run, monkeypatch):
    predict, asked = _predict_with({"float32": 0, "bfloat16": ValueError("Expected finite probabilities. Received: NaN.")})
    monkeypatch.setattr(validated, "predict_cases", predict)
    bundle, entries = validated.decide(run, CASES, "learn", "auto")
    assert asked == ["float32", "bfloat16"]
    assert (bundle.computed_in, ModelBundle.load(run.path).precision) == ("float32", "float32")
    assert entries["prediction_precision"]["reason"].startswith("bfloat16 failed: Expected finite probabilities.")
    assert "dice_bfloat16" not in entries["prediction_precision"]


@pytest.mark.parametrize(
    ("postprocess", "precision", "able"), [("learn", "float32", True), ("learn", "auto", False), ("none", "auto", False)]
)
def test_nothing_is_tried_where_nobody_wants_it_or_the_cpu_cannot(run, monkeypatch, postprocess, precision, able):
    monkeypatch.setattr(hardware, "has_cpu_bfloat16", lambda: able)
    predict, asked = _predict_with({"float32": 0})
    monkeypatch.setattr(validated, "predict_cases", predict)
    bundle, entries = validated.decide(run, CASES, postprocess, precision)
    assert asked == ["float32"] * count_predictions(postprocess, precision, bfloat16=able)
    assert (bundle.computed_in, set(entries)) == ("float32", {"postprocessing"} if postprocess == "learn" else set())


@pytest.mark.parametrize(("gained", "kept"), [(4, True), (2, False)])
def test_flips_that_raise_the_dice_are_shipped(run, monkeypatch, gained, kept):
    wrong = {False: 10, True: 10 - gained}

    def predict(bundles, cases, options):
        (bundle,) = bundles
        for case in cases:
            prediction = LABEL.copy()
            prediction.reshape(-1)[2000 : 2000 + wrong[bundle.mirror]] = 1
            yield Predicted(case, Volume(np.zeros((*LABEL.shape, 1), np.float32), np.eye(4), (1.0, 1.0)), LABEL, prediction)

    replace(ModelBundle.load(run.path, "keras"), flipped_axes=(1, 2)).save(run.bundle)
    monkeypatch.setattr(validated, "predict_cases", predict)
    bundle, entries = validated.decide(run, CASES, "none", "float32", "try")
    # Four voxels of 1,000 raise two of the three classes by 0.002, and so their mean by 0.0013; two voxels by half as much.
    assert (bundle.mirror, ModelBundle.load(run.path).mirror, entries["mirror"]["kept"]) == (kept, kept, kept)
    assert entries["mirror"]["dice_without"]["slice"]["CSF"] == pytest.approx(2 * 1000 / 2010)
    # A run that was killed after it decided decides the same again.
    assert validated.decide(run, CASES, "none", "float32", "try")[1] == entries
    assert not validated.decide(run, CASES, "none", "float32", "never")[1]


def test_flips_that_cost_a_class_are_not_kept():
    before = {"volume": {"a": 0.5, "b": 0.8}}
    assert is_raised(before, {"volume": {"a": 0.6, "b": 0.8}})
    assert not is_raised(before, {"volume": {"a": 0.6, "b": 0.799}})
    assert not is_raised({"volume": {}}, {"volume": {}})


# Of 1,000 voxels of a class three that are wrong make a Dice of 2 * 997 / 1997, which is 0.0015 less; four lose 0.002004.
@pytest.mark.parametrize(("wrong", "lost"), [(0, 0.0), (3, 1 - 2 * 997 / 1997), (4, None)])
def test_an_exported_variant_loses_less_than_2_thousandths(run, monkeypatch, caplog, wrong, lost):
    caplog.set_level("INFO", "mri")
    predict, asked = _predict_with({"float32": 0, "int8": wrong}, postprocess=True)
    monkeypatch.setattr(validated, "predict_cases", predict)
    plain = ModelBundle.load(run.path)
    other = replace(plain, computed_in="int8")
    if lost is None:
        message = (
            r"Expected int8 to lose less than 0\.002 of the mean validation Dice of a class\. Received: 0\.002 of (grey|white) matter, on 3"
        )
        with pytest.raises(ValueError, match=message):
            validated.judge_variant(plain, other, CASES)
        return
    found = validated.judge_variant(plain, other, CASES)
    assert asked == ["float32", "int8"]
    assert (found["cases"], found["lost"]) == (3, pytest.approx(lost))
    assert found["dice_float32"]["slice"] == {"CSF": 1.0, "grey matter": 1.0, "white matter": 1.0}
    assert min(found["dice_int8"]["slice"].values()) == pytest.approx(1 - lost)
    assert caplog.messages == [f"int8: the mean Dice of 3 validation case(s) falls by {lost:.2g} or less in each class"]


def test_a_variant_that_gains_is_kept_and_one_that_nobody_judged_is_not(run, monkeypatch):
    predict, _ = _predict_with({"float32": 4, "int8": 0}, postprocess=True)
    monkeypatch.setattr(validated, "predict_cases", predict)
    plain = ModelBundle.load(run.path)
    other = replace(plain, computed_in="int8")
    assert validated.judge_variant(plain, other, CASES)["lost"] <= 0
    monkeypatch.setitem(globals(), "LABEL", np.minimum(LABEL, 2))
    with pytest.raises(ValueError, match=r"Expected validation labels of every class to judge int8 on\. Received: none of white matter"):
        validated.judge_variant(plain, other, CASES)
