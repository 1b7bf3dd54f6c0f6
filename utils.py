"""The run: its settings and flags and its log; and how a command reports an error."""

import argparse
import ast
import logging
import os
import signal
import sys
import threading
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from dataset import DATASETS, DatasetSpec
from modules.bundle import Settings
from modules.devices import PRECISIONS
from modules.inference import Plan
from modules.loss_spec import parse_loss
from modules.networks import NETWORKS, find_ranks
from modules.patches import PLANES, SAMPLINGS
from modules.pipeline import MODES
from modules.preprocess import INTENSITIES, INTERPOLATIONS, Preprocessing
from modules.records import load_run
from modules.tracking import TRACKERS

MODULES = Path(__file__).parent / "modules"
PRESETS = {path.stem: path for path in sorted((MODULES / "presets").glob("*.toml"))}
# Read from the source: importing the module would import Keras, and `--help` must not wait for that.
LOSSES = tuple(
    node.name
    for node in ast.parse((MODULES / "losses.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
)
# These would import Keras too: a test holds them to what the modules have.
AUGMENTS = ("none", "light", "strong")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "cosine_restarts", "polynomial")

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
    deep_supervision: bool = _setting(False, help="judge the decoder's lower resolutions too, with weights 1, 1/2, 1/4, ... (U-Nets)")
    optimizer: str = _setting("adam", help="adamw: decoupled weight decay; sgd: Nesterov momentum 0.99", choices=OPTIMIZERS)
    learning_rate: float = _setting(1e-3, help="the highest of the schedule")
    schedule: str = _setting("cosine", help="of the learning rate, down to 0 at the last epoch unless constant", choices=SCHEDULES)
    warmup_epochs: int = _setting(0, help="epochs in which the learning rate rises first")
    cycles: int = _setting(3, help="of the schedule cosine_restarts")
    weight_decay: float = _setting(0.0, help="decoupled for adamw, else a penalty on the squared weights (L2)")
    clip_norm: float = _setting(0.0, help="largest norm of the gradient; 0 for no limit")
    accumulate: int = _setting(1, help="batches whose gradients make one update")
    ema: float = _setting(0.0, help="momentum of an average of the weights, which is validated and kept in their place; 0 for none")
    precision: str = _setting("auto", help="of the network's layers; auto: bfloat16 on a GPU that has it", choices=PRECISIONS)
    deterministic: bool = _setting(False, help="repeat bit for bit on a GPU too, where that is slower")
    patience: int = _setting(15, help="epochs without a better validation Dice before stopping; 0 never stops early")
    stop_at_dice: float = _setting(0.0, help="stop once the validation Dice of every class reaches this; 0 never does")
    folds: int = _setting(0, help="cross-validate: train and score so many times, each subject being tested once")
    fold: int | None = _setting(None, help="train and score only this one of the folds, from 0")
    seed: int = _setting(42, help="of weights, split, order and every draw")
    checkpoint_minutes: float = _setting(10.0, help="most minutes between two checkpoints; there is one after each epoch besides")
    track: str = _setting("none", help="where to log the run besides its folder", choices=TRACKERS)
    name: str = _setting("", help="name of the run; without it data set, network and time")
    runs: str = _setting("runs", help="folder of the runs")
    cache: str = _setting("cache", help="folder of decoded cases")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "patches_per_case", "cycles", "accumulate", "checkpoint_minutes"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"Expected `{name}` above 0. Received: {getattr(self, name)}.")
        for name in ("weight_decay", "patience", "seed", "dropout", "warmup_epochs", "clip_norm"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"Expected `{name}` of 0 or more. Received: {getattr(self, name)}.")
        for name in ("validate_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"Expected `{name}` between 0 and 1. Received: {getattr(self, name)}.")
        parse_loss(self.loss, LOSSES)
        if not 0 <= self.stop_at_dice <= 1:
            raise ValueError(f"Expected `stop_at_dice` from 0 to 1. Received: {self.stop_at_dice}.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"Expected `ema` from 0 to below 1. Received: {self.ema}.")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"Expected `warmup_epochs` below the {self.epochs} epochs. Received: {self.warmup_epochs}.")
        if self.folds == 1 or self.folds < 0:
            raise ValueError(f"Expected `folds` of 2 or more, or 0 for none. Received: {self.folds}.")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise ValueError(f"Expected `fold` from 0 to below `folds`, {self.folds}. Received: {self.fold}.")
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


@dataclass(frozen=True)
class TrainingRequest:
    """What train.py was asked for.

    Attributes:
        config: The settings; None where only a list is wanted.
        resume: The run to go on with.
        verify: The run to repeat the beginning of.
        devices: How many of each host share a batch; None for as many as can.
        joined: Coordinator, number of hosts, and which this is, see `modules.devices.start_hosts`.
    """

    config: RunConfig | None
    resume: Path | None = None
    verify: Path | None = None
    devices: int | None = None
    joined: tuple[str | None, int | None, int | None] = (None, None, None)


def parse_training(argv: Sequence[str] | None) -> TrainingRequest:
    """Reads the flags of train.py.

    Precedence: defaults < the data set's own < `--preset` < flags.

    Raises:
        ValueError: For an unknown flag, value, preset or data set, and for settings that are not those of the run to resume.
    """
    parser = OneLineParser(prog="train.py", description="Trains a network on a data set and scores it on the test split.")
    parser.add_argument("--preset", "--presets", metavar="NAME", help=f"settings of a documented result: {', '.join(PRESETS)}")
    parser.add_argument("--list", action="store_true", help="print networks, losses, data sets and presets")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run; a setting given beside it must be the run's own")
    parser.add_argument("--verify", metavar="RUN", help="check a run's data, program and model, and train its first steps again")
    parser.add_argument("--devices", type=int, metavar="INT", help="GPUs of each host that share a batch (default: as many as can)")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of host 0, to train on several hosts (JAX; Slurm needs none of these)")
    parser.add_argument("--hosts", type=int, metavar="INT", help="how many hosts train together")
    parser.add_argument("--host", type=int, metavar="INT", help="which of the hosts this is, from 0")
    for item in fields(RunConfig):
        _add_flag(parser, item)
    given = vars(parser.parse_args(argv))
    start = {"devices": given.pop("devices"), "joined": tuple(given.pop(name) for name in ("coordinator", "hosts", "host"))}
    preset, listed = given.pop("preset"), given.pop("list")
    resume, verify = (Path(run) if run else None for run in (given.pop("resume"), given.pop("verify")))
    if resume and verify:
        raise ValueError("Expected either --resume or --verify. Received: both. Leave one out.")
    if listed or not (given or preset or resume or verify):
        return TrainingRequest(None)
    chosen = (_read_preset(preset) if preset else {}) | given
    if run := resume or verify:
        config = RunConfig.from_mapping(load_run(run)["config"], f"{run}/run.json")
        _check_same(chosen, config, run)
        # Where a run is told about changes nothing in it.
        config = replace(config, track=chosen.get("track", config.track))
        return TrainingRequest(config, resume, verify, **start)
    if given.get("demo") and not preset:
        volumes = chosen.get("dataset") in DATASETS and DATASETS[chosen["dataset"]].spatial_dims == 3
        chosen = _read_preset("demo3d" if volumes else "demo") | chosen
    if "dataset" not in chosen:
        raise ValueError(f"Expected --dataset in {tuple(DATASETS)}. Received: none.")
    own = dict(DATASETS[chosen["dataset"]].defaults)
    return TrainingRequest(RunConfig.from_mapping(own | chosen, "the flags"), **start)


def _check_same(chosen: dict[str, Any], config: RunConfig, run: Path) -> None:
    """Refuses settings that are not those of a run, naming the first that differs."""
    for name, value in RunConfig.from_mapping({"dataset": config.dataset, **chosen}, "the flags").to_json().items():
        if name in chosen and name != "track" and value != getattr(config, name):
            raise ValueError(
                f"Expected `{name}` {getattr(config, name)!r}, as {run} has it. Received: {value!r}. "
                "A run keeps its settings: leave it out, or start a new run."
            )


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


def name_run(config: RunConfig) -> Path:
    """The folder of a new run below `runs`: its name, or data set, network and time."""
    parts = (config.dataset, config.network, f"{datetime.now():%Y%m%d-%H%M%S}")
    return Path(config.runs) / (config.name or "-".join(filter(None, parts)))


# ------------------------------------------------------------------------------------------------------- log and errors


class PredictionProgress:
    """Shows how far predictions are: a bar over cases, or over windows where a case takes many; says each such plan first."""

    def __init__(self, cases: int, what: str) -> None:
        """Args: cases: how many; what: the bar's name."""
        from tqdm import tqdm

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
        from tqdm import tqdm

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


class StopRequest:
    """Lets SIGTERM and Ctrl-C ask for a stop instead of enforcing it, while it is entered; a second one enforces it."""

    def __init__(self) -> None:
        self.made = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Only the main thread may; elsewhere whoever started the thread sees to it.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.made:
            raise KeyboardInterrupt
        self.made = True
        log.info("%s: stops after this step, with a checkpoint; once more to stop at once", signal.Signals(number).name)


class _ConsoleHandler(logging.Handler):
    """Writes to standard output without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stdout)


def start_log(path: Path | None = None, *, quiet: bool = False) -> None:
    """Sends messages, or only warnings if `quiet`, to the console, and all to `path` with the time in front."""
    log.setLevel(logging.DEBUG)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    console = _ConsoleHandler(logging.WARNING if quiet else logging.INFO)
    log.addHandler(console)
    if path is not None:
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(file)


def run_command(name: str, command: Callable[[], None]) -> int:
    """Runs a command; an error the user can mend becomes one line on standard error and exit status 2.

    The traceback goes to the run's log, where there is one. SIGTERM, which clusters send before they take a machine back, ends it
    like Ctrl-C.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    try:
        command()
    except (ValueError, OSError) as error:
        log.debug("stopped by an error", exc_info=True)
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
    return 0
