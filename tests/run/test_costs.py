"""The costs of a training before it is paid, by hand."""

from dataclasses import replace
from types import SimpleNamespace

import keras
import pytest
from helpers import make_fingerprint
from keras import layers

from dataset import DATASETS
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.hardware import Hardware
from modules.run import costs
from modules.run.costs import count_flops, estimate_costs, estimate_end, find_limit, find_warning, format_time
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


SCANS = make_fingerprint([(256, 256)] * 8)
# What `_build` holds for a sample: input, convolution, activation and enlargement.
VALUES = 64 * 2 + 64 * 4 + 64 * 4 + 256 * 3
# Prediction of 4 windows of 256x256, the scans of 65,536 voxels with 2 channels and 3 maps, and the libraries.
END = 10 + 4 * 4 * VALUES // 2 + (12 * 2 + 8 + 4 * 3) * 65536 + 5


@pytest.fixture(autouse=True)
def _constants(monkeypatch):
    """Fixes the numbers that were measured, the engine, and the memory of this process."""
    numbers = {"BASE_BYTES": 900, "GRAPH_BYTES": 100, "MAPS": 2.0, "WEIGHT_BYTES": 16, "EFFICIENCY": 0.5, "PASSES": 3}
    numbers |= {"ENGINE_BYTES": 10, "PREDICTED_MAPS": 0.5, "REPORT_BYTES": 5, "CHANNEL_BYTES": 12, "LABEL_BYTES": 8}
    for name, value in numbers.items():
        monkeypatch.setattr(costs, name, value)
    monkeypatch.setattr(costs, "has_nvidia", lambda: False)
    monkeypatch.setattr(costs, "has_openvino", lambda: True)
    monkeypatch.setattr(costs.devices, "has_gpu", lambda: False)
    monkeypatch.setattr(costs, "read_peak", lambda: 0)
    monkeypatch.setattr(costs, "read_memory", lambda: 50)


def test_an_estimate_by_hand(monkeypatch):
    monkeypatch.setattr(costs, "measure_rate", lambda precision: 1e6)
    case = SimpleNamespace(size=100, shape=(256, 256))
    prepared = {"train": [case] * 8, "validate": [SimpleNamespace(size=100, shape=(512, 256)), case, case], "test": [case]}
    plan = make_plan(Settings("oasis", epochs=3, batch_size=4, shape=(256, 256)), DATASETS["oasis"], SCANS)
    assert (plan.epochs, plan.steps_per_epoch) == (3, 2)
    found = estimate_costs(plan, _build(), "float32", prepared, SCANS)
    weights, flops = 72 + 4 + 48, 15360
    step_s = 3 * flops * 4 / (0.5 * 1e6)
    assert found == {
        "weights": weights,
        "flops": flops,
        "disk_bytes": 1200,
        "step_s": pytest.approx(step_s),
        # Four windows are validated after each epoch: a batch, which takes a third of a step.
        "seconds": pytest.approx(3 * (2 + 1 / 3) * step_s),
        "memory_bytes": 1000 + 2 * 4 * 4 * VALUES + 16 * weights + END,
    }
    # Patches of an epoch are as many, however many windows a large case has: 7 windows are two batches.
    large = {**prepared, "validate": [SimpleNamespace(size=100, shape=(7 * 256, 256))]}
    assert estimate_costs(plan, _build(), "float32", large, SCANS)["seconds"] == pytest.approx(3 * (2 + 2 / 3) * step_s)
    half = estimate_costs(plan, _build(), "bfloat16", prepared, SCANS)
    assert half["memory_bytes"] == 1000 + 2 * 4 * 2 * VALUES + 16 * weights + END
    # The training cases lie in the memory too.
    resident = estimate_costs(plan, _build(), "float32", prepared, SCANS, 7000)
    assert resident["memory_bytes"] == found["memory_bytes"] + 7000
    # A run that goes on was estimated before, and is estimated again.
    again = estimate_costs(SimpleNamespace(**{**vars(plan), "costs": found}), _build(), "float32", prepared, SCANS)
    assert again == found
    # Reading the scans took more than the training will.
    monkeypatch.setattr(costs, "read_peak", lambda: 1 << 40)
    assert estimate_costs(plan, _build(), "float32", prepared, SCANS)["memory_bytes"] == 1 << 40
    # The memory of a GPU holds no libraries of the host.
    monkeypatch.setattr(costs.devices, "has_gpu", lambda: True)
    assert estimate_costs(plan, _build(), "float32", prepared, SCANS)["memory_bytes"] == found["memory_bytes"] - END


