"""The prepared run: everything that a training has before its first step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modules import networks
from modules.data.cache import PreparedCase
from modules.data.case import Case
from modules.data.draws import AUGMENTATIONS
from modules.data.ranges import TrainingRanges
from modules.data.regions import IGNORE
from modules.data.spec import DatasetSpec
from modules.predict.bundle import ModelBundle
from modules.run.classes import check_foreground, check_judged
from modules.run.plan import Plan
from modules.run.proof import Manifest
from modules.run.settings import Settings


@dataclass(frozen=True)
class PreparedRun:
    """Everything that a training has before its first step. Making it raises ValueError if no training label holds foreground, or
    if every voxel of the validation is ignored.

    Attributes:
        settings: The user's settings.
        spec: The data set, reduced to the chosen classes.
        plan: The plan of the training.
        splits: The cases by split.
        remarks: Remarks about the splits, in sentences.
        prepared: The same cases, decoded and preprocessed.
        network: A `keras.Model` from images to logits.
        precision: The precision that the network computes in.
        devices: Names of the devices that share each batch.
        manifest: The data files and their hashes.
    """

    settings: Settings
    spec: DatasetSpec
    plan: Plan
    splits: Mapping[str, Sequence[Case]]
    remarks: Sequence[str]
    prepared: Mapping[str, Sequence[PreparedCase]]
    network: Any
    precision: str
    devices: Sequence[str]
    manifest: Manifest

    def __post_init__(self) -> None:
        check_foreground(self.prepared["train"], self.spec.class_names, self.spec.name, self.spec.regions)
        check_judged(self.prepared.get("validate", ()), self.spec.name)

    def make_bundle(self, provenance: Mapping[str, Any]) -> ModelBundle:
        """Makes a bundle of the network with its head and all that prediction needs; it shares the network's weights."""
        augmentation, deep = AUGMENTATIONS[self.settings.augment], self.plan.window.deep
        flips = augmentation is not None and augmentation.flip > 0
        return ModelBundle(
            model=networks.with_head(self.network, regions=bool(self.spec.regions)),
            preprocessing=self.plan.preprocessing,
            window=self.plan.window,
            class_names=self.spec.class_names,
            channels=self.spec.channels,
            label_rule=self.spec.label_rule,
            mirrored_labels=self.spec.mirrored_indices(),
            regions=self.spec.regions,
            flipped_axes=tuple(axis for axis, size in enumerate(deep) if size > 1 and flips),
            trained=TrainingRanges.pool((case.measured for case in self.prepared["train"]), self.spec.spatial_dims),
            provenance=provenance,
        )


def build_network(settings: Settings, spec: DatasetSpec, plan: Plan):
    """Builds the network and tries the loss on it, so that a wrong option shows before the run's folder is made.

    Raises:
        ValueError: If an option, a shape, the loss or deep supervision does not fit.
    """
    shape = plan.window.shape
    options = dict(settings.network_options) | ({"levels": plan.levels} if plan.levels else {})
    network = networks.build(plan.network, (*shape, len(spec.channels)), spec.num_classes, num_regions=len(spec.regions), **options)
    make_loss(settings, spec)(np.zeros((1, *shape)), np.zeros((1, *network.output.shape[1:])))
    if settings.deep_supervision:
        networks.with_deep_supervision(network)
    return network


def make_loss(settings: Settings, spec: DatasetSpec, class_weights: Sequence[float] | None = None):
    """Makes the loss of a data set: with its regions, and without the voxels that it ignores."""
    from modules.model.losses import SegmentationLoss

    regions, ignore = [region.parts for region in spec.regions], IGNORE if spec.label_rule.ignores else None
    return SegmentationLoss(settings.loss, class_weights, settings.batch_dice, regions=regions, ignore=ignore)
