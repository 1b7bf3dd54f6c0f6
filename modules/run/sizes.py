"""The sizes of a sample: the window, the strides along its axes, and the number of samples of a step. All functions are pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modules.data.fingerprint import Fingerprint
from modules.data.patches import PLANES, Window
from modules.data.spec import DatasetSpec
from modules.hardware import Hardware
from modules.networks import find_divisor, find_levels
from modules.run import recipe, topology

# The most voxels of a patch or volume whose size follows from the scans.
MOST_VOXELS = 96**3
# The most pixels of a whole slice on a CPU. Whole slices of 256x144 found the prostate where crops of 160x96 mistook other places for it.
MOST_PIXELS = 40_000
# The pixels of a crop of a larger one, and those where foreground is sparse.
CROP_PIXELS, SPARSE_PIXELS = 1 << 15, 1 << 14


def choose_window(
    mode: str,
    plane: str,
    network: str,
    options: Mapping[str, Any],
    grids: Sequence[Sequence[int]],
    spacing_mm: Sequence[float],
    spec: DatasetSpec,
    hardware: Hardware,
    *,
    sparse: bool = False,
) -> tuple[int, ...]:
    """Chooses the sizes of the window from the shapes of the prepared cases.

    Args:
        mode: The kind of sample.
        plane: The plane of slices of volumes.
        network: The network's name.
        options: Its options.
        grids: Shapes of the prepared cases.
        spacing_mm: Size of their voxels.
        spec: The data set.
        hardware: The machine. A GPU's memory bounds the patch of a network whose costs are known.
        sparse: Whether foreground takes less than `recipe.SPARSE` of the voxels.

    Returns:
        Sizes in the rank of the grids, with a 1 along `plane` for slices.
    """
    if mode == "slice":
        return _choose_slice(plane, network, options, grids, spacing_mm, spec, hardware, sparse=sparse)
    most = MOST_VOXELS if mode == "volume" else recipe.MOST_PATCH[hardware.kind]
    if network not in topology.FLEXIBLE:
        # What a GPU holds of a network of unknown costs is not known either.
        most = most if network in topology.NETWORKS else min(most, MOST_VOXELS)
        divisor = find_divisor(network, options)
        sizes = derive_window(grids, mode, PLANES[plane], divisor, most)
        while max(sizes) > divisor and not _holds_two(network, options, Window(sizes), spacing_mm, spec, hardware):
            most = int(0.9 * math.prod(sizes))
            sizes = derive_window(grids, mode, PLANES[plane], divisor, most)
        return sizes

    def fits(patch: tuple[int, ...]) -> bool:
        if math.prod(patch) > most or not hardware.device_bytes:
            return math.prod(patch) <= most
        shape = topology.choose_topology(network, patch, spacing_mm, options["base_filters"], options.get("levels"))
        return count_samples_that_fit(shape, patch, spec, hardware) >= 2

    # A window of one voxel along an axis would be that of slices.
    return topology.choose_patch(np.maximum(np.median(grids, axis=0), 2).tolist(), spacing_mm, fits, options.get("levels"))


def _choose_slice(
    plane: str,
    network: str,
    options: Mapping[str, Any],
    grids: Sequence[Sequence[int]],
    spacing_mm: Sequence[float],
    spec: DatasetSpec,
    hardware: Hardware,
    *,
    sparse: bool,
) -> tuple[int, ...]:
    """Chooses the window of slices as `choose_window` does.

    On a CPU crops of a large slice cost less, and there are more of them. On a GPU a slice is shrunk until its memory holds two.
    """
    divisor = find_divisor(network, options)
    sizes = derive_window(grids, "slice", PLANES[plane], divisor)
    if hardware.kind == "cpu" and math.prod(sizes) > MOST_PIXELS:
        part = math.sqrt((SPARSE_PIXELS if sparse else CROP_PIXELS) / math.prod(sizes))
        sizes = _cut_slice(sizes, part, divisor)
    window = _settle_slice(sizes, network, options, spacing_mm)
    for part in np.arange(15, 0, -1) / 16:
        if _holds_two(network, options, Window(window), spacing_mm, spec, hardware):
            break
        window = _settle_slice(_cut_slice(sizes, part, divisor), network, options, spacing_mm)
    return window


def _cut_slice(sizes: Sequence[int], part: float, divisor: int) -> tuple[int, ...]:
    """Cuts a slice to a part of its length along each axis, rounded down to a multiple of `divisor`."""
    return tuple(1 if size == 1 else max(divisor, int(size * part) // divisor * divisor) for size in sizes)


def _settle_slice(sizes: tuple[int, ...], network: str, options: Mapping[str, Any], spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """Rounds a slice up until its own strides divide it, for a network that takes them."""
    if network not in topology.FLEXIBLE:
        return sizes
    axes = Window(sizes).axes
    settled = topology.settle_window([sizes[axis] for axis in axes], [spacing_mm[axis] for axis in axes], options.get("levels"))
    return tuple(dict(zip(axes, settled, strict=True)).get(axis, 1) for axis in range(len(sizes)))


def _holds_two(
    network: str, options: Mapping[str, Any], window: Window, spacing_mm: Sequence[float], spec: DatasetSpec, hardware: Hardware
) -> bool:
    """Returns whether a GPU's memory holds two samples of a window; true where its memory, or that of the network, is not known."""
    if not hardware.device_bytes or network not in topology.NETWORKS:
        return True
    strides, _ = choose_stages(network, options, window, spacing_mm)
    return count_samples_that_fit(_make_topology(network, options, strides, len(window.shape)), window.shape, spec, hardware) >= 2


