"""Counts in a bfloat16 training step what should be rare, and fails where there is more of it than its limit.

    python benchmarks/step_counts.py                     # TensorFlow: slices and volumes, batch and instance norm
    KERAS_BACKEND=jax python benchmarks/step_counts.py   # JAX: the program that XLA gets for a GPU; no GPU is needed
    python benchmarks/step_counts.py --rank 2 --norm batch
    python benchmarks/step_counts.py --plain             # Keras's own layers instead of ours: beyond the limits

Nothing is computed, so that a run takes seconds and no other program disturbs it. The exit status is 1 beyond a limit.

- `float32_convolutions`: convolutions of float32, and such products of maps. They are those of the logits: backwards, and on TensorFlow
  forwards too. All others should compute in bfloat16.
- `float32_maps` (TensorFlow): operations that make a feature map in float32. The logits need the last one, and there is its gradient.
- `float32_casts` (JAX): casts of a feature map to float32. Each of the six normalisations has one, and one backwards; three are the
  logits'.
- `transposes`: of feature maps or logits. Those of the loss put classes before voxels, and back in the gradient. On JAX our upsampling puts
  its blocks in order, and back in the gradient.
- `class_masks`: comparisons of the label with classes: one for the loss, and a pair a class for the metric.
- `softmaxes`: exponentials of logits.
- `scatters` (JAX): gradients of pooling that scatter.
- `enlarged` (JAX): convolutions that lay zeros between the voxels of a map, as a transposed one does.
- `outputs`: numbers that a step returns.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import harness  # noqa: F401

# No kernel has the batch as one of its axes, and no label is as wide as a feature map is deep. So feature maps are known by their shape.
BATCH, SIZE, FILTERS, CLASSES = 5, 8, 16, 3
NORMS = ("batch", "instance")
LIMITS = {
    "tensorflow": {"float32_convolutions": 3, "float32_maps": 2, "transposes": 2, "class_masks": 7, "softmaxes": 2, "outputs": 7},
    "jax": {
        "float32_convolutions": 2,
        "float32_casts": 15,
        "transposes": 4,
        "class_masks": 7,
        "softmaxes": 2,
        "scatters": 0,
        "enlarged": 0,
        "outputs": 7,
    },
}


def build_network(rank: int, norm: str):
    """Builds the small U-Net whose step is counted."""
    from modules import networks

    return networks.build(f"unet{rank}d", (*(SIZE,) * rank, 1), CLASSES, base_filters=FILTERS, levels=1, norm=norm)


def make_trainer(network):
    """Makes the trainer of a network with cross-entropy and Dice."""
    import keras

    from modules.model.losses import SegmentationLoss
    from modules.model.metrics import Overlap
    from modules.model.trainer import Trainer

    trainer = Trainer(network, SegmentationLoss("dice_ce"), Overlap([str(index) for index in range(CLASSES)]))
    trainer.compile(optimizer=keras.optimizers.Adam(1e-3))
    trainer.optimizer.build(trainer.trainable_variables)
    return trainer


# -------------------------------------------------------------------------------------------------------------- TensorFlow


def count_graph(network, *, plain: bool) -> dict[str, int]:
    """Counts in TensorFlow's graph of a step of the network, with Keras's own normalisations if `plain`."""
    import tensorflow as tf

    with patch("modules.model.trainer.fuse_normalisations") if plain else patch.dict({}):
        trainer = make_trainer(network)
    sizes = network.input.shape[1:-1]
    batch = {"image": tf.TensorSpec((BATCH, *sizes, 1), tf.float16), "label": tf.TensorSpec((BATCH, *sizes), tf.uint8)}
    step = tf.function(trainer.train_step).get_concrete_function(batch)
    counts = Counter(dict.fromkeys(LIMITS["tensorflow"], 0))
    for operation in step.graph.get_operations():
        # Reshaping copies nothing, and a gradient takes shapes from maps without reading them.
        if operation.type in ("Reshape", "Shape", "Identity", "StopGradient"):
            continue
        outputs = [value for value in operation.outputs if value.shape.rank and value.shape[0] in (BATCH, None)]
        wide = [value for value in outputs if value.shape.rank > 3 and max(size or 0 for size in value.shape[1:]) >= FILTERS]
        takes_float32 = any(value.dtype == "float32" for value in operation.inputs)
        counts["float32_convolutions"] += "Conv" in operation.type and takes_float32
        counts["float32_maps"] += any(value.dtype == "float32" for value in wide)
        counts["transposes"] += operation.type == "Transpose" and bool(outputs)
        counts["class_masks"] += operation.type in ("Equal", "OneHot") and any(value.dtype == "int32" for value in operation.inputs)
        counts["softmaxes"] += operation.type in ("Exp", "Softmax", "LogSoftmax") and bool(outputs)
    counts["outputs"] = len(step.outputs)
    return dict(counts)


# --------------------------------------------------------------------------------------------------------------------- JAX


def count_program(network, *, plain: bool) -> dict[str, int]:
    """Counts in the program that JAX gives to XLA for a step on a GPU, with Keras's own layers if `plain`."""
    import jax

    if not plain:
        from modules.model.fast_layers import replace_calls

        # The trainer does so by itself on a GPU.
        replace_calls(network)
    trainer = make_trainer(network)
    groups = (trainer.trainable_variables, trainer.non_trainable_variables, trainer.optimizer.variables, trainer.metrics_variables)
    state = tuple([variable.value for variable in group] for group in groups)
    sizes = network.input.shape[1:-1]
    batch = {"image": jax.ShapeDtypeStruct((BATCH, *sizes, 1), "float16"), "label": jax.ShapeDtypeStruct((BATCH, *sizes), "uint8")}
    step = jax.jit(trainer.train_step, donate_argnums=0).trace(state, batch).lower(lowering_platforms=("cuda",))
    logs, _ = step.out_info
    return {**count_operations(step.as_text()), "outputs": len(jax.tree.leaves(logs))}


