"""What several tests make by hand."""

from pathlib import Path

from modules.data.case import LabelRule
from modules.data.spec import DatasetSpec


def make_spec(preprocessing, values, channels=("T1",), **fields):
    """A data set called "d" that nobody can find, of as many classes as `values` has."""
    names = ("background", *(f"class {index}" for index in range(1, max(values.values()) + 1)))
    return DatasetSpec(
        "d", "", "", "", "", channels, names, LabelRule(values), preprocessing, find=lambda root: [], write_phantom=Path, **fields
    )
