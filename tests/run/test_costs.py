"""The costs of a training before it is paid, by hand."""

from types import SimpleNamespace

import keras
import pytest
from helpers import make_fingerprint
from keras import layers

from dataset import DATASETS
from modules.run import costs
from modules.run.costs import count_flops, estimate_costs, find_limit, find_warning, format_time
from modules.run.plan import make_plan
from modules.run.settings import Settings


def _build():
    inputs = keras.Input((8, 8, 2))
    x = layers.ReLU()(layers.Conv2D(4, 3, padding="same")(inputs))
    return keras.Model(inputs, layers.Conv2DTranspose(3, 2, strides=2, use_bias=False)(x))


def test_operations_by_hand():
    # 64 voxels times a kernel of 3x3x2x4, and the 64 voxels before the enlargement times one of 2x2x4x3; two operations each.
    assert count_flops(_build()) == 2 * 64 * 72 + 2 * 64 * 48
    inputs = keras.Input((5,))
    assert count_flops(keras.Model(inputs, layers.Dense(3)(inputs))) == 2 * 5 * 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_rate_is_measured_in_each_precision(precision):
    assert costs.measure_rate(precision) > 0


def test_an_estimate_by_hand(monkeypatch):
    for name, value in (("BASE_BYTES", 1000), ("MAPS", 2.0), ("WEIGHT_BYTES", 16), ("EFFICIENCY", 0.5), ("PASSES", 3)):
        monkeypatch.setattr(costs, name, value)
    monkeypatch.setattr(costs, "measure_rate", lambda precision: 1e6)
    case = SimpleNamespace(size=100)
    prepared = {"train": [case] * 8, "validate": [case] * 2, "test": [case]}
    plan = make_plan(Settings("oasis", epochs=3, batch_size=4), DATASETS["oasis"], make_fingerprint([(256, 256)] * 8))
    assert (plan.epochs, plan.steps_per_epoch) == (3, 2)
    found = estimate_costs(plan, _build(), "float32", prepared)
    weights, flops = 72 + 4 + 48, 15360
    # Input, convolution, activation and enlargement.
    maps = 64 * 2 + 64 * 4 + 64 * 4 + 256 * 3
    step_s = 3 * flops * 4 / (0.5 * 1e6)
    assert found == {
        "weights": weights,
        "flops": flops,
        "disk_bytes": 1100,
        "step_s": pytest.approx(step_s),
        # A quarter as many cases are validated, which takes a third of a step each.
        "seconds": pytest.approx(3 * 2 * step_s * (1 + 0.25 / 3)),
        "memory_bytes": 1000 + 2 * 4 * 4 * maps + 16 * weights,
    }
    half = estimate_costs(plan, _build(), "bfloat16", prepared)
    assert half["memory_bytes"] == 1000 + 2 * 4 * 2 * maps + 16 * weights
    # A run that goes on was estimated before, and is estimated again.
    again = estimate_costs(SimpleNamespace(**{**vars(plan), "costs": found}), _build(), "float32", prepared)
    assert again == found


def test_what_was_measured_stays(monkeypatch):
    monkeypatch.setattr(costs, "measure_rate", lambda precision: pytest.fail("it measures"))
    known = {"seconds": 600.0, "step_s": 0.5, "first_s": 9.0, "validation_s": 0.2, "peak_bytes": 7, "device_bytes": 0, "weights": 1}
    prepared = {name: [SimpleNamespace(size=10)] for name in ("train", "validate", "test")}
    found = estimate_costs(SimpleNamespace(costs=known), _build(), "float32", prepared)
    assert found == {**known, "weights": 124, "flops": 15360, "disk_bytes": 30, "memory_bytes": 7}
    assert estimate_costs(SimpleNamespace(costs=known | {"device_bytes": 5}), _build(), "float32", prepared)["memory_bytes"] == 5


def test_memory_that_will_not_do_is_told_with_the_remedy():
    assert find_warning({"memory_bytes": 9 << 30}, 10 << 30) == ""
    assert find_warning({"memory_bytes": 99 << 30}, 0) == ""
    assert find_warning({"memory_bytes": 19 << 29}, 10 << 30) == (
        "the training needs about 9.5 GiB of memory, and there are 10.0. Choose a smaller --shape, --batch-size or --base-filters"
    )
    # Nobody knows how much of a GPU's memory others will leave.
    assert find_limit({"device_bytes": 1}) == 0
    assert find_limit({}) == costs.find_memory()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "1.5 min"), (5399, "90.0 min"), (5400, "1.5 h"), (129_599, "36.0 h"), (129_600, "1.5 days")],
)
def test_durations_have_the_unit_that_suits_them(seconds, text):
    assert format_time(seconds) == text


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_rate_of_the_machine_is_that_of_a_product(precision):
    # Any machine computes more than a million and less than 10**17 operations a second.
    assert 1e6 < costs.measure_rate(precision) < 1e17
