"""The data sets, their splits by subject, and the tf.data pipelines that feed a training.

To add a data set, write its finder and its entry in `DATASETS` below; the flags, the help and the checks find it by themselves.
`python dataset.py show --dataset NAME` draws some of its cases, and with `--augment` what each effect of an augmentation does to one.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from modules import cache, msd
from modules.cache import PreparedCase
from modules.patches import PLANES, choose_points, cut, draw_start
from modules.pipeline import derive_window
from modules.preprocess import Preprocessing
from modules.volume import Case, Volume, read_label, read_label_of, read_volume, stem_of, suffix_of

SPLITS = ("train", "validate", "test")


@dataclass(frozen=True)
class DatasetSpec:
    """What the application knows of a data set.

    Attributes:
        name: What `--dataset` takes.
        title: For people.
        url: Where to get it.
        licence: Its licence, as its publisher names it.
        terms: What a user must do or know before using it.
        channels: Names of the image channels.
        class_names: The background first.
        label_values: `{value in the file: class index}`.
        preprocessing: What the networks get to see.
        find: From the folder to all its cases; raises FileNotFoundError or ValueError naming what is missing.
        label_name: From an image's file name to its label's.
        write_phantom: Draws a stand-in in the same layout: `write_phantom(root, seed=...)`.
        mirrored_labels: Pairs of classes that change places when left and right are flipped.
        defaults: Settings that suit this data set better than the general ones.
        describe: For folders that describe themselves: from the folder to the fields that are not known before.
    """

    name: str
    title: str
    url: str
    licence: str
    terms: str
    channels: tuple[str, ...]
    class_names: tuple[str, ...]
    label_values: Mapping[int, int]
    preprocessing: Preprocessing
    find: Callable[[Path], list[Case]]
    label_name: Callable[[str], str]
    write_phantom: Callable[..., Path]
    mirrored_labels: tuple[tuple[str, str], ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    describe: Callable[[Path], Mapping[str, Any]] | None = None

    @property
    def spatial_dims(self) -> int:
        """2 for slices, 3 for volumes."""
        return self.preprocessing.spatial_dims

    def mirrored_indices(self) -> tuple[tuple[int, int], ...]:
        """`mirrored_labels` as class indices; pairs that a chosen target has merged or dropped are left out."""
        names = self.class_names
        return tuple((names.index(one), names.index(other)) for one, other in self.mirrored_labels if one in names and other in names)


# ---------------------------------------------------------------------------------------------------------------- finders


def _draw(name: str) -> Callable[..., Path]:
    """What writes the phantom of a data set; the drawing is imported when it is called."""

    def write(root: Path, **options: Any) -> Path:
        from modules import phantom

        return getattr(phantom, f"write_{name}")(root, **options)

    return write


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


def _hipmri3d_label_name(name: str) -> str:
    name = re.sub(r"^(Case_\d+_Week\d+)_LFOV(\.nii(\.gz)?)$", r"\1_SEMANTIC_LFOV\2", name)
    return re.sub(r"^(B\d+_Week\d+)_LFOV(\.nii(\.gz)?)$", r"\1_SEMANTIC\2", name)


def find_hipmri3d(root: Path) -> list[Case]:
    """Volumes `semantic_MRs_anon/Case_005_Week1_LFOV.nii.gz` with `semantic_labels_anon/Case_005_Week1_SEMANTIC_LFOV.nii.gz`.

    The other release's `B006_Week0_LFOV.nii.gz` and `B006_Week0_SEMANTIC.nii.gz` are taken too, and files that lie in a folder of their
    own name. The subject is the patient, by number in either release: one patient's weeks never part.
    """
    pattern = re.compile(r"((?:Case_|B)(\d+)_Week\d+)(_SEMANTIC)?(?:_LFOV)?\.nii(?:\.gz)?")
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for folder, found in (("semantic_MRs*", images), ("semantic_labels*", labels)):
        for path in sorted(path for place in root.glob(folder) for path in place.rglob("*.nii*") if path.is_file()):
            match = pattern.fullmatch(path.name)
            if path.name.startswith("."):
                continue
            if not match or bool(match[3]) != (found is labels):
                raise ValueError(f"Expected volumes named Case_<n>_Week<n>_[SEMANTIC_]LFOV.nii.gz. Received: {path}. Rename or remove it.")
            if found.setdefault(match[1], path) != path:
                raise ValueError(f"Expected one file for {match[1]}. Received: {found[match[1]]} and {path}. Remove one.")
    if not images:
        raise FileNotFoundError(f"Expected volumes in {root}/semantic_MRs_anon. Received: none. Give the data set's folder with `--data`.")
    for one, other, what in ((images, labels, "a label"), (labels, images, "an image")):
        for name in sorted(set(one) - set(other)):
            raise ValueError(f"Expected {what} for {one[name]}. Received: none under {root}. Add it or remove the file.")
    return [Case(name, f"patient_{int(pattern.fullmatch(path.name)[2]):03d}", (path,), labels[name]) for name, path in images.items()]


def _ibsr18_label_name(name: str) -> str:
    return re.sub(r"^(IBSR_\d+)(\.nii(\.gz)?)$", r"\1_seg\2", name)


def find_ibsr18(root: Path) -> list[Case]:
    """Volumes `{Training,Validation,Test}_Set/IBSR_07/IBSR_07.nii.gz` with `IBSR_07_seg.nii.gz`; the test set has no labels."""
    cases = []
    for split, name in zip(SPLITS, ("Training_Set", "Validation_Set", "Test_Set"), strict=True):
        for folder in sorted(path for path in (root / name).glob("IBSR_*") if path.is_dir()):
            images = sorted(folder / file for file in _scan_names(folder) if stem_of(Path(file)) == folder.name)
            if len(images) != 1:
                found = " and ".join(image.name for image in images) or "nothing there"
                raise ValueError(f"Expected one volume {folder / folder.name}.nii.gz. Received: {found}. Mend or remove the folder.")
            image = images[0]
            label = image.with_name(_ibsr18_label_name(image.name))
            if not label.is_file() and split != "test":
                raise ValueError(f"Expected a label for {image}. Received: no {label}. Add it or remove the image.")
            cases.append(Case(folder.name, folder.name, (image,), label if label.is_file() else None, split))
    if not cases:
        raise FileNotFoundError(f"Expected volumes in {root / 'Training_Set'}. Received: none. Give the data set's folder with `--data`.")
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


def _describe_msd(root: Path) -> dict[str, Any]:
    description = msd.read_description(root)
    return {name: description[name] for name in ("title", "licence", "channels", "class_names", "label_values")}


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="hipmri",
            title="HipMRI prostate study, 2-D slices of the pelvis (T2)",
            url="https://doi.org/10.25919/45t8-p065",
            licence="CSIRO Data Licence",
            terms="Register with the CSIRO Data Access Portal and cite Dowling et al.; the slices are the course's cut of it.",
            channels=("T2",),
            class_names=_PELVIS,
            label_values={value: value for value in range(len(_PELVIS))},
            preprocessing=Preprocessing(2, shape=(256, 128), intensity="min_max"),
            find=find_hipmri,
            label_name=_slice_label_name,
            write_phantom=_draw("hipmri"),
        ),
        DatasetSpec(
            name="oasis",
            title="OASIS-1 brains, axial PNG slices (T1)",
            url="https://sites.wustl.edu/oasisbrains/",
            licence="OASIS data use agreement",
            terms="Accept the data use agreement, acknowledge OASIS-1 (Marcus et al., 2007), and do not try to identify a subject.",
            channels=("T1",),
            class_names=("background", "CSF", "grey matter", "white matter"),
            label_values={0: 0, 85: 1, 170: 2, 255: 3},
            preprocessing=Preprocessing(2, shape=(256, 256), intensity="fixed", scale=255.0, mean=0.1317, std=0.1864),
            find=find_oasis,
            label_name=_slice_label_name,
            write_phantom=_draw("oasis"),
        ),
        DatasetSpec(
            name="lgg",
            title="Lower-grade gliomas of TCGA, axial slices (pre-contrast, FLAIR, post-contrast)",
            url="https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation",
            licence="CC BY-NC-SA 4.0",
            terms="Not for commercial use; cite Buda et al., 2019, and The Cancer Imaging Archive.",
            channels=("pre-contrast", "FLAIR", "post-contrast"),
            class_names=("background", "tumour"),
            label_values={0: 0, 255: 1},
            preprocessing=Preprocessing(2, shape=(256, 256), intensity="fixed", scale=255.0),
            find=find_lgg,
            label_name=_lgg_label_name,
            write_phantom=_draw("lgg"),
        ),
        DatasetSpec(
            name="hipmri3d",
            title="HipMRI prostate study, volumes of the pelvis (T2)",
            url="https://doi.org/10.25919/45t8-p065",
            licence="CSIRO Data Licence",
            terms="Register with the CSIRO Data Access Portal and cite Dowling et al.",
            channels=("T2",),
            class_names=_PELVIS,
            label_values={value: value for value in range(len(_PELVIS))},
            preprocessing=Preprocessing(3, intensity="zscore"),
            find=find_hipmri3d,
            label_name=_hipmri3d_label_name,
            write_phantom=_draw("hipmri3d"),
            defaults={"mode": "volume", "plane": "axial"},
        ),
        DatasetSpec(
            name="ibsr18",
            title="IBSR-18 brains, skull-stripped volumes (T1)",
            url="https://www.nitrc.org/projects/ibsr",
            licence="IBSR terms of use",
            terms="Acknowledge the Center for Morphometric Analysis at Massachusetts General Hospital as the source.",
            channels=("T1",),
            class_names=("background", "CSF", "grey matter", "white matter"),
            label_values={value: value for value in range(4)},
            preprocessing=Preprocessing(3, intensity="zscore", foreground_crop=True),
            find=find_ibsr18,
            label_name=_ibsr18_label_name,
            write_phantom=_draw("ibsr18"),
            # Slices are 1.5 mm thick along the second axis and finer within: coronal.
            defaults={"plane": "coronal"},
        ),
        DatasetSpec(
            name="msd",
            title="Any folder in the layout of the Medical Segmentation Decathlon or of nnU-Net v2, described by its dataset.json",
            url="http://medicaldecathlon.com",
            licence="as in dataset.json",
            terms="Those of the data; the Decathlon's are CC BY-SA 4.0.",
            channels=(),
            class_names=(),
            label_values={},
            preprocessing=Preprocessing(3, intensity="zscore"),
            find=msd.find_msd,
            label_name=msd.name_label,
            write_phantom=_draw("msd"),
            describe=_describe_msd,
        ),
    )
}


def load_spec(name: str, root: Path) -> DatasetSpec:
    """A data set with all that only its folder knows.

    Raises:
        FileNotFoundError: If the folder is not there.
        ValueError: If its description is wrong.
    """
    spec = DATASETS[name]
    if not root.is_dir():
        raise FileNotFoundError(
            f"Expected the data set '{name}' in the folder {root}. Received: no such folder. Give it with `--data`, "
            f"or try `--demo`. Source: {spec.url}"
        )
    return replace(spec, **spec.describe(root)) if spec.describe else spec


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
        FileNotFoundError: If the folder holds none.
        ValueError: If a pair is incomplete.
    """
    return sorted(spec.find(root), key=lambda case: (case.volume_id or case.case_id, case.slice_index, case.case_id))


