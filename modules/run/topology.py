"""The shape of a U-Net for given scans after nnU-Net, and what it costs; pure functions that need no Keras.

The rules are those of nnU-Net v2 (Isensee et al., 2021). `choose_patch` finds the size of a patch, `choose_strides` and
`choose_kernels` the network for it, and `estimate_costs` what a training step of that network takes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from modules.networks import MOST_LEVELS, count_features, find_constant, find_levels

# The networks whose costs are known.
NETWORKS = ("plain_unet", "residual_unet", "unet2d", "unet3d")
# Those of them that take strides and kernel sizes of each axis.
FLEXIBLE = ("plain_unet", "residual_unet")
# An axis is pooled only where this many voxels remain along it.
LEAST_VOXELS = 4
# A first patch has as many voxels as this, by rank. nnU-Net's memory never suffices for it in 3-D.
FIRST_PATCH = {2: 2048**2, 3: 256**3}

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """The shape of a network.

    Attributes:
        network: One of `NETWORKS`.
        strides: The strides of each level along each axis; there are as many as levels.
        kernels: The kernel sizes of each stage along each axis; there is one stage more than levels.
        base_filters: Filters of the first stage.
    """

    network: str
    strides: tuple[Sizes, ...]
    kernels: tuple[Sizes, ...]
    base_filters: int = 32

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"Expected `network` in {NETWORKS}. Received: {self.network!r}.")
        if len(self.kernels) != len(self.strides) + 1:
            raise ValueError(f"Expected {len(self.strides) + 1} `kernels` beside {len(self.strides)} `strides`. Received: {self.kernels}.")
        uniform = {size for stage in self.strides for size in stage} <= {2} and {size for stage in self.kernels for size in stage} == {3}
        if self.network not in FLEXIBLE and not uniform:
            raise ValueError(f"Expected strides of 2 and kernels of 3 for '{self.network}'. Received: {self.strides}, {self.kernels}.")

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.kernels[0])

    @property
    def levels(self) -> int:
        """The number of times that the resolution is reduced."""
        return len(self.strides)

    @property
    def divisors(self) -> Sizes:
        """The number that the window's size along each axis is a multiple of."""
        return _find_divisors(self.strides, self.rank)

    @property
    def options(self) -> dict[str, Any]:
        """The options for `modules.networks.build`."""
        options: dict[str, Any] = {"base_filters": self.base_filters, "levels": self.levels}
        return options | ({"strides": self.strides, "kernels": self.kernels} if self.network in FLEXIBLE else {})


class Costs(NamedTuple):
    """The costs of a network.

    Attributes:
        weights: Number of weights, those of normalisations included, as `keras.Model.count_params` gives it.
        multiply_adds: Multiplications with an addition in the convolutions, for one sample forward. A training step takes three times
            as many: those forward, and as many for the gradients of the feature maps and of the weights.
        feature_values: Values in the outputs of all convolutions for one sample. nnU-Net measures memory by it.
        activation_bytes: Bytes of the feature maps of one sample that a training step keeps until its gradients are computed: the inputs
            of convolutions, normalisations, activations and poolings, and the logits. Inputs of normalisations and logits have four bytes
            a value. Weights, gradients, the optimiser and what a convolution needs while it runs are not counted.
    """

    weights: int
    multiply_adds: int
    feature_values: int
    activation_bytes: int


# ---------------------------------------------------------------------------------------------------------- nnU-Net's rules


def choose_strides(window: Sequence[float], spacing_mm: Sequence[float], most_levels: int = MOST_LEVELS) -> tuple[Sizes, ...]:
    """Chooses the strides of each level along each axis.

    An axis is halved while at least 8 voxels remain along it, and where its spacing is less than twice the finest one of such axes. A
    single axis is halved only from 12 voxels on. A window without any such axis has one level, which halves all axes.

    Args:
        window: Voxels along each axis.
        spacing_mm: Millimetres a voxel along each axis.
        most_levels: Most levels; nnU-Net has no such limit.
    """
    sizes, spacings, strides = list(window), list(spacing_mm), []
    while len(strides) < most_levels:
        large = [axis for axis, size in enumerate(sizes) if size >= 2 * LEAST_VOXELS]
        halved = [axis for axis in large if spacings[axis] < 2 * min(spacings[other] for other in large)]
        if not halved or (len(halved) == 1 and sizes[halved[0]] < 3 * LEAST_VOXELS):
            break
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(sizes))))
        for axis in halved:
            sizes[axis], spacings[axis] = math.ceil(sizes[axis] / 2), 2 * spacings[axis]
    return tuple(strides) or ((2,) * len(sizes),)


