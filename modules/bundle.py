"""A model that knows its own preprocessing, classes and origin: what training leaves behind and prediction starts from."""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import numpy as np

from modules import devices, engines, inference
from modules.patches import cut, make_grid
from modules.preprocess import Geometry, Preprocessing, find_orientation
from modules.volume import Case, Volume, hash_file, read_label_of, read_volume, replace_file

FORMAT = 3
MODEL_FILE = "model.keras"
log = logging.getLogger("mri")
T = TypeVar("T")
INTENDED_USE = "Research and teaching. Not a medical device: its label maps must not guide the care of a patient."


def _ignore(_: Any) -> None:
    """What is done about progress unless someone asks."""


@dataclass(frozen=True)
class Settings:
    """How a prediction is made.

    Attributes:
        overlap: Share in [0, 1) that neighbouring windows have in common along each axis.
        batch_size: Windows predicted together; 0 chooses by their size.
        mirror: Whether to average over flips as well.
        on_plan: Is told of each image's `inference.Plan` before its first window.
        on_batch: Is told after each batch how many windows it held.
    """

    overlap: float = 0.5
    batch_size: int = 0
    mirror: bool = False
    on_plan: Callable[[inference.Plan], None] = _ignore
    on_batch: Callable[[int], None] = _ignore


class Predicted(NamedTuple):
    """A case with its prediction.

    Attributes:
        case: The case.
        image: As it was read.
        label: `(*S)` uint8 class indices, or None where the case has no label.
        prediction: `(*S)` uint8 class indices.
        probabilities: `(*S, K)` float32 if they were asked for, else None.
    """

    case: Case
    image: Volume
    label: np.ndarray | None
    prediction: np.ndarray
    probabilities: np.ndarray | None


