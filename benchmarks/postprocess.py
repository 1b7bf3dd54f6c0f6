"""Cost of postprocessing one large label map: CPU seconds of each step and the most memory besides the map.

    python benchmarks/postprocess.py
    python benchmarks/postprocess.py --shape 256 256 128 --specks 1e-3

Five classes of balls are drawn, with specks of any class in between. Each kind of step is then taken for each class. The times are those of
the process, so that other jobs on the machine hardly count. Where `connected-components-3d` is installed, the objects of one class are
also found with it.
"""

import argparse
import importlib.util
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from modules.predict.objects import find_objects
from modules.predict.postprocess import FOREGROUND, KINDS, Postprocessing, Step

CLASSES = 5
BALLS = 20
SMALL_MM3 = 100.0


def draw(shape: tuple[int, ...], specks: float, seed: int = 0) -> np.ndarray:
    """Draws a label map of balls of five classes, and specks on a fraction `specks` of its voxels."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for index in range(1, CLASSES + 1):
        for _ in range(BALLS):
            radius = int(rng.integers(3, max(4, min(shape) // 8)))
            box = label[tuple(slice(start, start + 2 * radius) for start in (rng.integers(0, size - 2 * radius) for size in shape))]
            axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in box.shape), indexing="ij", sparse=True)
            box[sum(axis**2 for axis in axes) < 1] = index
    number = int(specks * label.size)
    label.flat[rng.integers(0, label.size, number)] = rng.integers(0, CLASSES + 1, number)
    return label


def main() -> None:
    """Prints a line for each kind of step, one for all of them, and one for the peer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400), help="voxels of the map (default 512 512 400)")
    parser.add_argument("--specks", type=float, default=2e-4, help="fraction of the voxels that are specks (default %(default)s)")
    options = parser.parse_args()
    label = draw(tuple(options.shape), options.specks)
    classes = range(1, CLASSES + 1)
    kinds = {kind: tuple(Step(kind, index, SMALL_MM3 if kind == "remove_small" else 0.0) for index in classes) for kind in KINDS}
    rows = {f"{kind}, each class": steps for kind, steps in kinds.items()}
    rows["keep_largest, foreground"] = (Step("keep_largest", FOREGROUND),)
    rows["all of these"] = rows["keep_largest, foreground"] + tuple(step for steps in kinds.values() for step in steps)
    print(f"{'x'.join(map(str, options.shape))}, {CLASSES} classes and background, specks on {options.specks:g} of the voxels")
    changed = label.copy()
    before = _peak()
    for name, steps in rows.items():
        changed[:] = label
        began = time.process_time()
        Postprocessing(steps).apply(changed, (1.0, 1.0, 1.0))
        seconds = time.process_time() - began
        print(f"  {name:<26}{seconds:6.1f} s, {int((changed != label).sum()):,} voxels changed")
    print(f"  at most {_peak() - before:.2f} GiB besides the map and its copy")
    _compare(label == 1)


def _compare(mask: np.ndarray) -> None:
    """Prints how long it takes to find the objects of one class, beside the peers, which must find as many."""
    from scipy import ndimage

    ways = {
        "here": lambda: len(find_objects(mask).voxels),
        "scipy.ndimage.label": lambda: ndimage.label(mask, np.ones((3, 3, 3)))[1],
    }
    if importlib.util.find_spec("cc3d"):
        import cc3d

        ways["cc3d"] = lambda: cc3d.connected_components(mask, connectivity=26, return_N=True)[1]
    for name, find in ways.items():
        began = time.process_time()
        number = find()
        print(f"  objects of one class, {name}: {number:,} in {time.process_time() - began:.2f} s")


def _peak() -> float:
    """Returns the largest resident set of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10) / 2**30


if __name__ == "__main__":
    main()
