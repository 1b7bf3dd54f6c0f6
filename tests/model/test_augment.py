"""Augmentation of places against results by hand, and all effects against a reference in NumPy and SciPy.

This file also runs under the other backends.
"""

import itertools

import keras
import numpy as np
import pytest
from augment_helpers import apply_to_arrays as _apply
from augment_helpers import make_batch as _make_batch
from helpers import EVERYTHING, SHAPES
from helpers import draw_batch as _draw_batch
from helpers import make_certain as _certain
from keras import ops
from scipy import ndimage

from modules.data.draws import AUGMENTATIONS, ELASTIC_POINTS, NEUTRAL, Augmentation, Effect, draw_parameters, list_effects
from modules.model.augment import apply


def _move(image, label, matrix, swaps=(), mirrored=0):
    """Applies one matrix to a whole batch."""
    number = len(image)
    matrix = np.repeat(np.asarray(matrix, np.float32)[None], number, axis=0)
    return _apply(image, label, {"matrix": matrix, "mirrored": np.full(number, mirrored, np.int32)}, swaps)


# Nothing


@pytest.mark.parametrize("rank", [2, 3])
def test_neutral_parameters_change_nothing(rank):
    augmentation = Augmentation(flip=1e-12, **{name: Effect(1e-12, 0.5, 2) for name in NEUTRAL})
    image, label = _make_batch(rank, channels=2)
    image = image * 300 + 1000
    parameters = _draw_batch(augmentation, SHAPES[rank], channels=2)
    assert set(parameters) == {"matrix", "mirrored", "noise_seed"} | set(NEUTRAL) - {"rotation", "scaling", "shear", "shift"}
    for name in set(NEUTRAL) & set(parameters):
        assert (parameters[name] == NEUTRAL[name]).all()
    moved, moved_label = _apply(image, label, parameters, ((1, 2),))
    np.testing.assert_array_equal(moved, image)
    np.testing.assert_array_equal(moved_label, label)


def test_without_effects_nothing_is_drawn():
    assert AUGMENTATIONS["none"] is None
    assert list_effects(None) == {}
    assert draw_parameters(np.random.default_rng(0), Augmentation(), (8, 8), 1) == {}
    image, label = _make_batch(2)
    moved, moved_label = _apply(image, label, {})
    np.testing.assert_array_equal(moved, image)
    np.testing.assert_array_equal(moved_label, label)


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_types_are_kept(dtype):
    image, label = _make_batch(2)
    expected = ops.convert_to_numpy(ops.convert_to_tensor(label.astype(dtype))).dtype  # JAX has no int64.
    moved, moved_label = _apply(image, label.astype(dtype), _draw_batch(EVERYTHING, SHAPES[2]), ((1, 2),))
    assert moved.dtype == np.float32
    assert moved_label.dtype == expected
    assert moved.shape == image.shape


def test_half_precision_is_refused():
    image, label = _make_batch(2)
    parameters = _draw_batch(EVERYTHING, SHAPES[2])
    parameters["matrix"] = parameters["matrix"].astype("float16")
    with pytest.raises(ValueError, match="Expected `matrix` in float32. Received: float16. Give the model that augments `autocast=False`"):
        _apply(image, label, parameters)


# Places


@pytest.mark.parametrize("rank", [2, 3])
def test_flip(rank):
    image, label = _make_batch(rank, channels=2)
    for count in range(1, rank + 1):
        for axes in itertools.combinations(range(rank), count):
            parameters = _draw_batch(Augmentation(flip=1.0), SHAPES[rank], flips=axes)
            moved, moved_label = _apply(image, label, parameters)
            places = [axis + 1 for axis in axes]
            np.testing.assert_array_equal(moved, np.flip(image, places))
            np.testing.assert_array_equal(moved_label, np.flip(label, places))


def test_quarter_turns_in_2d():
    image, label = _make_batch(2, shape=(12, 12))
    for degrees, turns in ((90, -1), (180, 2), (-90, 1)):
        moved, moved_label = _apply(image, label, _draw_batch(_certain(rotation=degrees), (12, 12)))
        np.testing.assert_allclose(moved, np.rot90(image, turns, (1, 2)), atol=1e-5)
        np.testing.assert_array_equal(moved_label, np.rot90(label, turns, (1, 2)))


@pytest.mark.parametrize("plane", [(0, 1), (1, 2), (2, 0)])
def test_quarter_turns_about_each_axis_in_3d(plane):
    image, label = _make_batch(3, shape=(10, 10, 10))
    matrix = np.eye(3, 4)
    first, second = plane
    matrix[[first, second], [first, second]] = 0
    matrix[first, second], matrix[second, first] = -1, 1
    moved, moved_label = _move(image, label, matrix)
    axes = (first + 1, second + 1)
    np.testing.assert_allclose(moved, np.rot90(image, -1, axes), atol=1e-5)
    np.testing.assert_array_equal(moved_label, np.rot90(label, -1, axes))


