"""Names the settings that do nothing beside others."""

from dataclasses import fields
from typing import NamedTuple

from modules.data.draws import has_flips
from modules.model.loss_spec import parse_loss
from modules.run.classes import find_classes
from modules.run.plan import Plan
from modules.run.prepared import PreparedRun
from modules.run.settings import LOSSES, Settings

# Losses that know voxels alone, which a batch has no sums of, and losses of overlaps alone, whose only class weighs 1.
VOXEL_LOSSES = ("bce", "ce", "focal")
OVERLAP_LOSSES = ("dice", "iou", "tversky", "focal_tversky", "generalised_dice")


class _Idle(NamedTuple):
    """A setting, whether it does nothing in this training, and why."""

    name: str
    idle: bool
    why: str


def describe_conflicts(prepared: PreparedRun) -> list[str]:
    """Describes the settings that do nothing beside others, a sentence each.

    Not told are defaults, a data set's own settings, what the plan chose, and what is switched off.
    """
    own = prepared.spec.defaults
    quiet = {item.name: (item.default, own.get(item.name, item.default)) for item in fields(Settings)}
    told = []
    for item in _list_idle(prepared):
        value = getattr(prepared.settings, item.name)
        if item.idle and value and value not in quiet[item.name] and item.name not in prepared.plan.recipe:
            told.append(f"--{item.name.replace('_', '-')} has no effect: {item.why}")
    return told


def _list_idle(prepared: PreparedRun) -> list[_Idle]:
    settings, spec, plan = prepared.settings, prepared.spec, prepared.plan
    losses = [name for name, _ in parse_loss(settings.loss, LOSSES)]
    preprocessing, patches = plan.preprocessing, plan.mode == "patch"
    official = {name for name, cases in prepared.splits.items() if settings.fold is None and any(case.split == name for case in cases)}
    judged = find_classes(prepared.prepared["validate"], spec.regions)
    unseen = [name for index, name in enumerate(spec.class_names) if index and index not in judged]
    return [
        _Idle("cycles", settings.schedule != "cosine_restarts", "only --schedule cosine_restarts has cycles"),
        _Idle("patches_per_case", not patches, "only --mode patch draws patches"),
        _Idle("sampling", plan.mode == "volume", "whole volumes leave no place to choose"),
        _Idle("sampling", plan.mode == "slice" and settings.sampling == "weighted", "only --mode patch weighs classes; slices come evenly"),
        _Idle("class_probabilities", not patches or settings.sampling != "weighted", "only --mode patch with --sampling weighted reads it"),
        _Idle("plane", plan.mode != "slice" or spec.spatial_dims == 2, "only slices of volumes lie across a plane"),
        _Idle("spacing", preprocessing.resize and bool(settings.shape or spec.preprocessing.shape), "every scan is resampled to --shape"),
        _Idle("resample", bool(settings.spacing) and not settings.init, "--spacing says the size of a voxel"),
        _Idle(
            "resample",
            settings.resample == "median" and (spec.spatial_dims == 2 or plan.mode == "volume"),
            "only patches and slices of volumes have the median voxel size",
        ),
        _Idle("interpolation", not (preprocessing.resize or preprocessing.spacing_mm), "no scan is resampled"),
        _Idle("intensity", _is_plain(plan), f"'{spec.name}' states no scale, mean and deviation, so intensities stay as they are"),
        _Idle("batch_dice", set(losses) <= set(VOXEL_LOSSES), f"--loss {settings.loss} has no overlaps"),
        _Idle("batch_dice", plan.batch_size == 1, "a batch is one sample"),
        _Idle(
            "class_weights", spec.num_classes == 2 and set(losses) <= set(OVERLAP_LOSSES), "the overlap of one class has no other weight"
        ),
        _Idle("optimizer", settings.optimizer == "adamw" and not settings.weight_decay, "adamw without --weight-decay is adam"),
        _Idle("patience", (settings.patience or 0) >= plan.epochs, f"the training ends after {plan.epochs} epochs anyway"),
        _Idle("stop_at_dice", bool(unseen), f"no validation label holds {', '.join(unseen)}, so not every class can be that good"),
        _Idle(
            "predict_mirror",
            settings.predict_mirror == "try" and not has_flips(settings.augment),
            f"--augment {settings.augment} does not flip",
        ),
        _Idle("validate_fraction", "validate" in official, "the data set has a validation set of its own"),
        _Idle("test_fraction", "test" in official or settings.fold is not None, "the test set is the data set's own or the fold's"),
    ]


def _is_plain(plan: Plan) -> bool:
    preprocessing = plan.preprocessing
    return preprocessing.intensity == "fixed" and (preprocessing.scale, preprocessing.mean, preprocessing.std) == (1.0, 0.0, 1.0)
