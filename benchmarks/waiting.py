"""The wait for data: training speed on real data over that on one repeated batch; a child of cpu.py and gpu.py.

    python benchmarks/waiting.py --step ours --folder FOLDER       # where reading.py drew

Both go through `Trainer.fit`, as train.py does, with light augmentation, on the slices of reading.py from a filled cache. They take
turns, so that a machine that is busy for a while slows both. With `--resident 1` the slices lie in the device's memory.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import harness
from reading import CLASSES, SIZES, list_pairs


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Measures the share, and samples a second on real data."""
    from modules import devices, networks
    from modules.data import cache
    from modules.data.case import Case
    from modules.data.draws import AUGMENTATIONS, Drawer
    from modules.data.patches import Window
    from modules.data.pipeline import make_pipeline
    from modules.data.preprocess import Preprocessing
    from modules.data.resident import find_bases, read_table
    from modules.run.fit import add_table, start_readers

    devices.start_backend(42)
    import keras
    import tensorflow as tf

    from modules.model.losses import SegmentationLoss
    from modules.model.metrics import Overlap
    from modules.model.trainer import Trainer

    devices.choose_precision(options.precision)
    pool = start_readers()
    size = SIZES["slices"]
    cases = [Case(image.name[:-7], image.name[:-7], (image,), label) for image, label in list_pairs(options)]
    preprocessing = Preprocessing(2, shape=size)
    prepared = cache.prepare_cases(cases, harness.make_spec(preprocessing, CLASSES), preprocessing, options.folder / "cache")

    settings = {
        "batch_size": options.batch,
        "training": True,
        "pool": pool,
        "draw_augmentation": Drawer(AUGMENTATIONS["light"], size, 1, None),
    }
    if options.resident:
        table = {name: keras.ops.convert_to_tensor(array) for name, array in read_table(prepared, 1).items()}
        real = add_table(make_pipeline(prepared, Window(size), 1, bases=find_bases(prepared), **settings), table)
        first = next(iter(real))
        repeated = (first for _ in itertools.count())
    else:
        real = make_pipeline(prepared, Window(size), 1, **settings)
        repeated = tf.data.Dataset.from_tensors(next(iter(real))).cache().repeat().prefetch(2)
    network = networks.build("unet2d", (*size, 1), CLASSES, base_filters=options.base_filters)
    trainer = Trainer(network, SegmentationLoss("dice_ce"), Overlap([str(index) for index in range(CLASSES)]))
    trainer.compile(optimizer=keras.optimizers.Adam(1e-3))
    harness.take_turn()
    trainer.fit(repeated, epochs=1, steps_per_epoch=2, verbose=0)
    rates = {"real": [], "repeated": []}
    for _ in range(3):
        for name, data in (("real", real), ("repeated", repeated)):
            trainer.fit(data, epochs=1, steps_per_epoch=1, verbose=0)
            began = time.perf_counter()
            trainer.fit(data, epochs=1, steps_per_epoch=options.steps, verbose=0)
            rates[name].append(options.batch * options.steps / (time.perf_counter() - began))
    shares = [real / repeated for real, repeated in zip(rates["real"], rates["repeated"], strict=True)]
    if pool:
        pool.__exit__(None, None, None)
    return {"share": statistics.median(shares), "rate": statistics.median(rates["real"])}


def main() -> None:
    """Measures and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", choices=("ours",), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kind", default="slices")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--base-filters", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--resident", type=int, default=0, help="1 for cases in the device's memory")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
