"""Judgement of measured scans, with measures made by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import make_fingerprint, make_spec

from modules.data.case import Case
from modules.data.preprocess import Preprocessing
from modules.run.examine import Examined
from modules.run.findings import ERROR, WARNING, join_scans, judge

CLASSES = ("background", "left", "right")
SPEC = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2}, class_names=CLASSES, mirrored_labels=(("left", "right"),))
SLICES = make_spec(Preprocessing(2), {0: 0, 1: 1})
MEASURES = make_fingerprint([(4, 5, 6)], voxels=(100, 10, 10)).cases[0]


def make(name, subject="", volume=None, *, voxels=(100, 10, 10), split=None, **fields):
    """A case that was read, without a fault unless `fields` say so."""
    case = Case(name, subject or name, (Path(f"{name}.nii"),), Path(f"{name}_seg.nii"), split, volume)
    own = {"intensities": ((0.0, 100.0, 200.0),), "voxel_ml": 0.001, "objects": (1, 1), "sides": (-30.0,), "digest": name}
    return Examined(case, measures=replace(MEASURES, voxels=voxels), **(own | fields))


def find(examined, spec=SPEC, splits=None):
    """The findings about cases, whose splits are their official ones unless told otherwise."""
    known = {(one.case.case_id, one.case.split): one.case.split or "" for one in examined}
    return judge(examined, join_scans(examined, known if splits is None else splits), spec)


GOOD = [make(f"p{number}", split="train") for number in range(9)]


def test_alike_scans_have_no_fault():
    assert find(GOOD) == []


def test_a_refused_case_is_an_error_and_does_not_hide_the_others():
    broken = Examined(GOOD[0].case, "Expected a whole NIfTI file in p0.nii. Received: nothing.")
    small = make("x", voxels=(100, 10, 1))
    findings = find([small, broken, *GOOD[1:]])
    assert [(finding.level, finding.kind, finding.scans) for finding in findings] == [
        (ERROR, "refused", ("p0",)), (WARNING, "outlier", ("x",)),
    ]  # fmt: skip
    assert findings[0].text == broken.refusal


def test_equal_voxels_are_a_leak_between_splits_and_a_copy_within_one():
    train, test = make("a", split="train", digest="d"), make("b", split="test", digest="d")
    [leak] = find([*GOOD, train, test])
    assert (leak.level, leak.kind, leak.scans) == (ERROR, "leak", ("a", "b"))
    assert leak.text == "equal voxel by voxel, so that scores are not of unseen scans: a.nii (train) and b.nii (test). Remove one"
    [copy] = find([*GOOD, train, make("b", split="train", digest="d")])
    assert (copy.level, copy.kind) == (WARNING, "copy")
    assert "although of a and b: a.nii (train) and b.nii (train)" in copy.text
    [copy] = find([*GOOD, train, make("b", "a", split="train", digest="d")])
    assert "and count twice" in copy.text
    # A case that is in no split, such as one without a label, spoils no score.
    assert [finding.level for finding in find([*GOOD, train, make("b", digest="d")])] == [WARNING]


def test_volumes_of_two_subjects_that_look_alike_are_named_with_their_distance():
    one, other = make("a", look=bytes(64), split="train"), make("b", look=bytes([7] + [0] * 63), split="test")
    [finding] = find([*GOOD, one, other])
    assert (finding.level, finding.kind, finding.scans, finding.numbers) == (WARNING, "alike", ("a", "b"), {"distance": 3})
    assert "a.nii (train) and b.nii (test) differ in 3 of 511 bits" in finding.text
    assert find([*GOOD, one, make("b", "a", look=other.look, split="train")]) == []


def test_slices_look_alike_where_three_of_a_scan_do():
    def scan(name, number):
        looks = [bytes([1 << place] * 8 + [255 * (place % 2)] * 12 + [place * 85] * 12) for place in range(4)]
        return [
            make(
                f"{name}_{place}",
                name,
                f"{name}_scan",
                voxels=(100, 10),
                sides=(),
                objects=(1,),
                look=looks[place] if place < number else b"",
            )
            for place in range(4)
        ]

    measures = [replace(one, measures=replace(one.measures, shape=(4, 5), spacing_mm=(1.0, 1.0))) for one in scan("a", 4) + scan("b", 3)]
    [finding] = find(measures, SLICES)
    assert (finding.kind, finding.scans, finding.numbers["distance"]) == ("alike", ("a_scan", "b_scan"), 0)
    assert "2 more pairs of their slices look alike" in finding.text
    two = [replace(one, measures=replace(one.measures, shape=(4, 5), spacing_mm=(1.0, 1.0))) for one in scan("a", 4) + scan("b", 2)]
    assert find(two, SLICES) == []


def test_sides_are_compared_with_most_cases():
    [swapped] = find([*GOOD, make("x", sides=(25.0,))])
    assert (swapped.level, swapped.kind, swapped.scans, swapped.numbers) == (ERROR, "sides", ("x",), {"mm_to_the_right": 25.0})
    assert "'left' lies 25.0 mm to the right of that of 'right', in 9 of 10 cases to the left" in swapped.text
    # Centres within a millimetre and absent classes have no side, and of two cases none is the odd one.
    assert find([*GOOD, make("x", sides=(0.9,)), make("y", sides=(math.nan,))]) == []
    assert find([make("a"), make("b", sides=(25.0,))]) == []


def test_absent_classes():
    lacking = make("x", voxels=(100, 10, 0), split="train")
    [finding] = find([*GOOD, lacking])
    assert (finding.level, finding.kind, finding.scans) == (WARNING, "absent", ("x",))
    assert finding.text == "'right' is in most scans, but not in 1 of 10: x"
    [finding] = find([lacking])
    assert finding.text == "'right' is in no label. Check the values of the label files"
    tested = make("t", split="test")
    [finding] = find([lacking, tested])
    assert finding.text == "'right' is in no label of the training split, so that no network can learn it"
    [finding] = find([*GOOD, make("e", voxels=(120, 0, 0))])
    assert (finding.kind, finding.scans, finding.text) == ("empty", ("e",), "only background in the labels of 1 scan(s): e")


def test_an_unusual_volume_is_named_with_value_median_and_z():
    # The median power of two is 7, and the distances from it have the median 1.
    cases = [make(f"p{number}", voxels=(100, 10, 2**power)) for number, power in enumerate((6, 7, 7, 7, 8, 7, 6, 8))]
    [finding] = find([*cases, make("x", voxels=(100, 10, 2))])
    assert (finding.level, finding.kind, finding.scans) == (WARNING, "outlier", ("x",))
    assert finding.text == "unusual volume of 'right' in x: 0.002 ml, where the median is 0.128 ml (z -4.0)"
    numbers = dict(finding.numbers)
    assert numbers.pop("z") == pytest.approx(-6 / 1.4826)
    assert numbers == {"measure": "volume of 'right'", "unit": "ml", "value": 0.002, "median": 0.128}


def test_slices_are_summed_before_volumes_are_compared():
    def scan(name, sizes):
        own = {"sides": (), "objects": (1,), "voxel_ml": math.nan}
        return [make(f"{name}_{place}", name, name, voxels=(20, size), **own) for place, size in enumerate(sizes)]

    slices = [one for number in range(6) for one in scan(f"s{number}", (1, 98, 1))]
    slices = [replace(one, measures=replace(one.measures, shape=(4, 5), spacing_mm=(1.0, 1.0))) for one in slices]
    # A slice with one pixel is usual at the end of an organ.
    assert find(slices, SLICES) == []
    odd = [replace(one, measures=replace(one.measures, shape=(4, 5), spacing_mm=(1.0, 1.0))) for one in scan("x", (1, 1, 1))]
    [finding] = find([*slices, *odd], SLICES)
    assert finding.text == "unusual volume of 'class 1' in x: 3 pixels, where the median is 100 pixels (most are equal)"
    assert finding.numbers == {"measure": "volume of 'class 1'", "unit": "pixels", "value": 3.0, "median": 100.0, "z": None}


def test_unusual_voxels_and_brightness():
    coarse = make("x")
    coarse = replace(coarse, measures=replace(coarse.measures, spacing_mm=(1.0, 1.0, 5.0)))
    bright = make("y", intensities=((0.0, 30000.0, 60000.0),))
    texts = [finding.text for finding in find([*GOOD, coarse, bright])]
    assert texts == [
        "unusual voxel size feet-head in x: 5 mm, where the median is 1 mm (most are equal)",
        "unusual median intensity of T1 in y: 30,000, where the median is 100 (most are equal)",
    ]