def choose_asked_strides(window: Sequence[float], spacing_mm: Sequence[float], levels: int | None) -> tuple[Sizes, ...]:
    """Chooses strides as `choose_strides` does, of as many levels as were asked for. Where the rule gives fewer, all halve all axes.

    Args:
        window: Voxels along each axis.
        spacing_mm: Millimetres a voxel along each axis.
        levels: Number of levels; None leaves it to the rule.
    """
    strides = choose_strides(window, spacing_mm, levels or MOST_LEVELS)
    return strides if levels is None or len(strides) >= levels else ((2,) * len(window),) * levels


def choose_kernels(strides: Sequence[Sizes], spacing_mm: Sequence[float]) -> tuple[Sizes, ...]:
    """Chooses the kernel sizes of each stage along each axis.

    A kernel has size 1 along an axis until the spacing there is less than twice the finest one, and 3 from then on. It has size 3 in the
    deepest stage.

    Args:
        strides: Strides of each level, see `choose_strides`.
        spacing_mm: Millimetres a voxel along each axis.

    Returns:
        Kernel sizes of `len(strides) + 1` stages.
    """
    spacings, kernel, kernels = list(spacing_mm), [1] * len(spacing_mm), []
    for stride in strides:
        kernel = [3 if size == 3 or spacing < 2 * min(spacings) else 1 for size, spacing in zip(kernel, spacings, strict=True)]
        kernels.append(tuple(kernel))
        spacings = [spacing * step for spacing, step in zip(spacings, stride, strict=True)]
    return (*kernels, (3,) * len(spacing_mm))


