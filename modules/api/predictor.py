"""A loaded model that predicts arrays and files as predict.py does."""

import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modules import score_tables, scoring
from modules.api.arrays import to_volume
from modules.api.errors import InputError, ModelError, PredictionError, TooLargeError, translate
from modules.data.case import Case, LabelRule, Predicted, Volume, read_case
from modules.data.files import PICTURE_SUFFIXES, name_result_suffix, suffix_of
from modules.data.formats import read_grid
from modules.predict.bundle import ModelBundle
from modules.predict.cases import PredictionOptions, choose_order, predict_cases, predict_read
from modules.predict.class_files import ClassRow, list_segments
from modules.predict.departures import Departures
from modules.predict.inputs import find_images, make_cases
from modules.predict.memory import estimate_reading
from modules.predict.outputs import write_maps
from modules.predict.results import make_result, measure_sizes

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Prediction:
    """The prediction of one scan, on the scan's own grid.

    Attributes:
        label: `(*S)` uint8, for each voxel the index of its class in `Predictor.class_names`. Of regions that overlap it is the index of
            the part, see `Predictor.label_values`.
        probabilities: `(*S, K)` float32 of all classes, if they were asked for, else None. Of regions there is one map each, without the
            background.
        volumes_ml: The volume of each class but the background, in millilitres; NaN for a slice, which has none.
    """

    label: np.ndarray
    probabilities: np.ndarray | None
    volumes_ml: Mapping[str, float]


class Saved(NamedTuple):
    """The prediction of one scan, written into a file.

    Attributes:
        label: The file of the label map.
        result: What `results.json` of predict.py says of the scan: shape, spacing, seconds, and of each class voxels, ml and components.
        departures: What about the scan leaves the scans of the training, in words.
    """

    label: Path
    result: dict[str, Any]
    departures: list[str]


class Evaluation(NamedTuple):
    """The scores of a model on labelled scans.

    Attributes:
        scores: A `modules.scoring.Score` a case and class.
        summary: The means over cases, such as `summary["volume"]["hippocampus"]["dice"]`; "mean" is that over classes. A level, "slice"
            or "volume", is there where such cases are.
    """

    scores: list[scoring.Score]
    summary: dict[str, dict[str, dict[str, float]]]