def test_whole_voxel_shift_by_hand():
    image = np.arange(1, 13, dtype="float32").reshape(1, 3, 4, 1)
    label = np.arange(1, 13, dtype="int32").reshape(1, 3, 4)
    moved, moved_label = _move(image, label, [[1, 0, 1], [0, 1, -1]])
    np.testing.assert_array_equal(moved[0, ..., 0], [[1, 5, 6, 7], [1, 9, 10, 11], [1, 1, 1, 1]])
    np.testing.assert_array_equal(moved_label[0], [[0, 5, 6, 7], [0, 9, 10, 11], [0, 0, 0, 0]])


def test_scaling_by_hand():
    image = np.tile(np.arange(8, dtype="float32")[:, None, None] * 10, (1, 1, 4, 1))
    label = np.tile(np.arange(8, dtype="int32")[:, None], (1, 1, 4))
    larger = _draw_batch(_certain(scaling=2), (8, 4), number=1)
    np.testing.assert_allclose(larger["matrix"][0], [[0.5, 0, 0], [0, 0.5, 0]])
    moved, moved_label = _apply(image, label, larger)
    np.testing.assert_allclose(moved[0, :, 1, 0], [17.5, 22.5, 27.5, 32.5, 37.5, 42.5, 47.5, 52.5])
    np.testing.assert_array_equal(moved_label[0, :, 1], [2, 2, 3, 3, 4, 4, 5, 5])
    # Places 3.5 + 2 * (index - 3.5): -3.5, -1.5, 0.5 and so on. The outside is darkest in the image and background in the label.
    moved, moved_label = _apply(image, label + 1, _draw_batch(_certain(scaling=0.5), (8, 4), number=1))
    np.testing.assert_allclose(moved[0, :, 1, 0], [0, 0, 5, 25, 45, 65, 0, 0])
    assert (moved_label[0, :2] == 0).all()
    assert (moved_label[0, 6:] == 0).all()
    assert (moved_label[0, 2:6, 1] > 0).all()


def test_image_and_label_end_at_the_same_place():
    """A voxel reaches half its length beyond its centre."""
    image, label = np.full((1, 6, 6, 1), 7, "float32"), np.full((1, 6, 6), 3, "int32")
    image[0, 5, 5], label[0, 5, 5] = -1, 0
    for shift in (0.4, 0.6, 1.4, 1.6):
        moved, moved_label = _move(image, label, [[1, 0, -shift], [0, 1, 0]])
        rows = round(shift)
        assert (moved[0, :rows] == -1).all()
        assert (moved_label[0, :rows] == 0).all()
        np.testing.assert_array_equal(moved[0, rows:, :5, 0], 7)
        np.testing.assert_array_equal(moved_label[0, rows:, :5], 3)


@pytest.mark.parametrize("rank", [2, 3])
def test_image_and_label_stay_aligned(rank):
    """An image that equals its label comes out like it wherever all neighbours agree, and no label is invented."""
    axes = np.meshgrid(*(np.arange(size) - (size - 1) / 2 for size in SHAPES[rank]), indexing="ij")
    label = np.zeros((2, *SHAPES[rank]), "int32")
    label[:] = np.where(sum((axis / size) ** 2 for axis, size in zip(axes, SHAPES[rank], strict=True)) < 0.15, 7, 0)
    spatial = Augmentation(flip=0.5, **{name: getattr(EVERYTHING, name) for name in ("rotation", "scaling", "shear", "shift", "elastic")})
    moved, moved_label = _apply(label[..., None].astype("float32"), label, _draw_batch(spatial, SHAPES[rank]))
    assert set(np.unique(moved_label)) == {0, 7}
    assert not np.array_equal(moved_label, label)
    assert moved_label[moved[..., 0] == 7].min() == 7
    assert moved_label[moved[..., 0] == 0].max() == 0
    # Along one axis the nearest label is the one with the larger share; across several axes the two may differ a little.
    np.testing.assert_allclose(
        moved[..., 0].mean(axis=tuple(range(1, rank + 1))), moved_label.mean(axis=tuple(range(1, rank + 1))), rtol=0.1
    )


