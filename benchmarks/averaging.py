"""Compares the best epoch of a training with the average of the weights of its last epochs, `--average-last`, on drawn brains.

    python benchmarks/averaging.py --work FOLDER [--seeds 1 2 3] [--schedules cosine constant]

Both are scored on the same test cases after one training. It prints a row a training: mean Dice on validation and on test, of both.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from modules import phantom, score_tables, scoring
from modules.predict.bundle import ModelBundle
from modules.predict.cases import predict_cases
from modules.run import fit

SETS = {"oasis": ["--shape", "64", "64"], "ibsr18": ["--mode", "slice", "--folds", "3", "--fold", "0"]}
SMALL = [
    *("--base-filters", "6", "--levels", "2", "--epochs", "10", "--batch-size", "4", "--learning-rate", "0.005"),
    *("--average-last", "0.3", "--postprocess", "none"),
]


def draw(folder: Path) -> None:
    """Draws the two data sets, unless they are there."""
    if not folder.is_dir():
        phantom.write_oasis(folder / "oasis", subjects=(6, 2, 4), slices=6)
        phantom.write_ibsr18(folder / "ibsr18", subjects=(5, 2, 0), shape=(32, 24, 32))


def compare(argv: list[str]) -> dict[str, float]:
    """Trains once; returns mean Dice of the best epoch and of the average, on validation and on test."""
    row: dict[str, float] = {}
    evaluate = train.evaluate

    def keep_both(average, prepared, bundle, run, best, *, by_loss):
        def validate():
            logs = average.trainer.evaluate(fit.make_validation_data(prepared), return_dict=True, verbose=0)
            row["validation of the average"] = float(logs["mean_dice"])
            return logs

        row["validation of the best"] = best
        average.judge(validate, "mean_dice", -1e9, lambda: bundle.save(run.path / "average" / "bundle"))
        return False

    def score_both(splits, run, *rest):
        evaluate(splits, run, *rest)
        for name, folder in (("the best", run.path), ("the average", run.path / "average")):
            bundle = ModelBundle.load(folder, "keras")
            scores = scoring.score_predictions(predict_cases([bundle], splits["test"]), bundle.class_names)
            row[f"test of {name}"] = score_tables.summarise(scores)["volume"]["mean"]["dice"]

    judge, fit._judge_average, train.evaluate = fit._judge_average, keep_both, score_both
    try:
        if train.main(argv):
            raise SystemExit(1)
    finally:
        fit._judge_average, train.evaluate = judge, evaluate
    return row


def main() -> None:
    """Prints a row a training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, runs and cache")
    parser.add_argument("--seeds", nargs="+", default=["1", "2", "3"])
    parser.add_argument("--schedules", nargs="+", default=["cosine"])
    options = parser.parse_args()
    draw(options.work / "data")
    for name, own in SETS.items():
        for schedule in options.schedules:
            for seed in options.seeds:
                places = ["--data", str(options.work / "data" / name), "--runs", str(options.work / "runs"), "--cache", str(options.work)]
                run = ["--schedule", schedule, "--seed", seed, "--name", f"{name}-{schedule}-{seed}"]
                row = compare(["--dataset", name, *places, *own, *SMALL, *run])
                print(f"ROW {run[-1]:<20}", "  ".join(f"{what} {value:.4f}" for what, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
