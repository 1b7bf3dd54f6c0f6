"""The flags of train.py, generated from the settings, the presets and the networks' options."""

import argparse
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import modules
from modules import networks
from modules.backend_choice import BACKENDS, choose_backend, name_for_workers, require_backend
from modules.data.documents import shorten
from modules.data.spec import DatasetSpec, load_spec
from modules.run.compare import Comparison
from modules.run.config import read_config
from modules.run.folder import REMEDY, RunFolder
from modules.run.init import adopt_settings
from modules.run.merge import collect_folds
from modules.run.settings import (
    LOSSES,
    NETWORK_OPTIONS,
    PLACES,
    PRESETS,
    Settings,
    default_data_folder,
    find_kind,
    may_differ,
    read_preset,
)
from modules.run.workers import WorkerOptions, add_worker_flags, take_worker_options


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are ordinary ValueErrors, so that `run_command` reports them like any other."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes the arguments of `argparse.ArgumentParser`."""
        super().__init__(*arguments, **options)
        self.add_argument("--version", action="version", version=f"%(prog)s {modules.__version__}")

    def error(self, message: str) -> typing.NoReturn:
        """Raises ValueError instead of printing the usage."""
        raise ValueError(f"{message}. See --help.")


@dataclass(frozen=True)
class TrainingRequest:
    """The task that the flags give to train.py.

    Attributes:
        settings: The settings; None where the user only wants a list.
        resume: The run to go on with.
        verify: The run whose first steps are repeated.
        report: The finished run whose report is written anew.
        people: The table of people by which that run is scored.
        plan_only: Whether to print the plan and stop.
        parts: Finished runs of folds to merge, by their place in the merged folder.
        places: Settings in `PLACES` that a run to resume or to verify has now, where the user names them.
        devices: Number of devices of each host that share a batch; None for as many as can.
        comparison: What to compare in the place of a training; None for a training.
        joined: Coordinator, number of hosts, and index of this host, see `modules.devices.start_hosts`.
        backend: The backend of Keras that the user names, for workers; None where nobody does.
        workers: Who trains the folds of a cross-validation, or the trials of a search; None for this process.
        search: Number of trainings that search for settings; 0 for an ordinary training.
        train_only: Whether to leave the test cases unseen after the training.
    """

    settings: Settings | None
    resume: Path | None = None
    verify: Path | None = None
    report: Path | None = None
    people: Path | None = None
    plan_only: bool = False
    parts: Mapping[str, Path] = field(default_factory=dict)
    places: Mapping[str, Any] = field(default_factory=dict)
    devices: int | None = None
    comparison: Comparison | None = None
    joined: tuple[str | None, int | None, int | None] = (None, None, None)
    backend: str | None = None
    workers: WorkerOptions | None = None
    search: int = 0
    train_only: bool = False

    @property
    def worker_flags(self) -> list[str]:
        """The flags that a worker's training has as this command has them."""
        return [*name_for_workers(self.backend), *(() if self.devices is None else ("--devices", str(self.devices)))]

    def __post_init__(self) -> None:
        divided = self.settings is not None and self.settings.folds and self.settings.fold is None
        once = self.plan_only or self.verify or self.parts
        if self.search and (divided or self.train_only or once):
            raise ValueError("Expected --search alone. Received: --folds, --train-only, --plan-only, --verify or --merge. Leave one out.")
        if self.workers and (once or not (divided or self.search)):
            raise ValueError("Expected --folds or --search beside workers. Received: one training, which is not divided. Leave them out.")
        if self.train_only and (divided or once):
            raise ValueError("Expected one new training beside --train-only. Received: --folds, --plan-only or --verify. Leave one out.")


def parse_training(argv: Sequence[str] | None, datasets: Mapping[str, DatasetSpec]) -> TrainingRequest:
    """Reads the flags of train.py.

    Args:
        argv: The command line; None for the process's own.
        datasets: The catalogue.

    Raises:
        ValueError: For an unknown flag, and as `make_request`.
    """
    given = vars(_make_parser(datasets).parse_args(argv))
    people = given.pop("people")
    if report := given.pop("report"):
        if others := sorted(name for name, value in given.items() if value):
            raise ValueError(f"Expected --report alone with a run. Received: --{others[0].replace('_', '-')} too. Leave it out.")
        return TrainingRequest(None, report=Path(report), people=Path(people) if people else None)
    if people:
        raise ValueError("Expected --people beside --report RUN, once the run has finished. Received: --people alone. Add --report.")
    if comparison := _take_comparison(given):
        return TrainingRequest(None, comparison=comparison)
    return make_request(given, datasets)


