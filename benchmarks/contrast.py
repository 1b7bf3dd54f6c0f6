"""Measures how much of a brain model's Dice is left on other contrasts and resolutions, by the augmentation that it was trained with.

    python benchmarks/contrast.py --data FOLDER_OF_IBSR18
    python benchmarks/contrast.py --data FOLDER_OF_IBSR18 --augment mild synthetic --epochs 8

Each augmentation trains the same network for as many steps on fold 0 of 5, without validation. The last weights are scored on the brains
that did not train, by Dice on the grid of the preprocessed case, as in `rank.py`. Each of these brains is there four times: as it is;
with tissues inverted and dark air, as T2 has them; with everything inverted, air too; and brought to voxels of 3 mm and back.
The changed scans lie in a temporary folder, which is removed.
"""

import argparse
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from harness import describe
from rank import score

import train
from dataset import DATASETS
from modules.data.cache import prepare_cases
from modules.data.case import Case
from modules.run.fit import make_trainer, make_training_data
from modules.run.flags import parse_training

RECIPE = (
    "--patience 0 --postprocess none --precision bfloat16 --mode slice --network unet2d --norm instance --batch-size 2 --batch-dice "
    "--warmup-epochs 1 --learning-rate 2e-3 --optimizer adam --schedule cosine --ema 0 --crop foreground --intensity zscore"
)
COARSE_MM = 3.0


def keep(image: np.ndarray, sizes_mm: Sequence[float]) -> np.ndarray:
    """Leaves a scan as it is."""
    return image


def invert_tissues(image: np.ndarray, sizes_mm: Sequence[float]) -> np.ndarray:
    """Makes bright tissue dark and dark tissue bright. Air, which is 0 in these scans, stays 0."""
    inside = image > 0
    return np.where(inside, image[inside].min() + image[inside].max() - image, 0)


def invert_all(image: np.ndarray, sizes_mm: Sequence[float]) -> np.ndarray:
    """Makes bright voxels dark and dark ones bright, air included."""
    return image.max() - image


def coarsen(image: np.ndarray, sizes_mm: Sequence[float]) -> np.ndarray:
    """Averages a scan over voxels of 3 mm, and interpolates it back to its own grid, so that its label fits as before."""
    for axis, size in enumerate(sizes_mm):
        number = image.shape[axis]
        coarse = max(1, round(number * size / COARSE_MM))
        lines = np.moveaxis(image, axis, -1)
        # The mean over an interval is the difference of the integral at its ends.
        integral = np.concatenate([np.zeros((*lines.shape[:-1], 1)), np.cumsum(lines, axis=-1)], axis=-1)
        ends = np.linspace(0, number, coarse + 1)
        low = np.minimum(ends.astype(int), number - 1)
        means = np.diff(integral[..., low] + (ends - low) * lines[..., low], axis=-1) * coarse / number
        place = np.clip((np.arange(number) + 0.5) * coarse / number - 0.5, 0, coarse - 1)
        near = np.minimum(place.astype(int), max(coarse - 2, 0))
        share = place - near
        image = np.moveaxis(means[..., near] * (1 - share) + means[..., np.minimum(near + 1, coarse - 1)] * share, -1, axis)
    return image


VARIANTS: dict[str, Callable[[np.ndarray, Sequence[float]], np.ndarray]] = {
    "as it is": keep,
    "tissues inverted": invert_tissues,
    "all inverted": invert_all,
    f"{COARSE_MM:g} mm": coarsen,
}


def write_variant(case: Case, change: Callable[[np.ndarray, Sequence[float]], np.ndarray], folder: Path) -> Case:
    """Writes the changed scan of a case into a folder; returns the case of it, with the label as it was."""
    source: Any = nib.load(case.image_paths[0])
    array = np.squeeze(source.get_fdata(dtype=np.float32))
    sizes_mm = np.linalg.norm(source.affine[:3, :3], axis=0)
    path = folder / case.image_paths[0].name
    nib.save(nib.Nifti1Image(change(array, sizes_mm).astype(np.float32), source.affine), path)
    return replace(case, image_paths=(path,))


def train_network(prepared: Any) -> None:
    """Trains the network of a prepared run for all its epochs."""
    trainer, batches = make_trainer(prepared), iter(make_training_data(prepared, 0))
    for _ in range(prepared.plan.epochs * prepared.plan.steps_per_epoch):
        trainer.train_on_batch(next(batches))


def measure(augment: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """Trains with an augmentation; returns a line for each variant of the scans."""
    import keras

    keras.backend.clear_session()
    flags = [*shlex.split(RECIPE), "--augment", augment, "--base-filters", str(options.base_filters), "--epochs", str(options.epochs)]
    flags += ["--folds", "5", "--fold", "0", "--seed", str(options.seed), "--cache", str(options.cache)]
    settings = parse_training(["--dataset", "ibsr18", "--data", str(options.data), *flags], DATASETS).settings
    prepared = train.prepare(settings)
    train_network(prepared)
    lines = []
    for number, (name, change) in enumerate(VARIANTS.items()):
        (folder / str(number)).mkdir(exist_ok=True)
        cases = [write_variant(case, change, folder / str(number)) for split in ("test", "validate") for case in prepared.splits[split]]
        ready = prepare_cases(cases, prepared.spec, prepared.plan.preprocessing, folder / "cache")
        dice = np.nanmean([score(prepared, case, options.overlap) for case in ready], axis=0)
        classes = "  ".join(f"{known} {value:.3f}" for known, value in zip(prepared.spec.class_names[1:], dice, strict=True))
        lines.append(f"{augment:<10} {name:<17} {len(ready)} brains: {classes}  mean {np.mean(dice):.3f}")
    return lines


def main() -> None:
    """Trains with each augmentation, and prints the Dice on each variant of the scans."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of IBSR18")
    parser.add_argument("--augment", nargs="+", default=["mild", "strong", "synthetic"], help="augmentations to compare")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--base-filters", type=int, default=8)
    parser.add_argument("--overlap", type=float, default=0.25, help="overlap of windows at prediction")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="folder of the cache")
    options = parser.parse_args()
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for augment in options.augment:
            for line in measure(augment, Path(folder), options):
                print(line, flush=True)


if __name__ == "__main__":
    main()
