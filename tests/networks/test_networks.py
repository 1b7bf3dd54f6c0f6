"""One test for every network and rank; this file also runs under the other backends."""

import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

from modules.model.losses import SegmentationLoss
from modules.networks import NETWORKS, build, describe, find_divisor, find_levels, find_ranks, has_lower_levels, with_head
from modules.networks._blocks import NORMS

ROOT = Path(__file__).parents[2]
SHAPES = {2: (32, 64), 3: (32, 32, 16)}
SMALL = {"base_filters": 4}
SMALL_UNETR = {"hidden_size": 24, "mlp_size": 48, "num_layers": 4, "num_heads": 2}
# Of networks whose default size would make these tests slow.
SMALLER = {"unetr": SMALL_UNETR, "residual_unet": {"levels": 2}}
CASES = [(name, rank) for name in NETWORKS for rank in find_ranks(name)]
once = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="is the same on every backend")


def _count(network, name=None):
    return sum(int(np.prod(weight.shape)) for weight in network.trainable_weights if name in (None, weight.name))


@pytest.mark.parametrize(("name", "rank"), CASES)
def test_shapes_gradients_and_saving(name, rank, tmp_path):
    keras.utils.set_random_seed(0)
    shape, num_classes = SHAPES[rank], 4
    network = build(name, (*shape, 2), num_classes, **SMALL, **SMALLER.get(name, {}))
    assert network.name == name
    assert network.output.shape == (None, *shape, num_classes)
    assert network.output.dtype == "float32"
    # A plan asks for deep supervision where it finds these.
    assert has_lower_levels(name, SMALLER.get(name, {})) == any(layer.name.startswith("decoder_") for layer in network.layers)
    network.compile(optimizer=keras.optimizers.SGD(0.5), loss=SegmentationLoss("dice_ce"))
    image = np.random.default_rng(0).normal(size=(2, *shape, 2)).astype("float32")
    label = np.random.default_rng(1).integers(0, num_classes, (2, *shape)).astype("int32")
    before = [ops.convert_to_numpy(weight) for weight in network.trainable_weights]
    for _ in range(2):  # The first step may drop a block of the EfficientNet for both images.
        network.train_on_batch(image, label)
    for weight, old in zip(network.trainable_weights, before, strict=True):
        new = ops.convert_to_numpy(weight)
        assert np.isfinite(new).all(), weight.path
        assert not np.array_equal(new, old), f"no gradient reaches {weight.path}"

    model = with_head(network)
    probabilities = model.predict_on_batch(image)
    assert probabilities.dtype == np.float32
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    np.testing.assert_allclose(loaded.predict_on_batch(image), probabilities, atol=1e-5)


@once
def test_saved_models_load_without_our_code(tmp_path):
    for name in ("segresnet", "unetr"):
        network = build(name, (32, 16, 16, 1), 2, **SMALL, **SMALLER.get(name, {}))
        network.save(tmp_path / f"{name}.keras")
    code = "import sys, keras; [keras.models.load_model(path, compile=False, safe_mode=True) for path in sys.argv[1:]]"
    paths = [str(path) for path in tmp_path.glob("*.keras")]
    subprocess.run([sys.executable, "-c", code, *paths], cwd=tmp_path, check=True, capture_output=True)


@once
def test_catalogue_is_read_without_keras():
    code = "import sys; from modules import networks as n; n.describe(), n.find_divisor('unetr'), n.find_ranks('unetr'); "
    subprocess.run([sys.executable, "-c", code + "sys.exit('keras' in sys.modules)"], cwd=ROOT, check=True)
    assert tuple(describe()) == NETWORKS
    for name, text in describe().items():
        assert re.fullmatch(r"[^\n]{20,120}\.", text), name
    assert (find_divisor("unet3d"), find_ranks("unet3d")) == (8, (3,))
    assert {name: find_ranks(name) for name in NETWORKS if find_ranks(name) != (2, 3)} == {
        "efficientnet_unet": (2,), "unet2d": (2,), "unet3d": (3,)
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"Expected `network` in .*Received: 'vgg'"):
        find_divisor("vgg")


