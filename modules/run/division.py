"""Finds the cases of a run, divides them into training, validation and test, and gives an account of all files."""

from collections.abc import Mapping, Sequence

from modules.data.case import Case
from modules.data.inventory import describe_files, describe_ignored, describe_shared_labels
from modules.data.spec import DatasetSpec, find_cases, load_spec
from modules.data.splits import split_cases, split_folds
from modules.data.subjects import assign_subjects, find_related
from modules.run.settings import Settings


def find_labelled(settings: Settings, spec: DatasetSpec) -> tuple[DatasetSpec, list[Case]]:
    """Finds all cases of a data set with their subjects; also returns `spec` with what only its folder knows.

    Raises:
        FileNotFoundError, ValueError: As `modules.data.spec.load_spec` and `find_cases` do.
    """
    root = settings.data_folder()
    spec = load_spec(spec, root, settings.tell_wishes())
    return spec, assign_subjects(find_cases(spec, root, ignore_geometry=settings.ignore_geometry), settings.subjects)


def divide(cases: Sequence[Case], settings: Settings) -> tuple[dict[str, list[Case]], list[str]]:
    """Divides cases by subject.

    Returns:
        The cases by split, and remarks in sentences: the files found, used and left out, the splits, and subjects that seem to be one.

    Raises:
        ValueError: If the subjects are too few; see `split_cases` and `split_folds`.
    """
    fractions = settings.validate_fraction, settings.test_fraction
    if settings.fold is None:
        splits, remarks = split_cases(cases, fractions, settings.seed)
    else:
        splits, remarks = split_folds(cases, settings.folds, settings.fold, fractions[0], settings.seed)
    return splits, [*describe_account(splits, settings), *remarks, *describe_related(splits, settings)]


def describe_account(splits: Mapping[str, Sequence[Case]], settings: Settings) -> list[str]:
    """Describes the files found, used and left out, and the labels that are used wherever they lie."""
    ignored = describe_ignored(case for members in splits.values() for case in members)
    if settings.cases:
        # The table says what is used, and its folder may hold anything.
        files = describe_shared_labels(case for members in splits.values() for case in members)
    else:
        files = describe_files(settings.data_folder(), splits)
    return [*files, *ignored]


def describe_related(splits: Mapping[str, Sequence[Case]], settings: Settings) -> list[str]:
    """Describes subjects that seem to be one. Those that the user gave are known, and need no guess."""
    return [] if settings.subjects else find_related(splits)
