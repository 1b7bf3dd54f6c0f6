"""The settings of a training: one field each, with its help and its only default. Flags and presets follow from these fields."""

import ast
import difflib
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from modules.data.class_tables import is_class_table
from modules.data.documents import shorten, to_line
from modules.data.draws import AUGMENTATIONS
from modules.data.files import LEAST_MM, MOST_MM
from modules.data.folder_set import MODALITIES, Wishes
from modules.data.patches import PLANES, SAMPLINGS
from modules.data.preprocess import INTENSITIES, INTERPOLATIONS
from modules.data.subjects import check_subjects, is_table
from modules.devices import PRECISIONS
from modules.model.loss_spec import parse_loss
from modules.networks import NETWORKS, Option, list_options

MODULES = Path(__file__).parents[1]
PRESETS = {path.stem: path for path in sorted((MODULES / "presets").glob("[a-z]*.toml"))}
# We read the names from the source. Importing the module would import Keras, for which `--help` must not wait.
LOSSES = tuple(
    node.name
    for node in ast.parse((MODULES / "model" / "losses.py").read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
)
# Importing these would import Keras too. A test compares them with the modules' own.
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "cosine_restarts", "polynomial")
MODES = ("slice", "volume", "patch")
CLASS_WEIGHTS = ("none", "balanced")
RESAMPLING = ("median", "none")
# A sample of more cannot be held by any machine with the network's features.
MOST_VOXELS = 1 << 31
POSTPROCESSINGS = ("learn", "none")
KEPT = ("best", "last")
RESIDENT = ("auto", "yes", "no")
PREDICT_PRECISIONS = ("auto", "float32")
PREDICT_MIRRORS = ("try", "never")
PREDICT_QUALITIES = ("learn", "none")
TRACKERS = ("none", "mlflow", "tensorboard")
# Settings that say where something lies. They affect no result, so a run may have moved; hashes decide whether the data are its own.
# A table of subjects, cases or classes may have moved too: what follows from it must be what the run began with.
# The samples are the same wherever the training cases lie, and the weights differ in their last bits at most.
PLACES = ("data", "cases", "classes", "cache", "runs", "subjects", "resident")
# Settings of these that may be a table or say the thing themselves.
EITHER_TABLE = ("classes", "subjects")

# Keras and NumPy take no larger seed.
_MOST_SEED = 2**32 - 1

# {option: {network: the network's own form of the option}}
NETWORK_OPTIONS: dict[str, dict[str, Option]] = {}
for _network in NETWORKS:
    for _option in list_options(_network):
        NETWORK_OPTIONS.setdefault(_option.name, {})[_network] = _option


