"""Measures how a run knows its errors: predicted beside true Dice on its test cases, and how many scans damaged on purpose it flags.

    python benchmarks/flagging.py RUN --other FOLDER_OF_SCANS

A run may be a cross-validation: then each fold's model judges the test cases of its fold. The damages are others than those that the
training learns from (`modules/run/damage.py`): of other form and of fixed strength. `--other` names scans of another part of the body. A
run that was trained without a judgement learns one first, in memory.
"""

import argparse
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import harness
import numpy as np
from scipy import ndimage

from dataset import DATASETS
from modules.data.case import Case, Volume, read_case, require_label
from modules.predict.bundle import ModelBundle
from modules.predict.cases import PredictionOptions, predict_read
from modules.predict.inputs import find_images, make_cases
from modules.predict.judge import judge_case
from modules.predict.quality import Judgement
from modules.run.calibration import correlate_ranks
from modules.run.division import divide, find_labelled
from modules.run.folder import RunFolder
from modules.run.learn_quality import MOST, learn, observe
from modules.run.listing import list_runs
from modules.scoring import LEVELS, score_case

Damage = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class Row(NamedTuple):
    """One judged scan: its damage ("" for none), the true Dice of each class, and the judgement."""

    kind: str
    dice: np.ndarray
    judgement: Judgement


def main() -> None:
    """Judges clean and damaged test cases of all runs, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--other", nargs="*", default=[], help="folders of scans of another part of the body")
    parser.add_argument("--most-damaged", type=int, default=20, help="test cases of each run that are damaged")
    parser.add_argument("--predictions", type=int, help="predictions to learn a judgement from")
    parser.add_argument("--learn", action="store_true", help="learn a judgement anew, in memory, where a run has one too")
    parser.add_argument("--most-other", type=int, default=10, help="scans of another part of the body, for each run")
    options = parser.parse_args()
    rows: list[Row] = []
    names: Sequence[str] = ()
    for path in list_runs(map(Path, options.runs)):
        run = RunFolder(path)
        settings = run.read_settings()
        _, cases = find_labelled(settings, DATASETS[settings.dataset])
        splits, _ = divide(cases, settings)
        bundle = ModelBundle.load(path)
        if options.learn or bundle.quality is None:
            number = options.predictions or MOST[read_case(splits["test"][0], bundle)[0].array.ndim - 1]
            print(f"{path}: learning a judgement from up to {number} predictions")
            observed = observe(bundle, splits["validate"], splits["train"], number)
            bundle = replace(bundle, quality=learn(observed, bundle.class_names))
        rows += judge_tests(bundle, splits["test"], options.most_damaged)
        rows += judge_others(bundle, options.other, options.most_other)
        names = bundle.class_names[1:]
    print_tables(rows, names)
    print(f"\n{harness.describe()}")


def judge_tests(bundle: ModelBundle, cases: Sequence[Case], most: int) -> Iterator[Row]:
    """Judges test cases, and damaged copies of some from all parts of the list."""
    chosen = set(np.linspace(0, len(cases) - 1, min(most, len(cases))).astype(int).tolist())
    for place, case in enumerate(cases):
        image, label = read_case(case, bundle)
        label = require_label(case, label)
        yield judge(bundle, case, image, label, "")
        for kind, change in DAMAGES.items() if place in chosen else ():
            rng = np.random.default_rng(zlib.crc32(f"{case.case_id} {kind}".encode()))
            array, moved = change(image.array, label, rng)
            damaged = replace(image, array=np.ascontiguousarray(array, np.float32))
            yield judge(bundle, case, damaged, np.ascontiguousarray(moved), kind)


def judge_others(bundle: ModelBundle, folders: Sequence[str], most: int) -> Iterator[Row]:
    """Judges scans of another part of the body. They hold none of the classes, so whatever is predicted has a Dice of 0."""
    if not folders:
        return
    cases, _ = make_cases(find_images(folders, [spec.label_rule for spec in DATASETS.values()]).images, None, bundle)
    for case in cases[:most]:
        image, _ = read_case(case, bundle)
        yield judge(bundle, case, image, np.zeros(image.array.shape[:-1], np.uint8), "another body part")


def judge(bundle: ModelBundle, case: Case, image: Volume, label: np.ndarray, kind: str) -> Row:
    """Predicts and judges one scan."""
    item = predict_read([bundle], case, image, PredictionOptions(doubt=True))
    judgement = judge_case(item, [bundle])
    assert judgement is not None
    level = LEVELS[label.ndim - 2]
    scores = score_case(
        label, item.prediction, bundle.class_names, level=level, case=case.case_id, regions=bundle.regions, overlaps_only=True
    )
    return Row(kind, np.array([score.dice for score in scores]), judgement)


# ---------------------------------------------------------------------------------------------------------------- damages


def _make_noisy(strength: float) -> Damage:
    def change(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.percentile(array, (1, 99))
        real, imaginary = (strength * (high - low) * rng.standard_normal(array.shape) for _ in range(2))
        # A scanner measures magnitudes, whose noise is Rician.
        return low + np.hypot(array - low + real, imaginary), label

    return change


def _shade(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Makes one corner bright and the rest dark, as a surface coil does."""
    corner = rng.integers(2, size=label.ndim)
    places = np.meshgrid(*(np.linspace(0, 1, size) for size in label.shape), indexing="ij", sparse=True)
    distance = sum(((place - end) ** 2 for place, end in zip(places, corner, strict=True)), np.zeros(()))
    darkest = array.min()
    return darkest + (array - darkest) * (0.15 + 3 * np.exp(-3 * distance))[..., np.newaxis], label


