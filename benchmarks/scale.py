"""Memory as a data set grows: it should stay flat from a thousand to a hundred thousand slices, in training and prediction.

    python benchmarks/scale.py
    python benchmarks/scale.py --cases 1000 10000

A catalogue is a folder in the HipMRI layout. Its files are links to a few tiny slices, so it is quickly made and takes no room. The memory
that a case takes does not depend on its size. Each number comes from a process of its own. A training gives its largest resident set, and
the seconds to find, split and first prepare all cases. It also trains a few steps. Prediction reads, predicts and drops each of the slices.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import harness
import numpy as np

SIZE = (32, 16)
SLICES_A_SCAN = 30


def draw(options: argparse.Namespace) -> dict:
    """Makes the catalogue."""
    import nibabel as nib

    rng = np.random.default_rng(42)
    folders = {name: options.folder / f"keras_slices_{name}" for name in ("train", "seg_train")}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        array = rng.integers(0, 6 if name.startswith("seg") else 1000, SIZE)[..., None].astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder.parent / f"{name}.nii.gz")
    for number in range(options.cases):
        scan, place = divmod(number, SLICES_A_SCAN)
        # A file system allows only so many links to a file.
        if number % 30000 == 0:
            sources = {name: shutil.copy(options.folder / f"{name}.nii.gz", options.folder / f"{name}_{number}.nii.gz") for name in folders}
        for name, prefix in (("train", "case"), ("seg_train", "seg")):
            os.link(sources[name], folders[name] / f"{prefix}_{scan:05d}_week_0_slice_{place}.nii.gz")
    return {}


def measure_training(options: argparse.Namespace) -> dict[str, float]:
    """Prepares all cases and trains a few steps, with the functions of train.py."""
    import train
    from modules.run import fit
    from modules.run.settings import Settings

    began = time.perf_counter()
    places = {"data": str(options.folder), "cache": str(options.folder / "cache")}
    prepared = train.prepare(Settings("hipmri", **places, shape=SIZE, epochs=1, network_options={"base_filters": 4}))
    seconds = time.perf_counter() - began
    trainer = fit.make_trainer(prepared)
    trainer.fit(fit.make_training_data(prepared, 0), epochs=1, steps_per_epoch=20, shuffle=False, verbose=0)
    prepared.make_bundle({"dataset": "hipmri"}).save(options.folder / "bundle")
    return {"memory": _peak(), "seconds": seconds}


def measure_prediction(options: argparse.Namespace) -> dict[str, float]:
    """Finds and predicts all slices, and drops the label maps."""
    from dataset import DATASETS
    from modules.predict.bundle import ModelBundle
    from modules.predict.cases import predict_cases
    from modules.predict.inputs import find_images, make_cases

    began = time.perf_counter()
    bundle = ModelBundle.load(options.folder / "bundle", engine="keras")
    files = find_images([str(options.folder / "keras_slices_train")], [spec.label_rule for spec in DATASETS.values()]).images
    cases, _ = make_cases(files, None, bundle)
    for _ in predict_cases([bundle], cases):
        pass
    return {"memory": _peak(), "seconds": time.perf_counter() - began}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


STEPS = {"draw": draw, "training": measure_training, "prediction": measure_prediction}


def main() -> None:
    """Measures the `--step` and prints it as JSON; without `--step` measures all and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--step", choices=tuple(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        options.cases = options.cases[0]
        print(json.dumps(STEPS[options.step](options)))
        return
    print(f"{'slices':>9}{'train GiB':>12}{'prepare s':>12}{'predict GiB':>13}{'slices/s':>10}")
    for cases in options.cases:
        with tempfile.TemporaryDirectory(prefix="scale-") as name:
            folder = Path(name) / "hipmri"
            for step in STEPS:
                found = harness.run("scale", step, cases=cases, folder=folder) or {"memory": float("nan"), "seconds": float("nan")}
                if step == "training":
                    line = f"{cases:>9}{found['memory']:>12.2f}{found['seconds']:>12.1f}"
        print(line + f"{found['memory']:>13.2f}{cases / found['seconds']:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
