"""Prediction from Python: the maps of predict.py, in several threads and processes, without TensorFlow, and errors in one line."""

import csv
import gzip
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import keras
import nibabel as nib
import numpy as np
import pytest

import predict
from modules import InputError, MissingPackageError, ModelError, MRIError, PredictionError, Predictor, TooLargeError, evaluate
from modules.data.case import LabelRule
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.data.series import import_pydicom
from modules.networks import with_head
from modules.predict.bundle import ModelBundle
from modules.predict.engines import EngineError, OpenVinoModel

ROOT = Path(__file__).parents[2]
both_engines = pytest.mark.parametrize("engine", ["openvino", "keras"])


@both_engines
def test_an_array_and_its_file_give_what_the_command_writes(model, scan, tmp_path, engine):
    assert predict.main([str(scan), "--model", str(model), "--engine", engine, "--output", str(tmp_path), "--probabilities"]) == 0
    written = np.asarray(nib.load(tmp_path / "scan_prediction.nii.gz").dataobj)
    predictor = Predictor.load(model, engine)
    assert (predictor.class_names, predictor.engines, predictor.spatial_dims) == (("background", "a", "b"), (engine,), 3)
    source = nib.load(scan)
    array = predictor.predict(source.get_fdata(), source.affine, probabilities=True)
    file = predictor.predict_file(scan)
    assert len(np.unique(written)) == 3
    for found in (array, file):
        assert found.label.dtype == np.uint8
        np.testing.assert_array_equal(np.asarray(predictor.label_values)[found.label], written)
    np.testing.assert_array_equal(array.probabilities, np.asarray(nib.load(tmp_path / "scan_probabilities.nii.gz").dataobj))
    assert file.probabilities is None
    # A voxel has 1.5 x 1.25 x 2 mm.
    expected = {name: np.count_nonzero(written == value) * 3.75 / 1000 for name, value in (("a", 10), ("b", 20))}
    assert file.volumes_ml == pytest.approx(expected)
    assert array.volumes_ml == pytest.approx(expected)


def test_a_file_is_saved_as_the_command_saves_it(model, scan, tmp_path):
    assert predict.main([str(scan), "--model", str(model), "--engine", "openvino", "--output", str(tmp_path / "out")]) == 0
    predictor = Predictor.load(model, "openvino")
    batches = []
    saved = predictor.save_file(scan, tmp_path, on_batch=batches.append)
    (case,) = json.loads((tmp_path / "out" / "results.json").read_text())["cases"]
    assert saved.label == tmp_path / "scan_prediction.nii.gz"
    assert gzip.decompress(saved.label.read_bytes()) == gzip.decompress((tmp_path / "out" / saved.label.name).read_bytes())
    assert (saved.result["classes"], saved.result["spacing_mm"], saved.departures) == (case["classes"], case["spacing_mm"], [])
    assert sum(batches) > 1
    assert [(one.name, one.value) for one in predictor.segments] == [("a", 10), ("b", 20)]

    saved.label.unlink()
    # 24 x 20 x 18 numbers of 12 bytes at most, or of 20 with preprocessing; resampling takes 16 a voxel of the finer grid, 24 x 20 x 24.
    with pytest.raises(TooLargeError, match="Expected a scan that takes 0 MiB of memory or less. Received: .*scan.nii.gz, whose header"):
        predictor.save_file(scan, tmp_path, max_bytes=12 * 24 * 20 * 18)
    with pytest.raises(KeyboardInterrupt):
        predictor.save_file(scan, tmp_path, max_bytes=1 << 20, on_batch=_interrupt)
    assert not saved.label.exists()


def _interrupt(number):
    raise KeyboardInterrupt


def test_an_affine_turns_a_scan_and_a_spacing_does_not(model, scan):
    predictor, source = Predictor.load(model), nib.load(scan)
    array = np.asarray(source.dataobj)
    label = predictor.predict(array, source.affine).label
    turned = nib.as_closest_canonical(source)
    plain = predictor.predict(np.asarray(turned.dataobj), spacing_mm=(1.5, 2.0, 1.25))
    # The canonical axes are the first one backwards, then the third and the second.
    np.testing.assert_array_equal(plain.label, label[::-1].transpose(0, 2, 1))
    np.testing.assert_array_equal(predictor.predict(array[..., np.newaxis], source.affine).label, label)


