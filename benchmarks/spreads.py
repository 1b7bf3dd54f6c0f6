"""Measures how far apart subjects lie after each normalisation of slices, without any training.

    python benchmarks/spreads.py --data lgg=PATH oasis=PATH

For each class: the median intensity of the class in a subject, and the standard deviation of that over subjects, divided by the mean
standard deviation within the class. Less is easier for a network. The data set's own normalisation is called `own`.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import harness  # noqa: F401  (it finds our packages)
import numpy as np

from dataset import DATASETS
from modules.data.case import Case, read_case
from modules.data.spec import DatasetSpec, find_cases

# Fewer voxels have no median worth the name.
_LEAST_VOXELS = 50


def measure_spreads(cases: Sequence[Case], spec: DatasetSpec, channel: int, normalise: Callable) -> dict[str, float]:
    """Measures the spread between subjects over that within each class, `{class name: ratio}`; of slices that show foreground."""
    medians, deviations = defaultdict(lambda: defaultdict(list)), defaultdict(list)
    for case in cases:
        volume, label = read_case(case, spec)
        if label is None or not label.any():
            continue
        image = normalise(volume)[..., channel]
        for index, name in enumerate(spec.class_names):
            inside = label == index
            if index and inside.sum() >= _LEAST_VOXELS:
                medians[name][case.subject_id].append(np.median(image[inside]))
                deviations[name].append(np.std(image[inside]))
    return {
        name: float(np.std([np.mean(values) for values in subjects.values()]) / np.mean(deviations[name]))
        for name, subjects in medians.items()
    }


def main() -> None:
    """Prints a line for each data set and normalisation."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=PATH", help="folders of sets of slices")
    parser.add_argument("--channel", type=int, help="channel to measure (default the middle one)")
    parser.add_argument("--every", type=int, default=3, help="take one slice of so many (default 3)")
    options = parser.parse_args()
    for name, _, folder in (entry.partition("=") for entry in options.data):
        spec = DATASETS[name]
        cases = find_cases(spec, Path(folder))[:: options.every]
        channel = len(spec.channels) // 2 if options.channel is None else options.channel
        own = replace(spec.preprocessing, shape=())
        for kind in ("own", "min_max", "percentile", "zscore"):
            preprocessing = own if kind == "own" else replace(own, intensity=kind)
            spreads = measure_spreads(cases, spec, channel, lambda volume, rule=preprocessing: rule.apply(volume)[0])
            print(f"{name:<8}{kind:<12}" + "  ".join(f"{key} {value:.2f}" for key, value in spreads.items()), flush=True)


if __name__ == "__main__":
    main()