def split_cases(
    cases: Sequence[Case], fractions: tuple[float, float] = (0.1, 0.1), seed: int = 42
) -> tuple[dict[str, list[Case]], list[str]]:
    """Divides cases into train, validate and test so that no subject is in two of them.

    Cases without a label are left out. An official split wins. Where it lacks a validation or a test set, subjects of its training
    set are held out; where it has a subject in two sets, that subject's cases stay in the later one (test before validate before
    train) and the others are left out.

    Args:
        cases: All cases.
        fractions: Of all subjects, for validation and for test; each set that is drawn gets at least one subject.
        seed: Which subjects.

    Returns:
        `{"train": [...], "validate": [...], "test": [...]}`, and what there is to tell about it, in sentences.

    Raises:
        ValueError: If too few subjects are left for training.
    """
    remarks = []
    splits: dict[str, list[Case]] = {name: [] for name in SPLITS}
    unlabelled = sum(case.label_path is None for case in cases)
    if unlabelled:
        remarks.append(f"{unlabelled} case(s) without a label are left out.")
        cases = [case for case in cases if case.label_path is not None]
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
    """One line a split: its name, and how many subjects, scans and, for slices, files it has."""
    lines = []
    for name, cases in splits.items():
        scans = len({case.volume_id or case.case_id for case in cases})
        slices = f" {len(cases):>7} slices" if len(cases) > scans else ""
        lines.append(f"{name:<9}{len(_subjects(cases)):>5} subjects {scans:>5} scans{slices}")
    return lines


