"""Tests of the ranges that training cases measure, and of scans that leave them."""

import dataclasses
import json

import numpy as np
import pytest

from dataset import DATASETS
from modules.data.case import Volume, read_volume
from modules.data.preprocess import Preprocessing
from modules.data.ranges import TrainingRanges, measure_scan
from modules.data.spec import find_cases, load_spec

# The 1st percentile is 1, the 99th 99, and the quartiles are 25, 50 and 75: at 24/98, 49/98 and 74/98 of the spread.
RAMP = np.arange(101, dtype=np.float32)
# Its quartiles are 6.25, 25 and 56.25, its spread 98.01 - 0.01.
SQUARE = RAMP**2 / 100


def _scan(values=RAMP, spacing=(1.0, 1.0, 1.0), copies=1, axes=(0, 1, 2)):
    """A scan of `101 x 2 x copies` voxels in canonical orientation, or with its axes in another order."""
    array = np.broadcast_to(values[:, None, None, None], (len(values), 2, copies, 1)).transpose(*axes, 3)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)[:, axes]
    return Volume(array, affine, tuple(spacing[axis] for axis in axes))


def _pool(*scans, **options):
    preprocessing = Preprocessing(3, **options)
    return TrainingRanges.pool([measure_scan(scan, preprocessing.measure(scan)) for scan in scans], 3), preprocessing


def _find(ranges, scan, preprocessing, across=None, channels=("T1",)):
    return ranges.find_departures(scan, preprocessing, channels, across)


def test_two_cases_by_hand():
    ranges, _ = _pool(_scan(spacing=(1.0, 1.0, 3.0)), _scan(SQUARE, spacing=(2.0, 1.0, 3.0), axes=(2, 0, 1)))
    assert ranges.spacing_mm == ((1, 2), (1, 1), (3, 3))
    assert ranges.extent_mm == ((101, 202), (2, 2), (3, 3))
    low, middle, high = ranges.quartiles[0]
    assert low == pytest.approx((6.24 / 98, 24 / 98), rel=1e-5)
    assert middle == pytest.approx((24.99 / 98, 0.5), rel=1e-5)
    assert high == pytest.approx((56.24 / 98, 74 / 98), rel=1e-5)
    assert ranges.spread[0] == pytest.approx((98, 98), rel=1e-5)
    assert ranges.share[0] == pytest.approx((0.98, 0.98), rel=1e-5)
    assert ranges.in_mm
    assert TrainingRanges.from_json(json.loads(json.dumps(ranges.to_json()))) == ranges


def test_ranges_are_finite_whatever_the_intensities_are():
    ranges, _ = _pool(_scan(np.where(RAMP < 50, -3e38, 3e38).astype(np.float32)))
    assert np.isfinite([number for spans in (*ranges.quartiles, ranges.spread, ranges.share) for span in spans for number in span]).all()


@pytest.mark.parametrize(("size", "departs"), [(1.0, False), (1.49, False), (0.68, False), (1.51, True), (0.66, True)])
def test_voxels_may_differ_by_half(size, departs):
    ranges, preprocessing = _pool(_scan())
    found = _find(ranges, _scan(spacing=(1.0, 1.0, size)), preprocessing)
    assert found == ([f"voxels of 1x1x{size} mm (trained: 1 x 1 x 1)"] if departs else [])


def test_voxels_that_preprocessing_changes_matter_less():
    fine, coarse = _scan(spacing=(1.0, 1.0, 0.6)), _scan(spacing=(1.0, 1.0, 1.8))
    # Resampling gives a finer scan the trained voxels. It cannot give a coarser one detail.
    ranges, preprocessing = _pool(_scan(), spacing_mm=(1.0, 1.0, 1.0))
    assert not _find(ranges, fine, preprocessing)
    assert _find(ranges, coarse, preprocessing) == ["voxels of 1x1x1.8 mm (trained: 1 x 1 x 1)"]
    # A whole field of view at one size has no voxels of its own.
    ranges, preprocessing = _pool(_scan(), shape=(8, 8, 8), resize=True)
    assert not _find(ranges, coarse, preprocessing)
    # A network of slices sees nothing along the third axis.
    ranges, preprocessing = _pool(_scan())
    assert not _find(ranges, _scan(spacing=(1.0, 1.0, 9.0), copies=5), preprocessing, across=2)


