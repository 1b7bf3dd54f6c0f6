"""nnU-Net's regions and its label to ignore, as `dataset.json` states them."""

import nibabel as nib
import numpy as np
import pytest
from msd_helpers import make_tiny

from dataset import DATASETS
from modules.data.case import read_case
from modules.data.msd import find_msd
from modules.data.regions import IGNORE, Region
from modules.data.spec import choose_target, load_spec


@pytest.mark.parametrize("nnunet", [False, True])
def test_the_label_to_ignore_is_no_class(tmp_path, nnunet):
    labels = {"background": 0, "a": 1, "Ignore": 2, "ignore": 4}
    root = make_tiny(tmp_path / "a", labels if nnunet else {str(value): name for name, value in labels.items()}, nnunet)
    spec = load_spec(DATASETS["msd"], root)
    # Only this very name is special, as in nnU-Net.
    assert spec.class_names == ("background", "a", "Ignore")
    assert (spec.label_rule.values, spec.label_rule.output_values) == ({0: 0, 1: 1, 2: 2, 4: IGNORE}, (0, 1, 2))
    assert spec.label_rule.ignores
    assert not load_spec(DATASETS["msd"], make_tiny(tmp_path / "b", {"background": 0, "a": 1})).label_rule.ignores
    label = np.zeros((4, 5, 6), np.uint8)
    label[0, 0, :3] = 1, 2, 4
    nib.save(nib.Nifti1Image(label, np.eye(4)), root / "labelsTr" / "a.nii.gz")
    case = find_msd(root)[0]
    np.testing.assert_array_equal(read_case(case, spec)[1][0, 0, :4], [1, 2, IGNORE, 0])
    chosen = choose_target(spec, ["Ignore"])
    np.testing.assert_array_equal(read_case(case, chosen)[1][0, 0, :4], [0, 1, IGNORE, 0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"background": 0, "ignore": 1, "a": 2},
            r"Expected the highest value .* for 'ignore' in .* Received: 1, where another label has 2",
        ),
        ({"background": 0, "a": 1, "ignore": 256}, r"Expected the highest value of all labels, and at most 255, .*Received: 256"),
        ({"background": 0, "a": 1, "ignore": 1}, r"Expected a value of its own for the label 'ignore' in .*: 1 in 'a' too"),
        ({"background": 0, "a": [1, 2], "b": 2, "ignore": 2}, r"Expected a value of its own for the label 'ignore' in .*: 2 in 'a' too"),
        ({"background": 0, "a": [1, 2], "b": 2, "ignore": [3, 4]}, r"Expected one value for the label 'ignore' in .*Received: \[3, 4\]"),
    ],
)
def test_a_label_to_ignore_that_cannot_be_one(tmp_path, labels, message):
    root = make_tiny(tmp_path / "a", labels, regions_class_order=[1, 2])
    with pytest.raises(ValueError, match=rf"^{message}.*Correct the file[^\n]*$"):
        find_msd(root)


TUMOUR = {"background": 0, "whole": [1, 2, 4], "core": [4, 2], "enhancing": 4}


def test_regions_are_read_as_nnunet_writes_them(tmp_path, caplog):
    # The background may stand anywhere. The order of the others is that of painting.
    labels = {name: TUMOUR[name] for name in ("whole", "core", "background", "enhancing")} | {"ignore": 7}
    spec = load_spec(DATASETS["msd"], make_tiny(tmp_path / "a", labels, regions_class_order=[1, 2, 4]))
    assert spec.class_names == ("background", "whole", "core", "enhancing")
    assert spec.regions == (Region((1, 2, 3), 1), Region((2, 3), 2), Region((3,), 3))
    assert (spec.label_rule.values, spec.label_rule.output_values) == ({0: 0, 1: 1, 2: 2, 4: 3, 7: IGNORE}, (0, 1, 2, 4))
    assert (spec.num_classes, spec.num_parts) == (4, 4)
    assert [case.case_id for case in find_msd(tmp_path / "a")] == ["a", "b"]
    assert not caplog.messages
    core = choose_target(spec, ["core"])
    assert (core.class_names, core.regions) == (("background", "core"), ())
    assert (core.label_rule.values, core.label_rule.output_values) == ({0: 0, 1: 0, 2: 1, 4: 1, 7: IGNORE}, (0, 2))
    both = choose_target(spec, ["enhancing", "core"])
    assert (both.label_rule.values[2], both.label_rule.output_values) == (1, (0, 4))


def test_a_region_is_painted_with_the_value_that_the_order_says(tmp_path):
    labels = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2}
    spec = load_spec(DATASETS["msd"], make_tiny(tmp_path / "a", labels, regions_class_order=[1, 3, 2]))
    assert [region.painted for region in spec.regions] == [1, 3, 2]


def test_lists_of_one_value_are_no_regions(tmp_path):
    spec = load_spec(DATASETS["msd"], make_tiny(tmp_path / "a", {"background": [0], "b": [2], "a": [1]}, regions_class_order=[1, 2]))
    assert (spec.class_names, spec.regions, spec.label_rule.values) == (("background", "a", "b"), (), {0: 0, 1: 1, 2: 2})


def test_what_no_label_map_can_say_is_said(tmp_path, caplog):
    root = make_tiny(tmp_path / "a", {"background": 0, "a": [1, 2], "b": [2, 3]}, regions_class_order=[1, 3])
    assert find_msd(root)
    (line,) = caplog.messages
    assert line.endswith("no label map can say of value 2 whether it is 'a'; `regions_class_order` paints another")


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        (TUMOUR, None, r"Expected `regions_class_order`, a list .*'whole', 'core', 'enhancing'\), in .*Received: none. Add it"),
        (TUMOUR, {"a": 1}, r"Expected `regions_class_order`, a list .*Received: \{'a': 1\}"),
        (TUMOUR, [1, 2, "core"], r"Expected `regions_class_order`, a list .*Received: \[1, 2, 'core'\]"),
        (TUMOUR, [1, 2], r"Expected 3 values, one a region .* in `regions_class_order` of .*Received: 2, \[1, 2\]"),
        (TUMOUR, [1, 2, 3], r"Expected values of their own regions .*Received: 3 for 'enhancing', which has \[4\]"),
        (TUMOUR, [2, 1, 4], r"Expected values of their own regions .*Received: 1 for 'core', which has \[2, 4\]"),
        (
            {"background": 0, "enhancing": 3, "whole": [1, 2, 3]},
            [3, 1],
            r"Expected `regions_class_order` of .* to leave something of each .* \[3, 1\], which paints .* all of 'enhancing'",
        ),
        ({"background": 0, "whole": [1, 2], "core": []}, [1, 2], r"Expected `labels` .*Received: \[\] for 'core', which is no list"),
        ({"background": [0, 1], "whole": [1, 2]}, [1], r"Expected the value 0 for the background alone, in .*'background': \[0, 1\]"),
        ({"background": 0, "whole": [0, 1]}, [1], r"Expected the value 0 for the background alone, in .*'whole': \[0, 1\]"),
        ({"whole": [1, 2], "core": 2}, [1, 2], r"Expected a channel, and labels .* from 0 \(background\)"),
    ],
)
def test_regions_that_cannot_be_painted_are_one_line(tmp_path, labels, order, message):
    root = make_tiny(tmp_path / "a", labels, **({} if order is None else {"regions_class_order": order}))
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        load_spec(DATASETS["msd"], root)
