"""The data sets, their splits by subject, and the tf.data pipelines that feed a training.

To add a data set, write its finder and its entry in `DATASETS` below; the flags, the help and the checks find it by themselves.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from modules import phantom
from modules.preprocess import Preprocessing
from modules.volume import Case, fingerprint_files, read_label_of, read_volume, replace_file, stem_of, suffix_of

SPLITS = ("train", "validate", "test")
CACHE_FORMAT = 1


@dataclass(frozen=True)
class DatasetSpec:
    """What the application knows of a data set.

    Attributes:
        name: What `--dataset` takes.
        title: For people.
        url: Where to get it.
        licence: Its licence, as its publisher names it.
        terms: What a user must do or know before using it.
        spatial_dims: 2 for slices, 3 for volumes.
        channels: Names of the image channels.
        class_names: The background first.
        label_values: `{value in the file: class index}`.
        preprocessing: What the networks get to see.
        find: From the folder to all its cases; raises FileNotFoundError or ValueError naming what is missing.
        label_name: From an image's file name to its label's.
        write_phantom: Draws a stand-in in the same layout: `write_phantom(root, seed=...)`.
        mirrored_labels: Pairs of classes that change places when left and right are flipped.
        defaults: Settings that suit this data set better than the general ones.
    """

    name: str
    title: str
    url: str
    licence: str
    terms: str
    spatial_dims: int
    channels: tuple[str, ...]
    class_names: tuple[str, ...]
    label_values: Mapping[int, int]
    preprocessing: Preprocessing
    find: Callable[[Path], list[Case]]
    label_name: Callable[[str], str]
    write_phantom: Callable[..., Path]
    mirrored_labels: tuple[tuple[str, str], ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------------- finders


def _slice_label_name(name: str) -> str:
    return re.sub(r"^case_", "seg_", name)


def place_in_volume(stem: str) -> tuple[str | None, int]:
    """Which scan a slice comes from and where it lies in it, by its file's stem: `..._slice_12` or `..._12`; (None, 0) if neither."""
    match = re.fullmatch(r"(.+?)_(?:slice_)?(\d+)", stem)
    return (match[1], int(match[2])) if match else (None, 0)


def _lgg_label_name(name: str) -> str:
    return re.sub(r"(\.tiff?)$", r"_mask\1", name, flags=re.IGNORECASE)


def find_hipmri(root: Path) -> list[Case]:
    """Slices `keras_slices_<split>/case_005_week_1_slice_0.nii.gz` with labels `keras_slices_seg_<split>/seg_...`."""
    return _find_split_folders(root, "keras_slices", r"(case_[^_]+)_week_[^_]+_slice_\d+\.nii(\.gz)?")


def find_oasis(root: Path) -> list[Case]:
    """Slices `keras_png_slices_<split>/case_001_slice_0.nii.png` with labels `keras_png_slices_seg_<split>/seg_...`."""
    return _find_split_folders(root, "keras_png_slices", r"(case_[^_]+)_slice_\d+(\.nii)?\.png")


def find_lgg(root: Path) -> list[Case]:
    """Slices `TCGA_XX_NNNN_DATE/TCGA_XX_NNNN_DATE_<n>.tif` with labels `..._<n>_mask.tif`, a folder a patient."""
    folders = sorted(path for path in root.glob("TCGA_*") if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"Expected folders TCGA_* in {root}. Received: none. Give the folder kaggle_3m with `--data`.")
    cases = []
    for folder in folders:
        files = _scan_names(folder)
        images = {name for name in files if not stem_of(Path(name)).endswith("_mask")}
        _check_pairs(folder, images, folder, files - images, _lgg_label_name)
        subject = "_".join(folder.name.split("_")[:3])
        for name in images:
            if not re.fullmatch(rf"{re.escape(folder.name)}_\d+\.tiff?", name, re.IGNORECASE):
                raise ValueError(f"Expected slices named {folder.name}_<number>.tif. Received: {folder / name}. Rename or remove it.")
            cases.append(_slice_case(folder / name, folder / _lgg_label_name(name), subject))
    return cases


