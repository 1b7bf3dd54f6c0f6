"""The engines that compute a saved model: Keras, or on a CPU OpenVINO, which is faster there and starts without TensorFlow.

OpenVINO reads a copy of the model that was converted once, after the training. Nothing here imports Keras or OpenVINO before it is
needed, because half of OpenVINO's gain is that a prediction does not wait for TensorFlow.
"""

import importlib.util
import logging
import queue
import sys
import warnings
from pathlib import Path

import numpy as np

from modules import devices, hardware
from modules.backend_choice import has_nvidia
from modules.data.documents import to_line

ENGINES = ("auto", "keras", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16")
OPENVINO_FILES = ("openvino.xml", "openvino.bin")

log = logging.getLogger("mri")


# ---------------------------------------------------------------------------------------------------------------- choice


def has_openvino() -> bool:
    """Returns whether the package openvino is installed."""
    return importlib.util.find_spec("openvino") is not None


def choose_engine(engine: str, folder: Path, converted: bool) -> str:
    """Chooses the engine that computes the model of a bundle: "keras" or "openvino".

    Args:
        engine: One of `ENGINES`. "auto" is OpenVINO where it is available and there is no NVIDIA GPU, else Keras. The log says why.
        folder: The bundle's folder, for the messages.
        converted: Whether the bundle has the files for OpenVINO.

    Raises:
        ValueError: For an unknown engine, and for "openvino" where it is not available.
    """
    if engine not in ENGINES:
        raise ValueError(f"Expected `engine` in {ENGINES}. Received: {engine!r}.")
    if engine == "keras":
        return engine
    lack = ""
    if not has_openvino():
        lack, remedy = "the package openvino is not installed", "pip install openvino"
    elif not converted:
        lack, remedy = (
            f"no {' and '.join(OPENVINO_FILES)} in {folder}",
            "train.py writes them where openvino is installed and agrees with Keras",
        )
    if lack and engine == "openvino":
        raise ValueError(f"Expected what engine 'openvino' needs. Received: {lack}. Give --engine keras, or: {remedy}.")
    if engine == "auto" and has_nvidia():
        log.info("engine keras: an NVIDIA GPU is here; --engine openvino uses the CPU")
        return "keras"
    if lack:
        log.info("engine keras, not openvino: %s; %s", lack, remedy)
        return "keras"
    return "openvino"


def choose_precision(precision: str, decided: str, engine: str) -> str:
    """Chooses the precision that an engine computes a bundle's model in: "float32" or "bfloat16".

    Args:
        precision: One of `PRECISIONS`. "auto" is what was decided, where this machine can; else float32.
        decided: The precision that the training decided on, see `modules.run.validated`.
        engine: "keras" or "openvino".

    Raises:
        ValueError: For an unknown precision, and for "bfloat16" where the engine or the CPU does not compute in it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Expected `precision` in {PRECISIONS}. Received: {precision!r}.")
    if (decided if precision == "auto" else precision) == "float32":
        return "float32"
    lack = "" if engine == "openvino" else f"engine {engine}"
    lack = lack or ("" if hardware.has_cpu_bfloat16() else "a CPU without instructions for it")
    if lack and precision == "bfloat16":
        raise ValueError(
            f"Expected OpenVINO on a CPU that computes in bfloat16 for precision 'bfloat16'. Received: {lack}. Give --precision auto."
        )
    return "float32" if lack else "bfloat16"


# -------------------------------------------------------------------------------------------------------------- OpenVINO


_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class EngineError(ValueError):
    """The error of an engine that fails in the middle of a prediction. Other cases may go well."""


class NotFiniteError(EngineError):
    """The error of a model that computes NaN for a scan. To compute it once more would not help."""


class OpenVinoModel:
    """A converted model, computed on the CPU. It has those parts of a `keras.Model` that a bundle needs, and threads may share it.

    Attributes:
        input_shape: `(None, *P, C)`.
        output_shape: `(None, *P, K)`, or 1 in place of K for a binary task.
    """

    def __init__(self, folder: Path, precision: str = "float32", threads: int = 0) -> None:
        """Reads and compiles `OPENVINO_FILES` in `folder`, to compute in "float32" or "bfloat16", with all cores or so many threads.

        Raises:
            ValueError: If OpenVINO is not installed, or cannot read or compile them.
        """
        self._path = path = Path(folder) / OPENVINO_FILES[0]
        try:
            openvino = import_openvino()
            # Without the first hint some CPUs would compute in bfloat16 unasked.
            settings: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
            if threads:
                settings["INFERENCE_NUM_THREADS"] = threads
            self._compiled = openvino.Core().compile_model(path, "CPU", settings)
            self.input_shape, self.output_shape = (
                tuple(None if size.is_dynamic else size.get_length() for size in end.get_partial_shape())
                for end in (self._compiled.input(0), self._compiled.output(0))
            )
            # A request computes for one thread at a time. One more than compute together is filled meanwhile.
            self._requests: queue.LifoQueue = queue.LifoQueue()
            for _ in range(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") + 1):
                self._requests.put(self._compiled.create_infer_request())
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"Expected OpenVINO to compile {path}. Received: {to_line(error, 400)}. Give --engine keras.") from error

    def predict_on_batch(self, inputs: np.ndarray) -> np.ndarray:
        """Computes probabilities `(B, *P, K)` float32 of images `(B, *P, C)` float32, for any `B`.

        Raises:
            EngineError: If OpenVINO fails.
        """
        request = self._requests.get()
        try:
            return request.infer(np.ascontiguousarray(inputs, np.float32), share_inputs=True)[0]
        except RuntimeError as error:
            raise EngineError(
                f"Expected OpenVINO to compute {self._path}. Received: {to_line(error, 400)}. Give --engine keras."
            ) from error
        finally:
            self._requests.put(request)


def load_model(engine: str, folder: Path, name: str, precision: str = "float32", threads: int = 0):
    """Loads the model of a bundle: a `keras.Model` from the file `name`, or an `OpenVinoModel`. It runs no code from a file.

    A `keras.Model` computes in the precision of its weights. `precision` is that of an `OpenVinoModel`. `threads` bounds those of the
    engine on a CPU, and those of OpenCV, which reads and turns images; 0 leaves them as they are.

    Raises:
        ValueError: If the file holds no model, or one that carries code; it is named.
    """
    if engine == "openvino":
        _limit_opencv(threads)
        return OpenVinoModel(folder, precision, threads)
    devices.import_keras()
    _limit_opencv(threads)
    _limit_backend(threads)
    import keras

    try:
        with warnings.catch_warnings():
            # If the file lacks weights, Keras may only warn, and keep random ones.
            warnings.filterwarnings("error", message="(?s).*(freshly-initialized|saved file|weights)", category=UserWarning)
            model = keras.models.load_model(folder / name, compile=False, safe_mode=True)
        _compute_in_weight_precision(model)
        return model
    except Exception as error:  # A model of another program can make Keras fail in any way.
        if hardware.is_lack_of_memory(error):
            raise
        raise ValueError(f"Expected a Keras model in {folder / name}. Received: {to_line(error, 400)}. Train or copy it again.") from error


def _limit_opencv(threads: int) -> None:
    if threads and importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(threads)


def _limit_backend(threads: int) -> None:
    """Limits the threads of an operation of Keras's backend, before the first of them."""
    backend = devices.name_backend()
    if not threads:
        return
    if backend == "torch":
        devices.import_torch().set_num_threads(threads)
    elif backend == "jax":
        log.warning("--threads bounds OpenCV alone: JAX has no such setting. Start the command with `taskset` to bound its cores")
    else:
        import tensorflow as tf

        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError:
            log.warning("--threads comes too late: TensorFlow was in use before")


def _compute_in_weight_precision(model) -> None:
    """Makes layers trained in half precision compute in the precision of their weights; a CPU gains nothing from half precision."""
    for layer in model.layers:
        if layer.compute_dtype != layer.variable_dtype:
            layer.dtype_policy = layer.variable_dtype
        if hasattr(layer, "layers"):
            _compute_in_weight_precision(layer)


def import_openvino():
    """Imports OpenVINO without its telemetry."""
    # OpenVINO would report each import and each conversion to Google Analytics. Without its telemetry package it does not, and imports
    # faster. In `sys.modules` None forbids an import, which typeshed does not know.
    sys.modules.setdefault("openvino_telemetry", None)  # ty: ignore[no-matching-overload]
    import openvino

    return openvino
