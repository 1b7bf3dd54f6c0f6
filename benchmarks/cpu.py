"""Speed of this application on a CPU, beside its peers: `make bench`, or

    python benchmarks/cpu.py
    python benchmarks/cpu.py --runs 3                  # medians of three runs
    python benchmarks/cpu.py --rows reading prediction

Each number comes from a process of its own, one after the other, on all cores. Ratios above 1 say that this application is faster. The tops
of reading.py, training.py and prediction.py say what is compared. A peer that is not installed is left out
(`pip install -r benchmarks/requirements.txt`).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
from harness import ROOT, Table, run

BACKENDS = ("tensorflow", "jax", "torch")


def measure_reading(table: Table, folder: Path, options: argparse.Namespace) -> None:
    """Rows a and b: from disk, from cache, and augmented."""
    for kind in ("slices", "volumes"):
        settings = {"folder": folder, "kind": kind, "seconds": options.seconds}
        ours, loop, monai = (run("reading", step, **settings) or {} for step in ("ours", "nibabel", "monai"))
        once = loop.get("first")
        limit = f"aim 5 x nibabel; inflating alone {ours.get('inflated', 0):.3g}/s"
        table.add(f"read {kind}", f"{kind}/s", ours.get("decoded"), {"nibabel": once}, limit)
        peers = {"nibabel": once, "monai": monai.get("first")}
        limit = f"{1000 * ours.get('core', 0):.3g} ms of a core each"
        table.add(f"read, preprocess, cache {kind}", f"{kind}/s", ours.get("first"), peers, limit)
        limit = f"aim 50 x nibabel; a copy in memory {ours.get('copied', 0):.3g}/s"
        peers = {"nibabel": once, "monai": monai.get("cached")}
        table.add(f"read {kind} from cache", f"{kind}/s", ours.get("cached"), peers, limit)
        what = "slices" if kind == "slices" else "96-cubes"
        table.add(f"pipeline with strong augmentation, {what}", f"{what}/s", ours.get("augmented"), {"monai": monai.get("augmented")})
    found = run("waiting", "ours", folder=folder, seconds=2 * options.seconds) or {}
    table.add("training on real data / on one batch, 2-D", "share/s", found.get("share"), limit="aim 0.95")


def measure_training(table: Table, folder: Path, options: argparse.Namespace) -> None:
    """Row c: the same network here on each backend, in PyTorch and in MONAI. The matrix product is the machine's limit."""
    networks = (
        ("2-D U-Net, base 32, 256x128, batch 16", 2, 32, 16, "256x128", BACKENDS),
        ("2-D U-Net, base 64, 256x128, batch 4", 2, 64, 4, "256x128", BACKENDS[:1]),
        ("3-D U-Net, base 16, 64-cube, batch 2", 3, 16, 2, "64x64x64", BACKENDS),
    )
    for name, rank, filters, batch, size, backends in networks:
        settings = {"rank": rank, "base_filters": filters, "batch": batch, "size": size, "seconds": options.seconds}
        peers = {peer: (run("training", peer, **settings) or {}).get("rate") for peer in ("torch", "monai")}
        for backend in backends:
            if backend == "jax" and rank == 3 and not options.slow:
                continue
            ours = run("training", "ours", {"KERAS_BACKEND": backend}, **settings) or {}
            limit = _share(3 * ours["flops"] * ours["rate"], options) if ours else ""
            table.add(f"train {name}, {backend}", "samples/s", ours.get("rate"), peers, limit)


