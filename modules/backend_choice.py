"""The choice of Keras's backend, and what a backend must be told before it is imported."""

import importlib.util
import mmap
import os
import sys
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")
# Whether the user's environment names a backend.
_GIVEN = os.environ.get("KERAS_BACKEND", "") not in ("", "auto")


def choose_backend(name: str | None) -> None:
    """Chooses the backend of Keras, before Keras is imported.

    Args:
        name: One of `BACKENDS`; "auto" for JAX where it finds an NVIDIA GPU, on which it trains fastest (docs/measurements.md), and
            TensorFlow elsewhere. None keeps the environment's KERAS_BACKEND, or is "auto" where there is none.

    Raises:
        ValueError: If Keras is in use with another backend.
    """
    chosen = name or os.environ.get("KERAS_BACKEND") or "auto"
    if chosen == "auto":
        chosen = "jax" if has_jax_for_gpu() else "tensorflow"
    if _name_used_backend() not in (None, chosen):
        raise ValueError(f"Expected --backend before Keras is in use. Received: {chosen}. Set KERAS_BACKEND={chosen} instead.")
    os.environ["KERAS_BACKEND"] = chosen


def _name_used_backend() -> str | None:
    """Returns the backend of Keras, if that is imported. A program that blocks a package has None in its place."""
    keras = sys.modules.get("keras")
    return keras.backend.backend() if keras is not None else None


def require_backend() -> None:
    """Checks that the chosen backend is one of ours and installed; imports nothing.

    Raises:
        ValueError: If it is not.
    """
    name = os.environ["KERAS_BACKEND"]
    if name not in BACKENDS:
        raise ValueError(f"Expected KERAS_BACKEND in {BACKENDS}. Received: {name!r}. Set it, or leave it out.")
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"Expected the package of KERAS_BACKEND={name}. Received: none. Install {name}, or leave it out.")


def choose_for_export() -> None:
    """Chooses TensorFlow, which alone writes models for other programs, unless the environment names another backend."""
    if not _GIVEN:
        choose_backend("tensorflow")


def name_for_workers(name: str | None) -> list[str]:
    """Names the flag by which a worker on another machine has the user's backend, or chooses one for itself where nobody named any."""
    return ["--backend", name or (os.environ["KERAS_BACKEND"] if _GIVEN else "auto")]


def has_nvidia() -> bool:
    """Returns whether there is an NVIDIA GPU that this process may see."""
    return any(Path("/dev").glob("nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def has_jax_for_gpu() -> bool:
    """Returns whether there is an NVIDIA GPU, and the part of JAX that drives it; imports nothing."""
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin")
    return has_nvidia() and any(importlib.util.find_spec(name) is not None for name in plugins)


def add_xla_flag(name: str) -> None:
    """Sets a flag of XLA, which JAX reads when it first looks for devices.

    A flag that the user has set stays. One that this version of XLA does not know would end the process, and is left out.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if name in flags:
        return
    found = importlib.util.find_spec("jaxlib")
    library = Path(found.origin if found and found.origin else "").parent / "libjax_common.so"
    if library.is_file():
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(name.encode()) < 0:
                return
    os.environ["XLA_FLAGS"] = f"{flags} --{name}=true".strip()


# Keras would also take its backend from `keras.json`, which the user may have forgotten.
choose_backend(_name_used_backend())
