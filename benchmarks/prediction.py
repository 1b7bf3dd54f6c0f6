"""Seconds from file to label map, reading and writing included, here and at the peers; a child of cpu.py and gpu.py.

    python benchmarks/prediction.py --step draw --folder FOLDER
    python benchmarks/prediction.py --step ours --folder FOLDER --kind slices --engine openvino
    python benchmarks/prediction.py --step monai --folder FOLDER --kind volumes

Slices are those of reading.py, volumes are of 128x128x128 int16, and hippocampi are about as large as real ones. The networks are `unet2d`
with 32, and `unet3d` with 8 and 16 filters, of random weights. All programs have the same architecture. Volumes take windows of 64x64x64
and hippocampi of 40x56x40 that overlap by half, with Gaussian weights. "torch" is PyTorch with MONAI's sliding window, and with nibabel to
read and write. "monai" has MONAI's transforms and writer too. "nnunet" is nnU-Net's predictor, without mirroring. The first volume, or
the first batch of slices, is not counted.
"""

import argparse
import json
import math
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import harness
import numpy as np
from reading import CLASSES, draw_pairs

# Of hippocampi it is the least size; each axis has up to 12 voxels more.
SIZES = {"slices": (256, 128), "volumes": (128, 128, 128), "hippocampi": (31, 42, 30)}
FILTERS = {"slices": 32, "volumes": 8, "hippocampi": 16}
WINDOWS = {"slices": (256, 128), "volumes": (64, 64, 64), "hippocampi": (40, 56, 40)}
# The folder below `--folder` that holds them.
FOLDERS = {"slices": "slices", "volumes": "cubes", "hippocampi": "hippocampi"}
# What is predicted together: slices, or windows of a volume.
BATCHES = {"slices": 8, "volumes": 2, "hippocampi": 2}
NAMES = tuple(f"class {index}" for index in range(CLASSES))


def draw(options: argparse.Namespace) -> dict:
    """Makes what `--draw` names; returns the multiplications and additions of a case's convolutions (hippocampi: a window's)."""
    from training import count_flops

    from modules import devices, networks
    from modules.data.case import LabelRule
    from modules.data.patches import Window
    from modules.data.preprocess import Preprocessing
    from modules.predict.bundle import ModelBundle
    from modules.predict.convert import convert_bundle

    devices.start_backend(42)
    if "volumes" in options.draw:
        draw_pairs(options.folder / FOLDERS["volumes"], SIZES["volumes"], 2)
    if "hippocampi" in options.draw:
        rng = np.random.default_rng(42)
        for index in range(options.cases + BATCHES["slices"]):
            size = [least + int(rng.integers(13)) for least in SIZES["hippocampi"]]
            draw_pairs(options.folder / FOLDERS["hippocampi"], tuple(size), 1, index)
    flops = {}
    for kind in options.draw:
        size, window = SIZES[kind], WINDOWS[kind]
        network = networks.build(f"unet{len(size)}d", (*window, 1), CLASSES, base_filters=FILTERS[kind])
        number = math.prod(max(1, 2 * whole // part - 1) for whole, part in zip(size, window, strict=True))
        flops[kind] = count_flops(network) * number
        bundle = ModelBundle(
            model=networks.with_head(network),
            preprocessing=Preprocessing(len(size), shape=size if kind == "slices" else ()),
            window=Window(window),
            class_names=NAMES,
            channels=("T1",),
            label_rule=LabelRule({index: index for index in range(CLASSES)}),
        )
        bundle.save(options.folder / f"bundle_{kind}")
        convert_bundle(bundle, options.folder / f"bundle_{kind}")
    return flops


def measure_ours(options: argparse.Namespace) -> dict[str, float]:
    """Predicts as predict.py does, without the overlay."""
    from modules.data.case import Case
    from modules.data.formats import write_label_like
    from modules.predict.bundle import ModelBundle
    from modules.predict.cases import PredictionOptions, predict_cases

    bundle = ModelBundle.load(options.folder / f"bundle_{options.kind}", engine=options.engine)

    def predict(paths: Sequence[Path]) -> None:
        cases = [Case(path.name, path.name, (path,)) for path in paths]
        for item in predict_cases([bundle], cases, PredictionOptions(batch_size=options.batch)):
            source = item.case.image_paths[0]
            write_label_like(options.folder / "ours" / source.name, bundle.label_rule.to_file_values(item.prediction), source)

    return _measure(predict, options)


def measure_torch(options: argparse.Namespace) -> dict[str, float]:
    """Predicts with PyTorch's network; the top of this file says what is around it."""
    import nibabel as nib
    import peers
    import torch

    network = peers.build("torch", len(SIZES[options.kind]), FILTERS[options.kind], CLASSES).eval().to(options.device)
    memory = torch.channels_last if options.kind == "slices" else torch.channels_last_3d
    (options.folder / options.step).mkdir(exist_ok=True)

    def read(path: Path) -> torch.Tensor:
        array = np.asarray(nib.load(path).dataobj, np.float32)
        array = array.reshape(SIZES["slices"]) if options.kind == "slices" else array
        return torch.from_numpy((array - array.min()) / np.ptp(array))[None]

    def write(path: Path, label: torch.Tensor) -> None:
        source = nib.load(path)
        label = label.to(torch.uint8).cpu().numpy().reshape(source.shape)
        nib.save(nib.Nifti1Image(label, source.affine), options.folder / options.step / path.name)

    def compute(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.device == "cuda"):
            return network(batch.contiguous(memory_format=memory)).float()

    infer = INFERERS[options.step](options, network, compute)

    def predict(paths: Sequence[Path]) -> None:
        group = options.batch if options.kind == "slices" else 1
        for first in range(0, len(paths), group):
            chosen = paths[first : first + group]
            with torch.inference_mode():
                labels = infer(torch.stack([read(path) for path in chosen]).to(options.device)).argmax(1)
            for path, label in zip(chosen, labels, strict=True):
                write(path, label)

    return _measure(predict, options)


def _infer_by_monai(options: argparse.Namespace, network, compute: Callable) -> Callable:
    if options.kind == "slices":
        return lambda batch: compute(batch).softmax(1)
    from monai.inferers import SlidingWindowInferer

    infer = SlidingWindowInferer(WINDOWS[options.kind], sw_batch_size=options.batch, overlap=0.5, mode="gaussian")
    return lambda batch: infer(batch, lambda window: compute(window).softmax(1))


def _infer_by_nnunet(options: argparse.Namespace, network, compute: Callable) -> Callable:
    from types import SimpleNamespace

    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    on_gpu = options.device == "cuda"
    predictor = nnUNetPredictor(0.5, True, False, on_gpu, torch.device(options.device), False, False, allow_tqdm=False)
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=WINDOWS[options.kind])
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=CLASSES)
    predictor.allowed_mirroring_axes = None
    return lambda batch: predictor.predict_sliding_window_return_logits(batch[0])[None]


