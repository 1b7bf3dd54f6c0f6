"""Exact scores by hand, by brute force, by invariants, and beside the tools of the field."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scoring_helpers import NAMES, draw_blobs, score_arrays

from modules.data.case import Case, Predicted, Volume
from modules.data.regions import Region
from modules.score_lines import format_scores
from modules.score_tables import estimate_intervals, summarise
from modules.scoring import DISTANCES, Score, score_predictions


def _distances(label, prediction, spacing_mm):
    """Returns HD95, HD and ASSD of class 1."""
    score = score_arrays(label, prediction, spacing_mm=spacing_mm)[0]
    return tuple(getattr(score, key) for key in DISTANCES)


def _place(shape, *boxes):
    label = np.zeros(shape, np.uint8)
    for box in boxes:
        label[box] = 1
    return label


BLOBS = pytest.mark.parametrize(
    ("shape", "spacing_mm", "seed"),
    [((28, 24, 20), (0.9, 1.4, 3.0), 0), ((20, 30, 16), (2.5, 0.6, 1.0), 1), ((48, 36), (0.7, 1.9), 2), ((30, 50), (3.0, 0.5), 3)],
)


# ------------------------------------------------------------------------------------------------------------------ overlap


def test_by_hand():
    a, b = score_arrays([[1, 1, 1, 0]], [[1, 1, 0, 2]])
    assert (a.dice, a.iou, a.voxels, a.reference_voxels) == (2 * 2 / 5, 2 / 3, 2, 3)
    # b is predicted but not there: 0, not left out.
    assert (b.dice, b.iou, b.voxels, b.reference_voxels) == (0, 0, 1, 0)


def test_class_absent_from_both_is_nan_and_missed_is_zero():
    a, b = score_arrays([[1, 1]], [[0, 0]])
    assert a.dice == 0
    assert math.isnan(b.dice)
    assert math.isnan(b.iou)


def test_ignored_voxels_are_in_no_score():
    label, prediction = [[1, 1, 0, 2, 255, 255]], [[1, 2, 0, 0, 1, 2]]
    # The same as without the last two voxels.
    for a, b in (score_arrays(label, prediction), score_arrays([[1, 1, 0, 2]], [[1, 2, 0, 0]])):
        assert (a.dice, a.iou, a.voxels, a.reference_voxels) == (2 / 3, 1 / 2, 1, 2)
        assert (b.dice, b.iou, b.voxels, b.reference_voxels) == (0, 0, 1, 1)
    assert all(math.isnan(score.dice) and not score.voxels for score in score_arrays([[255, 255]], [[1, 2]], spacing_mm=(1, 1)))
    # No prediction may hold that value.
    with pytest.raises(ValueError, match="Expected `prediction` classes from 0 to 2. Received: 255 in x."):
        score_arrays([[0, 1]], [[0, 255]])


def test_a_mask_ends_at_ignored_voxels_for_distances_and_volumes():
    label, prediction = np.zeros((2, 1, 9, 1), np.uint8)
    label[:, 1:4], prediction[:, 1:6] = 1, 1
    label[:, 5:] = 255
    (score, _) = score_arrays(label, prediction, level="volume", spacing_mm=(1.0, 2.0, 1.0))
    # Voxels 5 to 8 are out: the prediction's last one is 4, and lies one voxel of 2 mm beyond the label's.
    assert (score.hd_mm, score.volume_ml, score.reference_ml) == (2.0, 0.008, 0.006)
    assert (score.dice, score.voxels) == (6 / 7, 4)


REGIONS = (Region((1, 2), 1), Region((2,), 2))


def test_regions_by_hand():
    label, prediction = [[1, 1, 2, 2, 0, 255]], [[1, 2, 2, 1, 1, 2]]
    whole, core = score_arrays(label, prediction, ("background", "whole", "core"), spacing_mm=(1.0, 1.0), regions=REGIONS)
    assert (whole.class_name, whole.dice, whole.iou, whole.voxels, whole.reference_voxels) == ("whole", 8 / 9, 4 / 5, 5, 4)
    assert (core.class_name, core.dice, core.iou, core.voxels, core.reference_voxels) == ("core", 2 / 4, 1 / 3, 2, 2)
    # The whole is predicted one voxel too far; the core one voxel aside.
    assert (whole.hd_mm, core.hd_mm) == (1.0, 1.0)
    with pytest.raises(ValueError, match="Expected `label` classes from 0 to 2. Received: 3 in x."):
        score_arrays([[3]], [[0]], ("background", "whole", "core"), regions=REGIONS)


def test_regions_and_ignored_voxels_of_slices_add_up_to_those_of_their_scan():
    label, prediction = np.array([[[1, 2, 0, 255]], [[2, 2, 0, 1]]], np.uint8), np.array([[[2, 2, 1, 1]], [[2, 0, 0, 1]]], np.uint8)
    slices = [
        Predicted(Case(f"a_{index}", "a", (), volume_id="a"), Volume(np.zeros((1, 4, 1)), None, (1.0, 1.0)), *maps)
        for index, maps in enumerate(zip(label, prediction, strict=True))
    ]
    scores = list(score_predictions(slices, ("background", "whole", "core"), REGIONS))
    assert [(score.level, score.case, score.class_name) for score in scores[-2:]] == [("volume", "a", "whole"), ("volume", "a", "core")]
    whole, core = score_arrays(label, prediction, ("background", "whole", "core"), regions=REGIONS)
    assert [(score.dice, score.voxels) for score in scores[-2:]] == [(whole.dice, whole.voxels), (core.dice, core.voxels)]
    assert (whole.dice, core.dice) == (8 / 10, 4 / 6)


def test_more_voxels_than_are_counted_at_a_time(monkeypatch):
    label, prediction = draw_blobs((28, 24, 20), seed=0)
    whole = score_arrays(label, prediction, spacing_mm=(1, 1, 1))
    monkeypatch.setattr("modules.scoring.CHUNK", 1000)
    assert score_arrays(label, prediction, spacing_mm=(1, 1, 1)) == whole


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape. Received: \(1, 2\) and \(1, 1\) for x"):
        score_arrays([[0, 0]], [[0]])


@pytest.mark.parametrize(("label", "prediction", "name", "value"), [(0, 3, "prediction", 3), (7, 0, "label", 7), (-1, 0, "label", -1)])
def test_values_must_be_classes(label, prediction, name, value):
    with pytest.raises(ValueError, match=f"Expected `{name}` classes from 0 to 2. Received: {value} in x."):
        score_arrays([[0, label]], [[0, prediction]])


# ---------------------------------------------------------------------------------------------------------------- distances


def test_two_voxels():
    label, prediction = _place((4, 4, 4), (0, 0, 0)), _place((4, 4, 4), (1, 2, 3))
    score = score_arrays(label, prediction, level="volume", spacing_mm=(2.0, 1.5, 0.5))[0]
    apart = math.sqrt(2.0**2 + 3.0**2 + 1.5**2)
    assert (score.hd95_mm, score.hd_mm, score.assd_mm) == pytest.approx((apart, apart, apart), abs=1e-12)
    assert (score.dice, score.volume_ml, score.reference_ml) == (0, pytest.approx(0.0015), pytest.approx(0.0015))


def test_one_voxel_onto_itself():
    label = _place((3, 3, 3), (1, 1, 1))
    assert _distances(label, label, (1, 2, 3)) == (0, 0, 0)


def test_the_percentile_is_interpolated_and_the_greater_of_two():
    # The row is 0, 2, 4, 6, 8 mm from its first pixel: the 95th percentile lies at 3.8 of 4 steps. The way back is 0 mm.
    label, prediction = _place((3, 6), (1, 0)), _place((3, 6), (1, slice(0, 5)))
    assert _distances(label, prediction, (1, 2)) == pytest.approx((7.6, 8, 20 / 6), abs=1e-12)


def test_shifted_square():
    # Each square has eight outer pixels. Three lie outside of the other square, 2 mm from it; one lies in its middle, 1 mm from it.
    label, prediction = _place((6, 6), (slice(1, 4), slice(1, 4))), _place((6, 6), (slice(2, 5), slice(1, 4)))
    assert _distances(label, prediction, (2, 1)) == pytest.approx((2, 2, 14 / 16), abs=1e-12)


def test_shifted_box_is_as_far_as_it_was_shifted():
    label, prediction = _place((12, 8, 8), np.s_[1:6, 1:7, 1:7]), _place((12, 8, 8), np.s_[3:8, 1:7, 1:7])
    hd95, hd, assd = _distances(label, prediction, (1.5, 4, 5))
    assert (hd95, hd) == (3, 3)
    assert 0 < assd < 3


def test_image_border_is_surface():
    # The square fills the image. Its eight outer pixels are surface, but its middle one is not.
    label, prediction = _place((3, 3), ...), _place((3, 3), (1, 1))
    expected = (math.sqrt(2), math.sqrt(2), (4 + 4 * math.sqrt(2) + 1) / 9)
    assert _distances(label, prediction, (1, 1)) == pytest.approx(expected, abs=1e-12)


def test_the_wall_of_a_hole_is_surface():
    label, prediction = _place((5, 5, 5), ...), _place((5, 5, 5), ...)
    prediction[2, 2, 2] = 0
    # The six voxels around the hole are 1 mm from the border. The 98 on the border are surface of both. The percentile is at 97.85 of 103.
    assert _distances(label, prediction, (1, 1, 1)) == pytest.approx((0.85, 1, 6 / (98 + 104)), abs=1e-12)


def test_absent_from_one_is_the_diagonal_and_from_both_nan():
    empty, full = np.zeros((3, 4, 5), int), _place((3, 4, 5), (0, 0, 0))
    diagonal = math.sqrt(6**2 + 4**2 + 2.5**2)
    for label, prediction in ((empty, full), (full, empty)):
        a, b = score_arrays(label, prediction, level="volume", spacing_mm=(2, 1, 0.5))
        assert (a.hd95_mm, a.hd_mm, a.assd_mm) == pytest.approx((diagonal,) * 3, abs=1e-12)
        assert (a.dice, a.volume_ml + a.reference_ml) == (0, pytest.approx(0.001))
        assert all(math.isnan(getattr(b, key)) for key in DISTANCES)
        assert (b.volume_ml, b.reference_ml) == (0, 0)


def test_slices_have_no_volume_and_pictures_no_millimetres():
    a = score_arrays([[1, 0, 0]], [[0, 0, 1]], spacing_mm=(5, 0.5))[0]
    assert (a.hd95_mm, a.hd_mm, a.assd_mm) == (1, 1, 1)
    assert math.isnan(a.volume_ml)
    a = score_arrays([[[1, 0, 0]]], [[[0, 0, 1]]], level="volume")[0]
    assert all(math.isnan(getattr(a, key)) for key in (*DISTANCES, "volume_ml", "reference_ml"))


def test_spacing_is_of_the_rank():
    with pytest.raises(ValueError, match=r"Expected `spacing_mm` of 2 lengths. Received: \(1, 1, 1\) for x."):
        score_arrays([[1]], [[1]], spacing_mm=(1, 1, 1))


@BLOBS
def test_distances_against_brute_force(shape, spacing_mm, seed):
    label, prediction = draw_blobs(shape, seed)
    for index, score in enumerate(score_arrays(label, prediction, spacing_mm=spacing_mm), start=1):
        surfaces = [np.argwhere(mask ^ ndimage.binary_erosion(mask)) * spacing_mm for mask in (label == index, prediction == index)]
        table = np.linalg.norm(surfaces[0][:, None] - surfaces[1][None], axis=-1)
        there, back = table.min(axis=1), table.min(axis=0)
        assert score.hd_mm == pytest.approx(max(there.max(), back.max()), abs=1e-9)
        assert score.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-9)
        assert score.assd_mm == pytest.approx(np.concatenate([there, back]).mean(), abs=1e-9)
        assert 0 < score.assd_mm < score.hd95_mm < score.hd_mm


@BLOBS
def test_what_does_not_change_distances(shape, spacing_mm, seed):
    label, prediction = draw_blobs(shape, seed)
    expected = pytest.approx(_distances(label, prediction, spacing_mm), abs=1e-9)
    assert _distances(prediction, label, spacing_mm) == expected
    assert _distances(label.T, prediction.T, spacing_mm[::-1]) == expected
    assert _distances(np.flip(label), np.flip(prediction), spacing_mm) == expected
    assert _distances(np.pad(label, 3), np.pad(prediction, 3), spacing_mm) == expected
    tripled = _distances(label, prediction, tuple(3 * step for step in spacing_mm))
    assert tuple(value / 3 for value in tripled) == expected


def test_help_does_not_wait_for_scipy():
    code = "import sys, modules.scoring, modules.score_tables; sys.exit('scipy.spatial' in sys.modules or 'scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


# -------------------------------------------------------------------------------------------------------------------- cases


def _predicted(volume_id, index, label, prediction, affine=None):
    case = Case(f"{volume_id}_{index}", "s", (), volume_id=volume_id, slice_index=index)
    image = Volume(np.zeros((*np.shape(prediction), 1)), affine, (1.0, 0.5, 2.0)[: np.ndim(prediction)])
    return Predicted(case, image, None if label is None else np.array(label), np.array(prediction))


def test_slices_of_one_scan_are_also_scored_as_one_volume():
    predicted = [
        _predicted("v", 0, [[1, 1]], [[1, 0]], np.eye(4)),
        _predicted("v", 1, [[0, 0, 0]], [[1, 0, 0]], np.eye(4)),
        _predicted("w", 0, [[1, 1]], [[1, 1]]),
    ]
    scores = [score for score in score_predictions(predicted, NAMES) if score.class_name == "a"]
    assert [(score.level, score.case, score.dice, score.voxels, score.reference_voxels) for score in scores] == [
        ("slice", "v_0", pytest.approx(2 / 3), 1, 2),
        ("slice", "v_1", 0, 1, 0),
        ("volume", "v", pytest.approx(2 * 1 / 4), 2, 2),
        ("slice", "w_0", 1, 2, 2),
        ("volume", "w", 1, 2, 2),
    ]
    # A slice with a geometry has distances in mm within its plane. There are none across slices, and none in a picture.
    expected = [0.5, math.hypot(1, 1.5), math.nan, math.nan, math.nan]
    assert [score.hd_mm for score in scores] == pytest.approx(expected, nan_ok=True)
    assert all(math.isnan(score.volume_ml) for score in scores)


def test_cases_without_a_label_are_passed_over():
    predicted = [_predicted("v", 0, None, [[1, 0]]), _predicted(None, 0, [[[1]]], [[[1]]], np.eye(4)), _predicted("w", 0, None, [[1]])]
    scores = list(score_predictions(predicted, NAMES))
    assert [(score.level, score.case, score.class_name) for score in scores] == [("volume", "None_0", "a"), ("volume", "None_0", "b")]
    assert (scores[0].hd_mm, scores[0].volume_ml) == (0, 0.001)


# -------------------------------------------------------------------------------------------------------------------- tables


def test_summary_leaves_out_the_absent_and_counts_them():
    scores = [*score_arrays([[1]], [[1]], case="x"), *score_arrays([[1]], [[0]], case="y")]
    summary = summarise(scores)["slice"]
    assert {key: summary["a"][key] for key in ("dice", "iou", "cases", "absent")} == {"dice": 0.5, "iou": 0.5, "cases": 2, "absent": 0}
    assert summary["b"]["absent"] == 2
    assert math.isnan(summary["b"]["dice"])
    assert summary["mean"]["dice"] == 0.5
    assert all(math.isnan(classes[key]) for classes in summary.values() for key in DISTANCES)
    table = format_scores(summarise(scores), estimate_intervals(scores, {"x": "x", "y": "y"}))
    assert any(line.split() == ["a", "0.500", "[0.000,", "1.000]", "0.500", "2", "0"] for line in table)
    assert not any("mm" in line for line in table)


def test_summary_of_distances():
    nan = math.nan
    base = Score("slice", "x", "a", 1.0, 1.0, 1.0, 2.0, 0.5, nan, nan, 1, 1)
    scores = [
        base,
        replace(base, case="y", hd95_mm=4.0, hd_mm=6.0, assd_mm=1.5),
        # A picture among the scans has overlaps, but does not count in the distances.
        replace(base, case="z", hd95_mm=nan, hd_mm=nan, assd_mm=nan),
        replace(base, class_name="b", hd95_mm=10.0),
        replace(base, class_name="c", dice=nan, iou=nan, hd95_mm=nan, hd_mm=nan, assd_mm=nan),
        replace(base, level="volume", hd95_mm=nan, hd_mm=nan, assd_mm=nan),
    ]
    summary = summarise(scores)
    a, mean = summary["slice"]["a"], summary["slice"]["mean"]
    known = {"dice": 1.0, "iou": 1.0, "hd95_mm": 2.5, "hd_mm": 4.0, "assd_mm": 1.0, "cases": 3, "absent": 0}
    assert {key: value for key, value in a.items() if value == value} == known
    known = {"dice": 1.0, "iou": 1.0, "hd95_mm": 6.25, "hd_mm": 3.0, "assd_mm": 0.75}
    assert {key: value for key, value in mean.items() if value == value} == known

    table = format_scores(summary, estimate_intervals(scores, dict.fromkeys("xyz", "one")))
    slices, volumes = table[:5], table[5:]
    assert slices[0].split() == ["slices,", "by", "subject", "Dice", "[95", "%]", "IoU", "HD95", "mm", "[95", "%]", "subjects", "absent"]
    assert slices[1].split() == ["a", "1.000", "1.000", "2.50", "1", "0"]
    assert slices[3].split() == ["c", "nan", "nan", "nan", "0", "1"]
    assert slices[4].split() == ["mean", "1.000", "1.000", "6.25", "1"]
    assert volumes[0].split() == ["volumes,", "by", "subject", "Dice", "[95", "%]", "IoU", "subjects", "absent"]
    for block in (slices[:4], volumes[:2]):
        assert all(len(line) == len(other) for line, other in pairwise(block))


# -------------------------------------------------------------------------------------------------------------------- peers


def _itk_image(sitk, mask, spacing_mm):
    """Makes an ITK image of the mask, with axes in reverse. A border is added: `LabelContour` sees no surface at an image's edge."""
    image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
    image.SetSpacing([float(step) for step in spacing_mm[::-1]])
    return image


