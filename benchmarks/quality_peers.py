"""The peers of quality.py: MONAI's BasicUNet and nnU-Net, trained on its scans for some minutes; a child under a Python of their own.

MONAI's recipe is that of its tutorials for a CPU: z-score, whole small volumes or patches of at most 64 voxels a side with as many on
foreground as not, random scale and noise, Dice with cross-entropy, AdamW with a cosine over the time there is. nnU-Net plans, preprocesses
and trains by its own rules; only its schedule ends when the time does.
"""

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np

START = time.monotonic()
# Seconds that are left for the prediction of the test scans.
PREDICTION_SHARE = 0.08


def main() -> None:
    """Trains and predicts with one method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=("monai", "nnunet"), required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    options = parser.parse_args()
    content = json.loads((options.work / "scans.json").read_text())
    output = options.work / options.method
    output.mkdir(parents=True, exist_ok=True)
    seconds = 60 * options.minutes * (1 - PREDICTION_SHARE)
    (_train_monai if options.method == "monai" else _train_nnunet)(content, options.work, output, seconds)


def _list(content: dict, split: str) -> list[str]:
    return sorted(scan["name"] for scan in content["scans"] if scan["split"] == split)


def _save(array: np.ndarray, like: Path, path: Path) -> None:
    nib.save(nib.Nifti1Image(array.astype(np.uint8), nib.load(like).affine), path)


# ------------------------------------------------------------------------------------------------------------------- MONAI


def _read(work: Path, name: str, slices: bool) -> tuple[np.ndarray, np.ndarray]:
    """Reads a scan `(C, *S)`, z-scored over what is not 0 (each slice by itself where the set is of slices), and its label."""
    image = np.asarray(nib.load(work / "scans" / f"{name}.nii.gz").dataobj, np.float32)
    label = np.asarray(nib.load(work / "labels" / f"{name}.nii.gz").dataobj)
    image = np.moveaxis(image if image.ndim == 4 else image[..., None], -1, 0)
    for channel in image:
        for part in np.moveaxis(channel, -1, 0) if slices else [channel]:
            inside = part != part.min()
            if inside.any():
                part[inside] = (part[inside] - part[inside].mean()) / max(float(part[inside].std()), 1e-3)
    return image, label


def _train_monai(content: dict, work: Path, output: Path, seconds: float) -> None:
    import torch
    from monai.inferers import sliding_window_inference
    from monai.losses import DiceCELoss
    from monai.networks.nets import BasicUNet

    torch.manual_seed(42)
    rng = np.random.default_rng(42)
    slices, classes = content["scans"][0]["slices"], len(content["classes"])
    scans = [_read(work, name, slices) for name in _list(content, "train")]
    rank, channels = (2 if slices else 3), len(content["channels"])
    shapes = np.array([label.shape for _, label in scans])
    window = [math.ceil(size / 16) * 16 for size in np.median(shapes, axis=0)[:rank]]
    window = window if slices else [min(64, size) for size in window]
    batch = 16 if slices else 2
    network = BasicUNet(spatial_dims=rank, in_channels=channels, out_channels=classes, features=(16, 16, 32, 64, 128, 16))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=slices)
    steps = 0
    while (part := (time.monotonic() - START) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * part))
        drawn = [_draw(rng, *scans[rng.integers(len(scans))], window, slices) for _ in range(batch)]
        image, label = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*drawn, strict=True))
        optimizer.zero_grad()
        loss_function(network(image), label[:, None].long()).backward()
        optimizer.step()
        steps += 1
    print(f"monai: {steps} steps of {batch} x {window}, {sum(weight.numel() for weight in network.parameters()):,} weights", flush=True)
    network.eval()
    # Scans that are smaller than the window are continued as in training.
    edges = {"padding_mode": "replicate"}
    with torch.no_grad():
        for name in _list(content, "test"):
            image, label = _read(work, name, slices)
            tensor = torch.from_numpy(np.ascontiguousarray(image))[None]
            if slices:
                pieces = (
                    sliding_window_inference(tensor[..., index], window, 8, network, 0.25, **edges) for index in range(tensor.shape[-1])
                )
                logits = torch.stack(list(pieces), dim=-1)
            else:
                logits = sliding_window_inference(tensor, window, 4, network, 0.5, mode="gaussian", **edges)
            _save(logits[0].argmax(dim=0).numpy(), work / "labels" / f"{name}.nii.gz", output / f"{name}.nii.gz")


def _draw(rng: np.random.Generator, image: np.ndarray, label: np.ndarray, window: list[int], slices: bool):
    """Draws a sample: a slice, or a patch that is centred on foreground every other time; scaled and with noise."""
    if slices:
        index = rng.integers(label.shape[-1])
        image, label = image[..., index], label[..., index]
    pads = [(max(0, size - length) // 2, max(0, size - length + 1) // 2) for size, length in zip(window, label.shape, strict=True)]
    image, label = np.pad(image, [(0, 0), *pads], mode="edge"), np.pad(label, pads)
    starts = [rng.integers(0, length - size + 1) for size, length in zip(window, label.shape, strict=True)]
    foreground = np.argwhere(label > 0)
    if not slices and len(foreground) and rng.random() < 0.5:
        centre = foreground[rng.integers(len(foreground))]
        starts = [
            int(np.clip(place - size // 2, 0, length - size)) for place, size, length in zip(centre, window, label.shape, strict=True)
        ]
    place = tuple(slice(start, start + size) for start, size in zip(starts, window, strict=True))
    image, label = image[(slice(None), *place)], label[place]
    image = image * rng.uniform(0.9, 1.1) + rng.normal(0, 0.05, image.shape)
    return image.astype(np.float32), np.ascontiguousarray(label)


# ----------------------------------------------------------------------------------------------------------------- nnU-Net


def _train_nnunet(content: dict, work: Path, output: Path, seconds: float) -> None:
    root = work / "nnunet_work"
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(root / name)
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    os.environ.setdefault("nnUNet_compile", "f")
    folder = root / "raw" / "Dataset001_Q"
    slices = content["scans"][0]["slices"]
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    known = _list(content, "train") + _list(content, "validate")
    for name in known:
        _write_channels(work, folder / "imagesTr", name)
        shutil.copy(work / "labels" / f"{name}.nii.gz", folder / "labelsTr" / f"{name}.nii.gz")
    description = {
        "channel_names": {str(index): name for index, name in enumerate(content["channels"])},
        "labels": {name: index for index, name in enumerate(content["classes"])},
        "numTraining": len(known),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))

    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    configuration = "2d" if slices else "3d_fullres"
    extract_fingerprints([1], num_processes=2)
    plan_experiments([1])
    preprocess([1], configurations=(configuration,), num_processes=(2,))
    preprocessed = root / "preprocessed" / "Dataset001_Q"
    splits = [{"train": _list(content, "train"), "val": _list(content, "validate")}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))

    plans = {**json.loads((preprocessed / "nnUNetPlans.json").read_text()), "continue_training": False}
    trainer = nnUNetTrainer(plans, configuration, 0, json.loads((preprocessed / "dataset.json").read_text()), device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.network.train()
    losses, rate = [], trainer.initial_lr
    # Its schedule is a polynomial over the epochs; here it is one over the time.
    while (part := (time.monotonic() - START) / seconds) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate * (1 - part) ** 0.9
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
    trainer.on_train_end()
    patch = trainer.configuration_manager.patch_size
    first, last = (np.mean(part) for part in (losses[:5], losses[-5:]))
    print(f"nnunet: {len(losses)} iterations of {trainer.batch_size} x {patch}, loss {first:.3f} -> {last:.3f}", flush=True)
    test = root / "test"
    test.mkdir(exist_ok=True)
    for name in _list(content, "test"):
        _write_channels(work, test, name)
    predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"))
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json, "nnUNetTrainer", None
    )
    # While it trains, the network returns a list of resolutions.
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor.list_of_parameters = [trainer.network.state_dict()]
    predictor.predict_from_files(str(test), str(output), num_processes_preprocessing=1, num_processes_segmentation_export=1)


def _write_channels(work: Path, folder: Path, name: str) -> None:
    """Writes each channel of a scan as a file of its own, as nnU-Net asks for them."""
    image = nib.load(work / "scans" / f"{name}.nii.gz")
    array = np.asarray(image.dataobj, np.float32)
    for channel in range(array.shape[3] if array.ndim == 4 else 1):
        part = array[..., channel] if array.ndim == 4 else array
        nib.save(nib.Nifti1Image(part, image.affine), folder / f"{name}_{channel:04d}.nii.gz")


if __name__ == "__main__":
    main()