def _invert(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return array.max() + array.min() - array, label


def _bend(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Folds the contrast at its middle, so that dark and bright tissue look alike, as in another sequence."""
    low, high = np.percentile(array, (1, 99))
    share = np.clip((array - low) / max(high - low, 1e-6), 0, 1)
    return low + (high - low) * np.abs(2 * share - 1), label


def _crop(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cuts off 45 % of the field of view along an axis, so that the array is smaller."""
    axis, end = int(rng.integers(label.ndim)), int(rng.integers(2))
    size = label.shape[axis]
    kept = slice(int(0.45 * size), None) if end else slice(None, size - int(0.45 * size))
    place = (slice(None),) * axis + (kept,)
    return array[place], label[place]


def _make_flipped(axis: int) -> Damage:
    """Flips an axis of space, counted from 0; 9 is the last one."""
    return lambda array, label, rng: (np.flip(array, min(axis, label.ndim - 1)), np.flip(label, min(axis, label.ndim - 1)))


def _ghost(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Adds shifted copies along an axis, as a moving patient does."""
    axis = int(rng.integers(label.ndim))
    shift = array.shape[axis] // 4
    return 0.5 * array + 0.3 * np.roll(array, shift, axis) + 0.2 * np.roll(array, -shift, axis), label


def _blur(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    size = (5,) * label.ndim + (1,)
    return ndimage.uniform_filter(array, size), label


DAMAGES: dict[str, Damage] = {
    "noise, 20 %": _make_noisy(0.2),
    "noise, 60 %": _make_noisy(0.6),
    "bias field": _shade,
    "inverted contrast": _invert,
    "folded contrast": _bend,
    "cropped": _crop,
    "flipped, 1st axis": _make_flipped(0),
    "flipped, 2nd axis": _make_flipped(1),
    "flipped, last axis": _make_flipped(9),
    "ghosts": _ghost,
    "blurred": _blur,
}


# ----------------------------------------------------------------------------------------------------------------- tables


def print_tables(rows: Sequence[Row], names: Sequence[str]) -> None:
    """Prints how predicted and true Dice agree on clean cases, and what of each kind of damage is flagged."""
    clean, damaged = [row for row in rows if not row.kind], [row for row in rows if row.kind]
    print(f"{len(clean)} test cases as they are\n")
    print_line("class", "true Dice", "predicted", "Spearman", "mean error", "in the interval")
    print_line(*["---"] * 6)
    for index, name in enumerate(names):
        true, predicted, low, high = pairs = list_pairs(clean, index)
        if pairs.size:
            within = f"{np.count_nonzero((low <= true) & (true <= high))} of {true.size}"
            error, rank = np.abs(true - predicted).mean(), correlate_ranks(true, predicted)
            print_line(name, f"{true.mean():.3f}", f"{predicted.mean():.3f}", f"{rank:.2f}", f"{error:.3f}", within)
    means, every = list_means(clean), list_means(rows)
    number = max(1, round(len(clean) / 10))
    worst, flagged = (set(np.argsort(part)[:number].tolist()) for part in means)
    print(f"\nSpearman of the mean over classes: {correlate_ranks(*means):.2f}; with the damaged scans {correlate_ranks(*every):.2f}.")
    print(f"Of the worst tenth, {number} case(s), {len(worst & flagged)} are in the tenth of the lowest predicted Dice.\n")
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        kinds[row.kind or "none"].append(row)
    print_line("damage", "scans", "true Dice", "predicted", "in the interval", "check this one")
    print_line(*["---"] * 6)
    for kind, own in [*kinds.items(), ("all damaged", damaged)]:
        true, predicted, low, high = list_pairs(own)
        within = (low <= true) & (true <= high)
        told = [f"{true.mean():.2f}", f"{predicted.mean():.2f}", f"{within.mean():.0%}"] if true.size else ["-"] * 3
        print_line(kind, len(own), *told, f"{sum(row.judgement.check for row in own)} of {len(own)}")


def print_line(*cells: object) -> None:
    """Prints a line of a table in Markdown."""
    print(f"| {' | '.join(map(str, cells))} |")


def list_pairs(rows: Sequence[Row], index: int | None = None) -> np.ndarray:
    """Lists true and predicted Dice, and the ends of its interval, `(4, n)`: of one class, or of all; those that are known."""
    chosen = slice(None) if index is None else slice(index, index + 1)
    columns = [(row.dice, row.judgement.dice, row.judgement.low, row.judgement.high) for row in rows]
    pairs = np.concatenate([np.stack(column)[:, chosen] for column in columns], axis=1)
    return pairs[:, np.isfinite(pairs).all(axis=0)]


def list_means(rows: Sequence[Row]) -> np.ndarray:
    """Lists the mean true and predicted Dice over the classes of each scan that are predicted, `(2, n)`."""
    pairs = [np.stack([row.dice, row.judgement.dice]) for row in rows]
    known = [pair[:, np.isfinite(pair).all(axis=0)] for pair in pairs]
    return np.array([pair.mean(axis=1) for pair in known if pair.size]).T


if __name__ == "__main__":
    main()