def make_request(values: Mapping[str, Any], datasets: Mapping[str, DatasetSpec], source: str = "the flags") -> TrainingRequest:
    """Makes the task of a training from the flags of train.py, given by name.

    Precedence: defaults < the data set's own < the model of `--init` < `--preset` or `--config` < flags.

    Args:
        values: The flags that the user gave. None stands for one that was left out, but for a setting.
        datasets: The catalogue.
        source: Where they come from, for errors.

    Raises:
        ValueError: For an unknown name, value, preset or data set, and for settings that are not those of the run to resume.
    """
    given = dict(values)
    choose_backend(backend := given.pop("backend", None))
    machines: dict[str, Any] = {
        "backend": backend,
        "devices": given.pop("devices", None),
        "joined": tuple(given.pop(name, None) for name in ("coordinator", "hosts", "host")),
        "workers": take_worker_options(given),
        "train_only": bool(given.pop("train_only", False)),
        "search": given.pop("search", None) or 0,
    }
    if machines["search"] < 0 or values.get("search") == 0:
        raise ValueError(f"Expected `search` of 1 training or more. Received: {machines['search']}.")
    preset, config, listed, plan_only = (given.pop(name, None) for name in ("preset", "config", "list", "plan_only"))
    resume, verify = (Path(run) if run else None for run in (given.pop("resume", None), given.pop("verify", None)))
    if plan_only and (resume or verify):
        raise ValueError("Expected --plan-only for a new run. Received: a run that has its plan, in plan.json. Leave one out.")
    if resume and verify:
        raise ValueError("Expected either --resume or --verify. Received: both. Leave one out.")
    if preset and config:
        raise ValueError("Expected either --preset or --config. Received: both. Copy the preset's lines into the file, or leave one out.")
    if merge := given.pop("merge", None):
        beside = {"preset": preset, "config": config, "resume": resume, "verify": verify}
        return replace(_merge(merge, given | {name: value for name, value in beside.items() if value}, datasets), **machines)
    asked = any(machines[name] for name in ("search", "train_only", "workers"))
    if listed or not (given or preset or config or resume or verify or asked):
        return TrainingRequest(None)
    # A training would find out only once it has read the scans.
    require_backend()
    filed, is_run = read_config(Path(config), given) if config else (read_preset(preset) if preset else {}, False)
    chosen = filed | given
    if run := resume or verify:
        settings = RunFolder(run).read_settings()
        _check_dataset(settings, RunFolder(run).record, datasets)
        _check_same(chosen, settings, run)
        places = _take_places(chosen)
        # The tracker may differ as well, because it does not affect the results of a run.
        settings = replace(settings, track=chosen.get("track", settings.track), **places)
        machines["search"] = read_search(RunFolder(run), machines["search"]) if resume else machines["search"]
        return TrainingRequest(settings, resume, verify, places=places, **machines)
    if chosen.get("dataset") not in datasets:
        where = f" in {config}" if config and "dataset" not in given else ""
        raise ValueError(f"Expected --dataset in {tuple(datasets)}. Received: {chosen.get('dataset') or 'none'}{where}.")
    spec = datasets[chosen["dataset"]]
    check_takes(spec, chosen, datasets)
    if chosen.get("init"):
        chosen |= adopt_settings(Path(chosen["init"]), _look_up(spec, chosen), chosen)
    # A run has all its settings, those that the demo gave it too.
    if chosen.get("demo") and not preset and not is_run:
        # A network of the user's own need not have the options that the demo sets for ours.
        network = chosen.get("network", "")
        options = {name for name in NETWORK_OPTIONS if network and network not in NETWORK_OPTIONS[name]}
        demo = read_preset("demo3d" if spec.spatial_dims == 3 else "demo")
        chosen = {name: value for name, value in demo.items() if name not in options} | chosen
    own = dict(spec.defaults)
    if chosen.get("modes") and "mode" not in given:
        # The modes that the user names stand for the one of the data set or of the preset.
        own.pop("mode", None)
        chosen.pop("mode", None)
    if "minutes" in given and "epochs" not in given:
        # The time stands for the epochs of a preset.
        chosen.pop("epochs", None)
    return TrainingRequest(Settings.from_json(own | chosen, source), plan_only=bool(plan_only), **machines)


def read_search(run: RunFolder, given: int) -> int:
    """Reads the number of trainings of a search, 0 for another run; raises ValueError where the flag gives another number."""
    number = run.read_record().get("search", 0)
    if type(number) is not int or (given and given != number):
        raise ValueError(f"Expected --search {shorten(number)}, as {run.path} has it. Received: {given}. Leave it out.")
    return number


