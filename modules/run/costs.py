"""What a training takes before it is paid: weights, memory, time and disk; and the warning if the memory will not do."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modules.data.cache import PreparedCase
from modules.hardware import find_memory
from modules.run.plan import Plan

# Bytes that the program takes with all its libraries, before any scan or network.
BASE_BYTES = 900 << 20
# A training keeps each feature map for its gradient, and the gradients and copies of the layers in work; measured with the probe.
MAPS = 1.6
# A weight has a gradient and two moments.
WEIGHT_BYTES = 16
# The share of the rate of a matrix product that a training step reaches; a step computes the forward pass three times.
EFFICIENCY, PASSES = 0.45, 3


def estimate_costs(plan: Plan, network: Any, precision: str, prepared: Mapping[str, Sequence[PreparedCase]]) -> dict[str, Any]:
    """Estimates the costs of a plan that was not measured, and completes those of one that was.

    Args:
        plan: The plan.
        network: Its `keras.Model`.
        precision: The precision that it computes in.
        prepared: The prepared cases by split.

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
    # A run that goes on has what was written of its costs, measured or estimated.
    if {"device_bytes", "peak_bytes"} <= plan.costs.keys():
        return {**plan.costs, **costs, "memory_bytes": plan.costs["device_bytes"] or plan.costs["peak_bytes"]}
    bytes_each = 4 if precision == "float32" else 2
    maps = MAPS * plan.batch_size * bytes_each * sum(math.prod(shape) for shape in _list_maps(network))
    step_s = PASSES * flops * plan.batch_size / (EFFICIENCY * measure_rate(precision))
    validation = len(prepared["validate"]) / max(1, len(prepared["train"])) / PASSES
    seconds = plan.epochs * plan.steps_per_epoch * step_s * (1 + validation)
    return {**costs, "step_s": step_s, "seconds": seconds, "memory_bytes": int(BASE_BYTES + maps + WEIGHT_BYTES * costs["weights"])}


def find_warning(costs: Mapping[str, Any], limit_bytes: int) -> str:
    """Describes that the memory will not do, and what helps; "" where it will.

    Args:
        costs: From `estimate_costs`.
        limit_bytes: The memory there is; 0 where nobody knows.
    """
    needed = costs["memory_bytes"]
    if not limit_bytes or needed <= 0.9 * limit_bytes:
        return ""
    return (
        f"the training needs about {needed / 2**30:.1f} GiB of memory, and there are {limit_bytes / 2**30:.1f}. Choose a smaller --shape, "
        "--batch-size or --base-filters"
    )


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

    from modules import devices

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
    """Returns the bytes of memory that the training may take."""
    return 0 if costs.get("device_bytes") else find_memory()


def _list_layers(network: Any) -> Iterable[Any]:
    """Yields the layers of a network and of those within it."""
    for layer in network.layers:
        if hasattr(layer, "layers"):
            yield from _list_layers(layer)
        else:
            yield layer


def _list_maps(network: Any) -> Iterable[tuple[int, ...]]:
    """Yields the shape of each layer's output."""
    for layer in _list_layers(network):
        shape = getattr(layer.output, "shape", None)
        if shape is not None and None not in shape[1:]:
            yield tuple(shape[1:])
