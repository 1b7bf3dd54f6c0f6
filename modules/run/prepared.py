"""All that a training has before its first step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modules import networks
from modules.data.cache import PreparedCase
from modules.data.case import Case
from modules.data.spec import DatasetSpec
from modules.predict.bundle import ModelBundle
from modules.run.plan import Plan
from modules.run.proof import Manifest
from modules.run.settings import Settings


@dataclass(frozen=True)
class PreparedRun:
    """All that a training has before its first step.

    Attributes:
        settings: What the user set.
        spec: The data set, reduced to the chosen classes.
        plan: What was decided.
        splits: The cases by split.
        remarks: What there is to tell about the splits.
        prepared: The same cases, decoded and preprocessed.
        network: A `keras.Model` from images to logits.
        precision: What the network computes in.
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

    def make_bundle(self, provenance: Mapping[str, Any]) -> ModelBundle:
        """Makes a bundle of the model with its head and all it needs to predict; it shares the network's weights."""
        return ModelBundle(
            model=networks.with_head(self.network),
            preprocessing=self.plan.preprocessing,
            window=self.plan.window,
            class_names=self.spec.class_names,
            channels=self.spec.channels,
            label_rule=self.spec.label_rule,
            mirrored_labels=self.spec.mirrored_indices(),
            provenance=provenance,
        )


def build_network(settings: Settings, spec: DatasetSpec, plan: Plan):
    """Builds the network and asks the loss about it: a wrong option shows before the run's folder is made.

    Raises:
        ValueError: For an option, a shape, a loss or deep supervision that does not fit.
    """
    from modules.model.losses import SegmentationLoss

    shape = plan.window.shape
    network = networks.build(plan.network, (*shape, len(spec.channels)), spec.num_classes, **settings.network_options)
    SegmentationLoss(settings.loss)(np.zeros((1, *shape)), np.zeros((1, *network.output.shape[1:])))
    if settings.deep_supervision:
        networks.with_deep_supervision(network)
    return network
