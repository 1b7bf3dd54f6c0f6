"""Draws validation Dice over CPU minutes for the trainings in recipes.toml, each on a fold of its data set.

    python benchmarks/recipes.py --data lgg=PATH hipmri=PATH          # every recipe of these data sets
    python benchmarks/recipes.py --data lgg=PATH --only '*-shown*'    # those of such names
    python benchmarks/recipes.py --data lgg=PATH --core 0 --fold 1    # on one core, as another fold

Recipes run one at a time, each as a process of its own. A fold takes all subjects alike, those of an official test set too: to keep
these for the end, give a folder without them. A run that has finished is not repeated. The folder `--output` gets `recipes.csv` and
`recipes.json` with the scores of each recipe, and `<data set>.png` with its curves.

CPU minutes are those of the training process, on all its threads. Other processes on the machine change them little. A curve's
minutes are the seconds of its epochs, validation included, times the share of the CPU that the process had on average.
"""

import argparse
import csv
import fnmatch
import json
import math
import os
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import ROOT, describe

# Okabe and Ito's colours, which differ for the colour-blind too. Line styles tell more than eight recipes apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLES = ("-", "--", ":")
COLUMNS = ("name", "dataset", "fold", "flags", "epochs", "steps", "cpu_minutes", "wall_minutes", "gib", "best_epoch", "best_validation")


def read_recipes(path: Path, datasets: Sequence[str], only: str) -> list[dict[str, Any]]:
    """Reads the recipes of some data sets whose names fit the pattern `only`; the data set's common flags come before their own.

    Raises:
        ValueError: For a recipe with other keys than `name`, `dataset` and `flags`, naming the file.
    """
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    recipes, common = table.get("recipe", []), table.get("common", {})
    for recipe in recipes:
        if set(recipe) != {"name", "dataset", "flags"}:
            raise ValueError(f"Expected `name`, `dataset` and `flags` of a recipe in {path}. Received: {sorted(recipe)}. Correct it.")
        recipe["flags"] = f"{common.get(recipe['dataset'], '')} {recipe['flags']}".strip()
    return [recipe for recipe in recipes if recipe["dataset"] in datasets and fnmatch.fnmatchcase(recipe["name"], only)]