@pytest.mark.peers
@BLOBS
def test_scores_equal_those_of_monai(shape, spacing_mm, seed):
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    label, prediction = draw_blobs(shape, seed)
    one_hot = [torch.from_numpy(np.moveaxis(np.eye(3, dtype=np.uint8)[array], -1, 0)[None]) for array in (prediction, label)]
    ours = score_arrays(label, prediction, spacing_mm=spacing_mm)
    peers = {
        "dice": metrics.compute_dice(*one_hot, include_background=False),
        "iou": metrics.compute_iou(*one_hot, include_background=False),
        "hd_mm": metrics.compute_hausdorff_distance(*one_hot, spacing=spacing_mm),
        "hd95_mm": metrics.compute_hausdorff_distance(*one_hot, percentile=95, spacing=spacing_mm),
        # MONAI's symmetric average is over both directions together, like ours.
        "assd_mm": metrics.compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing_mm),
    }
    for key, values in peers.items():
        # MONAI computes in float32.
        tolerance = 1e-3 if key in DISTANCES else 1e-6
        assert [getattr(score, key) for score in ours] == pytest.approx(values[0].tolist(), abs=tolerance), key


@pytest.mark.peers
@BLOBS
def test_scores_equal_those_of_simpleitk(shape, spacing_mm, seed):
    sitk = pytest.importorskip("SimpleITK")
    label, prediction = draw_blobs(shape, seed)
    overlap, hausdorff = sitk.LabelOverlapMeasuresImageFilter(), sitk.HausdorffDistanceImageFilter()
    overlap.Execute(_itk_image(sitk, label, spacing_mm), _itk_image(sitk, prediction, spacing_mm))
    for index, score in enumerate(score_arrays(label, prediction, spacing_mm=spacing_mm), start=1):
        assert score.dice == pytest.approx(overlap.GetDiceCoefficient(index), abs=1e-12)
        assert score.iou == pytest.approx(overlap.GetJaccardCoefficient(index), abs=1e-12)

        # ITK's Hausdorff filter measures whole masks: a voxel inside the other mask counts as 0. For surfaces, which ITK draws itself, it
        # gives our distance.
        surfaces = [sitk.LabelContour(_itk_image(sitk, array == index, spacing_mm), False) for array in (label, prediction)]
        hausdorff.Execute(*surfaces)
        assert score.hd_mm == pytest.approx(hausdorff.GetHausdorffDistance(), abs=1e-3)

        maps = [sitk.Abs(sitk.SignedMaurerDistanceMap(surface, squaredDistance=False, useImageSpacing=True)) for surface in surfaces]
        masks = [sitk.GetArrayFromImage(surface).astype(bool) for surface in surfaces]
        there, back = (sitk.GetArrayFromImage(maps[1 - place])[masks[place]].astype(float) for place in (0, 1))
        assert score.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-3)
        assert score.assd_mm == pytest.approx(np.concatenate([there, back]).mean(), abs=1e-3)
        # ITK averages the means of the two directions, so the smaller surface weighs as much as the larger.
        assert hausdorff.GetAverageHausdorffDistance() == pytest.approx((there.mean() + back.mean()) / 2, abs=1e-3)


