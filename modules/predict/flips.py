"""Computes windows with a model of any rank and head, and averages over dropout and flips where they are wanted."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from modules.data.documents import to_line
from modules.predict import windows
from modules.predict.bundle import ModelBundle
from modules.predict.doubt import add_entropy
from modules.predict.dropout import thin_model

log = logging.getLogger("mri")
Order = tuple[int, int, int]
CANONICAL: Order = (0, 1, 2)


def make_predictor(
    bundle: ModelBundle, mirror: bool, order: Order, *, doubt: bool = False, dropout: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
    """Makes a function from windows `(B, *window, C)` with their axes in `order` to probabilities, for any rank and head of a model.

    With `doubt` their entropy is one number more, see `modules.predict.doubt.add_entropy`. With `dropout` they are the mean over so many
    models, see `modules.predict.dropout.thin_model`.
    """
    across = None if bundle.window.across is None else bundle.window.across + 1

    def predict_canonical(model: Any, inputs: np.ndarray) -> np.ndarray:
        outputs = np.asarray(model.predict_on_batch(inputs if across is None else inputs.squeeze(across)))
        if outputs.shape[-1] == 1 and not bundle.regions:
            outputs = np.concatenate([1 - outputs, outputs], axis=-1)
        return outputs if across is None else np.expand_dims(outputs, across)

    members = [partial(predict_canonical, model) for model in (thin_model(bundle, dropout) if dropout else [bundle.model])]
    if doubt:
        members = [add_entropy(member, regions=bool(bundle.regions)) for member in members]
    predict: Callable[[np.ndarray], np.ndarray] = members[0]
    if len(members) > 1:
        predict = lambda inputs: np.mean([member(inputs) for member in members], axis=0)  # noqa: E731
    if mirror:
        # Only volumes in canonical orientation have a known axis from left to right: the first.
        left_right = 1 if bundle.preprocessing.spatial_dims == 3 else None
        if left_right is None and bundle.mirrored_labels:
            raise ValueError("Expected volumes for `mirror` with classes on the left and the right. Received: a model of 2-D files.")
        predict = windows.mirror(predict, [axis + 1 for axis in _choose_flips(bundle)], left_right, bundle.mirrored_labels)
    if order == CANONICAL:
        return predict
    there, back = (tuple(int(axis) + 1 for axis in axes) for axes in (order, np.argsort(order)))
    return lambda inputs: predict(np.ascontiguousarray(inputs.transpose(0, *back, 4))).transpose(0, *there, 4)


def _choose_flips(bundle: ModelBundle) -> tuple[int, ...]:
    """Returns the axes of the window that a prediction may be mirrored along: those along which the training flipped its samples.

    Raises:
        ValueError: If it flipped none: such a network has never seen a mirror image and can be wrong about it.
    """
    # Of several models each has a run of its own.
    run = bundle.provenance.get("run")
    named = f" of run '{to_line(run)}'" if isinstance(run, str) else ""
    if bundle.flipped_axes is None:
        log.warning("--mirror: nobody wrote down whether the model%s was trained with flips; without them it is worse for mirroring", named)
        return tuple(axis for axis, size in enumerate(bundle.window.deep) if size > 1)
    if not bundle.flipped_axes:
        raise ValueError(
            f"Expected a model that was trained with flips for --mirror. Received: one trained without (--augment none){named}, which is "
            "worse for mirroring. Leave --mirror out."
        )
    return bundle.flipped_axes
