"""Splits by subject: no subject is in two of training, validation and test, nor tested twice in a cross-validation."""

from collections.abc import Mapping, Sequence

import numpy as np

from modules.data.case import Case

SPLITS = ("train", "validate", "test")


def split_cases(
    cases: Sequence[Case], fractions: tuple[float, float] = (0.1, 0.1), seed: int = 42
) -> tuple[dict[str, list[Case]], list[str]]:
    """Divides cases into train, validate and test so that no subject is in two of them.

    Cases without a label are left out. An official split wins. Where it lacks a validation or a test set, subjects of its training
    set are held out. Where it has a subject in two sets, test comes before validate, and validate before train. The subject's cases
    in the other set are left out.

    Args:
        cases: All cases.
        fractions: Shares of all subjects, for validation and for test. Each set that is drawn gets at least one subject.
        seed: Seed of the draw of subjects.

    Returns:
        `{"train": [...], "validate": [...], "test": [...]}`, and remarks on the split, in sentences.

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
                f"Expected more than {wanted} subject(s) to hold {wanted} out for {name}. Received: {len(candidates)} for training. "
                "Add subjects, or tell them apart with `--subjects`."
            )
        held_out = set(np.random.default_rng(seed).permutation(candidates)[:wanted].tolist())
        splits[name] = [case for case in splits["train"] if case.subject_id in held_out]
        splits["train"] = [case for case in splits["train"] if case.subject_id not in held_out]
        remarks.append(f"{wanted} of {len(candidates)} training subjects held out for {name}, drawn with seed {seed}.")
    if not splits["train"]:
        raise ValueError("Expected cases to train on. Received: none that are not of a validation or test subject. Add a training set.")
    return splits, remarks


def describe_splits(splits: Mapping[str, Sequence[Case]]) -> list[str]:
    """Writes one line for each split: its name, and its number of subjects, scans and, for slices, files."""
    lines = []
    for name, cases in splits.items():
        scans = len({case.volume_id or case.case_id for case in cases})
        slices = f" {len(cases):>7} slices" if len(cases) > scans else ""
        lines.append(f"{name:<9}{len(_subjects(cases)):>5} subjects {scans:>5} scans{slices}")
    return lines


def _subjects(cases: Sequence[Case]) -> set[str]:
    return {case.subject_id for case in cases}


def split_folds(
    cases: Sequence[Case], folds: int, fold: int, validate_fraction: float = 0.1, seed: int = 42
) -> tuple[dict[str, list[Case]], list[str]]:
    """Divides cases for one fold of a cross-validation. Over all folds every labelled subject is tested exactly once.

    The sorted subjects are drawn into a circle and cut into `folds` parts whose sizes differ by one at most. Part `fold` is the test
    set. The subjects that follow it on the circle are held out for validation, and the others train. As long as validation is no
    larger than a part, nobody is held out for it twice.

    All this follows from the subjects' identifiers and the seed alone, not from the order of `cases`. An official split is ignored,
    and cases without a label are left out.

    Args:
        cases: All cases, of any split.
        folds: Number of parts, 2 or more.
        fold: Number of the part that is tested, from 0.
        validate_fraction: Share of all labelled subjects for validation, which gets at least one.
        seed: Seed of the draw into parts. It has to be the same for all folds.

    Returns:
        `{"train": [...], "validate": [...], "test": [...]}`, each in the order of `cases`, and remarks on the split, in sentences.

    Raises:
        ValueError: If there is no such fold, if there are fewer labelled subjects than folds, or if nobody is left to train on.
    """
    if folds < 2:
        raise ValueError(f"Expected `folds` of 2 or more. Received: {folds}. Choose more, or leave it out to train once.")
    if not 0 <= fold < folds:
        raise ValueError(f"Expected `fold` from 0 to {folds - 1}. Received: {fold}. The first fold is 0.")
    remarks = []
    unlabelled = sum(case.label_path is None for case in cases)
    if unlabelled:
        remarks.append(f"{unlabelled} case(s) without a label are left out.")
        cases = [case for case in cases if case.label_path is not None]
    known: dict[str, Case] = {}
    for case in cases:
        if (other := known.setdefault(case.case_id, case)) is not case:
            files = f"{other.image_paths[0]} and {case.image_paths[0]}" if case.image_paths else case.case_id
            raise ValueError(f"Expected each case once for a cross-validation. Received: {case.case_id} twice, {files}. Remove one.")
    subjects = sorted({case.subject_id for case in cases})
    if len(subjects) < folds:
        raise ValueError(
            f"Expected at least one labelled subject for each of {folds} folds. Received: {len(subjects)}. Choose fewer folds."
        )
    if any(case.split for case in cases):
        remarks.append(f"The official split is ignored: its {len(subjects)} subjects are divided into {folds} folds.")
    drawn = np.random.default_rng(seed).permutation(subjects)
    parts = [part.tolist() for part in np.array_split(drawn, folds)]
    test = parts[fold]
    rest = [subject for part in parts[fold + 1 :] + parts[:fold] for subject in part]
    wanted = max(1, round(validate_fraction * len(subjects)))
    if wanted >= len(rest):
        raise ValueError(
            f"Expected more than {wanted} subject(s) beside the test to hold {wanted} out for validate. Received: {len(rest)}. "
            "Add subjects, or choose more folds or a smaller `validate_fraction`."
        )
    remarks.append(
        f"fold {fold} of {folds}, from 0: {len(test)} of {len(subjects)} subjects are tested, {wanted} of the other {len(rest)} "
        f"held out for validate, drawn with seed {seed}."
    )
    names = dict.fromkeys(rest[wanted:], "train") | dict.fromkeys(rest[:wanted], "validate") | dict.fromkeys(test, "test")
    splits: dict[str, list[Case]] = {"train": [], "validate": [], "test": []}
    for case in cases:
        splits[names[case.subject_id]].append(case)
    return splits, remarks
