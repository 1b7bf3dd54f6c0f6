"""Converts a saved Keras model for OpenVINO once, after the training, and simplifies a model for other runtimes."""

import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from modules import devices
from modules.backend_choice import has_nvidia
from modules.data.files import TEMPORARY, hash_file, name_failure
from modules.predict import engines
from modules.predict.bundle import ModelBundle, find_bundle, read_description, write_description
from modules.predict.engines import OPENVINO_FILES, OpenVinoModel, import_openvino

# Two right engines may differ by this factor more than a model does whose numbers move by their last place. Both round after each of many
# operations, and each in another order.
ROUNDINGS = 8
# Differences of probabilities that are never too large, and that are always. On a GPU Keras may multiply in TF32, which no change of a last
# place shows, so that only the second one counts there. A wrong conversion makes a far larger difference.
LEAST_TOLERANCE, MOST_TOLERANCE = 1e-4, 1e-2

log = logging.getLogger("mri")


@dataclass(frozen=True)
class EngineCheck:
    """A comparison of OpenVINO with Keras on the same images.

    Attributes:
        difference: The largest difference of a probability.
        rounding: The largest change of a probability that Keras makes itself where inputs and weights move by their last place.
        tolerance: The largest difference that is allowed.
        voxels: Number of voxels that were compared.
        changed: Number of these voxels whose class changes.
    """

    difference: float
    rounding: float
    tolerance: float
    voxels: int
    changed: int

    def __str__(self) -> str:
        return (
            f"a difference of {self.difference:.3g}, where the model's own rounding is {self.rounding:.3g}; "
            f"{self.changed:,} of {self.voxels:,} voxels change their class"
        )


def convert_bundle(bundle: ModelBundle, folder: Path, cut_images: Callable[[], np.ndarray] | None = None) -> None:
    """Adds OpenVINO's files to a saved bundle, where OpenVINO is installed. A model that cannot be converted is a warning in the log.

    The log and the bundle's provenance say what the comparison with Keras found.

    Args:
        bundle: The bundle, loaded from `folder` with its Keras model.
        folder: The bundle's folder, or the run that contains it.
        cut_images: A function that gives windows of real scans to compare both engines on, see `write_openvino`.
    """
    folder = find_bundle(folder)
    description = read_description(folder)
    if set(OPENVINO_FILES) <= set(description["files_sha256"]) or not engines.has_openvino():
        return
    images = cut_images() if cut_images else None
    with name_failure(folder / OPENVINO_FILES[0]), TemporaryDirectory(dir=folder, prefix=TEMPORARY) as temporary:
        try:
            found = write_openvino(bundle.model, Path(temporary), images, regions=bool(bundle.regions))
        except ValueError as error:
            # The bundle is complete without these files, so training does not fail.
            log.warning("the bundle has no files for OpenVINO, Keras predicts: %s", error)
            return
        for name in OPENVINO_FILES:
            os.replace(Path(temporary) / name, folder / name)
    # The files count only once the description names them. A run that is killed before converts again.
    hashes = {name: hash_file(folder / name) for name in OPENVINO_FILES}
    changes = {
        "files_sha256": description["files_sha256"] | hashes,
        "provenance": description["provenance"] | {"engine_check": asdict(found)},
    }
    write_description(folder, description | changes)
    log.info("OpenVINO computes what Keras does, within %.3g: %s", found.tolerance, found)


