"""The run: its settings and flags, its folder and log, its seed; and how a command reports an error."""

import argparse
import ast
import importlib
import json
import logging
import os
import platform
import subprocess
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dataset import DATASETS, DatasetSpec
from modules.bundle import Settings
from modules.inference import Plan
from modules.loss_spec import parse_loss
from modules.networks import NETWORKS, find_ranks
from modules.patches import PLANES, SAMPLINGS
from modules.pipeline import MODES
from modules.preprocess import INTENSITIES, INTERPOLATIONS, Preprocessing
from modules.volume import replace_file

# TensorFlow's start-up messages say nothing to the user; an error still comes as an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MODULES = Path(__file__).parent / "modules"
PRESETS = {path.stem: path for path in sorted((MODULES / "presets").glob("*.toml"))}
# Read from the source: importing the module would import Keras, and `--help` must not wait for that.
LOSSES = tuple(
    node.name
    for node in ast.parse((MODULES / "losses.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
)
AUGMENTS = ("none", "light", "strong")

CLASS_WEIGHTS = ("none", "balanced")
NETWORK_OPTIONS = (
    "base_filters", "norm", "dropout", "variant", "pretrained", "hidden_size", "mlp_size", "num_layers", "num_heads",
)  # fmt: skip

log = logging.getLogger("mri")
T = typing.TypeVar("T")


def _setting(default: Any = MISSING, help: str = "", choices: Sequence[str] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class RunConfig:
    """Every setting of a training, with its help and its only default; the flags are made from these fields."""

    dataset: str = _setting(help="data set to train on", choices=tuple(DATASETS))
    data: str = _setting("", help="folder of the data set; without it $MRI_DATA/<dataset> or data/<dataset>")
    demo: bool = _setting(False, help="draw a phantom in the data set's layout and train on that")
    target: tuple[str, ...] = _setting((), help="classes to find against all the rest; without it every class")
    validate_fraction: float = _setting(0.1, help="subjects held out for validation where the data set has no such split")
    test_fraction: float = _setting(0.1, help="subjects held out for test where the data set has no such split")
    mode: str = _setting("", help="what a sample is: a slice, a whole volume at a fixed size, or a patch of a volume", choices=MODES)
    shape: tuple[int, ...] = _setting((), help="size of a sample; without it the data set's own, or one that fits its scans")
    plane: str = _setting("", help="which slices of volumes: without it the data set's own, or axial", choices=tuple(PLANES))
    spacing: tuple[float, ...] = _setting((), help="mm to resample volumes to, along right, anterior, superior; without it their own")
    interpolation: str = _setting("linear", help="of images, where they are resampled", choices=tuple(INTERPOLATIONS))
    intensity: str = _setting("", help="normalisation of intensities; without it the data set's own", choices=INTENSITIES)
    crop: str = _setting("", help="whether dark margins are cut off; without it the data set's own", choices=("foreground", "none"))
    sampling: str = _setting("foreground", help="where patches lie", choices=SAMPLINGS)
    patches_per_case: int = _setting(8, help="patches drawn of each volume an epoch")
    class_probabilities: tuple[float, ...] = _setting((), help="of each class, the background first, for weighted sampling (default equal)")
    network: str = _setting("", help="architecture; without it unet2d or unet3d", choices=NETWORKS)
    base_filters: int | None = _setting(None, help="filters of the network's first level")
    norm: str | None = _setting(None, help="normalisation: batch, batch_second, group or instance")
    dropout: float | None = _setting(None, help="dropout rate")
    variant: str | None = _setting(None, help="of efficientnet_unet's encoder: b0 to b3, s, m, l")
    pretrained: bool | None = _setting(None, help="begin efficientnet_unet's encoder with ImageNet weights, which are downloaded")
    hidden_size: int | None = _setting(None, help="of unetr's tokens")
    mlp_size: int | None = _setting(None, help="of unetr's perceptrons")
    num_layers: int | None = _setting(None, help="of unetr's transformer")
    num_heads: int | None = _setting(None, help="of unetr's attention")
    loss: str = _setting("dice_ce", help=f"{', '.join(LOSSES)}, or a weighted sum such as dice:1+focal:0.5")
    class_weights: str = _setting("none", help="of the loss; balanced: the rarer a class, the heavier", choices=CLASS_WEIGHTS)
    batch_dice: bool = _setting(False, help="pool the overlaps of a whole batch, instead of a Dice for each sample")
    augment: str = _setting("none", help="random changes of the training samples, within the step", choices=AUGMENTS)
    epochs: int = _setting(50, help="most epochs to train")
    batch_size: int | None = _setting(None, help="samples a step; without it 16 slices, or 2 volumes or patches")
    learning_rate: float = _setting(1e-3, help="of Adam, at the beginning")
    schedule: str = _setting(
        "cosine", help="of the learning rate: constant, or down to 0 at the last epoch", choices=("constant", "cosine")
    )
    weight_decay: float = _setting(0.0, help="decoupled, of Adam")
    patience: int = _setting(15, help="epochs without a better validation Dice before stopping; 0 never stops early")
    stop_at_dice: float = _setting(0.0, help="stop once the validation Dice of every class reaches this; 0 never does")
    seed: int = _setting(42, help="of weights, split, order and every draw")
    name: str = _setting("", help="name of the run; without it data set, network and time")
    runs: str = _setting("runs", help="folder of the runs")
    cache: str = _setting("cache", help="folder of decoded cases")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "patches_per_case"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"Expected `{name}` above 0. Received: {getattr(self, name)}.")
        for name in ("weight_decay", "patience", "seed", "dropout"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"Expected `{name}` of 0 or more. Received: {getattr(self, name)}.")
        for name in ("validate_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"Expected `{name}` between 0 and 1. Received: {getattr(self, name)}.")
        parse_loss(self.loss, LOSSES)
        if not 0 <= self.stop_at_dice <= 1:
            raise ValueError(f"Expected `stop_at_dice` from 0 to 1. Received: {self.stop_at_dice}.")
        if self.class_probabilities and (min(self.class_probabilities) < 0 or not sum(self.class_probabilities) > 0):
            raise ValueError(f"Expected `class_probabilities` of 0 or more, not all 0. Received: {self.class_probabilities}.")
        if self.demo and self.data:
            raise ValueError(f"Expected either `demo` or `data`. Received: both, data {self.data!r}. Leave one out.")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values for `run.json`."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: dict[str, Any], source: str) -> "RunConfig":
        """Makes a config from a preset or a `run.json`; raises ValueError for unknown keys and wrong types, naming `source`."""
        checked = {}
        for key, value in values.items():
            names = [item.name for item in fields(cls)]
            if key not in names:
                raise ValueError(f"Expected settings in {tuple(names)}. Received: {key!r} in {source}.")
            kind, many, optional = _kind_of(key)
            items = list(value) if many and isinstance(value, list | tuple) else [value]
            for item in items:
                whole_as_float = kind is float and type(item) is int
                if not (type(item) is kind or whole_as_float or (optional and item is None)):
                    raise ValueError(f"Expected `{key}` of type {kind.__name__}. Received: {value!r} in {source}.")
            checked[key] = tuple(items) if many else value
        return cls(**checked)

    def complete(self, spec: DatasetSpec) -> "RunConfig":
        """Fills in what was left to the data set, and checks the rest against it.

        Raises:
            ValueError: If mode, network or sizes do not fit the data set or one another.
        """
        mode = self.mode or ("slice" if spec.spatial_dims == 2 else "patch")
        if spec.spatial_dims == 2 and mode != "slice":
            raise ValueError(f"Expected `mode` 'slice' for '{spec.name}', which is a set of slices. Received: {mode!r}.")
        rank = 2 if mode == "slice" else 3
        network = self.network or f"unet{rank}d"
        if rank not in find_ranks(network):
            fitting = tuple(name for name in NETWORKS if rank in find_ranks(name))
            raise ValueError(f"Expected a {rank}-D `network` for mode '{mode}', one of {fitting}. Received: {network!r}.")
        for name, length in (("shape", rank), ("spacing", spec.spatial_dims), ("class_probabilities", len(spec.class_names))):
            value = getattr(self, name)
            if value and len(value) != length:
                raise ValueError(f"Expected `{name}` of {length} numbers for '{spec.name}' in mode '{mode}'. Received: {value}.")
        batch_size = self.batch_size or (16 if rank == 2 else 2)
        return replace(self, mode=mode, plane=self.plane or "axial", network=network, batch_size=batch_size)

    def adapt(self, preprocessing: Preprocessing) -> Preprocessing:
        """The data set's preprocessing with the settings made here; a sample's shape is left to the caller for volumes."""
        return replace(
            preprocessing,
            spacing_mm=self.spacing or preprocessing.spacing_mm,
            interpolation=self.interpolation,
            intensity=self.intensity or preprocessing.intensity,
            foreground_crop=self.crop == "foreground" if self.crop else preprocessing.foreground_crop,
        )

    def network_options(self) -> dict[str, Any]:
        """What the network is built with; None leaves it to the network."""
        return {name: getattr(self, name) for name in NETWORK_OPTIONS}

    def data_folder(self) -> Path:
        """Where the data set lies: the phantom's folder, `--data`, `$MRI_DATA/<dataset>` or `data/<dataset>`."""
        if self.demo:
            other = "" if self.seed == RunConfig.seed else f"-seed{self.seed}"
            return Path("data") / f"{self.dataset}-phantom{other}"
        return Path(self.data) if self.data else default_data_folder(self.dataset)


def default_data_folder(dataset: str) -> Path:
    """`$MRI_DATA/<dataset>`, or `data/<dataset>` where that variable is not set."""
    return Path(os.environ.get("MRI_DATA", "data")) / dataset


# ------------------------------------------------------------------------------------------------------- flags, presets


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are ordinary ValueErrors, so that `run_command` reports them like any other."""

    def error(self, message: str) -> typing.NoReturn:
        """Raises ValueError instead of printing the usage."""
        raise ValueError(f"{message}. See --help.")


def parse_training(argv: Sequence[str] | None) -> tuple[RunConfig | None, Path | None]:
    """Reads the flags of train.py.

    Precedence: defaults < the data set's own < `--preset` < flags.

    Returns:
        The settings, and the run to resume if `--resume` was given. The settings are None where no flag or `--list` was given.

    Raises:
        ValueError: For an unknown flag, value, preset or data set.
    """
    parser = OneLineParser(prog="train.py", description="Trains a network on a data set and scores it on the test split.")
    parser.add_argument("--preset", "--presets", metavar="NAME", help=f"settings of a documented result: {', '.join(PRESETS)}")
    parser.add_argument("--list", action="store_true", help="print networks, losses, data sets and presets")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run; takes no other setting")
    for item in fields(RunConfig):
        _add_flag(parser, item)
    given = vars(parser.parse_args(argv))
    preset, resume, listed = given.pop("preset"), given.pop("resume"), given.pop("list")
    if resume:
        if given or preset:
            raise ValueError(f"Expected no setting beside --resume. Received: {', '.join(given) or 'preset'}. A run keeps its settings.")
        return RunConfig.from_mapping(load_run(Path(resume))["config"], f"{resume}/run.json"), Path(resume)
    if listed or (not given and not preset):
        return None, None
    chosen = (_read_preset(preset) if preset else {}) | given
    if given.get("demo") and not preset:
        volumes = chosen.get("dataset") in DATASETS and DATASETS[chosen["dataset"]].spatial_dims == 3
        chosen = _read_preset("demo3d" if volumes else "demo") | chosen
    if "dataset" not in chosen:
        raise ValueError(f"Expected --dataset in {tuple(DATASETS)}. Received: none.")
    own = dict(DATASETS[chosen["dataset"]].defaults)
    return RunConfig.from_mapping(own | chosen, "the flags"), None


def _read_preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise ValueError(f"Expected --preset in {tuple(PRESETS)}. Received: {name!r}.")
    values = tomllib.loads(PRESETS[name].read_text())
    RunConfig.from_mapping({"dataset": "", **values}, str(PRESETS[name].name))
    return values


def _add_flag(parser: argparse.ArgumentParser, item) -> None:
    kind, many, _ = _kind_of(item.name)
    flag, text = "--" + item.name.replace("_", "-"), item.metadata["help"]
    if item.default not in (MISSING, None, "", (), False):
        text += f" (default {item.default})"
    if kind is bool:
        parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    parser.add_argument(
        flag,
        type=kind,
        nargs="+" if many else None,
        choices=item.metadata["choices"],
        default=argparse.SUPPRESS,
        metavar=None if item.metadata["choices"] else kind.__name__.upper(),
        help=text,
    )


def _kind_of(name: str) -> tuple[type, bool, bool]:
    """A setting's plain type, whether it takes several values, and whether it may be None."""
    hint = typing.get_type_hints(RunConfig)[name]
    if isinstance(hint, types.UnionType):
        return typing.get_args(hint)[0], False, True
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True, False
    return hint, False, False


# ------------------------------------------------------------------------------------------------------------------ runs


def make_run_folder(config: RunConfig) -> Path:
    """Creates `runs/<name>`.

    Raises:
        ValueError: If a run of that name exists.
    """
    name = config.name or f"{config.dataset}-{config.network}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(config.runs) / name
    if folder.exists():
        raise ValueError(f"Expected a new name for the run. Received: {folder}, which exists. Choose `--name`, or `--resume {folder}`.")
    (folder / "figures").mkdir(parents=True)
    return folder


def load_run(folder: Path) -> dict[str, Any]:
    """Reads a run's `run.json`.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is not what a run wrote.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"Expected a run in {folder}. Received: no run.json there. Give a folder under runs/.")
    try:
        record = json.loads(path.read_text())
        return {name: record[name] for name in ("config", "backend", "data_fingerprint")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"Expected what a run wrote in {path}. Received: {error!r}. Start the run anew.") from error


def newest_run(runs: Path = Path("runs")) -> Path:
    """The run that finished last.

    Raises:
        FileNotFoundError: If none has finished.
    """
    finished = sorted(runs.glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise FileNotFoundError(f"Expected a finished run in {runs}/. Received: none. Train one, or name one with `--model`.")
    return finished[-1].parent


def write_json(path: Path, record: Any) -> None:
    """Writes JSON by way of a temporary name; NaN becomes null."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(without_nan(record), indent=2, default=str) + "\n")


def without_nan(record: Any) -> Any:
    """Replaces NaN by None, at any depth of dicts and lists: JSON has no NaN."""
    if isinstance(record, dict):
        return {key: without_nan(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [without_nan(value) for value in record]
    return None if isinstance(record, float) and record != record else record


def import_keras() -> None:
    """Imports Keras and TensorFlow without TensorFlow's start-up messages.

    Its libraries write them to the process's standard error before any setting of its own takes effect, so the file descriptor
    itself is turned away for that moment; what goes wrong still comes as an exception.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import keras
        import tensorflow as tf

        on_cpu = not tf.config.list_physical_devices("GPU")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
    if keras.backend.backend() == "tensorflow" and on_cpu:
        # `enable_op_determinism` makes each operation repeatable, but not the order in which several threads run them, and sums
        # of gradients depend on it. Each operation still uses all cores: no time is lost.
        try:
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            log.warning("TensorFlow was in use before: this run may not be repeatable bit for bit")


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy, TensorFlow and Keras, and makes TensorFlow's results repeatable bit for bit on a CPU.

    On a GPU TensorFlow would have to give up XLA for that, which costs more than it is worth by default.
    """
    import_keras()
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    if keras.backend.backend() != "tensorflow":
        # TensorFlow only reads files then and must not take the GPU's memory.
        tf.config.set_visible_devices([], "GPU")
        tf.random.set_seed(seed)
    elif not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


def describe_environment() -> dict[str, Any]:
    """Versions, backend, device and git commit, for `run.json` and the bundle."""
    import keras

    backend = keras.backend.backend()
    modules = [importlib.import_module(name) for name in dict.fromkeys(("keras", "tensorflow", "numpy", "nibabel", backend))]
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=MODULES, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # git is not installed
        git = ""
    if backend == "torch":
        torch = sys.modules["torch"]
        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    else:
        devices = [str(device) for device in keras.distribution.list_devices()]
    return {
        "backend": backend,
        "devices": devices or ["cpu"],
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {module.__name__: module.__version__ for module in modules},
        "git_commit": git or None,
    }


# ------------------------------------------------------------------------------------------------------- log and errors


class PredictionProgress:
    """Shows how far predictions are: a bar over cases, or over windows where a case takes many; says each such plan first."""

    def __init__(self, cases: int, what: str) -> None:
        """Args: cases: how many; what: the bar's name."""
        self._bar = tqdm(total=cases, desc=what, unit="case", leave=False, disable=None)
        self._windows: tqdm | None = None
        self._cropped: list[Plan] = []

    def settings(self, **values: Any) -> Settings:
        """Settings of a prediction that report here."""
        return Settings(**values, on_plan=self._begin, on_batch=self._advance)

    def count(self, items: Iterable[T]) -> Iterator[T]:
        """Passes predicted cases on."""
        for item in items:
            self._bar.update()
            yield item

    def _begin(self, plan: Plan) -> None:
        if plan.unseen:
            self._cropped.append(plan)
        if len(plan.starts) == 1:
            return
        log.info("%s", plan)
        self._windows = self._windows or tqdm(total=0, unit="window", leave=False, disable=None)
        self._windows.total += len(plan.starts)

    def _advance(self, number: int) -> None:
        if self._windows is not None:
            self._windows.update(number)

    def __enter__(self) -> "PredictionProgress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._cropped:
            log.info(
                "%d image(s) are larger than what the model sees: what lies outside is called background, and missed. The first: "
                "%s voxels seen, %d not",
                len(self._cropped), "x".join(map(str, self._cropped[0].shape)), self._cropped[0].unseen,
            )  # fmt: skip
        for bar in (self._bar, self._windows):
            if bar is not None:
                bar.close()


class _ConsoleHandler(logging.Handler):
    """Writes to standard output without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def start_log(path: Path | None = None) -> None:
    """Sends messages to the console, and to `path` with the time in front."""
    log.setLevel(logging.DEBUG)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    console = _ConsoleHandler(logging.INFO)
    log.addHandler(console)
    if path is not None:
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(file)


def run_command(name: str, command: Callable[[], None]) -> int:
    """Runs a command; an error the user can mend becomes one line on standard error and exit status 2.

    The traceback goes to the run's log, where there is one.
    """
    try:
        command()
    except (ValueError, OSError) as error:
        log.debug("stopped by an error", exc_info=True)
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return 0
