"""The folder of a trained model: the model with its preprocessing, classes and origin. Training writes it, prediction reads it."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import modules
from modules.data.case import LabelRule, Volume
from modules.data.documents import read_json, shorten
from modules.data.files import TEMPORARY, hash_file, name_failure, replace_file
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.data.ranges import TrainingRanges
from modules.data.regions import Region
from modules.predict import engines, schema
from modules.predict.postprocess import NOTHING, Postprocessing
from modules.predict.schema import DESCRIPTION_FILE, MODEL_FILE

FORMAT = 8
INTENDED_USE = "Research and teaching. Not a medical device: its label maps must not guide the care of a patient."


@dataclass(frozen=True)
class ModelBundle:
    """A trained model with all that prediction needs. Its folder holds `model.keras`, `bundle.json` and, once converted, OpenVINO's files.

    Attributes:
        model: A `keras.Model`, or a stand-in with the same `predict_on_batch`, see `engine`. It turns `(B, *P, C)` into probabilities
            `(B, *P, K)`, or `(B, *P, 1)` for a binary task. With regions it gives one probability a region.
        preprocessing: The preprocessing that the model expects of its input.
        window: The window that the model sees at once.
        class_names: Names of all classes, the background first.
        channels: Names of the image channels, in order.
        label_rule: The rule by which label files store the classes, for scoring and for writing.
        regions: What each class but the background consists of, where classes overlap; else nothing. `label_rule` then has their parts.
        mirrored_labels: Pairs of class indices that trade places when left and right are flipped.
        flipped_axes: Axes of `window.deep` along which the training flipped its samples; None where nobody wrote it down. A
            prediction is mirrored along these alone.
        mirror: Whether predictions average over flips unless the user says otherwise; the validation decided it.
        trained: What the training cases measured; None where nobody wrote it down. A prediction tells of scans that leave it.
        postprocessing: The steps that every label map of the model goes through.
        precision: The precision that predictions on a CPU were decided to compute in, "float32" or "bfloat16".
        provenance: Data set, seed, versions and scores. No prediction reads them.
        engine: The engine that computes the model, "keras" or "openvino". It is chosen on loading and is not saved.
        computed_in: The precision that this engine computes in on this machine, chosen and not saved either.
    """

    model: Any
    preprocessing: Preprocessing
    window: Window
    class_names: tuple[str, ...]
    channels: tuple[str, ...]
    label_rule: LabelRule
    regions: tuple[Region, ...] = ()
    mirrored_labels: tuple[tuple[int, int], ...] = ()
    flipped_axes: tuple[int, ...] | None = None
    mirror: bool = False
    trained: TrainingRanges | None = None
    postprocessing: Postprocessing = NOTHING
    precision: str = "float32"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "keras"
    computed_in: str = "float32"

    def __post_init__(self) -> None:
        # A slice larger than the window was cropped for the training; a prediction lays windows over all of it.
        if not self.preprocessing.resize:
            object.__setattr__(self, "preprocessing", replace(self.preprocessing, shape=()))

    @property
    def num_maps(self) -> int:
        """Number of probabilities of a voxel: one a class with the background, or one a region."""
        return len(self.regions) or len(self.class_names)

    def check_image(self, image: Volume, name: str) -> None:
        """Raises ValueError, naming the file `name`, for an image that is not of the model's kind."""
        self.preprocessing.check(image, self.channels, name)

    def save(self, folder: Path) -> None:
        """Writes the bundle without OpenVINO's files; `folder` is replaced whole, never half.

        Raises:
            ValueError: If the bundle was loaded without its Keras model.
        """
        if self.engine != "keras":
            raise ValueError(f"Expected a bundle with its Keras model to save. Received: one loaded for {self.engine}. Load it for keras.")
        folder = recover(Path(folder))
        temporary, old = folder.with_name(f"{TEMPORARY}{folder.name}.new"), _name_aside(folder)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        with name_failure(folder / MODEL_FILE):
            self.model.save(temporary / MODEL_FILE)
        rule = asdict(self.label_rule)
        description = {
            "format": FORMAT,
            "version": modules.__version__,
            "preprocessing": asdict(self.preprocessing),
            "window": self.window.sizes,
            "class_names": self.class_names,
            "channels": self.channels,
            "label_rule": rule | {"values": {str(value): index for value, index in self.label_rule.values.items()}},
            "regions": [region._asdict() for region in self.regions],
            "mirrored_labels": self.mirrored_labels,
            "flipped_axes": self.flipped_axes,
            "mirror": self.mirror,
            "trained": None if self.trained is None else self.trained.to_json(),
            "postprocessing": self.postprocessing.to_json(),
            "precision": self.precision,
            "provenance": dict(self.provenance),
            "intended_use": INTENDED_USE,
            "files_sha256": {MODEL_FILE: hash_file(temporary / MODEL_FILE)},
        }
        write_description(temporary, description)
        while not _put_in_place(temporary, folder, old):
            pass
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, engine: str = "auto", precision: str = "auto", threads: int = 0) -> "ModelBundle":
        """Reads a bundle. It runs no code from the file, and imports Keras only where Keras is the engine.

        Args:
            folder: A bundle, or a run that contains one.
            engine: One of `engines.ENGINES`, see `engines.choose_engine`. Only "keras" is sure to give a `keras.Model`.
            precision: One of `engines.PRECISIONS`, see `engines.choose_precision`.
            threads: Threads that the engine may use on a CPU, see `engines.load_model`; 0 for as many as it likes.

        Raises:
            FileNotFoundError: If there is no bundle.
            ValueError: If a file was cut or altered since it was saved, or is of another format. Also if its fields contradict one
                another or the model, or if the engine or the precision is not available.
        """
        folder = find_bundle(folder)
        description = read_description(folder)
        present = schema.check_files(folder, description["files_sha256"])
        for name in present:
            if hash_file(folder / name) != description["files_sha256"][name]:
                raise ValueError(
                    f"Expected {folder / name} as it was saved. Received: a file cut or altered since. Train or copy it again."
                )
        engine = engines.choose_engine(engine, folder, set(engines.OPENVINO_FILES) <= set(present))
        computed_in = engines.choose_precision(precision, description["precision"], engine)
        rule = _to_tuples(description["label_rule"])
        # JSON has only texts as keys.
        rule["values"] = {int(value): index for value, index in rule["values"].items()}
        if engine == "keras":
            schema.check_archive(folder / MODEL_FILE)
        model = engines.load_model(engine, folder, MODEL_FILE, computed_in, threads)
        path = folder / (MODEL_FILE if engine == "keras" else engines.OPENVINO_FILES[0])
        schema.check_model(model, description["window"], len(description["channels"]), schema.count_outputs(description), path)
        return cls(
            model=model,
            preprocessing=Preprocessing(**_to_tuples(description["preprocessing"])),
            window=Window(tuple(description["window"])),
            class_names=tuple(description["class_names"]),
            channels=tuple(description["channels"]),
            label_rule=LabelRule(**rule),
            regions=tuple(Region(tuple(region["parts"]), region["painted"]) for region in description["regions"]),
            mirrored_labels=tuple((first, second) for first, second in description["mirrored_labels"]),
            flipped_axes=None if description["flipped_axes"] is None else tuple(description["flipped_axes"]),
            mirror=description["mirror"],
            trained=None if description["trained"] is None else TrainingRanges.from_json(description["trained"]),
            postprocessing=Postprocessing.from_json(description["postprocessing"]),
            precision=description["precision"],
            provenance=description["provenance"],
            engine=engine,
            computed_in=computed_in,
        )


