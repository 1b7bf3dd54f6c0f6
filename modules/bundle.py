"""A model that knows its own preprocessing, classes and origin: what training leaves behind and prediction starts from."""

import dataclasses
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from modules.preprocess import Preprocessing
from modules.volume import Case, Volume, read_label_of, read_volume

FORMAT = 1
INTENDED_USE = "Research and teaching. Not a medical device: its label maps must not guide the care of a patient."


@dataclass(frozen=True)
class ModelBundle:
    """A folder of `model.keras` and `bundle.json`.

    Attributes:
        model: A `keras.Model` from `(B, *P, C)` to probabilities `(B, *P, K)`, or `(B, *P, 1)` for a binary task.
        preprocessing: What the model expects of its input.
        class_names: Of all classes, the background first.
        channels: Names of the image channels, in order.
        label_values: `{value in a label file: class index}`, for scoring.
        output_values: The value each class is written with, by class index.
        provenance: Data set, seed, versions, scores: for the record, not for the prediction.
    """

    model: Any
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    channels: tuple[str, ...]
    label_values: Mapping[int, int]
    output_values: tuple[int, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes the bundle; `folder` is replaced whole, never half."""
        folder = _take_back(Path(folder))
        temporary, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.model.save(temporary / "model.keras")
        record = {
            "format": FORMAT,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "class_names": self.class_names,
            "channels": self.channels,
            "label_values": {str(value): index for value, index in self.label_values.items()},
            "output_values": self.output_values,
            "provenance": dict(self.provenance),
            "intended_use": INTENDED_USE,
            "model_sha256": _hash_bytes((temporary / "model.keras").read_bytes()),
        }
        record["bundle_sha256"] = _hash_record(record)
        (temporary / "bundle.json").write_text(json.dumps(record, indent=2) + "\n")
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> "ModelBundle":
        """Reads a bundle; no code from the file is run.

        Args:
            folder: A bundle, or a run that contains one.

        Raises:
            FileNotFoundError: If there is no bundle.
            ValueError: If a file was cut or altered since it was saved, or is of a newer format.
        """
        folder = _take_back(Path(folder))
        if _take_back(folder / "bundle").is_dir():
            folder = folder / "bundle"
        for name in ("bundle.json", "model.keras"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"Expected a trained model in {folder}. Received: no {name} there. Give a finished run.")
        record = _read_record(folder / "bundle.json")
        if _hash_bytes((folder / "model.keras").read_bytes()) != record["model_sha256"]:
            raise ValueError(
                f"Expected {folder / 'model.keras'} as it was saved. Received: a file cut or altered since. Train or copy it again."
            )
        import keras

        preprocessing = {**record["preprocessing"], "shape": tuple(record["preprocessing"]["shape"])}
        return cls(
            model=keras.models.load_model(folder / "model.keras", compile=False, safe_mode=True),
            preprocessing=Preprocessing(**preprocessing),
            class_names=tuple(record["class_names"]),
            channels=tuple(record["channels"]),
            label_values={int(value): index for value, index in record["label_values"].items()},
            output_values=tuple(record["output_values"]),
            provenance=record["provenance"],
        )

    def predict(self, images: Iterable[Volume], batch_size: int = 16) -> Iterator[np.ndarray]:
        """Predicts images one after the other, in batches, each on its own grid.

        Args:
            images: Volumes `(*S, C)`; they may differ in shape and are drawn lazily.
            batch_size: Images predicted together; the last batch is padded, so that one shape is compiled.

        Yields:
            Probabilities `(*S, K)` float32, summing to 1 over the classes. Voxels outside the network's crop are background.
        """
        background = np.eye(len(self.class_names), dtype=np.float32)[0]
        images = iter(images)
        while batch := list(islice(images, batch_size)):
            prepared = [self.preprocessing.apply(image) for image in batch]
            inputs = np.zeros((batch_size, *prepared[0][0].shape), np.float32)
            for row, (array, _) in enumerate(prepared):
                inputs[row] = array
            outputs = np.asarray(self.model.predict_on_batch(inputs))
            if outputs.shape[-1] == 1:
                outputs = np.concatenate([1 - outputs, outputs], axis=-1)
            for output, (_, geometry) in zip(outputs, prepared, strict=False):
                yield self.preprocessing.restore(output, geometry, fill=background)

    def predict_cases(self, cases: Iterable[Case], batch_size: int = 16) -> Iterator[tuple[Case, Volume, np.ndarray | None, np.ndarray]]:
        """Reads and predicts cases, holding no more than a batch of them in memory.

        Args:
            cases: Where `label_path` is None, no label is read.
            batch_size: As for `predict`.

        Yields:
            The case, its image, its label `(*S)` of class indices or None, and its probabilities `(*S, K)`.

        Raises:
            FileNotFoundError, ValueError: From reading, and where an image does not fit the model; the file is named.
        """
        waiting: deque[tuple[Case, Volume, np.ndarray | None]] = deque()
        failures: list[Exception] = []

        def read_images() -> Iterator[Volume]:
            for case in cases:
                try:
                    image = read_volume(case.image_paths)
                    self.preprocessing.check(image, self.channels, str(case.image_paths[0]))
                    label = None
                    if case.label_path is not None:
                        label = read_label_of(case, image, self.label_values, self.provenance.get("dataset", ""))
                except (ValueError, OSError) as error:
                    # What was read before is still predicted, so that one bad file costs no work.
                    failures.append(error)
                    return
                waiting.append((case, image, label))
                yield image

        for probabilities in self.predict(read_images(), batch_size):
            yield (*waiting.popleft(), probabilities)
        if failures:
            raise failures[0]

    def to_file_values(self, label: np.ndarray) -> np.ndarray:
        """Turns class indices `(*S)` into the data set's own label values."""
        return np.asarray(self.output_values)[label]


def hash_weights(model) -> str:
    """SHA-256 over the names, shapes and bytes of all weights, in order: equal only for bit-identical weights."""
    from keras import ops

    digest = hashlib.sha256()
    for weight in model.weights:
        array = ops.convert_to_numpy(weight)
        # Keras numbers layers by how many were made before in the process; only the last part of the path is the weight's own.
        digest.update(f"{weight.path.rpartition('/')[2]} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _take_back(folder: Path) -> Path:
    """Brings back the bundle that a run killed between the two renames of `save` had just moved aside."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    return folder


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        claimed = record.pop("bundle_sha256")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"Expected a bundle's description in {path}. Received: {error!r}. Train or copy it again.") from error
    if record.get("format", 0) > FORMAT:
        raise ValueError(f"Expected a bundle of format {FORMAT} or older in {path}. Received: {record['format']}. Update this program.")
    if _hash_record(record) != claimed:
        raise ValueError(f"Expected {path} as it was saved. Received: a file altered since. Train or copy it again.")
    return record


def _hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hash_record(record: Mapping[str, Any]) -> str:
    return _hash_bytes(json.dumps(record, sort_keys=True, default=list).encode())
