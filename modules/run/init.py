"""Begins a training from a trained model, `--init`: the settings that must follow it, its weights, and the scans that it has seen."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modules.data.documents import shorten
from modules.data.patches import PLANES
from modules.data.preprocess import Preprocessing
from modules.data.spec import DatasetSpec
from modules.networks import NETWORKS, fill_options, is_bound_to_shape, list_options
from modules.predict.bundle import ModelBundle, find_bundle, identify, read_description
from modules.run.folder import RunFolder
from modules.run.plan import Plan
from modules.run.seen import Seen, read_seen
from modules.run.settings import Settings
from modules.run.topology import FLEXIBLE

# A tenth of the usual 0.002: larger steps forget what was learnt.
LEARNING_RATE = 2e-4
_GRID = ("intensity", "spacing_mm", "foreground_crop")


@dataclass(frozen=True)
class Beginning:
    """The model that a run begins from.

    Attributes:
        source: The model as the user named it.
        identity: The hash that tells its bundle from others, see `modules.predict.bundle.identify`.
        weights: Number of weights that were taken, and of all weights of the new network.
        lines: What was taken in part or not at all, in sentences.
        preprocessing: The preprocessing that the model was trained with.
        seen: The scans that it has seen.
    """

    source: str
    identity: str
    weights: tuple[int, int]
    lines: tuple[str, ...]
    preprocessing: Preprocessing
    seen: Seen

    def describe(self, plan: Plan) -> list[str]:
        """Describes in sentences what the run has from the model, and where its plan differs."""
        taken, number = self.weights
        lines = [f"{taken} of {number} weights are those of {self.source} (SHA-256 {self.identity:.16}...)", *self.lines]
        for name in _GRID:
            now, then = getattr(plan.preprocessing, name), getattr(self.preprocessing, name)
            if now != then:
                lines.append(
                    f"warning: {name} is {now or 'none'}. The weights of {self.source} fit {then or 'none'}, which they were trained with"
                )
        if not self.seen.known:
            lines.append(f"warning: nothing tells which scans {self.source} has seen, so test subjects may be among them")
        return [line if line.startswith("warning") else f"init: {line}" for line in lines]

    def to_json(self) -> dict[str, Any]:
        """Returns the entry `init` of a run's record."""
        return {"path": self.source, "bundle_sha256": self.identity, "weights_taken": self.weights[0], "weights": self.weights[1]}