def _make_topology(network: str, options: Mapping[str, Any], strides: tuple[topology.Sizes, ...], rank: int) -> topology.Topology:
    """Makes the shape of a network, with kernels of 3 everywhere; without strides it halves all axes at each level."""
    strides = strides or ((2,) * rank,) * (find_levels(network, options) or 0)
    return topology.Topology(network, strides, ((3,) * rank,) * (len(strides) + 1), options["base_filters"])


def count_samples_that_fit(shape: topology.Topology, window: Sequence[int], spec: DatasetSpec, hardware: Hardware) -> int:
    """Counts the samples of a step that a GPU's memory holds."""
    value_bytes, regions = 2 if hardware.bfloat16 else 4, len(spec.regions)
    costs = topology.estimate_costs(shape, window, len(spec.channels), spec.num_classes, value_bytes, regions)
    room = recipe.MEMORY_SHARE * hardware.device_bytes - recipe.WEIGHT_BYTES * costs.weights
    return int(room / costs.activation_bytes)


def choose_batch(
    network: str,
    options: Mapping[str, Any],
    strides: tuple[topology.Sizes, ...],
    window: Window,
    grids: Sequence[Sequence[int]],
    spec: DatasetSpec,
    fingerprint: Fingerprint,
    hardware: Hardware,
) -> tuple[int, str]:
    """Chooses the samples of a step; also returns the reason.

    They are few on a CPU, so that there are many steps. They are as many as a GPU's memory holds, but of 5 % of all voxels at most, as in
    nnU-Net, and at least 2. For a network whose memory we cannot tell they are as few as on a CPU.

    Args:
        network: The network's name.
        options: Its options.
        strides: Its strides, see `choose_stages`.
        window: The window.
        grids: Shapes of the prepared cases.
        spec: The data set.
        fingerprint: The fingerprint of the training cases.
        hardware: The machine.
    """
    rank = len(window.shape)
    if not hardware.device_bytes or network not in topology.NETWORKS:
        why = f"the memory of {network} is not known" if hardware.device_bytes else "many steps teach a CPU's network more"
        if rank == 2 and fingerprint.foreground < recipe.SPARSE:
            return recipe.SPARSE_BATCH, f"few, as {why}; foreground is sparse"
        return recipe.BATCH[rank], f"few, as {why}"
    shape = _make_topology(network, options, strides, rank)
    most = int(0.05 * sum(math.prod(grid) for grid in grids) / math.prod(window.sizes))
    limits = {
        "what the GPU's memory holds": count_samples_that_fit(shape, window.shape, spec, hardware),
        "5 % of all voxels": most,
        f"at most {recipe.MOST_BATCH[rank]} in {rank}-D": recipe.MOST_BATCH[rank],
    }
    reason = min(limits, key=lambda name: limits[name])
    return max(2, limits[reason]), reason if limits[reason] >= 2 else "at least 2"


def choose_stages(network: str, options: Mapping[str, Any], window: Window, spacing_mm: Sequence[float]):
    """Chooses strides and kernel sizes along the axes of a sample; none for a network that does not take them."""
    if network not in topology.FLEXIBLE:
        return (), ()
    spacing_mm = [spacing_mm[axis] for axis in window.axes]
    strides = topology.choose_asked_strides(window.shape, spacing_mm, options.get("levels"))
    return strides, topology.choose_kernels(strides, spacing_mm)


def derive_window(shapes: Sequence[Sequence[int]], mode: str, plane: int, divisor: int, voxels: int = MOST_VOXELS) -> tuple[int, ...]:
    """Chooses the window that the network sees at once, from the shapes of the prepared cases.

    Args:
        shapes: `S` of each case, in canonical orientation.
        mode: For "slice" the largest extents across `plane`, so that nothing is cut off; but twice the median ones at most, so that a
            single huge case does not decide for all. For "patch" and "volume" the median shape, shrunk in proportion to at most `voxels`.
        plane: The axis that slices lie across.
        divisor: A number that divides each size.
        voxels: The most voxels of a patch or volume.

    Returns:
        Sizes in the rank of the shapes, with a 1 along `plane` for slices.
    """
    if mode == "slice":
        largest = np.minimum(np.max(shapes, axis=0), np.ceil(2 * np.median(shapes, axis=0))).astype(int).tolist()
        return tuple(1 if axis == plane else -(-size // divisor) * divisor for axis, size in enumerate(largest))
    window = np.median(shapes, axis=0)
    window = window * min(1.0, (voxels / window.prod()) ** (1 / len(window)))
    # Sizes are rounded up: a little padding costs less than a little cutting, as long as the voxels suffice.
    sizes = [max(divisor, -(-round(size) // divisor) * divisor) for size in window]
    while math.prod(sizes) > voxels and max(sizes) > divisor:
        sizes[sizes.index(max(sizes))] -= divisor
    return tuple(sizes)
