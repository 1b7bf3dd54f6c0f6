"""CPU seconds of a training step in bfloat16 on TensorFlow, with Keras's normalisations and with those of `modules/model/fused_norm.py`.

    python benchmarks/normalisation.py --case unet2d
    python benchmarks/normalisation.py --case hippocampus --steps 20

Both networks are in one process and train in turns, each with one thread. The time is that of the process, which another program that
shares the core does not change. The table has the least of all steps and the loss after them, which should agree.
"""

import argparse
import json
import os
import time
from typing import Any
from unittest import mock

import harness
import numpy as np

CLASSES = 6
# Spatial sizes, batch, options of the network, and of the trainer.
CASES: dict[str, tuple[str, tuple[int, ...], int, dict[str, Any]]] = {
    "unet2d": ("unet2d", (256, 128), 2, {"base_filters": 32}),
    "unet3d": ("unet3d", (32, 32, 32), 2, {"base_filters": 16}),
    "hippocampus": ("plain_unet", (40, 56, 40), 2, {"base_filters": 16, "levels": 3}),
}


def make_trainer(case: str, fused: bool):
    """Makes the trainer of a case; `hippocampus` has deep supervision and a weight average."""
    import keras

    from modules import networks
    from modules.model import trainer as module
    from modules.model.losses import SegmentationLoss
    from modules.model.metrics import Overlap

    keras.utils.set_random_seed(42)
    name, sizes, _, options = CASES[case]
    network = networks.build(name, (*sizes, 1), CLASSES, **options)
    deep = networks.with_deep_supervision(network) if name == "plain_unet" else None
    change = module.fuse_normalisations if fused else lambda network: None
    with mock.patch.object(module, "fuse_normalisations", change):
        overlap = Overlap([str(index) for index in range(CLASSES)])
        trainer = module.Trainer(network, SegmentationLoss("dice_ce"), overlap, deep=deep, average=0.99 if deep else 0.0)
    trainer.compile(optimizer=keras.optimizers.Adam(1e-3))
    trainer.optimizer.build(trainer.trainable_variables)
    return trainer


def main() -> None:
    """Measures a case and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=tuple(CASES), required=True)
    parser.add_argument("--steps", type=int, default=7, help="steps that are timed, after two that are not (default 7)")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    from modules import devices

    devices.import_keras()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    devices.start_backend(42)
    devices.choose_precision("bfloat16")
    rng, (_, sizes, batch, _) = np.random.default_rng(42), CASES[options.case]
    label = rng.integers(0, CLASSES, (batch, *sizes))
    data = {"image": (label[..., None] + rng.standard_normal((batch, *sizes, 1))).astype(np.float16), "label": label.astype(np.uint8)}
    trainers = {"keras": make_trainer(options.case, False), "fused": make_trainer(options.case, True)}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    losses = {}
    for _ in range(2 + options.steps):
        for name, trainer in trainers.items():
            began = time.process_time()
            losses[name] = float(trainer.train_on_batch(data, return_dict=True)["loss"])
            seconds[name].append(time.process_time() - began)
    least = {name: min(times[2:]) for name, times in seconds.items()}
    print(json.dumps({"seconds": least, "ratio": least["keras"] / least["fused"], "losses": losses, "machine": harness.describe()}))


if __name__ == "__main__":
    main()
