"""The preprocessing that follows from the scans: margins, voxel sizes and intensities, by hand."""

from dataclasses import replace

import pytest
from helpers import make_fingerprint, make_spec

from modules.data.fingerprint import Fingerprint
from modules.data.preprocess import Preprocessing
from modules.run.preparation import choose_preprocessing
from modules.run.settings import Settings

OWN = Preprocessing(3)
ALIKE = make_fingerprint([(100, 100, 100)] * 3)


def _scan(*depths_mm, shape=(100, 100, 20)):
    """The fingerprint of cases of 1x1 mm whose slices lie so many mm apart."""
    return Fingerprint(tuple(case for depth in depths_mm for case in make_fingerprint([shape], (1.0, 1.0, float(depth))).cases))


def _choose(fingerprint=ALIKE, channels=("T1",), own=OWN, **settings):
    """The preprocessing and the reasons."""
    reasons = {"spacing": "", "window": ""}
    spec = make_spec(own, {0: 0, 1: 1}, channels=channels)
    return choose_preprocessing(Settings("d", **settings), spec, own, fingerprint, reasons), reasons


@pytest.mark.parametrize(
    ("fingerprint", "expected", "reason"),
    [
        # The median is 3.15, from which both differ by 5 %.
        (_scan(3.0, 3.3), (), "no resampling: voxels differ by 5 % at most"),
        # The mean of the middle two.
        (_scan(2, 2, 2.4, 3), (1, 1, 2.2), "the median"),
        # Slices are more than 3 times as far apart as their voxels are wide, and fewer than a third: 4 + 0.1 * 4 * (5 - 4).
        (_scan(4, 5, 6, 7, 8), (1, 1, 4.4), "the median, the 10th percentile along axis 2"),
        (_scan(4, 5, 6, 7, 8, shape=(100, 100, 34)), (1, 1, 6), "the median"),
        (_scan(2, 2.5, 3, 3.5, 4), (1, 1, 3), "the median"),
        # Never finer than the other axes.
        (_scan(0.5, *[4] * 8), (1, 1, 3.3), "the median, the 10th percentile along axis 2"),
        (_scan(*[0.5] * 2, *[4] * 8), (1, 1, 1), "the median, the 10th percentile along axis 2"),
    ],
)
def test_voxel_sizes_by_hand(fingerprint, expected, reason):
    preprocessing, reasons = _choose(fingerprint)
    assert (preprocessing.spacing_mm, reasons["spacing"]) == (pytest.approx(expected), reason)


def test_margins_that_are_cut_off_are_no_voxels():
    # 32 slices are fewer than a third of 100 voxels, but not of the 80 that are left.
    scans = _scan(4, 5, 6, 7, 8, shape=(100, 100, 32))
    assert _choose(scans)[0].spacing_mm == (1, 1, pytest.approx(4.4))
    cut = Fingerprint(tuple(replace(case, box=((0, 80), (20, 100), (0, 32))) for case in scans.cases))
    assert _choose(cut)[0].spacing_mm == (1, 1, 6)
    assert _choose(cut, crop="none")[0].spacing_mm == (1, 1, pytest.approx(4.4))


def test_the_user_decides_about_resampling():
    preprocessing, reasons = _choose(_scan(4, 5, 6, 7, 8), resample="none")
    assert (preprocessing.spacing_mm, reasons["spacing"]) == ((), "set")
    preprocessing, reasons = _choose(_scan(3.0, 3.3, shape=(100, 100, 34)), resample="median")
    assert (preprocessing.spacing_mm, reasons["spacing"]) == ((1.0, 1.0, 3.15), "the median")
    # A size of the user's or the data set's own stays, and a whole volume is brought to its window.
    assert _choose(_scan(4, 5, 6), own=Preprocessing(3, spacing_mm=(2.0, 2.0, 2.0)))[0].spacing_mm == (2.0, 2.0, 2.0)
    assert _choose(_scan(4, 5, 6), mode="volume")[0].spacing_mm == ()


@pytest.mark.parametrize(("end", "cropped"), [(75, True), (76, False)])
def test_margins_of_a_quarter_are_cut_off(end, cropped):
    scans = make_fingerprint([(100, 100, 100)] * 3, box=((0, end), (0, 100), (0, 100)))
    preprocessing, reasons = _choose(scans)
    assert preprocessing.foreground_crop == cropped
    assert reasons["window"] == ("; dark margins of 25 % are cut off" if cropped else "")
    assert not _choose(scans, crop="none")[0].foreground_crop
    assert _choose(scans, own=Preprocessing(3, foreground_crop=True), crop="own")[0].foreground_crop


def test_hounsfield_units_are_clipped_by_the_training_foreground():
    preprocessing, reasons = _choose(channels=("CT",))
    # The pooled foreground has its ends at 0 and 6, the mean 3 and the deviation 1.
    expected = Preprocessing(3, intensity="ct", clip=(0.0, 6.0), mean=3.0, std=1.0)
    assert (preprocessing, reasons["intensity"]) == (expected, "Hounsfield units of the training foreground")
    assert _choose(intensity="ct")[0] == expected
    constant = make_fingerprint([(9, 9, 9)], quantiles=((5.0,) * 7,), means=(5.0,), deviations=(0.0,))
    assert _choose(constant, channels=("CT",))[0] == Preprocessing(3, intensity="ct", mean=5.0, std=1.0)
    # Those that a data set states stay.
    own = Preprocessing(3, intensity="ct", clip=(-100.0, 200.0), mean=50.0, std=40.0)
    for kind in ("own", "ct", ""):
        assert _choose(channels=("CT",), own=own, intensity=kind)[0] == own


def test_all_other_intensities_are_z_scored_unless_the_user_says_otherwise():
    for channels in (("T1",), ("CT", "CT"), ("CT", "PET"), ()):
        preprocessing, reasons = _choose(channels=channels)
        assert (preprocessing.intensity, reasons["intensity"]) == ("zscore", "of each scan over what is not empty")
    fixed = Preprocessing(3, intensity="fixed", scale=255.0, mean=0.1)
    assert _choose(own=fixed, intensity="own")[0] == fixed
    assert _choose(own=fixed)[0] == replace(fixed, intensity="zscore")
    assert _choose(own=fixed, intensity="min_max")[1]["intensity"] == "set"
    with pytest.raises(ValueError, match="Expected one channel for `intensity` 'ct'. Received: 2. Choose 'zscore'."):
        _choose(channels=("CT", "PET"), intensity="ct")
