"""The costs of a training before they are paid: weights, memory, time and disk; and the warning if the memory will not do."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modules import devices
from modules.backend_choice import has_nvidia
from modules.data.cache import PreparedCase
from modules.data.fingerprint import Fingerprint
from modules.data.patches import count_starts
from modules.hardware import describe_hardware, find_memory, read_memory, read_peak
from modules.predict.cases import choose_batch_size
from modules.predict.engines import has_openvino
from modules.run.plan import Plan

# Bytes that the program takes with all its libraries, and the graphs that a training compiles.
BASE_BYTES, GRAPH_BYTES = 760 << 20, 140 << 20
# A training keeps each feature map for its gradient, and the gradients and copies of the layers in work; measured with the probe.
MAPS = 1.6
# A weight has a gradient and two moments.
WEIGHT_BYTES = 16
# The prediction after the training takes the engine with its converter, and this part of all maps of a batch of windows, in float32.
# A training holds on to its memory, so they come on top.
ENGINE_BYTES, PREDICTED_MAPS = 80 << 20, 0.32
# The libraries that score cases and draw pictures.
REPORT_BYTES = 50 << 20
# Bytes of a voxel while its case is read, predicted and scored: those of each channel, and those of label, prediction and their objects.
CHANNEL_BYTES, LABEL_BYTES = 12, 8
# The share of the rate of a matrix product that a training step reaches; a step computes the forward pass three times.
EFFICIENCY, PASSES = 0.45, 3


def estimate_costs(
    plan: Plan,
    network: Any,
    precision: str,
    prepared: Mapping[str, Sequence[PreparedCase]],
    fingerprint: Fingerprint,
    table_bytes: int = 0,
) -> dict[str, Any]:
    """Estimates the costs of a plan that was not measured, and completes those of one that was.

    The memory of the host is the peak of the whole process, as `summary.json` tells it: while it reads, or while it predicts and scores,
    when it still holds the training's.

    Args:
        plan: The plan.
        network: Its `keras.Model`.
        precision: The precision that it computes in.
        prepared: The prepared cases by split.
        fingerprint: The fingerprint of the training cases.
        table_bytes: Bytes of the training cases on the device, which is the host where there is no GPU.

    Returns:
        `weights`; `flops` of a sample, forward; `memory_bytes` of the host, or of the GPU where there is one; `step_s`; `seconds` of the
        whole training; `disk_bytes` of the cache.
    """
    flops = count_flops(network)
    costs = {
        "weights": int(network.count_params()),
        "flops": flops,
        "disk_bytes": sum(case.size for cases in prepared.values() for case in cases),
    }
    bytes_each = 4 if precision == "float32" else 2
    training = GRAPH_BYTES + int(MAPS * plan.batch_size * bytes_each * _count_values(network)) + WEIGHT_BYTES * costs["weights"]
    # The probe holds as many bytes while it measures.
    training += table_bytes
    end = estimate_end(plan, network, fingerprint)
    # A run that goes on has what was written of its costs, measured or estimated.
    if {"device_bytes", "peak_bytes"} <= plan.costs.keys():
        if "memory_bytes" in plan.costs:
            return {**plan.costs, **costs}
        memory = plan.costs["device_bytes"] or max(read_peak(), read_memory() + _bound(training, plan.costs) + end)
        return {**plan.costs, **costs, "memory_bytes": memory}
    memory = BASE_BYTES + training if devices.has_gpu() else max(read_peak(), BASE_BYTES + training + end)
    step_s = PASSES * flops * plan.batch_size / (EFFICIENCY * measure_rate(precision))
    # Each epoch validates whole cases, however few patches of a case it trains.
    windows = sum(count_starts(case.shape, plan.window.sizes) for case in prepared["validate"])
    seconds = plan.epochs * (plan.steps_per_epoch + math.ceil(windows / plan.batch_size) / PASSES) * step_s
    return {**costs, "step_s": step_s, "seconds": seconds, "memory_bytes": memory}


def _bound(training: int, costs: Mapping[str, Any]) -> int:
    """Corrects the estimated bytes of a training by what the probe measured.

    The probe holds on to the memory of plans that it measured before, and takes this one's from there. So it needs as much as it took
    anew at least, and as much as it took in all at most. They hardly differ for the first plan.
    """
    peak = costs["peak_bytes"]
    most, least = peak - costs["base_bytes"], peak - costs["held_bytes"]
    return max(least, min(training, most))


def estimate_end(plan: Plan, network: Any, fingerprint: Fingerprint) -> int:
    """Estimates the bytes that predicting, scoring and drawing take besides what the training holds.

    Args:
        plan: The plan.
        network: Its `keras.Model`.
        fingerprint: The fingerprint of the training cases, the largest of which stands for those that are predicted.
    """
    engine = "openvino" if has_openvino() and not has_nvidia() else "keras"
    values = choose_batch_size(plan.window.deep, engine) * _count_values(network)
    prediction = ENGINE_BYTES + int(4 * PREDICTED_MAPS * values)
    return prediction + estimate_scan(plan, network, fingerprint) + REPORT_BYTES


def find_scan(plan: Plan, network: Any, fingerprint: Fingerprint) -> int:
    """Returns the bytes of the largest scan in the memory that the plan tells: 0 where that is a GPU's, which holds no scan."""
    return 0 if devices.has_gpu() else estimate_scan(plan, network, fingerprint)


