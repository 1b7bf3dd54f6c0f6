"""Things that several tests make by hand."""

import functools
import mmap
from importlib.util import find_spec
from pathlib import Path

from modules.data.case import LabelRule
from modules.data.spec import DatasetSpec


def make_spec(preprocessing, values, channels=("T1",), **fields):
    """A data set called "d" that nobody can find, of as many classes as `values` has."""
    names = ("background", *(f"class {index}" for index in range(1, max(values.values()) + 1)))
    return DatasetSpec(
        "d", "", "", "", "", channels, names, LabelRule(values), preprocessing, find=lambda root: [], write_phantom=Path, **fields
    )


@functools.cache
def make_jax_environment():
    """Makes environment variables with which JAX compiles tiny networks quickly instead of spending minutes to make them fast."""
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    flag = "xla_cpu_use_fusion_emitters"
    # The older code generator of XLA compiles a training step in a third of the time. XLA aborts at a flag that it does not know.
    if _jax_knows(flag):
        environment["XLA_FLAGS"] = f"--{flag}=false"
    return environment


def _jax_knows(flag):
    spec = find_spec("jaxlib")
    for path in Path(spec.origin).parent.glob("libjax_common*") if spec else ():
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            if library.find(flag.encode()) >= 0:
                return True
    return False