def count_operations(text: str) -> dict[str, int]:
    """Counts operations in a program's text in StableHLO. A function counts as often as it is called."""
    functions: dict[str, Counter] = {}
    calls: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if found := re.search(r"func\.func .*?@([\w.]+)\(", line):
            name = found[1]
            functions[name], calls[name] = Counter(), []
        elif found := re.search(r"\bcall @([\w.]+)\(", line):
            calls[name].append(found[1])
        elif found := re.search(r"stablehlo\.(\w+)", line):
            functions[name].update(_judge(found[1], line))

    def add(name: str) -> Counter:
        return sum((add(called) for called in calls[name]), functions[name])

    counts = add("main")
    return {name: counts[name] for name in LIMITS["jax"] if name != "outputs"}


def _judge(kind: str, line: str) -> list[str]:
    """Lists what one operation counts as."""
    types = line.rpartition(" : ")[2]
    inputs, _, outputs = types.rpartition(" -> ")
    taken, made = _read_types(inputs or types), _read_types(outputs)
    maps = [one for one in (*taken, *made) if BATCH in one[0]]
    wide = [dtype for shape, dtype in taken if BATCH in shape and len(shape) > 3 and max(shape) >= FILTERS]
    dilated = re.search(r"lhs_dilate = \[([\d, ]*)\]", line)
    found = {
        "float32_convolutions": kind in ("convolution", "dot_general") and bool(maps) and "f32" in [dtype for _, dtype in taken],
        "float32_casts": kind == "convert" and "bf16" in wide and made[0][1] == "f32",
        "transposes": kind == "transpose" and bool(maps),
        "class_masks": kind == "compare" and " EQ," in line and bool(maps) and taken[0][1] == "i32",
        "softmaxes": kind == "exponential" and bool(maps),
        "scatters": kind == "select_and_scatter",
        "enlarged": kind == "convolution" and dilated is not None and set(dilated[1].split(", ")) != {"1"},
    }
    return [name for name, counted in found.items() if counted]


def _read_types(text: str) -> list[tuple[tuple[int, ...], str]]:
    """Reads shapes and element types, as of `tensor<5x8x8xf32>`."""
    parts = [found.split("x") for found in re.findall(r"tensor<([^>]*)>", text)]
    return [(tuple(map(int, sizes)), dtype) for *sizes, dtype in parts]


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts, prints a line of JSON for each network, and returns 1 where a count is beyond its limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, choices=(2, 3), help="2 for slices, 3 for volumes; both if left out")
    parser.add_argument("--norm", choices=NORMS, help="the normalisation; both if left out")
    parser.add_argument("--plain", action="store_true", help="Keras's own layers, without those that this program has in their place")
    options = parser.parse_args(arguments)
    from modules import devices

    devices.import_keras()
    import keras

    backend = keras.backend.backend()
    if backend not in LIMITS:
        parser.error(f"Expected KERAS_BACKEND as one of {', '.join(LIMITS)}. Received: {backend}, whose steps are no graph.")
    count: Any = count_graph if backend == "tensorflow" else count_program
    policy, limits, beyond = keras.config.dtype_policy(), LIMITS[backend], False
    devices.choose_precision("bfloat16")
    try:
        for rank in (options.rank,) if options.rank else (2, 3):
            for norm in (options.norm,) if options.norm else NORMS:
                counts = count(build_network(rank, norm), plain=options.plain)
                much = {name: f"{number}, limit {limits[name]}" for name, number in counts.items() if number > limits[name]}
                print(json.dumps({"rank": rank, "norm": norm, **counts, "beyond": much}))
                beyond = beyond or bool(much)
    finally:
        keras.config.set_dtype_policy(policy)
    return int(beyond)


if __name__ == "__main__":
    sys.exit(main())