@pytest.mark.peers
@BLOBS
def test_scores_beside_those_of_surface_distance(shape, spacing_mm, seed):
    surface_distance = pytest.importorskip("surface_distance")
    label, prediction = draw_blobs(shape, seed)
    for index, score in enumerate(score_arrays(label, prediction, spacing_mm=spacing_mm), start=1):
        masks = label == index, prediction == index
        assert score.dice == pytest.approx(surface_distance.compute_dice_coefficient(*masks), abs=1e-12)
        # The surface of this library runs through the corners of the voxels. Its percentiles and averages weigh each piece by its area,
        # without interpolation: they are other quantities. Each surface voxel has a piece within half its diagonal, and each piece has such
        # a voxel. So Hausdorff distances differ by a diagonal at most.
        theirs = surface_distance.compute_robust_hausdorff(surface_distance.compute_surface_distances(*masks, spacing_mm), 100)
        assert abs(score.hd_mm - theirs) <= math.hypot(*spacing_mm)


@pytest.mark.peers
def test_all_agree_on_a_shifted_box():
    sitk, surface_distance = pytest.importorskip("SimpleITK"), pytest.importorskip("surface_distance")
    label, prediction = _place((14, 10, 9), np.s_[2:8, 2:8, 2:7]), _place((14, 10, 9), np.s_[4:10, 2:8, 2:7])
    spacing_mm = (1.5, 4.0, 5.0)
    # One box is the other, shifted. Masks, voxels and faces then have the same distance.
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(_itk_image(sitk, label, spacing_mm), _itk_image(sitk, prediction, spacing_mm))
    faces = surface_distance.compute_surface_distances(label == 1, prediction == 1, spacing_mm)
    assert _distances(label, prediction, spacing_mm)[1] == pytest.approx(3)
    assert hausdorff.GetHausdorffDistance() == pytest.approx(3)
    assert surface_distance.compute_robust_hausdorff(faces, 100) == pytest.approx(3)
