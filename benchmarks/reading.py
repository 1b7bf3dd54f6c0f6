"""Cases a second from disk and from cache, with and without augmentation, here and at the peers; a child of cpu.py.

    python benchmarks/reading.py --step draw --folder FOLDER        # slices and volumes by formula, as `.nii.gz` pairs
    python benchmarks/reading.py --step ours --folder FOLDER --kind slices
    python benchmarks/reading.py --step monai --folder FOLDER --kind slices

Slices are 256x128 float64 like HipMRI's, and volumes 256x128x256 int16 like IBSR18's. Each has a label of its size. There are four
measures:

- "decoded" reads and checks all pairs.
- "first" also preprocesses them and keeps the result.
- "cached" reads that result as a training does: in random order, in batches of 32 slices or 1 volume.
- "augmented" does the same with strong augmentation. Volumes give patches of 96x96x96 in batches of 2.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import harness
import numpy as np

SIZES = {"slices": (256, 128), "volumes": (256, 128, 256)}
COUNTS = {"slices": 512, "volumes": 12}
CLASSES = 6


def draw(options: argparse.Namespace) -> dict:
    """Draws both kinds, or with `--cases` so many of one."""
    for kind in (options.kind,) if options.cases else SIZES:
        draw_pairs(options.folder / kind, SIZES[kind], options.cases or COUNTS[kind])
    return {}


def draw_pairs(folder: Path, size: tuple[int, ...], number: int, first: int = 0) -> None:
    """Writes pairs of image and label, numbered from `first`; noise makes them pack as badly as scans do."""
    import nibabel as nib

    rng = np.random.default_rng(42)
    folder.mkdir(parents=True, exist_ok=True)
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in size), indexing="ij", sparse=True)
    distance = np.sqrt(sum(axis**2 for axis in axes))
    label = np.clip(CLASSES - CLASSES * distance, 0, CLASSES - 1).astype(np.uint8)
    clean = np.where(distance < 0.95, 400 + 300 * np.cos(5 * distance), 0)
    for index in range(first, first + number):
        image = np.where(clean > 0, clean + rng.integers(0, 40, size, np.int16), 0)
        image = image[..., None].astype(np.float64) if len(size) == 2 else image.astype(np.int16)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"case_{index:03d}.nii.gz")
        nib.save(nib.Nifti1Image(label.reshape(image.shape), np.eye(4)), folder / f"seg_{index:03d}.nii.gz")


def measure_ours(options: argparse.Namespace) -> dict[str, float]:
    """Measures `prepare_cases`, then `make_pipeline`, as train.py uses them."""
    from modules.data import cache
    from modules.data.case import Case
    from modules.data.patches import Window
    from modules.data.pipeline import make_pipeline
    from modules.data.preprocess import Preprocessing
    from modules.devices import start_backend

    start_backend(42)
    size, pairs = SIZES[options.kind], list_pairs(options)
    cases = [Case(image.name[:-7], image.name[:-7], (image,), label) for image, label in pairs]
    folder = options.folder / "cache"
    shutil.rmtree(folder, ignore_errors=True)
    preprocessing = Preprocessing(len(size), shape=size if options.kind == "slices" else ())
    spec = harness.make_spec(preprocessing, CLASSES)
    decoded, inflated = _decode(cases, spec), _inflate(pairs)
    began, began_cpu = time.perf_counter(), time.process_time()
    prepared = cache.prepare_cases(cases, spec, preprocessing, folder)
    first, core = len(cases) / (time.perf_counter() - began), (time.process_time() - began_cpu) / len(cases)
    batch = 32 if options.kind == "slices" else 1
    batches = iter(make_pipeline(prepared, Window(size), 1, batch_size=batch, training=True))
    cached, copied = batch * _rate(batches, options.seconds), batch * _copy(next(batches))
    batch, window = (16, size) if options.kind == "slices" else (2, (96, 96, 96))
    batches = _augment(prepared, window, batch)
    augmented = batch * _rate(batches, options.seconds)
    rates = {"decoded": decoded, "inflated": inflated, "first": first, "cached": cached, "copied": copied, "augmented": augmented}
    return rates | {"core": core}


def _decode(cases, spec) -> float:
    """Measures pairs read and checked a second, in threads like those of `prepare_cases`."""
    from modules.data.case import read_case

    def read(case) -> None:
        # Nothing is kept: fresh memory for each volume would cost more than reading it.
        read_case(case, spec)

    return _in_threads(read, cases)


def _inflate(pairs) -> float:
    """Measures pairs a second that are only read and inflated: the limit of all reading."""
    from isal import isal_zlib

    def inflate(pair) -> None:
        for path in pair:
            isal_zlib.decompress(path.read_bytes(), 31)

    return _in_threads(inflate, pairs)


def _in_threads(function: Callable, items: Sequence) -> float:
    """Measures calls a second by two threads that take up to 64 items at a time; a call before warms up imports and memory."""
    from concurrent.futures import ThreadPoolExecutor

    function(items[0])
    chunk = max(1, min(64, len(items) // 4))
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as executor:
        parts = [items[first : first + chunk] for first in range(0, len(items), chunk)]
        list(executor.map(lambda part: [function(item) for item in part], parts))
    return len(items) / (time.perf_counter() - began)


def _copy(batch) -> float:
    """Measures copies a second of a batch's image and label into memory that was used before: the limit of all caches."""
    arrays = [np.asarray(batch[name]) for name in ("image", "label")]
    copies = [np.empty_like(array) for array in arrays]
    times = []
    for _ in range(32):
        began = time.perf_counter()
        for array, copy in zip(arrays, copies, strict=True):
            np.copyto(copy, array)
        times.append(time.perf_counter() - began)
    return 1 / sorted(times)[len(times) // 2]


def _augment(prepared, window: tuple[int, ...], batch: int) -> Iterator:
    """Yields augmented batches; the augmentation is compiled as in a step."""
    import tensorflow as tf

    from modules.data.draws import AUGMENTATIONS, draw_parameters
    from modules.data.patches import Window
    from modules.data.pipeline import PatchSampler, make_pipeline
    from modules.model.augment import apply

    sampler = PatchSampler("uniform") if len(window) == 3 else None

    def draw(rng, spacing_mm):
        return draw_parameters(rng, AUGMENTATIONS["strong"], window, 1, spacing_mm=spacing_mm)

    @tf.function(autograph=False)
    def step(batch):
        parameters = {name: value for name, value in batch.items() if name not in ("image", "label")}
        return apply(tf.cast(batch["image"], tf.float32), tf.cast(batch["label"], tf.int32), parameters)

    settings = {"batch_size": batch, "training": True, "sampler": sampler, "draw_augmentation": draw}
    for inputs in make_pipeline(prepared, Window(window), 1, **settings):
        image, label = step(inputs)
        yield image.numpy(), label.numpy()


def measure_nibabel(options: argparse.Namespace) -> dict[str, float]:
    """Measures a loop that reads image and label, as a notebook does."""
    import nibabel as nib

    pairs = list_pairs(options)[:129]
    for number, pair in enumerate(pairs):
        if number == 1:
            began = time.perf_counter()
        for path in pair:
            nib.load(path).get_fdata()
    return {"first": (len(pairs) - 1) / (time.perf_counter() - began)}


def measure_monai(options: argparse.Namespace) -> dict[str, float]:
    """Measures CacheDataset and DataLoader with two workers."""
    import augmentation
    import torch
    from monai import transforms
    from monai.data import CacheDataset, DataLoader, set_track_meta

    torch.set_num_threads(1)
    set_track_meta(False)
    both = ("image", "label")
    load = [
        transforms.LoadImaged(both),
        transforms.EnsureChannelFirstd(both, channel_dim="no_channel"),
        transforms.ScaleIntensityd("image"),
    ]
    if options.kind == "slices":
        load.append(transforms.SqueezeDimd(both, dim=-1))
    items = [dict(zip(both, map(str, pair), strict=True)) for pair in list_pairs(options)]
    began = time.perf_counter()
    data = CacheDataset(items, transforms.Compose(load), num_workers=options.workers, progress=False)
    result = {"first": len(items) / (time.perf_counter() - began)}
    batch = 32 if options.kind == "slices" else 1
    result["cached"] = batch * _rate(
        _repeat(DataLoader(data, batch_size=batch, shuffle=True, num_workers=options.workers)), options.seconds
    )
    batch, window = (16, SIZES["slices"]) if options.kind == "slices" else (2, (96, 96, 96))
    # RandSmoothDeform is the faster of MONAI's two elastic deformations.
    changes = augmentation.compose_monai(window, smooth=True)
    if options.kind == "volumes":
        changes = [transforms.RandSpatialCropd(both, window, random_size=False), *changes]
    data.transform = transforms.Compose([*load, *changes])
    loader = DataLoader(data, batch_size=batch, shuffle=True, num_workers=options.workers)
    return result | {"augmented": batch * _rate(_repeat(loader), options.seconds)}


def _repeat(loader) -> Iterator:
    while True:
        yield from loader


def _rate(batches: Iterator, seconds: float) -> float:
    """Measures batches a second, after those that were read ahead."""
    for _ in range(8):
        next(batches)
    number, began = 0, time.perf_counter()
    while number < 4 or time.perf_counter() - began < seconds:
        next(batches)
        number += 1
    return number / (time.perf_counter() - began)


def list_pairs(options: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Lists images and labels of the wanted kind."""
    images = sorted((options.folder / options.kind).glob("case_*.nii.gz"))
    return [(image, image.with_name(image.name.replace("case_", "seg_"))) for image in images]


STEPS = {"draw": draw, "ours": measure_ours, "nibabel": measure_nibabel, "monai": measure_monai}


def main() -> None:
    """Measures what `--step` says and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", choices=tuple(STEPS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kind", choices=tuple(SIZES), default="slices")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cases", type=int, default=0, help="so many of `--kind` to draw, and no others")
    options = parser.parse_args()
    print(json.dumps(STEPS[options.step](options)), flush=True)


if __name__ == "__main__":
    main()
