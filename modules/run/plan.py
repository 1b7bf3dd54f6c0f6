"""The plan: all decisions that follow from the settings, the data set and its scans, made once and written down.

`make_plan` is pure. The pipeline, the trainer, the evaluation and the bundle follow its decisions and make none themselves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from modules.data.documents import anything, check_fields, choice, many, mapping, number, optional, text, to_line, whole
from modules.data.draws import AUGMENTATIONS
from modules.data.patches import PLANES, SAMPLINGS, Window
from modules.data.pipeline import PatchSampler, count_samples
from modules.data.preprocess import Preprocessing
from modules.data.spec import DatasetSpec
from modules.networks import MOST_LEVELS, NETWORKS, check_options, find_divisor, find_levels, find_ranks
from modules.predict.schema import PREPROCESSING, SIZE
from modules.run.settings import MODES, Settings

# The most voxels of a patch or volume whose size follows from the scans.
MOST_VOXELS = 96**3
FITS = ("crop", "resample", "tile")
_REMEDY = "Start the run anew."
_FIELDS = {
    "mode": choice(MODES),
    "plane": choice(tuple(PLANES)),
    "network": choice(NETWORKS),
    "levels": optional(whole(1, MOST_LEVELS)),
    "divisor": whole(1, 1 << 10),
    "preprocessing": anything(),
    "window": many(SIZE, 2, 3),
    "fit": choice(FITS),
    "batch_size": whole(1, 1 << 20),
    "sampler": anything(),
    "steps_per_epoch": whole(1, 1 << 40),
    "reasons": mapping(text(), text(1_000)),
}
_SAMPLER = {"sampling": choice(SAMPLINGS), "per_case": whole(1, 1 << 20), "probabilities": many(number(0), 0, 255)}


@dataclass(frozen=True)
class Fingerprint:
    """The measurements of the training cases.

    Attributes:
        cases: Number of training cases.
        shapes: The shape of each case, in canonical orientation, after foreground crop and resampling. Empty where no size follows from
            the scans.
    """

    cases: int
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Plan:
    """All decisions about size and shape that training and prediction share.

    Attributes:
        mode: The kind of sample: "slice", "volume" or "patch".
        plane: The plane of slices of volumes.
        network: The network's name.
        levels: Number of times that the network halves the resolution; None where that is no option of the network.
        divisor: A number that divides every size of the window.
        preprocessing: The steps that each case goes through before the network.
        window: The window that the network sees at once.
        fit: The way to fit cases to the window: "resample" to it, or "tile" them with windows.
        batch_size: Samples a step, over all devices.
        sampler: The sampler of training patches; None where samples are the windows of a grid. Slices have one that takes a patch
            anywhere in a slice larger than the window, once an epoch.
        steps_per_epoch: Batches an epoch.
        reasons: The reason for each decision, by its name.
    """

    mode: str
    plane: str
    network: str
    levels: int | None
    divisor: int
    preprocessing: Preprocessing
    window: Window
    fit: str
    batch_size: int
    sampler: PatchSampler | None
    steps_per_epoch: int
    reasons: Mapping[str, str] = field(default_factory=dict)

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
            records: dict[str, Any] = {
                "preprocessing": Preprocessing(**_to_tuples(values["preprocessing"])),
                "window": Window(tuple(values["window"])),
                "sampler": None if sampler is None else PatchSampler(**_to_tuples(sampler)),
            }
            plan = cls(**dict(values) | records)
            if len(plan.window.sizes) != plan.preprocessing.spatial_dims:
                raise ValueError(f"window {plan.window.sizes} of cases of {plan.preprocessing.spatial_dims} dimensions")
            if plan.fit != "tile" and plan.preprocessing.shape != plan.window.sizes:
                raise ValueError(f"window {plan.window.sizes} of cases of {plan.preprocessing.shape}")
            return plan
        except ValueError as error:
            raise ValueError(f"Expected a plan in {source}. Received: {to_line(error)}. {_REMEDY}") from error

    def describe(self) -> list[str]:
        """Describes each decision with its reason in a line."""
        decisions = {
            "mode": self.mode,
            "network": self.network + (f", levels {self.levels}" if self.levels else ""),
            "spacing": "x".join(f"{size:g}" for size in self.preprocessing.spacing_mm) + " mm" if self.preprocessing.spacing_mm else "own",
            "window": f"{self.window}, {self.fit}",
            "batch": str(self.batch_size),
            "steps": f"{self.steps_per_epoch} an epoch",
        }
        return [f"plan  {name:<9}{value:<22}{self.reasons.get(name, '')}".rstrip() for name, value in decisions.items()]


class PlanDraft(NamedTuple):
    """The decisions that need no scan; the names are those of `Plan`.

    Attributes:
        mode: The kind of sample.
        plane: The plane of slices of volumes.
        network: The network's name.
        preprocessing: The preprocessing, without the shape of the window.
        sizes: Sizes of the window; empty where they follow from the scans.
        needs_shapes: Whether the plan needs the shapes of the training cases.
        reasons: The reason for each decision, by its name.
    """

    mode: str
    plane: str
    network: str
    preprocessing: Preprocessing
    sizes: tuple[int, ...]
    needs_shapes: bool
    reasons: dict[str, str]


def draft_plan(settings: Settings, spec: DatasetSpec) -> PlanDraft:
    """Makes the decisions that need no scan, so that a wrong setting shows before the first file is read.

    Raises:
        ValueError: If mode, network, its options or sizes do not fit the data set or one another.
    """
    volumes = spec.spatial_dims == 3
    mode = settings.mode or ("patch" if volumes else "slice")
    if not volumes and mode != "slice":
        raise ValueError(f"Expected `mode` 'slice' for '{spec.name}', which is a set of slices. Received: {mode!r}.")
    rank = 2 if mode == "slice" else 3
    network = settings.network or f"unet{rank}d"
    if rank not in find_ranks(network):
        fitting = tuple(name for name in NETWORKS if rank in find_ranks(name))
        raise ValueError(f"Expected a {rank}-D `network` for mode '{mode}', one of {fitting}. Received: {network!r}.")
    check_options(network, settings.network_options)
    for name, length in (("shape", rank), ("spacing", spec.spatial_dims), ("class_probabilities", spec.num_parts)):
        value = getattr(settings, name)
        if value and len(value) != length:
            raise ValueError(f"Expected `{name}` of {length} numbers for '{spec.name}' in mode '{mode}'. Received: {value}.")
    _check_flips(settings, spec)
    plane = settings.plane or "axial"
    sizes = settings.shape or spec.preprocessing.shape
    if sizes and volumes and mode == "slice":
        sizes = (*sizes[: PLANES[plane]], 1, *sizes[PLANES[plane] :])
    preprocessing = replace(
        spec.preprocessing,
        shape=(),
        spacing_mm=settings.spacing or spec.preprocessing.spacing_mm,
        interpolation=settings.interpolation,
        intensity=settings.intensity or spec.preprocessing.intensity,
        foreground_crop=settings.crop == "foreground" if settings.crop else spec.preprocessing.foreground_crop,
    )
    reasons = {
        "mode": "set" if settings.mode else f"a set of {'volumes' if volumes else 'slices'}",
        "network": "set" if settings.network else f"for samples of {rank} dimensions",
        "spacing": "set" if settings.spacing else "the data set's own" if spec.preprocessing.spacing_mm else "no resampling",
        "window": "set" if settings.shape else "the data set's own",
        "batch": "set" if settings.batch_size else f"for {rank}-D",
    }
    return PlanDraft(mode, plane, network, preprocessing, sizes, volumes and (not sizes or mode == "slice"), reasons)


def make_plan(settings: Settings, spec: DatasetSpec, fingerprint: Fingerprint) -> Plan:
    """Makes the plan of a training; a pure function of its arguments.

    Args:
        settings: The user's settings.
        spec: The data set, reduced to the chosen classes.
        fingerprint: The fingerprint of the training cases, see `modules.run.fingerprint.measure`.

    Raises:
        ValueError: If settings do not fit the data set or one another.
    """
    draft = draft_plan(settings, spec)
    levels, divisor = find_levels(draft.network, settings.network_options), find_divisor(draft.network, settings.network_options)
    sizes, reasons = draft.sizes, dict(draft.reasons)
    if not sizes:
        sizes = derive_window(fingerprint.shapes, draft.mode, PLANES[draft.plane], divisor)
        reasons["window"] = f"from the shapes of {fingerprint.cases} training cases"
    window = Window(tuple(sizes))
    fit = "resample" if draft.mode == "volume" else "tile"
    if fit == "resample" and not draft.preprocessing.spacing_mm:
        reasons["spacing"] = "each volume is brought to the window"
    preprocessing = draft.preprocessing if fit == "tile" else replace(draft.preprocessing, shape=window.sizes, resize=fit == "resample")
    sampler = None
    if draft.mode == "patch":
        sampler = PatchSampler(settings.sampling, settings.patches_per_case, settings.class_probabilities)
    elif spec.spatial_dims == 2:
        sampler = PatchSampler("uniform", per_case=1)
    batch_size = settings.batch_size or (16 if draft.mode == "slice" else 2)
    shapes = fingerprint.shapes if fit == "tile" and sampler is None else (window.sizes,) * fingerprint.cases
    samples = count_samples(shapes, window, sampler)
    reasons["steps"] = f"{samples} samples"
    steps = math.ceil(samples / batch_size)
    _check_updates(settings, settings.epochs * steps)
    return Plan(
        mode=draft.mode,
        plane=draft.plane,
        network=draft.network,
        levels=levels,
        divisor=divisor,
        preprocessing=preprocessing,
        window=window,
        fit=fit,
        batch_size=batch_size,
        sampler=sampler,
        steps_per_epoch=steps,
        reasons=reasons,
    )


def _check_flips(settings: Settings, spec: DatasetSpec) -> None:
    """Raises ValueError if flips would mistake left for right."""
    augmentation, sides = AUGMENTATIONS[settings.augment], spec.mirrored_indices()
    if augmentation and augmentation.flip and sides and spec.spatial_dims == 2:
        names = ", ".join(f"{spec.class_names[one]} and {spec.class_names[other]}" for one, other in sides)
        raise ValueError(
            f"Expected volumes for `augment` with flips of classes on the left and the right ({names}). Received: 2-D files of "
            f"'{spec.name}', which do not say which side is which. Leave `--augment` out."
        )


def _check_updates(settings: Settings, steps: int) -> None:
    """Raises ValueError if the gradients of all `steps` of a training do not make one update."""
    if settings.accumulate > steps:
        raise ValueError(
            f"Expected `accumulate` up to the {steps} steps of the whole training. Received: {settings.accumulate}, which never makes an "
            "update of the weights. Choose a smaller one, or more `--epochs`."
        )


def derive_window(shapes: Sequence[Sequence[int]], mode: str, plane: int, divisor: int, voxels: int = MOST_VOXELS) -> tuple[int, ...]:
    """Chooses the window that the network sees at once, from the shapes of the prepared cases.

    Args:
        shapes: `S` of each case, in canonical orientation.
        mode: For "slice" the largest extents across `plane`, so that nothing is cut off. For "patch" and "volume" the median shape, shrunk
            in proportion to at most `voxels`.
        plane: The axis that slices lie across.
        divisor: A number that divides each size.
        voxels: The most voxels of a patch or volume.

    Returns:
        Sizes in the rank of the shapes, with a 1 along `plane` for slices.
    """
    if mode == "slice":
        largest = np.max(shapes, axis=0)
        return tuple(1 if axis == plane else -(-int(size) // divisor) * divisor for axis, size in enumerate(largest))
    window = np.median(shapes, axis=0)
    window = window * min(1.0, (voxels / window.prod()) ** (1 / len(window)))
    # Sizes are rounded up: a little padding costs less than a little cutting, as long as the voxels suffice.
    sizes = [max(divisor, -(-round(size) // divisor) * divisor) for size in window]
    while math.prod(sizes) > voxels and max(sizes) > divisor:
        sizes[sizes.index(max(sizes))] -= divisor
    return tuple(sizes)


def _to_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the lists of JSON into tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
