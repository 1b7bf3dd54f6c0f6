"""Surfaces within a tolerance, volume errors and lesions: by hand, by invariants, and beside the tools of the field."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scoring_helpers import draw_blobs, score_arrays

from modules.data.case import Case, Predicted, Volume
from modules.masks import crop_masks, match_lesions
from modules.scoring import LESIONS, VOLUMES, score_predictions

NAN = math.nan


def _score(label, prediction, spacing_mm=(1.0, 1.0, 1.0), **options):
    """Scores class 1 of a volume."""
    return score_arrays(label, prediction, level="volume", spacing_mm=spacing_mm, **options)[0]


def _two_voxels(step):
    """A label of one voxel, and a prediction of another one, `step` voxels away."""
    label, prediction = np.zeros((2, 5, 5, 5), np.uint8)
    label[0, 0, 0] = prediction[step] = 1
    return label, prediction


# ----------------------------------------------------------------------------------------------------------------- surfaces


@pytest.mark.parametrize(("tolerance", "nsd"), [(2.0, 1), (1.99, 0), (4.0, 1)])
def test_two_voxels_lie_within_the_tolerance_or_do_not(tolerance, nsd):
    score = _score(*_two_voxels((1, 0, 0)), (2.0, 0.5, 1.0), tolerance_mm=(tolerance,))
    assert (score.nsd, score.tolerance_mm, score.hd_mm) == (nsd, tolerance, 2)


@pytest.mark.parametrize(("step", "nsd"), [((0, 2, 0), 1), ((0, 3, 0), 0), ((0, 0, 2), 1), ((1, 0, 0), 0)])
def test_the_tolerance_is_the_edge_of_a_cube_of_a_voxels_volume(step, nsd):
    # 4 x 0.5 x 0.5 mm are 1 mm3: two pixels of a slice are within, and the next slice is not.
    score = _score(*_two_voxels(step), (4.0, 0.5, 0.5))
    assert (score.nsd, score.tolerance_mm) == (nsd, pytest.approx(1))
    assert score_arrays([[1, 0, 0]], [[0, 1, 0]], spacing_mm=(2.0, 0.5))[0].tolerance_mm == 1


def test_a_step_that_is_rounded_is_within_itself():
    # 3 x 0.1 is a little more than 0.3.
    assert _score(*_two_voxels((0, 0, 3)), (1.0, 1.0, 0.1), tolerance_mm=(0.3,)).nsd == 1


def test_both_directions_count_together():
    # The row is 0, 2, 4, 6 and 8 mm from its first pixel, which is on it. Of the six distances four are 4 mm or less.
    score = score_arrays([[1, 0, 0, 0, 0]], [[1, 1, 1, 1, 1]], spacing_mm=(1.0, 2.0), tolerance_mm=(4.0,))[0]
    assert score.nsd == 4 / 6


def test_each_class_may_have_its_tolerance():
    label, prediction = [[1, 0, 0, 2, 0, 0]], [[0, 1, 0, 0, 0, 2]]
    for tolerances, expected in (((1.0,), (1, 0)), ((1.0, 2.0), (1, 1)), ((0.5, 2.0), (0, 1)), ((2.0,), (1, 1))):
        scores = score_arrays(label, prediction, spacing_mm=(1.0, 1.0), tolerance_mm=tolerances)
        assert tuple(score.nsd for score in scores) == expected
    with pytest.raises(ValueError, match="^Expected `tolerance_mm` of one number, or of 2 for a, b. Received: 3 numbers. Leave it out "):
        score_arrays(label, prediction, spacing_mm=(1.0, 1.0), tolerance_mm=(1.0, 2.0, 3.0))


def test_a_missed_class_has_no_surface_in_common_and_an_absent_one_is_left_out():
    full, empty = np.ones((2, 2, 2), int), np.zeros((2, 2, 2), int)
    assert _score(full, empty).nsd == _score(empty, full).nsd == 0
    assert math.isnan(_score(empty, empty).nsd)
    # Nobody knows how long a pixel of a picture is.
    assert math.isnan(score_arrays([[1]], [[1]])[0].nsd)


# ------------------------------------------------------------------------------------------------------------------ volumes


def test_volume_errors_by_hand():
    label, prediction = np.zeros((2, 4, 4, 4), np.uint8)
    label[:2], prediction[:1] = 1, 1
    # 32 and 16 voxels of 2 x 0.5 x 1.5 mm.
    score = _score(label, prediction, (2.0, 0.5, 1.5))
    assert (score.reference_ml, score.volume_ml) == pytest.approx((0.048, 0.024))
    assert [getattr(score, key) for key in VOLUMES] == pytest.approx([0.024, 50, -0.024])
    score = _score(prediction, label, (2.0, 0.5, 1.5))
    assert [getattr(score, key) for key in VOLUMES] == pytest.approx([0.024, 100, 0.024])


def test_volume_errors_of_absent_classes():
    full, empty = np.ones((2, 2, 2), int), np.zeros((2, 2, 2), int)
    assert [getattr(_score(full, empty), key) for key in VOLUMES] == pytest.approx([0.008, 100, -0.008])
    # There is no percentage of nothing.
    assert [getattr(_score(empty, full), key) for key in VOLUMES] == pytest.approx([0.008, NAN, 0.008], nan_ok=True)
    for score in (_score(empty, empty), score_arrays(full, full, level="volume")[0], score_arrays([[1]], [[1]], spacing_mm=(1, 1))[0]):
        assert all(math.isnan(getattr(score, key)) for key in VOLUMES)


# ------------------------------------------------------------------------------------------------------------------ lesions


def _match(label, prediction):
    return match_lesions(*crop_masks(*(np.array(row, bool)[None, None] for row in (label, prediction))))


def test_lesions_by_hand():
    # The first is found with Dice 4 / 5, the second is missed, and the third prediction is false.
    found = _match([1, 1, 1, 0, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 1, 1])
    assert found == (2, 1, 1, 1 / 2, 4 / 5, 3 / 4)


def test_a_prediction_over_two_lesions_finds_the_one_that_it_shares_more_with():
    # IoU 3 / 6 with the first and 2 / 6 with the second.
    assert _match([1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]) == (2, 1, 0, 1 / 2, 6 / 9, 3 / 5)
    # Of two pieces of one lesion the larger finds it, and the other is false.
    assert _match([1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1]) == (1, 1, 1, 1, 6 / 9, 1)


def test_the_least_overlap_of_a_lesion():
    assert _match([1] + [0] * 9, [1] * 10)[:3] == (1, 1, 0)
    assert _match([1] + [0] * 10, [1] * 11)[:3] == (1, 0, 1)


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    label = np.zeros((4, 4, 4), np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = label[3, 3, 3] = 1
    score = _score(label, label)
    assert (score.lesions, score.found_lesions, score.false_lesions, score.lesion_dice) == (2, 2, 0, 1)
    assert score.largest_lesion == 2 / 3


def test_lesions_of_absent_classes():
    full, empty = np.ones((2, 2, 2), int), np.zeros((2, 2, 2), int)
    for label, prediction, expected in ((full, empty, (0, NAN, 0)), (empty, full, (NAN, NAN, 1)), (empty, empty, (NAN, NAN, 0))):
        assert [getattr(_score(label, prediction), key) for key in LESIONS] == pytest.approx(list(expected), nan_ok=True)
    # An ignored voxel makes no false lesion.
    assert _score([[[1, 0, 255]]], [[[1, 0, 1]]]).false_lesions == 0
    assert all(math.isnan(getattr(score_arrays([[1]], [[1]])[0], key)) for key in LESIONS)


def _slices(maps, first=0, step=1):
    """Predicted slices of the scan "v", given as pairs of label and prediction."""
    cases = [Case(f"v_{index}", "s", (), volume_id="v", slice_index=first + step * index) for index in range(len(maps))]
    image = Volume(np.zeros((1, 1, 1)), None, (1.0, 1.0))
    return [Predicted(case, image, *map(np.array, pair)) for case, pair in zip(cases, maps, strict=True)]


def test_slices_of_a_scan_are_stacked_to_count_its_lesions():
    # The lesion goes through two slices, and the prediction's second object through one.
    maps = [([[1, 0, 0]], [[1, 0, 0]]), ([[1, 0, 255]], [[0, 0, 1]]), ([[0, 0, 0]], [[0, 0, 1]])]
    *slices, scan = (score for score in score_predictions(_slices(maps, first=7), ("background", "a")))
    assert (scan.level, scan.lesions, scan.found_lesions, scan.false_lesions, scan.lesion_dice) == ("volume", 1, 1, 1, 2 / 3)
    assert all(math.isnan(score.lesions) for score in slices)
    assert {score.subject for score in (scan, *slices)} == {"s"}
    other = [(np.pad(label, 1), np.pad(prediction, 1)) for label, prediction in maps[:1]] + maps[1:]
    for odd in (_slices(maps, step=2), _slices(other)):
        scan = list(score_predictions(odd, ("background", "a")))[-1]
        # What touches what is not known, but overlaps are.
        assert math.isnan(scan.lesions)
        assert scan.dice == 2 * 1 / (2 + 2)


# --------------------------------------------------------------------------------------------------------------- references


def test_a_label_is_known_by_its_hash():
    label = np.zeros((2, 3, 4), np.uint8)
    first = _score(label, label).reference
    assert _score(label.astype(np.int64), np.ones_like(label)).reference == first
    assert _score(np.asfortranarray(label), label).reference == first
    label[1, 2, 3] = 2
    assert len({first, _score(label, label).reference, _score(label.reshape(4, 3, 2), label.reshape(4, 3, 2)).reference}) == 3


def test_overlaps_alone_are_the_same_and_nothing_else_is_measured():
    label, prediction = draw_blobs((12, 10, 8), 0)
    whole = _score(label, prediction)
    alone = _score(label, prediction, overlaps_only=True)
    assert (alone.dice, alone.iou, alone.voxels, alone.reference_voxels) == (whole.dice, whole.iou, whole.voxels, whole.reference_voxels)
    unknown = {"hd_mm", "nsd", "lesions", "volume_ml", "volume_error_ml"}
    assert all(math.isnan(getattr(alone, key)) for key in unknown)
    assert replace(alone, reference=whole.reference).reference == whole.reference
    # Slices alike.
    scan = list(score_predictions(_slices([([[1]], [[1]])]), ("background", "a"), overlaps_only=True))[-1]
    assert (scan.dice, scan.reference) == (1, "")


# -------------------------------------------------------------------------------------------------------------------- peers

BLOBS = pytest.mark.parametrize(
    ("shape", "spacing_mm", "seed"), [((28, 24, 20), (0.9, 1.4, 3.0), 0), ((20, 30, 16), (2.5, 0.6, 1.0), 1), ((30, 30, 30), (1, 1, 1), 2)]
)


@pytest.mark.peers
@BLOBS
@pytest.mark.parametrize("tolerance", [0.7, 1.0, 2.0, 3.5])
def test_surface_dice_equals_that_of_monai(shape, spacing_mm, seed, tolerance):
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    label, prediction = draw_blobs(shape, seed)
    one_hot = [torch.from_numpy(np.moveaxis(np.eye(3, dtype=np.uint8)[array], -1, 0)[None]) for array in (prediction, label)]
    theirs = metrics.compute_surface_dice(*one_hot, [tolerance] * 2, include_background=False, spacing=spacing_mm)
    ours = score_arrays(label, prediction, level="volume", spacing_mm=spacing_mm, tolerance_mm=(tolerance,))
    assert [score.nsd for score in ours] == pytest.approx(theirs[0].tolist(), abs=1e-6)


@pytest.mark.peers
@BLOBS
def test_surface_dice_beside_that_of_surface_distance(shape, spacing_mm, seed):
    peer = pytest.importorskip("surface_distance")
    label, prediction = draw_blobs(shape, seed)
    for tolerance in (1.0, 2.0, 3.5):
        ours = score_arrays(label, prediction, level="volume", spacing_mm=spacing_mm, tolerance_mm=(tolerance,))
        for index, score in enumerate(ours, start=1):
            distances = peer.compute_surface_distances(label == index, prediction == index, spacing_mm)
            # That program weighs surfaces by their area, and lets them run between the voxels. So the two differ by a little.
            assert score.nsd == pytest.approx(peer.compute_surface_dice_at_tolerance(distances, tolerance), abs=0.08)


@pytest.mark.peers
def test_surface_dice_equals_that_of_surface_distance_where_faces_move_as_voxels_do():
    peer = pytest.importorskip("surface_distance")
    label, prediction = np.zeros((2, 16, 12, 12), np.uint8)
    label[2:8, 2:10, 2:10] = prediction[4:10, 2:10, 2:10] = 1
    for tolerance in (2.9, 3.0):
        distances = peer.compute_surface_distances(label == 1, prediction == 1, (1.5, 4.0, 5.0))
        ours = _score(label, prediction, (1.5, 4.0, 5.0), tolerance_mm=(tolerance,)).nsd
        assert (ours == 1) == (peer.compute_surface_dice_at_tolerance(distances, tolerance) == 1) == (tolerance == 3.0)


@pytest.mark.peers
@BLOBS
def test_lesions_equal_those_of_panoptica(shape, spacing_mm, seed):
    panoptica = pytest.importorskip("panoptica")
    label, prediction = draw_blobs(shape, seed)
    for index, score in enumerate(score_arrays(label, prediction, level="volume", spacing_mm=spacing_mm), start=1):
        evaluator = panoptica.Panoptica_Evaluator(
            expected_input=panoptica.InputType.SEMANTIC,
            instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(cca_backend=panoptica.utils.constants.CCABackend.cc3d),
            instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.1),
        )
        masks = [(array == index).astype(np.uint8) for array in (prediction, label)]
        theirs = evaluator.evaluate(*masks, verbose=False)["ungrouped"]
        assert score.lesions >= 3
        assert (theirs.n_ref_instances, theirs.tp, theirs.fp) == (score.lesions, score.found_lesions, score.false_lesions)
        assert score.lesion_dice == pytest.approx(theirs.sq_dsc, abs=1e-9)
