"""Regions by hand: what is painted, what a picture shows, and which ones cannot be used."""

import numpy as np
import pytest
from helpers import make_spec

from modules.data.cache import prepare_cases
from modules.data.case import Case
from modules.data.preprocess import Preprocessing
from modules.data.regions import IGNORE, Region, count_parts, find_fault, find_mistaken, list_parts, name_shown, paint_regions, to_shown

# A whole tumour of oedema (1), core (2) and enhancing tumour (3), as nnU-Net writes BraTS.
TUMOUR = (Region((1, 2, 3), 1), Region((2, 3), 2), Region((3,), 3))
NAMES = ("background", "whole", "core", "enhancing")


def test_later_regions_are_painted_over_earlier_ones_above_a_half():
    probabilities = np.array(
        [
            [0.5, 0.5, 0.5],
            [0.9, 0.2, 0.1],
            [0.6, 0.7, 0.4],
            # The network may contradict itself. The last region wins, however sure the others are.
            [0.1, 0.2, 0.51],
            [0.99, 0.99, 0.51],
        ]
    )
    np.testing.assert_array_equal(paint_regions(probabilities, TUMOUR), [0, 1, 2, 3, 3])
    order = (Region((1, 2), 1), Region((3,), 3), Region((2,), 2))
    np.testing.assert_array_equal(paint_regions(probabilities, order), [0, 1, 3, 2, 2])


def test_a_picture_shows_the_last_region_and_says_so():
    label = np.array([[0, 1, 2, 3, IGNORE]], np.uint8)
    np.testing.assert_array_equal(to_shown(label, TUMOUR), [[0, 1, 2, 3, 0]])
    assert name_shown(NAMES, TUMOUR) == ["background", "whole without core", "core without enhancing", "enhancing"]
    # Kidney, both masses, and the tumour; the cyst is what remains of the masses.
    kidney = (Region((1, 2, 3), 1), Region((2, 3), 3), Region((2,), 2))
    np.testing.assert_array_equal(to_shown(label, kidney, ignored=4), [[0, 1, 3, 2, 4]])
    apart = (Region((1, 2, 3), 1), Region((2,), 2), Region((3,), 3))
    assert name_shown(NAMES, apart)[1] == "whole without core, enhancing"
    np.testing.assert_array_equal(to_shown(label, ()), [[0, 1, 2, 3, 0]])
    assert name_shown(NAMES, ()) == list(NAMES)


def test_without_regions_each_class_is_its_own_part():
    assert list_parts(NAMES, ()) == [(1,), (2,), (3,)]
    assert list_parts(NAMES, TUMOUR) == [(1, 2, 3), (2, 3), (3,)]
    assert (count_parts(NAMES, ()), count_parts(NAMES, TUMOUR), count_parts(NAMES[:2], (Region((1, 2), 1),))) == (4, 4, 3)


@pytest.mark.parametrize(
    ("regions", "expected", "received"),
    [
        (TUMOUR[:2], "3 regions, one for each class but the background,", 2),
        ((*TUMOUR[:2], Region((), 3)), "distinct ascending parts", ()),
        ((*TUMOUR[:2], Region((3, 2), 3)), "distinct ascending parts", (3, 2)),
        ((*TUMOUR[:2], Region((0, 3), 3)), "distinct ascending parts", (0, 3)),
        ((*TUMOUR[:2], Region((3,), 1)), r"a part of (3,) that the region is painted with", 1),
        ((Region((1, 2), 1), *TUMOUR[1:2], Region((2,), 2)), "regions that hold each part from 1 to 4", [1, 2, 3]),
        ((*TUMOUR[:2], Region((3, 4), 4)), "", None),
        ((Region((3,), 3), Region((2, 3), 2), Region((1, 2, 3, 4), 1)), "regions that later ones do not hide", "whole"),
    ],
)
def test_the_first_fault_is_found(regions, expected, received):
    fault = find_fault(regions, NAMES, 5)
    assert fault is None if not expected else (fault[0].startswith(expected), fault[1]) == (True, received)
    assert find_fault((), NAMES, 5) is None


def test_an_entry_of_the_catalogue_states_regions_and_what_to_ignore():
    fields = {"class_names": ("background", "whole", "core"), "regions": (Region((1, 2), 1), Region((2,), 2))}
    spec = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2, 3: 2, 9: IGNORE}, **fields)
    assert (spec.num_classes, spec.num_parts, spec.label_rule.output_values) == (3, 3, (0, 1, 2))
    assert make_spec(Preprocessing(3), {0: 0, 1: 1, 9: IGNORE}, class_names=("background", "a")).num_parts == 2
    with pytest.raises(ValueError, match=r"^Expected 2 regions, one for each class .* in `regions` of 'd'. Received: 1\.$"):
        make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2}, **fields | {"regions": (Region((1, 2), 1),)})
    with pytest.raises(ValueError, match=r"^Expected no `mirrored_labels` beside the `regions` of 'd'. Received: \(\('whole', 'core'\),\)"):
        make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2}, **fields, mirrored_labels=(("whole", "core"),))


def test_parts_that_no_label_map_can_tell_are_found():
    assert find_mistaken(TUMOUR) == []
    # Part 2 is in both, but is painted as 3, which is in the second alone.
    assert find_mistaken((Region((1, 2), 1), Region((2, 3), 3))) == [(0, 2)]


def test_ignored_voxels_are_no_class_and_no_point(tmp_path, write_nifti):
    """They are in no count, and a case of one intensity that holds nothing else is no contradiction."""
    image, label = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32), np.zeros((6, 6, 6), np.uint8)
    label[0], label[1, 0, :2], label[2] = 1, 2, 9
    spec = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2, 9: IGNORE}, class_names=("background", "a", "b"))
    flat = np.zeros_like(image)
    cases = [
        Case(name, name, (write_nifti(f"{name}.nii.gz", array),), write_nifti(f"{name}_seg.nii.gz", classes))
        for name, array, classes in (("a", image, label), ("b", flat, np.full_like(label, 9)), ("c", flat, label % 9 // 2))
    ]
    first, second = prepare_cases(cases[:2], spec, spec.preprocessing, tmp_path / "cache")
    assert (first.classes, first.counts, first.count_classes(3).tolist()) == ((0, 1, 2, IGNORE), (142, 36, 2), [142, 36, 2])
    assert (second.classes, second.counts, second.count_classes(3).tolist()) == ((IGNORE,), (0, 0, 0), [0, 0, 0])
    assert (first.read((0, 0, 0), (6, 6, 6))[1] == np.where(label == 9, IGNORE, label)).all()
    with pytest.raises(ValueError, match=r"Expected an image that shows what its label holds.*c.nii.gz"):
        prepare_cases(cases[2:], spec, spec.preprocessing, tmp_path / "cache")
