"""The data sets: where their files lie, and what they mean.

To add a data set, write its finder and its entry in `DATASETS` below. The flags, the help and the checks find it by themselves.

`python dataset.py show --dataset NAME` draws some of its cases. With `--augment` it draws what each effect of an augmentation does to
one. `python dataset.py check --dataset NAME` reads all cases, and tells what is wrong or unusual. `python dataset.py suggest RUN SCANS`
tells which unlabelled scans to label next.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import utils
from modules.data import msd
from modules.data.case import Case, LabelRule, place_in_volume, rename
from modules.data.draws import AUGMENTATIONS
from modules.data.files import NIFTI_SUFFIXES, index_images, stem_of, suffix_of, walk_files
from modules.data.folder_set import MODALITIES, Wishes, describe_folder, find_sides
from modules.data.preprocess import Preprocessing
from modules.data.spec import DatasetSpec
from modules.data.splits import SPLITS
from modules.run.check import PICTURES, check
from modules.run.flags import OneLineParser
from modules.run.show import show
from modules.run.suggest import NUMBER, suggest

# ---------------------------------------------------------------------------------------------------------------- finders


def _make_writer(name: str) -> Callable[..., Path]:
    """Returns a function that writes the phantom of a data set. It imports the drawing only when it is called."""

    def write(root: Path, **options: Any) -> Path:
        from modules import phantom

        return getattr(phantom, f"write_{name}")(root, **options)

    return write


Renames = tuple[tuple[str, str], ...]
# Pairs of a pattern and its replacement turn an image's file name into its label's; see `modules.data.case.LabelRule`.
_SLICE_RENAMES = ((r"^case_", "seg_"),)
_LGG_RENAMES = ((r"(?i)(\.tiff?)$", r"_mask\1"),)
_IBSR18_RENAMES = ((r"^(IBSR_\d+)((?i:\.nii(\.gz)?))$", r"\1_seg\2"),)
_HIPMRI3D_RENAMES = (
    (r"^(Case_\d+_Week\d+)_LFOV((?i:\.nii(\.gz)?))$", r"\1_SEMANTIC_LFOV\2"),
    (r"^(B\d+_Week\d+)_LFOV((?i:\.nii(\.gz)?))$", r"\1_SEMANTIC\2"),
)


def find_hipmri(root: Path) -> list[Case]:
    """Finds slices `keras_slices_<split>/case_005_week_1_slice_0.nii.gz` with labels `keras_slices_seg_<split>/seg_...`."""
    return _find_split_folders(root, "keras_slices", r"(case_[^_]+)_week_[^_]+_slice_\d+")


def find_oasis(root: Path) -> list[Case]:
    """Finds slices `keras_png_slices_<split>/case_001_slice_0.nii.png` with labels `keras_png_slices_seg_<split>/seg_...`."""
    return _find_split_folders(root, "keras_png_slices", r"(case_[^_]+)_slice_\d+")


def find_lgg(root: Path) -> list[Case]:
    """Finds slices `TCGA_XX_NNNN_DATE/TCGA_XX_NNNN_DATE_<n>.tif` with labels `..._<n>_mask.tif`; each patient has a folder."""
    folders = sorted(path for path in root.glob("TCGA_*") if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"Expected folders TCGA_* in {root}. Received: none. Give the folder kaggle_3m with `--data`.")
    cases = []
    for folder in folders:
        files = index_images(folder)
        labels = {stem: path for stem, path in files.items() if stem.endswith("_mask")}
        images = [path for stem, path in files.items() if stem not in labels]
        subject = "_".join(folder.name.split("_")[:3])
        for image, label in _pair(images, folder, labels, _LGG_RENAMES):
            if not re.fullmatch(rf"{re.escape(folder.name)}_\d+\.tiff?", image.name, re.IGNORECASE):
                raise ValueError(f"Expected slices named {folder.name}_<number>.tif. Received: {image}. Rename or remove it.")
            cases.append(_slice_case(image, label, subject))
    return cases


def find_hipmri3d(root: Path) -> list[Case]:
    """Finds volumes `semantic_MRs_anon/Case_005_Week1_LFOV.nii.gz` and `semantic_labels_anon/Case_005_Week1_SEMANTIC_LFOV.nii.gz`.

    The other release's `B006_Week0_LFOV.nii.gz` and `B006_Week0_SEMANTIC.nii.gz` are taken too, and files that lie in a folder of
    their own name. The subject is the patient, by number in either release, so that one patient's weeks never part.
    """
    pattern = re.compile(r"((?:Case_|B)(\d+)_Week\d+)(_SEMANTIC)?(?:_LFOV)?")
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    patients: dict[str, int] = {}
    for folder, found in (("semantic_MRs*", images), ("semantic_labels*", labels)):
        for path in (path for place in sorted(root.glob(folder)) for path in walk_files(place)):
            match = pattern.fullmatch(stem_of(path))
            if suffix_of(path) not in NIFTI_SUFFIXES:
                continue
            if not match or bool(match[3]) != (found is labels):
                raise ValueError(f"Expected volumes named Case_<n>_Week<n>_[SEMANTIC_]LFOV.nii.gz. Received: {path}. Rename or remove it.")
            patients[match[1]] = int(match[2])
            if found.setdefault(match[1], path) != path:
                raise ValueError(f"Expected one file for {match[1]}. Received: {found[match[1]]} and {path}. Remove one.")
    if not images:
        raise FileNotFoundError(f"Expected volumes in {root}/semantic_MRs_anon. Received: none. Give the data set's folder with `--data`.")
    for one, other, lacking in ((images, labels, "a label"), (labels, images, "an image")):
        for name in sorted(set(one) - set(other)):
            raise ValueError(f"Expected {lacking} for {one[name]}. Received: none under {root}. Add it or remove the file.")
    return [Case(name, f"patient_{patients[name]:03d}", (path,), labels[name]) for name, path in images.items()]


def find_ibsr18(root: Path) -> list[Case]:
    """Finds volumes `{Training,Validation,Test}_Set/IBSR_07/IBSR_07.nii.gz` with `IBSR_07_seg.nii.gz`; the test set has no labels."""
    cases = []
    for split, name in zip(SPLITS, ("Training_Set", "Validation_Set", "Test_Set"), strict=True):
        for folder in sorted(path for path in (root / name).glob("IBSR_*") if path.is_dir()):
            files = index_images(folder)
            if (image := files.get(folder.name)) is None:
                raise ValueError(f"Expected one volume {folder / folder.name}.nii.gz. Received: nothing there. Mend or remove the folder.")
            expected = image.with_name(rename(image.name, _IBSR18_RENAMES))
            label = files.get(stem_of(expected))
            if label is None and split != "test":
                raise ValueError(f"Expected a label for {image}. Received: no {expected}. Add it or remove the image.")
            cases.append(Case(folder.name, folder.name, (image,), label, split))
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
        for image, label in _pair(index_images(images).values(), labels, index_images(labels), _SLICE_RENAMES):
            match = re.fullmatch(pattern, stem_of(image))
            if not match:
                raise ValueError(f"Expected slices named like {pattern}. Received: {image}. Rename or remove it.")
            cases.append(_slice_case(image, label, match[1], split))
    if not cases:
        raise FileNotFoundError(f"Expected slices in {root / prefix}_train. Received: none. Give the data set's folder with `--data`.")
    return cases


def _slice_case(image: Path, label: Path, subject: str, split: str | None = None) -> Case:
    volume_id, index = place_in_volume(stem_of(image))
    return Case(stem_of(image), subject, (image,), label, split, volume_id, index)


def _pair(images: Iterable[Path], folder: Path, labels: Mapping[str, Path], renames: Renames) -> list[tuple[Path, Path]]:
    """Pairs images with the labels in `folder`, given by their stems; the endings of a pair may differ."""
    expected = {stem_of(Path(rename(image.name, renames))): image for image in images}
    for stem in sorted(set(expected) - set(labels)):
        image = expected[stem]
        raise ValueError(f"Expected a label for {image}. Received: no {folder / rename(image.name, renames)}. Add it or remove the image.")
    for stem in sorted(set(labels) - set(expected)):
        raise ValueError(f"Expected an image for the label {labels[stem]}. Received: none that fits it. Add it or remove the label.")
    return [(image, labels[stem]) for stem, image in expected.items()]


# -------------------------------------------------------------------------------------------------------------- catalogue

_PELVIS = ("background", "body", "bone", "bladder", "rectum", "prostate")
# Categories of SNOMED, of DICOM's context group 7150, and codes of classes.
_STRUCTURE, _TISSUE, _SUBSTANCE = ("91723000", "Anatomical Structure"), ("85756007", "Tissue"), ("91720002", "Body Substance")
_PELVIS_CODES = {
    "body": (_STRUCTURE, ("38266002", "Entire body")),
    "bone": (_TISSUE, ("272673000", "Bone")),
    "bladder": (_STRUCTURE, ("89837001", "Bladder")),
    "rectum": (_STRUCTURE, ("34402009", "Rectum")),
    "prostate": (_STRUCTURE, ("41216001", "Prostate")),
}
_BRAIN_CODES = {
    "CSF": (_SUBSTANCE, ("65216001", "Cerebrospinal Fluid")),
    "grey matter": (_TISSUE, ("389081007", "Gray Matter")),
    "white matter": (_TISSUE, ("389080008", "White Matter")),
}
_TUMOUR_CODES = {"tumour": (("49755003", "Morphologically Abnormal Structure"), ("108369006", "Neoplasm"))}


def _describe_msd(root: Path, _: Wishes) -> dict[str, Any]:
    description = msd.read_description(root)
    rule = LabelRule(description["label_values"], renames=msd.LABEL_RENAMES)
    fields = {name: description[name] for name in ("title", "licence", "channels", "class_names", "regions")}
    return fields | {"label_rule": rule, "mirrored_labels": () if fields["regions"] else find_sides(fields["class_names"])}


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
            label_rule=LabelRule({value: value for value in range(len(_PELVIS))}, renames=_SLICE_RENAMES),
            preprocessing=Preprocessing(2, shape=(256, 128), intensity="min_max"),
            find=find_hipmri,
            codes=_PELVIS_CODES,
            write_phantom=_make_writer("hipmri"),
        ),
        DatasetSpec(
            name="oasis",
            title="OASIS-1 brains, axial PNG slices (T1)",
            url="https://sites.wustl.edu/oasisbrains/",
            licence="OASIS data use agreement",
            terms="Accept the data use agreement, acknowledge OASIS-1 (Marcus et al., 2007), and do not try to identify a subject.",
            channels=("T1",),
            class_names=("background", "CSF", "grey matter", "white matter"),
            label_rule=LabelRule({0: 0, 85: 1, 170: 2, 255: 3}, renames=_SLICE_RENAMES),
            preprocessing=Preprocessing(2, shape=(256, 256), intensity="fixed", scale=255.0, mean=0.1317, std=0.1864),
            find=find_oasis,
            codes=_BRAIN_CODES,
            write_phantom=_make_writer("oasis"),
        ),
        DatasetSpec(
            name="lgg",
            title="Lower-grade gliomas of TCGA, axial slices (pre-contrast, FLAIR, post-contrast)",
            url="https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation",
            licence="CC BY-NC-SA 4.0",
            terms="Not for commercial use; cite Buda et al., 2019, and The Cancer Imaging Archive.",
            channels=("pre-contrast", "FLAIR", "post-contrast"),
            class_names=("background", "tumour"),
            label_rule=LabelRule({0: 0, 255: 1}, renames=_LGG_RENAMES),
            preprocessing=Preprocessing(2, shape=(256, 256), intensity="fixed", scale=255.0),
            find=find_lgg,
            codes=_TUMOUR_CODES,
            write_phantom=_make_writer("lgg"),
        ),
        DatasetSpec(
            name="hipmri3d",
            title="HipMRI prostate study, volumes of the pelvis (T2)",
            url="https://doi.org/10.25919/45t8-p065",
            licence="CSIRO Data Licence",
            terms="Register with the CSIRO Data Access Portal and cite Dowling et al.",
            channels=("T2",),
            class_names=_PELVIS,
            label_rule=LabelRule({value: value for value in range(len(_PELVIS))}, renames=_HIPMRI3D_RENAMES),
            preprocessing=Preprocessing(3, intensity="zscore"),
            find=find_hipmri3d,
            codes=_PELVIS_CODES,
            write_phantom=_make_writer("hipmri3d"),
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
            label_rule=LabelRule({value: value for value in range(4)}, renames=_IBSR18_RENAMES),
            preprocessing=Preprocessing(3, intensity="zscore", foreground_crop=True),
            find=find_ibsr18,
            codes=_BRAIN_CODES,
            write_phantom=_make_writer("ibsr18"),
            # Slices are 1.5 mm thick along the second axis and finer within, so they are coronal.
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
            label_rule=LabelRule({}, renames=msd.LABEL_RENAMES),
            preprocessing=Preprocessing(3, intensity="zscore"),
            find=msd.find_msd,
            write_phantom=_make_writer("msd"),
            describe=_describe_msd,
        ),
        DatasetSpec(
            name="folder",
            title="Any folder of images and labels: images/ and labels/, a label beside its image, BIDS, or a table of --cases",
            url="your own scans, see docs/data_sets.md",
            licence="that of the data",
            terms="Those of the data.",
            channels=(),
            class_names=(),
            label_rule=LabelRule({}),
            preprocessing=Preprocessing(3, intensity="zscore"),
            find=lambda root: [],
            write_phantom=_make_writer("folder"),
            describe=describe_folder,
            takes=("cases", "classes", "modality"),
        ),
    )
}


# --------------------------------------------------------------------------------------------------------------- commands


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `show`, `check` or `suggest`; returns its exit status. A check that finds an error returns 1."""
    return utils.run_command("dataset.py", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int | None:
    options = _parse(argv)
    utils.start_log()
    return {"show": show, "check": check, "suggest": suggest}[options.command](options, DATASETS)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="dataset.py", description="Looks at data sets, and at scans that could join one.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=OneLineParser)
    looks = commands.add_parser("show", help="draw some cases with their labels, or what an augmentation does to one")
    checks = commands.add_parser("check", help="read all cases and tell what is wrong or unusual; exit status 1 for an error")
    suggests = commands.add_parser("suggest", help="rank unlabelled scans by what labelling them would teach, with label maps to correct")
    for command in (looks, checks):
        command.add_argument("--dataset", required=True, choices=tuple(DATASETS), help="data set to look at")
        command.add_argument("--data", default="", metavar="FOLDER", help="its folder; without it $MRI_DATA/<dataset> or data/<dataset>")
        command.add_argument("--cases", default="", metavar="FILE", help="table of the cases of the data set folder, as in train.py")
        command.add_argument("--classes", nargs="+", default=(), metavar="NAME", help="its classes, as in train.py")
        command.add_argument("--modality", default="", choices=MODALITIES, help="its kind of scans")
        command.add_argument("--demo", action="store_true", help="draw a phantom in the data set's layout and look at that")
        command.add_argument(
            "--ignore-geometry", action="store_true", help="use labels voxel by voxel, wherever their headers say they lie"
        )
        command.add_argument("--seed", type=int, default=42, help="of the choice or split of cases and of every draw (default %(default)s)")
    names = tuple(AUGMENTATIONS)
    looks.add_argument("--augment", nargs="?", const="strong", default="none", choices=names, help="show its effects (default strong)")
    looks.add_argument("--output", metavar="FILE.png", help="picture to write; without it show_<dataset>[_<augment>].png")
    checks.add_argument("--subjects", default="", metavar="RULE", help="who was scanned, as in train.py")
    checks.add_argument("--output", metavar="DIR", help="folder of check.json, check.csv and check.png; without it check/<dataset>")
    checks.add_argument(
        "--pictures", type=int, default=PICTURES, metavar="INT", help="scans to draw, the odd ones first (default %(default)s)"
    )
    checks.add_argument("--fix", default="", metavar="DIR", help="write a copy there, with headers and types mended that can be")
    suggests.add_argument("run", metavar="RUN", help="the run or bundle whose model is to learn")
    suggests.add_argument("paths", nargs="+", metavar="SCANS", help="files and folders of unlabelled scans, as in predict.py")
    suggests.add_argument("--number", type=int, default=NUMBER, metavar="INT", help="scans to label (default %(default)s)")
    suggests.add_argument("--output", default="suggestions", metavar="DIR", help="new folder for the results (default %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
