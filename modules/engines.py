"""What computes a saved model: Keras, or on a CPU OpenVINO, which is faster there and starts without TensorFlow.

OpenVINO reads a copy of the model that was converted once, after the training. Nothing here imports Keras or OpenVINO before it is
needed: that a prediction does not wait for TensorFlow is half of what is won.
"""

import importlib.util
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

ENGINES = ("auto", "keras", "openvino")
OPENVINO_FILES = ("openvino.xml", "openvino.bin")
# How far probabilities of the converted model may be from Keras's. On a GPU Keras may multiply in TF32, which alone makes 1e-3; a wrong
# conversion is off by far more.
TOLERANCE, TOLERANCE_ON_GPU = 1e-4, 1e-2

log = logging.getLogger("mri")


# ---------------------------------------------------------------------------------------------------------------- choice


def sees_gpu() -> bool:
    """Whether this process may use an NVIDIA GPU, found out without TensorFlow."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def has_openvino() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("openvino") is not None


def choose_engine(engine: str, folder: Path, converted: bool) -> str:
    """Chooses what computes the model of a bundle: "keras" or "openvino".

    Args:
        engine: One of `ENGINES`. "auto" is OpenVINO where it can be and no NVIDIA GPU is there, else Keras, and the log says why.
        folder: The bundle's, for what is said.
        converted: Whether the files for OpenVINO are there.

    Raises:
        ValueError: For an unknown engine, and for "openvino" where it cannot be.
    """
    if engine not in ENGINES:
        raise ValueError(f"Expected `engine` in {ENGINES}. Received: {engine!r}.")
    if engine == "keras":
        return engine
    lack = ""
    if not has_openvino():
        lack, remedy = "the package openvino is not installed", "pip install openvino"
    elif not converted:
        lack, remedy = f"no {' and '.join(OPENVINO_FILES)} in {folder}", "train.py writes them where openvino is installed"
    if lack and engine == "openvino":
        raise ValueError(f"Expected what engine 'openvino' needs. Received: {lack}. Give --engine keras, or: {remedy}.")
    if engine == "auto" and sees_gpu():
        log.info("engine keras: an NVIDIA GPU is here; --engine openvino uses the CPU")
        return "keras"
    if lack:
        log.info("engine keras, not openvino: %s; %s", lack, remedy)
        return "keras"
    return "openvino"


# -------------------------------------------------------------------------------------------------------------- OpenVINO


class OpenVinoModel:
    """A converted model, computed in float32 on all cores, with what a bundle needs of a `keras.Model`.

    Attributes:
        input_shape: `(None, *P, C)`.
    """

    def __init__(self, folder: Path) -> None:
        """Reads and compiles `OPENVINO_FILES` in `folder`.

        Raises:
            ValueError: If OpenVINO is not installed, or cannot read or compile them.
        """
        path = Path(folder) / OPENVINO_FILES[0]
        try:
            openvino = _import_openvino()
            # Without the hint some CPUs would compute in bfloat16.
            settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
            self._compiled = openvino.Core().compile_model(path, "CPU", settings)
            sizes = self._compiled.input(0).get_partial_shape()
            self.input_shape = tuple(None if size.is_dynamic else size.get_length() for size in sizes)
        except (ImportError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"Expected OpenVINO to compile {path}. Received: {reason}. Give --engine keras.") from error

    def predict_on_batch(self, inputs: np.ndarray) -> np.ndarray:
        """From images `(B, *P, C)` float32, for any `B`, to probabilities `(B, *P, K)` float32."""
        return self._compiled(np.ascontiguousarray(inputs, np.float32))[0]


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
        _import_openvino()
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

    openvino, plain = _import_openvino(), plain_to_export(model)
    images = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")
    # Keras's own export does the same, but goes through the network three times.
    graph = tf.function(lambda image: plain(image, training=False), autograph=False).get_concrete_function(images)
    openvino.save_model(openvino.convert_model(graph), folder / OPENVINO_FILES[0], compress_to_fp16=False)


def _convert_elsewhere(model, folder: Path) -> None:
    """Converts under TensorFlow in a process of its own, which leaves the GPU to this one."""
    with TemporaryDirectory() as name:
        path = Path(name) / "model.keras"
        model.save(path)
        command = "import sys; from modules import engines; engines._convert_file(*sys.argv[1:])"
        result = subprocess.run(
            [sys.executable, "-c", command, path, name],
            cwd=Path(__file__).parents[1],
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

    _import_openvino()
    _convert(keras.models.load_model(path, compile=False, safe_mode=True), Path(folder))


def _import_openvino():
    # It would report each import and each conversion to Google Analytics; without that package it does not, and imports faster.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino


# ------------------------------------------------------------------------------------------------------------- for export


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
