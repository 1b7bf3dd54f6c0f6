"""One test for every network and option; this file also runs under the other backends."""

import keras
import numpy as np
import pytest
from keras import ops

from modules.losses import SegmentationLoss
from modules.networks import NETWORKS, build, with_head
from modules.networks._blocks import NORMS


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_shapes_gradients_and_saving(name, num_classes, tmp_path):
    keras.utils.set_random_seed(0)
    network = build(name, (32, 48, 3), num_classes, base_filters=4)
    logits = 1 if num_classes == 2 else num_classes
    assert network.output.shape == (None, 32, 48, logits)
    network.compile(optimizer=keras.optimizers.SGD(0.5), loss=SegmentationLoss("dice_ce"))
    image = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype("float32")
    label = np.random.default_rng(1).integers(0, num_classes, (2, 32, 48)).astype("int32")
    before = [ops.convert_to_numpy(weight) for weight in network.trainable_weights]
    network.train_on_batch(image, label)
    for weight, old in zip(network.trainable_weights, before, strict=True):
        assert not np.array_equal(ops.convert_to_numpy(weight), old), f"no gradient reaches {weight.path}"

    model = with_head(network)
    probabilities = model.predict_on_batch(image)
    assert probabilities.dtype == np.float32
    assert (probabilities >= 0).all()
    if num_classes > 2:
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    np.testing.assert_allclose(loaded.predict_on_batch(image), probabilities, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_normalisations_of_the_unet(norm):
    network = build("unet2d", (16, 16, 1), 2, base_filters=4, norm=norm, dropout=0.1)
    kinds = [type(layer).__name__ for layer in network.layers]
    number = {"batch_second": 9}.get(norm, 18)
    assert kinds.count("BatchNormalization" if norm.startswith("batch") else "GroupNormalization") == number
    assert kinds.count("Dropout") == 2
    assert np.isfinite(ops.convert_to_numpy(network(np.zeros((1, 16, 16, 1), "float32")))).all()


def test_group_norm_takes_a_number_of_groups_that_divides():
    network = build("unet2d", (16, 16, 1), 2, base_filters=28, norm="group")
    groups = [layer.groups for layer in network.layers if type(layer).__name__ == "GroupNormalization"]
    assert groups[:4] == [2, 2, 7, 7]  # of 28 and 56 channels


def test_parameter_count_of_the_unet_by_hand():
    # Convolutions without bias before batch norm (2 trainable numbers a filter), transposed ones and the last with bias.
    def block(inputs, filters):
        return 9 * inputs * filters + 9 * filters * filters + 4 * filters

    base, expected = 64, 0
    widths = [base * 2**level for level in range(5)]
    expected += sum(block(inputs, filters) for inputs, filters in zip([1, *widths], widths, strict=False))
    expected += sum(4 * 2 * filters * filters + filters + block(2 * filters, filters) for filters in widths[:4])
    expected += base * 4 + 4
    network = build("unet2d", (256, 256, 1), 4, base_filters=64)
    assert sum(int(np.prod(weight.shape)) for weight in network.trainable_weights) == expected


def test_wrong_shape_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"multiples of 16 for network 'unet2d'. Received: \(250, 120\). The nearest valid one is \(256, 128\)"
    ):
        build("unet2d", (250, 120, 1), 2)


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ValueError, match=r"Expected `network` in \('unet2d',.*Received: 'vgg'"):
        build("vgg", (16, 16, 1), 2)
    with pytest.raises(ValueError, match=r"options of network 'unet2d' in \('base_filters'.*Received: 'heads'"):
        build("unet2d", (16, 16, 1), 2, heads=3)
    with pytest.raises(ValueError, match="Expected `norm` in"):
        build("unet2d", (16, 16, 1), 2, norm="layer")
