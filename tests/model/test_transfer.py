"""Weights of a trained network in a new one: by order, by channel, by class."""

import keras
import numpy as np
import pytest

from modules import networks
from modules.model.transfer import Ends, match_classes, spread_channels, take_weights
from modules.run.proof import hash_weights

SMALL = {
    "unetr": {"base_filters": 4, "hidden_size": 4, "mlp_size": 4, "num_layers": 4, "num_heads": 2},
    "efficientnet_unet": {"base_filters": 2},
}
ENDS = Ends(("T1",), ("background", "CSF", "GM"))


def _build(name, channels=1, classes=3, **options):
    size = networks.find_divisor(name, {"levels": 1, **options})
    options = SMALL.get(name, {"base_filters": 2, "levels": 1}) | options
    return networks.build(name, (*(2 * size,) * networks.find_ranks(name)[0], channels), classes, **options)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_takes_all_its_own_weights_and_those_for_other_channels_and_classes(name):
    source = networks.with_head(_build(name))
    # Layers have other names in each network that a process makes.
    network = _build(name)
    taken = take_weights(network, source, ENDS, ENDS)
    assert (taken.taken, taken.weights, taken.lines) == (len(network.weights), len(source.weights), [])
    assert hash_weights(network) == hash_weights(source)

    if name == "efficientnet_unet":
        # It takes long to build.
        return
    other = _build(name, 2, 2)
    taken = take_weights(other, source, Ends(("T1", "T2"), ("background", "GM")), ENDS)
    assert taken.weights == taken.taken
    assert taken.lines[:2] == ["classes: background, GM as there", "channels: T1 as T1, T2 as the mean of all"]
    # An image whose channels are all alike gives the same.
    image = np.random.default_rng(0).normal(size=(1, *network.input_shape[1:])).astype("float32")
    logits, both = network(image), other(np.concatenate([image, image], axis=-1))
    np.testing.assert_allclose(both[..., 0], logits[..., 2] - logits[..., 0], atol=1e-4)


@pytest.mark.parametrize(("option", "value", "body"), [("base_filters", 4, 0), ("norm", "group", 7), ("levels", 2, 7)])
def test_other_options_keep_what_fits(option, value, body):
    source, network = _build("unet2d"), _build("unet2d", **{option: value})
    before = [np.array(weight) for weight in network.weights]
    taken = take_weights(network, source, ENDS, ENDS)
    # With another norm all kernels fit. With another level those on the way down, and the last block on the way up.
    assert taken.body == body
    assert (taken.taken < taken.weights) == bool(taken.lines)
    changed = [not np.array_equal(weight, now) for weight, now in zip(before, network.weights, strict=True)]
    assert any(changed) == bool(body)
    if not body:
        assert f"{taken.weights - taken.taken} weights at random" in taken.lines[-1]


def test_another_level_takes_the_same_places_from_the_front_and_the_back():
    source, network = _build("unet2d"), _build("unet2d", levels=2)
    for weight in source.weights:
        weight.assign(np.full(weight.shape, 7.0))
    take_weights(network, source, ENDS, ENDS)
    kernels = [bool((np.array(weight) == 7).all()) for weight in network.weights if weight.path.endswith("kernel")]
    # Two blocks of two on the way down, then a new block, a step up and a block; then the step up, a block and the head as before.
    assert kernels == [True] * 4 + [False] * 5 + [True] * 4