@pytest.mark.parametrize("norm", NORMS)
def test_normalisations_of_the_unet(norm):
    network = build("unet2d", (32, 16, 1), 2, base_filters=4, norm=norm, dropout=0.1)
    kinds = [type(layer).__name__ for layer in network.layers]
    number = {"batch_second": 9}.get(norm, 18)
    assert kinds.count("BatchNormalization" if norm.startswith("batch") else "GroupNormalization") == number
    assert kinds.count("Dropout") == 2
    assert network.output.shape == (None, 32, 16, 1)  # two classes, one logit
    assert with_head(network).layers[-1].activation is keras.activations.sigmoid
    assert with_head(build("unet2d", (16, 16, 1), 3, base_filters=2, levels=1)).layers[-1].activation is keras.activations.softmax
    regions = with_head(build("unet2d", (16, 16, 1), 3, num_regions=2, base_filters=2, levels=1), regions=True)
    assert (regions.output.shape[-1], regions.layers[-1].activation) == (2, keras.activations.sigmoid)
    assert np.isfinite(ops.convert_to_numpy(network(np.zeros((1, 32, 16, 1), "float32")))).all()


@once
def test_group_norm_takes_a_number_of_groups_that_divides():
    network = build("unet2d", (16, 16, 1), 2, base_filters=28, norm="group")
    groups = [layer.groups for layer in network.layers if type(layer).__name__ == "GroupNormalization"]
    assert groups[:4] == [2, 2, 7, 7]  # of 28 and 56 channels


def _block(inputs, filters, voxels=9):
    """Counts the weights of two convolutions without bias, each before a batch norm of 2 trainable numbers a filter."""
    return voxels * inputs * filters + voxels * filters * filters + 4 * filters


@once
def test_parameter_count_of_the_unet_by_hand():
    # The transposed convolutions and the last convolution have a bias.
    base, expected = 64, 0
    widths = [base * 2**level for level in range(5)]
    expected += sum(_block(inputs, filters) for inputs, filters in zip([1, *widths], widths, strict=False))
    expected += sum(4 * 2 * filters * filters + filters + _block(2 * filters, filters) for filters in widths[:4])
    expected += base * 4 + 4
    assert _count(build("unet2d", (256, 256, 1), 4, base_filters=64)) == expected


@once
@pytest.mark.parametrize(("name", "rank"), [(name, rank) for name, rank in CASES if find_levels(name)])
def test_levels_are_the_times_that_the_resolution_is_halved(name, rank):
    for levels in (1, 2):
        network = build(name, (*(12,) * rank, 1), 2, base_filters=2, levels=levels)
        assert min(layer.output.shape[1] for layer in network.layers) == 12 // 2**levels
        assert network.output.shape[1:-1] == (12,) * rank
    with pytest.raises(ValueError, match=rf"multiples of 8 for network '{name}'. Received: \(12, .*The nearest valid one is \(16, "):
        build(name, (*(12,) * rank, 1), 2, levels=3)
    with pytest.raises(ValueError, match="Expected `levels` of 7 or less. Received: 8. Leave it out for as many as fit."):
        build(name, (*(256,) * rank, 1), 2, levels=8)


@once
def test_parameter_count_of_the_3d_unet_is_that_of_the_paper():
    # Çiçek et al. state 19,069,955 for three channels and three logits: kernels and biases. Each bias is a beta here; the 2 (32 + 64 + ...)
    # gammas are not in the paper's count.
    network = build("unet3d", (8, 8, 8, 3), 3)
    assert _count(network) - _count(network, "gamma") == 19_069_955
    assert _count(network, "gamma") == 2336


@once
@pytest.mark.parametrize(("rank", "expected"), [(2, 2_969_028), (3, 8_636_996)])
def test_parameter_count_of_the_residual_unet_by_hand(rank, expected):
    # Isensee et al. state no count. Only the logits have a bias. Each norm has 2 numbers a filter; channels and logits are four.
    voxels, widths = 3**rank, [16, 32, 64, 128, 256]
    by_hand = sum(voxels * inputs * filters for inputs, filters in zip([4, *widths], widths, strict=False))
    by_hand += sum(2 * voxels * filters**2 + 3 * 2 * filters for filters in widths)
    by_hand += sum(2**rank * 2 * filters**2 + 2 * filters for filters in widths[:4])  # transposed, normalised
    by_hand += sum(voxels * (2 * filters) ** 2 + 2 * 2 * filters for filters in widths[:4])
    by_hand += sum(2 * filters * filters + 2 * filters for filters in widths[1:4])
    by_hand += 32 * 4 + 4
    assert _count(build("resunet3d", (*(32,) * rank, 4), 4)) == by_hand == expected