@both_engines
def test_eight_threads_give_the_maps_of_one(model, engine):
    rng = np.random.default_rng(5)
    arrays = [rng.normal(size=(16 + number % 3, 18, 16)) for number in range(24)]
    predictor = Predictor.load(model, engine)
    expected = [predictor.predict(array, spacing_mm=(1.5, 1.5, 1.5)).label for array in arrays]
    assert len(np.unique(expected[0])) > 1
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda array: predictor.predict(array, spacing_mm=(1.5, 1.5, 1.5)).label, arrays))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_threads_belong_to_openvino(model):
    array = np.random.default_rng(6).normal(size=(16, 16, 16))
    maps = [Predictor.load(model, "openvino", threads=threads).predict(array, spacing_mm=(1, 1, 1)).label for threads in (1, None)]
    assert np.mean(maps[0] != maps[1]) <= 1e-3
    with pytest.raises(ModelError, match="Expected `threads` beside OpenVINO. Received: 2 for Keras"):
        Predictor.load(model, "keras", threads=2)


def test_a_predictor_goes_to_another_process_but_not_through_a_fork(model, scan):
    predictor = Predictor.load(model, "openvino")
    expected = predictor.predict_file(scan).label
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(predictor)).predict_file(scan).label, expected)
    child = os.fork()
    if not child:
        status = 1
        try:
            predictor.predict_file(scan)
        except PredictionError as error:
            status = 0 if "forked since. Load it in each process" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


WITHOUT_PACKAGES = """
import sys
blocked = ("tensorflow", "keras", "jax", "torch", "scipy", "cv2", "matplotlib", "pandas")
sys.modules.update(dict.fromkeys(blocked))
import modules
assert "numpy" not in sys.modules
from modules import MissingPackageError, ModelError, Predictor
model, scan, picture, target = sys.argv[1:]
predictor = Predictor.load(model)
assert predictor.engines == ("openvino",)
import numpy as np
np.save(target, predictor.predict_file(scan).label)
for call, kind in ((lambda: Predictor.load(model, "keras"), ModelError), (lambda: predictor.predict_file(picture), MissingPackageError)):
    try:
        call()
    except kind as error:
        print(error)
import predict
flags = ["--model", model, "--output", target + ".out"]
assert predict.main([scan, *flags]) == 0
assert predict.main([picture, *flags]) == 2
"""


def test_openvino_predicts_without_tensorflow_and_scipy(model, scan, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    command = [sys.executable, "-c", WITHOUT_PACKAGES, *map(str, (model, scan, tmp_path / "a.png", tmp_path / "label.npy"))]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "label.npy"), Predictor.load(model).predict_file(scan).label)
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        "Expected the package of KERAS_BACKEND=tensorflow. Received: none. Install tensorflow, or leave it out.",
        "Expected the package opencv-python-headless. Received: none. pip install opencv-python-headless; the extra 'train' of this "
        "program has all that it uses.",
    ]
    # The command says the same, and draws nothing.
    assert result.stderr.splitlines() == [f"predict.py: error: {lines[1]}"]
    assert "no overlays: they need matplotlib and opencv-python-headless" in lines
    assert [path.name for path in tmp_path.glob("*.out/scan*")] == ["scan_prediction.nii.gz"]
    assert (tmp_path / "label.npy.out" / "volumes.csv").is_file()