def _estimate_measured(table_bytes=0, **measured):
    """Estimates the costs of a plan for four samples a step, whose steps were measured."""
    known = {"seconds": 600.0, "step_s": 0.5, "first_s": 9.0, "validation_s": 0.2, "device_bytes": 0, "weights": 1} | measured
    prepared = {name: [SimpleNamespace(size=10)] for name in ("train", "validate", "test")}
    plan = make_plan(Settings("oasis", epochs=3, batch_size=4, shape=(256, 256)), DATASETS["oasis"], SCANS)
    found = estimate_costs(replace(plan, costs=known), _build(), "float32", prepared, SCANS, table_bytes)
    assert found == {**known, "weights": 124, "flops": 15360, "disk_bytes": 30, "memory_bytes": found["memory_bytes"]}
    return found["memory_bytes"]


def test_what_was_measured_stays(monkeypatch):
    monkeypatch.setattr(costs, "measure_rate", lambda precision: pytest.fail("it measures"))
    # This process has 50 bytes, and the training took 7 more than the 3 of the probe's libraries.
    assert _estimate_measured(base_bytes=3, held_bytes=3, peak_bytes=10) == 50 + 7 + END
    assert _estimate_measured(base_bytes=3, held_bytes=3, peak_bytes=10, device_bytes=5) == 5
    # A run that goes on keeps what was written, though this process is another.
    assert _estimate_measured(base_bytes=3, held_bytes=3, peak_bytes=10, memory_bytes=1234) == 1234
    monkeypatch.setattr(costs, "read_peak", lambda: 1 << 40)
    assert _estimate_measured(base_bytes=3, held_bytes=3, peak_bytes=10) == 1 << 40


def test_memory_of_plans_measured_before_is_told_apart():
    training = 100 + 2 * 4 * 4 * VALUES + 16 * 124
    # The probe held 1 MB of wider networks. This one took 5 bytes anew, and so between 5 bytes and 1 MB: as many as we estimate.
    assert _estimate_measured(base_bytes=3, held_bytes=3 + 10**6, peak_bytes=8 + 10**6) == 50 + training + END
    assert _estimate_measured(base_bytes=3, held_bytes=4, peak_bytes=8) == 50 + 5 + END
    assert _estimate_measured(base_bytes=3, held_bytes=4, peak_bytes=8 + 10**6) == 50 + 4 + 10**6 + END
    # Two more megabytes are the training cases, which the probe held as well.
    assert _estimate_measured(2 * 10**6, base_bytes=3, held_bytes=3 + 10**6, peak_bytes=8 + 3 * 10**6) == 50 + training + 2 * 10**6 + END


@pytest.mark.parametrize(
    ("window", "depth"),
    # Planes lie across the thinnest axis of the window, and a slab is as deep as it, or as the scan.
    [((16, 64, 64), 16), ((64, 64, 32), 32), ((1, 64, 64), 1), ((64, 64, 128), 64)],
)
def test_the_slab_of_probabilities_by_hand(window, depth):
    scans = make_fingerprint([(64, 64, 64), (64, 64, 60)])
    plan = SimpleNamespace(window=Window(window), preprocessing=Preprocessing(3))
    windows = {16: 4, 32: 2, 1: 16, 64: 1}[depth]
    expected = 10 + 2 * windows * VALUES + (12 * 2 + 8) * 64**3 + 4 * 3 * depth * 64**2 + 5
    assert estimate_end(plan, _build(), scans) == expected


def test_memory_that_will_not_do_is_told_with_the_remedy(monkeypatch):
    assert find_warning({"memory_bytes": 9 << 30}, 10 << 30) == ""
    assert find_warning({"memory_bytes": 99 << 30}, 0) == ""
    assert find_warning({"memory_bytes": 19 << 29}, 10 << 30) == (
        "the training needs about 9.5 GiB of memory, and there are 10.0. Choose a smaller --shape, --batch-size or --base-filters"
    )
    # A smaller network helps little where a scan takes most of it.
    warning = find_warning({"memory_bytes": 20 << 29}, 10 << 30, 11 << 29)
    assert warning.endswith("there are 10.0. The largest scan takes 5.5 GiB when it is predicted: leave it out, or resample it")
    assert find_warning({"memory_bytes": 20 << 29}, 10 << 30, 1 << 29).endswith("Choose a smaller --shape, --batch-size or --base-filters")
    # Nobody knows how much of a GPU's memory others will leave.
    assert find_limit({"device_bytes": 1}) == 0
    assert find_limit({}) == costs.find_memory()
    # The memory of the host says nothing about that of its GPU.
    monkeypatch.setattr(costs.devices, "has_gpu", lambda: True)
    monkeypatch.setattr(costs, "describe_hardware", lambda: Hardware("gpu", device_bytes=8 << 30))
    assert find_limit({}) == 8 << 30


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
