"""Turns a converted OpenVINO model into one of 8-bit integers, by NNCF."""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modules.data.documents import to_line
from modules.predict.engines import OPENVINO_FILES, import_openvino

# From so many windows at most NNCF learns the ranges of each layer's numbers. Some more hardly change them.
CALIBRATION = 100


def check_quantiser() -> None:
    """Raises ValueError where the package nncf is not installed."""
    if importlib.util.find_spec("nncf") is None:
        raise ValueError("Expected the package nncf to export int8. Received: none. pip install nncf")


def quantise(source: Path, target: Path, cases: Sequence[Any], cut: Callable[[Any], np.ndarray]) -> None:
    """Writes a model whose convolutions compute in 8-bit integers as `OPENVINO_FILES`.

    Args:
        source: The folder with the float32 model's `OPENVINO_FILES`.
        target: An existing folder to write to.
        cases: Training cases; at most `CALIBRATION` of them are read, spread evenly.
        cut: A function from a case to a window `(*P, C)` float32 as the model gets it.

    Raises:
        ValueError: If NNCF is not installed, or fails.
    """
    check_quantiser()
    openvino = import_openvino()
    chosen = cases[:: -(-len(cases) // CALIBRATION)]
    try:
        # NNCF shows bars of progress on the console.
        with contextlib.redirect_stdout(io.StringIO()):
            import nncf

            nncf.set_log_level(logging.ERROR)
            model = openvino.Core().read_model(source / OPENVINO_FILES[0])
            data = nncf.Dataset(chosen, lambda case: cut(case)[np.newaxis])
            # Its preset for convolutions. Fewer windows than it asks for by default are all that there are.
            model = nncf.quantize(model, data, subset_size=len(chosen), preset=nncf.QuantizationPreset.PERFORMANCE)
        openvino.save_model(model, target / OPENVINO_FILES[0], compress_to_fp16=False)
    except OSError:
        raise
    except Exception as error:  # Each of NNCF's layers fails in a way of its own.
        raise ValueError(f"Expected a model that NNCF can quantise. Received: {to_line(error, 400)}.") from error