def adopt_settings(source: Path, spec: DatasetSpec, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Lists the settings that follow the model of `--init` where the user leaves them open; it imports no Keras.

    These are the network with its options, the kind of sample, intensities and grid, and a lower learning rate.

    Args:
        source: A bundle, or a run that contains one.
        spec: The data set of the new run.
        chosen: The settings that the user chose.

    Returns:
        Settings by name, none of them among the chosen ones.

    Raises:
        FileNotFoundError, ValueError: If there is no bundle, or a chosen setting leaves nothing of it to take.
    """
    bundle = _find(source)
    description = read_description(bundle)
    then, window = description["preprocessing"], description["window"]
    shape = [size for size in window if size > 1]
    volumes = spec.spatial_dims == 3
    mode = "slice" if len(shape) == 2 else "volume" if then["resize"] else "patch"
    own: dict[str, Any] = {"mode": mode} if volumes else {}
    mode = chosen.get("mode") or (mode if volumes else "slice")
    if len(shape) != (2 if mode == "slice" else 3):
        raise ValueError(
            f"Expected samples of {len(shape)} dimensions, which the model in {bundle} takes. Received: mode '{mode}' of '{spec.name}'. "
            "Choose another `--mode` or `--init`."
        )
    network, options = _read_network(bundle, description)
    if network and (other := chosen.get("network") or network) != network:
        raise ValueError(f"Expected network '{network}', as the model in {bundle} has it. Received: '{other}'. Leave `--network` out.")
    own |= options | ({"network": network} if network else {})
    if volumes and mode == "slice" and then["spatial_dims"] == 3:
        own["plane"] = next(name for name, axis in PLANES.items() if axis == window.index(1))
    # The strides and kernels of a flexible network follow from its window.
    if mode == "volume" or (network and (is_bound_to_shape(network) or network in FLEXIBLE)):
        own["shape"] = shape
    if then["spacing_mm"] and then["spatial_dims"] == spec.spatial_dims and mode != "volume":
        own["spacing"] = then["spacing_mm"]
    elif volumes and mode != "volume":
        own["resample"] = "none"
    numbers = ("scale", "mean", "std")
    # The numbers of other scans are noise, and no setting gives them.
    if then["intensity"] != "fixed" or [then[name] for name in numbers] == [getattr(spec.preprocessing, name) for name in numbers]:
        own["intensity"] = then["intensity"]
    own |= {"crop": "foreground" if then["foreground_crop"] else "none", "learning_rate": LEARNING_RATE}
    return {name: value for name, value in own.items() if chosen.get(name) in (None, "", (), [])}


def keep_intensities(spec: DatasetSpec, settings: Settings, run: RunFolder | None = None) -> DatasetSpec:
    """Gives a data set the clip, mean and deviation that the model of `--init` was trained with, where both scale as "ct" does.

    The weights fit these numbers. Those that the plan would measure belong to other scans. Other ways of scaling have no numbers to keep,
    or are not taken from a model.

    Args:
        spec: The data set, reduced to the chosen classes.
        settings: The settings of a new run.
        run: The run, where it has a name already.
    """
    if not settings.init or settings.intensity != "ct" or len(spec.channels) > 1:
        return spec
    then = read_description(find_model(settings, run))["preprocessing"]
    if then["intensity"] != "ct":
        return spec
    numbers = {"clip": tuple(then["clip"]), "mean": then["mean"], "std": then["std"]}
    return replace(spec, preprocessing=replace(spec.preprocessing, intensity="ct", **numbers))


def begin(network, settings: Settings, spec: DatasetSpec, plan: Plan, run: RunFolder | None) -> Beginning | None:
    """Gives a new network the weights of the model that its run begins from; it does nothing without `--init`.

    Args:
        network: The new network, from images to logits.
        settings: The settings of the run.
        spec: The data set, reduced to the chosen classes.
        plan: The plan of the run.
        run: The run, where it has a name already. One that has begun keeps a copy of the model and needs no other.

    Raises:
        FileNotFoundError, ValueError: If the model is gone or damaged, or nothing of it fits.
    """
    if not settings.init:
        return None
    from modules.model.transfer import Ends, take_weights

    bundle = find_model(settings, run)
    trained = ModelBundle.load(bundle, "keras")
    architecture = plan.network, fill_options(plan.network, {**settings.network_options, "levels": plan.levels})
    ends = Ends(spec.channels, spec.class_names), Ends(trained.channels, trained.class_names)
    if trained.model.name != network.name:
        raise _refuse(settings.init, trained.model.name, {}, *architecture)
    taken = take_weights(network, trained.model, *ends)
    if not taken.body:
        raise _refuse(settings.init, *_read_network(bundle, read_description(bundle)), *architecture)
    home = bundle.parent if bundle.name == "bundle" else None
    # Folders that describe themselves have names of cases that mean nothing elsewhere.
    seen = read_seen(trained.provenance, RunFolder(home) if home else None, "" if spec.describe else spec.name)
    return Beginning(settings.init, identify(bundle), (taken.taken, taken.weights), tuple(taken.lines), trained.preprocessing, seen)


def find_model(settings: Settings, run: RunFolder | None = None) -> Path:
    """Finds the bundle that a run begins from: the run's own copy, or what `--init` names.

    Raises:
        FileNotFoundError: If it is not there.
    """
    if run is not None and (run.init.is_dir() or run.record.is_file()):
        if not run.init.is_dir():
            raise FileNotFoundError(
                f"Expected the model that {run.path} began from in {run.init}. Received: no such folder. Copy the bundle of "
                f"{settings.init} there, or start a new run."
            )
        return find_bundle(run.init)
    return _find(Path(settings.init))


def _find(source: Path) -> Path:
    try:
        return find_bundle(source)
    except FileNotFoundError as error:
        folds = [path.name for path in sorted(source.glob("fold_*"))]
        remedy = f"Name one of {', '.join(folds)}." if folds else "Give a run or a bundle to `--init`."
        raise FileNotFoundError(f"{str(error).removesuffix('Give a finished run.')}{remedy}") from error


def _read_network(bundle: Path, description: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Reads a bundle's network and its options. An older bundle has them in its run alone; ("", {}) where nothing tells.

    Raises:
        ValueError: For a network that this program does not have.
    """
    provenance = description["provenance"]
    network, options = provenance.get("network"), provenance.get("network_options")
    if network is None and bundle.name == "bundle":
        run = RunFolder(bundle.parent)
        try:
            plan, settings = run.read_plan(), run.read_settings()
        except (FileNotFoundError, ValueError):
            return "", {}
        network, options = plan.network, {**settings.network_options, "levels": plan.levels}
    if network is None:
        return "", {}
    if network not in NETWORKS:
        raise ValueError(f"Expected `network` in {NETWORKS}. Received: {shorten(network)} in {bundle}. Choose another `--init`.")
    known = {option.name: option.kind for option in list_options(network)}
    options = options if isinstance(options, dict) else {}
    options = {name: value for name, value in options.items() if name in known and type(value) is known[name]}
    # Its weights take the place of pretrained ones, which would have to be downloaded.
    return network, fill_options(network, options) | ({"pretrained": False} if "pretrained" in known else {})


def _refuse(source: str, network: str, options: Mapping[str, Any], own: str, own_options: Mapping[str, Any]) -> ValueError:
    """Returns the error for a network that can take nothing of the model, naming what differs."""
    changed = [name for name, value in options.items() if own_options.get(name) != value]
    there, here, remedy = "the network", f"'{own}' with {dict(own_options)}", "Give the network and options that it was trained with."
    if network and network != own:
        there, here, remedy = f"network '{network}'", f"'{own}'", "Give its network and options."
    elif changed:
        there, here = (", ".join(f"{name} {known.get(name)}" for name in changed) for known in (options, own_options))
        remedy = "Leave such flags out."
    return ValueError(f"Expected {there} of the model in {source}, so that its weights fit. Received: {here}. {remedy}")