def test_anisotropic_voxels_turn_rigidly_in_mm():
    image, label = np.zeros((1, 16, 32, 1), "float32"), np.zeros((1, 16, 32), "int32")
    label[0, 5:11, 14:18] = 1  # 12 mm by 4 mm
    parameters = _draw_batch(_certain(rotation=90), (16, 32), number=1, spacing_mm=(2, 1))
    _, moved = _apply(image, label, parameters)
    expected = np.zeros((16, 32), "int32")
    expected[7:9, 10:22] = 1
    np.testing.assert_array_equal(moved[0], expected)

    spacing = np.array([2.5, 1, 1.2])
    linear = _draw_batch(Augmentation(rotation=Effect(1.0, -30, 30)), (8, 8, 8), spacing_mm=spacing)["matrix"][..., :3]
    in_mm = linear * spacing[:, None] / spacing
    np.testing.assert_allclose(in_mm @ in_mm.transpose(0, 2, 1), np.tile(np.eye(3), (2, 1, 1)), atol=1e-6)


def test_elastic_deformation_is_smooth_and_never_folds():
    effect = Augmentation(elastic=Effect(1.0, 1000, 1000))
    shape = (40, 48)
    parameters = _draw_batch(effect, shape, number=4)
    assert parameters["elastic"].shape == (4, ELASTIC_POINTS, ELASTIC_POINTS, 2)
    assert np.abs(parameters["elastic"]).max() <= 0.4 * 47 / 4
    places = np.stack(np.meshgrid(*(np.arange(size, dtype="float32") for size in shape), indexing="ij"), axis=-1)
    label = np.zeros((4, *shape), "int32")
    moved, _ = _apply(np.tile(places, (4, 1, 1, 1)), label, parameters)
    inside = (moved > 0).all(axis=-1) & (moved < np.array(shape) - 1).all(axis=-1)
    steps = [np.diff(moved[..., axis], axis=axis + 1) for axis in (0, 1)]
    assert steps[0][inside[:, 1:] & inside[:, :-1]].min() > 0
    assert steps[1][inside[:, :, 1:] & inside[:, :, :-1]].min() > 0
    assert np.abs(moved - places)[inside].max() > 2


# Sides


def test_pairs_change_places_where_left_and_right_do():
    image, label = _make_batch(2, number=4)
    parameters = _draw_batch(Augmentation(flip=0.5), SHAPES[2], number=4, seed=2, left_right=1)
    assert 0 < parameters["mirrored"].sum() < 4
    np.testing.assert_array_equal(parameters["mirrored"], parameters["matrix"][:, 1, 1] < 0)
    _, plain = _apply(image, label, parameters)
    _, swapped = _apply(image, label, parameters, ((1, 3), (2, 9)))
    order = np.array([0, 3, 9, 1, 4])
    for index in range(4):
        expected = order[plain[index]] if parameters["mirrored"][index] else plain[index]
        np.testing.assert_array_equal(swapped[index], expected)


def test_classes_above_the_pairs_are_left_alone():
    label = np.array([[[0, 1], [2, 200]]], "int32")
    _, swapped = _move(np.zeros((1, 2, 2, 1), "float32"), label, np.eye(2, 3), ((1, 2),), mirrored=1)
    np.testing.assert_array_equal(swapped, [[[0, 2], [1, 200]]])


# Everything together


def _hash(values):
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        values = (values ^ (values >> np.uint32(shift))) * np.uint32(factor)
    return values ^ (values >> np.uint32(15))


def _make_reference_noise(seed, shape):
    half = -(-int(np.prod(shape)) // 2)
    first, second = seed.astype(np.uint32)
    bits = _hash(_hash(np.arange(half, dtype=np.uint32) + first) ^ second)
    radius, angle = np.sqrt(-2 * np.log(((bits >> np.uint32(16)) + 0.5) / 65536)), (bits & np.uint32(0xFFFF)) / 65536 * 2 * np.pi
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: int(np.prod(shape))].reshape(shape)


def _make_reference_field(points, shape):
    """Evaluates a cubic B-spline from its coefficients, as SciPy does without its filter."""
    places = np.meshgrid(*(np.linspace(1, length - 2, size) for length, size in zip(points.shape, shape, strict=True)), indexing="ij")
    return ndimage.map_coordinates(points.astype(np.float64), places, order=3, prefilter=False, mode="nearest")


def _smooth_reference(image, blur, lowres):
    for axis, size in enumerate(image.shape[:-1]):
        coarse = max(1, round(lowres[axis] * size))
        width = size / coarse
        sigma = max(np.sqrt(blur[axis] ** 2 + (width**2 - 1) / 12), 0.05)
        distance = (np.arange(coarse)[:, None] + 0.5) * width - 0.5 - np.arange(size)
        weights = np.exp(-(distance**2) / (2 * sigma**2))
        down = np.tensordot(weights / weights.sum(axis=1, keepdims=True), image, (1, axis))
        places = (np.arange(size) + 0.5) / width - 0.5
        up = np.apply_along_axis(lambda line, places=places: np.interp(places, np.arange(len(line)), line), 0, down)
        image = np.moveaxis(up, 0, axis)
    return image


