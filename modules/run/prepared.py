"""The prepared run: everything that a training has before its first step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modules import networks
from modules.data.cache import PreparedCase
from modules.data.case import Case
from modules.data.draws import AUGMENTATIONS
from modules.data.fingerprint import Fingerprint
from modules.data.ranges import TrainingRanges
from modules.data.regions import IGNORE
from modules.data.spec import DatasetSpec
from modules.data.subjects import find_copies
from modules.networks import fill_options
from modules.predict.bundle import ModelBundle
from modules.run.classes import check_foreground, check_judged
from modules.run.init import Beginning
from modules.run.plan import Plan
from modules.run.proof import Manifest
from modules.run.seen import describe_seen, write_seen
from modules.run.settings import Settings


@dataclass(frozen=True)
class PreparedRun:
    """Everything that a training has before its first step. Making it raises ValueError if no training label holds foreground, or
    if every voxel of the validation is ignored.

    Attributes:
        settings: The settings, with the plan's choices in place of what the user leaves open.
        spec: The data set, reduced to the chosen classes.
        plan: The plan of the training.
        splits: The cases by split.
        remarks: Remarks about the division, in sentences.
        prepared: The same cases, decoded and preprocessed.
        network: A `keras.Model` from images to logits.
        precision: The precision that the network computes in.
        devices: Names of the devices that share each batch.
        manifest: The data files and their hashes.
        fingerprint: The measurements of the training cases.
        begun: The model that the training begins from; None for random weights.
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
    fingerprint: Fingerprint
    begun: Beginning | None = None

    def __post_init__(self) -> None:
        check_foreground(self.prepared["train"], self.spec.class_names, self.spec.name, self.spec.regions)
        check_judged(self.prepared.get("validate", ()), self.spec.name)

    def make_bundle(self, provenance: Mapping[str, Any]) -> ModelBundle:
        """Makes a bundle of the network with its head and all that prediction needs; it shares the network's weights."""
        augmentation, deep = AUGMENTATIONS[self.settings.augment], self.plan.window.deep
        flips = augmentation is not None and augmentation.flip > 0
        trained = TrainingRanges.pool((case.measured for case in self.prepared["train"]), self.spec.spatial_dims)
        origin = {
            "network": self.plan.network,
            "network_options": fill_options(self.plan.network, list_options(self.settings, self.plan)),
            "seen": write_seen(self.splits, self.prepared, self.begun.seen if self.begun else None),
        }
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
            trained=trained.allow_contrasts() if augmentation is not None and augmentation.synthetic else trained,
            provenance=origin | dict(provenance),
        )

    def find_seen(self) -> dict[str, dict[str, list[str]]]:
        """Finds the subjects that the model of `--init` has seen, see `modules.run.seen.Seen.find`; empty without one."""
        return self.begun.seen.find(self.splits, self.prepared) if self.begun else {}

    def describe(self) -> list[str]:
        """Describes in sentences the splits, what the run begins from, and what makes scores those of scans that were seen."""
        hashes = {name: [case.sources_sha256 for case in members] for name, members in self.prepared.items()}
        lines = [*self.remarks, *find_copies(self.splits, hashes)]
        if self.begun is not None:
            lines += [*self.begun.describe(self.plan), *describe_seen(self.find_seen(), self.splits, self.begun.source)]
        return lines

    def record_data(self) -> dict[str, Any]:
        """Makes the entries of `run.json` about data.

        Returns:
            `splits` has the case identifiers by split, and `subjects` the number of subjects. `data_set` has what is found again on a
            resume, `about` what its publisher says, and `remarks` the sentences on its files and splits.
        """
        return {
            "splits": {name: [case.case_id for case in members] for name, members in self.splits.items()},
            "subjects": {name: len({case.subject_id for case in members}) for name, members in self.splits.items()},
            "data_set": self.spec.to_json() | {"found": list(self.spec.found)},
            "about": self.spec.tell_source(),
            "remarks": self.describe(),
        }

    def record_init(self) -> dict[str, Any]:
        """Makes the entry `init` of `run.json`, with the number of subjects seen by split; empty for random weights."""
        if self.begun is None:
            return {}
        seen = {split: len({name for names in roles.values() for name in names}) for split, roles in self.find_seen().items()}
        return {"init": self.begun.to_json() | {"seen_subjects": seen if self.begun.seen.known else None}}


def list_options(settings: Settings, plan: Plan) -> dict[str, Any]:
    """Lists the options that the network of a run is built with; those that are not there have their defaults."""
    return dict(settings.network_options) | ({"levels": plan.levels} if plan.levels else {})


def build_network(settings: Settings, spec: DatasetSpec, plan: Plan):
    """Builds the network and tries the loss on it, so that a wrong option shows before the run's folder is made.

    Raises:
        ValueError: If an option, a shape, the loss or deep supervision does not fit.
    """
    shape = plan.window.shape
    stages = {"strides": plan.strides, "kernels": plan.kernels} if plan.strides else {}
    options = list_options(settings, plan) | stages
    network = networks.build(plan.network, (*shape, len(spec.channels)), spec.num_classes, num_regions=len(spec.regions), **options)
    make_loss(settings, spec)(np.zeros((1, *shape)), np.zeros((1, *network.output.shape[1:])))
    if settings.deep_supervision:
        networks.with_deep_supervision(network)
    return network


def make_loss(settings: Settings, spec: DatasetSpec, class_weights: Sequence[float] | None = None):
    """Makes the loss of a data set: with its regions, and without the voxels that it ignores."""
    from modules.model.losses import SegmentationLoss

    regions, ignore = [region.parts for region in spec.regions], IGNORE if spec.label_rule.ignores else None
    return SegmentationLoss(settings.loss, class_weights, bool(settings.batch_dice), regions=regions, ignore=ignore)
