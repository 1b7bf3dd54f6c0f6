"""The drawn pelvis: its classes, where they lie, and how bright they are."""

import numpy as np
import pytest

from modules import phantom
from modules.phantom import pelvis


@pytest.mark.parametrize("shape", [(4, 256, 128), (8, 256, 144), (6, 128, 128)])
def test_pelvis_holds_every_class(shape):
    for seed in range(3):
        _, label = phantom.draw_pelvis(np.random.default_rng(seed), shape)
        assert set(np.unique(label)) == set(range(len(phantom.PELVIS_CLASSES)))


def test_pelvis_is_the_right_way_up():
    """The prostate lies below the bladder (axis 0) and in front of the rectum (axis 1)."""
    _, label = phantom.draw_pelvis(np.random.default_rng(0), (12, 128, 64))
    centre = {k: np.argwhere(label == k).mean(axis=0) for k in (pelvis.BLADDER, pelvis.RECTUM, pelvis.PROSTATE)}
    assert centre[pelvis.PROSTATE][0] < centre[pelvis.BLADDER][0]
    assert centre[pelvis.PROSTATE][1] < centre[pelvis.RECTUM][1]


def test_pelvis_contrast():
    """The body is brighter than air and urine brighter than the tissue around it; muscle and fat differ within the body."""
    image, label = phantom.draw_pelvis(np.random.default_rng(0), (8, 256, 128))
    mean = [image[label == k].mean() for k in range(6)]
    assert mean[pelvis.BODY] > 5 * mean[0]
    assert mean[pelvis.BLADDER] > 1.3 * max(mean[k] for k in (pelvis.BODY, pelvis.BONE, pelvis.RECTUM, pelvis.PROSTATE))
    assert image[label == pelvis.BODY].std() > 0.3 * mean[pelvis.BODY]


def test_pelvis_spacing_is_that_of_the_drawing():
    assert pelvis.get_pelvis_spacing((22, 179, 200)) == (5.0, 2.0, 2.0)
    assert pelvis.get_pelvis_spacing((22, 159, 100)) == (5.0, 2.0, 2.0)