def _find_split_folders(root: Path, prefix: str, pattern: str) -> list[Case]:
    cases = []
    for split in SPLITS:
        images, labels = root / f"{prefix}_{split}", root / f"{prefix}_seg_{split}"
        if not images.is_dir():
            continue
        if not labels.is_dir():
            raise FileNotFoundError(f"Expected the labels of {images} in {labels}. Received: no such folder.")
        names, label_names = _scan_names(images), _scan_names(labels)
        _check_pairs(images, names, labels, label_names, _slice_label_name)
        for name in names:
            match = re.fullmatch(pattern, name)
            if not match:
                raise ValueError(f"Expected slices named like {pattern}. Received: {images / name}. Rename or remove it.")
            cases.append(_slice_case(images / name, labels / _slice_label_name(name), match[1], split))
    if not cases:
        raise FileNotFoundError(f"Expected slices in {root / prefix}_train. Received: none. Give the data set's folder with `--data`.")
    return cases


def _scan_names(folder: Path) -> set[str]:
    """Names of the image files in a folder; what a desktop or an archive leaves beside them is no concern of ours."""
    return {path.name for path in folder.iterdir() if suffix_of(path) and not path.name.startswith(".")}


def _slice_case(image: Path, label: Path, subject: str, split: str | None = None) -> Case:
    volume_id, index = place_in_volume(stem_of(image))
    return Case(stem_of(image), subject, (image,), label, split, volume_id, index)


def _check_pairs(folder: Path, images: set[str], label_folder: Path, labels: set[str], label_name: Callable[[str], str]) -> None:
    expected = {label_name(name): name for name in images}
    for name in sorted(set(expected) - labels):
        raise ValueError(f"Expected a label for {folder / expected[name]}. Received: no {label_folder / name}. Add it or remove the image.")
    for name in sorted(labels - set(expected)):
        raise ValueError(f"Expected an image for the label {label_folder / name}. Received: none in {folder}. Add it or remove the label.")


# -------------------------------------------------------------------------------------------------------------- catalogue

_PELVIS = ("background", "body", "bone", "bladder", "rectum", "prostate")

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="hipmri",
            title="HipMRI prostate study, 2-D slices of the pelvis (T2)",
            url="https://doi.org/10.25919/45t8-p065",
            licence="CSIRO Data Licence",
            terms="Register with the CSIRO Data Access Portal and cite Dowling et al.; the slices are the course's cut of it.",
            spatial_dims=2,
            channels=("T2",),
            class_names=_PELVIS,
            label_values={value: value for value in range(len(_PELVIS))},
            preprocessing=Preprocessing(shape=(256, 128), intensity="min_max"),
            find=find_hipmri,
            label_name=_slice_label_name,
            write_phantom=phantom.write_hipmri,
        ),
        DatasetSpec(
            name="oasis",
            title="OASIS-1 brains, axial PNG slices (T1)",
            url="https://sites.wustl.edu/oasisbrains/",
            licence="OASIS data use agreement",
            terms="Accept the data use agreement, acknowledge OASIS-1 (Marcus et al., 2007), and do not try to identify a subject.",
            spatial_dims=2,
            channels=("T1",),
            class_names=("background", "CSF", "grey matter", "white matter"),
            label_values={0: 0, 85: 1, 170: 2, 255: 3},
            preprocessing=Preprocessing(shape=(256, 256), intensity="fixed", scale=255.0, mean=0.1317, std=0.1864),
            find=find_oasis,
            label_name=_slice_label_name,
            write_phantom=phantom.write_oasis,
        ),
        DatasetSpec(
            name="lgg",
            title="Lower-grade gliomas of TCGA, axial slices (pre-contrast, FLAIR, post-contrast)",
            url="https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation",
            licence="CC BY-NC-SA 4.0",
            terms="Not for commercial use; cite Buda et al., 2019, and The Cancer Imaging Archive.",
            spatial_dims=2,
            channels=("pre-contrast", "FLAIR", "post-contrast"),
            class_names=("background", "tumour"),
            label_values={0: 0, 255: 1},
            preprocessing=Preprocessing(shape=(256, 256), intensity="fixed", scale=255.0),
            find=find_lgg,
            label_name=_lgg_label_name,
            write_phantom=phantom.write_lgg,
        ),
    )
}