def test_channels_by_hand():
    kernel = np.arange(1.0, 5.0, dtype="float32").reshape(1, 1, 2, 2)  # T1: 1, 2; T2: 3, 4
    assert spread_channels(kernel, ("T1", "T2"), ("t2", "T1")).ravel().tolist() == [3, 4, 1, 2]
    assert spread_channels(kernel, ("T1", "T2"), ("FLAIR", "T1")).ravel().tolist() == [3, 4, 1, 2]
    # One of two channels has twice its weight, and one of three two thirds.
    assert spread_channels(kernel, ("T1", "T2"), ("T2",)).ravel().tolist() == [6, 8]
    three = spread_channels(kernel, ("T1", "T2"), ("T1", "PD", "T2")).ravel()
    np.testing.assert_allclose(three, np.array([1, 2, 2, 3, 3, 4]) * 2 / 3, rtol=1e-6)
    assert three.dtype == np.float32
    # Tokens hold all channels of a voxel side by side: voxel 1 has 1 and 2, voxel 2 has 3 and 4.
    token = np.arange(1.0, 5.0, dtype="float32")[:, None]
    assert spread_channels(token, ("T1", "T2"), ("T2", "T1")).ravel().tolist() == [2, 1, 4, 3]
    assert spread_channels(token[:3], ("T1", "T2"), ("T1",)) is None


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_layer_that_has_the_image_beside_features_follows_the_channels_too(policy):
    def build(channels):
        image = keras.Input((4, 4, channels))
        x = keras.layers.Concatenate(dtype=policy)([keras.layers.Conv2D(3, 1, dtype=policy)(image), image])
        return keras.Model(image, keras.layers.Conv2D(3, 1)(keras.layers.Conv2D(4, 1, dtype=policy)(x)))

    source, turned, one = build(2), build(2), build(1)
    for network, channels in ((turned, ("T2", "T1")), (one, ("PD",))):
        taken = take_weights(network, source, Ends(channels, ENDS.class_names), Ends(("T1", "T2"), ENDS.class_names))
        assert taken.taken == taken.weights
    old, new, mean = (np.array(model.layers[-2].kernel) for model in (source, turned, one))
    np.testing.assert_array_equal(new[..., [0, 1, 2, 4, 3], :], old)
    # Of one channel in place of two the sum gives the same for an image with equal channels.
    np.testing.assert_array_equal(mean[..., :3, :], old[..., :3, :])
    np.testing.assert_allclose(mean[..., 3, :], old[..., 3:, :].sum(axis=-2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "source", "own", "names", "expected", "line"),
    [
        ([1, 2, 3], "bg a b", [7, 8, 9], "bg b a", [1, 3, 2], "classes: bg, b, a as there"),
        ([1, 2, 3], "bg a b", [7, 8, 9, 6], "BG c A d", [1, 8, 2, 6], "classes: BG, A as there; c, d at random"),
        # The background is the first class, whatever its name, and no other class is.
        ([1, 2, 3], "bg a b", [7, 8, 9], "other bg b", [1, 8, 3], "classes: other, b as there; bg at random"),
        # The sigmoid of z is the softmax of (0, z).
        ([1, 2, 3], "bg a b", [9], "bg b", [2], "classes: bg, b as there"),
        ([1, 2, 3], "bg a b", [9], "bg c", [9], "classes: bg as there; c at random"),
        ([5], "bg a", [7, 8, 9], "bg a b", [0, 5, 9], "classes: bg, a as there; b at random"),
        ([5], "bg a", [9], "none A", [5], "classes: none, A as there"),
        # Overlapping regions have a logit each and none for the background.
        ([5, 6], "bg a b", [8, 9], "bg b a", [6, 5], "classes: bg, b, a as there"),
    ],
)
def test_classes_by_hand(old, source, own, names, expected, line):
    weights = [np.array([old, old], "float32"), np.array(old, "float32")], [np.array([own, own], "float32"), np.array(own, "float32")]
    (kernel, bias), said = match_classes(*weights, source.split(), names.split())
    assert (kernel.tolist(), bias.tolist(), said) == ([expected, expected], expected, line)


def test_regions_and_classes_of_the_same_names_keep_their_logits():
    regions, classes = _build("unet2d", num_regions=2), _build("unet2d")
    kernel, bias = before = regions.layers[-1].get_weights()
    taken = take_weights(classes, networks.with_head(regions, regions=True), ENDS, ENDS)
    assert (taken.taken, taken.lines) == (taken.weights, ["classes: background, CSF, GM as there"])
    for weight, old in zip(classes.layers[-1].get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight[..., 0], 0)
        np.testing.assert_array_equal(weight[..., 1:], old)
    take_weights(regions, classes, ENDS, ENDS)
    assert all(np.array_equal(weight, old) for weight, old in zip(regions.layers[-1].get_weights(), (kernel, bias), strict=True))


def test_a_head_of_other_features_stays():
    old, own = [np.zeros((2, 3)), np.zeros(3)], [np.ones((4, 3)), np.ones(3)]
    weights, line = match_classes(old, own, ("bg", "a", "b"), ("bg", "b", "a"))
    assert weights == own
    assert line == "classes: bg, b, a at random, because the features do not fit"


def test_running_averages_are_taken_too():
    source, network = _build("unet2d"), _build("unet2d")
    layer = next(layer for layer in source.layers if isinstance(layer, keras.layers.BatchNormalization))
    layer.moving_variance.assign(np.full(layer.moving_variance.shape, 5.0))
    take_weights(network, source, ENDS, ENDS)
    mine = next(layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization))
    assert np.array(mine.moving_variance).tolist() == [5.0, 5.0]
