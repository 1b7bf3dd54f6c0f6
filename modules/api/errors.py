"""The errors that the Python interface raises. Each is one line: what was expected, what was received, and what helps."""

from collections.abc import Generator
from contextlib import contextmanager

from modules.data.documents import to_line
from modules.hardware import is_lack_of_memory
from modules.packages import describe_missing
from modules.predict.engines import EngineError


class MRIError(ValueError):
    """The base of all errors here."""


class ModelError(MRIError):
    """A model cannot be loaded: it is missing, damaged or of another format, or its engine or precision is not available."""


class InputError(MRIError):
    """A scan, a label or an argument is not as expected: it is missing, damaged, or does not fit the model."""


class TooLargeError(InputError):
    """A scan takes more memory than the caller allows."""


class PredictionError(MRIError):
    """A model cannot compute a scan: memory does not suffice, the engine fails, or the process was forked after loading."""


class TrainingError(MRIError):
    """A training cannot begin or go on, because of its data, its plan or its folder."""


class MissingPackageError(MRIError):
    """A package is needed that is not installed."""


@contextmanager
def translate(kind: type[MRIError]) -> Generator[None, None, None]:
    """Turns the errors that a user can mend into errors of `kind`, whose cause they are.

    A lack of memory and an engine that fails become `PredictionError`, and a missing package `MissingPackageError`. Other errors are
    defects of this program and pass as they are.
    """
    try:
        yield
    except MRIError:
        raise
    except ModuleNotFoundError as error:
        if line := describe_missing(error):
            raise MissingPackageError(line) from error
        raise
    except Exception as error:
        if isinstance(error, EngineError) or is_lack_of_memory(error):
            raise PredictionError(to_line(error)) from error
        if kind is InputError and isinstance(error.__cause__, ImportError):
            # A reader of a format says itself which package it lacks.
            raise MissingPackageError(to_line(error)) from error
        if isinstance(error, ValueError | OSError):
            raise kind(to_line(error)) from error
        raise
