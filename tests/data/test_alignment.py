"""Files that belong together: the same grid, the same in another order, the same box in another resolution, or elsewhere."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from helpers import make_spec

from modules.data.alignment import align, describe_grid
from modules.data.case import Case, read_case, read_volume
from modules.data.inventory import describe_ignored
from modules.data.preprocess import Preprocessing


def _oblique(spacing=(0.8, 1.1, 2.5), origin=(-30.0, 12.0, 5.0)):
    one, other = np.radians(11), np.radians(-7)
    turn = np.array([[np.cos(one), -np.sin(one), 0], [np.sin(one), np.cos(one), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(other), -np.sin(other)], [0, np.sin(other), np.cos(other)]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag(spacing), origin
    return affine


ARRAY = np.random.default_rng(0).integers(0, 9, (5, 6, 7), np.int16)


def test_the_same_grid_is_the_array_itself():
    assert align(ARRAY, _oblique(), (5, 6, 7), _oblique()) is ARRAY
    rounded = _oblique()
    rounded[:3] += 1e-4
    assert align(ARRAY, rounded, (5, 6, 7), _oblique()) is ARRAY
    assert align(ARRAY, _oblique().astype(np.float32), (5, 6, 7), _oblique()) is ARRAY


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_another_order_is_turned_and_nothing_is_lost(axes):
    for signs in product((1, -1), repeat=3):
        orientation = np.stack([axes, signs], axis=1)
        stored = nib.Nifti1Image(ARRAY, _oblique()).as_reoriented(orientation)
        np.testing.assert_array_equal(align(np.asarray(stored.dataobj), stored.affine, ARRAY.shape, _oblique()), ARRAY)


def test_channels_behind_the_spatial_axes_go_along():
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 4
    image = np.stack([ARRAY, ARRAY + 1], axis=-1)
    np.testing.assert_array_equal(align(image, _oblique() @ flip, (5, 6, 7), _oblique()), image[::-1])


def test_a_label_of_another_resolution_over_the_same_box_comes_from_the_nearest_voxel():
    fine = np.diag([1.0, 1, 1, 1])
    coarse = np.diag([2.0, 3.0, 1.0, 1.0])
    coarse[:3, 3] = 0.5, 1.0, 0.0  # The centres of voxels two and three times as long, whose edges meet those of the image.
    label = np.arange(3 * 2 * 4).reshape(3, 2, 4)
    expected = label.repeat(2, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(align(label, coarse, (6, 6, 4), fine, resample=True), expected)
    assert align(label, coarse, (6, 6, 4), fine) is None
    # A finer label gives the voxel in the middle of each three and of each five.
    fine_label = np.arange(9 * 5 * 1).reshape(9, 5, 1)
    own = np.diag([1 / 3, 1 / 5, 1.0, 1.0])
    own[:3, 3] = -1 / 3, -2 / 5, 0
    np.testing.assert_array_equal(align(fine_label, own, (3, 1, 1), fine, resample=True)[:, 0, 0], [1 * 5 + 2, 4 * 5 + 2, 7 * 5 + 2])
    # A shift by half a voxel makes it another box.
    coarse[0, 3] += 0.5
    assert align(label, coarse, (6, 6, 4), fine, resample=True) is None


@pytest.mark.parametrize("change", ["shift", "turn", "scale", "cut"])
def test_what_lies_elsewhere_is_none(change):
    affine, array = _oblique(), ARRAY
    if change == "shift":
        affine[1, 3] += 30
    elif change == "turn":
        affine = np.diag([0.8, 1.1, 2.5, 1])
    elif change == "scale":
        affine[:3, :3] *= 1.1
    else:
        array = ARRAY[:-1]
    assert align(array, affine, (5, 6, 7), _oblique(), resample=True) is None


def _turn_about_the_middle(shape, degrees):
    """Turns a grid of 1 mm about its middle, in the plane of its first two axes."""
    turn, middle = np.eye(4), np.eye(4)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    middle[:3, 3] = (np.array(shape) - 1) / 2
    return middle @ turn @ np.linalg.inv(middle)


def test_a_turned_grid_is_judged_by_its_corners_alone():
    # The corners of 21x21 voxels lie 14.14 from the middle. A turn by 0.15 degrees moves them by 0.037, one by 0.3 degrees by 0.074.
    array = np.zeros((21, 21, 3), np.uint8)
    assert align(array, _turn_about_the_middle(array.shape, 0.15), array.shape, np.eye(4)) is array
    assert align(array, _turn_about_the_middle(array.shape, 0.3), array.shape, np.eye(4)) is None


def test_a_slice_without_a_third_axis_lies_in_its_plane():
    flat, array = np.diag([1.0, 2, 0, 1]), ARRAY[..., 0]
    flip = np.diag([-1.0, 2, 5, 1])
    flip[0, 3] = 4
    assert align(array, np.diag([1.0, 2, 5, 1]), (5, 6), flat) is align(array, flat, (5, 6), flat) is array
    np.testing.assert_array_equal(align(array, flip, (5, 6), flat), array[::-1])
    flip[2, 3] = 0.3
    assert align(array, flip, (5, 6), flat) is None


def test_a_picture_and_a_nifti_cannot_be_compared():
    assert align(ARRAY, None, (5, 6, 7), None) is ARRAY
    assert align(ARRAY, np.eye(4), (5, 6, 7), None) is align(ARRAY, None, (5, 6, 7), np.eye(4)) is None


def test_the_tolerance_is_a_twentieth_of_a_voxel():
    for share, same in ((0.045, True), (0.055, False)):
        affine = np.eye(4)
        affine[0, 3] = share
        assert (align(ARRAY, affine, (5, 6, 7), np.eye(4)) is ARRAY) == same


def test_slices_have_a_plane_of_their_own():
    plane, array = np.diag([0.8, 0.9, 3.0, 1]), ARRAY[..., 0]
    assert align(array, plane, (5, 6), plane) is array
    mirrored = plane @ np.array([[-1.0, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(align(array, mirrored, (5, 6), plane), array[::-1])
    beside = plane.copy()
    beside[2, 3] = 3
    assert align(array, beside, (5, 6), plane) is None


def test_without_a_place_in_the_world_shapes_decide():
    assert align(ARRAY, None, (5, 6, 7), None) is ARRAY
    assert align(ARRAY, None, (5, 6, 8), None) is None
    assert align(ARRAY, np.full((4, 4), np.nan), (5, 6, 7), np.eye(4)) is None


def test_singular_headers_have_to_be_the_same():
    flat = np.diag([1.0, 1, 0, 1])
    assert align(ARRAY, flat, (5, 6, 7), flat) is ARRAY
    assert align(ARRAY, np.eye(4), (5, 6, 7), flat) is None


def test_a_grid_in_words():
    affine = np.diag([-0.8, 1.0, 2.5, 1])
    affine[:3, 3] = 10, -20.25, 3
    assert describe_grid((5, 6, 7), affine) == (
        "5x6x7 of 0.8x1x2.5 mm, LAS, first voxel at (10.00, -20.25, 3.00) mm, last at (6.80, -15.25, 18.00) mm"
    )
    assert describe_grid((5, 6), None) == "5x6 without a place in the world"
    assert describe_grid((5, 6), np.full((4, 4), np.nan)) == "5x6 with an affine that is not finite"


def test_a_picture_and_a_nifti_are_no_pair(write_nifti, write_picture):
    image, label = write_picture("a.png", np.ones((4, 4), np.uint8)), write_nifti("a.nii", np.ones((4, 4), np.uint8))
    with pytest.raises(ValueError, match="Expected image and label both as volumes, or both as pictures.*a.png and .*a.nii. Convert"):
        read_case(Case("a", "a", (image,), label), make_spec(Preprocessing(2), {1: 1}))
    with pytest.raises(ValueError, match="Expected image and channel both as volumes"):
        read_volume([image, label])


def test_a_label_on_another_grid_is_brought_onto_its_images_or_refused(write_nifti, caplog):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 3
    image = write_nifti("a.nii", rng.random((4, 5, 6)))
    rules = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2})
    with caplog.at_level("INFO", "mri"):
        _, label = read_case(Case("a", "a", (image,), write_nifti("mirrored.nii", truth[::-1], flip)), rules)
        # A training reads it again, and the log need not say so again.
        read_case(Case("a", "a", (image,), image.with_name("mirrored.nii")), rules)
    np.testing.assert_array_equal(label, truth)
    assert "label" in caplog.text
    assert caplog.text.count("mirrored.nii has another grid over the same space than its image: turned") == 1
    # 5x4 voxels of 0.8x1.25 mm lie over the same 4x5 mm as the image's. They are as many, but no turned grid.
    box = np.diag([0.8, 1.25, 1, 1])
    box[:3, 3] = -0.1, 0.125, 0
    with caplog.at_level("INFO", "mri"):
        read_case(Case("a", "a", (image,), write_nifti("box.nii", np.ascontiguousarray(truth.reshape(5, 4, 6)), box)), rules)
    assert "box.nii has another grid over the same space than its image: taken from the nearest voxels" in caplog.text
    moved = np.eye(4)
    moved[0, 3] = 30
    with pytest.raises(
        ValueError,
        match=r"image 4x5x6 of 1x1x1 mm, RAS, first voxel at \(0.00, 0.00, 0.00\) mm, .* in .*a.nii; label 4x5x6 .* at \(30.00, .*beside"
        r".*correct a header, or use it voxel by voxel with `--ignore-geometry`",
    ):
        read_case(Case("a", "a", (image,), write_nifti("beside.nii", truth, moved)), rules)


def test_a_label_is_used_voxel_by_voxel_where_the_user_says_so(write_nifti):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    image = write_nifti("a.nii", rng.random((4, 5, 6)))
    rules = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2})
    moved, flip = np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1])
    moved[0, 3], flip[0, 3] = 30, 3
    cases = []
    for name, affine in [*((f"moved_{number}.nii", moved) for number in range(6)), ("flip.nii", flip), ("good.nii", np.eye(4))]:
        cases.append(Case(name, name, (image,), write_nifti(name, truth, affine), ignore_geometry=True))
        np.testing.assert_array_equal(read_case(cases[-1], rules)[1], truth)
    lines = describe_ignored([*cases, Case("x", "x", (image,), write_nifti("x.nii", truth, moved)), Case("y", "y", (image,))])
    assert [line.split(" is used voxel by voxel")[0].rpartition("/")[2] for line in lines[:-1]] == [f"moved_{n}.nii" for n in range(5)]
    assert "first voxel at (30.00, 0.00, 0.00) mm, last at (33.00, 4.00, 5.00) mm, its image at 4x5x6 of 1x1x1 mm, RAS, first" in lines[0]
    assert lines[-1] == "--ignore-geometry: 7 labels lie elsewhere than their images; the first 5 are named above"
    assert describe_ignored(cases[-1:]) == []
    # Voxels of another number have no partners.
    short = Case("s", "s", (image,), write_nifti("short.nii", truth[:3], moved), ignore_geometry=True)
    with pytest.raises(ValueError, match=r"over the same space.*short.nii.*correct a header\.$"):
        read_case(short, rules)


def test_a_channel_on_another_grid_is_turned_or_refused(write_nifti):
    array = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    flip = np.diag([1.0, 1, -1, 1])
    flip[2, 3] = 5
    first = write_nifti("a_0000.nii", array)
    volume = read_volume([first, write_nifti("a_0001.nii", array[..., ::-1] + 1, flip)])
    np.testing.assert_allclose(volume.array[..., 1], array + 1, rtol=1e-6)
    with pytest.raises(ValueError, match="Expected image and channel over the same space.*coarse.nii"):
        read_volume([first, write_nifti("coarse.nii", array[::2], np.diag([2.0, 1, 1, 1]))])
