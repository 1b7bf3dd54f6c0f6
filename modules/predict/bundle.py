"""The folder of a trained model: a model with its preprocessing, classes and origin. Training leaves it, prediction starts from it."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import modules
from modules.data.case import LabelRule, Volume
from modules.data.files import hash_file, replace_file
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.predict import engines

FORMAT = 4
MODEL_FILE = "model.keras"
RECORD_FILE = "bundle.json"
INTENDED_USE = "Research and teaching. Not a medical device: its label maps must not guide the care of a patient."


@dataclass(frozen=True)
class ModelBundle:
    """A folder of `model.keras`, `bundle.json` and, once it was converted, the files of OpenVINO.

    Attributes:
        model: From `(B, *P, C)` to probabilities `(B, *P, K)`, or `(B, *P, 1)` for a binary task: a `keras.Model`, or a stand-in
            with the same `predict_on_batch`, see `engine`.
        preprocessing: What the model expects of its input.
        window: What the model sees at once.
        class_names: Names of all classes, the background first.
        channels: Names of the image channels, in order.
        label_rule: How label files store the classes, for scoring and for writing.
        mirrored_labels: Pairs of class indices that change places when left and right are flipped.
        provenance: Data set, seed, versions, scores: for the record; no prediction reads it.
        engine: What computes the model, "keras" or "openvino"; decided when the bundle is loaded, and no part of what is saved.
    """

    model: Any
    preprocessing: Preprocessing
    window: Window
    class_names: tuple[str, ...]
    channels: tuple[str, ...]
    label_rule: LabelRule
    mirrored_labels: tuple[tuple[int, int], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "keras"

    def check_image(self, image: Volume, name: str) -> None:
        """Raises ValueError, naming the file `name`, for an image that is not of the model's kind."""
        self.preprocessing.check(image, self.channels, name)

    def save(self, folder: Path) -> None:
        """Writes the bundle, not converted; `folder` is replaced whole, never half.

        Raises:
            ValueError: If it was loaded without its Keras model.
        """
        if self.engine != "keras":
            raise ValueError(f"Expected a bundle with its Keras model to save. Received: one loaded for {self.engine}. Load it for keras.")
        folder = recover(Path(folder))
        temporary, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.model.save(temporary / MODEL_FILE)
        rule = asdict(self.label_rule)
        record = {
            "format": FORMAT,
            "version": modules.__version__,
            "preprocessing": asdict(self.preprocessing),
            "window": self.window.sizes,
            "class_names": self.class_names,
            "channels": self.channels,
            "label_rule": rule | {"values": {str(value): index for value, index in self.label_rule.values.items()}},
            "mirrored_labels": self.mirrored_labels,
            "provenance": dict(self.provenance),
            "intended_use": INTENDED_USE,
            "files_sha256": {MODEL_FILE: hash_file(temporary / MODEL_FILE)},
        }
        write_record(temporary, record)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, engine: str = "auto") -> "ModelBundle":
        """Reads a bundle; no code from the file is run, and Keras is imported only where it is the engine.

        Args:
            folder: A bundle, or a run that contains one.
            engine: One of `engines.ENGINES`, see `engines.choose_engine`. Only "keras" is sure to give a `keras.Model`.

        Raises:
            FileNotFoundError: If there is no bundle.
            ValueError: If a file was cut or altered since it was saved, or is of another format; and if the engine cannot be had.
        """
        folder = find_bundle(folder)
        record = read_record(folder)
        there = {name for name in record["files_sha256"] if (folder / name).is_file()}
        for name in sorted(there):
            if hash_file(folder / name) != record["files_sha256"][name]:
                raise ValueError(
                    f"Expected {folder / name} as it was saved. Received: a file cut or altered since. Train or copy it again."
                )
        engine = engines.choose_engine(engine, folder, set(engines.OPENVINO_FILES) <= there)
        rule = record["label_rule"]
        return cls(
            model=engines.load_model(engine, folder, MODEL_FILE),
            preprocessing=Preprocessing(**_to_tuples(record["preprocessing"])),
            window=Window(tuple(record["window"])),
            class_names=tuple(record["class_names"]),
            channels=tuple(record["channels"]),
            label_rule=LabelRule(**_to_tuples(rule) | {"values": {int(value): index for value, index in rule["values"].items()}}),
            mirrored_labels=tuple((first, second) for first, second in record["mirrored_labels"]),
            provenance=record["provenance"],
            engine=engine,
        )


def find_bundle(folder: Path) -> Path:
    """Finds the folder of a bundle, given that or the run that contains it.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = recover(Path(folder))
    if recover(folder / "bundle").is_dir():
        folder = folder / "bundle"
    for name in (RECORD_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"Expected a trained model in {folder}. Received: no {name} there. Give a finished run.")
    return folder


def recover(folder: Path) -> Path:
    """Brings back the bundle that a run killed between the two renames of `save` had just moved aside."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    return folder


def add_provenance(folder: Path, **values: Any) -> None:
    """Adds to the provenance of a saved bundle; `folder` is the bundle, or the run that contains it."""
    folder = find_bundle(folder)
    record = read_record(folder)
    write_record(folder, record | {"provenance": record["provenance"] | values})


def read_record(folder: Path) -> dict[str, Any]:
    """Reads and checks a bundle's description; one of the format before is converted.

    Raises:
        ValueError: If it was altered, or is of another format.
    """
    path = folder / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        claimed = record.pop("bundle_sha256")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"Expected a bundle's description in {path}. Received: {error!r}. Train or copy it again.") from error
    if record.get("format") not in (3, FORMAT):
        raise ValueError(
            f"Expected a bundle of format 3 or {FORMAT} in {path}. Received: {record.get('format')}. Train it again, or update this program."
        )
    if _hash_record(record) != claimed:
        raise ValueError(f"Expected {path} as it was saved. Received: a file altered since. Train or copy it again.")
    return _convert_format_3(record) if record["format"] == 3 else record


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes a bundle's description with its own hash, by way of a temporary name."""
    with replace_file(folder / RECORD_FILE) as temporary:
        temporary.write_text(json.dumps({**record, "bundle_sha256": _hash_record(record)}, indent=2) + "\n", encoding="utf-8")


def _convert_format_3(record: dict[str, Any]) -> dict[str, Any]:
    """Gives a description of format 3 its label rule, which lay in three places; labels then have their images' names."""
    source = str(record["provenance"].get("dataset", ""))
    rule = {"values": record.pop("label_values"), "output_values": record.pop("output_values"), "renames": [], "source": source}
    return record | {"format": FORMAT, "version": "0", "label_rule": rule}


def _to_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the lists of JSON into tuples, at any depth."""

    def freeze(value: Any) -> Any:
        return tuple(freeze(item) for item in value) if isinstance(value, list) else value

    return {name: freeze(value) for name, value in values.items()}


def _hash_record(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=list).encode()).hexdigest()
