"""Scans that are there twice: equal voxels, and looks that hardly differ."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from modules.data import duplicates
from modules.data.duplicates import Alike, find_alike, find_equal, hash_look, hash_voxels


def draw(seed, shape=(40, 36, 1)):
    """Smooth noise, of another look for each seed."""
    return gaussian_filter(np.random.default_rng(seed).random(shape), (*(2,) * (len(shape) - 1), 0)).astype(np.float32)


def count_bits(one, other):
    return sum(bin(a ^ b).count("1") for a, b in zip(one, other, strict=True))


def test_voxels_are_compared_whatever_their_order_in_memory():
    array = draw(0)
    assert hash_voxels(array) == hash_voxels(np.asfortranarray(array)) != hash_voxels(array.transpose(1, 0, 2))
    # A reshaped image of the same values is another one, and minus zero is zero.
    assert hash_voxels(array) != hash_voxels(array.reshape(36, 40, 1))
    assert hash_voxels(np.array([[[0.0]], [[1.0]]], np.float32)) == hash_voxels(np.array([[[-0.0]], [[1.0]]], np.float32))
    assert hash_voxels(np.full((4, 4, 1), 7, np.float32)) == ""


def test_equal_digests():
    assert find_equal(["a", "b", "", "a", "", "c", "b", "a"]) == [[0, 3, 7], [1, 6]]


@pytest.mark.parametrize("shape", [(40, 36, 1), (20, 24, 18, 2)])
def test_the_look_stays_where_a_scan_is_rescaled_or_noisy_and_differs_between_scans(shape):
    array, rank = draw(0, shape), len(shape) - 1
    look = hash_look(array)
    assert len(look) == {2: 32, 3: 64}[rank]
    # 256 - 1 and 512 - 1 bits carry something.
    assert hash_look(3 * array + 100) == look
    noise = np.random.default_rng(9).normal(0, 0.03 * array.std(), shape)
    assert count_bits(look, hash_look((array + noise).astype(np.float32))) <= duplicates.MOST_BITS[rank]
    assert count_bits(look, hash_look(draw(1, shape))) > 3 * duplicates.MOST_BITS[rank]


def test_shrinking_averages_by_shares():
    # Three voxels to two: the middle one counts for a half on both sides.
    np.testing.assert_allclose(duplicates._shrink(np.array([1.0, 4.0, 7.0], np.float32), 0, 2), [2, 6])
    np.testing.assert_allclose(duplicates._shrink(np.array([1.0, 5.0], np.float32), 0, 4), [1, 1, 5, 5])


def test_a_nearly_empty_image_has_no_look():
    empty = np.zeros((20, 20, 1), np.float32)
    assert hash_look(empty) == b""
    empty[:19, 0] = 1
    assert hash_look(empty) == b""
    empty[:20, 0] = 1
    assert hash_look(empty) != b""


def test_look_alikes_are_found_across_subjects_and_not_within_one(monkeypatch):
    monkeypatch.setattr(duplicates, "_ROWS", 2)
    base = draw(0)
    faint = base + np.float32(0.02 * base.std()) * draw(1)
    arrays = [base, draw(2), faint, draw(3), base * 2]
    looks, digests = [hash_look(array) for array in arrays], [hash_voxels(array) for array in arrays]
    # Neighbouring slices of one subject, at 0 and 2, look alike, and nobody asks.
    assert find_alike(looks, 2, ["a", "a", "a", "b", "a"], digests) == []
    distance = count_bits(looks[0], looks[2])
    assert find_alike(looks[:4], 2, ["a", "a", "b", "b"], digests[:4]) == [Alike(0, 2, distance)]
    # Equal voxels are no look-alikes: another search finds them.
    assert find_alike([looks[0]] * 2, 2, ["a", "b"], ["x", "x"]) == []
    assert find_alike([looks[0]] * 2, 2, ["a", "b"], ["x", "y"]) == [Alike(0, 1, 0)]
    assert find_alike([b"", looks[0]], 2, ["a", "b"], ["", "y"]) == []
    assert find_alike([b""], 2, ["a"], [""]) == []


def test_the_distance_counts_bits():
    looks = [bytes([0] * 32), bytes([0b00000111, 0b1] + [0] * 30), bytes([255] * 32)]
    assert find_alike(looks, 2, ["a", "b", "c"], ["x", "y", "z"]) == [Alike(0, 1, 4)]
    most = duplicates.MOST_BITS[2]
    at_most, more = bytes([255] * (most // 8) + [0] * (32 - most // 8)), bytes([255] * (most // 8) + [1] + [0] * (31 - most // 8))
    assert find_alike([looks[0], at_most], 2, ["a", "b"], ["x", "y"]) == [Alike(0, 1, most)]
    assert find_alike([looks[0], more], 2, ["a", "b"], ["x", "y"]) == []
