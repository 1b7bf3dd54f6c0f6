"""Takes the weights of a trained network into a new one, layer by layer, for other channels and classes too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops


class Ends(NamedTuple):
    """The names at both ends of a network.

    Attributes:
        channels: Names of the image channels, in order.
        class_names: Names of the classes, the background first.
    """

    channels: Sequence[str]
    class_names: Sequence[str]


@dataclass(frozen=True)
class Taken:
    """The weights that a new network has from a trained one.

    Attributes:
        taken: Number of weights that are taken, whole or in part.
        weights: Number of all weights of the new network.
        body: Number of kernels that are taken, the head's not counted. With none, nothing that was learnt remains.
        lines: What was taken in part or not at all, in sentences.
    """

    taken: int
    weights: int
    body: int
    lines: Sequence[str]


def take_weights(network: keras.Model, source: keras.Model, ends: Ends, source_ends: Ends) -> Taken:
    """Assigns to a network the weights of a trained one that fit.

    Layers are paired by their order, see `_pair_layers`, because Keras numbers their names by what the process made before. A weight is
    taken where both have one shape. Kernels of layers that see the image, alone or beside features, follow the channels by name, see
    `spread_channels`. The head follows the classes by name, see `match_classes`. All other weights stay as they are.

    Args:
        network: The new network, from `(B, *P, C)` to logits.
        source: A trained network of the same architecture, with or without the activation at its end.
        ends: Channels and classes of the new network.
        source_ends: Channels and classes of the trained one.
    """
    ours, theirs = _list_layers(network), _list_layers(source)
    head = next((layer for layer in reversed(ours) if _has_kernel(layer)), None)
    other_channels = list(ends.channels) != list(source_ends.channels)
    first = {id(layer) for layer in ours if _sees_image(network, layer)} if other_channels else set()
    beside = {id(layer): place for layer in ours if (place := _find_image(network, layer)) is not None} if other_channels else {}
    renamed = list(ends.class_names) != list(source_ends.class_names)
    values: dict[int, np.ndarray] = {}
    lines, body = [], 0
    for layer, other in _pair_layers(ours, theirs, first | beside.keys() | {id(head)}):
        old = [ops.convert_to_numpy(weight) for weight in other.weights]
        # Regions and classes of the same names differ in the background's logit.
        if layer is head and (renamed or old[-1].shape[-1] != layer.weights[-1].shape[-1]):
            own = [ops.convert_to_numpy(weight) for weight in layer.weights]
            new, line = match_classes(old, own, source_ends.class_names, ends.class_names)
            lines.append(line)
        elif id(layer) in first:
            new = [spread_channels(old[0], source_ends.channels, ends.channels), *old[1:]]
        elif id(layer) in beside:
            new = [_spread_part(old[0], beside[id(layer)], source_ends.channels, ends.channels), *old[1:]]
        else:
            new = old
        for weight, value in zip(layer.weights, new, strict=False):
            if value is not None and tuple(weight.shape) == value.shape:
                values[id(weight)] = value
                body += value.ndim > 1 and layer is not head
    for weight in network.weights:
        if id(weight) in values:
            weight.assign(values[id(weight)])
    if first:
        lines.append(_describe_channels(source_ends.channels, ends.channels))
    missing = [f"{weight.path} {tuple(weight.shape)}" for weight in network.weights if id(weight) not in values]
    if missing:
        more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        lines.append(f"{len(missing)} weights at random, because none of their shape is at their place: {', '.join(missing[:6])}{more}")
    return Taken(len(values), len(network.weights), body, lines)


def spread_channels(kernel: np.ndarray, source: Sequence[str], channels: Sequence[str]) -> np.ndarray | None:
    """Turns the kernel of a layer that sees the image into one for other channels.

    A channel takes the part of the channel of its name. Where both have as many channels, those that are left take each other's place.
    A channel without a partner takes the mean of all parts. All are scaled by the ratio of the numbers, so that an image whose channels
    are all alike gives the same output.

    Args:
        kernel: `(..., n * C, F)`, the channels being the fastest part of their axis.
        source: Names of its channels.
        channels: Names of the new channels.

    Returns:
        `(..., n * new C, F)`; None if the kernel does not have as many channels.
    """
    if kernel.ndim < 2 or kernel.shape[-2] % len(source):
        return None
    parts = kernel.reshape(*kernel.shape[:-2], -1, len(source), kernel.shape[-1])
    chosen = [parts.mean(axis=-2) if place is None else parts[..., place, :] for place in _match_channels(source, channels)]
    spread = np.stack(chosen, axis=-2) * np.float32(len(source) / len(channels))
    return spread.reshape(*kernel.shape[:-2], -1, kernel.shape[-1])


def _spread_part(kernel: np.ndarray, place: int, source: Sequence[str], channels: Sequence[str]) -> np.ndarray | None:
    """Turns a kernel as `spread_channels` does, whose channels from a place on are the image's and whose others are features."""
    before, image, after = np.split(kernel, [place, place + len(source)], axis=-2)
    spread = spread_channels(image, source, channels)
    return None if spread is None else np.concatenate([before, spread, after], axis=-2)


