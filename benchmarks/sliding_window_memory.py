"""Cost of predicting one large volume: seconds and peak memory of the path that predict.py goes, beside MONAI's.

    python benchmarks/sliding_window_memory.py
    python benchmarks/sliding_window_memory.py --shape 256 256 128 --classes 6 --window 96 96 96 --without-peer
    python benchmarks/sliding_window_memory.py --classes 60 --spacing --without-peer --max-memory 4

A volume of int16 in a flipped, transposed and oblique grid of 0.8 x 0.8 x 1 mm is drawn into a temporary folder. A bundle holds a network
of a single 1x1x1 convolution, which takes next to no memory itself. The bundle predicts the volume from file to file, on the volume's own
grid and resampled to `--spacing`. MONAI does the same if `monai` and `torch` are installed. It runs LoadImage, Orientation, Spacing,
NormalizeIntensity, SlidingWindowInferer, Invert of the probabilities and argmax. Window, batch, overlap and Gaussian weights are the same,
and all else is MONAI's default. With `--max-memory` the bundle keeps within so many GiB as `predict.py --max-memory` does.

Each number comes from a process of its own. It is `ru_maxrss`, the largest resident set so far: at the start, after all imports, and at the
end. The process that starts the others imports next to nothing, because a child begins with its parent's maximum.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

OVERLAP = 0.5
LIMIT_GIB = 4.0


def main() -> None:
    """Writes the volume, lets each child predict it, and prints a line for each."""
    options = _parse()
    if options.step:
        STEPS[options.step](options)
        return
    peer = not options.without_peer and all(importlib.util.find_spec(name) for name in ("monai", "torch"))
    with tempfile.TemporaryDirectory(prefix="sliding-window-") as folder:
        _run("volume", options, folder)
        size = (Path(folder) / "image.nii.gz").stat().st_size / 2**20
        print(f"volume {'x'.join(map(str, options.shape))} int16, {size:.0f} MiB packed; {options.classes} classes; overlap {OVERLAP}")
        for spacing in ([], options.spacing) if options.spacing else ([],):
            print(f"\nresampled to {'x'.join(f'{step:g}' for step in spacing)} mm" if spacing else "\non its own grid")
            ours = _report("this application", _run("predict", options, folder, spacing))
            print(f"    {ours['tiling']}")
            limit = options.max_memory or LIMIT_GIB
            print(f"  {'below' if ours['end'] < limit else 'ABOVE'} {limit:g} GiB")
            if peer:
                theirs = _report("MONAI", _run("peer", options, folder, spacing))
                print(f"  MONAI / this application: memory {theirs['end'] / ours['end']:.2f}, seconds {theirs['s'] / ours['s']:.2f}")
    if not peer:
        print("\nno peer: monai and torch are not installed, or not wanted")


def write_volume(options: argparse.Namespace) -> None:
    """Writes `image.nii.gz`: a bright ball with noise on a dark ground."""
    import nibabel as nib
    import numpy as np

    rng = np.random.default_rng(42)
    array = np.zeros(options.shape, np.int16)
    axes = [(np.arange(size, dtype=np.float32) / size * 2 - 1) ** 2 for size in options.shape]
    # Plane by plane, so that drawing the volume takes no more than the volume.
    for index, depth in enumerate(axes[0]):
        distance = depth + axes[1][:, np.newaxis] + axes[2]
        array[index] = np.where(distance < 1, 1200 - 600 * distance + rng.integers(0, 64, distance.shape), 0)
    turn = nib.eulerangles.euler2mat(*np.radians((6, -4, 9)))
    affine = np.eye(4)
    # The file's axes run to posterior, left and superior, a little turned.
    affine[:3, :3] = turn @ np.array([[0, -0.8, 0], [-0.8, 0, 0], [0, 0, 1.0]])
    nib.save(nib.Nifti1Image(array, affine), Path(options.folder) / "image.nii.gz")


def predict(options: argparse.Namespace) -> None:
    """Predicts and writes the label map as predict.py does, and prints the record."""
    memory = {"start": _peak()}
    import keras

    from modules import devices
    from modules.data.case import Case, LabelRule
    from modules.data.formats import write_label_like
    from modules.data.patches import Window
    from modules.data.preprocess import Preprocessing
    from modules.networks import with_head
    from modules.predict.bundle import ModelBundle
    from modules.predict.cases import PredictionOptions, choose_batch_size, predict_cases
    from modules.predict.memory import MemoryLimit

    devices.import_keras()
    inputs = keras.Input((*options.window, 1))
    logits = keras.layers.Conv3D(options.classes, 1, kernel_initializer=keras.initializers.RandomNormal(seed=1), name="logits")(inputs)
    names = tuple(f"class {index}" for index in range(options.classes))
    bundle = ModelBundle(
        model=with_head(keras.Model(inputs, logits)),
        preprocessing=Preprocessing(3, intensity="zscore", spacing_mm=tuple(options.spacing)),
        window=Window(tuple(options.window)),
        class_names=names,
        channels=("T2",),
        label_rule=LabelRule({index: index for index in range(options.classes)}),
    )
    memory["imported"] = _peak()
    image = Path(options.folder) / "image.nii.gz"
    began = time.perf_counter()
    tilings = []
    batch_sizes = [choose_batch_size(bundle.window.deep, bundle.engine)]
    limit = MemoryLimit(options.max_memory, [bundle], batch_sizes, Path(options.folder)) if options.max_memory else None
    settings = PredictionOptions(overlap=OVERLAP, memory=limit, on_tiling=tilings.append)
    for item in predict_cases([bundle], [Case("image", "image", (image,))], settings):
        memory["predicted"] = _peak()
        write_label_like(Path(options.folder) / "prediction.nii.gz", bundle.label_rule.to_file_values(item.prediction), image)
    print(json.dumps({"s": time.perf_counter() - began, **memory, "end": _peak(), "tiling": str(tilings[0])}))


def predict_with_monai(options: argparse.Namespace) -> None:
    """Does the same with MONAI's own transforms and inferer, and prints the record."""
    memory = {"start": _peak()}
    import nibabel as nib
    import numpy as np
    import torch
    from monai import transforms
    from monai.inferers import SlidingWindowInferer

    from modules.predict.windows import choose_batch_size

    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, options.classes, 1), torch.nn.Softmax(dim=1)).eval()
    steps = [
        transforms.LoadImaged("image"),
        transforms.EnsureChannelFirstd("image"),
        transforms.Orientationd("image", axcodes="RAS"),
        *([transforms.Spacingd("image", pixdim=options.spacing)] if options.spacing else []),
        transforms.NormalizeIntensityd("image", nonzero=True),
    ]
    forward = transforms.Compose(steps)
    back = transforms.Invertd("prediction", transform=forward, orig_keys="image", nearest_interp=False)
    memory["imported"] = _peak()
    image = Path(options.folder) / "image.nii.gz"
    began = time.perf_counter()
    with torch.inference_mode():
        data = forward({"image": str(image)})
        infer = SlidingWindowInferer(options.window, sw_batch_size=choose_batch_size(options.window), overlap=OVERLAP, mode="gaussian")
        data["prediction"] = infer(data["image"][None], network)[0]
        label = back(data)["prediction"].argmax(dim=0).numpy().astype(np.uint8)
        memory["predicted"] = _peak()
    source = nib.load(image)
    nib.save(nib.Nifti1Image(label, source.affine), Path(options.folder) / "peer.nii.gz")
    print(json.dumps({"s": time.perf_counter() - began, **memory, "end": _peak()}))