# Counts of MONAI 1.6.1's SegResNet(spatial_dims, init_filters=8, in_channels=4, out_channels=3).
SEGRESNET_COUNTS = {2: 395_211, 3: 1_176_843}
# Counts of MONAI 1.6.1's UNETR(1, 14, img_size=32, feature_size=16, hidden_size=192, mlp_dim=768, num_heads=12, spatial_dims).
UNETR_COUNTS = {2: 6_468_814, 3: 8_945_902}


@once
@pytest.mark.parametrize("rank", [2, 3])
def test_parameter_counts_are_those_of_monai(rank):
    assert _count(build("segresnet", (*(16,) * rank, 4), 3)) == SEGRESNET_COUNTS[rank]
    # Each block of MONAI has a layer norm that it never uses, and a bias after its attention. The embedding has a bias beside that of the
    # positions. MONAI's instance norm has no parameters.
    unused, biases, norms = 12 * 2 * 192, 12 * 192 + 192, 2048
    network = build("unetr", (*(32,) * rank, 1), 14, hidden_size=192, mlp_size=768)
    assert _count(network) == UNETR_COUNTS[rank] - unused - biases + norms
    assert abs(_count(network) / UNETR_COUNTS[rank] - 1) < 0.01


@once
def test_efficientnet_counts_and_starts_from_the_image_itself():
    network = build("efficientnet_unet", (32, 64, 1), 4)
    encoder = network.get_layer("encoder")
    # Keras states 5,919,312 for EfficientNetV2B0 without its classifier. Our encoder lacks the last convolution, to 1280 filters.
    assert encoder.count_params() == 5_919_312 - (192 * 1280 + 4 * 1280)
    assert [output.shape[1:] for output in encoder.outputs] == [(16, 32, 16), (8, 16, 32), (4, 8, 48), (2, 4, 112), (1, 2, 192)]
    decoder = _block(192 + 112, 256) + _block(256 + 48, 128) + _block(128 + 32, 64) + _block(64 + 16, 32) + _block(32 + 1, 16)
    assert _count(network) - _count(encoder) == (1 * 3 + 3) + decoder + 16 * 4 + 4
    kernel, bias = network.get_layer("three_channels").get_weights()
    assert (kernel == 1).all()
    assert (bias == 0).all()