def _take_comparison(given: dict[str, Any]) -> Comparison | None:
    """Takes the flags of a comparison out of those that were given; None where nothing is to be compared."""
    paths, labels, output = (given.pop(name) for name in ("compare", "labels", "output"))
    if paths is None:
        if name := next((name for name, value in (("labels", labels), ("output", output)) if value), ""):
            raise ValueError(f"Expected --compare beside --{name}. Received: --{name} alone. Name the runs to compare.")
        return None
    taken = ("runs", "classes", "tolerance_mm")
    if others := sorted(name for name, value in given.items() if value and name not in taken):
        allowed, flag = ", ".join(f"--{name.replace('_', '-')}" for name in taken), others[0].replace("_", "-")
        raise ValueError(f"Expected nothing beside --compare but --labels, --output, {allowed}. Received: --{flag}. Leave it out.")
    values = Settings.from_json({"dataset": "", **{name: given[name] for name in taken if given.get(name)}}, "the flags")
    return Comparison(
        tuple(map(Path, paths)),
        Path(labels) if labels else None,
        Path(output) if output else Comparison.output,
        Path(values.runs),
        values.classes,
        values.tolerance_mm,
    )


def _merge(runs: Sequence[str], given: Mapping[str, Any], datasets: Mapping[str, DatasetSpec]) -> TrainingRequest:
    """Makes the request to merge finished folds. Their settings hold; only a name and places may stand beside them."""
    if others := sorted(set(given) - {"name", *PLACES}):
        allowed, flag = ", ".join(f"--{name}" for name in PLACES), others[0].replace("_", "-")
        raise ValueError(f"Expected nothing beside --merge but --name, {allowed}. Received: --{flag}. Leave it out.")
    settings, parts = collect_folds([Path(run) for run in runs])
    _check_dataset(settings, RunFolder(next(iter(parts.values()))).record, datasets)
    places = _take_places(given, "name")
    # The runs of the folds may come from other machines, so their places say nothing about where the whole shall lie.
    return TrainingRequest(replace(settings, **{"runs": Settings.runs, **places}), parts=parts)