def estimate_scan(plan: Plan, network: Any, fingerprint: Fingerprint) -> int:
    """Estimates the bytes that the largest scan takes while it is predicted and scored; arguments are those of `estimate_end`."""
    channels, maps = network.input.shape[-1], network.output.shape[-1]
    thinnest = min(range(len(plan.window.sizes)), key=lambda axis: plan.window.sizes[axis])
    most = 0
    for case, grid in zip(fingerprint.cases, fingerprint.list_grids(plan.preprocessing), strict=True):
        voxels = max(math.prod(case.shape), math.prod(grid))
        # Probabilities are held for as many planes as a window is deep.
        slab = 4 * maps * math.prod(grid) * min(1.0, plan.window.sizes[thinnest] / grid[thinnest])
        most = max(most, (CHANNEL_BYTES * channels + LABEL_BYTES) * voxels + int(slab))
    return most


def find_warning(costs: Mapping[str, Any], limit_bytes: int, scan_bytes: int = 0) -> str:
    """Describes that the memory will not do, and what helps; "" where it will.

    Args:
        costs: From `estimate_costs`.
        limit_bytes: The memory there is; 0 where nobody knows.
        scan_bytes: Bytes of it that the largest scan takes, see `estimate_scan`.
    """
    needed = costs["memory_bytes"]
    if not limit_bytes or needed <= 0.9 * limit_bytes:
        return ""
    told = f"the training needs about {needed / 2**30:.1f} GiB of memory, and there are {limit_bytes / 2**30:.1f}"
    if 2 * scan_bytes > needed:
        # A smaller network would leave most of it.
        return f"{told}. The largest scan takes {scan_bytes / 2**30:.1f} GiB when it is predicted: leave it out, or resample it"
    return f"{told}. Choose a smaller --shape, --batch-size or --base-filters"


def count_flops(network: Any) -> int:
    """Counts the multiplications and additions of a sample's forward pass in all convolutions and dense layers."""
    total = 0
    for layer in _list_layers(network):
        kernel = next((weight for weight in layer.weights if weight.name == "kernel"), None)
        if kernel is None:
            continue
        # A transposed convolution multiplies each voxel of its input by the kernel, and the others each voxel of their output.
        shape = layer.input.shape if "Transpose" in type(layer).__name__ else layer.output.shape
        total += 2 * math.prod(shape[1:-1]) * math.prod(kernel.shape)
    return total


def measure_rate(precision: str) -> float:
    """Measures the operations a second of a matrix product on the device that trains."""
    from keras import ops

    size = 4096 if devices.has_gpu() else 1024
    matrix = ops.ones((size, size), dtype=precision)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        # NumPy knows no bfloat16.
        ops.convert_to_numpy(ops.cast(ops.matmul(matrix, matrix)[0, 0], "float32"))
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)


def format_time(seconds: float) -> str:
    """Formats a duration in the unit that suits it."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def find_limit(costs: Mapping[str, Any]) -> int:
    """Returns the bytes of memory, of the GPU where there is one, that the training may take; 0 where a measurement fitted into it."""
    if costs.get("device_bytes"):
        return 0
    return describe_hardware().device_bytes if devices.has_gpu() else find_memory()


def _list_layers(network: Any) -> Iterable[Any]:
    """Yields the layers of a network and of those within it."""
    for layer in network.layers:
        if hasattr(layer, "layers"):
            yield from _list_layers(layer)
        else:
            yield layer


def _count_values(network: Any) -> int:
    """Counts the values in the outputs of all layers for one sample."""
    return sum(math.prod(shape) for shape in _list_maps(network))


def _list_maps(network: Any) -> Iterable[tuple[int, ...]]:
    """Yields the shape of each layer's output."""
    for layer in _list_layers(network):
        shape = getattr(layer.output, "shape", None)
        if shape is not None and None not in shape[1:]:
            yield tuple(shape[1:])