def write_openvino(model, folder: Path, images: np.ndarray | None = None, *, regions: bool = False) -> EngineCheck:
    """Writes a model as `OPENVINO_FILES` into `folder`, and checks that OpenVINO computes the same.

    Args:
        model: A functional `keras.Model` from `(B, *P, C)` to probabilities, whose layers compute in float32.
        folder: An existing folder; a file of the same name in it is replaced.
        images: `(B, *P, C)` float32 that both compute, of two samples or more; noise where None.
        regions: Whether each probability is one of a region. Regions may overlap.

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
    if images is None:
        # Two samples reveal a model whose batch size was frozen at 1.
        images = np.random.default_rng(0).standard_normal((2, *model.input_shape[1:]), np.float32)
    return check_engine("OpenVINO", model, OpenVinoModel(folder).predict_on_batch, images, regions=regions)


def check_engine(
    name: str, model, compute: Callable[[np.ndarray], np.ndarray], images: np.ndarray, *, regions: bool = False
) -> EngineCheck:
    """Checks that an engine computes what Keras does, within what the model's own rounding excuses.

    Args:
        name: Name of the engine, for the message.
        model: The `keras.Model`.
        compute: A function from images to the engine's probabilities `(B, *P, K)`.
        images: `(B, *P, C)` float32 that both compute. Two samples or more reveal a model whose batch size was frozen.
        regions: Whether each probability is one of a region. Regions may overlap.

    Raises:
        ValueError: If the probabilities come out different.
    """
    found = _compare(model, compute(images), images, regions=regions)
    if not found.difference <= found.tolerance:
        raise ValueError(f"Expected probabilities of {name} within {found.tolerance:.3g} of Keras's. Received: {found}.")
    return found


def _compare(model, found: np.ndarray, images: np.ndarray, *, regions: bool) -> EngineCheck:
    expected = _compute(model, images)
    rounding = _measure_rounding(model, images, expected)
    tolerance = MOST_TOLERANCE if has_nvidia() else min(max(LEAST_TOLERANCE, ROUNDINGS * rounding), MOST_TOLERANCE)
    if regions or expected.shape[-1] == 1:
        changed = ((expected > 0.5) != (found > 0.5)).any(axis=-1)
    else:
        changed = expected.argmax(axis=-1) != found.argmax(axis=-1)
    return EngineCheck(float(np.abs(found - expected).max()), rounding, tolerance, changed.size, int(changed.sum()))


def _compute(model, images: np.ndarray) -> np.ndarray:
    import keras

    # Keras computes them one by one, because it keeps the memory of the largest batch.
    return np.concatenate([keras.ops.convert_to_numpy(model(image[np.newaxis], training=False)) for image in images])


def _measure_rounding(model, images: np.ndarray, expected: np.ndarray) -> float:
    """Measures how far a model's probabilities move if each number of the images and weights moves by its last place, up or down.

    The sum of N voxels in float32 is off by about the root of N last places, so the outputs of a normalisation over N voxels move by as
    many. No float32 computation can be expected to be much closer to another one: steep models magnify the least change.
    """
    import keras

    rng, last_place = np.random.default_rng(0), np.finfo(np.float32).eps

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return last_place * (2 * rng.integers(0, 2, shape, np.int8) - 1)

    weights = model.get_weights()
    try:
        model.set_weights([weight * (1 + draw(weight.shape)) if weight.dtype == np.float32 else weight for weight in weights])
        for layer, voxels in _list_normalisations(model):
            scale = keras.ops.convert_to_numpy(layer.gamma) if layer.scale else 1.0
            layer.beta.assign(layer.beta + math.sqrt(voxels) * scale * draw(layer.beta.shape))
        moved = _compute(model, images * (1 + draw(images.shape)))
    finally:
        model.set_weights(weights)
    return float(np.abs(moved - expected).max())


def _list_normalisations(model) -> Iterator[tuple[Any, int]]:
    """Yields the layers of a model that normalise by their own mean and add an offset, each with how many numbers a mean is of."""
    import keras

    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _list_normalisations(layer)
        elif isinstance(layer, keras.layers.GroupNormalization) and layer.center:
            yield layer, math.prod(layer.input.shape[1:]) // layer.groups


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
        command = f"import sys; from {__package__} import convert; convert._convert_file(*sys.argv[1:])"
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
        # Keras counts names anew in each process. The bare operations would get names that layers of a model from a file have already.
        return keras.layers.Lambda(_make_normaliser(layer), output_shape=inputs.shape[1:], dtype="float32")(inputs)

    plain = keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call, recursive=True)
    # Keras exports to ONNX only a model that was called before.
    plain(plain.input)
    return plain


def _make_normaliser(layer) -> Callable:
    """Makes a function that computes what a `GroupNormalization` layer computes of `x`, `(B, *P, C)`, in channels-first order."""
    from keras import ops

    scale = ops.convert_to_numpy(layer.gamma) if layer.scale else None
    offset = ops.convert_to_numpy(layer.beta) if layer.center else None

    def normalise(x):
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
        x = x if scale is None else x * scale
        return x if offset is None else x + offset

    return normalise
