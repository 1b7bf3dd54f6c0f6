"""Cost of augmentation: samples a second of "strong" in a compiled step, beside MONAI's and TorchIO's CPU transforms.

    python benchmarks/augmentation.py
    python benchmarks/augmentation.py --seconds 60 --threads 2 --by-effect
    python benchmarks/augmentation.py --cpu-time           # on a machine that is busy with other jobs

Slices of 256x128 in batches of 16, and cubes of 96 in batches of 2, of one channel and six classes, lie in memory. A step draws the
parameters of a batch as `modules.data.pipeline` does, but not in the threads that read. It stacks and applies them as
`modules.model.trainer` does. TensorFlow runs inside `tf.function`, `KERAS_BACKEND=jax` inside `jax.jit`, and `torch` eagerly. The
compiled step computes every effect for every sample, whether drawn or not.

The peers go through a batch sample by sample, and leave out what is not drawn. Their transforms have the same probabilities and ranges,
where they exist. TorchIO goes without shear, contrast and brightness. MONAI is measured twice. "monai" has its elastic deformation
(Rand2DElastic, Rand3DElastic). "monai 2" has RandSmoothDeform, which interpolates control points as ours does. MONAI tracks no metadata
here, which saves it time. A peer that is not installed is left out. Each number comes from a process of its own,
with the same number of threads. With `--cpu-time` a second is one of CPU time on one core, so other jobs do not lengthen it.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SAMPLES = {"2d": ((256, 128), 16), "3d": ((96, 96, 96), 2)}
CLASSES = 6


def main() -> None:
    """Lets each child measure, and prints a line for each rank; with `--by-effect` also a line for each effect."""
    options = _parse()
    if options.step:
        print(json.dumps(STEPS[options.step](options)))
        return
    peers = [name for name in ("monai", "monai 2", "torchio") if importlib.util.find_spec(name.split()[0])]
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    unit = "CPU s" if options.cpu_time else "s"
    print(f"samples a second, {options.threads} thread(s), {options.seconds:g} {unit} each, backend {backend}")
    print(f"{'':24}{'ours':>10}{'drawing':>10}" + "".join(f"{name:>10}{'ratio':>8}" for name in peers))
    ranks = [options.rank] if options.rank else list(SAMPLES)
    for rank in ranks:
        shape, batch = SAMPLES[rank]
        ours = _run("ours", options, rank)
        line = f"{'x'.join(map(str, shape)):>14}, batch {batch:<2}{ours['rate']:>10.2f}{ours['drawing']:>10.0%}"
        for name in peers:
            theirs = _run(name, options, rank)
            line += f"{theirs['rate']:>10.2f}{ours['rate'] / theirs['rate']:>8.2f}"
        print(line, flush=True)
    print("ratio: ours / theirs; drawing: share of our time that draws and stacks the parameters")
    for rank in ranks if options.by_effect else ():
        print(f"\nms a sample of {'x'.join(map(str, SAMPLES[rank][0]))}, each effect alone in a compiled step")
        for name, milliseconds in sorted(_run("effects", options, rank).items(), key=lambda item: -item[1]):
            print(f"  {name:<12}{milliseconds:>10.2f}")


def measure_ours(options: argparse.Namespace) -> dict[str, float]:
    """Draws and applies "strong"."""
    import numpy as np

    from modules.data.draws import AUGMENTATIONS

    shape, batch = SAMPLES[options.rank]
    apply, spent = _compile(shape, batch), [0.0]

    def step(number: int) -> None:
        began = options.clock()
        parameters = _draw(AUGMENTATIONS["strong"], shape, [np.random.default_rng([42, number * batch + i, 1]) for i in range(batch)])
        spent[0] += options.clock() - began
        apply(parameters)

    step(0)
    spent[0] = 0.0
    rate, elapsed = _measure(step, batch, options.seconds, options.clock)
    return {"rate": rate, "drawing": spent[0] / elapsed}


def measure_effects(options: argparse.Namespace) -> dict[str, float]:
    """Measures milliseconds a sample of each effect alone, at its strongest, without the draw; "all" stands for "strong"."""
    import numpy as np

    from modules.data.draws import AUGMENTATIONS, list_effects

    shape, batch = SAMPLES[options.rank]
    apply, milliseconds = _compile(shape, batch), {}
    strong = AUGMENTATIONS["strong"]
    for name, effect in {"all": strong, **list_effects(strong)}.items():
        parameters = _draw(effect, shape, [np.random.default_rng([42, i]) for i in range(batch)])
        apply(parameters)
        rate, _ = _measure(lambda _, parameters=parameters: apply(parameters), batch, options.seconds / 8, options.clock)
        milliseconds[name] = 1000 / rate
    return milliseconds


def compose_monai(shape: tuple[int, ...], smooth: bool) -> list:
    """Composes MONAI's transforms of the same effects; `smooth` bends with RandSmoothDeform instead of Rand2DElastic or Rand3DElastic."""
    from monai import transforms as t

    rank = len(shape)
    both, modes = ("image", "label"), {"mode": ("bilinear", "nearest"), "padding_mode": "zeros"}
    if smooth:
        # MONAI takes displacements as a share of half the extent.
        elastic = t.RandSmoothDeformd(
            both, spatial_size=shape, rand_size=(7,) * rank, prob=0.2, def_range=0.1, grid_mode=modes["mode"], grid_padding_mode="zeros"
        )
    elif rank == 2:
        elastic = t.Rand2DElasticd(both, spacing=[size // 4 for size in shape], magnitude_range=(2, 8), prob=0.2, **modes)
    else:
        # The kernel is as wide as a cubic B-spline of four intervals.
        sigma = 0.58 * shape[0] / 4
        elastic = t.Rand3DElasticd(both, sigma_range=(sigma, sigma), magnitude_range=(200, 800), prob=0.2, **modes)
    turn = 30 * 3.14159 / 180
    return [
        *(t.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(rank)),
        t.RandAffined(both, prob=0.2, rotate_range=(turn,) * (1 if rank == 2 else 3), **modes),
        t.RandAffined(both, prob=0.2, scale_range=[(-0.2, 0.25)] * rank, **modes),
        t.RandAffined(both, prob=0.1, shear_range=(0.1,) * (rank * (rank - 1)), **modes),
        t.RandAffined(both, prob=0.1, translate_range=[0.05 * size for size in shape], **modes),
        elastic,
        t.RandBiasFieldd("image", prob=0.2, degree=3, coeff_range=(0.0, 0.3)),
        t.RandGaussianSmoothd("image", prob=0.2, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0)),
        t.RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1.0), upsample_mode=f"{'bi' if rank == 2 else 'tri'}linear"),
        t.RandGaussianNoised("image", prob=0.1, std=0.2),
        t.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        t.RandScaleIntensityFixedMeand("image", prob=0.15, factors=0.25),
        t.RandStdShiftIntensityd("image", prob=0.15, factors=0.25),
    ]


