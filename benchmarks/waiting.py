"""The wait for data: training speed on real data over that on one repeated batch; a child of cpu.py and gpu.py.

    python benchmarks/waiting.py --step ours --folder FOLDER                                # where reading.py drew
    python benchmarks/waiting.py --step draw --folder FOLDER --kind patches                 # volumes for the next line
    python benchmarks/waiting.py --step ours --folder FOLDER --kind patches --resident 1

Both go through `Trainer.fit`, as train.py does, from a filled cache: the slices of reading.py with light augmentation, or patches of
40x56x40 with a strong one. The repeated batch lies on the device already. With `--resident 1` all cases lie there, and batches are cut out.
They take turns, so that a machine that is busy for a while slows both. With `--seconds 0` each comes once, which is enough to compile.
"""

import argparse
import itertools
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import harness
from reading import CLASSES, SIZES, draw_pairs, list_pairs

# Sizes of a sample and of the volumes that are drawn for patches.
PATCH, VOLUME = (40, 56, 40), (48, 64, 48)


def draw(options: argparse.Namespace) -> dict:
    """Draws `--cases` volumes for patches; reading.py draws slices."""
    draw_pairs(options.folder / options.kind, VOLUME, options.cases)
    return {}


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Measures the share, and samples a second on real data."""
    from modules import devices, networks

    devices.start_backend(42)
    import keras

    from modules.model.losses import SegmentationLoss
    from modules.model.metrics import Overlap
    from modules.model.trainer import Trainer
    from modules.run.finite import StepCallbacks
    from modules.run.fit import start_readers

    devices.choose_precision(options.precision)
    sliced = options.kind == "slices"
    size = SIZES["slices"] if sliced else PATCH
    prepared = prepare(options, size)
    network = networks.build("unet2d" if sliced else "unet3d", (*size, 1), CLASSES, base_filters=options.base_filters)
    trainer = Trainer(network, SegmentationLoss("dice_ce"), Overlap([str(index) for index in range(CLASSES)]))
    trainer.compile(optimizer=keras.optimizers.Adam(1e-3))

    def fit(data, steps: int) -> float:
        began = time.perf_counter()
        trainer.fit(data, epochs=1, steps_per_epoch=steps, callbacks=StepCallbacks([], trainer), shuffle=False, verbose=0)
        return options.batch * steps / (time.perf_counter() - began)

    harness.take_turn()
    rates = {"real": [], "repeated": []}
    with start_readers() or nullcontext() as pool:
        real, repeated = make_data(prepared, size, options, pool)
        for _ in range(3 if options.seconds else 1):
            for name, data in (("real", real), ("repeated", repeated)):
                fit(data, 2)
                rates[name].append(fit(data, options.steps))
    shares = [real / repeated for real, repeated in zip(rates["real"], rates["repeated"], strict=True)]
    return {"share": statistics.median(shares), "rate": statistics.median(rates["real"])}


def prepare(options: argparse.Namespace, size: tuple[int, ...]) -> list:
    """Prepares the drawn cases."""
    from modules.data import cache
    from modules.data.case import Case
    from modules.data.preprocess import Preprocessing

    cases = [Case(image.name[:-7], image.name[:-7], (image,), label) for image, label in list_pairs(options)]
    preprocessing = Preprocessing(2, shape=size) if len(size) == 2 else Preprocessing(3)
    return cache.prepare_cases(cases, harness.make_spec(preprocessing, CLASSES), preprocessing, options.folder / "cache")


def make_data(prepared: list, size: tuple[int, ...], options: argparse.Namespace, pool) -> tuple:
    """Makes the real data, and one batch of them again and again."""
    import keras
    import tensorflow as tf

    from modules.data.draws import AUGMENTATIONS, Drawer
    from modules.data.patches import Window
    from modules.data.pipeline import PatchSampler, make_pipeline
    from modules.data.resident import find_bases, read_table
    from modules.run.fit import add_table

    draw = Drawer(AUGMENTATIONS["light" if len(size) == 2 else "strong"], size, 1)
    settings = {"batch_size": options.batch, "training": True, "draw_augmentation": draw}
    settings |= {"sampler": PatchSampler() if len(size) == 3 else None}
    batch = next(iter(make_pipeline(prepared, Window(size), 1, **settings)))
    if keras.backend.backend() == "tensorflow":
        repeated = tf.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2)
    else:
        placed = {name: keras.ops.convert_to_tensor(array.numpy()) for name, array in batch.items()}
        repeated = ((one,) for one in itertools.repeat(placed))
    if not options.resident:
        return make_pipeline(prepared, Window(size), 1, pool=pool, **settings), repeated
    table = {name: keras.ops.convert_to_tensor(array) for name, array in read_table(prepared, 1).items()}
    places = make_pipeline(prepared, Window(size), 1, pool=pool, bases=find_bases(prepared), **settings)
    return add_table(places, table, size), repeated


STEPS = {"draw": draw, "ours": measure}


def main() -> None:
    """Measures or draws, as `--step` says, and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", choices=tuple(STEPS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kind", choices=("slices", "patches"), default="slices")
    parser.add_argument("--cases", type=int, default=64, help="volumes to draw")
    parser.add_argument("--resident", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--base-filters", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    print(json.dumps(STEPS[options.step](options)))


if __name__ == "__main__":
    main()
