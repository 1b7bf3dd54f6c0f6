"""Losses against those of MONAI and PyTorch; this file also runs under the other backends."""

import numpy as np
import pytest
from loss_helpers import compute_loss as _value
from loss_helpers import draw_sample as _draw


def _peer_arguments(label, logits):
    """MONAI's order: logits `(B, K, *P)`, then labels `(B, 1, *P)`."""
    import torch

    return torch.tensor(np.moveaxis(logits, -1, 1), dtype=torch.float32), torch.tensor(label[:, None])


def _activation(channels):
    return {"softmax": True, "to_onehot_y": True, "include_background": False} if channels > 1 else {"sigmoid": True}


@pytest.mark.peers
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("channels", [1, 4])
def test_overlap_losses_equal_those_of_monai(channels, batch):
    monai_losses = pytest.importorskip("monai.losses")
    label, logits = _draw(channels)
    options = {**_activation(channels), "batch": batch}
    peers = {
        "dice": monai_losses.DiceLoss(**options, smooth_nr=1, smooth_dr=1),
        # MONAI's Jaccard ratio is 2 (TP + s / 2) / 2 (TP + FP + FN + s / 2).
        "iou": monai_losses.DiceLoss(**options, jaccard=True, smooth_nr=2, smooth_dr=2),
        "tversky": monai_losses.TverskyLoss(**options, alpha=0.3, beta=0.7, smooth_nr=1, smooth_dr=1),
    }
    for name, peer in peers.items():
        expected = float(peer(*_peer_arguments(label, logits)))
        assert _value(name, label, logits, batch=batch).mean() == pytest.approx(expected, rel=1e-5), name


@pytest.mark.peers
@pytest.mark.parametrize("batch", [False, True])
def test_weighted_dice_beside_that_of_monai(batch):
    monai_losses = pytest.importorskip("monai.losses")
    label, logits = _draw(4)
    # MONAI does not divide by the weights, so they must have mean 1 to agree.
    peer = monai_losses.DiceLoss(**_activation(4), batch=batch, smooth_nr=1, smooth_dr=1, weight=[0.5, 1.0, 1.5])
    ours = _value("dice", label, logits, class_weights=(7, 1, 2, 3), batch=batch)
    assert ours.mean() == pytest.approx(float(peer(*_peer_arguments(label, logits))), rel=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("channels", [1, 4])
def test_generalised_dice_beside_that_of_monai(channels, batch):
    monai_losses = pytest.importorskip("monai.losses")
    label, logits = _draw(channels)  # If the last class is absent, both give it the weight of the smallest present one.
    groups = [slice(None)] if batch else [slice(index, index + 1) for index in range(len(label))]
    for group in groups:
        volumes = [(label[group] == index).sum() for index in range(1, max(2, channels))]
        # MONAI's weights are 1 / volume^2. Ours are these times the square of the smallest volume, and so is our smooth term.
        smooth = 1 / min(volume for volume in volumes if volume) ** 2
        peer = monai_losses.GeneralizedDiceLoss(**_activation(channels), batch=batch, smooth_nr=smooth, smooth_dr=smooth)
        expected = float(peer(*_peer_arguments(label[group], logits[group])))
        ours = _value("generalised_dice", label[group], logits[group], batch=batch)
        np.testing.assert_allclose(ours, expected, rtol=1e-5)
    # If no class is present at all, MONAI's weights are 0. Its loss and gradient are then 0 for any prediction; ours are not.
    empty = np.zeros_like(label)
    assert float(peer(*_peer_arguments(empty, logits))) == pytest.approx(0, abs=1e-6)
    assert (_value("generalised_dice", empty, logits) > 0.5).all()


@pytest.mark.peers
@pytest.mark.parametrize("channels", [1, 4])
def test_focal_loss_beside_that_of_monai(channels):
    monai_losses = pytest.importorskip("monai.losses")
    label, logits = _draw(channels)
    options = {"use_softmax": True, "to_onehot_y": True} if channels > 1 else {}
    # MONAI averages over classes too. Only the voxel's own class is not 0, so the sum over classes is the loss of a voxel.
    costs = monai_losses.FocalLoss(gamma=2.0, reduction="none", **options)(*_peer_arguments(label, logits)).numpy()
    np.testing.assert_allclose(_value("focal", label, logits), costs.sum(axis=1).mean(axis=(1, 2, 3)), rtol=1e-5)
    if channels > 1:
        # MONAI does not divide by the weights.
        weights = np.array([1.0, 2.0, 3.0, 4.0])
        costs = monai_losses.FocalLoss(gamma=2.0, reduction="none", weight=weights, **options)(*_peer_arguments(label, logits)).numpy()
        expected = costs.sum(axis=(1, 2, 3, 4)) / weights[label].sum(axis=(1, 2, 3))
        np.testing.assert_allclose(_value("focal", label, logits, class_weights=weights), expected, rtol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("channels", [1, 4])
def test_dice_ce_equals_that_of_monai(channels, batch):
    monai_losses = pytest.importorskip("monai.losses")
    label, logits = _draw(channels)
    peer = monai_losses.DiceCELoss(**_activation(channels), batch=batch, smooth_nr=1, smooth_dr=1)
    logits_first, label_first = _peer_arguments(label, logits)
    # With one logit MONAI wants labels of floats.
    expected = peer(logits_first, label_first if channels > 1 else label_first.float())
    assert _value("dice_ce", label, logits, batch=batch).mean() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.peers
def test_weighted_cross_entropy_equals_that_of_pytorch():
    functional = pytest.importorskip("torch.nn.functional")
    import torch

    label, logits = _draw(4)
    weights = (0.5, 1.0, 2.0, 4.0)
    # We compare a sample at a time, because PyTorch divides by the weights of the whole batch.
    for index, value in enumerate(_value("ce", label, logits, class_weights=weights)):
        logits_first, label_first = _peer_arguments(label[index : index + 1], logits[index : index + 1])
        expected = functional.cross_entropy(logits_first, label_first[:, 0], weight=torch.tensor(weights))
        assert value == pytest.approx(float(expected), rel=1e-5)