def _apply_reference(image, label, drawn):
    """Does the work of `apply` for one sample in float64, with SciPy's interpolation."""
    shape, axes = label.shape, tuple(range(label.ndim))
    deviation = image.std(axis=axes)
    middle = (np.array(shape) - 1) / 2
    grid = np.stack(np.meshgrid(*(np.arange(size) - half for size, half in zip(shape, middle, strict=True)), indexing="ij"))
    places = np.tensordot(drawn["matrix"][:, :-1].astype(np.float64), grid, 1) + drawn["matrix"][:, -1].reshape(-1, *(1 for _ in shape))
    places += np.stack([_make_reference_field(drawn["elastic"][..., axis], shape) for axis in axes])
    inside = np.all([np.abs(place) < size / 2 for place, size in zip(places, shape, strict=True)], axis=0)
    places = np.stack([np.clip(place + half, 0, 2 * half) for place, half in zip(places, middle, strict=True)])
    # Halfway between two labels the rounding of float32 decides, so no compared place may lie there.
    assert np.abs(places % 1 - 0.5).min() > 1e-5
    channels = [ndimage.map_coordinates(image[..., index].astype(np.float64), places, order=1) for index in range(image.shape[-1])]
    label = np.where(inside, label[tuple(np.floor(places + 0.5).astype(int))], 0)
    image = np.where(inside[..., None], np.stack(channels, axis=-1), image.min(axis=axes))
    field = _make_reference_field(drawn["bias"], shape)
    low = image.min(axis=axes)
    image = low + (image - low) * np.exp(field - field.mean())[..., None]
    image = _smooth_reference(image, drawn["blur"], drawn["lowres"])
    image = image + _make_reference_noise(drawn["noise_seed"], image.shape) * drawn["noise"] * deviation
    low, mean, spread = image.min(axis=axes), image.mean(axis=axes), image.std(axis=axes)
    bent = ((image - low) / (image.max(axis=axes) - low)) ** drawn["gamma"]
    image = (bent - bent.mean(axis=axes)) / bent.std(axis=axes) * spread + mean
    image = mean + (image - mean) * drawn["contrast"]
    return image + drawn["brightness"] * deviation, label


@pytest.mark.parametrize(("rank", "seed"), [(2, 0), (2, 1), (3, 0)])
def test_all_effects_equal_the_reference(rank, seed):
    image, label = _make_batch(rank, channels=2, seed=seed)
    # The image is as smooth as a scan, because the steps of white noise would multiply an error in a place.
    image = ndimage.gaussian_filter(image, (0, *(1.0,) * rank, 0))
    image = ((image - image.mean()) / image.std()).astype("float32")
    parameters = _draw_batch(EVERYTHING, SHAPES[rank], channels=2, seed=seed, left_right=1)
    changed, changed_label = _apply(image, label, parameters)
    for index in range(len(image)):
        drawn = {name: value[index] for name, value in parameters.items()}
        expected, expected_label = _apply_reference(image[index], label[index], drawn)
        np.testing.assert_allclose(changed[index], expected, atol=1e-4)
        np.testing.assert_array_equal(changed_label[index], expected_label)


class _Augmented(keras.Model):
    """A network whose step augments first."""

    def __init__(self):
        super().__init__(name="augmented", autocast=False)
        self.network = keras.layers.Conv2D(5, 3, padding="same", dtype="mixed_bfloat16")
        # Otherwise Keras builds the layer by a call outside of the step, and JAX compiles each operation of it on its own.
        self.network.build((None, None, None, 1))
        self.built = True

    def call(self, inputs):
        parameters = {name: value for name, value in inputs.items() if name not in ("image", "label")}
        image, label = apply(inputs["image"], inputs["label"], parameters, left_right_swaps=((1, 2),))
        return {"image": image, "label": label, "logits": ops.cast(self.network(image), "float32")}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        chosen = ops.sum(y_pred["logits"] * ops.one_hot(y_pred["label"], 5), axis=-1)
        return ops.mean(ops.logsumexp(y_pred["logits"], axis=-1) - chosen)


def test_inside_a_compiled_step_in_mixed_precision():
    image, label = _make_batch(2)
    parameters = _draw_batch(EVERYTHING, SHAPES[2], left_right=1)
    inputs = {"image": image, "label": label, **parameters}
    model = _Augmented()
    model.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=keras.backend.backend() != "torch")
    outputs = model.predict_on_batch(inputs)
    expected, expected_label = _apply(image, label, parameters, ((1, 2),))
    np.testing.assert_allclose(outputs["image"], expected, atol=1e-4)
    np.testing.assert_array_equal(outputs["label"], expected_label)
    losses = [float(np.asarray(model.train_on_batch(inputs)).ravel()[0]) for _ in range(5)]
    assert losses[-1] < losses[0]
