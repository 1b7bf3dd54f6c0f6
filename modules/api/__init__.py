"""The program for Python: load a model and predict, train, evaluate.

`docs/python.md` shows it. This room stands above the commands at the root and shares their code. Only it and the room `serve` may import
them, and only `serve` imports this room.
"""

from modules.api.errors import InputError, MissingPackageError, ModelError, MRIError, PredictionError, TooLargeError, TrainingError
from modules.api.predictor import Evaluation, Prediction, Predictor, Saved, evaluate
from modules.api.training import Trained, train

__all__ = [
    "Evaluation",
    "InputError",
    "MRIError",
    "MissingPackageError",
    "ModelError",
    "Prediction",
    "PredictionError",
    "Predictor",
    "Saved",
    "TooLargeError",
    "Trained",
    "TrainingError",
    "evaluate",
    "train",
]
