"""The tf.data pipelines that feed a training: whole slices and volumes, slices of volumes, and patches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from modules.cache import PreparedCase
from modules.patches import draw_start, make_grid

MODES = ("slice", "volume", "patch")
Change = Callable[[np.random.Generator, Sequence[float]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class PatchDraw:
    """How patches are drawn for training.

    Attributes:
        sampling: See `modules.patches.draw_start`; with "foreground" every third patch of a case is centred on foreground, the rest
            lies anywhere.
        per_case: Patches of each case in an epoch.
        probabilities: Of the classes, for "weighted".
    """

    sampling: str = "foreground"
    per_case: int = 4
    probabilities: tuple[float, ...] = ()

    def start(self, case: PreparedCase, window: Sequence[int], turn: int, seeds: Sequence[int]) -> tuple[int, ...]:
        """The first voxel of patch number `turn` of an epoch, a pure function of `seeds`."""
        uniform = self.sampling == "foreground" and turn % 3 != 0
        rng = np.random.default_rng(list(seeds))
        sampling = "uniform" if uniform else self.sampling
        return draw_start(rng, case.shape, window, points=case.points, sampling=sampling, probabilities=self.probabilities)


def count_samples(cases: Sequence[PreparedCase], window: Sequence[int], draw: PatchDraw | None) -> int:
    """How many samples an epoch has: drawn patches, or the windows of a grid."""
    return len(cases) * draw.per_case if draw else sum(len(make_grid(case.shape, window)) for case in cases)


def make_pipeline(
    cases: Sequence[PreparedCase],
    window: Sequence[int],
    channels: int,
    *,
    batch_size: int,
    training: bool,
    draw: PatchDraw | None = None,
    change: Change | None = None,
    seed: int = 42,
    first_step: int = 0,
    share: tuple[int, int] = (0, 1),
):
    """A `tf.data.Dataset` of dicts: `image (B, *P, C)` float32, `label (B, *P)` int32, and what `change` adds.

    Samples are windows of the cases: those of a grid without overlap (a whole slice or volume; each slice of a volume), or patches
    drawn anew each time. For training it is endless, every batch is full, and the batch of step `s` is a pure function of
    `(seed, s)`: position `s * B + i` of an endless row of permutations, one an epoch, each computed without state. A run can thus
    begin at any step. Otherwise it goes through the samples once, in order, and has `weight (B,)` float32 besides: 0 for a sample that
    only fills the last batch, as a batch of another size would have to be compiled anew and could not be shared out; and such a number
    for the others that the mean of weighted losses over all batches is that of the losses over all samples.

    Args:
        cases: From `prepare_cases`.
        window: Size of a sample in the rank of the cases; axes of length one are dropped, which leaves `P`.
        channels: `C`.
        batch_size: `B`.
        training: Which of the two.
        draw: How to draw patches; without it, the grid.
        change: Draws the parameters of a sample's augmentation from a generator and the sample's voxel size: arrays of fixed shapes.
        seed: Of order and draws.
        first_step: Where training begins.
        share: `(i, n)` gives only the `i`-th of `n` equal parts of each batch: that of one host of several.

    Raises:
        ValueError: If a batch cannot be shared out equally.
    """
    import tensorflow as tf

    host, hosts = share
    if batch_size % hosts:
        raise ValueError(f"Expected a `batch_size` that {hosts} hosts can share equally. Received: {batch_size}. Choose a multiple.")
    number = count_samples(cases, window, draw)
    grid = [] if draw else [(index, start) for index, case in enumerate(cases) for start in make_grid(case.shape, window)]
    shape = tuple(size for size in window if size > 1)
    kept = [axis for axis, size in enumerate(window) if size > 1]
    example = change(np.random.default_rng(0), (1.0,) * len(kept)) if change else {}

    def read(sample: np.ndarray, position: np.ndarray) -> list[np.ndarray]:
        if draw:
            turn, index = divmod(int(sample), len(cases))
            start = draw.start(cases[index], window, turn, (seed, int(position)))
        else:
            index, start = grid[int(sample) % number]
        image, label = cases[index].read(start, window)
        arrays = [image.reshape(*shape, channels), label.reshape(shape)]
        if change:
            # Apart from the draw of the patch, so that the one does not depend on how much the other draws.
            rng = np.random.default_rng([seed, int(position), 1])
            arrays += change(rng, [cases[index].spacing_mm[axis] for axis in kept]).values()
        return arrays

    def load(index):
        # The same position, whichever host reads it.
        position = sample = index // part * batch_size + host * part + index % part
        if training:
            seeds = tf.stack([tf.constant(seed, tf.int64), position // number])
            sample = tf.random.experimental.index_shuffle(position % number, tf.cast(seeds, tf.int32), number - 1)
        # Not stateful: what is read depends on the arguments alone, and deterministic pipelines run stateful functions one by one.
        types = [tf.float32, tf.int32, *(array.dtype for array in example.values())]
        arrays = tf.numpy_function(read, (sample, position), types, stateful=False)
        shapes = [(*shape, channels), shape, *(array.shape for array in example.values())]
        arrays = [tf.ensure_shape(array, size) for array, size in zip(arrays, shapes, strict=True)]
        batch = dict(zip(("image", "label", *example), arrays, strict=True))
        if not training:
            batch["weight"] = tf.where(position < number, np.float32(filled / number), np.float32(0))
        return batch

    filled = -(-number // batch_size) * batch_size
    part = batch_size // hosts
    first, last = (first_step * part, np.iinfo(np.int64).max) if training else (0, filled // hosts)
    pipeline = tf.data.Dataset.range(first, last).map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return pipeline.batch(part, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def derive_window(shapes: Sequence[Sequence[int]], mode: str, plane: int, divisor: int, voxels: int = 96**3) -> tuple[int, ...]:
    """Chooses what the network sees at once, from the shapes of the prepared cases.

    Args:
        shapes: `S` of each case, canonical.
        mode: "slice" takes the largest extents across `plane`, so that nothing is cut off; "patch" the median shape, shrunk in
            proportion to at most `voxels`; "volume" the same.
        plane: The axis that slices lie across.
        divisor: What each size must be a multiple of.
        voxels: Most of a patch or volume.

    Returns:
        Sizes in the rank of the shapes, with a 1 along `plane` for slices.
    """
    if mode == "slice":
        largest = np.max(shapes, axis=0)
        return tuple(1 if axis == plane else -(-int(size) // divisor) * divisor for axis, size in enumerate(largest))
    window = np.median(shapes, axis=0)
    window = window * min(1.0, (voxels / window.prod()) ** (1 / len(window)))
    # Padding a little costs less than cutting off a little, as long as the budget holds.
    sizes = [max(divisor, -(-round(size) // divisor) * divisor) for size in window]
    while math.prod(sizes) > voxels and max(sizes) > divisor:
        sizes[sizes.index(max(sizes))] -= divisor
    return tuple(sizes)