INFERERS = {"torch": _infer_by_monai, "nnunet": _infer_by_nnunet}


def measure_monai(options: argparse.Namespace) -> dict[str, float]:
    """Predicts with MONAI's reader, sliding window and writer around PyTorch's network."""
    import nibabel as nib
    import peers
    import torch
    from monai import transforms

    network = peers.build("torch", len(SIZES[options.kind]), FILTERS[options.kind], CLASSES).eval().to(options.device)
    memory = torch.channels_last if options.kind == "slices" else torch.channels_last_3d
    flat = options.kind == "slices"
    (options.folder / "monai").mkdir(exist_ok=True)
    load = transforms.Compose(
        [transforms.LoadImage(image_only=True), transforms.EnsureChannelFirst(channel_dim="no_channel"), transforms.ScaleIntensity()]
    )
    save = transforms.SaveImage(
        options.folder / "monai", output_postfix="", separate_folder=False, print_log=False, output_dtype=np.uint8, resample=False
    )

    def compute(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.device == "cuda"):
            return network(batch.contiguous(memory_format=memory)).float()

    infer = _infer_by_monai(options, network, compute)

    def predict(paths: Sequence[Path]) -> None:
        group = options.batch if flat else 1
        for first in range(0, len(paths), group):
            images = [load(path) for path in paths[first : first + group]]
            with torch.inference_mode():
                batch = torch.stack([image.as_tensor()[..., 0] if flat else image.as_tensor() for image in images])
                labels = infer(batch.to(options.device)).argmax(1, keepdim=True).cpu()
            for image, label, path in zip(images, labels, paths[first : first + group], strict=True):
                if flat:
                    # MONAI's writer takes no slices.
                    array = label[0].numpy().astype(np.uint8)[..., np.newaxis]
                    nib.save(nib.Nifti1Image(array, image.meta["affine"].numpy()), options.folder / "monai" / path.name)
                else:
                    save(label, meta_data=image.meta)

    return _measure(predict, options)


def _measure(predict: Callable[[Sequence[Path]], None], options: argparse.Namespace) -> dict[str, float]:
    """Measures cases a second and the peak memory in GiB. The first case is left out: it starts threads and chooses kernels."""
    paths = sorted((options.folder / FOLDERS[options.kind]).glob("case_*.nii.gz"), key=lambda path: int(path.name[5:-7]))
    warm = 1 if options.kind == "volumes" else min(BATCHES["slices"], options.batch)
    harness.take_turn()
    predict(paths[:warm])
    chosen = paths[warm : warm + options.cases]
    began = time.perf_counter()
    predict(chosen)
    seconds = time.perf_counter() - began
    return {"rate": len(chosen) / seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


STEPS = {"draw": draw, "ours": measure_ours, "torch": measure_torch, "nnunet": measure_torch, "monai": measure_monai}


def main() -> None:
    """Measures what `--step` says and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", choices=tuple(STEPS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kind", choices=tuple(SIZES), default="slices")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--cases", type=int, default=32, help="most to count")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=0, help=f"what is predicted together (default {BATCHES})")
    parser.add_argument("--draw", choices=tuple(SIZES), nargs="+", default=("slices", "volumes"), help="what `draw` makes")
    options = parser.parse_args()
    options.batch = options.batch or BATCHES[options.kind]
    (options.folder / "ours").mkdir(exist_ok=True)
    print(json.dumps(STEPS[options.step](options)), flush=True)


if __name__ == "__main__":
    main()