def measure_monai(options: argparse.Namespace) -> dict[str, float]:
    """Applies the peer's transforms to one sample after the other and stacks them."""
    import torch
    from monai import transforms as t
    from monai.data import set_track_meta

    set_track_meta(False)
    torch.set_num_threads(options.threads)
    shape, batch = SAMPLES[options.rank]
    compose = t.Compose(compose_monai(shape, options.step == "monai 2"))
    compose.set_random_state(42)
    image, label = (torch.from_numpy(array)[None] for array in _make_sample(shape))

    def step(number: int) -> None:
        changed = [compose({"image": image, "label": label}) for _ in range(batch)]
        for name in ("image", "label"):
            torch.stack([sample[name] for sample in changed])

    step(0)
    return {"rate": _measure(step, batch, options.seconds, options.clock)[0]}


def measure_torchio(options: argparse.Namespace) -> dict[str, float]:
    """Applies the peer's transforms to one sample after the other and stacks them; slices are volumes of one layer."""
    import torch
    import torchio

    torch.set_num_threads(options.threads)
    torch.manual_seed(42)
    shape, batch = SAMPLES[options.rank]
    flat = len(shape) == 2
    fine = (*shape, 1)[:3]
    shift = [0 if size == 1 else 0.05 * size for size in fine]
    none = {"scales": 0, "degrees": 0, "translation": 0}
    compose = torchio.Compose(
        [
            torchio.RandomFlip(axes=tuple(range(len(shape))), flip_probability=0.5),
            torchio.RandomAffine(**none | {"degrees": (0, 0, 0, 0, -30, 30) if flat else 30}, p=0.2),
            torchio.RandomAffine(**none | {"scales": (0.8, 1.25)}, isotropic=True, p=0.2),
            torchio.RandomAffine(**none | {"translation": tuple(sign * part for part in shift for sign in (-1, 1))}, p=0.1),
            torchio.RandomElasticDeformation(num_control_points=7, max_displacement=(5, 5, 0) if flat else 5, locked_borders=0, p=0.2),
            torchio.RandomBiasField(coefficients=0.3, order=3, p=0.2),
            torchio.RandomBlur(std=(0.5, 1, 0.5, 1, 0, 0) if flat else (0.5, 1), p=0.2),
            torchio.RandomAnisotropy(axes=tuple(range(len(shape))), downsampling=(1, 2), p=0.25),
            torchio.RandomNoise(std=(0, 0.2), p=0.1),
            torchio.RandomGamma(log_gamma=(-0.36, 0.41), p=0.3),
        ]
    )
    image, label = (torch.from_numpy(array).reshape(1, *fine) for array in _make_sample(shape))
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=image), label=torchio.LabelMap(tensor=label))

    def step(number: int) -> None:
        changed = [compose(subject) for _ in range(batch)]
        for name in ("image", "label"):
            torch.stack([sample[name].data for sample in changed])

    step(0)
    return {"rate": _measure(step, batch, options.seconds, options.clock)[0]}