def find_bundle(folder: Path) -> Path:
    """Finds the folder of a bundle, given that folder or the run that contains it.

    Raises:
        FileNotFoundError: If there is no bundle.
    """
    folder = Path(folder)
    # `.` and `..` have no names of their own, beside which an earlier bundle could lie.
    folder = recover(folder.resolve() if folder.name in ("", "..") else folder)
    if recover(folder / "bundle").is_dir():
        folder = folder / "bundle"
    for name in (DESCRIPTION_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"Expected a trained model in {folder}. Received: no {name} there. Give a finished run.")
    return folder


def identify(folder: Path) -> str:
    """Returns a hash that tells a bundle from others: that of its description, which holds the hashes of its files."""
    return hash_file(find_bundle(folder) / DESCRIPTION_FILE)


def read_channels(folder: Path) -> tuple[str, ...]:
    """Reads the names of a model's channels without loading it; raises as `ModelBundle.load`."""
    return tuple(read_description(find_bundle(folder))["channels"])


def copy_bundle(source: Path, target: Path) -> None:
    """Copies a bundle into a new folder, without OpenVINO's files; `source` is the bundle, or the run that contains it."""
    source = find_bundle(source)
    target.mkdir()
    for name in (DESCRIPTION_FILE, MODEL_FILE):
        with name_failure(target / name):
            shutil.copyfile(source / name, target / name)


def recover(folder: Path) -> Path:
    """Brings back a bundle that `save` had moved aside when the run was killed between its two renames."""
    old = _name_aside(folder)
    if old.is_dir() and not folder.exists():
        try:
            old.rename(folder)
        except OSError:
            # A training put its new bundle there in this very moment.
            if not folder.exists():
                raise
    return folder


