"""Plans for scans and machines that are not here, as tables.

nnU-Net's published plans (Isensee et al., 2021, supplement) have patches of 128x128x128 for CT of the abdomen and for BraTS, 20x320x256
for the prostate, and 40x56x40 with a batch of 9 for the hippocampus. All are for a GPU of 8 GB in half precision. Ours differ in three
points on purpose. A patch of BraTS or CT is a step shorter, because our estimate counts what normalisation keeps in float32. No patch is
larger than 160^3 voxels, as a step would then take seconds. A CPU learns large volumes and flat voxels by slices.
"""

import math
from dataclasses import replace

import pytest
from helpers import make_fingerprint

from dataset import DATASETS
from modules.hardware import Hardware
from modules.run.plan import make_plan
from modules.run.recipe import Schedule
from modules.run.settings import Settings

GIB = 1 << 30
MACHINES = {"cpu": Hardware(cores=2, memory_bytes=24 * GIB)} | {
    f"{size} GB": Hardware("gpu", "", 16, 64 * GIB, size * GIB, bfloat16=True) for size in (8, 24, 80)
}
# Shape, voxel size, channels and number of classes of a typical case, and the number of cases.
SETS = {
    "CT": ((512, 512, 400), (0.8, 0.8, 1.0), ("CT",), 6, 100),
    "BraTS": ((240, 240, 155), (1.0, 1.0, 1.0), ("T1", "T1c", "T2", "FLAIR"), 4, 400),
    "prostate": ((640, 640, 24), (0.3, 0.3, 3.0), ("T2",), 3, 40),
    "hippocampus": ((36, 50, 35), (1.0, 1.0, 1.0), ("MRI",), 3, 260),
}
ALL = "222"
FLAT = ["221", "221", "221", "222", "221", "221"]
TABLE = [
    # data set, machine, mode, network, window, batch, intensity, strides of each level
    ("CT", "cpu", "slice", "unet2d", "128x128", 8, "ct", []),
    ("CT", "8 GB", "patch", "plain_unet", "128x128x96", 2, "ct", [ALL, ALL, ALL, ALL, "221"]),
    ("CT", "24 GB", "patch", "plain_unet", "192x160x128", 2, "ct", [ALL] * 5),
    ("CT", "80 GB", "patch", "plain_unet", "192x160x128", 9, "ct", [ALL] * 5),
    ("BraTS", "cpu", "slice", "unet2d", "128x128", 8, "zscore", []),
    ("BraTS", "8 GB", "patch", "plain_unet", "128x128x96", 2, "zscore", [ALL, ALL, ALL, ALL, "221"]),
    ("BraTS", "24 GB", "patch", "plain_unet", "192x160x112", 3, "zscore", [ALL, ALL, ALL, ALL, "221"]),
    ("BraTS", "80 GB", "patch", "plain_unet", "192x160x112", 11, "zscore", [ALL, ALL, ALL, ALL, "221"]),
    ("prostate", "cpu", "slice", "unet2d", "128x128", 8, "zscore", []),
    ("prostate", "8 GB", "patch", "plain_unet", "320x320x10", 2, "zscore", FLAT),
    ("prostate", "24 GB", "patch", "plain_unet", "512x448x16", 2, "zscore", [*FLAT[:4], ALL, "221"]),
    # 5 % of all voxels of 40 scans.
    ("prostate", "80 GB", "patch", "plain_unet", "512x448x16", 5, "zscore", [*FLAT[:4], ALL, "221"]),
    ("hippocampus", "cpu", "patch", "plain_unet", "40x56x40", 1, "zscore", [ALL] * 3),
    ("hippocampus", "8 GB", "patch", "plain_unet", "40x56x40", 9, "zscore", [ALL] * 3),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_plans_for_scans_and_machines_that_are_not_here(row):
    name, machine, *expected = row
    shape, spacing_mm, channels, classes, number = SETS[name]
    spec = replace(DATASETS["msd"], channels=channels, class_names=("background", *(f"class {index}" for index in range(1, classes))))
    each = len(channels)
    fingerprint = make_fingerprint(
        [shape] * number,
        spacing_mm,
        # A hundredth of the voxels is foreground.
        voxels=(math.prod(shape) * 99 // 100, *(100,) * (classes - 1)),
        quantiles=((-50.0, 0.0, 20.0, 50.0, 80.0, 150.0, 250.0),) * each,
        means=(50.0,) * each,
        deviations=(60.0,) * each,
    )
    plan = make_plan(Settings("msd"), spec, fingerprint, Schedule(1, 1), MACHINES[machine])
    strides = ["".join(map(str, stride)) for stride in plan.strides]
    assert [plan.mode, plan.network, str(plan.window), plan.batch_size, plan.preprocessing.intensity, strides] == expected
    if name == "prostate" and plan.strides:
        # Kernels are flat until the voxels are nearly as long as wide.
        assert ["".join(map(str, kernel)) for kernel in plan.kernels][:4] == ["331", "331", "331", "333"]
    if name == "CT":
        assert (plan.preprocessing.clip, plan.preprocessing.mean) == ((-50.0, 250.0), 50.0)