STEPS = {"ours": measure_ours, "effects": measure_effects, "monai": measure_monai, "monai 2": measure_monai, "torchio": measure_torchio}


def _make_sample(shape: tuple[int, ...]) -> tuple:
    """Makes an image `(*P)` float32 of mean 0 and deviation 1, smooth as scans are, and a label `(*P)` int32 of shells."""
    import numpy as np

    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij", sparse=True)
    distance = sum(axis**2 for axis in axes) ** 0.5
    image = np.cos(7 * distance) + 0.1 * np.random.default_rng(42).standard_normal(shape)
    image = (image - image.mean()) / image.std()
    return image.astype(np.float32), np.clip((1.2 - distance) * CLASSES, 0, CLASSES - 1).astype(np.int32)


def _draw(augmentation, shape: tuple[int, ...], generators: list) -> dict:
    """Draws the parameters of a batch."""
    import numpy as np

    from modules.data.draws import draw_parameters

    spacing, left_right = (1.0,) * len(shape), 0 if len(shape) == 3 else None
    drawn = [draw_parameters(rng, augmentation, shape, 1, spacing_mm=spacing, left_right=left_right) for rng in generators]
    return {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}


def _compile(shape: tuple[int, ...], batch: int) -> Callable[[dict], None]:
    """Makes a function that applies parameters to a batch and waits for the result."""
    from modules.devices import start_backend

    start_backend(42)
    import keras
    import numpy as np
    from keras import ops

    from modules.model.augment import apply

    image, label = _make_sample(shape)
    image = ops.convert_to_tensor(np.stack([image[..., None]] * batch))
    label = ops.convert_to_tensor(np.stack([label] * batch))
    compiled = apply
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(apply, autograph=False)
    elif keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(apply)

    def step(parameters: dict) -> None:
        tensors = {name: ops.convert_to_tensor(value) for name, value in parameters.items()}
        for result in compiled(image, label, tensors):
            ops.convert_to_numpy(result)

    return step


def _measure(step: Callable[[int], None], batch: int, seconds: float, clock: Callable[[], float]) -> tuple[float, float]:
    """Measures samples a second over at least three steps, and the seconds that they took."""
    began, number = clock(), 0
    while number < 3 or clock() - began < seconds:
        number += 1
        step(number)
    elapsed = clock() - began
    return number * batch / elapsed, elapsed


def _run(step: str, options: argparse.Namespace, rank: str) -> dict[str, float]:
    """Runs a step in a fresh process; the last line that it prints is its record."""
    command = [sys.executable, __file__, "--step", step, "--rank", rank]
    command += ["--seconds", str(options.seconds), "--threads", str(options.threads), *(["--cpu-time"] if options.cpu_time else [])]
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **dict.fromkeys(names, str(options.threads))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{done.stderr}\nExpected the step '{step}' to end well. Received: exit status {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure each for (default %(default)g)")
    parser.add_argument("--rank", choices=tuple(SAMPLES), help="measure only this")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default %(default)s)")
    parser.add_argument("--by-effect", action="store_true", help="measure each of our effects alone, too")
    parser.add_argument("--cpu-time", action="store_true", help="count the seconds of the process's threads, not those of the clock")
    parser.add_argument("--step", choices=tuple(STEPS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.clock = time.process_time if options.cpu_time else time.perf_counter
    return options


if __name__ == "__main__":
    main()