def test_a_field_of_view_may_be_half_or_double():
    ranges, preprocessing = _pool(_scan(copies=4))
    assert not _find(ranges, _scan(copies=2), preprocessing)
    assert not _find(ranges, _scan(copies=8), preprocessing)
    assert _find(ranges, _scan(copies=1), preprocessing) == ["a field of view of 101x2x1 mm (trained: 101 x 2 x 4)"]
    assert _find(ranges, _scan(copies=9), preprocessing) == ["a field of view of 101x2x9 mm (trained: 101 x 2 x 4)"]


def test_intensities_are_compared_without_their_scale():
    ranges, preprocessing = _pool(_scan(SQUARE), intensity="zscore")
    assert not _find(ranges, _scan(5000 * SQUARE - 70), preprocessing)
    # The medians lie 24 % apart.
    assert _find(ranges, _scan(RAMP), preprocessing) == [
        "intensities with quartiles at 24, 50, 76 % (trained: 6.4 to 6.4, 26 to 26, 57 to 57)"
    ]
    assert _find(ranges, _scan(100 - SQUARE), preprocessing)[0].startswith(
        "intensities as of an inverted contrast with quartiles at 43, 74, 94 %"
    )
    # A network that was trained on many contrasts is told about none, but still about voxels.
    many = ranges.allow_contrasts()
    assert not _find(many, _scan(100 - SQUARE), preprocessing)
    assert len(_find(many, _scan(100 - SQUARE, spacing=(1.0, 1.0, 2.0)), preprocessing)) == 1


def test_intensities_that_preprocessing_does_not_mend():
    ranges, preprocessing = _pool(_scan(), intensity="fixed")
    assert not _find(ranges, _scan(2.9 * RAMP), preprocessing)
    assert _find(ranges, _scan(4 * RAMP), preprocessing) == ["intensities that span 392 (trained: 98)"]
    hot = RAMP.copy()
    hot[-1] = 1000
    ranges, preprocessing = _pool(_scan(), intensity="min_max")
    assert _find(ranges, _scan(hot), preprocessing) == ["a few outliers that leave 9.8 % of the range to the rest (trained: 98 to 98)"]
    ranges, preprocessing = _pool(_scan(), intensity="zscore")
    assert not _find(ranges, _scan(hot), preprocessing)


def test_a_scan_of_one_value_is_told_and_one_of_few_bright_voxels_is_not():
    ranges, preprocessing = _pool(_scan())
    assert _find(ranges, _scan(np.full_like(RAMP, 7)), preprocessing) == ["one value in every voxel"]
    sparse = np.zeros_like(RAMP)
    sparse[-1] = 1000
    assert "one value in every voxel" not in _find(ranges, _scan(sparse), preprocessing)


def test_each_channel_is_compared_on_its_own():
    def join(second):
        return dataclasses.replace(_scan(), array=np.concatenate([_scan().array, _scan(second).array], axis=-1))

    ranges, preprocessing = _pool(join(SQUARE))
    assert not _find(ranges, join(SQUARE), preprocessing, channels=("T1", "T2"))
    assert [line.rpartition(" in ")[2] for line in _find(ranges, join(RAMP), preprocessing, channels=("T1", "T2"))] == ["T2"]


def test_pictures_have_no_millimetres():
    def picture(rows):
        return Volume(np.broadcast_to(RAMP[None, :, None], (rows, 101, 1)), None, (1.0, 1.0))

    preprocessing = Preprocessing(2)
    ranges = TrainingRanges.pool([measure_scan(picture(4), preprocessing.measure(picture(4)))], 2)
    assert not ranges.in_mm
    assert _find(ranges, picture(9), preprocessing) == ["a field of view of 9x101 pixels (trained: 4 x 101)"]
    # A file that knows its millimetres cannot be compared.
    assert not _find(ranges, dataclasses.replace(picture(9), affine=np.eye(4)), preprocessing)


@pytest.mark.data
@pytest.mark.parametrize(("name", "folder"), [("oasis", "oasis"), ("hipmri3d", "hipmri3d"), ("msd", "Task04_Hippocampus")])
def test_real_scans_that_were_held_out_raise_no_alarm(real_data, name, folder):
    spec = load_spec(DATASETS[name], real_data / folder)
    preprocessing = dataclasses.replace(spec.preprocessing, shape=())
    images = [read_volume(case.image_paths) for case in find_cases(spec, real_data / folder)[:100]]
    subjects = range(0, len(images), 5)
    trained = [measure_scan(image, preprocessing.measure(image)) for place, image in enumerate(images) if place not in subjects]
    ranges = TrainingRanges.pool(trained, spec.spatial_dims)
    assert [departure for place in subjects for departure in ranges.find_departures(images[place], preprocessing, spec.channels)] == []
