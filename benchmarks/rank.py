"""Ranks recipes by their Dice after equal CPU seconds of training, whatever a step costs.

    python benchmarks/rank.py --data msd=FOLDER --seconds 150 --only 'msd-*'
    taskset -c 1 python benchmarks/rank.py --data ibsr18=FOLDER --seconds 480 --only 'ibsr18-slices-*'

Each recipe trains on a fold until it has used its seconds of processor time, on all threads. The first step, which compiles, is not
counted. The learning rate follows the time: it rises in the first 3 %, then falls in half a cosine to 0. So `--epochs`, `--schedule` and
`--warmup-epochs` of a recipe do nothing here. Nothing is validated on the way. The last weights are scored on all cases that did not train,
by Dice on the grid of the preprocessed case. `recipes.py` trains as train.py does, with all that this leaves out.
"""

import argparse
import math
import shlex
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, describe
from recipes import read_recipes

import train
from dataset import DATASETS
from modules.data.cache import PreparedCase
from modules.data.patches import cut, make_grid
from modules.predict.windows import Tiling, choose_batch_size, merge_windows, predict_windows
from modules.run.fit import make_trainer, make_training_data
from modules.run.flags import parse_training

WARMUP = 0.03


def scale_rate(spent: float) -> float:
    """Returns the factor of the learning rate after a share of the time, from 0 to 1; never 0, which would waste the step."""
    factor = spent / WARMUP if spent < WARMUP else 0.5 * (1 + math.cos(math.pi * (spent - WARMUP) / (1 - WARMUP)))
    return max(factor, 1e-3)


def train_for(prepared: Any, seconds: float) -> tuple[int, float]:
    """Trains the network of a prepared run in place; returns its steps and the CPU seconds that they took."""
    # A schedule would follow the steps. A plain rate can be set before each one.
    plain = replace(prepared.settings, schedule="constant", warmup_epochs=0)
    trainer, rate = make_trainer(replace(prepared, settings=plain)), plain.learning_rate
    trainer.optimizer.build(trainer.trainable_variables)
    batches, steps = iter(make_training_data(prepared, 0)), 0
    trainer.optimizer.learning_rate.assign(rate * scale_rate(0))
    trainer.train_on_batch(next(batches))
    began = time.process_time()
    while (spent := time.process_time() - began) < seconds:
        trainer.optimizer.learning_rate.assign(rate * scale_rate(spent / seconds))
        trainer.train_on_batch(next(batches))
        steps += 1
    return steps, time.process_time() - began


def score(prepared: Any, case: PreparedCase, overlap: float) -> list[float]:
    """Predicts a prepared case in windows; returns the Dice of each foreground class, NaN where neither label nor prediction has it."""
    image, label = case.read((0,) * len(case.shape), case.shape)
    window, shape, classes = prepared.plan.window.sizes, prepared.plan.window.shape, prepared.spec.num_classes
    tiling = Tiling(case.shape, window, tuple(make_grid(case.shape, window, overlap)), classes, choose_batch_size(window))

    def predict(inputs: np.ndarray) -> np.ndarray:
        logits = np.asarray(prepared.network(inputs.reshape(len(inputs), *shape, inputs.shape[-1]), training=False))
        if classes == 2:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = exponentials / exponentials.sum(-1, keepdims=True)
        return probabilities.reshape(*inputs.shape[:-1], classes)

    def cut_windows() -> Iterator[np.ndarray]:
        for start in tiling.starts:
            yield cut(image, start, window, case.darkest)

    planes = merge_windows(predict_windows(predict, cut_windows(), tiling.batch_size), tiling)
    return measure_dice(np.stack([plane.argmax(-1) for plane in planes]), label, classes)


def measure_dice(prediction: np.ndarray, label: np.ndarray, classes: int) -> list[float]:
    """Measures the Dice of each foreground class; NaN where neither has it."""
    dice = []
    for index in range(1, classes):
        one, other = prediction == index, label == index
        total = int(one.sum()) + int(other.sum())
        dice.append(2 * int((one & other).sum()) / total if total else math.nan)
    return dice


def rank(recipe: dict[str, Any], folder: str, options: argparse.Namespace) -> str:
    """Trains a recipe and scores it; returns its line."""
    import keras

    keras.backend.clear_session()
    arguments = ["--dataset", recipe["dataset"], "--data", folder, *shlex.split(recipe["flags"])]
    arguments += ["--folds", str(options.folds), "--fold", str(options.fold), "--cache", str(options.cache)]
    settings = parse_training(arguments, DATASETS).settings
    prepared = train.prepare(settings)
    steps, seconds = train_for(prepared, options.seconds)
    cases = [case for split in ("test", "validate") for case in prepared.prepared[split]]
    dice = np.nanmean([score(prepared, case, options.overlap) for case in cases], axis=0)
    classes = "  ".join(f"{name} {value:.4f}" for name, value in zip(prepared.spec.class_names[1:], dice, strict=True))
    return (
        f"{recipe['name']:<28} {steps:>6} steps of {seconds / max(steps, 1):.3f} CPU s, {len(cases)} cases: "
        f"{classes}  mean {np.mean(dice):.4f}"
    )


def main() -> None:
    """Ranks the recipes of the data sets that are given, and prints a line of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=PATH", help="folders of the data sets")
    parser.add_argument("--recipes", type=Path, default=ROOT / "benchmarks" / "recipes3d.toml", help="their file")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="only recipes of such names, as msd-*")
    parser.add_argument("--seconds", type=float, default=150, help="CPU seconds of each training")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--fold", type=int, default=0, help="the fold that is tested")
    parser.add_argument("--overlap", type=float, default=0.5, help="overlap of windows at prediction")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="folder of the cache")
    options = parser.parse_args()
    folders = dict(entry.split("=", 1) for entry in options.data)
    print(describe(), flush=True)
    for recipe in read_recipes(options.recipes, tuple(folders), options.only):
        print(rank(recipe, str(Path(folders[recipe["dataset"]]).resolve()), options), flush=True)


if __name__ == "__main__":
    main()