def choose_target(spec: DatasetSpec, target: Sequence[str]) -> tuple[DatasetSpec, tuple[int, ...]]:
    """Reduces a data set to the chosen classes against the rest.

    Args:
        spec: The whole data set.
        target: Class names; none keeps every class, several are one foreground together.

    Returns:
        The spec with the binary `class_names` and `label_values`, and the value each class is written with in a file. The
        foreground is written with the first-named class's own value.

    Raises:
        ValueError: For a class that the data set does not have.
    """
    values = {index: value for value, index in reversed(spec.label_values.items())}
    if not target:
        return spec, tuple(values[index] for index in range(len(spec.class_names)))
    for name in target:
        if name not in spec.class_names[1:]:
            raise ValueError(f"Expected `target` in {spec.class_names[1:]} for '{spec.name}'. Received: {name!r}.")
    chosen = {spec.class_names.index(name) for name in target}
    binary = {value: int(index in chosen) for value, index in spec.label_values.items()}
    names = (spec.class_names[0], "+".join(target))
    return replace(spec, class_names=names, label_values=binary), (values[0], values[spec.class_names.index(target[0])])


# ----------------------------------------------------------------------------------------------------------------- splits


def find_cases(spec: DatasetSpec, root: Path) -> list[Case]:
    """Finds all cases of a data set, ordered by volume and slice.

    Raises:
        FileNotFoundError: If the folder is not there or holds none.
        ValueError: If a pair is incomplete.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"Expected the data set '{spec.name}' in the folder {root}. Received: no such folder. Give it with `--data`, "
            f"or try `--demo`. Source: {spec.url}"
        )
    return sorted(spec.find(root), key=lambda case: (case.volume_id or case.case_id, case.slice_index, case.case_id))


def split_cases(
    cases: Sequence[Case], fractions: tuple[float, float] = (0.1, 0.1), seed: int = 42
) -> tuple[dict[str, list[Case]], list[str]]:
    """Divides cases into train, validate and test so that no subject is in two of them.

    An official split wins. Where it lacks a validation or a test set, subjects of its training set are held out; where it has a subject
    in two sets, that subject's cases stay in the later one (test before validate before train) and the others are left out.

    Args:
        cases: All labelled cases.
        fractions: Of all subjects, for validation and for test; each set that is drawn gets at least one subject.
        seed: Which subjects.

    Returns:
        `{"train": [...], "validate": [...], "test": [...]}`, and what there is to tell about it, in sentences.

    Raises:
        ValueError: If too few subjects are left for training.
    """
    remarks = []
    splits: dict[str, list[Case]] = {name: [] for name in SPLITS}
    for case in cases:
        splits[case.split or "train"].append(case)
    for later, earlier in (("test", "validate"), ("test", "train"), ("validate", "train")):
        shared = _subjects(splits[later]) & _subjects(splits[earlier])
        if shared:
            left_out = sum(case.subject_id in shared for case in splits[earlier])
            remarks.append(f"{len(shared)} subject(s) of {earlier} are also in {later}: their {left_out} cases in {earlier} are left out.")
            splits[earlier] = [case for case in splits[earlier] if case.subject_id not in shared]
    everyone = len(_subjects(cases))
    for name, fraction in zip(("test", "validate"), reversed(fractions), strict=True):
        if splits[name]:
            continue
        candidates = sorted(_subjects(splits["train"]))
        wanted = max(1, round(fraction * everyone))
        if wanted >= len(candidates):
            raise ValueError(
                f"Expected more than {wanted} subject(s) to hold {wanted} out for {name}. Received: {len(candidates)} for training."
            )
        held_out = set(np.random.default_rng(seed).permutation(candidates)[:wanted].tolist())
        splits[name] = [case for case in splits["train"] if case.subject_id in held_out]
        splits["train"] = [case for case in splits["train"] if case.subject_id not in held_out]
        remarks.append(f"{wanted} of {len(candidates)} training subjects held out for {name}, drawn with seed {seed}.")
    if not splits["train"]:
        raise ValueError("Expected cases to train on. Received: none that are not of a validation or test subject. Add a training set.")
    return splits, remarks


def describe_splits(splits: Mapping[str, Sequence[Case]]) -> list[str]:
    """One line a split: its name, and how many subjects, scans and slices it has."""
    lines = []
    for name, cases in splits.items():
        scans = len({case.volume_id or case.case_id for case in cases})
        lines.append(f"{name:<9}{len(_subjects(cases)):>5} subjects {scans:>5} scans {len(cases):>7} slices")
    return lines


def _subjects(cases: Sequence[Case]) -> set[str]:
    return {case.subject_id for case in cases}


# -------------------------------------------------------------------------------------------------------- cache, pipeline


def prepare_cases(cases: Sequence[Case], spec: DatasetSpec, preprocessing: Preprocessing, cache: Path) -> list[Path]:
    """Decodes and preprocesses each case once and keeps the result: float16 image, then uint8 label, as bare bytes in one file.

    The name of a file in the cache is a hash of the case's files (path, size, time of change), of the preprocessing and of the
    label values, so a changed file or setting is decoded anew and everything else is found again. 9,664 slices of 256x256 take
    1.8 GiB of disk; memory holds no more of them than the operating system cares to keep.

    Args:
        cases: Labelled cases.
        spec: Their data set, with the classes to be learnt.
        preprocessing: Fixes the shape `P`.
        cache: Folder to keep the files in.

    Returns:
        One file a case, in order, for `make_pipeline`.

    Raises:
        FileNotFoundError, ValueError: From reading, naming the file.
    """
    settings = json.dumps([CACHE_FORMAT, asdict(preprocessing), sorted(spec.label_values.items())])
    folder = cache / f"{spec.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    size = math.prod(preprocessing.shape) * (2 * len(spec.channels) + 1)

    def prepare(case: Case) -> Path:
        _check_files(case)
        path = folder / f"{case.case_id}-{fingerprint_files([*case.image_paths, case.label_path])[:16]}.raw"
        if not path.exists() or path.stat().st_size != size:
            image = read_volume(case.image_paths)
            preprocessing.check(image, spec.channels, str(case.image_paths[0]))
            label = read_label_of(case, image, spec.label_values, spec.name)
            array, _ = preprocessing.apply(image)
            with replace_file(path) as temporary:
                temporary.write_bytes(array.astype(np.float16).tobytes() + preprocessing.apply_label(label).tobytes())
        return path

    # Threads are enough: inflating and decoding release Python's lock.
    executor = ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1)))
    try:
        results = executor.map(prepare, cases)
        return list(tqdm(results, total=len(cases), desc="reading", unit="slice", disable=None, leave=False))
    finally:
        executor.shutdown(cancel_futures=True)


def fingerprint_splits(files: Mapping[str, Sequence[Path]]) -> str:
    """A hash of which cases are in which split and of the state of their files, from the names that `prepare_cases` gave."""
    names = [f"{split} {path.name}\n" for split, paths in sorted(files.items()) for path in paths]
    return hashlib.sha256("".join(names).encode()).hexdigest()


def make_pipeline(
    files: Sequence[Path], shape: Sequence[int], channels: int, *, batch_size: int, training: bool, seed: int = 42, first_step: int = 0
):
    """A `tf.data.Dataset` of `(image (B, *P, C) float32, label (B, *P) int32)`.

    For training it is endless, every batch is full, and the batch of step `s` is a pure function of `(seed, s)`: position
    `s * B + i` of an endless row of permutations, one an epoch, each computed without state. A run can thus begin at any step.
    Otherwise it goes through the files once, in order, and the last batch may be smaller.

    Args:
        files: From `prepare_cases`.
        shape: `P`.
        channels: `C`.
        batch_size: `B`.
        training: Which of the two.
        seed: Of the order.
        first_step: Where training begins.
    """
    import tensorflow as tf

    number = len(files)
    names = tf.constant([str(path) for path in files])
    values = math.prod(shape) * channels

    def choose(position):
        if not training:
            return position
        epoch = position // number
        seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
        return tf.random.experimental.index_shuffle(position % number, tf.cast(seeds, tf.int32), number - 1)

    def load(position):
        data = tf.io.read_file(names[choose(position)])
        image = tf.io.decode_raw(tf.strings.substr(data, 0, 2 * values), tf.float16)
        label = tf.io.decode_raw(tf.strings.substr(data, 2 * values, -1), tf.uint8)
        image = tf.cast(tf.reshape(image, (*shape, channels)), tf.float32)
        return image, tf.cast(tf.reshape(label, tuple(shape)), tf.int32)

    positions = tf.data.Dataset.range(first_step * batch_size, np.iinfo(np.int64).max) if training else tf.data.Dataset.range(number)
    pipeline = positions.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return pipeline.batch(batch_size, drop_remainder=training).prefetch(tf.data.AUTOTUNE)


def _check_files(case: Case) -> None:
    for path in (*case.image_paths, case.label_path):
        if not path.is_file():
            raise FileNotFoundError(f"Expected a file at {path}. Received: nothing there. Check case {case.case_id}.")