def _subjects(cases: Sequence[Case]) -> set[str]:
    return {case.subject_id for case in cases}


# ------------------------------------------------------------------------------------------------------------------ cache


def prepare_cases(cases: Sequence[Case], spec: DatasetSpec, preprocessing: Preprocessing, folder: Path) -> list[PreparedCase]:
    """Decodes and preprocesses cases of a data set once, see `modules.cache.prepare_cases`."""
    return cache.prepare_cases(
        cases, preprocessing, dataset=spec.name, channels=spec.channels, label_values=spec.label_values, folder=folder
    )


# --------------------------------------------------------------------------------------------------------------- commands

_SHOWN = 6  # scans on a sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python dataset.py show ...`; returns its exit status."""
    import utils

    return utils.run_command("dataset.py", lambda: _show(_parse(argv)))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    import utils

    parser = utils.OneLineParser(prog="dataset.py", description="Looks at a data set.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=utils.OneLineParser)
    show = commands.add_parser("show", help="draw some cases with their labels, or what an augmentation does to one")
    show.add_argument("--dataset", required=True, choices=tuple(DATASETS), help="data set to show")
    show.add_argument("--data", default="", metavar="FOLDER", help="its folder; without it $MRI_DATA/<dataset> or data/<dataset>")
    show.add_argument("--demo", action="store_true", help="draw a phantom in the data set's layout and show that")
    show.add_argument(
        "--augment", nargs="?", const="strong", default="none", choices=utils.AUGMENTS, help="show its effects on one case (default strong)"
    )
    show.add_argument("--seed", type=int, default=42, help="of the choice of cases and of every draw (default %(default)s)")
    show.add_argument("--output", metavar="FILE.png", help="picture to write; without it show_<dataset>[_<augment>].png")
    return parser.parse_args(argv)


def _show(options: argparse.Namespace) -> None:
    import utils
    from modules import reports

    utils.start_log()
    output = Path(options.output or f"show_{options.dataset}{'' if options.augment == 'none' else '_' + options.augment}.png")
    if output.suffix.lower() != ".png":
        raise ValueError(f"Expected `--output` ending in .png. Received: {output}.")
    config = utils.RunConfig(options.dataset, data=options.data, demo=options.demo, seed=options.seed)
    root = config.data_folder()
    if options.demo:
        DATASETS[options.dataset].write_phantom(root, seed=options.seed)
    spec = load_spec(options.dataset, root)
    scans = choose_scans(find_cases(spec, root), _SHOWN if options.augment == "none" else 1, options.seed)
    cases = [choose_case(scan, spec) for scan in scans]
    plane = spec.defaults.get("plane", "axial")
    if options.augment == "none":
        drawn = {case.case_id: _read_checked(case, spec) for case in cases}
        reports.draw_cases(output, drawn, spec.class_names, title=f"{spec.name}: {spec.title}", plane=plane)
    else:
        from modules.devices import import_keras

        import_keras()
        from modules.augment import AUGMENTATIONS

        image, label = make_sample(cases[0], spec, options.seed)
        size = "x".join(map(str, label.shape))
        title = f"{spec.name}, {cases[0].case_id}, {size}: the augmentation '{options.augment}', each effect alone and all together"
        reports.draw_augmentation(
            output, image, label, spec.class_names, AUGMENTATIONS[options.augment],
            title=title, seed=options.seed, plane=plane, left_right_swaps=spec.mirrored_indices(),
        )  # fmt: skip
    utils.log.info("picture: %s", output)


def choose_scans(cases: Sequence[Case], number: int, seed: int) -> list[list[Case]]:
    """Draws one labelled scan, with all its slices, of each of at most `number` subjects.

    Raises:
        ValueError: If no case has a label.
    """
    by_subject: dict[str, dict[str, list[Case]]] = {}
    for case in cases:
        if case.label_path is not None:
            by_subject.setdefault(case.subject_id, {}).setdefault(case.volume_id or case.case_id, []).append(case)
    if not by_subject:
        raise ValueError(f"Expected cases with labels to show. Received: {len(cases)} without. Add a label.")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(sorted(by_subject))[:number].tolist()
    return [list(by_subject[subject].values())[rng.integers(len(by_subject[subject]))] for subject in chosen]


def choose_case(scan: Sequence[Case], spec: DatasetSpec) -> Case:
    """The slice of a scan that shows its structures best, or the scan if it is a volume."""
    from modules.reports.views import choose_slice

    if len(scan) == 1:
        return scan[0]
    labels = (read_label(case.label_path, spec.label_values, spec.name) for case in scan)
    return scan[choose_slice(np.array([np.bincount(label.ravel(), minlength=len(spec.class_names)) for label in labels]))]


def make_sample(case: Case, spec: DatasetSpec, seed: int) -> tuple[Volume, np.ndarray]:
    """What a training with the data set's own settings would see of a labelled case: a slice, a whole volume at the size that follows
    from it, or a patch about its structures.
    """
    image, label = _read_checked(case, spec)
    preprocessing = spec.preprocessing
    array, geometry = preprocessing.apply(image)
    window = array.shape[:-1]
    if spec.spatial_dims == 3:
        window = derive_window([window], spec.defaults.get("mode", "patch"), PLANES["axial"], divisor=16)
        if spec.defaults.get("mode") == "volume":
            preprocessing = replace(preprocessing, shape=window, resize=True)
            array, geometry = preprocessing.apply(image)
    label = preprocessing.apply_label(label, geometry)
    if label.shape != window:
        rng = np.random.default_rng(seed)
        points = choose_points(label, len(spec.class_names), rng)
        start = draw_start(rng, label.shape, window, points=points, sampling="foreground")
        array, label = cut(array, start, window, array.min(axis=(0, 1, 2))), cut(label, start, window)
    spacing = geometry.measure_spacing(image.spacing_mm)
    # Volumes are in canonical orientation by now.
    return Volume(array, np.diag([*spacing, 1.0]) if label.ndim == 3 else image.affine, spacing), label


def _read_checked(case: Case, spec: DatasetSpec) -> tuple[Volume, np.ndarray]:
    image = read_volume(case.image_paths)
    spec.preprocessing.check(image, spec.channels, str(case.image_paths[0]))
    return image, read_label_of(case, image, spec.label_values, spec.name)


if __name__ == "__main__":
    # The other modules import this file under its name; the command is run there, so that there is one of everything.
    import dataset

    sys.exit(dataset.main())
