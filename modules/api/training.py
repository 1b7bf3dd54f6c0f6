"""Trainings from Python: what train.py does, by the names of its settings."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, cast

from modules.api.errors import InputError, TrainingError, translate

# What `train` takes besides settings.
_FLAGS = ("preset", "config", "resume", "devices")


class Trained(NamedTuple):
    """A finished training.

    Attributes:
        path: The run's folder, which `Predictor.load` takes.
        summary: What its `summary.json` holds: the test means with their intervals, versions and hashes.
    """

    path: Path
    summary: dict[str, Any]


def train(*, quiet: bool = False, **settings: Any) -> Trained:
    """Trains a run as train.py does, in this process, and scores it on the test cases.

    Args:
        quiet: Whether to print warnings alone. The run's `log.txt` has all messages.
        **settings: The settings by the names of their flags: `dataset="folder"`, `data="scans"`, `minutes=5`. `preset`, `config`, `resume`
            and `devices` are those of train.py too.

    Raises:
        InputError: For an unknown name, which lists the valid ones, or a wrong value.
        TrainingError: If the data, the plan or the folder of the run does not allow it, or the backend of Keras is not installed.
        MissingPackageError: If another package is not installed.
    """
    # The commands lie above all other rooms, so they wait until somebody trains.
    import train as command
    from dataset import DATASETS
    from modules.run.flags import make_request
    from modules.run.folder import RunFolder
    from modules.run.settings import NETWORK_OPTIONS, Settings

    names = (*(item.name for item in fields(Settings) if item.name != "network_options"), *NETWORK_OPTIONS, *_FLAGS)
    with translate(InputError):
        if unknown := sorted(set(settings) - set(names)):
            raise ValueError(f"Expected settings in {names}. Received: {unknown[0]!r}. Correct its name.")
        given = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in settings.items()}
        request = make_request(given, DATASETS, "the arguments")
        if request.settings is None:
            raise ValueError("Expected `dataset`, `preset`, `config` or `resume`. Received: none of them. Name one.")
    with translate(TrainingError):
        # Only requests that train nothing, which we take none of, give no run.
        run = cast(RunFolder, command.carry_request(request, request.settings, quiet=quiet))
        return Trained(run.path, json.loads(run.summary.read_text(encoding="utf-8")))