def match_classes(
    old: Sequence[np.ndarray], own: Sequence[np.ndarray], source: Sequence[str], names: Sequence[str]
) -> tuple[list[np.ndarray], str]:
    """Turns the weights of a head into those of one for other classes.

    A class takes the logit of the class of its name; the background is the first class, whatever its name. Other classes keep their own
    weights. A head without a logit for the background has that logit 0: a sigmoid of `z` is the softmax of `(0, z)`.

    Args:
        old: Weights of the trained head, `(..., logits)` each.
        own: Weights of the new head, likewise.
        source: Class names of the trained head.
        names: Class names of the new head.

    Returns:
        The new weights, and a sentence that names the classes. The weights are the head's own where the number of logits or of features
        does not fit.
    """
    places = {name.casefold(): index for index, name in enumerate(source) if index}
    partners = [0, *(places.get(name.casefold()) for name in names[1:])]
    found = [name for name, partner in zip(names, partners, strict=True) if partner is not None]
    new = [name for name, partner in zip(names, partners, strict=True) if partner is None]
    line = f"classes: {', '.join(found)} as there" + (f"; {', '.join(new)} at random" if new else "")
    weights = []
    for was, now in zip(old, own, strict=True):
        fits = was.shape[:-1] == now.shape[:-1] and len(source) - was.shape[-1] in (0, 1) and len(names) - now.shape[-1] in (0, 1)
        if not fits:
            return list(own), f"classes: {', '.join(names)} at random, because the features do not fit"
        # (..., K) each, the background first.
        was = np.concatenate([np.zeros_like(was[..., :1]), was], axis=-1) if was.shape[-1] < len(source) else was
        without = now.shape[-1] < len(names)
        value = now.copy()
        for index, partner in enumerate(partners[1:] if without else partners):
            if partner is not None:
                value[..., index] = was[..., partner] - was[..., 0] if without else was[..., partner]
        weights.append(value)
    return weights, line


def _match_channels(source: Sequence[str], channels: Sequence[str]) -> list[int | None]:
    """Returns the place of each channel's partner in `source`; None for a channel without one."""
    places = {name.casefold(): index for index, name in enumerate(source)}
    partners = [places.get(name.casefold()) for name in channels]
    left = sorted(set(range(len(source))) - set(partners)) if len(source) == len(channels) else []
    return [left.pop(0) if partner is None and left else partner for partner in partners]


def _describe_channels(source: Sequence[str], channels: Sequence[str]) -> str:
    partners = zip(channels, _match_channels(source, channels), strict=True)
    return "channels: " + ", ".join(f"{name} as {'the mean of all' if place is None else source[place]}" for name, place in partners)


def _list_layers(model: keras.Model) -> list[Any]:
    """Lists the layers that have weights in the order of the graph, those of models within the model too."""
    layers: list[Any] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            layers += _list_layers(layer)
        elif layer.weights:
            layers.append(layer)
    return layers


def _has_kernel(layer: Any) -> bool:
    return any(len(weight.shape) > 1 for weight in layer.weights)


def _sees_image(network: keras.Model, layer: Any) -> bool:
    """Returns whether nothing with weights stands between the image and a layer with a kernel."""
    if not _has_kernel(layer) or all(layer is not other for other in network.layers) or isinstance(layer.input, list | tuple):
        return False
    return not keras.Model(network.input, layer.input).weights


def _find_image(network: keras.Model, layer: Any) -> int | None:
    """Finds the first of a kernel's input channels that is the image's, where a layer has the image beside features; None elsewhere."""
    if not _has_kernel(layer) or all(layer is not other for other in network.layers) or isinstance(layer.input, list | tuple):
        return None
    joined = next((other for other in network.layers if isinstance(other, keras.layers.Concatenate) and other.output is layer.input), None)
    place = 0
    for tensor in joined.input if joined is not None else ():
        # In half precision a cast stands between the image and the layer.
        if tensor.shape[-1] == network.input.shape[-1] and not keras.Model(network.input, tensor).weights:
            return place
        place += tensor.shape[-1]
    return None


def _pair_layers(ours: Sequence[Any], theirs: Sequence[Any], ends: set[int]) -> list[tuple[Any, Any]]:
    """Pairs the layers of two networks.

    Layers with kernels are paired by their order, if both networks have the same kinds of them in the same order. Otherwise, as with
    another number of levels, we pair from the front and from the back as long as kinds and shapes are the same. Layers in between, which
    normalise, go with the kernel before them where they are of one kind.

    Args:
        ours: Layers of the new network.
        theirs: Layers of the trained one.
        ends: `id` of our layers whose shape may differ.
    """
    groups, others = _group_layers(ours), _group_layers(theirs)
    if [type(group[0]) for group in groups] == [type(group[0]) for group in others]:
        paired = list(zip(groups, others, strict=True))
    else:
        least = min(len(groups), len(others))
        alike = [_is_alike(group[0], other[0], ends) for group, other in zip(groups, others, strict=False)]
        front = alike.index(False) if False in alike else least
        alike = [_is_alike(group[0], other[0], ends) for group, other in zip(groups[::-1], others[::-1], strict=False)]
        back = min(alike.index(False) if False in alike else least, least - front)
        paired = [*zip(groups[:front], others[:front], strict=True)]
        paired += zip(groups[len(groups) - back :], others[len(others) - back :], strict=True)
    return [(one, other) for group, partner in paired for one, other in zip(group, partner, strict=False) if type(one) is type(other)]


def _is_alike(one: Any, other: Any, ends: set[int]) -> bool:
    shapes = [[tuple(weight.shape) for weight in layer.weights] for layer in (one, other)]
    return type(one) is type(other) and (shapes[0] == shapes[1] or id(one) in ends)


def _group_layers(layers: Sequence[Any]) -> list[list[Any]]:
    """Groups each layer that has a kernel with those after it that have none."""
    groups: list[list[Any]] = []
    for layer in layers:
        if _has_kernel(layer) or not groups:
            groups.append([layer])
        else:
            groups[-1].append(layer)
    return groups
