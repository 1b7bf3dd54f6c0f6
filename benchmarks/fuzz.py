"""Reads thousands of spoilt files beside nibabel and OpenCV, and judges what the program makes of them.

`python benchmarks/fuzz.py [--mutations 2000] [--seed 0] [--kinds nifti png tiff bundle dataset]`. The script draws small files and makes
mutants of them. It sets wrong header fields, flips bits and cuts files. It makes gzip bombs, and pictures that lie about their size. It
puts nonsense into bundles and `dataset.json`. A process of each kind reads the mutants under limits. The script judges:

- tracebacks and crashes: an error must be one line that names its file and says what was received;
- hangs: no more than 5 s;
- memory: no more than 1 GiB of resident memory above the file and the image that is really in it;
- silent differences: where the peer reads a file too, array, affine in mm and voxel size must be equal. The program must refuse some files
  that the peer takes: a damaged gzip file, NaN, a voxel of 1e9 mm. The script then computes the reason from what the peer read.

The exit status is 1 if the script finds anything. `--keep DIR` keeps the mutants that it found.
"""

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import fuzz_documents
import fuzz_mutants as mutants
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# {kind: its part of all mutations}
KINDS = {"nifti": 0.4, "png": 0.15, "tiff": 0.15, "bundle": 0.15, "dataset": 0.15}
MOST_SECONDS = 5.0
MOST_EXTRA = 1 << 30
# A peer may be as slow as it likes, within reason.
PEER_SECONDS = 60.0
MAKE_BUNDLE = """
import sys
from pathlib import Path
from modules import devices
devices.import_keras()
import keras
from modules.data.case import LabelRule
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.networks import build, with_head
from modules.predict.bundle import ModelBundle
from modules.predict.postprocess import Postprocessing, Step
keras.utils.set_random_seed(0)
ModelBundle(
    model=with_head(build("unet2d", (16, 32, 1), 3, base_filters=2)),
    preprocessing=Preprocessing(2), window=Window((16, 32)), class_names=("background", "left", "right"), channels=("T1",),
    label_rule=LabelRule({0: 0, 85: 1, 170: 2}, renames=(("^case_", "seg_"),), source="oasis"),
    mirrored_labels=((1, 2),), flipped_axes=(1, 2), provenance={"dataset": "oasis", "seed": 42},
    postprocessing=Postprocessing((Step("keep_largest", 1), Step("remove_small", 2, 30.0))),
).save(Path(sys.argv[1]))
"""


_NOTHING: dict[str, Any] = {"extra": 0, "honest": 0, "line": ""}


class Worker:
    """A process that reads mutants of one kind. It is started again after a hang or a crash."""

    def __init__(self, kind: str, errors: Path) -> None:
        """Takes the kind and the file for what libraries print."""
        self._kind, self._errors = kind, errors
        self._process: subprocess.Popen | None = None
        self._rest = b""

    def judge(self, path: Path) -> dict[str, Any]:
        """Lets the process read a mutant; returns its verdict, "hang" or "crash"."""
        process = self._start()
        assert process.stdin is not None
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        began = time.monotonic()
        answer = self._wait(MOST_SECONDS)
        seconds = time.monotonic() - began
        if answer is not None and "begun" in answer:
            answer = self._wait(PEER_SECONDS)
            if answer is None:
                self.stop()
                return _NOTHING | {"verdict": "peer fails", "why": "the peer hangs or crashes", "seconds": seconds}
        if answer is None:
            crashed = process.poll() is not None or seconds < MOST_SECONDS
            self.stop()
            why = f"exit status {process.returncode}" if crashed else f"more than {MOST_SECONDS:g} s"
            return _NOTHING | {"verdict": "crash" if crashed else "hang", "why": why, "seconds": seconds}
        return answer | {"seconds": seconds}

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process, self._rest = None, b""

    def _start(self) -> subprocess.Popen:
        if self._process is None:
            command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_worker.py"), self._kind]
            environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "OPENBLAS_NUM_THREADS": "1"}
            with self._errors.open("ab") as errors:
                self._process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
                )
            if self._wait(120) is None:
                raise RuntimeError(f"Expected a process that reads. Received: none.\n{self._errors.read_text(errors='replace')[-2000:]}")
        return self._process

    def _wait(self, seconds: float) -> dict[str, Any] | None:
        """Returns the next answer; None if none comes in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        end, pipe = time.monotonic() + seconds, self._process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([pipe], [], [], max(0, end - time.monotonic()))
            data = os.read(pipe, 1 << 16) if ready else b""
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


class Source:
    """Writes the mutants of one kind."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Draws the files that mutants of `kind` are made of, below `folder`."""
        self._kind, self._folder = kind, folder
        self._seeds: Any = ()
        if kind == "nifti":
            self._seeds, self._bombs = mutants.make_niftis(), mutants.make_bombs()
        elif kind in ("png", "tiff"):
            self._seeds = mutants.make_pictures(f".{kind}")
        elif kind == "bundle":
            self._seeds = folder / "seed"
            environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
            subprocess.run([sys.executable, "-c", MAKE_BUNDLE, self._seeds], cwd=ROOT, env=environment, check=True)

    def write(self, seed: int, number: int) -> tuple[Path, str]:
        """Writes mutant `number`; returns the path that is read, and what was done."""
        rng = np.random.default_rng([seed, zlib.crc32(self._kind.encode()), number])
        folder = self._folder / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if self._kind == "bundle":
            return folder, fuzz_documents.mutate_bundle(rng, self._seeds, folder)
        if self._kind == "dataset":
            return folder, fuzz_documents.mutate_dataset(rng, folder)
        if self._kind == "nifti":
            name, data, done = mutants.mutate_nifti(rng, self._seeds, self._bombs)
        else:
            name, data, done = (mutants.mutate_png if self._kind == "png" else mutants.mutate_tiff)(rng, self._seeds)
        (folder / name).write_bytes(data)
        return folder / name, done