def run_recipe(recipe: dict[str, Any], data: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Trains a recipe on the fold unless its run has finished; returns its row, or None for a training that failed or is not wanted."""
    name = f"{recipe['name']}-fold{options.fold}"
    run, log = options.output / "runs" / name, options.output / f"{name}.log"
    usage = options.output / f"{name}.usage.json"
    if not (run / "summary.json").is_file():
        if options.finished:
            return None
        command = [sys.executable, str(ROOT / "train.py"), "--dataset", recipe["dataset"], "--data", data, *shlex.split(recipe["flags"])]
        command += ["--folds", str(options.folds), "--fold", str(options.fold), "--name", name, "--runs", str(run.parent.resolve())]
        command += ["--cache", str((options.output / "cache").resolve())]
        began = time.perf_counter()
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ})
            _, status, used = os.wait4(process.pid, 0)
        if status:
            print(f"  failed: {name}: {(log.read_text().strip().splitlines() or ['killed'])[-1]:.300}", flush=True)
            return None
        seconds = used.ru_utime + used.ru_stime
        values = {"cpu": seconds, "wall": time.perf_counter() - began, "gib": used.ru_maxrss / 2**20}
        usage.write_text(json.dumps(values))
    return read_run(recipe, run, json.loads(usage.read_text()), options.fold)


def read_run(recipe: dict[str, Any], run: Path, usage: dict[str, float], fold: int) -> dict[str, Any]:
    """Reads the row of a finished run: its costs, its curve, and the test Dice of each class with its interval over subjects."""
    history = list(csv.DictReader((run / "history.csv").open(encoding="utf-8")))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    # Other processes may take the processor away from a run, so the seconds of an epoch are no measure.
    share, elapsed, curve = usage["cpu"] / usage["wall"], 0.0, []
    for row in history:
        elapsed += float(row["seconds"])
        curve.append((elapsed * share / 60, float(row["val_mean_dice"])))
    # Scores of volumes are what counts where slices make them up.
    level = "volume" if "volume" in summary["intervals"] else "case"
    dice = {name: value["dice"] for name, value in summary["intervals"][level].items()}
    return {
        "name": recipe["name"],
        "dataset": recipe["dataset"],
        "fold": fold,
        "flags": recipe["flags"],
        "epochs": len(history),
        "steps": len(history) * plan["steps_per_epoch"],
        "cpu_minutes": usage["cpu"] / 60,
        "wall_minutes": usage["wall"] / 60,
        "gib": usage["gib"],
        "best_epoch": summary["best_epoch"],
        "best_validation": max(value for _, value in curve),
        "level": level,
        "dice": dice,
        "curve": curve,
    }


def describe_row(row: dict[str, Any]) -> str:
    """Describes a row in a line: CPU minutes, steps, memory, and the test Dice of each class with its interval."""
    classes = "  ".join(f"{name} {_format(value)}" for name, value in row["dice"].items())
    costs = f"{row['cpu_minutes']:5.1f} CPU min {row['steps']:>6} steps {row['gib']:4.1f} GiB"
    return f"{row['name']:<28} {costs}  validation {row['best_validation']:.3f}  test by {row['level']}: {classes}"


def _format(value: dict[str, float]) -> str:
    # JSON has no NaN, which stands for a class that no subject has, and for the interval of a single subject.
    mean, low, high = (math.nan if value[part] is None else value[part] for part in ("mean", "low", "high"))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def write_tables(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Writes `recipes.json` and `recipes.csv`, whose last columns are a line of Dice a class."""
    (folder / "recipes.json").write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1))
    with (folder / "recipes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "level", "class", "dice", "low", "high", "subjects"])
        for row in rows:
            for name, value in row["dice"].items():
                writer.writerow(
                    [*(row[key] for key in COLUMNS), row["level"], name, *(value[key] for key in ("mean", "low", "high", "subjects"))]
                )


def draw_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the validation Dice of each recipe over its CPU minutes; the recipes in the order of their test Dice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, row in enumerate(sorted(rows, key=lambda row: -(row["dice"]["mean"]["mean"] or 0))):
        minutes, dice = zip(*row["curve"], strict=True)
        look = {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index // len(COLOURS) % len(STYLES)]}
        axes.plot(minutes, dice, marker="o", markersize=2.5, linewidth=1.5, label=f"{row['name']}, {_format(row['dice']['mean'])}", **look)
    axes.set_xlabel("training and validation (CPU minutes)")
    axes.set_ylabel("mean Dice on validation (0 to 1)")
    axes.set_title(f"{rows[0]['dataset']}: fold {rows[0]['fold']}", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(title="test Dice [95 %]", fontsize=7, title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path)


def main() -> None:
    """Runs the recipes of the data sets that are given, prints a line of each, and writes tables and curves."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=PATH", help="folders of the data sets")
    parser.add_argument("--recipes", type=Path, default=ROOT / "benchmarks" / "recipes.toml", help="their file")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="only recipes of such names, as lgg-*")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--fold", type=int, default=0, help="the fold that is tested")
    parser.add_argument("--core", type=int, nargs="+", default=[], help="processor cores to stay on (default all)")
    parser.add_argument("--finished", action="store_true", help="train nothing: tables and curves of the runs that have finished")
    parser.add_argument("--output", type=Path, default=Path("recipes"), help="folder of runs, cache, tables and curves")
    options = parser.parse_args()
    if options.core:
        os.sched_setaffinity(0, options.core)
    folders = dict(entry.split("=", 1) for entry in options.data)
    options.output.mkdir(parents=True, exist_ok=True)
    print(describe(), flush=True)
    rows: list[dict[str, Any]] = []
    for recipe in read_recipes(options.recipes, tuple(folders), options.only):
        row = run_recipe(recipe, str(Path(folders[recipe["dataset"]]).resolve()), options)
        if row:
            rows.append(row)
            print(describe_row(row), flush=True)
            write_tables(rows, options.output)
            same = [other for other in rows if other["dataset"] == row["dataset"]]
            draw_curves(same, options.output / f"{row['dataset']}.png")


if __name__ == "__main__":
    main()
