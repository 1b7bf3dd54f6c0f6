"""Finds scans that are there twice: equal voxel by voxel, or alike although their files and voxels differ.

Both are told from the decoded voxels in canonical orientation. So a scan that was packed anew, renamed or turned is found.
A perceptual hash tells scans that were rescaled, smoothed or resampled: the signs of the lowest frequencies of a small copy of the scan.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Voxels along each axis of the small copy, and frequencies along each axis that are kept, by rank.
_SIZES, _FREQUENCIES = {2: 32, 3: 16}, {2: 16, 3: 8}
# Bits of a hash by rank, and how many of them may differ between copies of a scan. Noise, smoothing, other brightness and another size of
# a voxel change fewer as a rule; two people differ in more.
BITS = {rank: number**rank - 1 for rank, number in _FREQUENCIES.items()}
MOST_BITS = {2: 16, 3: 40}
# An image of which less is brighter than its darkest voxel shows too little: all empty slices look alike.
_LEAST_CONTENT = 0.05
# Images that are compared with all others at a time.
_ROWS = 1024


class Alike(NamedTuple):
    """Two images whose hashes hardly differ.

    Attributes:
        first: Place of the one in the list of images.
        second: Place of the other, later one.
        distance: Number of bits in which the hashes differ (Hamming distance).
    """

    first: int
    second: int
    distance: int


def hash_voxels(array: np.ndarray) -> str:
    """Returns the SHA-256 of shape and values of an image `(*S, C)` float32; "" for an image of one value, which says nothing."""
    if (array == array.flat[0]).all():
        return ""
    # Adding 0 makes one zero of both, so that a sign that nobody sees does not count.
    return hashlib.sha256(repr(array.shape).encode() + (np.ascontiguousarray(array, "<f4") + np.float32(0)).tobytes()).hexdigest()


def hash_look(array: np.ndarray) -> bytes:
    """Returns the perceptual hash of an image `(*S, C)`: 255 bits of a slice, 511 of a volume. It is empty for a nearly empty image.

    The image is the mean of its channels, shrunk to 32 x 32 or 16 x 16 x 16 by averaging. Each bit is the sign of a coefficient of its
    discrete cosine transform, of the 16 x 16 or 8 x 8 x 8 lowest frequencies without the mean (after Zauner, 2010). So no change of
    brightness and contrast alters a bit.
    """
    from scipy.fft import dctn

    small = array.astype(np.float32, copy=False).mean(axis=-1)
    rank = small.ndim
    if np.count_nonzero(small > small.min()) < _LEAST_CONTENT * small.size:
        return b""
    for axis in range(rank):
        small = _shrink(small, axis, _SIZES[rank])
    lowest = dctn(small.astype(np.float64), norm="ortho")[(slice(_FREQUENCIES[rank]),) * rank]
    return np.packbits(lowest.ravel()[1:] > 0).tobytes()


def _shrink(array: np.ndarray, axis: int, target: int) -> np.ndarray:
    """Averages an axis to `target` equal parts; a voxel on a border counts for both sides by its share."""
    size = array.shape[axis]
    edges = np.linspace(0, size, target + 1)
    voxels = np.arange(size)
    weights = np.clip(np.minimum(edges[1:, None], voxels + 1) - np.maximum(edges[:-1, None], voxels), 0, None) * (target / size)
    return np.moveaxis(np.tensordot(weights.astype(np.float32), array, (1, axis)), 0, axis)


def find_equal(digests: Sequence[str]) -> list[list[int]]:
    """Finds the places of equal digests, a list for each digest that is there twice or more; "" equals nothing."""
    places: dict[str, list[int]] = {}
    for place, digest in enumerate(digests):
        if digest:
            places.setdefault(digest, []).append(place)
    return [members for members in places.values() if len(members) > 1]


def find_alike(looks: Sequence[bytes], rank: int, subjects: Sequence[str], digests: Sequence[str]) -> list[Alike]:
    """Finds for each image the one of another subject that looks most alike, if their hashes differ in `MOST_BITS` at most.

    Neighbouring slices of one scan look alike too, so images of one subject are not compared. Nor are equal ones, which `find_equal`
    finds.

    Args:
        looks: From `hash_look`; images with an empty one are passed over.
        rank: 2 for slices, 3 for volumes.
        subjects: The subject of each image.
        digests: From `hash_voxels`.

    Returns:
        Each pair once, the closest first.
    """
    there = np.array([place for place, look in enumerate(looks) if look], np.intp)
    if not there.size:
        return []
    bits = np.unpackbits(np.frombuffer(b"".join(looks[place] for place in there), np.uint8).reshape(there.size, -1), axis=1)
    # Where bits are 1 and -1, a product of two hashes is their number of bits less twice their distance.
    signs = bits.astype(np.float32) * 2 - 1
    people, contents = (np.unique([names[place] for place in there], return_inverse=True)[1] for names in (subjects, digests))
    pairs: dict[tuple[int, int], int] = {}
    for start in range(0, there.size, _ROWS):
        rows = slice(start, start + _ROWS)
        distances = (signs.shape[1] - signs[rows] @ signs.T) / 2
        distances[(people[rows, None] == people) | (contents[rows, None] == contents)] = np.inf
        for row, nearest in enumerate(distances.argmin(axis=1).tolist()):
            if distances[row, nearest] <= MOST_BITS[rank]:
                first, second = sorted((int(there[start + row]), int(there[nearest])))
                pairs[first, second] = int(distances[row, nearest])
    return sorted(
        (Alike(*places, distance) for places, distance in pairs.items()), key=lambda pair: (pair.distance, pair.first, pair.second)
    )