def test_a_dicom_folder_is_one_scan(model, tmp_path):
    dicom = pytest.importorskip("dicom_helpers")
    volume = np.random.default_rng(7).integers(0, 400, (17, 18, 19)).astype(np.uint16)
    dicom.write_series(tmp_path / "study", volume, spacing=(1.5, 1.5))
    assert predict.main([str(tmp_path / "study"), "--model", str(model), "--output", str(tmp_path / "out")]) == 0
    written = np.asarray(nib.load(tmp_path / "out" / "study_prediction.nii.gz").dataobj)
    predictor = Predictor.load(model)
    found = predictor.predict_file(tmp_path / "study")
    np.testing.assert_array_equal(np.asarray(predictor.label_values)[found.label], written)
    dicom.write_series(tmp_path / "two" / "b", volume, spacing=(1.5, 1.5), StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1")
    dicom.write_series(tmp_path / "two" / "a", volume, spacing=(1.5, 1.5))
    with pytest.raises(InputError, match=r"Expected one scan. Received: 2, .*two/a, .*two/b. Call this once for each."):
        predictor.predict_file(tmp_path / "two")


def test_slices_have_no_millilitres(tmp_path):
    image = keras.Input((16, 16, 1))
    # Foreground is what is brighter than the middle of the range.
    layer = keras.layers.Conv2D(
        1, 1, kernel_initializer=keras.initializers.Constant(100), bias_initializer=keras.initializers.Constant(-50)
    )
    rule = LabelRule({0: 0, 255: 1})
    bundle = ModelBundle(
        with_head(keras.Model(image, layer(image))), Preprocessing(2, shape=(16, 16)), Window((16, 16)), ("background", "a"), ("T1",), rule
    )
    bundle.save(tmp_path / "bundle")
    predictor = Predictor.load(tmp_path / "bundle", "keras")
    picture = np.zeros((20, 16), bool)
    picture[2:8, 3] = True
    found = predictor.predict(picture, probabilities=True)
    np.testing.assert_array_equal(found.label, picture)
    assert found.probabilities.shape == (20, 16, 2)
    assert np.isnan(found.volumes_ml["a"])


ARRAY = np.zeros((16, 16, 16))
WRONG = [
    ((np.zeros((4, 4)),), {}, r"Expected `array` of 3 axes, and one more for channels. Received: shape \(4, 4\)."),
    ((np.zeros((0, 4, 4)),), {}, r"Received: shape \(0, 4, 4\)."),
    ((np.zeros((4, 4, 4), complex),), {}, "Expected `array` of integers or real numbers. Received: ndarray of complex128."),
    ((nib.Nifti1Image(np.zeros((4, 4, 4)), None),), {}, "Received: Nifti1Image of object. Convert it; of an image give its voxels"),
    ((np.full((4, 4, 4), np.nan), np.eye(4)), {}, "Expected finite values in `array`. Received: 64 NaN or infinite."),
    ((np.full((4, 4, 4), 1e39), np.eye(4)), {}, "Received: 64 NaN or infinite in float32."),
    ((ARRAY,), {}, "Expected `affine` or `spacing_mm` for a volume. Received: neither."),
    ((ARRAY, np.eye(4), (1, 1, 1)), {}, "Expected `affine` or `spacing_mm`. Received: both."),
    ((ARRAY, np.eye(3)), {}, r"Expected a finite `affine` of shape \(4, 4\). Received: shape \(3, 3\)"),
    ((ARRAY,), {"spacing_mm": (1, 1)}, r"Expected voxels of .* mm along 3 axes. Received: \(1.0, 1.0\)."),
    ((ARRAY,), {"spacing_mm": (1, 1, 0)}, r"Received: \(1.0, 1.0, 0.0\)."),
    ((ARRAY,), {"spacing_mm": 1.5}, "Expected `spacing_mm` of 3 numbers. Received: 1.5."),
    ((ARRAY, "eye"), {}, "Expected an `affine` of 4 x 4 numbers. Received: .eye."),
    ((ARRAY, nib.affines.from_matvec(np.eye(3), (3, 2, 7)).T), {}, r"last row is 0, 0, 0, 1. Received: \[3.0, 2.0, 7.0, 1.0\]."),
    ((ARRAY, np.diag([1, 1, 0, 1])), {}, r"Received: \(1.0, 1.0, 0.0\)."),
    ((ARRAY, np.eye(4) + np.eye(4, k=1) * [0, 1, 0, 0]), {}, "Expected axes at right angles in the array."),
    ((np.zeros((4, 4, 4, 2)), np.eye(4)), {}, r"Expected 1 channel\(s\) \(T1\) for this model. Received: 2 in the array."),
]


def test_what_does_not_fit_is_refused_in_one_line(model, scan, tmp_path):
    predictor = Predictor.load(model)
    for arguments, options, message in WRONG:
        with pytest.raises(InputError, match=message) as caught:
            predictor.predict(*arguments, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="Expected images .* at .*nothing.nii.gz. Received: none there."):
        predictor.predict_file(tmp_path / "nothing.nii.gz")
    with pytest.raises(ModelError, match="Expected a trained model in .*nowhere. Received: no bundle.json there.") as caught:
        Predictor.load(tmp_path / "nowhere")
    assert isinstance(caught.value, MRIError)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(ModelError, match=r"Expected at least one model. Received: none."):
        Predictor.load([])
    with pytest.raises(ModelError, match=r"Expected `engine` in .* Received: 'tpu'"):
        Predictor.load(model, "tpu")
    for threads in (0, -1, "2"):
        with pytest.raises(ModelError, match=f"Expected `threads` of 1 or more, or None. Received: {threads!r}."):
            Predictor.load(model, threads=threads)
    with pytest.raises(ModelError, match="Expected a path, or several. Received: None."):
        Predictor.load(None)
    with pytest.raises(InputError, match="Expected a path, or several. Received: b'a.nii'."):
        predictor.predict_file(b"a.nii")


def test_an_engine_that_fails_is_told_from_a_scan_that_does_not_fit(model, scan, monkeypatch):
    predictor = Predictor.load(model, "openvino")

    def fail(self, inputs):
        raise MemoryError("no room")

    monkeypatch.setattr(OpenVinoModel, "predict_on_batch", fail)
    with pytest.raises(PredictionError, match="Expected enough memory to predict .*scan.nii.gz. Received: no room."):
        predictor.predict_file(scan)


def test_scores_are_those_of_the_command(model, scan, tmp_path, monkeypatch):
    (tmp_path / "labels").mkdir()
    source = nib.load(scan)
    label = np.random.default_rng(8).choice([0, 10, 20], source.shape).astype(np.uint8)
    nib.save(nib.Nifti1Image(label, source.affine), tmp_path / "labels" / "scan.nii.gz")
    flags = ["--labels", str(tmp_path / "labels"), "--output", str(tmp_path / "out")]
    assert predict.main([str(scan), "--model", str(model), *flags]) == 0
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = evaluate(model, scan, tmp_path / "labels")
    assert [(score.case, score.class_name, repr(score.dice)) for score in found.scores] == [
        (row["case"], row["class"], row["dice"]) for row in rows
    ]
    assert found.summary["volume"]["a"]["dice"] == found.scores[0].dice
    with pytest.raises(InputError, match="Expected a label for"):
        evaluate(model, scan, tmp_path / "out")

    def overflow(self, inputs):
        return np.full((*inputs.shape[:-1], 3), np.nan, np.float32)

    monkeypatch.setattr(OpenVinoModel, "predict_on_batch", overflow)
    for call in (lambda: evaluate(model, scan, tmp_path / "labels"), lambda: Predictor.load(model, "openvino").predict_file(scan)):
        with pytest.raises(PredictionError, match="^Expected finite probabilities. Received: NaN from the model for .*scan.nii.gz"):
            call()

    def fail(self, inputs):
        raise EngineError("broken")

    monkeypatch.setattr(OpenVinoModel, "predict_on_batch", fail)
    with pytest.raises(PredictionError, match="Expected an engine that computes .*scan.nii.gz. Received: broken"):
        evaluate(model, scan, tmp_path / "labels")


def test_whatever_memory_an_array_lies_in_its_map_is_the_same(model, scan):
    predictor, source = Predictor.load(model, "openvino"), nib.load(scan)
    array = np.asarray(source.dataobj).round().astype(np.int16)
    label = predictor.predict(array, source.affine).label
    fixed = array.astype(np.float32)
    fixed.flags.writeable = False
    kinds = (array.astype(">i2"), array.astype(">f8"), array.astype(np.int64), np.ascontiguousarray(array), fixed)
    for number, kind in enumerate((*kinds, np.repeat(array, 2, axis=1)[:, ::2], array[::-1].copy()[::-1])):
        before = kind.copy()
        np.testing.assert_array_equal(predictor.predict(kind, source.affine).label, label, err_msg=str(number))
        np.testing.assert_array_equal(kind, before)


def test_channels_are_told_by_names_and_else_by_their_order(model, tmp_path):
    bundle = replace(ModelBundle.load(model, "openvino"), channels=("t1", "t2"))
    predictor = Predictor([bundle], ())
    array = np.random.default_rng(9).normal(100, 20, (20, 18, 16)).astype(np.float32)
    seen = []
    for names in (("b", "a"), ("x_t2", "x_t1")):
        paths = [tmp_path / f"{name}.nii" for name in names]
        for number, path in enumerate(paths):
            nib.save(nib.Nifti1Image(array + number, np.eye(4)), path)
        seen.append([path.stem for path in predictor._find_case(paths, "").image_paths])
    assert seen == [["b", "a"], ["x_t1", "x_t2"]]
    with pytest.raises(InputError, match=r"Expected one scan. Received: 3"):
        predictor.predict_file([tmp_path / name for name in ("a.nii", "b.nii", "x_t1.nii")])


def test_a_format_whose_package_is_missing_is_no_wrong_scan(model, tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(b"a scan")
    predictor = Predictor.load(model)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    import_pydicom.cache_clear()
    with pytest.raises(MissingPackageError, match="Expected pydicom to read DICOM files. Received: it is not installed."):
        predictor.predict_file(tmp_path / "a.dcm")
