"""The shape of networks after nnU-Net, beside nnU-Net's own plans; and their costs, beside the networks that Keras builds."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from keras import layers

from modules.networks import build, find_divisors
from modules.run.topology import (
    Topology,
    choose_kernels,
    choose_patch,
    choose_strides,
    choose_topology,
    estimate_costs,
    round_window,
    settle_window,
)

CUBE, PLANE, SQUARE = (2, 2, 2), (1, 2, 2), (2, 2)
# Data set: median shape, spacing_mm, channels, classes; patch, strides, number of stages with kernels of 1x3x3, samples a step. The patches
# are those of nnU-Net's published models for 8 GB, the samples those before it takes account of the size of the data set.
PLANS = {
    "hippocampus": ((36, 50, 35), (1, 1, 1), 1, 3, (40, 56, 40), (CUBE,) * 3, 0, 58),
    "brain tumour": ((138, 170, 138), (1, 1, 1), 4, 4, (128, 128, 128), (CUBE,) * 5, 0, 2),
    "heart": ((115, 320, 232), (1.37, 1.25, 1.25), 1, 2, (80, 192, 160), (*(CUBE,) * 4, PLANE), 0, 2),
    "liver": ((482, 512, 512), (1, 0.77, 0.77), 1, 3, (128, 128, 128), (CUBE,) * 5, 0, 2),
    "lung": ((252, 512, 512), (1.24, 0.79, 0.79), 1, 2, (80, 192, 160), (*(CUBE,) * 4, PLANE), 0, 2),
    "pancreas": ((96, 512, 512), (2.5, 0.8, 0.8), 1, 3, (40, 224, 224), (PLANE, CUBE, CUBE, CUBE, PLANE), 1, 2),
    "prostate": ((20, 320, 319), (3.6, 0.62, 0.62), 2, 3, (20, 320, 256), (PLANE, PLANE, CUBE, CUBE, PLANE, PLANE), 2, 2),
    "beating heart": ((18, 237, 208), (5, 1.56, 1.56), 1, 4, (20, 256, 224), (PLANE, CUBE, CUBE, PLANE, PLANE), 1, 4),
    "pelvis": ((100.5, 227, 215), (1.5, 0.8594, 0.8594), 4, 2, (80, 192, 160), (*(CUBE,) * 4, PLANE), 0, 2),
    "thick slices": ((40, 84, 95), (3.3, 0.78, 0.78), 5, 2, (40, 96, 96), (PLANE, PLANE, CUBE, CUBE), 2, 10),
    "slices": ((512, 512), (0.8, 0.8), 1, 3, (512, 512), (SQUARE,) * 7, 0, 12),
}
# Values of feature maps that nnU-Net takes for 8 GB, and the samples a step that they are for, by rank.
MEMORY = {2: (85_000_000, 12), 3: (560_000_000, 2)}


def _plan(median_shape, spacing_mm, channels, num_classes, gigabytes=8):
    """Plans as nnU-Net does: two samples a step must fit."""
    values, samples = MEMORY[len(spacing_mm)]
    values *= gigabytes / 8

    def count(patch):
        return estimate_costs(choose_topology("plain_unet", patch, spacing_mm), patch, channels, num_classes).feature_values

    patch = choose_patch(median_shape, spacing_mm, lambda patch: count(patch) * 2 / samples <= values)
    return patch, round(values / count(patch) * samples)


# ------------------------------------------------------------------------------------------------------------- nnU-Net's rules


@pytest.mark.parametrize("name", PLANS)
def test_plans_are_those_of_nnunet(name):
    median_shape, spacing_mm, channels, num_classes, patch, strides, flat, samples = PLANS[name]
    assert _plan(median_shape, spacing_mm, channels, num_classes) == (patch, samples)
    assert choose_strides(patch, spacing_mm) == strides
    rank = len(patch)
    assert choose_kernels(strides, spacing_mm) == (*((1, 3, 3),) * flat, *((3,) * rank,) * (len(strides) + 1 - flat))


def test_larger_memory_takes_larger_patches():
    sizes = [_plan((400, 512, 512), (1, 0.8, 0.8), 1, 3, gigabytes)[0] for gigabytes in (8, 24, 80)]
    assert sizes == [(112, 160, 128), (160, 224, 192), (224, 320, 320)]


def test_slices_ten_times_as_thick_are_pooled_only_within_at_first():
    # 0.3 mm become 0.6, 1.2 and 2.4, which is within a factor 2 of 3 mm only then.
    topology = choose_topology("plain_unet", (16, 320, 320), (3, 0.3, 0.3))
    assert topology.strides == (PLANE, PLANE, PLANE, CUBE, CUBE, PLANE)
    assert topology.kernels == (*((1, 3, 3),) * 3, *((3, 3, 3),) * 4)
    assert topology.divisors == (4, 64, 64)


def test_an_axis_is_pooled_from_eight_voxels_on():
    assert choose_strides((8, 8, 8), (1, 1, 1)) == (CUBE,)
    assert choose_strides((7, 8, 8), (1, 1, 1)) == (PLANE,)
    # A single axis needs 12. Each network has one level at least.
    assert choose_strides((7, 7, 11), (1, 1, 1)) == (CUBE,)
    assert choose_strides((7, 7, 12), (1, 1, 1)) == ((1, 1, 2),)
    # Sizes are rounded up: 15 becomes 8 and then 4.
    assert choose_strides((15, 15), (1, 1)) == (SQUARE, SQUARE)
    # Exactly twice as coarse is too coarse.
    assert choose_strides((16, 16), (2, 1)) == ((1, 2), (2, 2))
    # The finest axis counts only where it can be pooled.
    assert choose_strides((6, 16, 16), (0.1, 1, 1)) == (PLANE, PLANE)
    assert len(choose_strides((4096, 4096), (1, 1))) == 7
    assert len(choose_strides((4096, 4096), (1, 1), most_levels=9)) == 9


def test_kernels_stay_at_three():
    # The first axis is pooled alone, which makes it coarser than the others again.
    assert choose_kernels(((1, 2), (2, 1), (2, 1)), (3, 1)) == ((1, 3), (3, 3), (3, 3), (3, 3))
    assert choose_kernels((), (5, 1, 1)) == ((3, 3, 3),)


def test_windows_are_rounded_up():
    assert round_window((20, 319, 64.5), (PLANE, CUBE)) == (20, 320, 68)
    assert round_window((21, 30), ()) == (21, 30)


def test_a_window_is_divided_by_its_own_strides():
    # The finest axis has 11 voxels, too few to be halved alone, so all axes are halved once. It goes up to 12, which are halved alone; then
    # the first axis is, three times.
    assert choose_patch((62, 11, 2), (3, 1, 1), lambda patch: True) == (64, 12, 2)
    for window in ((1257, 94), (700, 1), (38, 12), (176, 176), (256, 144)):
        settled = settle_window(window, (1, 3), None)
        assert round_window(settled, choose_strides(settled, (1, 3))) == settled
        assert all(size >= given for size, given in zip(settled, window, strict=True))


def test_a_patch_shrinks_along_its_longest_axis_by_the_smaller_step():
    tried = []
    # 320 is longer than the median. Then the second axis is as long as its median, and the first is not. Its 256 voxels are a multiple of
    # 64, but for 192 a multiple of 32 is enough, so that 224 is tried too.
    assert choose_patch((300, 256), (1, 1), lambda patch: tried.append(patch) or len(tried) == 3) == (256, 224)
    assert tried == [(320, 256), (256, 256), (256, 224)]


def test_a_patch_that_never_fits_is_refused():
    with pytest.raises(ValueError, match=r"Expected a patch that fits into memory. Received: not even \(4, 4, 4\). Use fewer"):
        choose_patch((40, 20, 3), (1, 1, 5), lambda patch: False)


@pytest.mark.parametrize(
    ("levels", "patch", "strides"),
    [
        # One level asks for multiples of 2 alone, and three for multiples of 8.
        (1, (36, 52, 36), (CUBE,)),
        (3, (40, 56, 40), (CUBE,) * 3),
        (None, (40, 56, 40), (CUBE,) * 3),
        # Each axis is halved once more than the rule would.
        (4, (48, 64, 48), (CUBE,) * 4),
        (5, (64, 64, 64), (CUBE,) * 5),
    ],
)
def test_a_patch_fits_the_levels_that_were_asked_for(levels, patch, strides):
    found = choose_patch((35, 51, 36), (1, 1, 1), lambda patch: True, levels)
    assert found == patch
    assert choose_topology("plain_unet", found, (1, 1, 1), levels=levels).strides == strides


def test_a_patch_of_few_levels_shrinks_by_small_steps():
    tried = []
    choose_patch((40, 30), (1, 1), lambda patch: tried.append(patch) or len(tried) == 3, 1)
    assert tried == [(40, 30), (40, 28), (38, 28)]
    with pytest.raises(ValueError, match=r"Received: not even \(64, 64, 64\). Use fewer `base_filters` or `levels`."):
        choose_patch((35, 51, 36), (1, 1, 1), lambda patch: False, 6)


def test_networks_without_strides_halve_all_axes():
    topology = choose_topology("unet3d", (16, 64, 64), (3, 1, 1), 8)
    assert topology == Topology("unet3d", (CUBE, CUBE), ((3, 3, 3),) * 3, 8)
    assert topology.options == {"base_filters": 8, "levels": 2}
    assert choose_topology("unet2d", (5, 64), (1, 1)).levels == 1
    assert choose_topology("unet3d", (512, 512, 512), (1, 1, 1)).levels == 3
    with pytest.raises(ValueError, match=r"Expected strides of 2 and kernels of 3 for 'unet3d'. Received: \(\(1, 2, 2\),\)"):
        Topology("unet3d", (PLANE,), ((3, 3, 3),) * 2)
    with pytest.raises(ValueError, match="Expected `network` in .*'plain_unet'.*Received: 'unetr'"):
        choose_topology("unetr", (32, 32), (1, 1))
    with pytest.raises(ValueError, match="Expected 2 `kernels` beside 1 `strides`"):
        Topology("plain_unet", (PLANE,), ((3, 3, 3),))


# ----------------------------------------------------------------------------------------------------------------------- costs

FLAT = ((PLANE, CUBE), ((1, 3, 3), (1, 3, 3), (3, 3, 3)))
SHAPES = [
    (Topology("plain_unet", *FLAT, 6), (4, 16, 8), 2, 4),
    # 24 filters doubled four times would be 384; the most are 320.
    (Topology("plain_unet", (CUBE,) * 4, ((3, 3, 3),) * 5, 24), (32, 32, 16), 1, 2),
    (Topology("plain_unet", (SQUARE,) * 3, ((3, 3),) * 4, 4), (16, 24), 1, 3),
    (Topology("residual_unet", *FLAT, 5), (8, 8, 16), 1, 3),
    (Topology("residual_unet", (SQUARE,) * 4, ((3, 3),) * 5, 4), (32, 32), 3, 2),
    (Topology("unet2d", (SQUARE,) * 3, ((3, 3),) * 4, 5), (16, 24), 1, 4),
    (Topology("unet3d", (CUBE,) * 2, ((3, 3, 3),) * 3, 4), (8, 16, 8), 2, 2),
]


def _count_by_layers(network):
    """Adds up multiplications, outputs of convolutions and what a training keeps, layer by layer of a built network."""
    adds = values = 0
    kept = {}
    for layer in network.layers:
        turned = isinstance(layer, (layers.Conv2DTranspose, layers.Conv3DTranspose))
        convolution = turned or isinstance(layer, (layers.Conv2D, layers.Conv3D))
        normalisation = isinstance(layer, (layers.GroupNormalization, layers.BatchNormalization))
        if convolution:
            positions = layer.input if turned else layer.output
            adds += math.prod(layer.kernel_size) * layer.input.shape[-1] * layer.filters * math.prod(positions.shape[1:-1])
            values += math.prod(layer.output.shape[1:])
        if convolution or normalisation or isinstance(layer, (layers.ReLU, layers.LeakyReLU, layers.MaxPooling2D, layers.MaxPooling3D)):
            kept[id(layer.input)] = (4 if normalisation else 2) * math.prod(layer.input.shape[1:])
    return adds, values, sum(kept.values()) + 4 * math.prod(network.output.shape[1:])


@pytest.mark.parametrize(("topology", "window", "channels", "num_classes"), SHAPES)
def test_costs_are_those_of_the_network_that_keras_builds(topology, window, channels, num_classes):
    network = build(topology.network, (*window, channels), num_classes, **topology.options)
    costs = estimate_costs(topology, window, channels, num_classes, value_bytes=2)
    assert costs.weights == network.count_params()
    assert costs[1:] == _count_by_layers(network)
    assert find_divisors(topology.network, topology.rank, topology.options) == topology.divisors


def test_costs_by_hand():
    # One level, one filter: convolutions 1 > 1 > 1, 1 > 2 > 2, up 2 > 1, joined 2 > 1 > 1, logits 1 > 1. All but the last two have a norm.
    topology = Topology("plain_unet", (SQUARE,), ((3, 3),) * 2, 1)
    costs = estimate_costs(topology, (4, 8), 1, 2)
    assert costs.weights == 9 * (1 + 1 + 2 + 4 + 2 + 1) + 2 * (1 + 1 + 2 + 2 + 1 + 1) + (4 * 2 + 1) + (1 + 1)
    assert costs.multiply_adds == 9 * (32 * (1 + 1 + 2 + 1) + 8 * (2 + 4)) + 32 * 2 + 32
    assert costs.feature_values == 32 * (1 + 1 + 1 + 1 + 1 + 1) + 8 * (2 + 2)
    # The image, three maps of each convolution with a norm, two channels joined, the logits.
    assert costs.activation_bytes == 4 * (32 + 3 * (32 * 4 + 8 * 4) + 2 * 32 + 32)
    # Inputs of norms and the logits keep four bytes.
    assert estimate_costs(topology, (4, 8), 1, 2, value_bytes=2).activation_bytes == 2 * (32 + 2 * 160 + 64) + 4 * (160 + 32)
    with pytest.raises(ValueError, match=r"Expected a window of multiples of \(2, 2\). Received: \(4, 7\)"):
        estimate_costs(topology, (4, 7), 1, 2)


def test_regions_have_no_logit_for_the_background():
    shape, window = SHAPES[0][:2]
    costs = estimate_costs(shape, window, 2, 4, num_regions=3)
    assert costs.weights == build(shape.network, (*window, 2), 4, num_regions=3, **shape.options).count_params()
    # A single region has one logit, as two classes have.
    assert estimate_costs(shape, window, 2, 2, num_regions=1) == estimate_costs(shape, window, 2, 2)


def test_importing_needs_no_keras():
    code = "import sys, modules.run.topology; sys.exit('keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
