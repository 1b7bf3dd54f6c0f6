"""The prepared cases as one table on the device, and the places of the samples' windows in it: what the host does of it.

The voxels of all cases lie behind one another: image `(n, C)` float16 and label `(n,)` uint8. A batch then holds no voxels, but where its
windows lie in the table. `modules.model.cut` cuts them out on the device.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from modules.data.cache import PreparedCase
from modules.data.patches import Window
from modules.hardware import Hardware

# The share of the device's memory, and of the host's, that the table may take. The plan gives the network at most 0.7 of the device's.
DEVICE_SHARE, HOST_SHARE = 0.2, 0.5
# Indices of voxels are int32 on the device.
_MOST_VALUES = 2**31 - 1


def find_bases(cases: Sequence[PreparedCase]) -> np.ndarray:
    """Finds the first row of each case in the table, `(n,)` int64."""
    return np.cumsum([0, *(case.voxels for case in cases)])[:-1]


def read_table(cases: Sequence[PreparedCase], channels: int) -> dict[str, np.ndarray]:
    """Reads all cases into a table: `table_image (n, C)` float16 and `table_label (n,)` uint8."""
    number = sum(case.voxels for case in cases)
    image, label = np.empty((number, channels), np.float16), np.empty(number, np.uint8)

    def read(case: PreparedCase, base: int) -> None:
        rows = slice(base, base + case.voxels)
        case.read_into(image[rows].reshape(*case.shape, channels), label[rows].reshape(case.shape), (0,) * len(case.shape))

    with ThreadPoolExecutor(max_workers=4) as executor:
        # The list makes an error of reading show here.
        list(executor.map(read, cases, find_bases(cases).tolist()))
    return {"table_image": image, "table_label": label}


def choose_table(wish: str, voxels: int, channels: int, hardware: Hardware, backend: str, devices: int) -> tuple[int, str]:
    """Chooses whether the training cases lie on the device as one table.

    Args:
        wish: The setting `resident`: "yes", "no" or "auto".
        voxels: The voxels of all cases.
        channels: `C`.
        hardware: The machine.
        backend: Name of Keras's backend.
        devices: Number of devices that train.

    Returns:
        The bytes of the table, 0 where batches are streamed; and in a few words what is in the way of it, "" where nothing is.
    """
    on_gpu = hardware.kind == "gpu"
    if wish == "no" or (wish == "auto" and not on_gpu):
        return 0, ""
    if devices > 1:
        obstacle = f"{devices} devices share each batch"
    elif on_gpu and backend == "tensorflow":
        obstacle = "TensorFlow would copy them to the GPU in each step"
    else:
        obstacle = find_obstacle(voxels, channels, hardware.device_bytes, hardware.memory_bytes)
    return (0 if obstacle else _count_bytes(voxels, channels)), obstacle


def _count_bytes(voxels: int, channels: int) -> int:
    """Counts the bytes of the table of so many voxels."""
    return voxels * (2 * channels + 1)


def find_obstacle(voxels: int, channels: int, device_bytes: int, memory_bytes: int) -> str:
    """Says in a few words why the table does not fit; "" if it does. A memory of 0 bytes is not known, and everything fits it."""
    size = _count_bytes(voxels, channels)
    if voxels * max(channels, 1) > _MOST_VALUES:
        return "the cases have more than 2^31 voxels"
    for memory, share, name in ((device_bytes, DEVICE_SHARE, "device"), (memory_bytes, HOST_SHARE, "host")):
        if memory and size > share * memory:
            return f"the cases take {size / 1e9:.1f} GB, more than {share:.0%} of the {name}'s memory"
    return ""


def list_places(window: Window, channels: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Lists shapes and types of what says where a sample lies, by name.

    `base` is the row of the table that the voxel (0, ..., 0) of the case has, in the plane of a slice. `grid (3, r)` holds for each axis
    of the sample the window's first voxel, the size of the case, and the rows from one voxel to the next. `darkest (C,)` holds the values
    beyond the case.
    """
    return {"base": ((), np.int32), "grid": ((3, len(window.axes)), np.int32), "darkest": ((channels,), np.float16)}


def find_place(base: int, case: PreparedCase, start: Sequence[int], window: Window) -> dict[str, Any]:
    """Finds where a window lies in the table, see `list_places`.

    Args:
        base: The first row of the case.
        case: The case.
        start: The window's first voxel. It may lie before the case.
        window: The size of a sample.
    """
    steps = [math.prod(case.shape[axis + 1 :]) for axis in range(len(case.shape))]
    # A slice lies within the case along the axis that it lies across.
    across = sum(start[axis] * steps[axis] for axis in range(len(steps)) if axis not in window.axes)
    grid = [[values[axis] for axis in window.axes] for values in (start, case.shape, steps)]
    return {"base": base + across, "grid": grid, "darkest": case.darkest}
