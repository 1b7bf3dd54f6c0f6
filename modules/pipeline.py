"""The tf.data pipelines that feed a training: whole slices and volumes, slices of volumes, and patches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from modules.cache import PreparedCase
from modules.patches import count_starts, draw_start, nth_start

# `tf.random.experimental.index_shuffle` puts this before a seed of two numbers; where there is a seed for each index it puts it in the
# wrong place (TensorFlow 2.21), so the operation is called itself.
_SHUFFLE_SEED = np.int32(498247692)
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
    return len(cases) * draw.per_case if draw else sum(count_starts(case.shape, window) for case in cases)


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
    """A `tf.data.Dataset` of dicts: `image (B, *P, C)` float16, `label (B, *P)` uint8, and what `change` adds.

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
    firsts = () if draw else np.cumsum([0, *(count_samples([case], window, None) for case in cases)])
    shape = tuple(size for size in window if size > 1)
    kept = [axis for axis, size in enumerate(window) if size > 1]
    part = batch_size // hosts
    example = change(np.random.default_rng(0), (1.0,) * len(kept)) if change else {}

    def find(sample: int, position: int) -> tuple[PreparedCase, Sequence[int]]:
        if draw:
            turn, index = divmod(sample, len(cases))
            return cases[index], draw.start(cases[index], window, turn, (seed, position))
        index = int(np.searchsorted(firsts, sample, "right")) - 1
        return cases[index], nth_start(cases[index].shape, window, sample - int(firsts[index]))

    def read(samples: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        # As they lie in the cache: they are widened where they are computed with, after half the way.
        image, label = _make_aligned((part, *window, channels), np.float16), _make_aligned((part, *window), np.uint8)
        drawn = []
        for row, (sample, position) in enumerate(zip(samples.tolist(), positions.tolist(), strict=True)):
            case, start = find(sample, position)
            case.read_into(image[row], label[row], start)
            if change:
                # Apart from the draw of the patch, so that the one does not depend on how much the other draws.
                rng = np.random.default_rng([seed, position, 1])
                drawn.append(change(rng, [case.spacing_mm[axis] for axis in kept]))
        parameters = [np.stack([one[name] for one in drawn]) for name in example]
        return [image.reshape(part, *shape, channels), label.reshape(part, *shape), *parameters]

    def load(index):
        # The same positions, whichever host reads them.
        positions = samples = index * batch_size + host * part + tf.range(part, dtype=tf.int64)
        if training:
            epochs = tf.cast(positions // number, tf.int32)
            seeds = tf.stack([tf.fill(epochs.shape, _SHUFFLE_SEED), tf.fill(epochs.shape, low_seed), epochs], axis=-1)
            samples = tf.raw_ops.RandomIndexShuffle(index=positions % number, seed=seeds, max_index=np.int64(number - 1), rounds=4)
        # Not stateful: what is read depends on the arguments alone, and deterministic pipelines run stateful functions one by one.
        types = [tf.float16, tf.uint8, *(array.dtype for array in example.values())]
        arrays = tf.numpy_function(read, (samples % number, positions), types, stateful=False)
        shapes = [(*shape, channels), shape, *(array.shape for array in example.values())]
        arrays = [tf.ensure_shape(array, (part, *size)) for array, size in zip(arrays, shapes, strict=True)]
        batch = dict(zip(("image", "label", *example), arrays, strict=True))
        if not training:
            batch["weight"] = tf.where(positions < number, np.float32(batches * batch_size / number), np.float32(0))
        return batch

    low_seed = np.array(seed, np.int64).astype(np.int32)
    batches = -(-number // batch_size)
    first, last = (first_step, np.iinfo(np.int64).max) if training else (0, batches)
    pipeline = tf.data.Dataset.range(first, last).map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return pipeline.prefetch(tf.data.AUTOTUNE)


def _make_aligned(shape: Sequence[int], dtype: type) -> np.ndarray:
    """`np.empty` at a multiple of 64 bytes: TensorFlow takes such an array as it is, and copies others."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 63, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(dtype).reshape(shape)


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
