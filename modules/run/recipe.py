"""The recipe: how a network is trained, as far as the user leaves it open. Each rule follows from measurements in docs/recipes.md.

All functions are pure. They return the values of settings by name, and add a reason for each decision.
"""

import math
from dataclasses import dataclass
from typing import Any

from modules.data.draws import AUGMENTATIONS, has_flips
from modules.data.spec import DatasetSpec
from modules.networks import list_options
from modules.run.settings import Settings

# The networks of each spatial rank.
NETWORKS = {2: "unet2d", 3: "plain_unet"}
# The width where no time is measured: nnU-Net's first level.
BASE_FILTERS = 32
# Most voxels of a patch, by the device: what a step of some tenths of a second can compute, and twice nnU-Net's usual cube of 128.
MOST_PATCH = {"cpu": 64**3, "gpu": 160**3}
# Samples of a step on a CPU: few, so that there are many steps. A batch of slices must show enough foreground, so it is larger where this
# takes less than `SPARSE` of the voxels.
SPARSE_BATCH, SPARSE = 8, 0.1
BATCH = {2: 2, 3: 1}
# The most samples of a step on a GPU, by rank.
MOST_BATCH = {2: 64, 3: 16}
# The part of a GPU's memory that feature maps and weights may take, and the bytes of a weight with its gradient and moments.
MEMORY_SHARE, WEIGHT_BYTES = 0.7, 16
# The augmentation by the number of passes over the voxels of the training cases: what helps a long training costs a short one. Sparse
# structures of few subjects are learnt by heart sooner.
AUGMENT_FROM = ((1000, "full"), (15, "mild"), (0, "none"))
AUGMENT_FEW_FROM, FEW_SUBJECTS = ((1000, "full"), (6, "mild"), (0, "none")), 20
# With fewer training subjects the validation, about a tenth of them, chooses an epoch by chance: the last one, whose rate is 0, is better.
CHOOSING_SUBJECTS = 100
# Flips at prediction are tried where validating and testing with them computes this part of the training's windows at most.
MIRRORED_SHARE = 0.05
# Steps from which deep supervision helps, and from which an average of the weights remembers nothing of their start.
LONG, AVERAGED_FROM = 20_000, 500


@dataclass(frozen=True)
class Schedule:
    """The length of a training.

    Attributes:
        epochs: Epochs. Each ends with a validation.
        steps_per_epoch: Batches an epoch.
        reason: Why so many.
    """

    epochs: int
    steps_per_epoch: int
    reason: str = ""

    @property
    def steps(self) -> int:
        """Batches of the whole training."""
        return self.epochs * self.steps_per_epoch


# nnU-Net's own (Isensee et al., 2021).
WHOLE = Schedule(1000, 250, "the whole recipe: 1000 epochs of 250 steps, as nnU-Net")


def choose_options(settings: Settings, network: str, rank: int) -> dict[str, Any]:
    """Chooses the options of the network; those that the user set stay."""
    known = {option.name: option.default for option in list_options(network)}
    options = {name: value for name, value in settings.network_options.items() if value is not None}
    if "base_filters" in known and not settings.network:
        options.setdefault("base_filters", BASE_FILTERS)
    return ({"base_filters": known["base_filters"]} if "base_filters" in known else {}) | options


def choose_recipe(
    settings: Settings,
    spec: DatasetSpec,
    rank: int,
    schedule: Schedule,
    passes: float,
    subjects: int,
    sparse: bool,
    predicted: float,
    deep: bool,
    reasons: dict[str, str],
) -> dict[str, Any]:
    """Chooses the settings of the training that the user leaves open.

    Args:
        settings: The user's settings.
        spec: The data set.
        rank: Spatial rank of the network.
        schedule: The length of the training.
        passes: How often the training goes through the voxels of all cases.
        subjects: Number of training subjects.
        sparse: Whether foreground takes less than `SPARSE` of the voxels.
        predicted: Windows of the predictions of validation and test, over the windows of the training.
        deep: Whether the network has decoder levels to supervise.
        reasons: Takes the reason for each decision.
    """
    few = sparse and subjects < FEW_SUBJECTS
    augment = next(name for least, name in (AUGMENT_FEW_FROM if few else AUGMENT_FROM) if passes >= least)
    # 2-D files do not say which axis runs from left to right, so classes with sides allow no flips. Nor does one side alone.
    fixed = spec.one_sided or (rank == 2 and spec.spatial_dims == 2 and spec.mirrored_indices())
    if fixed and AUGMENTATIONS[augment] is not None:
        augment = "mild"
    reasons["augment"] = f"{passes:.2g} passes over the training cases"
    # The validation Dice ends a training by patience or at a goal, and then it chooses the epoch too.
    judged = subjects >= CHOOSING_SUBJECTS or settings.schedule == "constant" or settings.patience or settings.stop_at_dice
    wanted: dict[str, Any] = {
        "loss": "dice_ce",
        "batch_dice": True,
        "augment": augment,
        "deep_supervision": schedule.steps >= LONG and rank == 3 and deep,
        "optimizer": "adam",
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "warmup_epochs": 1 if schedule.epochs >= 20 else 0,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
        "ema": 0.99 if schedule.steps >= AVERAGED_FROM else 0.0,
        # A schedule that falls to 0 is best at its end.
        "patience": 0,
        "keep": "best" if judged else "last",
    }
    mirrored = predicted * 2**rank if has_flips(settings.augment or augment) else math.inf
    wanted["predict_mirror"] = "try" if mirrored <= MIRRORED_SHARE else "never"
    return {name: value for name, value in wanted.items() if settings.is_open(name)}