class Predictor:
    """A trained model, or several whose probabilities are averaged, ready to predict.

    Threads may share a predictor: OpenVINO computes for several at once, and with Keras they take turns. A process that was forked after
    loading must not use it. A predictor may be sent to a spawned process, which then loads the same model again.

    Attributes:
        class_names: Names of all classes, the background first.
        channels: Names of the image channels, in the order of the last axis.
        spatial_dims: The rank of a scan: 2 for slices, 3 for volumes.
        label_values: The value that predict.py writes into a file for each index of `Prediction.label`:
            `np.asarray(label_values)[label]`.
        segments: The classes without the background, each with its name, its value in a file and its colour.
        engines: The engine of each model, "openvino" or "keras".
    """

    def __init__(self, bundles: Sequence[ModelBundle], origin: tuple[Any, ...]) -> None:
        """Takes loaded models, and the arguments of `load` that gave them."""
        first = bundles[0]
        self.class_names: tuple[str, ...] = first.class_names
        self.channels: tuple[str, ...] = first.channels
        self.spatial_dims: int = first.preprocessing.spatial_dims
        self.label_values: tuple[int, ...] = first.label_rule.output_values
        self.segments: tuple[ClassRow, ...] = tuple(list_segments(first))
        self.engines: tuple[str, ...] = tuple(bundle.engine for bundle in bundles)
        self._bundles = tuple(bundles)
        self._origin = origin
        self._process = os.getpid()
        # Keras builds its functions at their first call, and not safely for several threads.
        self._turn = threading.Lock() if "keras" in self.engines else nullcontext()

    @classmethod
    def load(
        cls, model: PathLike | Sequence[PathLike], engine: str = "auto", precision: str = "auto", threads: int | None = None
    ) -> "Predictor":
        """Loads a model. It imports TensorFlow and Keras only where Keras is the engine.

        Args:
            model: A run, a cross-validation, an ensemble or a bundle; or several, to average.
            engine: "auto", "openvino" or "keras"; auto: on a CPU OpenVINO, if it is installed and the model was converted, else Keras.
            precision: "auto", "float32" or "bfloat16"; auto: what the training decided on, where this CPU computes in it.
            threads: The most threads that OpenVINO computes with; None for all cores.

        Raises:
            ModelError: If there is no model, it is damaged, or the engine or the precision is not available.
        """
        # The rooms that know runs take a third of the time of the import.
        from modules.run.listing import list_models

        with translate(ModelError):
            paths = tuple(Path(path).absolute() for path in _list_paths(model))
            if not paths:
                raise ValueError("Expected at least one model. Received: none. Name a run.")
            if threads is not None and not (isinstance(threads, int) and threads > 0):
                raise ValueError(f"Expected `threads` of 1 or more, or None. Received: {threads!r}.")
            bundles = [ModelBundle.load(path, engine, precision, threads or 0) for path in list_models(paths)]
            if threads is not None and any(bundle.engine == "keras" for bundle in bundles):
                raise ValueError(
                    f"Expected `threads` beside OpenVINO. Received: {threads} for Keras, whose threads belong to the whole process. "
                    "Leave it out."
                )
            choose_order(bundles)
            return cls(bundles, (paths, engine, precision, threads))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).load, self._origin

    def predict(
        self,
        array: np.ndarray,
        affine: np.ndarray | None = None,
        spacing_mm: Sequence[float] | None = None,
        *,
        probabilities: bool = False,
    ) -> Prediction:
        """Predicts a scan that is given as an array, with the same label map as predict.py writes for its file.

        Args:
            array: `(*S)` or `(*S, C)` finite numbers, in the intensities of the scan's file.
            affine: `(4, 4)` from voxel indices to millimetres, RAS+, as nibabel has it. It says how a volume lies and how large a voxel is.
            spacing_mm: The voxel's size along each axis of `S`, in place of an affine. The axes then run to the right, to the front and
                up. A volume needs one of the two; a slice needs none.
            probabilities: Whether to keep the probabilities of all classes.

        Raises:
            InputError: If the array does not fit the model, or has NaN, or its place in the world is missing or wrong.
            PredictionError: If the model cannot compute it.
        """
        with translate(InputError):
            image = to_volume(array, affine, spacing_mm, self.spatial_dims)
        return self._predict(Case("array", "array", (Path("the array"),)), image, probabilities)

    def predict_file(self, path: PathLike | Sequence[PathLike], *, series: str = "", probabilities: bool = False) -> Prediction:
        """Predicts a file or a DICOM folder, with the same label map as predict.py writes for it.

        Args:
            path: A file of any format that predict.py reads, or a folder of one DICOM series; or one for each channel. Their names say
                which is which, as for predict.py, else their order does.
            series: UID, number or description of the DICOM series, where a folder has several.
            probabilities: Whether to keep the probabilities of all classes.

        Raises:
            InputError: If it cannot be read, does not fit the model, or holds several scans.
            PredictionError: If the model cannot compute it.
            MissingPackageError: If the format needs a package that is not installed.
        """
        with translate(InputError):
            case = self._find_case(path, series)
            image, _ = read_case(case, self._bundles[0])
        return self._predict(case, image, probabilities)

    def save_file(
        self,
        path: PathLike | Sequence[PathLike],
        folder: PathLike,
        *,
        series: str = "",
        max_bytes: int = 0,
        on_batch: Callable[[int], None] = lambda number: None,
    ) -> Saved:
        """Predicts a file or a DICOM folder, and writes the label map that predict.py writes: in the scan's own format and values.

        Args:
            path: As in `predict_file`.
            folder: Where to write `<scan>_prediction` with the scan's suffix.
            series: As in `predict_file`.
            max_bytes: The most memory that reading the scan and bringing it to the model's grid may take, by its header; 0 for no bound.
            on_batch: A function called after each batch with the number of its windows. What it raises ends the prediction.

        Raises:
            TooLargeError: If the scan takes more than `max_bytes`.
            InputError, PredictionError, MissingPackageError: As in `predict_file`.
        """
        begun, first = time.perf_counter(), self._bundles[0]
        with translate(InputError):
            case = self._find_case(path, series)
            if max_bytes:
                _check_memory(case, self._bundles, max_bytes)
            image, _ = read_case(case, first)
            self._check_image(case, image)
        predicted = self._compute(case, image, PredictionOptions(on_batch=on_batch))
        label = Path(folder) / f"{case.case_id}_prediction{name_result_suffix(case.image_paths[0])}"
        with translate(PredictionError):
            write_maps(predicted, first, {"prediction": label}, {})
        result = make_result(predicted, self._bundles, time.perf_counter() - begun)
        return Saved(label, result, Departures(self._bundles).find(image))

    def evaluate(self, images: PathLike | Sequence[PathLike], labels: PathLike, *, series: str = "") -> Evaluation:
        """Predicts scans and scores them against reference labels, as `predict.py --labels` does. It writes no file.

        Args:
            images: Files, folders or globs.
            labels: The folder of the reference labels. Each scan needs one.
            series: UID, number or description of the DICOM series, where a folder has several.

        Raises:
            InputError: If a scan or its label is missing, cannot be read, or does not fit the model.
            PredictionError: If the model cannot compute a scan.
            MissingPackageError: If a package is not installed; distances need SciPy.
        """
        # The catalogue lies above all other rooms, so it waits until somebody needs its names of labels.
        from dataset import DATASETS

        with translate(InputError), self._take_turn():
            cases = self._find_cases(_list_paths(images), series, [spec.label_rule for spec in DATASETS.values()], Path(labels))
            first = self._bundles[0]
            scores = list(scoring.score_predictions(predict_cases(self._bundles, cases), first.class_names, first.regions))
            return Evaluation(scores, score_tables.summarise(scores))

    def _find_cases(self, paths: Sequence[str], series: str, rules: Sequence[LabelRule] = (), labels: Path | None = None) -> list[Case]:
        """Finds the scans as predict.py does; raises an error for the first that cannot be used."""
        found = find_images(paths, rules, series, self.channels)
        cases, failures = make_cases(found.images, labels, self._bundles[0])
        for error in (*found.failures, *failures):
            raise error
        return cases

    def _find_case(self, path: PathLike | Sequence[PathLike], series: str) -> Case:
        paths = _list_paths(path)
        cases = self._find_cases(paths, series)
        if len(cases) == len(paths) == len(self.channels) > 1:
            # The names do not say which file is which channel, so the order does.
            alone = [case for one in paths for case in self._find_cases([one], series)]
            files = tuple(file for case in alone for file in case.image_paths)
            cases = [replace(alone[0], image_paths=files, series=tuple(uid for case in alone for uid in case.series or ("",)))]
        if len(cases) != 1:
            names = ", ".join(str(case.image_paths[0]) for case in cases[:3]) + (", ..." if len(cases) > 3 else "")
            raise ValueError(f"Expected one scan. Received: {len(cases)}, {names}. Call this once for each.")
        return cases[0]

    def _predict(self, case: Case, image: Volume, probabilities: bool) -> Prediction:
        with translate(InputError):
            self._check_image(case, image)
            Departures(self._bundles).check(case, image)
        predicted = self._compute(case, image, PredictionOptions(), keep_probabilities=probabilities)
        sizes = measure_sizes(predicted.prediction, self.class_names, self._bundles[0].regions, predicted.image.spacing_mm)
        volumes_ml = {name: math.nan if size.ml is None else size.ml for name, size in sizes.items()}
        return Prediction(predicted.prediction, predicted.probabilities, volumes_ml)

    def _check_image(self, case: Case, image: Volume) -> None:
        for bundle in self._bundles:
            bundle.check_image(image, str(case.image_paths[0]))

    def _compute(self, case: Case, image: Volume, options: PredictionOptions, *, keep_probabilities: bool = False) -> Predicted:
        with translate(PredictionError), self._take_turn():
            return predict_read(self._bundles, case, image, options, keep_probabilities=keep_probabilities)

    @contextmanager
    def _take_turn(self) -> Generator[None, None, None]:
        """Lets this thread compute; raises PredictionError in a process that has the model but not its threads."""
        if os.getpid() != self._process:
            raise PredictionError(
                f"Expected a predictor that this process loaded. Received: one of process {self._process}, forked since. Load it in each "
                "process, or start processes by 'spawn'."
            )
        with self._turn:
            yield