def _setting(default: Any = MISSING, help: str = "", choices: Sequence[str] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """All settings of a training. An empty value, or None, leaves the choice to `modules.run.plan.make_plan`."""

    dataset: str = _setting(help="data set to train on")
    data: str = _setting("", help="folder of the data set (default $MRI_DATA/<dataset>, or data/<dataset>)")
    cases: str = _setting("", help="table of the cases of --dataset folder: image (or image_0, ...), label, subject, split; .csv or .tsv")
    classes: tuple[str, ...] = _setting(
        (), help="classes of --dataset folder: names in the order of their label values, VALUE=NAME for each, or a table of them"
    )
    modality: str = _setting("", help="kind of scans of --dataset folder; CT: Hounsfield units are kept comparable", choices=MODALITIES)
    demo: bool = _setting(False, help="draw a phantom in the layout of the data set and train on it")
    target: tuple[str, ...] = _setting((), help="classes to find, all others being background (default every class)")
    validate_fraction: float = _setting(0.1, help="fraction of subjects for validation, where the data set has no such split")
    test_fraction: float = _setting(0.1, help="fraction of subjects for test, where the data set has no such split")
    subjects: str = _setting("", help="who was scanned: a regular expression whose first group is the subject, or a .csv of case,subject")
    ignore_geometry: bool = _setting(False, help="use labels voxel by voxel, even where their headers say that they lie elsewhere")
    mode: str = _setting("", help="kind of sample: a slice, a whole volume at a fixed size, or a patch of a volume", choices=MODES)
    shape: tuple[int, ...] = _setting((), help="size of a sample (default the data set's own, or one that fits its scans)")
    plane: str = _setting(
        "",
        help="plane of slices of volumes (default the data set's own, across the long side of flat voxels, or axial)",
        choices=tuple(PLANES),
    )
    spacing: tuple[float, ...] = _setting((), help="mm a voxel to resample volumes to, along right, anterior, superior")
    resample: str = _setting("", help="grid of volumes: the median voxel size, or their own", choices=RESAMPLING)
    interpolation: str = _setting("linear", help="interpolation of images that are resampled", choices=tuple(INTERPOLATIONS))
    intensity: str = _setting("", help="normalisation of intensities; own: the data set's documented one", choices=(*INTENSITIES, "own"))
    crop: str = _setting(
        "", help="foreground: cut off dark margins; own: as the data set documents it", choices=("foreground", "none", "own")
    )
    sampling: str = _setting("", help="places that patches and slices are drawn from", choices=SAMPLINGS)
    patches_per_case: int | None = _setting(None, help="patches drawn from each volume an epoch, where --epochs is given (default 8)")
    class_probabilities: tuple[float, ...] = _setting((), help="share of each class in weighted sampling (default equal)")
    network: str = _setting("", help="architecture", choices=NETWORKS)
    init: str = _setting("", help="run or bundle to begin from: its weights that fit, its kind of sample, a tenth of the learning rate")
    loss: str = _setting("", help=f"{', '.join(LOSSES)}, or a weighted sum such as dice:1+focal:0.5")
    class_weights: str = _setting("none", help="class weights of the loss; balanced: rare classes weigh more", choices=CLASS_WEIGHTS)
    batch_dice: bool | None = _setting(None, help="sum overlaps over the whole batch, not over each sample")
    augment: str = _setting("", help="random changes of training samples; synthetic: other contrasts too", choices=tuple(AUGMENTATIONS))
    minutes: float | None = _setting(None, help="time for the whole command; the plan follows it (default 60 on a CPU, unless --epochs)")
    epochs: int | None = _setting(None, help="most epochs to train, in place of a time: passes over the training cases")
    batch_size: int | None = _setting(None, help="samples a step")
    deep_supervision: bool | None = _setting(
        None, help="add losses at the decoder's lower resolutions, with weights 1, 1/2, 1/4, ... (U-Nets)"
    )
    optimizer: str = _setting("", help="adamw: decoupled weight decay; sgd: Nesterov momentum 0.99", choices=OPTIMIZERS)
    learning_rate: float | None = _setting(None, help="highest learning rate of the schedule")
    schedule: str = _setting("", help="schedule of the learning rate, down to 0 at the last epoch unless constant", choices=SCHEDULES)
    warmup_epochs: int | None = _setting(None, help="epochs in which the learning rate rises first")
    cycles: int = _setting(3, help="number of cycles of the schedule cosine_restarts")
    weight_decay: float | None = _setting(
        None, help="strength of weight decay: decoupled for adamw, else a penalty on the squared weights (L2)"
    )
    clip_norm: float | None = _setting(None, help="largest norm of the gradient; 0 for no limit")
    accumulate: int = _setting(1, help="number of batches whose gradients make one update")
    ema: float | None = _setting(
        None, help="momentum of an average of the weights, which is validated and saved in their place; 0 for none"
    )
    precision: str = _setting("auto", help="precision of the network's layers; auto: bfloat16 where it is faster", choices=PRECISIONS)
    resident: str = _setting(
        "auto", help="keep all training cases in the device's memory; auto: on a GPU where they fit, except on TensorFlow", choices=RESIDENT
    )
    deterministic: bool = _setting(False, help="make a training repeatable bit for bit on a GPU too, where that is slower")
    patience: int | None = _setting(None, help="epochs without a better validation Dice before stopping; 0 never stops early")
    keep: str = _setting("", help="epoch whose model is kept: the best by validation Dice, or the last", choices=KEPT)
    stop_at_dice: float = _setting(0.0, help="stop once the validation Dice of every class reaches this; 0 never does")
    postprocess: str = _setting("learn", help="steps after a prediction; learn: what raises the validation Dice", choices=POSTPROCESSINGS)
    tolerance_mm: tuple[float, ...] = _setting(
        (), help="distance that the normalised surface Dice tolerates: one, or one a class (default the size of a voxel)"
    )
    predict_precision: str = _setting(
        "auto", help="precision of predictions on a CPU; auto: bfloat16 where the validation Dice stays", choices=PREDICT_PRECISIONS
    )
    predict_mirror: str = _setting(
        "", help="predictions that average over flips; try: kept where they raise the validation Dice", choices=PREDICT_MIRRORS
    )
    predict_quality: str = _setting(
        "learn", help="judgement of predictions; learn: from validation cases and damaged copies of them", choices=PREDICT_QUALITIES
    )
    folds: int = _setting(0, help="cross-validate with this many folds, so that each subject is tested once; 0 for none")
    fold: int | None = _setting(None, help="train and score only this fold, from 0")
    modes: tuple[str, ...] = _setting(
        (), help="kinds of sample to train in every fold; the best one or pair of them becomes the run's model", choices=MODES
    )
    average_last: float = _setting(0.0, help="share of the last epochs whose average of the weights may become the best model; 0 for none")
    seed: int = _setting(42, help="seed of weights, splits, order and every random draw")
    checkpoint_minutes: float = _setting(10.0, help="most minutes between two checkpoints; each epoch ends with one too")
    track: str = _setting("none", help="tracker that logs the run besides its folder", choices=TRACKERS)
    name: str = _setting("", help="name of the run (default data set, network and time)")
    runs: str = _setting("runs", help="folder of the runs")
    cache: str = _setting("cache", help="folder of the cache of decoded cases")
    network_options: Mapping[str, Any] = field(default_factory=dict, metadata={"help": "options of the network by name"})

    def __post_init__(self) -> None:
        for name, value in self.to_json().items():
            numbers = [number for number in (value if isinstance(value, tuple) else (value,)) if isinstance(number, float)]
            # A checkpoint may be so rare that it never comes.
            if any(math.isnan(number) or (math.isinf(number) and name != "checkpoint_minutes") for number in numbers):
                raise ValueError(f"Expected a finite `{name}`. Received: {value}.")
        above = ("epochs", "minutes", "batch_size", "learning_rate", "patches_per_case", "cycles", "accumulate", "checkpoint_minutes")
        for name in above:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"Expected `{name}` above 0. Received: {getattr(self, name)}.")
        for name in ("weight_decay", "patience", "seed", "warmup_epochs", "clip_norm"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise ValueError(f"Expected `{name}` of 0 or more. Received: {getattr(self, name)}.")
        if self.seed > _MOST_SEED:
            raise ValueError(f"Expected `seed` up to {_MOST_SEED}. Received: {self.seed}.")
        for name in ("validate_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"Expected `{name}` between 0 and 1. Received: {getattr(self, name)}.")
        if self.minutes and self.epochs:
            raise ValueError(f"Expected either `minutes` or `epochs`. Received: {self.minutes:g} and {self.epochs}. Leave one out.")
        self._check_sizes()
        check_subjects(self.subjects)
        if self.loss:
            parse_loss(self.loss, LOSSES)
        if not 0 <= self.stop_at_dice <= 1:
            raise ValueError(f"Expected `stop_at_dice` from 0 to 1. Received: {self.stop_at_dice}.")
        if self.keep == "last" and (self.patience or self.stop_at_dice):
            other = f"patience {self.patience}" if self.patience else f"stop_at_dice {self.stop_at_dice:g}"
            raise ValueError(f"Expected `keep` best beside {other}, which follows the validation Dice. Received: last. Leave one out.")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"Expected `ema` from 0 to below 1. Received: {self.ema}.")
        if self.warmup_epochs and self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(f"Expected `warmup_epochs` below the {self.epochs} epochs. Received: {self.warmup_epochs}.")
        if self.folds == 1 or self.folds < 0:
            raise ValueError(f"Expected `folds` of 2 or more, or 0 for none. Received: {self.folds}.")
        if self.fold is not None and not self.folds:
            raise ValueError(f"Expected `folds` beside `fold`. Received: fold {self.fold} alone. Say how many with `--folds`.")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise ValueError(f"Expected `fold` from 0 to below `folds`, {self.folds}. Received: {self.fold}.")
        self._check_modes()
        if not 0 <= self.average_last <= 1:
            raise ValueError(f"Expected `average_last` from 0 to 1. Received: {self.average_last}.")
        if self.class_probabilities and (min(self.class_probabilities) < 0 or not sum(self.class_probabilities) > 0):
            raise ValueError(f"Expected `class_probabilities` of 0 or more, not all 0. Received: {self.class_probabilities}.")
        for name in ("data", "cases"):
            if self.demo and getattr(self, name):
                raise ValueError(f"Expected either `demo` or `{name}`. Received: both, {name} {getattr(self, name)!r}. Leave one out.")

    def _check_modes(self) -> None:
        listed = f"--modes {' '.join(self.modes)}"
        if len(set(self.modes)) < len(self.modes):
            raise ValueError(f"Expected `modes` each once. Received: {listed}. Leave the repeated one out.")
        if self.modes and (self.mode or self.fold is not None):
            other = f"--mode {self.mode}" if self.mode else f"--fold {self.fold}"
            raise ValueError(f"Expected either --modes or {other}. Received: both. Train single folds by --mode, and join them by --merge.")
        if self.modes and self.init:
            raise ValueError(f"Expected one mode beside --init, that of its model. Received: {listed}. Leave one of the flags out.")
        if self.modes and not self.folds:
            raise ValueError(f"Expected `folds` beside `modes`. Received: {listed} alone. Say how many with `--folds`.")

    def _check_sizes(self) -> None:
        for name in ("shape", "spacing", "tolerance_mm"):
            value = getattr(self, name)
            if value and not min(value) > 0:
                flag = f"--{name} {' '.join(f'{size:g}' for size in value)}"
                raise ValueError(f"Expected `{name}` of numbers above 0. Received: {flag}. Leave it out, or give the size along each axis.")
        if self.spacing and not (min(self.spacing) >= LEAST_MM and max(self.spacing) <= MOST_MM):
            raise ValueError(f"Expected `spacing` of {LEAST_MM:g} to {MOST_MM:g} mm. Received: {self.spacing}. Give mm.")
        if math.prod(self.shape) > MOST_VOXELS:
            raise ValueError(f"Expected `shape` of at most {MOST_VOXELS:,} voxels. Received: {self.shape}. Choose smaller sizes.")

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as plain values for `run.json`, the network's options beside the others."""
        values = asdict(self)
        return values | values.pop("network_options")

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str) -> "Settings":
        """Makes settings from a preset, flags or a `run.json`.

        Raises:
            ValueError: For unknown keys and wrong types, naming `source`.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"Expected settings by name in {source}. Received: {shorten(values)}. Start the run anew.")
        known = {item.name for item in fields(cls)} - {"network_options"}
        if "dataset" not in values:
            raise ValueError(f"Expected `dataset` among the settings in {source}. Received: none. Name one, or start the run anew.")
        own, options = {}, {}
        for key, value in values.items():
            if key not in known and key not in NETWORK_OPTIONS:
                names = (*(item.name for item in fields(cls) if item.name in known), *NETWORK_OPTIONS)
                alike = difflib.get_close_matches(str(key)[:40], names, 1)
                hint = f" Did you mean {alike[0]!r}?" if alike else ""
                raise ValueError(f"Expected settings in {names}. Received: {shorten(key)} in {source}.{hint}")
            kind, many, optional = find_kind(key)
            items = list(value) if many and isinstance(value, list | tuple) else [value]
            for item in items:
                whole_as_float = kind is float and type(item) is int
                if not (type(item) is kind or whole_as_float or (optional and item is None)):
                    raise ValueError(f"Expected `{key}` of type {kind.__name__}. Received: {shorten(value)} in {source}.")
            _check_choice(key, items, source)
            (own if key in known else options)[key] = tuple(items) if many else value
        return cls(**own, network_options=options)

    def is_open(self, name: str) -> bool:
        """Returns whether a setting leaves its choice to the plan."""
        return getattr(self, name) in (None, "", "auto")

    def fill(self, values: Mapping[str, Any]) -> "Settings":
        """Returns these settings with `values`, by name, in place of those that are open. Options of the network are added."""
        own = {name: value for name, value in values.items() if name not in NETWORK_OPTIONS and self.is_open(name)}
        options = {name: value for name, value in values.items() if name in NETWORK_OPTIONS}
        given = {name: value for name, value in self.network_options.items() if value is not None}
        # A time has become a number of epochs.
        minutes = {"minutes": None} if own.get("epochs") else {}
        return replace(self, **own, **minutes, network_options=options | given)

    def data_folder(self) -> Path:
        """Returns the data set's folder: the phantom's, `--data`, the folder of `--cases`, `$MRI_DATA/<dataset>` or `data/<dataset>`."""
        if self.demo:
            other = "" if self.seed == Settings.seed else f"-seed{self.seed}"
            return Path("data") / f"{self.dataset}-phantom{other}"
        if self.cases and not self.data:
            return Path(self.cases).parent
        return Path(self.data) if self.data else default_data_folder(self.dataset)

    def tell_wishes(self) -> Wishes:
        """Returns what the user says about a folder that nobody described."""
        return Wishes(self.cases, self.classes, self.modality, self.subjects, Path(self.cache))


def may_differ(name: str, one: Any, other: Any) -> bool:
    """Returns whether a run may go on, or folds be merged, with two values of a setting: equal ones, places, and tables of one kind."""
    if name in EITHER_TABLE:
        return one == other or (_names_table(one) and _names_table(other))
    return name in PLACES or one == other


def _names_table(value: Any) -> bool:
    return is_table(value) if isinstance(value, str) else is_class_table(value)


def default_data_folder(dataset: str) -> Path:
    """Returns `$MRI_DATA/<dataset>`, or `data/<dataset>` where that variable is not set."""
    return Path(os.environ.get("MRI_DATA", "data")) / dataset


def _check_choice(name: str, items: Sequence[Any], source: str) -> None:
    """Checks values that flags would check by themselves; raises ValueError, naming `source`, for one that is no choice."""
    for item in fields(Settings):
        choices: Sequence[str] = (item.metadata.get("choices") or ()) if item.name == name else ()
        for value in items if choices else ():
            if value != item.default and value not in choices:
                raise ValueError(f"Expected `{name}` in {tuple(choices)}. Received: {shorten(value)} in {source}.")


def find_kind(name: str) -> tuple[type, bool, bool]:
    """Returns a setting's plain type, whether it takes several values, and whether it may be None."""
    if name in NETWORK_OPTIONS:
        return next(iter(NETWORK_OPTIONS[name].values())).kind, False, True
    hint = typing.get_type_hints(Settings)[name]
    if isinstance(hint, types.UnionType):
        return typing.get_args(hint)[0], False, True
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True, False
    return hint, False, False


def read_preset(name: str) -> dict[str, Any]:
    """Reads the settings of a preset by name; raises ValueError for an unknown name or a wrong setting.

    A preset leaves no choice to the plan that would alter its documented result: what it does not say, `presets/_shared.toml` says.
    """
    if name not in PRESETS:
        raise ValueError(f"Expected --preset in {tuple(PRESETS)}. Received: {name!r}.")
    values: dict[str, Any] = {}
    for path in (MODULES / "presets" / "_shared.toml", PRESETS[name]):
        try:
            own = tomllib.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Expected TOML in {path}. Received: {to_line(error)}. Correct the file.") from error
        Settings.from_json({"dataset": "", **own}, path.name)
        values |= own
    return values
