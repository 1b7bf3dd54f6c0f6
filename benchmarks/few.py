"""Measures Dice against the number of labelled scans, where `dataset.py suggest` chooses them and where chance does.

    python benchmarks/few.py --data Task04_Hippocampus
    python benchmarks/few.py --data Task04_Hippocampus --seeds 8 --numbers 6 12 24 48 --picture few.png

Of all labelled scans a fifth are for the test, the same ones for every seed. The others are the pool. A seed draws the first labelled
scans, and a network is trained on them. Then the pool gives up more labels in two ways: those that the network suggests, and scans drawn at
random. For each number of labels a new network begins anew and trains for as many steps, so that labels alone make the difference. Dice
are means over classes and test scans, on the grid of the scan. The last lines say how well doubt ranks the test scans by their true Dice.
"""

import argparse
import csv
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from contrast import train_network
from harness import describe
from rank import measure_dice
from scipy.stats import spearmanr

import train
from dataset import DATASETS
from modules.data.case import Case
from modules.data.spec import find_cases, load_spec
from modules.predict.cases import predict_cases
from modules.predict.suggestions import choose_scans, describe_scan, measure_doubt
from modules.run.flags import parse_training

RECIPE = (
    "--patience 0 --postprocess none --precision bfloat16 --network plain_unet --levels 3 --shape 40 56 40 --batch-size 1 "
    "--patches-per-case 1 --learning-rate 2e-3 --augment none --optimizer adam --schedule cosine --ema 0 --warmup-epochs 0"
)
# Scans that the program wants for a validation, and nobody looks at.
VALIDATION = 2


class Trained(NamedTuple):
    """A trained network and what it reached.

    Attributes:
        bundle: The network with all that a prediction needs.
        dice: Mean Dice of each test scan.
        doubts: Its doubt of each test scan.
    """

    bundle: Any
    dice: list[float]
    doubts: list[float]


def train_on(labelled: Sequence[Case], others: Sequence[Case], test: Sequence[Case], options: argparse.Namespace, seed: int) -> Trained:
    """Trains a new network on labelled scans, with so many epochs that steps are the same for every number of them."""
    import keras

    keras.backend.clear_session()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "cases.csv"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "label", "split"])
            for split, cases in (("train", labelled), ("validate", others[:VALIDATION]), ("test", test[:1])):
                writer.writerows([case.image_paths[0], case.label_path, split] for case in cases)
        flags = [*shlex.split(RECIPE), "--base-filters", str(options.base_filters), "--epochs", str(options.steps // len(labelled))]
        flags += ["--classes", *options.classes, "--cases", str(table), "--seed", str(seed), "--cache", str(options.cache)]
        prepared = train.prepare(parse_training(["--dataset", "folder", *flags], DATASETS).settings)
    train_network(prepared)
    bundle = prepared.make_bundle({})
    dice, doubts = [], []
    for item in predict_cases([bundle], test, keep_probabilities=True):
        dice.append(float(np.nanmean(measure_dice(item.prediction, item.label, len(bundle.class_names)))))
        doubts.append(measure_doubt(item, bundle.class_names))
    return Trained(bundle, dice, doubts)


def choose(bundle: Any, pool: Sequence[Case], number: int) -> list[Case]:
    """Chooses scans of the pool as `dataset.py suggest` does."""
    doubts, descriptions = [], []
    for item in predict_cases([bundle], pool, keep_probabilities=True):
        doubts.append(measure_doubt(item, bundle.class_names))
        descriptions.append(describe_scan(item, bundle.class_names))
    places, _ = choose_scans(doubts, descriptions, number)
    return [pool[place] for place in places]


def run_seed(pool: Sequence[Case], test: Sequence[Case], options: argparse.Namespace, seed: int) -> dict[str, list[Trained]]:
    """Trains for every number of labels in both ways, from the same first scans."""
    rng = np.random.default_rng(seed)
    order = [pool[place] for place in rng.permutation(len(pool))]
    first, *numbers = options.numbers
    trained = train_on(order[:first], order[first:], test, options, seed)
    report("first", first, seed, trained)
    results = {"suggested": [trained], "random": [trained]}
    suggested = list(order[:first])
    for number in numbers:
        rest = [case for case in order if case not in suggested]
        suggested += choose(results["suggested"][-1].bundle, rest, number - len(suggested))
        for way, labelled in (("suggested", suggested), ("random", order[:number])):
            others = [case for case in order if case not in labelled]
            results[way].append(train_on(labelled, others, test, options, seed))
            report(way, number, seed, results[way][-1])
    return results


def report(way: str, number: int, seed: int, trained: Trained) -> None:
    """Prints what a training reached."""
    worst = np.mean(np.sort(trained.dice)[: max(1, len(trained.dice) // 10)])
    print(f"seed {seed}  {number:>3} labels, {way:<9}  mean Dice {np.mean(trained.dice):.4f}  worst tenth {worst:.4f}", flush=True)


def draw(path: Path, numbers: Sequence[int], means: dict[str, np.ndarray]) -> None:
    """Draws the mean Dice over the number of labels, with a thin line for each seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (way, table), colour, style in zip(means.items(), ("#D55E00", "#0072B2"), ("-", "--"), strict=True):
        axes.plot(numbers, table.T, color=colour, alpha=0.3, linewidth=0.8, linestyle=style)
        axes.plot(numbers, table.mean(axis=0), color=colour, linestyle=style, marker="o", label=way)
    axes.set(xscale="log", xticks=numbers, xticklabels=numbers, xlabel="labelled scans", ylabel="mean Dice of the test scans")
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Trains with every seed, and prints means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder of Task04_Hippocampus, or another in the layout of the Decathlon"
    )
    parser.add_argument("--classes", nargs="+", default=["anterior", "posterior"], help="names of its classes")
    parser.add_argument("--numbers", type=int, nargs="+", default=[6, 12, 24], help="labelled scans, the first drawn at random")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=480, help="steps of each training")
    parser.add_argument("--base-filters", type=int, default=8)
    parser.add_argument("--picture", type=Path, help="PNG of the curves")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="folder of the cache")
    options = parser.parse_args()
    print(describe(), flush=True)
    cases = find_cases(load_spec(DATASETS["msd"], options.data), options.data)
    order = np.random.default_rng(0).permutation(len(cases))
    test, pool = ([cases[place] for place in part] for part in np.split(order, [len(cases) // 5]))
    print(f"{len(test)} test scans, {len(pool)} in the pool", flush=True)
    results = [run_seed(pool, test, options, seed) for seed in range(options.seeds)]
    means = {way: np.array([[np.mean(one.dice) for one in result[way]] for result in results]) for way in ("suggested", "random")}
    for place, number in enumerate(options.numbers):
        values = "  ".join(f"{way} {table[:, place].mean():.4f} (SD {table[:, place].std(ddof=1):.4f})" for way, table in means.items())
        print(f"{number:>3} labels: {values}", flush=True)
    ranks = [spearmanr(one.doubts, one.dice).statistic for result in results for way in result.values() for one in way]
    print(f"Spearman of doubt and Dice over the test scans: median {np.median(ranks):.2f}, from {min(ranks):.2f} to {max(ranks):.2f}")
    if options.picture:
        draw(options.picture, options.numbers, means)


if __name__ == "__main__":
    main()
