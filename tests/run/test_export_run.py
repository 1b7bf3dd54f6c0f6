"""An export is checked on the scans of its run, and a variant of it is judged on them."""

import importlib.util
import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import keras
import pytest

import predict
from dataset import DATASETS
from modules import hardware
from modules.run import validated
from modules.run.export_run import find_scans
from modules.run.folder import RunFolder, write_json
from modules.run.verify import read_data

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow exports for all backends")


@pytest.fixture
def run(runs, tmp_path):
    """A copy of a finished run."""
    return RunFolder(shutil.copytree(runs["oasis"], tmp_path / "run"))


def test_the_scans_of_a_run_are_found_again(run):
    splits, lack = find_scans(run, DATASETS)
    assert lack == ""
    assert {split: [case.case_id for case in cases] for split, cases in splits.items()} == run.read_record()["splits"]


def test_scans_that_are_gone_or_others_are_not_used(run, tmp_path):
    data = read_data(run)
    name = next(name for name, (split, _) in data.items() if split == "validate")
    write_json(run.data, data | {name: ["validate", "0"]})
    assert find_scans(run, DATASETS) == (
        {},
        f"Expected the data that {run.path} began with. Received: {name} changed. Restore it, or start a new run.",
    )
    record = run.read_record()
    record["config"]["data"] = str(tmp_path / "gone")
    write_json(run.record, record)
    assert find_scans(run, DATASETS) == ({}, f"no data set 'oasis' in {tmp_path / 'gone'}.")
    assert find_scans(RunFolder(tmp_path), DATASETS) == ({}, f"no run.json in {tmp_path}, a model without its run.")


@on_tensorflow
def test_an_export_is_checked_on_validation_scans(run, capsys):
    assert predict.main(["--export", "savedmodel", str(run.path)]) == 0
    check = json.loads((run.export / "preprocessing.json").read_text())["models"]["savedmodel"]["check"]
    assert (check["on"], check["voxels"]) == ("two windows of validation scans", 2 * 64 * 64)
    assert "tensorflow computes what Keras does on two windows of validation scans, within 0.0" in capsys.readouterr().out


@pytest.fixture
def nncf(monkeypatch):
    """A stand-in for NNCF that leaves a model as it is; it notes the shapes of the windows that it gets."""
    nncf, shapes = ModuleType("nncf"), []
    nncf.__spec__ = ModuleSpec("nncf", None)

    def quantize(model, data, subset_size, preset):
        cases, cut = data
        assert (len(cases), preset) == (subset_size, "performance")
        shapes.extend(cut(case).shape for case in cases)
        return model

    nncf.__dict__.update(
        quantize=quantize,
        Dataset=lambda cases, cut: (cases, cut),
        QuantizationPreset=SimpleNamespace(PERFORMANCE="performance"),
        set_log_level=lambda level: None,
        shapes=shapes,
    )
    monkeypatch.setitem(sys.modules, "nncf", nncf)
    return nncf


@on_tensorflow
def test_a_variant_is_judged_on_validation_scans_and_learns_from_training_scans(run, nncf, capsys, monkeypatch):
    pytest.importorskip("openvino")
    command = ["--export", "openvino", str(run.path), "--precision", "int8"]
    assert predict.main(command) == 0
    splits = run.read_record()["splits"]
    assert nncf.shapes == [(1, 64, 64, 1)] * len(splits["train"])
    known = json.loads((run.export / "preprocessing.json").read_text())["models"]["openvino"]
    assert (known["precision"], known["file"], known["validation"]["cases"]) == ("int8", "openvino/openvino.xml", len(splits["validate"]))
    assert known["validation"]["lost"] == 0
    assert known["validation"]["dice_int8"] == known["validation"]["dice_float32"]
    assert sorted(path.name for path in (run.export / "openvino").iterdir()) == ["openvino.bin", "openvino.xml"]
    assert "int8: the mean Dice of " in capsys.readouterr().out
    # One that loses too much is refused in one line, and the first one stays.
    monkeypatch.setattr(validated, "MOST_LOST", 0.0)
    assert predict.main([*command]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "Expected int8 to lose less than 0 of the mean validation Dice of a class." in line
    assert json.loads((run.export / "preprocessing.json").read_text())["models"]["openvino"] == known
    assert not list(run.export.glob(".*"))


def test_a_variant_that_cannot_be_judged_is_refused(run, nncf, capsys, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")

    def refuse(*argv):
        assert predict.main(list(argv)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    export = ["--export", "openvino", str(run.path), "--precision"]
    monkeypatch.setattr(hardware, "has_cpu_bfloat16", lambda: False)
    assert "for precision 'bfloat16'. Received: a CPU without instructions for it." in refuse(*export, "bfloat16")
    monkeypatch.setattr(hardware, "has_cpu_bfloat16", lambda: True)
    bundle = f"{run.bundle}"
    for precision in ("bfloat16", "int8"):
        line = refuse("--export", "openvino", bundle, "--precision", precision)
        assert line.endswith(
            f"Expected scans of {bundle} to judge {precision} on. Received: no run.json in {bundle}, a model without its run. "
            "Restore them, or give --precision float32."
        )
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "nncf" else find(name, *rest))
    assert "Expected the package nncf to export int8. Received: none. pip install nncf" in refuse(*export, "int8")
    line = refuse("--export", "onnx", str(run.path), "--precision", "float32")
    assert line.endswith("Expected --export openvino beside --precision. Received: --export onnx. Leave --precision out.")
    line = refuse("scan.nii.gz", "--precision", "int8")
    assert line.endswith("Expected --export openvino beside --precision int8. Received: a prediction. Export it first.")
    assert not run.export.exists()
