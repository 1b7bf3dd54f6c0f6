"""Converts a saved Keras model for OpenVINO once, after the training, and simplifies a model for other runtimes."""

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
from modules.data.files import TEMPORARY, hash_file, name_failure
from modules.predict import engines
from modules.predict.bundle import ModelBundle, find_bundle, read_description, write_description
from modules.predict.engines import OPENVINO_FILES, OpenVinoModel, import_openvino, sees_gpu

# The largest allowed difference between probabilities of the converted model and Keras's. On a GPU Keras may multiply in TF32, which alone
# makes a difference of 1e-3. A wrong conversion makes a far larger one.
TOLERANCE, TOLERANCE_ON_GPU = 1e-4, 1e-2

log = logging.getLogger("mri")


def convert_bundle(bundle: ModelBundle, folder: Path) -> None:
    """Adds OpenVINO's files to a saved bundle, where OpenVINO is installed. A model that cannot be converted is a warning in the log.

    Args:
        bundle: The bundle, loaded from `folder` with its Keras model.
        folder: The bundle's folder, or the run that contains it.
    """
    folder = find_bundle(folder)
    description = read_description(folder)
    if set(OPENVINO_FILES) <= set(description["files_sha256"]) or not engines.has_openvino():
        return
    with name_failure(folder / OPENVINO_FILES[0]), TemporaryDirectory(dir=folder, prefix=TEMPORARY) as temporary:
        try:
            write_openvino(bundle.model, Path(temporary))
        except ValueError as error:
            # The bundle is complete without these files, so training does not fail.
            log.warning("the bundle has no files for OpenVINO, Keras predicts: %s", error)
            return
        for name in OPENVINO_FILES:
            os.replace(Path(temporary) / name, folder / name)
    # The files count only once the description names them. A run that is killed before converts again.
    hashes = {name: hash_file(folder / name) for name in OPENVINO_FILES}
    write_description(folder, description | {"files_sha256": description["files_sha256"] | hashes})


def write_openvino(model, folder: Path) -> None:
    """Writes a model as `OPENVINO_FILES` into `folder`, and checks that OpenVINO computes the same.

    Args:
        model: A functional `keras.Model` from `(B, *P, C)` to probabilities, whose layers compute in float32.
        folder: An existing folder; a file of the same name in it is replaced.

    Raises:
        ValueError: If the model cannot be converted, or if its probabilities come out different.
    """
    import keras

    # OpenVINO cannot read JAX's graphs. PyTorch takes the same way as JAX, so that there is one way to test.
    convert = _convert if keras.backend.backend() == "tensorflow" else _convert_elsewhere
    try:
        import_openvino()
        convert(model, Path(folder))
    except Exception as error:  # Each of the converter's layers fails in a way of its own.
        lines = str(error).strip().splitlines() or [repr(error)]
        raise ValueError(f"Expected a model that OpenVINO can convert. Received: {' '.join(lines[-1].split())}.") from error
    # Two samples reveal a model whose batch size was frozen at 1.
    images = np.random.default_rng(0).standard_normal((2, *model.input_shape[1:]), np.float32)
    # Keras computes them one by one, because it keeps the memory of the largest batch.
    expected = np.concatenate([keras.ops.convert_to_numpy(model(image[np.newaxis], training=False)) for image in images])
    difference = float(np.abs(OpenVinoModel(folder).predict_on_batch(images) - expected).max())
    tolerance = TOLERANCE_ON_GPU if sees_gpu() else TOLERANCE
    if not difference <= tolerance:
        raise ValueError(f"Expected probabilities of OpenVINO within {tolerance:g} of Keras's. Received: a difference of {difference:g}.")


def _convert(model, folder: Path) -> None:
    import tensorflow as tf

    openvino, plain = import_openvino(), simplify_for_export(model)
    images = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")
    # Keras's own export does the same, but traces the network three times.
    graph = tf.function(lambda image: plain(image, training=False), autograph=False).get_concrete_function(images)
    openvino.save_model(openvino.convert_model(graph), folder / OPENVINO_FILES[0], compress_to_fp16=False)


def _convert_elsewhere(model, folder: Path) -> None:
    """Converts under TensorFlow in another process, which does not use the GPU."""
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
    """Converts a saved model; the process that `_convert_elsewhere` starts runs this."""
    devices.import_keras()
    import keras

    import_openvino()
    _convert(keras.models.load_model(path, compile=False, safe_mode=True), Path(folder))


def simplify_for_export(model):
    """Rebuilds a model with group and instance normalisation in steps that other runtimes know; it shares the weights.

    Keras exports `GroupNormalization` as reductions over five or six axes. In other runtimes these take several times as long as the
    rest of a network together. Mean, difference and root over the last axes are fused to one operation there.

    Args:
        model: A functional `keras.Model`.

    Returns:
        A functional `keras.Model` of the same input and output, for export only. It cannot be trained, because its scales are constants.
    """
    import keras

    def call(layer, inputs, *args, **kwargs):
        if not isinstance(layer, keras.layers.GroupNormalization) or layer.axis not in (-1, len(inputs.shape) - 1):
            return layer(inputs, *args, **kwargs)
        return _normalise(layer, inputs)

    plain = keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call, recursive=True)
    # Keras exports to ONNX only a model that was called before.
    plain(plain.input)
    return plain


def _normalise(layer, x):
    """Computes what the `GroupNormalization` layer computes of `x`, `(B, *P, C)`, in channels-first order."""
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
