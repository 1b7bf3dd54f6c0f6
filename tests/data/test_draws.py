"""Draws of augmentation: they repeat, and their shares, ranges, rotations and coarse axes are right."""

import numpy as np
import pytest
from helpers import EVERYTHING, SHAPES
from helpers import draw_batch as _draw_batch
from helpers import make_certain as _certain

from modules.data.draws import AUGMENTATIONS, NEUTRAL, Augmentation, Effect, draw_parameters, list_effects


def test_rotations_in_3d_are_rigid_and_go_about_all_axes():
    drawn = _draw_batch(Augmentation(rotation=Effect(1.0, -30, 30)), (8, 8, 8), number=50)["matrix"]
    linear = drawn[..., :3].astype(np.float64)
    np.testing.assert_allclose(linear @ linear.transpose(0, 2, 1), np.tile(np.eye(3), (50, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(linear), 1, atol=1e-6)
    assert (np.abs(linear[:, [0, 0, 1], [1, 2, 2]]).max(axis=0) > 0.3).all()
    assert (drawn[..., 3] == 0).all()


def test_thick_slices_turn_in_their_plane_only():
    matrix = _draw_batch(Augmentation(rotation=Effect(1.0, 20, 30)), (8, 16, 16), spacing_mm=(5, 1, 1))["matrix"]
    np.testing.assert_array_equal(matrix[:, 0], [[1, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(matrix[:, :, 0], [[1, 0, 0]] * 2)
    assert (np.abs(matrix[:, 1, 2]) > 0.3).all()


def test_only_the_left_right_axis_mirrors():
    always = Augmentation(flip=1.0)
    rng = np.random.default_rng(0)
    assert draw_parameters(rng, always, (8, 8, 8), 1, left_right=0)["mirrored"] == 1
    assert draw_parameters(rng, always, (8, 8, 8), 1)["mirrored"] == 0
    assert draw_parameters(rng, always, (8, 8, 8), 1, flips=(1, 2), left_right=0)["mirrored"] == 0


def test_coarse_axes_are_neither_blurred_nor_sampled_down_as_much():
    parameters = _draw_batch(_certain(lowres=0.5, elastic=2, blur=1), (40, 40, 40), spacing_mm=(4, 1.5, 1))
    np.testing.assert_allclose(parameters["lowres"][0], [1, 0.75, 0.5], rtol=1e-6)
    np.testing.assert_allclose(parameters["blur"][0], [0.25, 1 / 1.5, 1], rtol=1e-6)
    most = np.abs(parameters["elastic"]).max(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(most, [0.5, 2 / 1.5, 2], rtol=0.02)


@pytest.mark.parametrize("rank", [2, 3])
def test_draws_are_a_pure_function_of_the_generator(rank):
    first, again, other = (_draw_batch(EVERYTHING, SHAPES[rank], channels=2, seed=seed) for seed in (0, 0, 1))
    for name, value in first.items():
        assert value.dtype == (np.int32 if name in ("mirrored", "noise_seed") else np.float32)
        np.testing.assert_array_equal(value, again[name])
        assert value.shape == other[name].shape
        assert name == "mirrored" or not np.array_equal(value, other[name])


def test_an_effect_is_drawn_alike_with_and_without_the_others():
    together = _draw_batch(EVERYTHING, SHAPES[3], channels=2)
    for name in ("elastic", "bias", "blur", "lowres", "noise", "gamma", "contrast", "brightness"):
        alone = _draw_batch(Augmentation(**{name: getattr(EVERYTHING, name)}), SHAPES[3], channels=2)
        np.testing.assert_array_equal(alone[name], together[name])


def test_the_augmentation_of_long_trainings_bends_nothing():
    full, strong = AUGMENTATIONS["full"], AUGMENTATIONS["strong"]
    assert {name for name in ("flip", *NEUTRAL) if getattr(full, name) != getattr(strong, name)} == {"shear", "shift", "elastic"}
    assert "elastic" not in _draw_batch(full, (9, 9))


@pytest.mark.parametrize("name", ["flip", *NEUTRAL])
def test_shares_and_ranges_of_draws(name):
    strong = AUGMENTATIONS["strong"]
    value = getattr(strong, name)
    drawn = _draw_batch(Augmentation(**{name: value}), (101, 101), number=1000)
    if "matrix" in drawn and name != "elastic":
        share = (drawn["matrix"] != np.eye(2, 3, dtype=np.float32)).any(axis=(1, 2)).mean()
    else:
        share = (drawn[name] != NEUTRAL[name]).reshape(1000, -1).any(axis=1).mean()
    assert abs(share - (0.75 if name == "flip" else value.probability)) < 4 * 0.5 / np.sqrt(1000)
    if name in ("gamma", "contrast", "brightness", "noise", "blur", "lowres"):
        assert (drawn[name][drawn[name] != NEUTRAL[name]] >= value.low).all()
        assert (drawn[name] <= max(value.high, NEUTRAL[name])).all()
    if name == "scaling":
        sizes = 1 / drawn["matrix"][:, 0, 0]
        assert 0.8 <= sizes.min() < 0.82
        assert 1.22 < sizes.max() <= 1.25
    if name == "shift":
        assert 4 < np.abs(drawn["matrix"][..., 2]).max() <= 5.05


def test_list_effects():
    effects = list_effects(AUGMENTATIONS["strong"])
    assert list(effects) == ["flip", *NEUTRAL]
    assert effects["flip"] == Augmentation(flip=1.0)
    assert effects["gamma"] == Augmentation(gamma=Effect(1.0, 1.5, 1.5))
    assert effects["lowres"] == Augmentation(lowres=Effect(1.0, 0.5, 0.5))
    assert effects["contrast"].contrast.low == 0.75
    assert "blur" not in list_effects(AUGMENTATIONS["light"])


def test_mild_changes_never_mirror():
    effects = list_effects(AUGMENTATIONS["mild"])
    assert list(effects) == ["rotation", "scaling", "bias", "noise", "gamma", "contrast", "brightness"]
    drawn = [draw_parameters(np.random.default_rng(seed), AUGMENTATIONS["mild"], (8, 8), 1) for seed in range(100)]
    assert all(one["mirrored"] == 0 and np.linalg.det(one["matrix"][:, :2]) > 0 for one in drawn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (8,)}, "Expected `shape` of a slice or a volume, rank 2 or 3. Received: (8,)."),
        ({"flips": (2,)}, "Expected `flips` and `left_right` among the axes of (8, 8). Received: (2,), None."),
        ({"left_right": 3}, "Expected `flips` and `left_right` among the axes"),
        ({"spacing_mm": (1, 1, 1)}, "Expected `spacing_mm` of 2 positive lengths. Received: (1, 1, 1)."),
        ({"spacing_mm": (0, 1)}, "Expected `spacing_mm` of 2 positive lengths."),
    ],
)
def test_errors_say_what_is_expected(arguments, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        draw_parameters(np.random.default_rng(0), EVERYTHING, **{"shape": (8, 8), "channels": 1, **arguments})
    assert message in str(caught.value)
