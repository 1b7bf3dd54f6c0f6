"""Cross-validation: which subjects each fold trains on, holds out and tests."""

from collections.abc import Sequence

import numpy as np

from modules.volume import Case


def split_folds(
    cases: Sequence[Case], folds: int, fold: int, validate_fraction: float = 0.1, seed: int = 42
) -> tuple[dict[str, list[Case]], list[str]]:
    """Divides cases for one fold of a cross-validation, so that over all folds every labelled subject is tested exactly once.

    The subjects, sorted, are drawn into a circle and cut into `folds` parts whose sizes differ by one at most; part `fold` is the test
    set, the subjects that follow it on the circle are held out for validation, the others train. As long as validation is no larger
    than a part, nobody is held out for it twice. All this follows from the subjects' identifiers and the seed alone, not from the
    order of `cases`. An official split is ignored, and cases without a label are left out.

    Args:
        cases: All cases, of any split.
        folds: How many parts, 2 or more.
        fold: Which of them is tested, from 0.
        validate_fraction: Of all labelled subjects, for validation, which gets at least one.
        seed: Which subjects are in which part. It has to be the same for all folds.

    Returns:
        `{"train": [...], "validate": [...], "test": [...]}`, each in the order of `cases`, and what there is to tell about it, in
        sentences.

    Raises:
        ValueError: If there is no such fold, fewer labelled subjects than folds, or nobody left to train on.
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
