"""The drawn brain: its classes, its size in millimetres, its tumour and its sulci."""

import numpy as np

from modules import phantom


def test_brain_classes_and_t1_contrast():
    image, label = phantom.draw_brain(np.random.default_rng(0), (8, 128, 128))
    assert set(np.unique(label)) == {0, 1, 2, 3}
    means = [image[label == k].mean() for k in range(4)]
    assert means[0] == 0  # skull-stripped
    assert means[1] < 0.8 * means[2] < 0.8 * means[3]
    area = (label > 0).sum(axis=(1, 2))
    assert area[0] < 0.6 * area.max()
    assert area[-1] < 0.6 * area.max()


def test_a_tumour_is_added():
    _, healthy = phantom.draw_brain(np.random.default_rng(5), (8, 128, 128))
    _, label = phantom.draw_brain(np.random.default_rng(5), (8, 128, 128), tumour=True)
    assert set(np.unique(label)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(label[label != 4], healthy[label != 4])


def test_a_brain_of_given_spacing_is_whole_and_of_real_size():
    """A brain without sulci has about 1 litre, and the border cuts off nothing but the stem; voxels need not be cubes."""
    _, label = phantom.draw_brain(np.random.default_rng(0), (80, 64, 96), spacing_mm=(2.0, 3.0, 2.5), label_sulci=False)
    place = np.argwhere(label > 0)
    assert (place.min(axis=0) > 0).all()
    assert (place.max(axis=0) < np.array(label.shape) - 1).all()
    np.testing.assert_allclose(np.ptp(place, axis=0) * (2.0, 3.0, 2.5), (120, 168, 132), atol=12)
    millilitres = np.bincount(label.ravel()) * 0.015
    assert 15 < millilitres[1] < 80  # the ventricles
    assert 700 < millilitres[1:].sum() < 1200


def test_sulci_without_a_label_stay_in_the_image():
    arguments = {"shape": (12, 64, 64), "spacing_mm": (10.0, 3.5, 3.5)}
    image, label = phantom.draw_brain(np.random.default_rng(3), **arguments)
    same, fewer = phantom.draw_brain(np.random.default_rng(3), **arguments, label_sulci=False)
    np.testing.assert_array_equal(image, same)
    assert set(np.unique(label[label != fewer])) == {1}
    assert image[label != fewer].min() > 0
    assert (fewer == 1).any()
