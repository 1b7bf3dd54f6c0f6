"""The plan: all decisions that follow from the settings, the data set, its scans and the time there is, made once and written down.

`make_plan` is pure. The pipeline, the trainer, the evaluation and the bundle follow its decisions and make none themselves.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from modules.data.documents import anything, check_fields, choice, many, mapping, number, optional, text, to_line, whole
from modules.data.draws import AUGMENTATIONS, has_flips
from modules.data.fingerprint import Fingerprint
from modules.data.patches import PLANES, SAMPLINGS, Window, count_starts
from modules.data.pipeline import PatchSampler, count_samples
from modules.data.preprocess import Preprocessing
from modules.data.spec import DatasetSpec
from modules.hardware import Hardware
from modules.networks import MOST_LEVELS, NETWORKS, check_options, find_levels, find_ranks, has_lower_levels
from modules.predict.schema import PREPROCESSING, SIZE
from modules.run import recipe
from modules.run.preparation import choose_mode, choose_preprocessing
from modules.run.recipe import Schedule
from modules.run.settings import MODES, Settings
from modules.run.sizes import choose_batch, choose_stages, choose_window
from modules.scoring import check_tolerance

FITS = ("crop", "resample", "tile")
_REMEDY = "Start the run anew."
_FIELDS = {
    "mode": choice(MODES),
    "plane": choice(tuple(PLANES)),
    "network": choice(NETWORKS),
    "levels": optional(whole(1, MOST_LEVELS)),
    "strides": many(many(whole(1, 2), 2, 3), 0, MOST_LEVELS),
    "kernels": many(many(whole(1, 3), 2, 3), 0, MOST_LEVELS + 1),
    "preprocessing": anything(),
    "window": many(SIZE, 2, 3),
    "fit": choice(FITS),
    "batch_size": whole(1, 1 << 20),
    "sampler": anything(),
    "epochs": whole(1, 1 << 40),
    "steps_per_epoch": whole(1, 1 << 40),
    "recipe": mapping(text(), anything()),
    "costs": mapping(text(), number(0)),
    "reasons": mapping(text(), text(1_000)),
}
_SAMPLER = {"sampling": choice(SAMPLINGS), "per_case": whole(0, 1 << 20), "probabilities": many(number(0), 0, 255)}


@dataclass(frozen=True)
class Plan:
    """All decisions that training and prediction share.

    Attributes:
        mode: The kind of sample: "slice", "volume" or "patch".
        plane: The plane of slices of volumes.
        network: The network's name.
        levels: Number of times that the network halves the resolution; None where that is no option of the network.
        strides: Stride of each level along each axis of the window, for networks that take them; else empty.
        kernels: Kernel size of each stage along each axis, likewise.
        preprocessing: The steps that each case goes through before the network.
        window: The window that the network sees at once.
        fit: The way to fit cases to the window: "resample" to it, or "tile" them with windows.
        batch_size: Samples a step, over all devices.
        sampler: The sampler of training patches; None where samples are the windows of a grid. Slices have one that takes a patch
            anywhere in a slice larger than the window, once an epoch.
        epochs: Most epochs. Each ends with a validation.
        steps_per_epoch: Batches an epoch.
        recipe: The settings that the plan chose because the user did not, by name; see `resolve`.
        costs: What the training takes: weights, bytes, seconds; see `modules.run.costs`.
        reasons: The reason for each decision, by its name.
    """

    mode: str
    plane: str
    network: str
    levels: int | None
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    preprocessing: Preprocessing
    window: Window
    fit: str
    batch_size: int
    sampler: PatchSampler | None
    epochs: int
    steps_per_epoch: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def resolve(self, settings: Settings) -> Settings:
        """Returns the user's settings with the plan's choices in place of what they leave open."""
        return settings.fill(self.recipe)

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as plain values for `plan.json`."""
        return asdict(self) | {"window": list(self.window.sizes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str) -> "Plan":
        """Reads a plan that `to_json` returned; raises ValueError naming `source` for anything else."""
        check_fields(values, _FIELDS, source, _REMEDY)
        check_fields(values["preprocessing"], PREPROCESSING, source, _REMEDY, within="preprocessing")
        if (sampler := values["sampler"]) is not None:
            check_fields(sampler, _SAMPLER, source, _REMEDY, within="sampler")
        try:
            Settings.from_json({"dataset": "", **values["recipe"]}, source)
            records: dict[str, Any] = {
                "preprocessing": Preprocessing(**_to_tuples(values["preprocessing"])),
                "window": Window(tuple(values["window"])),
                "sampler": None if sampler is None else PatchSampler(**_to_tuples(sampler)),
                "recipe": _to_tuples(values["recipe"]),
                **{name: tuple(map(tuple, values[name])) for name in ("strides", "kernels")},
            }
            plan = cls(**dict(values) | records)
            if len(plan.window.sizes) != plan.preprocessing.spatial_dims:
                raise ValueError(f"window {plan.window.sizes} of cases of {plan.preprocessing.spatial_dims} dimensions")
            if plan.fit != "tile" and plan.preprocessing.shape != plan.window.sizes:
                raise ValueError(f"window {plan.window.sizes} of cases of {plan.preprocessing.shape}")
            return plan
        except ValueError as error:
            raise ValueError(f"Expected a plan in {source}. Received: {to_line(error)}. {_REMEDY}") from error


class PlanDraft(NamedTuple):
    """The decisions that need no scan; the names are those of `Plan`.

    Attributes:
        mode: The kind of sample.
        plane: The plane of slices of volumes.
        network: The network's name.
        preprocessing: The preprocessing, without the shape of the window and without what follows from the scans.
        sizes: Sizes of the window; empty where they follow from the scans.
        reasons: The reason for each decision, by its name.
    """

    mode: str
    plane: str
    network: str
    preprocessing: Preprocessing
    sizes: tuple[int, ...]
    reasons: dict[str, str]


def draft_plan(settings: Settings, spec: DatasetSpec) -> PlanDraft:
    """Makes the decisions that need no scan, so that a wrong setting shows before the first file is read.

    Raises:
        ValueError: If mode, network, its options or sizes do not fit the data set or one another.
    """
    volumes = spec.spatial_dims == 3
    # A shape of two sizes is that of a slice.
    mode = settings.mode or ("patch" if volumes and len(settings.shape) != 2 else "slice")
    if not volumes and mode != "slice":
        raise ValueError(f"Expected `mode` 'slice' for '{spec.name}', which is a set of slices. Received: {mode!r}.")
    rank = 2 if mode == "slice" else 3
    network = settings.network or recipe.NETWORKS[rank]
    if rank not in find_ranks(network):
        fitting = tuple(name for name in NETWORKS if rank in find_ranks(name))
        raise ValueError(f"Expected a {rank}-D `network` for mode '{mode}', one of {fitting}. Received: {network!r}.")
    check_options(network, settings.network_options)
    check_tolerance(settings.tolerance_mm, spec.class_names)
    for name, length in (("shape", rank), ("spacing", spec.spatial_dims), ("class_probabilities", spec.num_parts)):
        value = getattr(settings, name)
        if value and len(value) != length:
            raise ValueError(f"Expected `{name}` of {length} numbers for '{spec.name}' in mode '{mode}'. Received: {value}.")
    _check_flips(settings, spec)
    plane = settings.plane or "axial"
    sizes = settings.shape or (spec.preprocessing.shape if settings.crop in ("own", "none") else ())
    if sizes and volumes and mode == "slice":
        sizes = (*sizes[: PLANES[plane]], 1, *sizes[PLANES[plane] :])
    preprocessing = replace(
        spec.preprocessing,
        shape=(),
        spacing_mm=settings.spacing or spec.preprocessing.spacing_mm,
        interpolation=settings.interpolation,
        foreground_crop=settings.crop == "foreground" or (settings.crop == "own" and spec.preprocessing.foreground_crop),
    )
    kind = f"a set of {'volumes' if volumes else 'slices'}" if volumes == (mode != "slice") else "--shape has two sizes"
    reasons = {
        "mode": "set" if settings.mode else kind,
        "network": "set" if settings.network else f"for samples of {rank} dimensions",
        "spacing": "set" if settings.spacing else "the data set's own" if spec.preprocessing.spacing_mm else "",
        "window": "set" if settings.shape else "the data set's own" if sizes else "",
        "batch": "set" if settings.batch_size else "",
    }
    return PlanDraft(mode, plane, network, preprocessing, sizes, reasons)


def make_plan(
    settings: Settings,
    spec: DatasetSpec,
    fingerprint: Fingerprint,
    schedule: Schedule | None = None,
    hardware: Hardware | None = None,
) -> Plan:
    """Makes the plan of a training; a pure function of its arguments.

    Args:
        settings: The user's settings.
        spec: The data set, reduced to the chosen classes.
        fingerprint: The fingerprint of the training cases, see `modules.data.fingerprint.measure`.
        schedule: Epochs and steps that the time allows, see `modules.run.budget`; without it `--epochs` says how many, or the whole
            recipe is planned.
        hardware: The machine. A GPU's memory bounds the window. Without it we plan for a CPU.

    Raises:
        ValueError: If settings do not fit the data set or one another.
    """
    hardware = hardware or Hardware()
    if settings.precision != "auto":
        # A GPU's memory holds half as much of what the user wants in float32.
        hardware = replace(hardware, bfloat16=settings.precision != "float32")
    mode = choose_mode(settings, spec, fingerprint, hardware)
    draft = draft_plan(settings.fill(mode), spec)
    reasons = dict(draft.reasons) | ({"mode": "a CPU learns large or flat volumes by slices"} if "mode" in mode else {})
    rank, sparse = (2 if draft.mode == "slice" else 3), fingerprint.foreground < recipe.SPARSE
    preprocessing = choose_preprocessing(settings, spec, draft.preprocessing, fingerprint, reasons)
    grids = fingerprint.list_grids(preprocessing)
    options = recipe.choose_options(settings, draft.network, rank)
    spacing_mm = preprocessing.spacing_mm or fingerprint.spacing_mm
    sizes = draft.sizes
    if not sizes:
        sizes = choose_window(draft.mode, draft.plane, draft.network, options, grids, spacing_mm, spec, hardware, sparse=sparse)
        reasons["window"] = f"from the shapes of {len(grids)} training cases{reasons['window']}"
    window = Window(sizes)
    strides, kernels = choose_stages(draft.network, options, window, spacing_mm)
    options |= {"levels": len(strides)} if strides else {}
    fit = "resample" if draft.mode == "volume" else "tile"
    if fit == "resample":
        if not preprocessing.spacing_mm:
            reasons["spacing"] = "each volume is brought to the window"
        preprocessing = replace(preprocessing, shape=window.sizes, resize=True)
    sampler = _choose_sampler(settings, spec, draft.mode)
    batch_size = settings.batch_size
    if batch_size is None:
        batch_size, reasons["batch"] = choose_batch(draft.network, options, strides, window, grids, spec, fingerprint, hardware)
    drawn = sampler is not None and sampler.per_case > 0
    samples = count_samples((window.sizes,) * len(grids) if drawn or fit == "resample" else grids, window, sampler)
    if settings.epochs:
        schedule = Schedule(settings.epochs, math.ceil(samples / batch_size), f"{samples} samples an epoch")
    schedule = schedule or recipe.WHOLE
    reasons["steps"] = schedule.reason
    seen = schedule.steps * batch_size * math.prod(window.sizes)
    passes = seen / sum(math.prod(window.sizes if fit == "resample" else grid) for grid in grids)
    # Validation and test together are about a quarter as many as the training cases.
    windows = sum(1 if fit == "resample" else count_starts(grid, window.sizes, 0.5) for grid in grids) / 4
    predicted = windows / (schedule.steps * batch_size)
    deep = has_lower_levels(draft.network, options)
    chosen = recipe.choose_recipe(settings, spec, rank, schedule, passes, fingerprint.subjects, sparse, predicted, deep, reasons)
    _check_updates(settings, schedule.epochs * schedule.steps_per_epoch)
    plan = Plan(
        mode=draft.mode,
        plane=draft.plane,
        network=draft.network,
        levels=find_levels(draft.network, options),
        strides=strides,
        kernels=kernels,
        preprocessing=preprocessing,
        window=window,
        fit=fit,
        batch_size=batch_size,
        sampler=sampler,
        epochs=schedule.epochs,
        steps_per_epoch=schedule.steps_per_epoch,
        recipe=chosen | mode | {"epochs": schedule.epochs} | options,
        reasons=reasons,
    )
    _check_flips(plan.resolve(settings), spec)
    _check_contrast(settings, preprocessing)
    return plan


def _choose_sampler(settings: Settings, spec: DatasetSpec, mode: str) -> PatchSampler | None:
    sampling = settings.sampling or "foreground"
    if mode == "patch":
        return PatchSampler(sampling, settings.patches_per_case or 8, settings.class_probabilities)
    if mode == "volume":
        return None
    sampling = sampling if sampling == "foreground" else "uniform"
    if spec.spatial_dims == 2:
        return PatchSampler(sampling, per_case=1)
    return PatchSampler(sampling, per_case=0) if sampling == "foreground" else None


def _check_flips(settings: Settings, spec: DatasetSpec) -> None:
    """Raises ValueError if flips would mistake left for right."""
    flips, sides = has_flips(settings.augment or "none"), spec.mirrored_indices()
    if flips and sides and spec.spatial_dims == 2:
        names = ", ".join(f"{spec.class_names[one]} and {spec.class_names[other]}" for one, other in sides)
        raise ValueError(
            f"Expected volumes for `augment` with flips of classes on the left and the right ({names}). Received: 2-D files of "
            f"'{spec.name}', which do not say which side is which. Leave `--augment` out."
        )
    if flips and spec.one_sided:
        raise ValueError(
            f"Expected `augment` without flips, which would show {', '.join(spec.class_names[1:])} of '{spec.name}' on the other side too. "
            f"Received: '{settings.augment}'. Choose `--augment mild`, or classes of both sides that do not overlap."
        )


def _check_contrast(settings: Settings, preprocessing: Preprocessing) -> None:
    """Raises ValueError if contrasts would be drawn where an intensity always means the same."""
    augmentation = AUGMENTATIONS[settings.augment or "none"]
    if augmentation and augmentation.synthetic and preprocessing.intensity in ("ct", "fixed"):
        raise ValueError(
            f"Expected `intensity` measured in each scan beside `augment` '{settings.augment}'. Received: '{preprocessing.intensity}', "
            "whose numbers fit one contrast. Leave `--augment` out, or give `--intensity zscore`."
        )


def _check_updates(settings: Settings, steps: int) -> None:
    """Raises ValueError if the gradients of all `steps` of a training do not make one update."""
    if settings.accumulate > steps:
        raise ValueError(
            f"Expected `accumulate` up to the {steps} steps of the whole training. Received: {settings.accumulate}, which never makes an "
            "update of the weights. Choose a smaller one, or more `--epochs`."
        )


def _to_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the lists of JSON into tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
