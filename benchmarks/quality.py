"""Test Dice of this application beside MONAI's BasicUNet and nnU-Net, trained for equal minutes on the same fold.

    python benchmarks/quality.py --dataset msd --data FOLDER --minutes 13 --peers-python PEERS/bin/python

The fold's test subjects are scored by the same code for all. A scan that was cut into slices is put together again. Each peer is a child
process (quality_peers.py) under a Python of its own that has torch, monai and nnunetv2. The minutes are those of the whole command:
reading, planning, training and, for ours, scoring and pictures too. Work goes on where an earlier call ended.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import harness
import nibabel as nib
import numpy as np

from dataset import DATASETS
from modules.data.case import Case, read_case, require_label
from modules.data.spec import DatasetSpec, choose_target, find_cases, load_spec
from modules.data.splits import split_folds

METHODS = ("ours", "monai", "nnunet")
RESAMPLES = 10_000


def main() -> None:
    """Runs the methods one after the other, and prints the table."""
    options = _parse()
    work = Path(options.output)
    work.mkdir(parents=True, exist_ok=True)
    spec = load_spec(DATASETS[options.dataset], Path(options.data))
    cases = find_cases(spec, Path(options.data))
    splits, _ = split_folds(cases, options.folds, options.fold)
    spec = choose_target(spec, options.target)
    scans = {name: _group(members) for name, members in splits.items()}
    subjects = {scan: members[0].subject_id for group in scans.values() for scan, members in group.items()}
    _write_scans(scans, spec, work)
    results: dict[str, dict[str, np.ndarray]] = {}
    for method in options.methods:
        done = work / f"{method}.json"
        if not done.is_file():
            begin = time.perf_counter()
            predictions = _run_ours(options, work) if method == "ours" else _run_peer(method, options, work)
            scores = _score(predictions, work, sorted(scans["test"]), spec.num_classes)
            done.write_text(json.dumps({"minutes": (time.perf_counter() - begin) / 60, "dice": scores}))
        content = json.loads(done.read_text())
        results[method] = {scan: np.array(dice, np.float64) for scan, dice in content["dice"].items()}
        print(f"{method}: {content['minutes']:.1f} min, {_format(_average(results[method]), spec)}")
    for method in options.methods[1:]:
        print(f"{options.methods[0]} - {method}: {_compare(results[options.methods[0]], results[method], subjects)}")
    print(f"{len(scans['test'])} test scans of {len({subjects[scan] for scan in scans['test']})} subjects; {harness.describe()}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, choices=tuple(DATASETS))
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--target", nargs="+", default=[], help="classes to find")
    parser.add_argument("--minutes", type=float, default=13.0)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--peers-python", default=sys.executable, help="Python that has torch, monai and nnunetv2")
    parser.add_argument("--output", default="quality", help="folder for scans, runs and results")
    parser.add_argument("--flags", default="", help="further flags of train.py")
    return parser.parse_args()


def _group(cases: list[Case]) -> dict[str, list[Case]]:
    """Groups the slices of each scan, in order; a volume is a group of its own."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.volume_id or case.case_id, []).append(case)
    return {name: sorted(members, key=lambda case: case.slice_index) for name, members in groups.items()}


def _write_scans(scans: dict[str, dict[str, list[Case]]], spec: DatasetSpec, work: Path) -> None:
    """Writes each scan and its label once as NIfTI, as this application reads them, and `scans.json`."""
    entries = []
    for split, group in scans.items():
        for name, members in group.items():
            image, label = work / "scans" / f"{name}.nii.gz", work / "labels" / f"{name}.nii.gz"
            entries.append({"name": name, "split": split, "slices": spec.spatial_dims == 2})
            if label.is_file():
                continue
            read = [read_case(case, spec) for case in members]
            labels = [require_label(case, one) for case, (_, one) in zip(members, read, strict=True)]
            arrays = [volume.array for volume, _ in read]
            affine = read[0][0].affine
            if spec.spatial_dims == 2:
                array, merged, affine = np.stack(arrays, axis=2), np.stack(labels, axis=2), np.eye(4)
            else:
                array, merged = arrays[0], labels[0]
            image.parent.mkdir(parents=True, exist_ok=True)
            label.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array.astype(np.float32), affine), image)
            nib.save(nib.Nifti1Image(merged.astype(np.uint8), affine), label)
    content = {"scans": entries, "classes": list(spec.class_names), "channels": list(spec.channels)}
    (work / "scans.json").write_text(json.dumps(content, indent=1))


def _run_ours(options: argparse.Namespace, work: Path) -> Path:
    """Trains our own run and predicts the test cases; returns the folder of the label maps."""
    root, runs = Path(__file__).parents[1], work / "runs"
    flags = ["--target", *options.target] if options.target else []
    places = ["--data", options.data, "--runs", str(runs), "--cache", str(work / "cache"), "--name", "ours"]
    fold = ["--folds", str(options.folds), "--fold", str(options.fold), "--minutes", str(options.minutes)]
    command = [sys.executable, str(root / "train.py"), "--dataset", options.dataset, *flags, *fold, *places, *options.flags.split()]
    subprocess.run(command, check=True, cwd=root)
    return runs / "ours"


def _run_peer(method: str, options: argparse.Namespace, work: Path) -> Path:
    script = Path(__file__).with_name("quality_peers.py")
    subprocess.run(
        [options.peers_python, str(script), "--method", method, "--work", str(work), "--minutes", str(options.minutes)], check=True
    )
    return work / method


def _score(predictions: Path, work: Path, scans: list[str], num_classes: int) -> dict[str, list[float]]:
    """Computes the Dice of each foreground class of each test scan: NaN where neither has it, 0 where only one has."""
    from modules import score_tables

    if (predictions / "scores.csv").is_file():
        rows = score_tables.read_scores(predictions / "scores.csv")
        level = "volume" if any(row.level == "volume" for row in rows) else rows[0].level
        own: dict[str, list[float]] = {}
        for row in rows:
            if row.level == level:
                own.setdefault(row.case, []).append(row.dice)
        return {scan: own[scan] for scan in scans}
    scores = {}
    for scan in scans:
        label = np.asarray(nib.load(work / "labels" / f"{scan}.nii.gz").dataobj)
        predicted = np.asarray(nib.load(predictions / f"{scan}.nii.gz").dataobj)
        dice = []
        for index in range(1, num_classes):
            one, other = label == index, predicted == index
            total = int(one.sum() + other.sum())
            dice.append(2 * int((one & other).sum()) / total if total else float("nan"))
        scores[scan] = dice
    return scores


def _average(dice: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the mean of each class over scans, and their mean."""
    means = np.nanmean(np.stack(list(dice.values())), axis=0)
    return np.append(means, means.mean())


def _format(means: np.ndarray, spec: DatasetSpec) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in zip((*spec.class_names[1:], "mean"), means, strict=True))


def _compare(ours: dict[str, np.ndarray], peer: dict[str, np.ndarray], subjects: dict[str, str]) -> str:
    """Describes the mean difference of scans' mean Dice, with a bootstrap interval over subjects."""
    differences: dict[str, list[float]] = {}
    for scan, dice in ours.items():
        differences.setdefault(subjects[scan], []).append(float(np.nanmean(dice) - np.nanmean(peer[scan])))
    by_subject = list(differences.values())
    sums, counts = np.array([sum(one) for one in by_subject]), np.array([len(one) for one in by_subject])
    drawn = np.random.default_rng(42).integers(0, len(by_subject), (RESAMPLES, len(by_subject)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return f"{sums.sum() / counts.sum():+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