STEPS = {"volume": write_volume, "predict": predict, "peer": predict_with_monai}


def _run(step: str, options: argparse.Namespace, folder: str, spacing: list[float] | tuple = ()) -> dict[str, Any]:
    """Runs a step in a fresh process; the last line that it prints is its record."""
    command = [sys.executable, __file__, "--step", step, "--folder", folder, "--classes", str(options.classes)]
    command += ["--max-memory", str(options.max_memory)]
    command += ["--shape", *map(str, options.shape), "--window", *map(str, options.window), "--spacing", *map(str, spacing)]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    if done.returncode:
        # A process that is killed for lack of memory prints nothing itself.
        sys.exit(f"{done.stderr}\nExpected the step '{step}' to end well. Received: exit status {done.returncode} (-9: killed).")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def _report(name: str, record: dict[str, Any]) -> dict[str, Any]:
    start, imported, predicted, end = (record[when] for when in ("start", "imported", "predicted", "end"))
    print(f"  {name}: {record['s']:.0f} s, peak {end:.2f} GiB (start {start:.2f}, imported {imported:.2f}, label map made {predicted:.2f})")
    return record


def _peak() -> float:
    """Returns the largest resident set of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400), help="voxels of the volume (default 512 512 400)")
    parser.add_argument("--classes", type=int, default=6, help="with background (default %(default)s)")
    parser.add_argument("--window", type=int, nargs=3, default=(96, 96, 96), help="of the network (default 96 96 96)")
    parser.add_argument(
        "--spacing", type=float, nargs="*", default=(1.0, 1.0, 1.0), help="mm to resample to (default 1 1 1); none leaves it out"
    )
    parser.add_argument("--max-memory", type=float, default=0.0, help="GiB that the bundle keeps within (default: no limit)")
    parser.add_argument("--without-peer", action="store_true", help="leave MONAI out")
    parser.add_argument("--step", choices=tuple(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
