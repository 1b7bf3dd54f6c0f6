"""The average of the weights of the last epochs, by hand."""

from contextlib import contextmanager

import keras
import numpy as np
import pytest

from modules.run.averaging import LastAverage


class _Trainer:
    """A network of one dense layer and one normalisation, and an average that is the negative of its weights."""

    def __init__(self, negate=False):
        self.network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1), keras.layers.BatchNormalization()])
        self._negate = negate

    def set(self, value):
        for weight in self.network.weights:
            weight.assign(np.full(weight.shape, value, np.float32))

    def read(self):
        return {float(value) for weight in self.network.get_weights() for value in weight.ravel()}

    @contextmanager
    def averaged(self):
        own = [-weight if self._negate else weight for weight in self.network.get_weights()]
        kept = self.network.get_weights()
        self.network.set_weights(own)
        yield
        self.network.set_weights(kept)


def _train(trainer, average, epochs):
    for epoch in epochs:
        trainer.set(float(epoch))
        average.on_epoch_end(epoch - 1)


def _judge(trainer, average, value, best, name="mean_dice"):
    """Judges the average, which validates to `value`; returns the answer, the weights that were validated, and those that were saved."""
    seen, saved = [], []

    def validate():
        seen.append(trainer.read())
        return {name: value}

    kept = average.judge(validate, name, best, lambda: saved.append(trainer.read()))
    return kept, seen, saved


@pytest.mark.parametrize(("negate", "mean"), [(False, 4.0), (True, -4.0)])
def test_the_mean_of_the_last_three_epochs_is_judged(tmp_path, negate, mean):
    trainer = _Trainer(negate)
    average = LastAverage(trainer, tmp_path, 3)
    _train(trainer, average, range(1, 6))
    # Epochs 3, 4 and 5, moving means and variances included; the network has its own weights back.
    assert _judge(trainer, average, 0.8, 0.7) == (True, [{mean}], [{mean}])
    assert trainer.read() == {5.0}
    assert _judge(trainer, average, 0.7, 0.7) == (False, [{mean}], [])
    assert _judge(trainer, average, 0.5, -0.6, "loss") == (True, [{mean}], [{mean}])
    assert _judge(trainer, average, float("nan"), 0.6)[0] is False


def test_one_epoch_is_no_average(tmp_path, caplog):
    trainer = _Trainer()
    average = LastAverage(trainer, tmp_path, 5)
    _train(trainer, average, range(1, 6))
    with caplog.at_level("INFO", "mri"):
        assert _judge(trainer, average, 1.0, 0.5) == (False, [], [])
    assert caplog.messages == ["no average of the weights: the training ended before two of the last epochs, from epoch 5 on"]


def test_a_run_without_its_average_does_not_go_on_with_another(tmp_path):
    average = LastAverage(_Trainer(), tmp_path, 3)
    average.restore(2)
    for content, received in ((None, "no such file"), (b"PK", "a damaged file")):
        if content:
            (tmp_path / "average_000000004.npz").write_bytes(content)
        with pytest.raises(
            ValueError, match=f"^Expected the average of the last epochs in .*_000000004.npz. Received: {received}. Copy it"
        ):
            average.restore(4)


def test_a_resumed_run_has_the_average_of_an_uninterrupted_one(tmp_path):
    trainer = _Trainer()
    average = LastAverage(trainer, tmp_path, 2)
    _train(trainer, average, range(1, 6))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"average_00000000{epoch}.npz" for epoch in (3, 4, 5)]
    # The checkpoint of epoch 5 was not written any more, so that the run goes on after epoch 4.
    resumed = LastAverage(trainer, tmp_path, 2)
    resumed.restore(4)
    assert resumed.count == 3
    _train(trainer, resumed, range(5, 7))
    assert (resumed.count, _judge(trainer, resumed, 1.0, 0.0)[1]) == (5, [{4.0}])
    # Nothing of epochs that do not enter is read.
    begun = LastAverage(trainer, tmp_path, 7)
    begun.restore(6)
    assert begun.count == 0
    other = LastAverage(trainer, tmp_path, 7, write=False)
    _train(trainer, other, [9])
    assert not (tmp_path / "average_000000009.npz").exists()