def test_any_number_of_channels_is_spread_over_three():
    from modules.networks.efficientnet_unet import _spread_channels

    np.testing.assert_array_equal(_spread_channels(2)[0, 0], [[1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(_spread_channels(3)[0, 0], np.eye(3))
    np.testing.assert_array_equal(_spread_channels(4)[0, 0], [[0.5, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0, 0]])


def test_weights_that_cannot_be_had_are_one_clear_line(monkeypatch):
    def fail(**_):
        raise Exception("URL fetch failure on https://host/b0.h5: None --\nunreachable")

    monkeypatch.setattr(keras.applications, "EfficientNetV2B0", fail)
    with pytest.raises(ValueError, match=r"ImageNet weights of EfficientNetV2B0 .*Received: URL fetch .* unreachable\. Connect"):
        build("efficientnet_unet", (32, 32, 1), 2, pretrained=True)


def test_linear_upsampling_in_3d_by_hand():
    from modules.networks.segresnet import _upsample

    volume = np.random.default_rng(0).normal(size=(1, 2, 3, 4, 2)).astype("float32")
    expected = volume
    for axis in (1, 2, 3):
        # Voxel centres of the finer grid lie a quarter of a voxel beside the coarser ones. The edge continues beyond itself.
        padded = np.pad(expected, [(1, 1) if place == axis else (0, 0) for place in range(5)], mode="edge")
        before, after = (np.take(padded, range(start, start + expected.shape[axis]), axis) for start in (0, 2))
        pairs = np.stack([0.75 * expected + 0.25 * before, 0.75 * expected + 0.25 * after], axis + 1)
        expected = pairs.reshape(*(size * (2 if place == axis else 1) for place, size in enumerate(expected.shape)))
    inputs = keras.Input(volume.shape[1:])
    result = keras.Model(inputs, _upsample(inputs))(volume)
    np.testing.assert_allclose(ops.convert_to_numpy(result), expected, atol=1e-5)


def _copy_weights(network, modules, mirrored=False):
    """Gives our layers the weights of MONAI's, kind by kind, each in the order in which they were made."""
    import torch

    def sort(*kinds):
        own = [layer for layer in network.layers if isinstance(layer, kinds) and layer.name not in ("logits", "embedding")]
        return sorted(own, key=lambda layer: int((re.findall(r"_(\d+)$", layer.name) or [0])[0]))

    leaves = [leaf for module in modules for leaf in module.modules()]
    rank = len(network.input.shape) - 2
    spatial = tuple(range(2, 2 + rank))
    transposed = [leaf for leaf in leaves if isinstance(leaf, (torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d))]
    plain = [leaf for leaf in leaves if isinstance(leaf, (torch.nn.Conv2d, torch.nn.Conv3d))]
    up = (layers.Conv2DTranspose, layers.Conv3DTranspose)  # in Keras they are convolutions too
    ours = [layer for layer in sort(layers.Conv2D, layers.Conv3D) if not isinstance(layer, up)]
    for own, theirs in [
        *zip([*ours, network.get_layer("logits")], plain, strict=True),
        *zip(sort(*up), transposed, strict=True),
    ]:
        kernel = theirs.weight.detach().numpy()
        kernel = np.flip(kernel, spatial) if mirrored else kernel
        weights = [np.transpose(kernel, (*spatial, 1, 0))]
        own.set_weights(weights if theirs.bias is None else [*weights, theirs.bias.detach().numpy()])


def _compare(network, peer, mirrored=False):
    import torch

    image = np.random.default_rng(0).normal(size=(2, *network.input.shape[1:])).astype("float32")
    axes = tuple(range(1, image.ndim - 1))
    with torch.no_grad():
        expected = peer.eval()(torch.from_numpy(np.moveaxis(image, -1, 1))).numpy()
    logits = network.predict_on_batch(np.flip(image, axes) if mirrored else image)
    logits = np.flip(logits, axes) if mirrored else logits
    np.testing.assert_allclose(logits, np.moveaxis(expected, 1, -1), atol=2e-4)


@pytest.mark.parametrize("rank", [2, 3])
def test_segresnet_agrees_with_monai(rank):
    nets = pytest.importorskip("monai.networks.nets")
    peer = nets.SegResNet(spatial_dims=rank, init_filters=8, in_channels=4, out_channels=3)
    assert sum(weight.numel() for weight in peer.parameters()) == SEGRESNET_COUNTS[rank]
    network = build("segresnet", (*(16, 24, 16)[:rank], 4), 3)
    up = [module for pair in zip(peer.up_samples, peer.up_layers, strict=True) for module in pair]
    # With padding and a stride of two, Keras begins a voxel later than PyTorch. Each is the other's mirror image.
    _copy_weights(network, [peer.convInit, *peer.down_layers, *up, peer.conv_final], mirrored=True)
    _compare(network, peer, mirrored=True)


@pytest.mark.parametrize("rank", [2, 3])
def test_unetr_agrees_with_monai(rank):
    nets = pytest.importorskip("monai.networks.nets")
    pytest.importorskip("einops")
    sizes = {"hidden_size": 192, "num_heads": 12, "spatial_dims": rank}
    peer = nets.UNETR(1, 14, img_size=(32,) * rank, feature_size=16, mlp_dim=768, **sizes)
    assert sum(weight.numel() for weight in peer.parameters()) == UNETR_COUNTS[rank]
    network = build("unetr", (*(32,) * rank, 1), 14, hidden_size=192, mlp_size=768)
    names = ("encoder4", "decoder5", "encoder3", "decoder4", "encoder2", "decoder3", "encoder1", "decoder2", "out")
    _copy_weights(network, [getattr(peer, name) for name in names])
    vit, hidden = peer.vit, 192
    embedding = vit.patch_embedding
    kernel, bias = embedding.patch_embeddings.weight.detach().numpy(), embedding.patch_embeddings.bias.detach().numpy()
    kernel = np.transpose(kernel, (*range(2, 2 + rank), 1, 0)).reshape(-1, hidden)
    network.get_layer("embedding").set_weights([kernel, embedding.position_embeddings.detach().numpy()[0] + bias])
    attentions, norms, dense = (
        [layer for layer in network.layers if isinstance(layer, kind)]
        for kind in (layers.MultiHeadAttention, layers.LayerNormalization, layers.Dense)
    )
    norms[-1].set_weights([vit.norm.weight.detach().numpy(), vit.norm.bias.detach().numpy()])
    for block in vit.blocks:
        block.attn.out_proj.bias.data.zero_()
        query, key, value = (part.T.reshape(hidden, 12, 16) for part in block.attn.qkv.weight.detach().numpy().reshape(3, hidden, hidden))
        attentions.pop(0).set_weights([query, key, value, block.attn.out_proj.weight.detach().numpy().T.reshape(12, 16, hidden)])
        for norm in (block.norm1, block.norm2):
            norms.pop(0).set_weights([norm.weight.detach().numpy(), norm.bias.detach().numpy()])
        for linear in (block.mlp.linear1, block.mlp.linear2):
            dense.pop(0).set_weights([linear.weight.detach().numpy().T, linear.bias.detach().numpy()])
    # The paper decodes the states after blocks 3, 6 and 9; MONAI takes those after 4, 7 and 10.
    forward = vit.forward
    vit.forward = lambda image: (lambda last, states: (last, [None, *states]))(*forward(image))
    _compare(network, peer)


def test_wrong_shape_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"multiples of 16 for network 'unet2d'. Received: \(250, 120\). The nearest valid one is \(256, 128\)"
    ):
        build("unet2d", (250, 120, 1), 2)


def test_wrong_rank_names_the_networks_that_take_it():
    with pytest.raises(
        ValueError,
        match=r"of 2 sizes for network 'unet2d'. Received: \(64, 64, 64\). The networks that take 3 are \(.*'unet3d', 'unetr'\)",
    ):
        build("unet2d", (64, 64, 64, 1), 2)
    with pytest.raises(ValueError, match=r"of 2 or 3 sizes for network 'unetr'. Received: \(64,\)"):
        build("unetr", (64, 1), 2)


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ValueError, match=r"Expected `network` in \(.*'unet2d',.*Received: 'vgg'"):
        build("vgg", (16, 16, 1), 2)
    with pytest.raises(ValueError, match=r"options of network 'unet2d' in \('base_filters'.*Received: 'heads'"):
        build("unet2d", (16, 16, 1), 2, heads=3)
    with pytest.raises(ValueError, match=r"Expected `variant` in \('b0',.*Received: 'b9'"):
        build("efficientnet_unet", (32, 32, 1), 2, variant="b9")


@pytest.mark.parametrize("name", NETWORKS)
def test_unknown_norms_list_the_valid_ones(name):
    with pytest.raises(ValueError, match=r"Expected `norm` in \('batch', .*Received: 'layer'"):
        build(name, (*(32,) * find_ranks(name)[0], 1), 2, norm="layer")


def test_numbers_that_do_not_divide():
    with pytest.raises(ValueError, match="Expected `num_layers` to be a multiple of 4. Received: 6"):
        build("unetr", (32, 32, 1), 2, num_layers=6)
    with pytest.raises(ValueError, match="Expected `hidden_size` to be a multiple of `num_heads`, 5. Received: 24"):
        build("unetr", (32, 32, 1), 2, hidden_size=24, num_heads=5)
    with pytest.raises(ValueError, match="Expected more than one voxel at the deepest level for `norm` 'instance'"):
        build("resunet3d", (16, 16, 16, 1), 2)
