"""Converts a saved Keras model for OpenVINO, once, after the training; and makes it plain for any other runtime."""

import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from modules import devices
from modules.data.files import hash_file
from modules.predict import engines
from modules.predict.bundle import ModelBundle, find_bundle, read_record, write_record
from modules.predict.engines import OPENVINO_FILES, OpenVinoModel, import_openvino, sees_gpu

# How far probabilities of the converted model may be from Keras's. On a GPU Keras may multiply in TF32, which alone makes 1e-3; a wrong
# conversion is off by far more.
TOLERANCE, TOLERANCE_ON_GPU = 1e-4, 1e-2

log = logging.getLogger("mri")


def convert_bundle(bundle: ModelBundle, folder: Path) -> None:
    """Adds to a saved bundle what OpenVINO computes it from, where it is installed; the log says it where the model cannot be converted.

    Args:
        bundle: As loaded from `folder`, with its Keras model.
        folder: The bundle, or the run that contains it.
    """
    folder = find_bundle(folder)
    record = read_record(folder)
    if set(OPENVINO_FILES) <= set(record["files_sha256"]) or not engines.has_openvino():
        return
    with TemporaryDirectory(dir=folder, prefix=".") as temporary:
        try:
            write_openvino(bundle.model, Path(temporary))
        except ValueError as error:
            # The model is as good without them.
            log.warning("the bundle has no files for OpenVINO, Keras predicts: %s", error)
            return
        for name in OPENVINO_FILES:
            os.replace(Path(temporary) / name, folder / name)
    # Until this is written, the new files are nobody's: a run that is killed here converts again.
    hashes = {name: hash_file(folder / name) for name in OPENVINO_FILES}
    write_record(folder, record | {"files_sha256": record["files_sha256"] | hashes})


def write_openvino(model, folder: Path) -> None:
    """Writes a model as `OPENVINO_FILES` into `folder`, and sees to it that OpenVINO computes the same.

    Args:
        model: A functional `keras.Model` from `(B, *P, C)` to probabilities, whose layers compute in float32.
        folder: Has to exist; a file of the same name in it is replaced.

    Raises:
        ValueError: If the model cannot be converted, or if its probabilities come out different.
    """
    import keras

    # OpenVINO cannot read what JAX makes, and one way for both others is enough to test.
    convert = _convert if keras.backend.backend() == "tensorflow" else _convert_elsewhere
    try:
        import_openvino()
        convert(model, Path(folder))
    except Exception as error:  # Each of the converter's layers fails in a way of its own.
        lines = str(error).strip().splitlines() or [repr(error)]
        raise ValueError(f"Expected a model that OpenVINO can convert. Received: {' '.join(lines[-1].split())}.") from error
    # Two samples, so that a batch size that was frozen in shows.
    images = np.random.default_rng(0).standard_normal((2, *model.input_shape[1:]), np.float32)
    expected = keras.ops.convert_to_numpy(model(images, training=False))
    difference = float(np.abs(OpenVinoModel(folder).predict_on_batch(images) - expected).max())
    tolerance = TOLERANCE_ON_GPU if sees_gpu() else TOLERANCE
    if not difference <= tolerance:
        raise ValueError(f"Expected probabilities of OpenVINO within {tolerance:g} of Keras's. Received: a difference of {difference:g}.")


def _convert(model, folder: Path) -> None:
    import tensorflow as tf

    openvino, plain = import_openvino(), plain_to_export(model)
    images = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")
    # Keras's own export does the same, but goes through the network three times.
    graph = tf.function(lambda image: plain(image, training=False), autograph=False).get_concrete_function(images)
    openvino.save_model(openvino.convert_model(graph), folder / OPENVINO_FILES[0], compress_to_fp16=False)


def _convert_elsewhere(model, folder: Path) -> None:
    """Converts under TensorFlow in a process of its own, which leaves the GPU to this one."""
    with TemporaryDirectory() as name:
        path = Path(name) / "model.keras"
        model.save(path)
        command = "import sys; from modules.predict import convert; convert._convert_file(*sys.argv[1:])"
        result = subprocess.run(
            [sys.executable, "-c", command, path, name],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise ValueError(result.stderr)
        for file in OPENVINO_FILES:
            shutil.move(Path(name) / file, folder / file)


def _convert_file(path: str, folder: str) -> None:
    """`_convert` for a saved model: what the other process runs."""
    devices.import_keras()
    import keras

    import_openvino()
    _convert(keras.models.load_model(path, compile=False, safe_mode=True), Path(folder))


def plain_to_export(model):
    """The same model, sharing its weights, with group and instance normalisation in steps that other runtimes know.

    What Keras makes of `GroupNormalization` reaches them as reductions over five or six axes, several times slower than the rest of a
    network together; mean, difference and root over the last axes are fused to one operation.

    Args:
        model: A functional `keras.Model`.

    Returns:
        A functional `keras.Model` of the same input and output. It is for export and cannot be trained: the scales are constants in it.
    """
    import keras

    def call(layer, inputs, *args, **kwargs):
        if not isinstance(layer, keras.layers.GroupNormalization) or layer.axis not in (-1, len(inputs.shape) - 1):
            return layer(inputs, *args, **kwargs)
        return _normalise(layer, inputs)

    plain = keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call, recursive=True)
    # Keras exports to ONNX only what was called before.
    plain(plain.input)
    return plain


def _normalise(layer, x):
    """What the `GroupNormalization` layer computes of `x`, `(B, *P, C)`, in channels-first order."""
    from keras import ops

    last = len(x.shape) - 1
    x = ops.transpose(x, (0, last, *range(1, last)))
    shape, axes = x.shape[1:], tuple(range(2, last + 1))
    grouped = layer.groups != shape[0]
    if grouped:
        x, axes = ops.reshape(x, (-1, layer.groups, math.prod(shape) // layer.groups, 1)), (2, 3)
    difference = x - ops.mean(x, axes, keepdims=True)
    x = difference / ops.sqrt(ops.mean(ops.square(difference), axes, keepdims=True) + layer.epsilon)
    if grouped:
        x = ops.reshape(x, (-1, *shape))
    x = ops.transpose(x, (0, *range(2, last + 1), 1))
    if layer.scale:
        x = x * ops.convert_to_numpy(layer.gamma)
    return x + ops.convert_to_numpy(layer.beta) if layer.center else x