def measure_prediction(table: Table, folder: Path, options: argparse.Namespace) -> None:
    """Row d: from file to label map."""
    flops = run("prediction", "draw", folder=folder) or {}
    for kind, cases in (("slices", 64), ("volumes", 1)):
        settings = {"folder": folder, "kind": kind, "cases": cases}
        found = {peer: run("prediction", peer, **settings) or {} for peer in ("torch", "monai", *(["nnunet"] if kind == "volumes" else []))}
        for engine in ("openvino", "keras") if options.slow else ("openvino",):
            ours = run("prediction", "ours", engine=engine, **settings) or {}
            rates = {peer: values.get("rate") for peer, values in found.items()}
            limit = "aim 1.3 x torch" + (f"; {_share(flops[kind] * ours['rate'], options)}" if ours and flops else "")
            table.add(f"predict {kind}, file to file, {engine}", f"{kind}/s", ours.get("rate"), rates, limit)
            memory = {peer: values.get("memory") for peer, values in found.items()}
            table.add(f"  its peak memory, {kind}, {engine}", "GiB", ours.get("memory"), memory)


def measure_start(table: Table, folder: Path, options: argparse.Namespace) -> None:
    """Row e: from the command to the first step and to one label map."""
    python = [sys.executable]
    for command in ("train.py", "predict.py"):
        table.add(f"{command} --help", "s", _time([*python, str(ROOT / command), "--help"], folder), limit="aim 0.3 s")
    if not (folder / "bundle_slices").is_dir():
        run("prediction", "draw", folder=folder)
    image = folder / "slices" / "case_000.nii.gz"
    predict = [*python, str(ROOT / "predict.py"), str(image), "--model", str(folder / "bundle_slices"), "--output", str(folder / "out")]
    script = str(ROOT / "benchmarks" / "prediction.py")
    peer = [*python, script, "--step", "monai", "--folder", str(folder), "--cases", "1"]
    table.add("predict.py on one slice", "s", _time(predict, folder), {"monai": _time(peer, folder)}, "aim 4 s")
    if not (folder / "data").is_dir():
        # The phantom and its cache are made by a run that is not counted.
        _time_first_step(folder)
    table.add(
        "train.py to the end of its first step", "s", _time_first_step(folder), limit="with its batch of 8 slices of 256x128, base 16"
    )


def _time_first_step(folder: Path) -> float | None:
    """Measures seconds until the first checkpoint. With so few minutes between checkpoints it follows the first step."""
    command = [sys.executable, str(ROOT / "train.py"), "--dataset", "hipmri", "--demo", "--name", "start", "--checkpoint-minutes", "1e-6"]
    run_folder, log = folder / "runs" / "start", folder / "start.log"
    shutil.rmtree(run_folder, ignore_errors=True)
    checkpoint, began = run_folder / "checkpoint" / "step_000000001.npz", time.perf_counter()
    with log.open("w") as output, subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) as process:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        process.kill()
    if not checkpoint.exists():
        print(f"  not measured: train.py: {(log.read_text().strip().splitlines() or ['killed'])[-1]:.300}")
        return None
    return seconds


def _share(flops: float, options: argparse.Namespace) -> str:
    """Describes a number of FLOP/s as a share of the machine's arithmetic."""
    return f"{flops / options.ceiling:.0%} of a matrix product's {options.ceiling / 1e9:.0f} GFLOP/s" if options.ceiling else ""


def _time(command: list[str], folder: Path) -> float | None:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  not measured: {' '.join(command[1:3])}: {(done.stderr.strip().splitlines() or ['killed'])[-1]:.300}")
        return None
    return time.perf_counter() - began


ROWS = {"reading": measure_reading, "training": measure_training, "prediction": measure_prediction, "start": measure_start}


def main() -> None:
    """Measures the rows and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), help="default: all")
    parser.add_argument("--runs", type=int, default=1, help="prints the medians of so many (default 1)")
    parser.add_argument("--seconds", type=float, default=3, help="about so long for each rate (default 3)")
    parser.add_argument("--slow", action="store_true", help="also 3-D training on JAX, minutes a step, and prediction by Keras")
    options = parser.parse_args()
    began, table = time.perf_counter(), Table()
    print(harness.describe(), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        run("reading", "draw", folder=folder)
        for _ in range(options.runs):
            options.ceiling = (run("training", "ceiling", seconds=options.seconds) or {}).get("flops")
            for row in options.rows:
                ROWS[row](table, folder, options)
    table.print(options.runs)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
