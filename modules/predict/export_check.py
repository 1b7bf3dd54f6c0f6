"""Checks an exported model: its own runtime computes it beside Keras on windows of scans."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.data.case import Volume
from modules.predict.bundle import ModelBundle
from modules.predict.cases import cut_sample
from modules.predict.convert import EngineCheck, check_engine

# The package that computes a format.
RUNTIMES = {"onnx": "onnxruntime", "savedmodel": "tensorflow"}


class Samples(NamedTuple):
    """Windows to check an export on: `images` `(B, *P, C)` float32, and in words where they come from."""

    images: np.ndarray
    origin: str


def check_export(bundle: ModelBundle, kind: str, path: Path, samples: Samples) -> EngineCheck | None:
    """Compares an exported model with the bundle's Keras model.

    Args:
        bundle: The bundle with its Keras model.
        kind: "onnx" or "savedmodel".
        path: The exported model.
        samples: The windows that both compute.

    Returns:
        The comparison; None where the format's runtime is not installed.

    Raises:
        ValueError: If the runtime cannot compute the model, or computes something else.
    """
    if importlib.util.find_spec(RUNTIMES[kind]) is None:
        return None
    name = RUNTIMES[kind]
    try:
        found = (_load_onnx if kind == "onnx" else _load_savedmodel)(path)(samples.images)
    except Exception as error:  # Each runtime fails in a way of its own.
        reason = " ".join((str(error).strip() or repr(error)).splitlines()[-1].split())
        raise ValueError(f"Expected an exported model that {name} computes. Received: {reason}.") from error
    return check_engine(name, bundle.model, lambda _: found, samples.images, regions=bool(bundle.regions))


def _load_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _load_savedmodel(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    # The function alone would not keep its weights alive.
    model = tf.saved_model.load(str(path))
    return lambda images: np.asarray(model.serve(images))


def draw_samples(bundle: ModelBundle) -> Samples:
    """Draws two windows for a bundle without scans. Their intensities spread as those of the training cases, and show nothing.

    A bundle of an early format does not say how intensities spread. Its windows are noise about 0.
    """
    rng, trained, rank = np.random.default_rng(0), bundle.trained, bundle.preprocessing.spatial_dims
    if trained is None:
        return Samples(rng.standard_normal((2, *bundle.model.input_shape[1:]), np.float32), "two windows of noise")

    def draw_scan() -> Volume:
        channels = []
        for quartiles, spread in zip(trained.quartiles, trained.spread, strict=True):
            places = [0.0, *(sum(span) / 2 for span in quartiles), 1.0]
            values = np.interp(rng.random(bundle.window.sizes), [0.0, 0.25, 0.5, 0.75, 1.0], places)
            # The ranges do not say where intensities begin. Hounsfield units lie about their mean, and others begin at 0.
            least = bundle.preprocessing.mean / (sum(spread) / 2 or 1) - places[2] if bundle.preprocessing.intensity == "ct" else 0.0
            channels.append((values + least) * sum(spread) / 2)
        spacing = bundle.preprocessing.spacing_mm or (1.0,) * rank
        return Volume(np.stack(channels, axis=-1).astype(np.float32), None, spacing)

    images = np.stack([cut_sample(bundle, draw_scan()) for _ in range(2)])
    return Samples(images, "two windows drawn over the training's intensities")
