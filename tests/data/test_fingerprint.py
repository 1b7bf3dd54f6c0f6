"""The fingerprint: what is measured of a case, what follows from all of them, and what the cache keeps of it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import make_fingerprint, make_spec

from modules.data import fingerprint as module
from modules.data.case import Case
from modules.data.fingerprint import Fingerprint, measure, measure_case
from modules.data.preprocess import Preprocessing

SPEC = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2})
# The file's axes run to the left in steps of 2 mm, to the head in steps of 3 mm, and to the front in steps of 1 mm.
AFFINE = np.array([[-2.0, 0, 0, 0], [0, 0, 1, 0], [0, 3, 0, 0], [0, 0, 0, 1]])


@pytest.fixture
def draw_case(write_nifti):
    """Draws a case of 4x3x5 voxels, of which 2x2x2 are bright and three have a class."""

    def draw(name="a", foreground=True):
        image, label = np.zeros((4, 3, 5), np.float32), np.zeros((4, 3, 5), np.uint8)
        image[:2, :2, 2:4] = 1
        image[0, 0, 2], image[0, 0, 3], image[1, 1, 2] = 10, 30, 20
        label[0, 0, 2], label[0, 0, 3], label[1, 1, 2] = (1, 1, 2) if foreground else (0, 0, 0)
        return Case(name, name, (write_nifti(f"{name}.nii.gz", image, AFFINE),), write_nifti(f"{name}_seg.nii.gz", label, AFFINE))

    return draw


def test_a_case_by_hand(draw_case):
    case = measure_case(draw_case(), SPEC)
    # Canonical axes run to the right, the front and the head. The file's first axis is flipped, so its voxels 0 and 1 become 3 and 2.
    assert (case.orientation, case.shape, case.spacing_mm) == ("LSA", (4, 5, 3), (2.0, 1.0, 3.0))
    assert case.box == ((2, 4), (2, 4), (0, 2))
    assert case.empty == pytest.approx(1 - 8 / 60)
    assert case.voxels == (57, 2, 1)
    # The foreground is 10, 20 and 30.
    assert case.quantiles == ((10.1, 11.0, 15.0, 20.0, 25.0, 29.0, 29.9),)
    assert (case.means, case.deviations) == ((20.0,), (pytest.approx(math.sqrt(200 / 3)),))


def test_a_case_without_foreground_is_measured_as_a_whole(draw_case):
    case = measure_case(draw_case(foreground=False), SPEC)
    # 52 of 60 voxels are 0, five are 1, and three are 10, 20 and 30.
    assert (case.voxels, case.means, case.quantiles[0][3]) == ((60, 0, 0), (pytest.approx(65 / 60),), 0.0)


def test_a_slice_of_several_channels(write_picture):
    image, label = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    image[1, 2], image[2, 3], label[1, 2] = (9, 0, 4), (0, 5, 0), 1
    spec = make_spec(Preprocessing(2), {0: 0, 1: 1}, channels=("a", "b", "c"))
    case = measure_case(Case("a", "a", (write_picture("a.png", image),), write_picture("b.png", label)), spec)
    # What is bright in any channel is not empty.
    assert (case.orientation, case.shape, case.spacing_mm, case.box) == ("", (4, 6), (1.0, 1.0), ((1, 3), (2, 4)))
    assert (case.empty, case.means, case.deviations) == (1 - 2 / 24, (9.0, 0.0, 4.0), (0.0, 0.0, 0.0))


def test_the_pool_of_intensities_by_hand():
    cases = make_fingerprint([(2, 2)] * 2).cases
    pooled = Fingerprint((replace(cases[0], means=(2.0,), deviations=(1.0,)), replace(cases[1], means=(4.0,), deviations=(3.0,))))
    # The mean of the variances is 5, and the variance of the means 1.
    assert pooled.intensities == ((0.0, 6.0, 3.0, pytest.approx(math.sqrt(6))),)
    # A thousandth of the voxels is less than the half of a hundredth beyond the least percentile.
    many = make_fingerprint([(2, 2)] * 999).cases
    assert Fingerprint((*many, replace(cases[0], quantiles=((-1000.0,) * 7,)))).intensities[0][:2] == (0.0, 6.0)
    few = make_fingerprint([(2, 2)] * 9).cases
    assert Fingerprint((*few, replace(cases[0], quantiles=((-1000.0,) * 7,)))).intensities[0][0] == -1000.0


def test_cases_without_foreground_say_nothing_of_its_intensities():
    cases = make_fingerprint([(2, 2)] * 9).cases
    # Nobody drew anything in these two, which are measured as a whole: mostly air.
    air = [replace(cases[0], case_id=f"air_{n}", voxels=(130, 0), quantiles=((-1000.0,) * 7,), means=(-900.0,)) for n in range(2)]
    mixed = Fingerprint((*cases, *air))
    assert mixed.intensities == Fingerprint(cases).intensities
    assert mixed.find_outliers() == []
    # Where no case holds foreground, the whole images are all there is.
    assert Fingerprint(tuple(air)).intensities[0][:3] == (-1000.0, -1000.0, -900.0)


def test_the_pool_in_its_file_by_hand():
    cases = make_fingerprint([(10, 20), (30, 20), (20, 50)], voxels=(100, 10)).cases
    content = Fingerprint((*cases[:2], replace(cases[2], voxels=(100, 0), empty=0.5))).to_json(("background", "a"))
    pooled = content["pooled"]
    assert pooled["shape"] == {"least": [10, 20], "median": [20, 20], "most": [30, 50]}
    assert (pooled["cases"], pooled["empty"], pooled["orientations"]) == (3, 0.0, ["RAS"])
    assert pooled["classes"] == {"background": {"voxels": 300, "cases": 3}, "a": {"voxels": 20, "cases": 2}}
    assert pooled["intensities"] == [{"low": 0.0, "high": 6.0, "mean": 3.0, "deviation": 1.0}]
    assert [case["case_id"] for case in content["cases"]] == ["case_0", "case_1", "case_2"]


@pytest.mark.parametrize(
    ("voxels", "box", "share"),
    [
        # 100 voxels, of which 10 have a class.
        ((90, 10), 10, 0.1),
        # Within a box of 50 voxels they are a fifth.
        ((90, 10), 5, 0.2),
        # Nobody judged 80 of them: a fifth of the judged ones has a class.
        ((16, 4), 10, 0.2),
        # Two regions of 10 and 6 voxels share 6.
        ((90, 10, 6), 10, 0.1),
        ((0, 0), 10, 0.0),
    ],
)
def test_the_share_of_foreground_by_hand(voxels, box, share):
    assert make_fingerprint([(10, 10)], voxels=voxels, box=((0, box), (0, 10))).foreground == pytest.approx(share)


def test_grids_after_crop_and_resampling():
    scans = make_fingerprint([(40, 50, 30)], (1.0, 1.0, 3.0), box=((10, 30), (0, 50), (5, 25)))
    assert scans.list_grids(Preprocessing(3)) == ((40, 50, 30),)
    assert scans.list_grids(Preprocessing(3, foreground_crop=True)) == ((20, 50, 20),)
    assert scans.list_grids(Preprocessing(3, foreground_crop=True, spacing_mm=(2.0, 1.0, 1.0))) == ((10, 50, 60),)


def test_unusual_cases_are_named():
    cases = make_fingerprint([(40, 50, 33)] * 20, voxels=(100, 10)).cases
    assert Fingerprint(cases).find_outliers() == []
    # What differs by less than a half is not unusual, however alike the others are.
    assert Fingerprint((*cases, replace(cases[0], spacing_mm=(1.0, 1.0, 1.4)))).find_outliers() == []
    coarse = replace(cases[0], case_id="x", spacing_mm=(1.0, 1.0, 3.0))
    assert Fingerprint((*cases, coarse)).find_outliers() == ["unusual voxels: x 1x1x3; the median case has 1x1x1 mm"]
    bright = [replace(cases[0], case_id=f"b{number}", means=(30.0 + number,)) for number in range(7)]
    assert Fingerprint((*cases, *bright)).find_outliers() == [
        "unusual mean intensities: b6 36, b5 35, b4 34, b3 33, b2 32, and 2 more; the median case has 3"
    ]
    # The volumes of 10 and 1 voxels of 3 cubic millimetres.
    coarse = [replace(case, spacing_mm=(1.0, 1.0, 3.0)) for case in cases]
    lost = replace(coarse[0], case_id="z", voxels=(109, 1))
    assert Fingerprint((*coarse, lost)).find_outliers() == []
    assert Fingerprint((*coarse, lost)).find_outliers(("background", "liver")) == [
        "unusual volumes of liver: z 0.003; the median case has 0.03 ml"
    ]
    # At its end an organ fills few pixels of a slice.
    slices = [replace(case, shape=(40, 50), spacing_mm=(1.0, 1.0)) for case in (*coarse, lost)]
    assert Fingerprint(tuple(slices)).find_outliers(("background", "liver")) == []
    large = replace(cases[0], case_id="y", shape=(40, 150, 33))
    assert Fingerprint((*cases, large)).find_outliers() == ["unusual grids: y 40x150x33; the median case has 40x50x33 voxels"]


def test_what_was_measured_is_found_again_until_a_file_changes(draw_case, tmp_path, monkeypatch, caplog):
    cases, cache = [draw_case(name) for name in "ab"], tmp_path / "cache"
    first = measure(cases, SPEC, cache)
    assert [case.case_id for case in first.cases] == ["a", "b"]
    measured = []
    monkeypatch.setattr(module, "measure_case", lambda case, spec: measured.append(case.case_id) or measure_case(case, spec))
    assert measure(cases, SPEC, cache) == first
    assert measured == []
    # The classes of a target are others.
    assert measure(cases, replace(SPEC, label_rule=replace(SPEC.label_rule, values={0: 0, 1: 1, 2: 1})), cache) != first
    assert sorted(measured) == ["a", "b"]
    measured.clear()
    changed = [cases[0], draw_case("b", foreground=False)]
    assert measure(changed, SPEC, cache).cases[0] == first.cases[0]
    assert measured == ["b"]
    measured.clear()
    for text in ("{", "[]", '{"a": {}}', '{"a": 1}'):
        (cache / "d-fingerprint.json").write_text(text)
        assert measure(cases[:1], SPEC, cache).cases == first.cases[:1]
        assert f"cache: {cache / 'd-fingerprint.json'} is damaged; the cases are measured anew" in caplog.text
        caplog.clear()
    assert measured == ["a"] * 4
    assert json.loads((cache / "d-fingerprint.json").read_text())


def test_a_wrong_file_is_named(draw_case, tmp_path):
    case = draw_case()
    case.image_paths[0].write_bytes(case.image_paths[0].read_bytes()[:60])
    with pytest.raises(ValueError, match=r"a\.nii\.gz"):
        measure([case], SPEC, tmp_path)
    case.image_paths[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.nii\.gz"):
        measure([case], SPEC, tmp_path)
    assert not list(tmp_path.glob("*.json"))