def run_kind(kind: str, number: int, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], Counter]:
    """Judges `number` mutants of a kind; returns its row of the table, and how often the program alone refused for which reason."""
    folder.mkdir()
    source, worker = Source(kind, folder), Worker(kind, folder / "printed.txt")
    counts: Counter = Counter()
    reasons: Counter = Counter()
    extra, slowest = 0, 0.0
    try:
        for index in range(number):
            path, done = source.write(options.seed, index)
            found = worker.judge(path)
            above = found["extra"] - found["honest"]
            if found["verdict"] in ("equal", "both refuse", "only ours refuses") and above > MOST_EXTRA:
                found |= {"verdict": "memory", "why": f"{above / 2**20:.0f} MiB above the honest size"}
            counts[found["verdict"]] += 1
            extra, slowest = max(extra, above), max(slowest, found["seconds"])
            if found.get("printed"):
                counts["printed"] += 1
                if options.verbose:
                    print(f"{kind} {index} prints ({done}): {(folder / 'printed.txt').read_bytes()[-300:]!r}", flush=True)
            if found["verdict"] == "only ours refuses":
                reasons[f"{kind}: {found['why']}"] += 1
            elif found["verdict"] not in ("equal", "both refuse", "peer fails"):
                print(f"{kind} {index} {found['verdict'].upper()} ({done}): {found['why']}", flush=True)
                if options.keep:
                    target = Path(options.keep) / f"{kind}_{index}"
                    shutil.copytree(folder / "mutant", target, symlinks=True, dirs_exist_ok=True)
    finally:
        worker.stop()
    return {"kind": kind, "mutations": number, **counts, "extra": extra, "slowest": slowest}, reasons


COLUMNS = {
    "equal": "equal",
    "both refuse": "both refuse",
    "only ours refuses": "ours alone refuses",
    "peer fails": "peer fails",
    "difference": "differences",
    "fault": "tracebacks, unclear lines",
    "crash": "crashes",
    "hang": "hangs",
    "memory": "too much memory",
}
FAULTS = ("difference", "fault", "crash", "hang", "memory")


def main() -> int:
    """Runs the comparison; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=2000, help="files to read, over all kinds (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of files (default all)")
    parser.add_argument("--keep", metavar="DIR", help="folder to keep the mutants in that a fault was found with")
    parser.add_argument("--verbose", action="store_true", help="show what libraries print besides")
    options = parser.parse_args()
    # Mutants of mutants of documents are deep.
    sys.setrecursionlimit(20_000)
    parts = {kind: KINDS[kind] / sum(KINDS[name] for name in options.kinds) for kind in options.kinds}
    rows, reasons, began = [], Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        for kind, part in parts.items():
            row, found = run_kind(kind, round(options.mutations * part), options, Path(name) / kind)
            rows.append(row)
            reasons += found
    print(f"| kind | mutations | {' | '.join(COLUMNS.values())} | most extra memory, MiB | slowest, s |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    for row in rows:
        cells = " | ".join(str(row.get(key, 0)) for key in COLUMNS)
        print(f"| {row['kind']} | {row['mutations']} | {cells} | {row['extra'] / 2**20:.0f} | {row['slowest']:.1f} |")
    print("\nours alone refuses, where the peer reads or there is none:")
    for reason, count in sorted(reasons.items(), key=lambda item: (item[0].partition(":")[0], -item[1])):
        print(f"{count:6d}  {' '.join(reason.split())}")
    printed = sum(row.get("printed", 0) for row in rows)
    faults = sum(row.get(key, 0) for row in rows for key in FAULTS)
    print(f"\n{faults} faults, {printed} with lines of a library besides; seed {options.seed}, {time.monotonic() - began:.0f} s")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
