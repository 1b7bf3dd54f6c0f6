"""From an image to the windows that a network sees and back: what lies about it, which flips are tried, and what one output means."""

import numpy as np
import pytest

from modules.data.case import LabelRule, Volume
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.data.regions import Region
from modules.predict.bundle import ModelBundle
from modules.predict.cases import PredictionOptions, predict_images

FIXED = Preprocessing(3, intensity="fixed", scale=1.0, mean=0.5, std=0.5)


class _Recorder:
    """A stand-in for a model: it keeps what it sees, and says "foreground" where that is above 0."""

    def __init__(self):
        self.seen = []

    def predict_on_batch(self, inputs):
        self.seen += list(inputs)
        return (inputs[..., :1] > 0).astype(np.float32)


def _predict(image, window, preprocessing=FIXED, mirror=False, channels=1, **fields):
    """The windows that the model saw, and its probabilities `(*S, K)`."""
    model = _Recorder()
    names = tuple(f"channel {number}" for number in range(channels))
    fields = {"class_names": ("background", "a"), "label_rule": LabelRule({0: 0, 1: 1})} | fields
    bundle = ModelBundle(model, preprocessing, Window(window), channels=names, **fields)
    volume = Volume(np.asarray(image, np.float32), np.eye(4), (1.0,) * 3)
    (planes,) = ([*planes] for planes in predict_images(bundle, [volume], PredictionOptions(batch_size=1, mirror=mirror)))
    return model.seen, np.stack(planes)


def test_a_window_larger_than_the_image_is_filled_with_each_channels_darkest():
    image = np.zeros((2, 2, 2, 2))
    image[..., 0], image[..., 1] = 0.25, 0.75
    image[0, 0, 0] = 1.0
    (window,), _ = _predict(image, (4, 4, 4), channels=2)
    # (0.25 - 0.5) / 0.5 and (0.75 - 0.5) / 0.5; 0 would be an intensity of 0.5.
    inside = np.zeros((4, 4, 4), bool)
    inside[1:3, 1:3, 1:3] = True
    np.testing.assert_array_equal(window[~inside], [[-0.5, 0.5]] * 56)
    np.testing.assert_array_equal(window[1, 1, 1], [1, 1])


def test_one_output_is_the_probability_of_the_foreground():
    image = np.full((2, 2, 2, 1), 0.25)
    image[1, 1, 1] = 1.0
    _, probabilities = _predict(image, (2, 2, 2))
    np.testing.assert_array_equal(probabilities[1, 1, 1], [0, 1])
    np.testing.assert_array_equal(probabilities[0, 0, 0], [1, 0])


def test_each_region_has_a_map_of_its_own_and_no_background():
    image = np.full((2, 2, 2, 1), 0.25)
    image[1, 1, 1] = 1.0
    rule = LabelRule({0: 0, 1: 1, 2: 2})
    _, probabilities = _predict(image, (2, 2, 2), label_rule=rule, class_names=("background", "a"), regions=(Region((1, 2), 1),))
    assert probabilities.shape == (2, 2, 2, 1)
    np.testing.assert_array_equal(probabilities[..., 0], image[..., 0] == 1)
    # What a crop cuts off is in no region.
    cropped = Preprocessing(3, intensity="fixed", mean=0.5, std=0.5, foreground_crop=True)
    _, probabilities = _predict(np.pad(image, ((2, 2),) * 3 + ((0, 0),)), (2, 2, 2), cropped, label_rule=rule, regions=(Region((1, 2), 1),))
    assert (probabilities.shape, probabilities.sum()) == ((6, 6, 6, 1), 1)


def test_what_a_crop_cuts_off_is_background():
    image = np.zeros((4, 4, 4, 1))
    image[1:3, 1:3, 1:3] = 1.0
    _, probabilities = _predict(image, (2, 2, 2), Preprocessing(3, intensity="fixed", mean=0.5, std=0.5, foreground_crop=True))
    np.testing.assert_array_equal(probabilities.argmax(axis=-1), image[..., 0])
    np.testing.assert_array_equal(probabilities[0, 0, 0], [1, 0])


@pytest.mark.parametrize(("axes", "flips"), [((0,), {(1, 1, 1), (-1, 1, 1)}), ((1, 2), {(1, 1, 1), (1, -1, 1), (1, 1, -1), (1, -1, -1)})])
def test_only_the_axes_that_the_training_flipped_are_mirrored(axes, flips):
    image = np.arange(8.0).reshape(2, 2, 2, 1) / 8
    seen, _ = _predict(image, (2, 2, 2), mirror=True, flipped_axes=axes)
    plain = (image - 0.5) / 0.5
    assert len(seen) == len(flips)
    for signs in flips:
        expected = plain[tuple(slice(None, None, sign) for sign in signs)]
        assert any(np.array_equal(window, expected) for window in seen)
