"""The tf.data pipelines that feed a training: whole slices and volumes, slices of volumes, and patches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from modules.data.cache import PreparedCase
from modules.data.patches import Window, count_starts, draw_start, nth_start
from modules.data.regions import IGNORE

# `tf.random.experimental.index_shuffle` puts this number before a seed of two numbers. Given a seed for each index, it puts it in the
# wrong place (TensorFlow 2.21), so we call the operation itself.
_SHUFFLE_SEED = np.int32(498247692)
DrawAugmentation = Callable[[np.random.Generator, Sequence[float]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class PatchSampler:
    """The draw of training patches.

    Attributes:
        sampling: See `modules.data.patches.draw_start`. With "foreground" every third patch of a case is centred on foreground, and
            the rest lies anywhere. In a case with ignored voxels such a patch is centred on one that is not, as few may be.
        per_case: Patches of each case in an epoch.
        probabilities: Probabilities of the classes, for "weighted".
    """

    sampling: str = "foreground"
    per_case: int = 4
    probabilities: tuple[float, ...] = ()

    def draw_start(self, case: PreparedCase, window: Sequence[int], turn: int, seeds: Sequence[int]) -> tuple[int, ...]:
        """Draws the first voxel of patch number `turn` of an epoch; the draw is a pure function of `seeds`."""
        if all(size <= length for size, length in zip(case.shape, window, strict=True)):
            # The case lies in the window's middle. A generator would cost more than the rest.
            return nth_start(case.shape, window, 0)
        uniform = self.sampling == "foreground" and turn % 3 != 0
        rng = np.random.default_rng(list(seeds))
        sampling = "uniform" if uniform else self.sampling
        if sampling == "uniform" and IGNORE in case.classes:
            sampling = "judged"
        return draw_start(rng, case.shape, window, points=case.points, sampling=sampling, probabilities=self.probabilities)


def count_samples(shapes: Sequence[Sequence[int]], window: Window, sampler: PatchSampler | None) -> int:
    """Counts the samples of an epoch from the shapes of the prepared cases: drawn patches, or the windows of a grid."""
    return len(shapes) * sampler.per_case if sampler else sum(count_starts(shape, window.sizes) for shape in shapes)


def make_pipeline(
    cases: Sequence[PreparedCase],
    window: Window,
    channels: int,
    *,
    batch_size: int,
    training: bool,
    sampler: PatchSampler | None = None,
    draw_augmentation: DrawAugmentation | None = None,
    seed: int = 42,
    first_step: int = 0,
    host_slice: tuple[int, int] = (0, 1),
    failures: list[Exception] | None = None,
):
    """Makes a `tf.data.Dataset` of dicts: `image (B, *P, C)` float16, `label (B, *P)` uint8, and what `draw_augmentation` adds.

    Samples are windows of the cases. They lie on a grid without overlap (a whole slice or volume; each slice of a volume), or are
    patches drawn anew each time.

    A pipeline for training is endless and every batch is full. The batch of step `s` is a pure function of `(seed, s)`. Its samples
    have the positions `s * B + i` in an endless row of permutations, one for each epoch, computed without state. A run can thus begin
    at any step.

    Any other pipeline goes through the samples once, in order, and adds `weight (B,)` float32. Samples that only fill the last batch
    weigh 0. A batch of another size would have to be compiled anew, and hosts could not divide it. The other weights make the mean
    over batches equal the mean over samples.

    Args:
        cases: Cases from `modules.data.cache.prepare_cases`.
        window: The size of a sample in the rank of the cases.
        channels: `C`.
        batch_size: `B`.
        training: Whether the pipeline is for training.
        sampler: Draws patches; without it samples are the windows of a grid.
        draw_augmentation: Draws the parameters of a sample's augmentation from a generator and the sample's voxel size. They are
            arrays of fixed shapes.
        seed: Seed of the order and of all draws.
        first_step: The step that training begins at.
        host_slice: `(i, n)` gives only the `i`-th of `n` equal parts of each batch: the part of one host among several.
        failures: Takes the errors of reading. TensorFlow wraps them in errors of its own, which are no single line.

    Raises:
        ValueError: If the hosts cannot divide a batch equally.
    """
    import tensorflow as tf

    host, hosts = host_slice
    if batch_size % hosts:
        raise ValueError(f"Expected a `batch_size` that {hosts} hosts can share equally. Received: {batch_size}. Choose a multiple.")
    shapes = [case.shape for case in cases]
    number = count_samples(shapes, window, sampler)
    firsts = () if sampler else np.cumsum([0, *(count_starts(shape, window.sizes) for shape in shapes)])
    part = batch_size // hosts
    example = draw_augmentation(np.random.default_rng(0), (1.0,) * len(window.axes)) if draw_augmentation else {}

    def find_window(sample: int, position: int) -> tuple[PreparedCase, Sequence[int]]:
        if sampler:
            turn, index = divmod(sample, len(cases))
            return cases[index], sampler.draw_start(cases[index], window.sizes, turn, (seed, position))
        index = int(np.searchsorted(firsts, sample, "right")) - 1
        return cases[index], nth_start(shapes[index], window.sizes, sample - int(firsts[index]))

    def read_samples(samples: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        # Arrays keep the types of the cache. They are widened where they are computed with, so fewer bytes travel.
        image, label = _make_aligned((part, *window.sizes, channels), np.float16), _make_aligned((part, *window.sizes), np.uint8)
        drawn = []
        for row, (sample, position) in enumerate(zip(samples.tolist(), positions.tolist(), strict=True)):
            case, start = find_window(sample, position)
            case.read_into(image[row], label[row], start)
            if draw_augmentation:
                # Augmentation has its own generator, so that it does not depend on how much the draw of the patch draws.
                rng = np.random.default_rng([seed, position, 1])
                drawn.append(draw_augmentation(rng, [case.spacing_mm[axis] for axis in window.axes]))
        parameters = [np.stack([one[name] for one in drawn]) for name in example]
        return [image.reshape(part, *window.shape, channels), label.reshape(part, *window.shape), *parameters]

    def try_to_read(samples: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        try:
            return read_samples(samples, positions)
        except (OSError, ValueError) as error:
            if failures is not None:
                failures.append(error)
            raise

    def load_batch(index):
        # The positions are the same, whichever host reads them.
        positions = samples = index * batch_size + host * part + tf.range(part, dtype=tf.int64)
        if training:
            epochs = tf.cast(positions // number, tf.int32)
            seeds = tf.stack([tf.fill(epochs.shape, _SHUFFLE_SEED), tf.fill(epochs.shape, low_seed), epochs], axis=-1)
            samples = tf.raw_ops.RandomIndexShuffle(index=positions % number, seed=seeds, max_index=np.int64(number - 1), rounds=4)
        # The function is not stateful: its result depends on the arguments alone. Deterministic pipelines run stateful functions one
        # by one.
        types = [tf.float16, tf.uint8, *(array.dtype for array in example.values())]
        arrays = tf.numpy_function(try_to_read, (samples % number, positions), types, stateful=False)
        sizes = [(*window.shape, channels), window.shape, *(array.shape for array in example.values())]
        arrays = [tf.ensure_shape(array, (part, *size)) for array, size in zip(arrays, sizes, strict=True)]
        batch = dict(zip(("image", "label", *example), arrays, strict=True))
        if not training:
            batch["weight"] = tf.where(positions < number, np.float32(batches * batch_size / number), np.float32(0))
        return batch

    low_seed = np.array(seed, np.int64).astype(np.int32)
    batches = -(-number // batch_size)
    first, last = (first_step, np.iinfo(np.int64).max) if training else (0, batches)
    pipeline = tf.data.Dataset.range(first, last).map(load_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return pipeline.prefetch(tf.data.AUTOTUNE)


def _make_aligned(shape: Sequence[int], dtype: type) -> np.ndarray:
    """Makes an empty array at a multiple of 64 bytes. TensorFlow takes such an array as it is, and copies others."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 63, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(dtype).reshape(shape)