def _take_places(chosen: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """Takes the settings that say where something lies now, and the other named ones. The drawn data of a demo may have moved too."""
    places = {name: chosen[name] for name in (*others, *PLACES) if name in chosen}
    # argparse gives lists.
    places = {name: tuple(value) if isinstance(value, list) else value for name, value in places.items()}
    return places | ({"demo": False} if chosen.get("data") or chosen.get("cases") else {})


def check_takes(spec: DatasetSpec, chosen: Mapping[str, Any], datasets: Mapping[str, DatasetSpec]) -> None:
    """Raises ValueError for a setting that only another data set reads."""
    for other in datasets.values():
        for name in other.takes:
            if chosen.get(name) and name not in spec.takes:
                raise ValueError(
                    f"Expected --dataset {other.name} beside --{name}. Received: --dataset {spec.name}, whose files say it. Leave one out."
                )


def _look_up(spec: DatasetSpec, chosen: Mapping[str, Any]) -> DatasetSpec:
    """Returns a data set with what only its folder knows, such as whether it has slices or volumes."""
    if not spec.takes or chosen.get("demo"):
        return spec
    settings = Settings.from_json(chosen, "the flags")
    return load_spec(spec, settings.data_folder(), settings.tell_wishes())


def _check_dataset(settings: Settings, record: Path, datasets: Mapping[str, DatasetSpec]) -> None:
    if settings.dataset not in datasets:
        raise ValueError(f"Expected `dataset` in {tuple(datasets)}. Received: {shorten(settings.dataset)} in {record}. {REMEDY}")


def describe_choices(datasets: Mapping[str, DatasetSpec]) -> list[str]:
    """Returns the lines that list data sets, networks, losses and presets, and say what to type next."""
    lines = ["Data sets (python train.py --dataset NAME [--data FOLDER]):"]
    for spec in datasets.values():
        folder = default_data_folder(spec.name)
        place = f"found in {folder}" if folder.is_dir() else f"not in {folder}; {spec.url}"
        lines += [f"  {spec.name:<9} {spec.title}", f"            {place}", f"            {spec.licence}: {spec.terms}"]
    lines.append("Networks (--network NAME):")
    lines += [f"  {name:<17} {summary}" for name, summary in networks.describe().items()]
    lines += [f"Losses (--loss NAME): {', '.join(LOSSES)}", f"Presets (--preset NAME): {', '.join(PRESETS)}"]
    found = next((name for name in datasets if default_data_folder(name).is_dir()), None)
    return [*lines, f"Next: python train.py --dataset {found or 'hipmri --demo   (a drawn pelvis, a few minutes)'}"]


def _check_option_names() -> None:
    """Refuses options of networks that have the name of a setting: one flag cannot mean both."""
    for name in sorted({item.name for item in fields(Settings)}.intersection(NETWORK_OPTIONS)):
        network = next(iter(NETWORK_OPTIONS[name]))
        raise ValueError(f"Expected another name for the option {name!r} in modules/networks/{network}.py: it is a setting. Rename it.")


def _make_parser(datasets: Mapping[str, DatasetSpec]) -> OneLineParser:
    _check_option_names()
    parser = OneLineParser(prog="train.py", description="Trains a network on a data set and scores it on the test split.")
    parser.add_argument("--preset", "--presets", metavar="NAME", help=f"settings of a documented result: {', '.join(PRESETS)}")
    parser.add_argument("--config", metavar="FILE", help="settings from a .toml or .json file, or those of a run from its run.json")
    parser.add_argument("--list", action="store_true", help="print networks, losses, data sets and presets")
    parser.add_argument("--plan-only", action="store_true", help="read the data, print the plan with its costs, and stop before training")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run; settings beside it must be its own, but for places")
    parser.add_argument("--verify", metavar="RUN", help="check a run's data, program and model, and train its first steps again")
    parser.add_argument("--report", metavar="RUN", help="write report.html of a finished run anew, from what lies in its folder")
    parser.add_argument(
        "--people", metavar="TABLE", help="with --report: scores by age, sex, scanner, ... as the columns of this table say"
    )
    parser.add_argument(
        "--merge", nargs="+", metavar="RUN", help="finished runs of single folds, to score and combine as one cross-validation"
    )
    parser.add_argument(
        "--compare", nargs="*", metavar="RUN", help="compare runs, or folders of label maps, on the same test cases; none: list all runs"
    )
    parser.add_argument("--labels", metavar="DIR", help="with --compare: folder of the references of label maps")
    parser.add_argument("--output", metavar="DIR", help=f"with --compare: where to write (default {Comparison.output})")
    add_backend_flag(parser)
    parser.add_argument("--devices", type=int, metavar="INT", help="GPUs of each host that share a batch (default: as many as can)")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of host 0, to train on several hosts (JAX; Slurm needs none of these)")
    parser.add_argument("--hosts", type=int, metavar="INT", help="how many hosts train together")
    parser.add_argument("--host", type=int, metavar="INT", help="which of the hosts this is, from 0")
    add_worker_flags(parser)
    parser.add_argument(
        "--search", type=int, metavar="N", help="search for settings by N trainings, which share the time (pip install optuna)"
    )
    parser.add_argument("--train-only", action="store_true", help="leave the test cases unseen; --resume scores them")
    for item in fields(Settings):
        if item.name != "network_options":
            choices = tuple(datasets) if item.name == "dataset" else item.metadata["choices"]
            text = item.metadata["help"]
            if item.default not in (MISSING, None, "", (), False):
                text += f" (default {item.default})"
            _add_flag(parser, item.name, text, choices)
    group = parser.add_argument_group("options that only some networks have")
    for name, forms in NETWORK_OPTIONS.items():
        # Networks with the same help for an option share a line.
        texts: dict[str, list[str]] = {}
        for network, option in forms.items():
            texts.setdefault(option.help, []).append(f"{network} ({option.default})")
        _add_flag(group, name, " ".join(f"{', '.join(networks)}: {text}" for text, networks in texts.items()), None)
    return parser


def add_backend_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that both commands have for Keras's backend."""
    parser.add_argument(
        "--backend",
        choices=("auto", *BACKENDS),
        help="what computes (default KERAS_BACKEND, else auto: jax where it finds an NVIDIA GPU, tensorflow elsewhere)",
    )


def _check_same(chosen: dict[str, Any], settings: Settings, run: Path) -> None:
    """Raises ValueError for settings that are not those of a run, naming the first that differs."""
    begun = settings.to_json()
    for name, value in Settings.from_json({"dataset": settings.dataset, **chosen}, "the flags").to_json().items():
        if name in chosen and name != "track" and not may_differ(name, begun.get(name), value):
            raise ValueError(
                f"Expected `{name}` {begun.get(name)!r}, as {run} has it. Received: {value!r}. "
                "A run keeps its settings: leave it out, or start a new run."
            )


def _add_flag(parser: Any, name: str, text: str, choices: Sequence[str] | None) -> None:
    kind, many, optional = find_kind(name)
    flag, text = "--" + name.replace("_", "-"), text.replace("%", "%%")
    if kind is bool:
        action = argparse.BooleanOptionalAction if optional else "store_true"
        parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
        return
    parser.add_argument(
        flag,
        type=kind,
        nargs="+" if many else None,
        choices=choices,
        default=argparse.SUPPRESS,
        metavar=None if choices else kind.__name__.upper(),
        help=text,
    )