@dataclass(frozen=True)
class ModelBundle:
    """A folder of `model.keras`, `bundle.json` and, once it was converted, the files of OpenVINO.

    Attributes:
        model: From `(B, *P, C)` to probabilities `(B, *P, K)`, or `(B, *P, 1)` for a binary task: a `keras.Model`, or what stands for
            it with the same `predict_on_batch`, see `engine`.
        preprocessing: What the model expects of its input.
        window: What the model sees at once, in the rank of the preprocessed case. A 2-D model of volumes has one 1 in it, along the
            axis that its slices lie across.
        class_names: Of all classes, the background first.
        channels: Names of the image channels, in order.
        label_values: `{value in a label file: class index}`, for scoring.
        output_values: The value each class is written with, by class index.
        mirrored_labels: Pairs of class indices that change places when left and right are flipped.
        provenance: Data set, seed, versions, scores: for the record, not for the prediction.
        engine: What the model is computed by, "keras" or "openvino"; decided when the bundle is loaded, and no part of what is saved.
    """

    model: Any
    preprocessing: Preprocessing
    window: tuple[int, ...]
    class_names: tuple[str, ...]
    channels: tuple[str, ...]
    label_values: Mapping[int, int]
    output_values: tuple[int, ...]
    mirrored_labels: tuple[tuple[int, int], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "keras"

    def save(self, folder: Path) -> None:
        """Writes the bundle, not converted; `folder` is replaced whole, never half.

        Raises:
            ValueError: If it was loaded without its Keras model.
        """
        if self.engine != "keras":
            raise ValueError(f"Expected a bundle with its Keras model to save. Received: one loaded for {self.engine}. Load it for keras.")
        folder = _take_back(Path(folder))
        temporary, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.model.save(temporary / MODEL_FILE)
        record = {
            "format": FORMAT,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "window": self.window,
            "class_names": self.class_names,
            "channels": self.channels,
            "label_values": {str(value): index for value, index in self.label_values.items()},
            "output_values": self.output_values,
            "mirrored_labels": self.mirrored_labels,
            "provenance": dict(self.provenance),
            "intended_use": INTENDED_USE,
            "files_sha256": {MODEL_FILE: hash_file(temporary / MODEL_FILE)},
        }
        _write_record(temporary / "bundle.json", record)
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
        record = _read_record(folder / "bundle.json")
        there = {name for name in record["files_sha256"] if (folder / name).is_file()}
        for name in sorted(there):
            if hash_file(folder / name) != record["files_sha256"][name]:
                raise ValueError(
                    f"Expected {folder / name} as it was saved. Received: a file cut or altered since. Train or copy it again."
                )
        engine = engines.choose_engine(engine, folder, set(engines.OPENVINO_FILES) <= there)
        preprocessing = {name: tuple(value) if isinstance(value, list) else value for name, value in record["preprocessing"].items()}
        model = engines.OpenVinoModel(folder) if engine == "openvino" else _load_keras(folder / MODEL_FILE)
        return cls(
            model=model,
            preprocessing=Preprocessing(**preprocessing),
            window=tuple(record["window"]),
            class_names=tuple(record["class_names"]),
            channels=tuple(record["channels"]),
            label_values={int(value): index for value, index in record["label_values"].items()},
            output_values=tuple(record["output_values"]),
            mirrored_labels=tuple((first, second) for first, second in record["mirrored_labels"]),
            provenance=record["provenance"],
            engine=engine,
        )

    @property
    def deep_window(self) -> tuple[int, ...]:
        """The window as one of a volume: a slice is a volume of depth one."""
        return self.window if len(self.window) == 3 else (1, *self.window)

    def predict(
        self, images: Iterable[Volume], settings: Settings = Settings(), order: Sequence[int] = (0, 1, 2)
    ) -> Iterator[Iterator[np.ndarray]]:
        """Predicts images one after the other, in batches of windows, each on its own grid.

        Args:
            images: Volumes `(*S, C)`; they may differ in shape and are drawn lazily.
            settings: How windows are laid and merged.
            order: Of a volume's canonical axes. Planes lie across the first; as many of them are held as a window is deep.

        Yields:
            For each image its probabilities, plane by plane: `(*S[1:], K)` float32 of the volume in canonical orientation and with
            its axes in that order, or the one plane `(*S, K)` of a slice. They sum to 1 over the classes; voxels outside the
            network's crop are background.
        """
        background = np.eye(len(self.class_names), dtype=np.float32)[0]
        window = tuple(self.deep_window[axis] for axis in order)
        batch_size = settings.batch_size or inference.choose_batch_size(window)
        waiting: deque[tuple[inference.Plan, Geometry]] = deque()

        def cut_windows() -> Iterator[np.ndarray]:
            for image in images:
                array, geometry = self.preprocessing.apply(image)
                array = array.transpose(*order, 3) if array.ndim == 4 else array[np.newaxis]
                starts = tuple(make_grid(array.shape[:-1], window, settings.overlap))
                unseen = self.preprocessing.unseen(geometry)
                plan = inference.Plan(array.shape[:-1], window, starts, len(self.class_names), batch_size, unseen)
                settings.on_plan(plan)
                waiting.append((plan, geometry))
                darkest = array.min(axis=(0, 1, 2))
                for start in plan.starts:
                    yield cut(array, start, window, fill=darkest)

        outputs = inference.predict_windows(self._make_predictor(settings, order), cut_windows(), batch_size, settings.on_batch)
        for first in outputs:
            plan, geometry = waiting.popleft()
            merged = inference.merge_windows(chain([first], islice(outputs, len(plan.starts) - 1)), plan)
            planes = self.preprocessing.restore_planes(merged, geometry, background, order)
            yield planes
            # The next image's windows come behind this one's, wanted or not.
            deque(planes, maxlen=0)

    def _make_predictor(self, settings: Settings, order: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
        """From windows `(B, *window, C)` with their axes in that order to probabilities, whatever rank and head the model has."""
        window = self.deep_window
        across = window.index(1) + 1 if 1 in window else None

        def predict(inputs: np.ndarray) -> np.ndarray:
            outputs = np.asarray(self.model.predict_on_batch(inputs if across is None else inputs.squeeze(across)))
            if outputs.shape[-1] == 1:
                outputs = np.concatenate([1 - outputs, outputs], axis=-1)
            return outputs if across is None else np.expand_dims(outputs, across)

        if settings.mirror:
            # Which axis runs from left to right is known for volumes in canonical orientation only: it is the first one there.
            left_right = 1 if self.preprocessing.spatial_dims == 3 else None
            if left_right is None and self.mirrored_labels:
                raise ValueError("Expected volumes for `mirror` with classes on the left and the right. Received: a model of 2-D files.")
            flipped = [axis for axis in (1, 2, 3) if window[axis - 1] > 1]
            predict = inference.mirror(predict, flipped, left_right, self.mirrored_labels)
        if tuple(order) == (0, 1, 2):
            return predict
        there, back = (tuple(axis + 1 for axis in axes) for axes in (order, np.argsort(order)))
        return lambda inputs: predict(np.ascontiguousarray(inputs.transpose(0, *back, 4))).transpose(0, *there, 4)

    def to_file_values(self, label: np.ndarray) -> np.ndarray:
        """Turns class indices `(*S)` into the data set's own label values."""
        return np.asarray(self.output_values, np.min_scalar_type(max(self.output_values)))[label]


def predict_cases(
    bundles: Sequence[ModelBundle], cases: Iterable[Case], settings: Settings = Settings(), *, keep_probabilities: bool = False
) -> Iterator[Predicted]:
    """Reads and predicts cases with one model, or with the mean of several; holds no more than a batch of cases in memory.

    Args:
        bundles: Models of the same channels and classes; they may differ in rank, window and preprocessing.
        cases: Where `label_path` is None, no label is read.
        settings: How windows are laid and merged.
        keep_probabilities: Whether to keep what else is dropped plane by plane: the probabilities of all classes.

    Raises:
        FileNotFoundError, ValueError: From reading, where an image does not fit a model (the file is named), and where the models
            do not fit one another.
    """
    first = bundles[0]
    for bundle in bundles[1:]:
        for what in ("class_names", "channels", "output_values"):
            if getattr(bundle, what) != getattr(first, what):
                raise ValueError(
                    f"Expected models of the same {what} for an ensemble, {getattr(first, what)}. Received: {getattr(bundle, what)}."
                )
    waiting: deque[tuple[Case, Volume, np.ndarray | None]] = deque()
    failures: list[Exception] = []

    def read_images() -> Iterator[Volume]:
        for case in cases:
            try:
                image = read_volume(case.image_paths)
                for bundle in bundles:
                    bundle.preprocessing.check(image, bundle.channels, str(case.image_paths[0]))
                label = None
                if case.label_path is not None:
                    label = read_label_of(case, image, first.label_values, first.provenance.get("dataset", ""))
            except (ValueError, OSError) as error:
                # What was read before is still predicted, so that one bad file costs no work.
                failures.append(error)
                return
            waiting.append((case, image, label))
            yield image

    # Planes lie across the axis along which the windows are thinnest, as so many planes are held at once.
    order = _put_first(int(np.argmin(np.sum([bundle.deep_window for bundle in bundles], axis=0))))
    streams = [bundle.predict(images, settings, order) for bundle, images in zip(bundles, _share(read_images(), len(bundles)), strict=True)]
    for planes in zip(*streams, strict=True):
        case, image, label = waiting.popleft()
        merged = inference.average_planes(planes)
        prediction, probabilities = _assemble(merged, image, len(first.class_names), order, keep_probabilities)
        yield Predicted(case, image, label, prediction, probabilities)
    if failures:
        raise failures[0]


def _put_first(axis: int) -> tuple[int, int, int]:
    """The order of three axes with `axis` in front."""
    return (axis, *(other for other in range(3) if other != axis))


def _share(items: Iterator[T], number: int) -> list[Iterator[T]]:
    """Lets several read one iterator, each at its own pace; unlike `itertools.tee` it lets go of what all have read at once."""
    queues: list[deque[T]] = [deque() for _ in range(number)]

    def read(queue: deque[T]) -> Iterator[T]:
        while True:
            if not queue:
                try:
                    item = next(items)
                except StopIteration:
                    return
                for other in queues:
                    other.append(item)
                del item
            yield queue.popleft()

    return [read(queue) for queue in queues]


def _assemble(
    planes: Iterable[np.ndarray], image: Volume, num_classes: int, order: Sequence[int], keep: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """The label map `(*S)` on the image's grid, and the probabilities `(*S, K)` if they are to be kept, from canonical planes."""
    spatial = image.array.shape[:-1]
    axes, flipped = find_orientation(image)
    geometry = Geometry(axes, flipped, spatial, (), ())
    prediction = np.empty(spatial, np.uint8)
    probabilities = np.empty((*spatial, num_classes), np.float32) if keep else None
    # Views that are filled in canonical order.
    turned = geometry.turn(prediction)
    turned_probabilities = geometry.turn(probabilities) if keep else None
    if len(spatial) == 3:
        turned = turned.transpose(order)
        turned_probabilities = turned_probabilities.transpose(*order, 3) if keep else None
    for index, plane in enumerate(planes):
        place = index if len(spatial) == 3 else ...
        turned[place] = plane.argmax(axis=-1)
        if keep:
            turned_probabilities[place] = plane
    return prediction, probabilities


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


def convert_bundle(bundle: ModelBundle, folder: Path) -> None:
    """Adds to a saved bundle what OpenVINO computes it from, where it is installed; the log says it where the model cannot be converted.

    Args:
        bundle: As loaded from `folder`, with its Keras model.
        folder: The bundle, or the run that contains it.
    """
    folder = find_bundle(folder)
    record = _read_record(folder / "bundle.json")
    if set(engines.OPENVINO_FILES) <= set(record["files_sha256"]) or not engines.has_openvino():
        return
    with TemporaryDirectory(dir=folder, prefix=".") as temporary:
        try:
            engines.write_openvino(bundle.model, Path(temporary))
        except ValueError as error:
            # The model is as good without them.
            log.warning("the bundle has no files for OpenVINO, Keras predicts: %s", error)
            return
        for name in engines.OPENVINO_FILES:
            os.replace(Path(temporary) / name, folder / name)
    # Until this is written, the new files are nobody's: a run that is killed here converts again.
    hashes = {name: hash_file(folder / name) for name in engines.OPENVINO_FILES}
    _write_record(folder / "bundle.json", record | {"files_sha256": record["files_sha256"] | hashes})


def add_provenance(folder: Path, **values: Any) -> None:
    """Adds to the provenance of a saved bundle; `folder` is the bundle, or the run that contains it."""
    path = find_bundle(folder) / "bundle.json"
    record = _read_record(path)
    _write_record(path, record | {"provenance": record["provenance"] | values})


def find_bundle(folder: Path) -> Path:
    """The folder of a bundle, given that or the run that contains it.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = _take_back(Path(folder))
    if _take_back(folder / "bundle").is_dir():
        folder = folder / "bundle"
    for name in ("bundle.json", MODEL_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"Expected a trained model in {folder}. Received: no {name} there. Give a finished run.")
    return folder


def _load_keras(path: Path):
    devices.import_keras()
    import keras

    model = keras.models.load_model(path, compile=False, safe_mode=True)
    _compute_in_full(model)
    return model


def _compute_in_full(model) -> None:
    """Lets layers that were trained in half precision compute in the precision of their weights: a CPU has no faster one, and no better."""
    for layer in model.layers:
        if layer.compute_dtype != layer.variable_dtype:
            layer.dtype_policy = layer.variable_dtype
        if hasattr(layer, "layers"):
            _compute_in_full(layer)


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
    if record.get("format") != FORMAT:
        raise ValueError(
            f"Expected a bundle of format {FORMAT} in {path}. Received: {record.get('format')}. Train it again, or update this program."
        )
    if _hash_record(record) != claimed:
        raise ValueError(f"Expected {path} as it was saved. Received: a file altered since. Train or copy it again.")
    return record


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a bundle's description with its own hash, by way of a temporary name."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps({**record, "bundle_sha256": _hash_record(record)}, indent=2) + "\n")


def _hash_record(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=list).encode()).hexdigest()
