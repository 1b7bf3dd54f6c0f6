"""The recipe: how a network is trained, as far as the user leaves it open. Each rule follows from measurements in docs/recipes.md.

All functions are pure. They return the values of settings by name, and add a reason for each decision.
"""

from dataclasses import dataclass
from typing import Any

from modules.data.spec import DatasetSpec
from modules.networks import list_options
from modules.run.settings import Settings

# The networks of each spatial rank.
NETWORKS = {2: "unet2d", 3: "plain_unet"}
# The width where no time is measured: nnU-Net's first level.
BASE_FILTERS = 32
# Most voxels of a patch, by the device: what a step of some tenths of a second can compute, and twice nnU-Net's usual cube of 128.
MOST_PATCH = {"cpu": 64**3, "gpu": 160**3}
# Samples of a step on a CPU, and the most on a GPU, by rank.
BATCH = {2: 16, 3: 2}
MOST_BATCH = {2: 64, 3: 16}
# The part of a GPU's memory that feature maps and weights may take, and the bytes of a weight with its gradient and moments.
MEMORY_SHARE, WEIGHT_BYTES = 0.7, 16
# Fewer steps than these do not profit from what helps a long training.
SHORT, LONG = 3_000, 20_000


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


def choose_recipe(settings: Settings, spec: DatasetSpec, rank: int, schedule: Schedule, reasons: dict[str, str]) -> dict[str, Any]:
    """Chooses the settings of the training that the user leaves open.

    Args:
        settings: The user's settings.
        spec: The data set.
        rank: Spatial rank of the network.
        schedule: The length of the training.
        reasons: Takes the reason for each decision.
    """
    short, long = schedule.steps < SHORT, schedule.steps >= LONG
    length = "short" if short else "long" if long else "medium"
    wanted: dict[str, Any] = {
        "loss": "dice_ce",
        "batch_dice": True,
        "augment": "none" if short else "strong" if long else "light",
        "deep_supervision": False,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_epochs": 0,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
        "ema": 0.0,
        # A schedule that falls to 0 is best at its end.
        "patience": 0,
    }
    if wanted["augment"] != "none" and rank == 2 and spec.mirrored_indices():
        wanted["augment"] = "none"
    reasons["augment"] = f"{schedule.steps} steps are a {length} training"
    return {name: value for name, value in wanted.items() if settings.is_open(name)}
