"""The choice of Keras's backend, before Keras is imported."""

import os
import runpy
import sys

import keras
import pytest

from modules import backend_choice
from modules.backend_choice import add_xla_flag, choose_backend, choose_for_export

OWN = keras.backend.backend()


@pytest.fixture
def fresh(monkeypatch):
    """A process that has not imported Keras, on a machine with a GPU and JAX for it."""
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setattr(backend_choice, "has_nvidia", lambda: True)
    monkeypatch.setattr(backend_choice.importlib.util, "find_spec", lambda name: object() if name == "jax_cuda13_plugin" else None)
    return monkeypatch


def test_jax_is_chosen_on_a_gpu_that_it_can_use(fresh):
    choose_backend(None)
    assert os.environ["KERAS_BACKEND"] == "jax"


def test_tensorflow_is_chosen_elsewhere(fresh):
    fresh.setattr(backend_choice, "has_nvidia", lambda: False)
    choose_backend("auto")
    assert os.environ["KERAS_BACKEND"] == "tensorflow"
    fresh.setattr(backend_choice, "has_nvidia", lambda: True)
    fresh.setattr(backend_choice.importlib.util, "find_spec", lambda name: None)
    choose_backend("auto")
    assert os.environ["KERAS_BACKEND"] == "tensorflow"


def test_a_flag_wins_over_the_environment_and_that_over_the_rule(fresh):
    fresh.setenv("KERAS_BACKEND", "torch")
    choose_backend(None)
    assert os.environ["KERAS_BACKEND"] == "torch"
    choose_backend("tensorflow")
    assert os.environ["KERAS_BACKEND"] == "tensorflow"


@pytest.mark.parametrize(("given", "chosen"), [(False, "tensorflow"), (True, "jax")])
def test_an_export_is_tensorflows_unless_the_user_says_otherwise(fresh, given, chosen):
    fresh.setattr(backend_choice, "_GIVEN", given)
    fresh.setenv("KERAS_BACKEND", "jax")
    choose_for_export()
    assert os.environ["KERAS_BACKEND"] == chosen


def test_a_backend_cannot_change_once_it_is_used():
    other = next(name for name in backend_choice.BACKENDS if name != OWN)
    with pytest.raises(ValueError, match=f"Expected --backend before Keras is in use. Received: {other}. Set KERAS_BACKEND={other}"):
        choose_backend(other)


@pytest.mark.parametrize(("variable", "given"), [("", False), ("auto", False), ("torch", True)])
def test_auto_in_the_environment_is_left_to_each_worker(monkeypatch, variable, given):
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_BACKEND", variable)
    assert runpy.run_path(backend_choice.__file__)["_GIVEN"] == given


def test_a_hidden_gpu_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(backend_choice.Path, "glob", lambda self, pattern: iter([tmp_path]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert backend_choice.has_nvidia()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not backend_choice.has_nvidia()


def test_flags_of_xla_are_added_once_and_only_where_they_are_known(monkeypatch, tmp_path):
    class Found:
        origin = str(tmp_path / "__init__.py")

    (tmp_path / "libjax_common.so").write_bytes(b"...xla_known_flag...")
    monkeypatch.setattr(backend_choice.importlib.util, "find_spec", lambda name: Found)
    monkeypatch.setenv("XLA_FLAGS", "--xla_own=1")
    for name in ("xla_known_flag", "xla_known_flag", "xla_unknown_flag"):
        add_xla_flag(name)
    assert os.environ["XLA_FLAGS"] == "--xla_own=1 --xla_known_flag=true"
