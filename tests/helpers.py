"""Things that several tests make by hand."""

import dataclasses
import functools
import mmap
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from modules.data.case import LabelRule
from modules.data.draws import AUGMENTATIONS, NEUTRAL, Augmentation, Effect, draw_parameters
from modules.data.fingerprint import CaseMeasures, Fingerprint
from modules.data.spec import DatasetSpec

# Tests of augmentation use slices and volumes of these shapes.
SHAPES = {2: (16, 24), 3: (10, 12, 8)}
EVERYTHING = dataclasses.replace(
    AUGMENTATIONS["strong"], **{name: dataclasses.replace(getattr(AUGMENTATIONS["strong"], name), probability=1.0) for name in NEUTRAL}
)


def make_spec(preprocessing, values, channels=("T1",), **fields):
    """A data set called "d" that nobody can find, of as many classes as `values` has."""
    names = ("background", *(f"class {index}" for index in range(1, max(values.values()) + 1)))
    names = fields.pop("class_names", names)
    return DatasetSpec(
        "d", "", "", "", "", channels, names, LabelRule(values), preprocessing, find=lambda root: [], write_phantom=Path, **fields
    )


def make_fingerprint(shapes, spacing_mm=None, voxels=(100, 30), **measures):
    """The fingerprint of cases of these shapes, without margins; `measures` are fields of each case."""
    cases = []
    for number, shape in enumerate(shapes):
        own = {
            "spacing_mm": spacing_mm or (1.0,) * len(shape),
            "orientation": "RAS",
            "box": tuple((0, size) for size in shape),
            "empty": 0.0,
            "quantiles": ((0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0),),
            "means": (3.0,),
            "deviations": (1.0,),
            "voxels": voxels,
        }
        cases.append(CaseMeasures(f"case_{number}", tuple(shape), **(own | measures)))
    return Fingerprint(tuple(cases))


def draw_batch(augmentation, shape, channels=1, number=2, seed=0, **options):
    """Draws the parameters of `number` samples, as arrays of `(number, ...)`."""
    draws = [draw_parameters(np.random.default_rng((seed, index)), augmentation, shape, channels, **options) for index in range(number)]
    return {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}


def make_certain(**effects):
    """Makes an augmentation that always has these effects, each of this strength."""
    return Augmentation(**{name: value if name == "flip" else Effect(1.0, value, value) for name, value in effects.items()})


def read_bytes(root):
    """Returns {path within root: bytes} of every file."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


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
