"""MRI segmentation: reading scans, networks, training, prediction, scores and pictures.

`Predictor`, `Prediction`, `train`, `evaluate` and the errors come from the room `api`. They are imported when they are first asked for.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_API = (
    *("Predictor", "Prediction", "train", "Trained", "evaluate", "Evaluation"),
    *("MRIError", "ModelError", "InputError", "PredictionError", "TrainingError", "MissingPackageError"),
)


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(importlib.import_module(f"{__name__}.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
