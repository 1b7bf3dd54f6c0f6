"""The drawn hippocampus: a seed repeats, its head is in front, and grey alone does not tell it."""

import numpy as np

from modules import phantom


def test_hippocampus_repeats_and_its_head_is_in_front():
    image, label = phantom.draw_hippocampus(np.random.default_rng(1))
    again, label_again = phantom.draw_hippocampus(np.random.default_rng(1))
    _, other = phantom.draw_hippocampus(np.random.default_rng(2))
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    assert not np.array_equal(label, other)
    assert image.shape == (40, 56, 40, 2)
    assert label.shape == (40, 56, 40)
    assert image.dtype == np.float32
    assert label.dtype == np.uint8
    assert np.isfinite(image).all()
    assert image.min() >= 0
    head, tail = (np.argwhere(label == k).mean(axis=0) for k in (1, 2))
    assert head[1] > tail[1] + 10
    assert head[2] < tail[2]
    assert 800 < (label == 1).sum() < 3000
    assert 800 < (label == 2).sum() < 3000


def test_hippocampus_is_not_told_by_grey_alone():
    """A good part of the surroundings is as bright as the hippocampus in both channels, and its halves are alike."""
    image, label = phantom.draw_hippocampus(np.random.default_rng(4))
    inside = image[label > 0]
    low, high = np.percentile(inside, (5, 95), axis=0)
    alike = ((image > low) & (image < high)).all(axis=-1)
    assert alike[label == 0].sum() > (label > 0).sum()
    np.testing.assert_allclose(image[label == 1].mean(axis=0), image[label == 2].mean(axis=0), rtol=0.1)
    edge = (label == 0) & (image[..., 0] > 0.7)
    assert edge.sum() > 0.1 * label.size  # white matter
