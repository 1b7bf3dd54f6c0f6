"""Learning rates worked out by hand, and optimisers that do what their settings say."""

import keras
import numpy as np
import pytest

from modules.model.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule


def _rates(schedule, steps):
    return [float(keras.ops.convert_to_numpy(schedule(step))) for step in steps]


def test_rates_by_hand():
    assert make_schedule("constant", 0.1, 10) == 0.1
    half = 0.1 / 2
    np.testing.assert_allclose(_rates(make_schedule("cosine", 0.1, 10), (0, 5, 10)), [0.1, half, 0], atol=1e-8)
    # Two cosines of five steps: the second begins at the top.
    restarts = make_schedule("cosine_restarts", 0.1, 10, cycles=2)
    np.testing.assert_allclose(_rates(restarts, (0, 2.5, 4.999999, 5, 7.5)), [0.1, half, 0, 0.1, half], atol=1e-6)
    np.testing.assert_allclose(_rates(make_schedule("polynomial", 0.1, 10), (0, 5, 10)), [0.1, 0.1 * 0.5**0.9, 0], atol=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_rises_to_the_rate_and_hands_over(name):
    rates = _rates(make_schedule(name, 0.1, 10, warmup_steps=4, cycles=1), range(11))
    np.testing.assert_allclose(rates[:5], [0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-6)
    plain = make_schedule(name, 0.1, 6, cycles=1)
    np.testing.assert_allclose(rates[4:10], [0.1] * 6 if name == "constant" else _rates(plain, range(6)), rtol=1e-5)


def test_a_warm_up_leaves_something_to_train():
    with pytest.raises(ValueError, match="Expected a warm-up shorter than the training, 10 steps. Received: 10"):
        make_schedule("cosine", 0.1, 10, warmup_steps=10)


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match="Expected `schedule` in .*'cosine_restarts'.* Received: 'step'"):
        make_schedule("step", 0.1, 10)
    with pytest.raises(ValueError, match="Expected `optimizer` in .*'adamw'.* Received: 'lion'"):
        make_optimizer("lion", 0.1)


def _updates(name, gradients, start=0.0, **settings):
    """The variable after each of the gradients is applied."""
    variable = keras.Variable(np.full(2, start, "float32"))
    optimizer = make_optimizer(name, 0.1, **settings)
    values = []
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(np.asarray(gradient, "float32"))], [variable])
        values.append(np.array(keras.ops.convert_to_numpy(variable)))
    return values


def test_steps_by_hand():
    # Adam's first step is the learning rate, whatever the gradient.
    np.testing.assert_allclose(_updates("adam", [[3, -4]])[0], [-0.1, 0.1], rtol=1e-5)
    # Decoupled decay takes rate x decay of the weight besides.
    np.testing.assert_allclose(_updates("adamw", [[3, -4]], 1.0, weight_decay=0.5)[0], [1 - 0.05 - 0.1, 1 - 0.05 + 0.1], rtol=1e-5)
    # Nesterov: v = -0.1 g, then w += 0.99 v - 0.1 g.
    np.testing.assert_allclose(_updates("sgd", [[3, -4]])[0], [-0.199 * 3, 0.199 * 4], rtol=1e-5)


def test_the_gradient_is_clipped_as_a_whole():
    # (3, 4) has norm 5: a fifth of it is left.
    np.testing.assert_allclose(_updates("sgd", [[3, 4]], clip_norm=1.0)[0], [-0.199 * 0.6, -0.199 * 0.8], rtol=1e-5)
    np.testing.assert_allclose(_updates("sgd", [[0.3, 0.4]], clip_norm=1.0)[0], [-0.199 * 0.3, -0.199 * 0.4], rtol=1e-5)


def test_the_norm_is_that_of_all_gradients_together():
    # 3 and 4 of two variables have norm 5: a fifth of each is left, and their ratio stays.
    variables = [keras.Variable(np.zeros(1, "float32")) for _ in range(2)]
    make_optimizer("sgd", 0.1, clip_norm=1.0).apply([keras.ops.convert_to_tensor([value]) for value in (3.0, 4.0)], variables)
    values = [float(keras.ops.convert_to_numpy(variable)[0]) for variable in variables]
    np.testing.assert_allclose(values, [-0.199 * 0.6, -0.199 * 0.8], rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulated_gradients_make_one_update_of_their_mean(name):
    values = _updates(name, [[1, 2], [3, 6]], accumulate=2)
    np.testing.assert_array_equal(values[0], [0, 0])
    np.testing.assert_allclose(values[1], _updates(name, [[2, 4]])[0], rtol=1e-6)
