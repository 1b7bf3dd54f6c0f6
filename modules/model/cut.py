"""Cuts the windows of a batch out of the table of all cases, on the device; see `modules.data.resident`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from keras import ops

from modules.model.augment import gather

# What a batch holds in place of `image` and `label` where the cases lie on the device.
_PLACES = ("table_image", "table_label", "base", "grid", "darkest")


def compile_cut(table: dict[str, Any], shape: Sequence[int]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Compiles `cut_windows` as a program of its own, for JAX.

    Within the training's step XLA would mix it with what follows, and so round in other places than for batches that the host reads.

    Args:
        table: `table_image` and `table_label` of all cases.
        shape: `P`.

    Returns:
        A function from a batch of places, without the table, to one of samples.
    """
    import jax

    cut = jax.jit(partial(cut_windows, shape=tuple(shape)))

    def cut_batch(batch: dict[str, Any]) -> dict[str, Any]:
        places = {name: batch[name] for name in _PLACES if name in batch}
        return cut(places | table) | {name: value for name, value in batch.items() if name not in _PLACES}

    return cut_batch


def cut_windows(batch: dict[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """Puts `image (B, *P, C)` float16 and `label (B, *P)` uint8 into a batch of places; returns any other batch as it is.

    Voxels beyond a case have its darkest value in each channel, and label 0. So the samples are those that the host would read.

    Args:
        batch: The batch.
        shape: `P`.
    """
    if "table_image" not in batch:
        return batch
    table, grid = batch["table_image"], batch["grid"]
    rank, channels = len(shape), table.shape[-1]
    ones = (1,) * rank
    index: Any = ops.reshape(batch["base"], (-1, *ones))
    inside: Any = True
    for axis, length in enumerate(shape):
        first, size, step = (ops.reshape(grid[:, row, axis], (-1, *ones)) for row in range(3))
        place = first + ops.reshape(ops.arange(length, dtype="int32"), [-1 if other == axis else 1 for other in range(rank)])
        inside = ops.logical_and(inside, ops.logical_and(place >= 0, place < size))
        index = index + place * step
    index = ops.where(inside, index, 0)
    # A gather of single numbers is faster than one of rows of one number.
    image = gather(ops.reshape(table, (-1,)), index)[..., None] if channels == 1 else gather(table, index)
    image = ops.where(inside[..., None], image, ops.reshape(batch["darkest"], (-1, *ones, channels)))
    label = ops.where(inside, gather(batch["table_label"], index), ops.zeros((), "uint8"))
    return {"image": image, "label": label} | {name: value for name, value in batch.items() if name not in _PLACES}
