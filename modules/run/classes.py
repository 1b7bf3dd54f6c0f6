"""Says which classes a training can learn, which ones its validation judges, and which ones its model never finds."""

import logging
from collections.abc import Iterable, Mapping, Sequence

from modules.data.cache import PreparedCase
from modules.data.case import Case
from modules.data.regions import IGNORE, Region
from modules.scoring import Score


def find_classes(cases: Iterable[PreparedCase], regions: Sequence[Region] = ()) -> set[int]:
    """Returns the indices of the classes that any label of the cases holds; with regions, the places of their names."""
    found = {index for case in cases for index in case.classes} - {IGNORE}
    if not regions:
        return found
    return (found & {0}) | {number for number, region in enumerate(regions, start=1) if found & set(region.parts)}


def describe_ignored_cases(splits: Mapping[str, Sequence[Case]], prepared: Mapping[str, Sequence[PreparedCase]]) -> list[str]:
    """Describes the cases of each split in which every voxel is ignored, a sentence a split; nothing where there is none."""
    lines = []
    for split, cases in splits.items():
        names = [case.case_id for case, ready in zip(cases, prepared[split], strict=True) if ready.classes == (IGNORE,)]
        if names:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            lines.append(f"{split}: every voxel of {len(names)} case(s) is ignored, so that they count for nothing: {shown}")
    return lines


def check_judged(validate: Sequence[PreparedCase], dataset: str) -> None:
    """Raises ValueError if every voxel of the validation is ignored: no epoch would be better than another."""
    if validate and all(case.classes == (IGNORE,) for case in validate):
        raise ValueError(
            f"Expected validation labels of '{dataset}' with voxels that are not ignored. Received: none in {len(validate)} case(s). "
            "Choose another `--seed` or a larger `--validate-fraction`."
        )


def check_foreground(train: Sequence[PreparedCase], class_names: Sequence[str], dataset: str, regions: Sequence[Region] = ()) -> None:
    """Raises ValueError if no training label holds any foreground: there is nothing to learn."""
    found = find_classes(train, regions)
    if not found - {0}:
        only = "only background" if found else "only ignored voxels"
        raise ValueError(
            f"Expected {', '.join(class_names[1:])} in the training labels of '{dataset}'. Received: {only} in {len(train)} "
            "cases. Check the label files, the label values and `--target`."
        )


def describe_classes(
    train: Sequence[PreparedCase],
    validate: Sequence[PreparedCase],
    class_names: Sequence[str],
    *,
    regions: Sequence[Region] = (),
    stop_at_dice: float = 0.0,
    keeps_last: bool = False,
) -> list[tuple[str, int]]:
    """Describes the classes that count.

    Args:
        train: The training cases.
        validate: The validation cases.
        class_names: Names of all classes, the background first.
        regions: What each class consists of, where classes overlap.
        stop_at_dice: The validation Dice at which the training stops once every class has it; 0 for never.
        keeps_last: Whether the last epoch is kept, whatever the validation says.

    Returns:
        Sentences with their level in the log. Warnings name each class in no training label, and those in no validation label.
    """
    named = list(enumerate(class_names))[1:]
    learned, judged = find_classes(train, regions), find_classes(validate, regions)
    warnings = [
        f"no training label holds '{name}': the network cannot learn it. Add cases that show it, or choose classes with `--target`"
        for index, name in named
        if index not in learned
    ]
    counted = [name for index, name in named if index in judged]
    missing = [name for index, name in named if index not in judged]
    if missing and stop_at_dice:
        warnings.append(f"`--stop-at-dice` never stops this training: no validation label measures {', '.join(missing)}")
    if not counted:
        decides = (
            "nobody judges the network before the test" if keeps_last else "the least val_loss decides which epoch is kept, not the Dice"
        )
        warnings.append(f"no validation label holds any foreground: {decides}")
        return [(line, logging.WARNING) for line in warnings]
    if missing:
        warnings.append(f"no validation label holds {', '.join(missing)}: nobody judges the network there before the test")
    line = f"the mean validation Dice of {', '.join(counted)} decides which epoch is kept"
    if keeps_last:
        line = f"the last epoch is kept; validation measures {', '.join(counted)}"
    return [(line, logging.INFO), *((warning, logging.WARNING) for warning in warnings)]


def describe_findings(scores: Iterable[Score]) -> list[str]:
    """Describes in warnings what a model never finds in its test cases, although their labels hold it; nothing if it finds all."""
    found: dict[str, int] = {}
    present: dict[str, int] = {}
    cases = set()
    for score in scores:
        cases.add(score.case)
        found[score.class_name] = found.get(score.class_name, 0) + score.voxels
        present[score.class_name] = present.get(score.class_name, 0) + score.reference_voxels
    if not any(present.values()):
        return ["no test label holds any foreground: the scores do not say whether the model finds anything"] if cases else []
    if not any(found.values()):
        return [
            "the model predicts only background in all test cases. Likely causes: too few epochs, a `--learning-rate` too small or too "
            "large, rare classes (try `--loss dice_ce`, `--class-weights balanced` or `--mode patch`), labels that do not fit their images "
            "(look with `python dataset.py show`), or a validation set without these classes"
        ]
    never = [name for name, voxels in present.items() if voxels and not found[name]]
    return [f"the model never finds {', '.join(never)} in the test cases, although their labels hold it"] if never else []
