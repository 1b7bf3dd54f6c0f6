"""The tf.data pipelines that feed a training: whole slices and volumes, slices of volumes, and patches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modules.data.cache import PreparedCase, share_checked
from modules.data.patches import Window, count_starts, draw_start, nth_start
from modules.data.readers import Layout, ReaderPool, make_arrays
from modules.data.regions import IGNORE
from modules.data.resident import find_place, list_places
from modules.hardware import count_cores

# `tf.random.experimental.index_shuffle` puts this number before a seed of two numbers. Given a seed for each index, it puts it in the
# wrong place (TensorFlow 2.21), so we call the operation itself.
_SHUFFLE_SEED = np.int32(498247692)
# Batches that are read at once, at most, and those that wait for the device. Readers share Python's lock.
MOST_READERS, BATCHES_AHEAD = 16, 4
DrawAugmentation = Callable[[np.random.Generator, Sequence[float]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class PatchSampler:
    """The draw of training patches and slices.

    Attributes:
        sampling: See `modules.data.patches.draw_start`. With "foreground" every third patch of a case is centred on foreground, each
            class being as likely, and the rest lies anywhere. In a case with ignored voxels the rest is centred on one that is not, as
            few may be. Among slices every third sample of the training shows foreground, see `draw_shown`.
        per_case: Patches of each case in an epoch; 0 for slices of volumes, of which each comes once.
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
        # A slice lists no points. `draw_shown` draws those that show foreground.
        uniform = self.sampling == "foreground" and (turn % 3 != 0 or len(case.shape) == 2)
        rng = np.random.default_rng(list(seeds))
        sampling = "uniform" if uniform else self.sampling
        if sampling == "uniform" and IGNORE in case.classes:
            sampling = "judged"
        return draw_start(rng, case.shape, window, points=case.points, sampling=sampling, probabilities=self.probabilities)


def list_shown(cases: Sequence[PreparedCase]) -> dict[int, np.ndarray]:
    """Lists the cases `(n,)` that hold each foreground class, by their indices; classes in no case are left out."""
    classes = sorted({index for case in cases for index in case.classes} - {0, IGNORE})
    return {index: np.array([place for place, case in enumerate(cases) if index in case.classes]) for index in classes}


def draw_shown(
    cases: Sequence[PreparedCase], shown: Mapping[int, np.ndarray], window: Window, seeds: Sequence[int]
) -> tuple[int, tuple[int, ...]]:
    """Draws a slice that shows foreground; the draw is a pure function of `seeds`.

    Each class is as likely as the others, however many voxels it has. Of the cases that hold the class each is as likely, and then
    each slice of the volume. A window smaller than the slice is centred on a voxel of the class.

    Args:
        cases: The cases of the training.
        shown: The cases of each class, from `list_shown`; at least one class.
        window: The window of the samples, across one axis of volumes.
        seeds: Numbers that decide the draw.

    Returns:
        The case's place among the cases, and the first voxel of its window.
    """
    rng = np.random.default_rng(list(seeds))
    index = list(shown)[rng.integers(len(shown))]
    place = int(shown[index][rng.integers(len(shown[index]))])
    case = cases[place]
    if all(size <= length for size, length in zip(case.shape, window.sizes, strict=True)):
        return place, nth_start(case.shape, window.sizes, 0)
    points = case.find_voxels(index)
    if 1 in window.sizes:
        places = points[:, window.sizes.index(1)]
        planes = np.unique(places)
        points = points[places == planes[rng.integers(len(planes))]]
    return place, draw_start(rng, case.shape, window.sizes, points=[points], sampling="weighted")


def count_samples(shapes: Sequence[Sequence[int]], window: Window, sampler: PatchSampler | None) -> int:
    """Counts the samples of an epoch from the shapes of the prepared cases: drawn patches, or the windows of a grid."""
    return len(shapes) * sampler.per_case if sampler and sampler.per_case else sum(count_starts(shape, window.sizes) for shape in shapes)


