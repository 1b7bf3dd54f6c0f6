"""Speed of this application on one GPU, beside its peers.

    KERAS_BACKEND=jax python benchmarks/gpu.py
    python benchmarks/gpu.py --small                  # the same script with tiny sizes on a CPU: a proof of the path, no result

Everything trains in bfloat16. Ours goes through `modules.model.trainer` on the backend that KERAS_BACKEND names. PyTorch and MONAI's
network run channels-last under autocast and `torch.compile`. Then the script predicts from file to file, and measures how long a training
waits for its data. Each number comes from a process of its own. The tops of training.py, prediction.py and waiting.py say what is compared.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
from harness import Table, run

# Each row has a rank, filters, batch and size.
NETWORKS = ((2, 32, 64, "256x128"), (2, 64, 64, "256x128"), (3, 32, 2, "96x96x96"), (3, 32, 2, "128x128x128"))
SMALL = ((2, 4, 4, "32x32"), (3, 4, 2, "16x16x16"))


def main() -> None:
    """Measures the rows and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes, on whatever there is")
    parser.add_argument("--seconds", type=float, default=5, help="about so long for each rate (default 5)")
    options = parser.parse_args()
    began, table = time.perf_counter(), Table()
    print(harness.describe(), flush=True)
    common = {"seconds": 1 if options.small else options.seconds}
    common |= {"precision": "bfloat16", "device": "cpu" if options.small else "cuda"}
    measure_training(table, SMALL if options.small else NETWORKS, common, compiled=not options.small)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        measure_prediction(table, Path(name), common["device"], 4 if options.small else 256, options.small)
    table.print(1)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes")


def measure_training(table: Table, networks: tuple, common: dict[str, Any], compiled: bool) -> None:
    """Measures samples a second of the same networks, and their share of a matrix product's speed."""
    ceiling = (run("training", "ceiling", **common) or {}).get("flops")
    for rank, filters, batch, size in networks:
        settings = {"rank": rank, "base_filters": filters, "batch": batch, "size": size, **common}
        ours = run("training", "ours", **settings) or {}
        peers = {"torch": (run("training", "torch", **settings) or {}).get("rate")}
        if compiled:
            peers["torch compiled"] = (run("training", "torch", compile=1, **settings) or {}).get("rate")
        peers["monai"] = (run("training", "monai", **settings) or {}).get("rate")
        reached = 3 * ours["flops"] * ours["rate"] / ceiling if ours and ceiling else 0
        limit = f"{reached:.0%} of a matrix product's {(ceiling or 0) / 1e12:.3g} TFLOP/s; first step {ours.get('first', 0):.0f} s"
        table.add(f"train {rank}-D U-Net, base {filters}, {size}, batch {batch}", "samples/s", ours.get("rate"), peers, limit)


def measure_prediction(table: Table, folder: Path, device: str, cases: int, small: bool) -> None:
    """Measures slices and volumes from file to file, and the wait for data."""
    run("reading", "draw", folder=folder)
    run("prediction", "draw", folder=folder)
    for kind, number in (("slices", cases), ("volumes", 0 if small else 2)):
        if number:
            settings = {"folder": folder, "kind": kind, "cases": number}
            peers = {peer: (run("prediction", peer, device=device, **settings) or {}).get("rate") for peer in ("torch", "monai")}
            ours = run("prediction", "ours", engine="keras", **settings) or {}
            table.add(f"predict {kind}, file to file", f"{kind}/s", ours.get("rate"), peers)
    settings = (
        {"batch": 4, "base_filters": 2, "steps": 3} if small else {"batch": 64, "base_filters": 32, "steps": 40, "precision": "bfloat16"}
    )
    found = run("waiting", "ours", folder=folder, **settings) or {}
    table.add("training on real data / on one batch, 2-D", "share/s", found.get("share"), limit="aim 0.95")


if __name__ == "__main__":
    main()