def _put_in_place(new: Path, folder: Path, old: Path) -> bool:
    """Renames `new` to `folder`, and what is there to `old`; False where another process brought `old` back meanwhile."""
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        return False
    return True


def _name_aside(folder: Path) -> Path:
    """Names the place of a bundle while `save` puts a new one in its place, from where `recover` brings it back."""
    return folder.with_name(f"{TEMPORARY}{folder.name}.old")


def add_provenance(folder: Path, **values: Any) -> None:
    """Adds to the provenance of a saved bundle; `folder` is the bundle, or the run that contains it."""
    folder = find_bundle(folder)
    description = read_description(folder)
    write_description(folder, description | {"provenance": description["provenance"] | values})


def set_postprocessing(folder: Path, postprocessing: Postprocessing) -> None:
    """Sets the postprocessing of a saved bundle; `folder` is the bundle, or the run that contains it."""
    folder = find_bundle(folder)
    write_description(folder, read_description(folder) | {"postprocessing": postprocessing.to_json()})


def set_precision(folder: Path, precision: str, reason: Mapping[str, Any] | None = None) -> None:
    """Sets the precision that a saved bundle predicts in on a CPU; `folder` is the bundle, or the run that contains it.

    Args:
        folder: The folder.
        precision: "float32" or "bfloat16".
        reason: What decided about it, as plain values for the provenance; None where nothing did.
    """
    folder = find_bundle(folder)
    description = read_description(folder)
    provenance = description["provenance"] | ({"prediction_precision": reason} if reason else {})
    write_description(folder, description | {"precision": precision, "provenance": provenance})


def set_mirror(folder: Path, mirror: bool) -> None:
    """Sets whether a saved bundle predicts with flips; `folder` is the bundle, or the run that contains it."""
    folder = find_bundle(folder)
    write_description(folder, read_description(folder) | {"mirror": mirror})


def read_description(folder: Path) -> dict[str, Any]:
    """Reads and checks a bundle's description; converts one of an earlier format.

    Raises:
        ValueError: If it was altered, or is of another format.
    """
    path = folder / DESCRIPTION_FILE
    description = read_json(path, schema.REMEDY, schema.MOST_BYTES)
    if not isinstance(description, dict):
        raise ValueError(f"Expected a bundle's description in {path}. Received: {shorten(description)}. {schema.REMEDY}")
    received = description.get("format")
    if received not in (3, 4, 5, 6, 7, FORMAT):
        raise ValueError(
            f"Expected a bundle of `format` 3 to {FORMAT} in {path}. Received: {shorten(received)}. Train it again, or update this program."
        )
    if _hash_description(description) != description.pop("bundle_sha256", None):
        raise ValueError(f"Expected {path} as it was saved. Received: a file altered since. Train or copy it again.")
    if received == 3:
        description = _convert_format_3(description)
    if received != FORMAT:
        description = _convert_old_format(description)
    schema.check_description(description, path)
    return description


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Writes a bundle's description with its own hash, by way of a temporary name."""
    with replace_file(folder / DESCRIPTION_FILE) as temporary:
        hashed = {**description, "bundle_sha256": _hash_description(description)}
        temporary.write_text(json.dumps(hashed, indent=2) + "\n", encoding="utf-8")


def _convert_old_format(description: dict[str, Any]) -> dict[str, Any]:
    """Gives a description of an earlier format what it lacks.

    Format 4 did not say what the training cases measured, and format 5 knew no clip, no postprocessing and no regions. Format 6 always
    predicted in float32, and format 7 without flips.
    """
    preprocessing = description.get("preprocessing")
    if isinstance(preprocessing, dict):
        description |= {"preprocessing": {"clip": [], **preprocessing}}
    return {"trained": None, "postprocessing": [], "regions": [], "precision": "float32", "mirror": False, **description, "format": FORMAT}


def _convert_format_3(description: dict[str, Any]) -> dict[str, Any]:
    """Gives a description of format 3 its label rule, which lay in three places. Labels then have their images' names."""
    provenance = description.get("provenance")
    source = provenance.get("dataset", "") if isinstance(provenance, dict) else ""
    values, output_values = description.pop("label_values", None), description.pop("output_values", None)
    rule = {"values": values, "output_values": output_values, "renames": [], "source": source}
    return description | {"format": FORMAT, "version": "0", "label_rule": rule, "flipped_axes": None}


def _to_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the lists of JSON into tuples, at any depth."""

    def freeze(value: Any) -> Any:
        return tuple(freeze(item) for item in value) if isinstance(value, list) else value

    return {name: freeze(value) for name, value in values.items()}


def _hash_description(description: Mapping[str, Any]) -> str:
    description = {name: value for name, value in description.items() if name != "bundle_sha256"}
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=list).encode()).hexdigest()
