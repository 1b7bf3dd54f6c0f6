"""Counts in the graph of a bfloat16 training step on TensorFlow what should be rare, and fails where there is more of it than its limit.

    python benchmarks/step_counts.py                     # slices and volumes, batch and instance norm
    python benchmarks/step_counts.py --rank 2 --norm batch

Nothing is computed, so that a run takes seconds and no other program disturbs it. The exit status is 1 beyond a limit.

- `float32_convolutions`: those of the logits, forwards and backwards. All others should compute in bfloat16.
- `float32_maps`: operations that make a feature map in float32. The logits need the last one, and there is its gradient.
- `transposes`: of feature maps or logits. Those of the loss put classes before voxels, and back in the gradient.
- `class_masks`: comparisons of the label with classes: one for the loss, and a pair a class for the metric.
- `softmaxes`: exponentials of logits.
- `outputs`: numbers that a step returns.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence

import harness  # noqa: F401

# No kernel has the batch as its first axis, and no label is as wide as a feature map is deep. So feature maps are known by their shape.
BATCH, SIZE, FILTERS, CLASSES = 5, 8, 16, 3
NORMS = ("batch", "instance")
LIMITS = {"float32_convolutions": 3, "float32_maps": 2, "transposes": 2, "class_masks": 7, "softmaxes": 2, "outputs": 7}


def build_network(rank: int, norm: str):
    """Builds the small U-Net whose step is counted."""
    from modules import networks

    return networks.build(f"unet{rank}d", (*(SIZE,) * rank, 1), CLASSES, base_filters=FILTERS, levels=1, norm=norm)


def trace_step(network):
    """Traces a training step of a network with cross-entropy and Dice, and returns TensorFlow's concrete function."""
    import keras
    import tensorflow as tf

    from modules.model.losses import SegmentationLoss
    from modules.model.metrics import Overlap
    from modules.model.trainer import Trainer

    trainer = Trainer(network, SegmentationLoss("dice_ce"), Overlap([str(index) for index in range(CLASSES)]))
    trainer.compile(optimizer=keras.optimizers.Adam(1e-3))
    trainer.optimizer.build(trainer.trainable_variables)
    sizes = network.input.shape[1:-1]
    batch = {"image": tf.TensorSpec((BATCH, *sizes, 1), tf.float16), "label": tf.TensorSpec((BATCH, *sizes), tf.uint8)}
    return tf.function(trainer.train_step).get_concrete_function(batch)


def count_operations(step) -> dict[str, int]:
    """Counts what the top of this file lists."""
    counts = Counter(dict.fromkeys(LIMITS, 0))
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts, prints a line of JSON for each network, and returns 1 where a count is beyond its limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, choices=(2, 3), help="2 for slices, 3 for volumes; both if left out")
    parser.add_argument("--norm", choices=NORMS, help="the normalisation; both if left out")
    options = parser.parse_args(arguments)
    from modules import devices

    devices.import_keras()
    import keras

    policy, beyond = keras.config.dtype_policy(), False
    devices.choose_precision("bfloat16")
    try:
        for rank in (options.rank,) if options.rank else (2, 3):
            for norm in (options.norm,) if options.norm else NORMS:
                counts = count_operations(trace_step(build_network(rank, norm)))
                much = {name: f"{count}, limit {LIMITS[name]}" for name, count in counts.items() if count > LIMITS[name]}
                print(json.dumps({"rank": rank, "norm": norm, **counts, "beyond": much}))
                beyond = beyond or bool(much)
    finally:
        keras.config.set_dtype_policy(policy)
    return int(beyond)


if __name__ == "__main__":
    sys.exit(main())