class BatchReader:
    """Reads the samples of a batch. It holds plain data alone, so that a process of its own may do it.

    Attributes:
        layout: Shape and type of each array of a batch, by name. There are `image (B, *P, C)` float16 and `label (B, *P)` uint8, then what
            the augmentation draws. With `bases` the places of the windows come instead, see `modules.data.resident`.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        window: Window,
        channels: int,
        *,
        size: int,
        training: bool,
        sampler: PatchSampler | None,
        draw_augmentation: DrawAugmentation | None,
        seed: int,
        bases: np.ndarray | None = None,
    ) -> None:
        """Takes what decides the samples; see `make_pipeline`.

        Args:
            cases: The cases.
            window: The size of a sample.
            channels: `C`.
            size: `B`, or this host's part of it.
            training: Whether the samples are for training.
            sampler: Draws patches or slices.
            draw_augmentation: Draws the augmentation of a sample.
            seed: Seed of all draws.
            bases: The first row of each case in the table on the device, `(n,)`; None where images and labels are read.
        """
        self._cases, self._window, self._sampler, self._seed, self._bases = cases, window, sampler, seed, bases
        self._draw_augmentation = draw_augmentation
        self._on_grid = sampler is None or not sampler.per_case
        self._firsts = np.cumsum([0, *(count_starts(case.shape, window.sizes) for case in cases)]) if self._on_grid else ()
        # Volumes hold their foreground in each case; patches of them are drawn case by case.
        shows = training and sampler and sampler.sampling == "foreground" and len(window.shape) == 2
        self._shown = list_shown(cases) if shows else {}
        example = draw_augmentation(np.random.default_rng(0), (1.0,) * len(window.axes)) if draw_augmentation else {}
        # Arrays keep the types of the cache. They are widened where they are computed with, so fewer bytes travel.
        samples: dict[str, tuple[tuple[int, ...], Any]] = {
            "image": ((*window.shape, channels), np.float16),
            "label": (window.shape, np.uint8),
        }
        if bases is not None:
            samples = list_places(window, channels)
        samples |= {name: (array.shape, array.dtype) for name, array in example.items()}
        self.layout: Layout = {name: ((size, *shape), np.dtype(dtype)) for name, (shape, dtype) in samples.items()}

    def __getstate__(self) -> dict[str, Any]:
        # A thread that reads may check a file meanwhile, so the record of them is copied in one piece.
        return {**self.__dict__, "checked": dict(share_checked())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        share_checked(state.pop("checked"))
        self.__dict__ |= state

    def read(self, samples: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        """Reads samples by their numbers in an epoch `(B,)` and their positions in the training `(B,)`."""
        batch = dict(zip(self.layout, make_arrays(self.layout), strict=True))
        sizes = self._window.sizes
        for row, (sample, position) in enumerate(zip(samples.tolist(), positions.tolist(), strict=True)):
            index, start = self._find_window(sample, position)
            case = self._cases[index]
            values: dict[str, Any] = {}
            if self._bases is None:
                case.read_into(batch["image"][row].reshape(*sizes, -1), batch["label"][row].reshape(sizes), start)
            else:
                values |= find_place(int(self._bases[index]), case, start, self._window)
            if self._draw_augmentation:
                # Augmentation has its own generator, so that it does not depend on how much the draw of the patch draws.
                rng = np.random.default_rng([self._seed, position, 1])
                values |= self._draw_augmentation(rng, [case.spacing_mm[axis] for axis in self._window.axes])
            for name, value in values.items():
                batch[name][row] = value
        return list(batch.values())

    def _find_window(self, sample: int, position: int) -> tuple[int, Sequence[int]]:
        """Finds the case of a sample, by its place, and the first voxel of its window."""
        cases, sizes = self._cases, self._window.sizes
        if self._shown and position % 3 == 0:
            return draw_shown(cases, self._shown, self._window, (self._seed, position))
        if self._sampler and not self._on_grid:
            turn, index = divmod(sample, len(cases))
            return index, self._sampler.draw_start(cases[index], sizes, turn, (self._seed, position))
        index = int(np.searchsorted(self._firsts, sample, "right")) - 1
        return index, nth_start(cases[index].shape, sizes, sample - int(self._firsts[index]))


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
    bases: np.ndarray | None = None,
    pool: ReaderPool | None = None,
):
    """Makes a `tf.data.Dataset` of dicts: `image (B, *P, C)` float16, `label (B, *P)` uint8, and what `draw_augmentation` adds.

    Samples are windows of the cases. They lie on a grid without overlap (a whole slice or volume; each slice of a volume), or are
    patches drawn anew each time.

    A pipeline for training is endless and every batch is full. The batch of step `s` is a pure function of `(seed, s)`. Its samples
    have the positions `s * B + i` in an endless row of permutations, one for each epoch, computed without state. A run can thus begin
    at any step. A sampler that shows foreground takes every third position of slices out of this row; see `draw_shown`.

    Any other pipeline goes through the samples once, in order, and adds `weight (B,)` float32. Samples that only fill the last batch
    weigh 0. A batch of another size would have to be compiled anew, and hosts could not divide it. The other weights make the mean
    over batches equal the mean over samples.

    Args:
        cases: Cases from `modules.data.cache.prepare_cases`.
        window: The size of a sample in the rank of the cases.
        channels: `C`.
        batch_size: `B`.
        training: Whether the pipeline is for training.
        sampler: Draws patches, or slices that show foreground; without it samples are the windows of a grid.
        draw_augmentation: Draws the parameters of a sample's augmentation from a generator and the sample's voxel size. They are
            arrays of fixed shapes.
        seed: Seed of the order and of all draws.
        first_step: The step that training begins at.
        host_slice: `(i, n)` gives only the `i`-th of `n` equal parts of each batch: the part of one host among several.
        failures: Takes the errors of reading. TensorFlow wraps them in errors of its own, which are no single line.
        bases: The first row of each case in the table on the device. Batches then hold places in place of `image` and `label`, see
            `modules.data.resident`.
        pool: Processes that read the batches; without them the threads of this process do.

    Raises:
        ValueError: If the hosts cannot divide a batch equally.
    """
    import tensorflow as tf

    host, hosts = host_slice
    if batch_size % hosts:
        raise ValueError(f"Expected a `batch_size` that {hosts} hosts can share equally. Received: {batch_size}. Choose a multiple.")
    number = count_samples([case.shape for case in cases], window, sampler)
    part = batch_size // hosts
    reader = BatchReader(
        cases, window, channels, size=part, training=training, sampler=sampler, draw_augmentation=draw_augmentation, seed=seed, bases=bases
    )
    layout = reader.layout
    read, readers = (pool.serve(reader), pool.number) if pool else (reader.read, min(MOST_READERS, count_cores()))

    def try_to_read(samples: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        try:
            return read(samples, positions)
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
        arrays = tf.numpy_function(try_to_read, (samples % number, positions), [dtype for _, dtype in layout.values()], stateful=False)
        batch: dict[str, Any] = {
            name: tf.ensure_shape(array, shape) for (name, (shape, _)), array in zip(layout.items(), arrays, strict=True)
        }
        if not training:
            batch["weight"] = tf.where(positions < number, np.float32(batches * batch_size / number), np.float32(0))
        return batch

    low_seed = np.array(seed, np.int64).astype(np.int32)
    batches = -(-number // batch_size)
    first, last = (first_step, np.iinfo(np.int64).max) if training else (0, batches)
    pipeline = tf.data.Dataset.range(first, last).map(load_batch, num_parallel_calls=readers, deterministic=True)
    return switch_tuning_off(pipeline.prefetch(BATCHES_AHEAD))


def switch_tuning_off(pipeline):
    """Switches off the tuning of a `tf.data.Dataset`, whose numbers of readers and batches ahead must then be given.

    The thread that tunes does not end with the iterator. A finished pipeline waited for it: after 2.6 to 5.1 seconds of work until 5.1,
    then until 10.2 and so on, and each minute after that (TensorFlow 2.21). Each validation paid for it.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return pipeline.with_options(options)