def evaluate(
    model: PathLike | Sequence[PathLike],
    images: PathLike | Sequence[PathLike],
    labels: PathLike,
    *,
    series: str = "",
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Evaluation:
    """Loads a model, predicts scans and scores them; see `Predictor.load` and `Predictor.evaluate`, whose errors it raises too."""
    return Predictor.load(model, engine, precision, threads).evaluate(images, labels, series=series)


def _list_paths(paths: PathLike | Sequence[PathLike]) -> list[str]:
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths) if isinstance(paths, Iterable) else [paths]
    for path in listed:
        if not isinstance(path, str | os.PathLike):
            raise ValueError(f"Expected a path, or several. Received: {paths!r}. Give it as a text or as `pathlib.Path`.")
    return [os.fspath(path) for path in listed]


def _check_memory(case: Case, bundles: Sequence[ModelBundle], most: int) -> None:
    """Raises TooLargeError if by its header a scan takes more bytes than `most` to be read and brought to the models' grids."""
    _, needed = estimate_reading(case, bundles)
    files = list(zip(case.image_paths, case.series or ("",) * len(case.image_paths), strict=True))
    shapes = [read_grid(path, series).array.shape for path, series in files if suffix_of(path) not in PICTURE_SUFFIXES]
    # A number of a file has 8 bytes at most, and becomes one of 4.
    needed = max(needed, sum(12 * math.prod(shape) for shape in shapes))
    if needed > most:
        raise TooLargeError(
            f"Expected a scan that takes {most >> 20:,} MiB of memory or less. Received: {case.image_paths[0]}, whose header promises "
            f"{'x'.join(map(str, shapes[0]))} numbers, for {needed >> 20:,} MiB on the model's grid. Crop or resample it."
        )
