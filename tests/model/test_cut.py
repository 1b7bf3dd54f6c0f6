"""Windows cut out of the table of all cases, on each backend: they must be those that the host reads."""

import os
from itertools import islice

import keras
import numpy as np
import pytest
from keras import ops

from modules.data.cache import Decoded, read_pack, write_pack
from modules.data.draws import AUGMENTATIONS, Drawer
from modules.data.patches import Window, choose_points
from modules.data.pipeline import PatchSampler, make_pipeline
from modules.data.resident import find_bases, find_obstacle, read_table
from modules.model.cut import cut_windows
from modules.model.losses import SegmentationLoss
from modules.model.metrics import Overlap
from modules.model.trainer import Trainer
from modules.run.fit import add_table

VOLUMES = [(6, 5, 4), (9, 7, 4), (3, 5, 8), (1, 2, 3)]
SLICES = [(6, 5), (9, 7), (4, 8), (2, 3)]


def _write_cases(folder, shapes, channels):
    """Writes cases of noise, whose darkest values differ by channel, with labels of three classes."""
    rng, cases = np.random.default_rng(0), {}
    for number, shape in enumerate(shapes):
        image = rng.normal(0, 3, (*shape, channels)).astype(np.float32)
        label = rng.integers(0, 3, shape).astype(np.uint8)
        points = choose_points(label, 3, rng) if len(shape) == 3 else ()
        cases[str(number)] = Decoded(image, label, points, (1,) * len(shape))
    write_pack(folder / "a.pack", cases)
    return list(read_pack(folder / "a.pack").values())


@pytest.mark.parametrize(
    ("shapes", "window", "sampler"),
    [
        (SLICES, (6, 5), None),
        (SLICES, (4, 4), PatchSampler("foreground", 1)),
        (SLICES, (12, 11), PatchSampler("uniform", 1)),
        (VOLUMES, (1, 5, 4), PatchSampler("foreground", 0)),
        (VOLUMES, (4, 1, 9), None),
        (VOLUMES, (3, 4, 1), PatchSampler("uniform", 0)),
        (VOLUMES, (4, 4, 3), PatchSampler("foreground", 3)),
        (VOLUMES, (10, 4, 9), PatchSampler("weighted", 2)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_both_ways_give_the_same_batches_bit_for_bit(tmp_path, shapes, window, sampler, channels):
    cases = _write_cases(tmp_path, shapes, channels)
    table = {name: ops.convert_to_tensor(array) for name, array in read_table(cases, channels).items()}
    options = {"batch_size": 5, "training": True, "sampler": sampler, "first_step": 2, "draw_augmentation": _draw}
    streamed = make_pipeline(cases, Window(window), channels, **options)
    placed = make_pipeline(cases, Window(window), channels, bases=find_bases(cases), **options)
    for one, other in islice(zip(streamed.as_numpy_iterator(), placed.as_numpy_iterator(), strict=True), 6):
        assert "image" not in other
        batch = {name: ops.convert_to_tensor(array) for name, array in other.items()}
        cut = cut_windows(batch | table, Window(window).shape)
        assert list(cut) == list(one)
        for name, expected in one.items():
            found = ops.convert_to_numpy(cut[name])
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype


@pytest.fixture
def optimised():
    """Lets XLA optimise as in a training; the other tests of JAX go without, which is faster."""
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ)


@pytest.mark.usefixtures("optimised")
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="XLA alone mixes the cutting with the step")
def test_both_ways_train_the_same_weights_bit_for_bit(tmp_path):
    cases = _write_cases(tmp_path, [(16, 16), (20, 14), (12, 18)], 1)
    table = {name: ops.convert_to_tensor(array) for name, array in read_table(cases, 1).items()}
    options = {"batch_size": 4, "training": True, "draw_augmentation": Drawer(AUGMENTATIONS["light"], (16, 16), 1)}

    def train(data):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((16, 16, 1))
        network = keras.Model(inputs, keras.layers.Conv2D(3, 3, padding="same")(inputs))
        trainer = Trainer(network, SegmentationLoss("ce"), Overlap(["a", "b", "c"]))
        trainer.compile(optimizer=keras.optimizers.Adam(0.1))
        trainer.fit(data, epochs=1, steps_per_epoch=4, shuffle=False, verbose=0)
        return [ops.convert_to_numpy(weight) for weight in network.weights]

    streamed = train(make_pipeline(cases, Window((16, 16)), 1, **options))
    places = make_pipeline(cases, Window((16, 16)), 1, bases=find_bases(cases), **options)
    for one, other in zip(streamed, train(add_table(places, table, (16, 16))), strict=True):
        np.testing.assert_array_equal(one, other)


def _draw(rng, spacing_mm):
    return {"gamma": rng.random(2).astype(np.float32)}


def test_a_batch_of_voxels_is_left_as_it_is():
    batch = {"image": np.zeros((1, 2, 2, 1)), "label": np.zeros((1, 2, 2))}
    assert cut_windows(batch, (2, 2)) is batch


def test_the_table_by_hand(tmp_path):
    cases = _write_cases(tmp_path, [(2, 3), (1, 2)], 2)
    table = read_table(cases, 2)
    assert find_bases(cases).tolist() == [0, 6]
    assert (table["table_image"].shape, table["table_label"].shape) == ((8, 2), (8,))
    image, label = cases[1].read((0, 0), (1, 2))
    np.testing.assert_array_equal(table["table_image"][6:], image[0])
    np.testing.assert_array_equal(table["table_label"][6:], label[0])


def test_what_does_not_fit_is_said():
    # Eight voxels of two channels take 40 bytes: a fifth of 200 bytes, and half of 80.
    assert find_obstacle(8, 2, 200, 80) == ""
    assert find_obstacle(8, 2, 0, 0) == ""
    assert find_obstacle(8, 2, 199, 80) == "the cases take 0.0 GB, more than 20% of the device's memory"
    assert find_obstacle(8, 2, 200, 79) == "the cases take 0.0 GB, more than 50% of the host's memory"
    assert find_obstacle(1 << 30, 1, 0, 0) == ""
    assert find_obstacle(1 << 30, 2, 0, 0) == "the cases have more than 2^31 voxels"