def choose_topology(
    network: str, window: Sequence[int], spacing_mm: Sequence[float], base_filters: int = 32, levels: int | None = None
) -> Topology:
    """Chooses the shape of a network for a window.

    A network that takes no strides halves all axes at each level. It does so at least once, at most as often as by default, and while
    `LEAST_VOXELS` remain on the shortest axis.

    Args:
        network: One of `NETWORKS`.
        window: Voxels along each axis.
        spacing_mm: Millimetres a voxel along each axis.
        base_filters: Filters of the first stage.
        levels: Levels that were asked for; None leaves them to the rule. Only networks that take strides heed them.
    """
    if network in FLEXIBLE:
        strides = choose_asked_strides(window, spacing_mm, levels)
        return Topology(network, strides, choose_kernels(strides, spacing_mm), base_filters)
    rank, shortest = len(window), max(1, min(window) // LEAST_VOXELS)
    levels = max(1, min(find_levels(network) or MOST_LEVELS, int(math.log2(shortest))))
    return Topology(network, ((2,) * rank,) * levels, ((3,) * rank,) * (levels + 1), base_filters)


def round_window(window: Sequence[float], strides: Sequence[Sizes]) -> Sizes:
    """Rounds each size of a window up to a multiple of the product of its axis's strides."""
    return tuple(math.ceil(size / divisor) * divisor for size, divisor in zip(window, _find_divisors(strides, len(window)), strict=True))


def choose_patch(
    median_shape: Sequence[float], spacing_mm: Sequence[float], fits: Callable[[Sizes], bool], levels: int | None = None
) -> Sizes:
    """Chooses the largest patch that fits, as nnU-Net does.

    The first patch is a cube in millimetres of `FIRST_PATCH` voxels, cut to the median shape. While it does not fit, it loses voxels
    along the axis where it is longest, measured by the median shape.

    Args:
        median_shape: Median number of voxels of the cases along each axis.
        spacing_mm: Millimetres a voxel along each axis.
        fits: A function of the patch's sizes. They are multiples of what `choose_asked_strides` asks of them.
        levels: Levels that were asked for; None leaves them to the rule.

    Raises:
        ValueError: If not even a patch of a few voxels fits.
    """
    rank = len(spacing_mm)
    edge_mm = (FIRST_PATCH[rank] * math.prod(spacing_mm)) ** (1 / rank)
    first = [min(round(edge_mm / spacing), size) for spacing, size in zip(spacing_mm, median_shape, strict=True)]
    patch = settle_window(first, spacing_mm, levels)
    # An axis may grow again where the strides of a smaller patch ask for it.
    tried = {patch}
    while not fits(patch):
        longest = sorted(range(rank), key=lambda axis: (patch[axis] / median_shape[axis], axis), reverse=True)
        smaller = (_shrink(patch, axis, spacing_mm, levels) for axis in longest)
        patch, larger = next((size for size in smaller if size not in tried), patch), patch
        if patch == larger:
            raise ValueError(f"Expected a patch that fits into memory. Received: not even {patch}. Use fewer `base_filters` or `levels`.")
        tried.add(patch)
    return patch


def _shrink(patch: Sizes, axis: int, spacing_mm: Sequence[float], levels: int | None) -> Sizes:
    """Takes the smallest step along an axis; where too few voxels would remain, the patch stays as it is."""
    size = patch[axis] - _find_divisors(choose_asked_strides(patch, spacing_mm, levels), len(patch))[axis]
    # The strides of the shorter patch may ask for less. We take that step, so that no valid size is left out.
    shorter = [size if place == axis else other for place, other in enumerate(patch)]
    size = patch[axis] - _find_divisors(choose_asked_strides(shorter, spacing_mm, levels), len(patch))[axis]
    if size < LEAST_VOXELS:
        return patch
    shorter[axis] = size
    return settle_window(shorter, spacing_mm, levels)


def settle_window(window: Sequence[float], spacing_mm: Sequence[float], levels: int | None) -> Sizes:
    """Rounds a window up until its own strides divide it: a larger window may be halved more often than the one before.

    Args:
        window: Voxels along each axis.
        spacing_mm: Millimetres a voxel along each axis.
        levels: Levels that were asked for; None leaves them to the rule.
    """
    while (larger := round_window(window, choose_asked_strides(window, spacing_mm, levels))) != tuple(window):
        window = larger
    return larger


def _find_divisors(strides: Sequence[Sizes], rank: int) -> Sizes:
    return tuple(math.prod(stride[axis] for stride in strides) for axis in range(rank))


# ------------------------------------------------------------------------------------------------------------------- costs


class _Step(NamedTuple):
    """One convolution with the normalisation and activation that follow it.

    Attributes:
        weights: Weights of all three.
        multiply_adds: Multiplications with an addition in the convolution.
        values: Values of the convolution's output.
        full: Values that a training keeps with four bytes each.
        other: Values that a training keeps in the precision of the layers.
    """

    weights: int
    multiply_adds: int
    values: int
    full: int
    other: int


def estimate_costs(
    topology: Topology, window: Sequence[int], channels: int, num_classes: int, value_bytes: int = 4, num_regions: int = 0
) -> Costs:
    """Computes the costs of a network with its own default normalisation and without dropout.

    Args:
        topology: The network's shape.
        window: Sizes of a sample, multiples of `topology.divisors`.
        channels: Channels of a sample.
        num_classes: Number of classes with the background. Two have one logit.
        value_bytes: Bytes of a value in the network's layers: 4 in float32, 2 in half precision.
        num_regions: Number of the classes that may overlap, which have a logit each, without the background; 0 where none may.

    Raises:
        ValueError: If the window does not divide.
    """
    if len(window) != topology.rank or any(size % divisor for size, divisor in zip(window, topology.divisors, strict=True)):
        raise ValueError(f"Expected a window of multiples of {topology.divisors}. Received: {tuple(window)}.")
    voxels = [math.prod(window)]
    for stride in topology.strides:
        voxels.append(voxels[-1] // math.prod(stride))
    encode = _encode_residual if topology.network == "residual_unet" else _encode
    steps = [*encode(topology, voxels, channels), *_decode(topology, voxels)]
    logits, filters = num_regions or (1 if num_classes == 2 else num_classes), _list_filters(topology)[0][1]
    steps.append(_Step((filters + 1) * logits, filters * logits * voxels[0], logits * voxels[0], logits * voxels[0], 0))
    kept = channels * voxels[0] + sum(step.other for step in steps)
    return Costs(
        weights=sum(step.weights for step in steps),
        multiply_adds=sum(step.multiply_adds for step in steps),
        feature_values=sum(step.values for step in steps),
        activation_bytes=4 * sum(step.full for step in steps) + value_bytes * kept,
    )


def _list_filters(topology: Topology) -> list[tuple[int, int]]:
    """Lists the filters of the first and of the last convolution of each stage."""
    base, stages = topology.base_filters, range(topology.levels + 1)
    if topology.network == "unet2d":
        return [(base * 2**stage, base * 2**stage) for stage in stages]
    if topology.network == "unet3d":
        return [(base * 2**stage, base * 2 ** (stage + 1)) for stage in stages]
    return [(filters, filters) for filters in count_features(base, topology.levels, topology.rank)]


def _convolve(topology: Topology, kernel: Sizes, inputs: int, filters: int, voxels: int, activations: int = 2) -> _Step:
    """Counts a convolution without bias. A training keeps its output, and the inputs and outputs of `activations` after it."""
    # Batch normalisation has two moving averages beside scale and offset.
    norm = 2 if topology.network in FLEXIBLE else 4
    weights, values = math.prod(kernel) * inputs * filters, filters * voxels
    return _Step(weights + norm * filters, weights * voxels, values, values, activations * values)


def _encode(topology: Topology, voxels: Sequence[int], inputs: int) -> Iterator[_Step]:
    for stage, filters in enumerate(_list_filters(topology)):
        if stage and topology.network not in FLEXIBLE:
            # The maximum over each block is kept too.
            yield _Step(0, 0, 0, 0, inputs * voxels[stage])
        for number in filters:
            yield _convolve(topology, topology.kernels[stage], inputs, number, voxels[stage])
            inputs = number


def _encode_residual(topology: Topology, voxels: Sequence[int], inputs: int) -> Iterator[_Step]:
    blocks = find_constant("residual_unet", "BLOCKS")
    one = (1,) * topology.rank
    yield _convolve(topology, topology.kernels[0], inputs, topology.base_filters, voxels[0])
    inputs = topology.base_filters
    for stage, (filters, _) in enumerate(_list_filters(topology)):
        for block in range(blocks[min(stage, len(blocks) - 1)]):
            yield _convolve(topology, topology.kernels[stage], inputs, filters, voxels[stage])
            # Of the sum and its activation a training keeps two feature maps, as of a normalisation and its activation.
            yield _convolve(topology, topology.kernels[stage], filters, filters, voxels[stage])
            if inputs != filters:
                yield _convolve(topology, one, inputs, filters, voxels[stage], activations=0)
                # The mean over each block.
                yield _Step(0, 0, 0, 0, inputs * voxels[stage] if stage and not block else 0)
            inputs = filters


def _decode(topology: Topology, voxels: Sequence[int]) -> Iterator[_Step]:
    filters = [last for _, last in _list_filters(topology)]
    inputs = filters[-1]
    for level in reversed(range(topology.levels)):
        enlarged, bias = (inputs, 0) if topology.network == "unet3d" else (filters[level], 1)
        joined, kernel = filters[level] + enlarged, math.prod(topology.strides[level])
        # One voxel of the kernel reaches each voxel of the output. A training keeps the output joined with the skip connection.
        values, adds = enlarged * voxels[level], inputs * enlarged * voxels[level]
        yield _Step(kernel * inputs * enlarged + bias * enlarged, adds, values, 0, joined * voxels[level])
        inputs = joined
        for _ in range(1 if topology.network == "residual_unet" else 2):
            yield _convolve(topology, topology.kernels[level], inputs, filters[level], voxels[level])
            inputs = filters[level]
