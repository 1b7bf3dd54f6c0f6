"""Networks: one file each, found by its name.

`modules/networks/<name>.py` defines `build(input_shape, num_logits, *, ...options) -> keras.Model`. It returns a functional model
from `(B, *P, C)` to logits `(B, *P, num_logits)`. The literal `RANKS` lists the numbers of spatial sizes it takes. The first line of its
docstring is the help text.

The keyword-only arguments of `build` are the network's options: their types, defaults and lines in the docstring make the flags of
train.py. Every spatial size must be a multiple of `2**levels`, where the network has the option `levels`. Other networks have the
literal `DIVISOR`. One that has weights for each place of its window says so by `BOUND_TO_SHAPE = True`. Files whose name begins with
an underscore hold code that several networks share.

Arguments annotated `tuple` have no flag, because the plan chooses them. There are two: `strides` holds a stride for each axis and
level, `kernels` a kernel size for each axis and stage. Along each axis the size is a multiple of the product of its strides.
"""

import ast
import functools
import importlib
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

_KINDS = {"int": int, "float": float, "bool": bool, "str": str}
# A window has 2**levels voxels or more along each axis.
MOST_LEVELS = 7
# nnU-Net doubles the filters from stage to stage up to this number, by rank.
MOST_FILTERS = {2: 512, 3: 320}
# The arguments of `build` that have no flag, and what they may hold for an axis.
_STAGES = {"strides": (1, 2), "kernels": (1, 3)}
NETWORKS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")))


def describe() -> dict[str, str]:
    """Returns each network's name and the first line of its docstring, without importing Keras."""
    return {name: (ast.get_docstring(_parse_source(name)) or "").partition("\n")[0] for name in NETWORKS}


def find_levels(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> int | None:
    """Returns the number of times that a network halves the resolution; None for a network without the option `levels`.

    Raises ValueError for an unknown name.
    """
    default = next((option.default for option in list_options(name) if option.name == "levels"), None)
    return default if default is None or options.get("levels") is None else options["levels"]


def find_divisor(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> int:
    """Returns the number that every spatial size must be a multiple of, without importing Keras.

    Raises ValueError for an unknown name.
    """
    levels = find_levels(name, options)
    return find_constant(name, "DIVISOR") if levels is None else 2**levels


def find_divisors(name: str, rank: int, options: Mapping[str, Any] = MappingProxyType({})) -> tuple[int, ...]:
    """Returns the number that the size along each axis must be a multiple of, without importing Keras.

    Args:
        name: The network's name.
        rank: Number of spatial sizes.
        options: The network's options. With `strides` the number of an axis is the product of its strides.

    Raises:
        ValueError: For an unknown name.
    """
    if options.get("strides"):
        return tuple(math.prod(steps) for steps in zip(*options["strides"], strict=True))
    return (find_divisor(name, options),) * rank


def count_features(base_filters: int, levels: int, rank: int) -> tuple[int, ...]:
    """Returns the filters of each of the `levels + 1` stages of nnU-Net's networks: doubled, up to `MOST_FILTERS`."""
    return tuple(min(base_filters * 2**stage, MOST_FILTERS[rank]) for stage in range(levels + 1))


def find_ranks(name: str) -> tuple[int, ...]:
    """Returns the numbers of spatial sizes that the network takes, without importing Keras.

    Raises ValueError for an unknown name.
    """
    return find_constant(name, "RANKS")


def is_bound_to_shape(name: str) -> bool:
    """Returns whether the network has weights for each place of its window, and so fits no other; without importing Keras.

    Raises ValueError for an unknown name.
    """
    return find_constant(name, "BOUND_TO_SHAPE", default=False)


def has_lower_levels(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Returns whether the network names decoder levels below full resolution, for deep supervision; without importing Keras.

    Raises ValueError for an unknown name.
    """
    # These two functions of `_blocks` give the names.
    names = {node.id for node in ast.walk(_parse_source(name)) if isinstance(node, ast.Name)}
    return bool(names & {"name_level", "decode"}) and find_levels(name, options) != 1


@dataclass(frozen=True)
class Option:
    """One option of a network, as the signature and the docstring of its `build` give it.

    Attributes:
        name: The argument's name.
        kind: `int`, `float`, `bool` or `str`.
        default: The argument's default.
        help: The argument's line in the docstring.
    """

    name: str
    kind: type
    default: Any
    help: str


@functools.cache
def list_options(name: str) -> tuple[Option, ...]:
    """Lists a network's options, the keyword-only arguments of its `build`, without importing Keras.

    Arguments annotated `tuple` are no options.

    Raises:
        ValueError: For an unknown network, and for an option whose kind, default or help is missing.
    """
    build_node = _find_build(name)
    lines = _read_arguments(ast.get_docstring(build_node) or "")
    options = []
    for argument, default in zip(build_node.args.kwonlyargs, build_node.args.kw_defaults, strict=True):
        annotation = argument.annotation.id if isinstance(argument.annotation, ast.Name) else ""
        if annotation == "tuple":
            continue
        kind = _KINDS.get(annotation)
        if kind is None or default is None or argument.arg not in lines:
            raise ValueError(
                f"Expected a type in {tuple(_KINDS)}, a default and a line under `Args:` for `{argument.arg}` of `build` in "
                f"modules/networks/{name}.py. Received: one of them is missing. Add it there."
            )
        options.append(Option(argument.arg, kind, ast.literal_eval(default), lines[argument.arg]))
    return tuple(options)


def fill_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options of a network, the default in the place of one that is None or not given. Options of others are left out."""
    return {item.name: item.default if options.get(item.name) is None else options[item.name] for item in list_options(name)}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Checks options of a network before Keras is imported; None stands for the default.

    Raises:
        ValueError: For an option that the network does not have, listing those it has, and for a number out of its range.
    """
    known = {option.name: option.kind for option in list_options(name)}
    stages = _list_stages(name)
    for key, value in options.items():
        if value is None or key in stages:
            continue
        if key not in known:
            raise ValueError(f"Expected options of network '{name}' in {tuple(known)}. Received: {key!r}.")
        if (known[key] is int and value < 1) or (known[key] is float and value < 0):
            least = "1" if known[key] is int else "0"
            raise ValueError(f"Expected `{key}` of {least} or more. Received: {value}. Leave it out for the default.")
        if key == "levels" and value > MOST_LEVELS:
            raise ValueError(f"Expected `levels` of {MOST_LEVELS} or less. Received: {value}. Leave it out for as many as fit.")


def build(name: str, input_shape: tuple[int, ...], num_classes: int, *, num_regions: int = 0, **options: Any):
    """Builds a network that returns logits.

    Args:
        name: One of `NETWORKS`.
        input_shape: `(*P, C)`.
        num_classes: `K` with background. Two classes get one logit, that of the foreground; more get one each.
        num_regions: Number of the classes that may overlap, which get a logit each, without the background; 0 where none may.
        **options: The network's own options, and `strides` and `kernels` where it has them; None means its default.

    Returns:
        A functional `keras.Model` from `(B, *P, C)` to `(B, *P, K)`, or `(B, *P, 1)` for two classes, or `(B, *P, num_regions)`.

    Raises:
        ValueError: For an unknown network or option; the error lists the valid ones. For a rank that the network does not take; the
            error names the networks that do. For a shape that does not divide; the error names the nearest that does. For `strides` and
            `kernels` that do not fit the rank and the levels.
    """
    options = {key: value for key, value in options.items() if value is not None}
    check_options(name, options)
    ranks = find_ranks(name)
    module = importlib.import_module(f"{__name__}.{name}")
    spatial = tuple(input_shape[:-1])
    if len(spatial) not in ranks:
        fitting = tuple(other for other in NETWORKS if len(spatial) in find_ranks(other))
        raise ValueError(
            f"Expected a shape of {' or '.join(map(str, ranks))} sizes for network '{name}'. Received: {spatial}. "
            f"The networks that take {len(spatial)} are {fitting}."
        )
    _check_stages(name, options, len(spatial))
    divisors = find_divisors(name, len(spatial), options)
    nearest = tuple(max(divisor, round(size / divisor) * divisor) for size, divisor in zip(spatial, divisors, strict=True))
    if spatial != nearest:
        multiples = str(divisors[0]) if len(set(divisors)) == 1 else str(divisors)
        raise ValueError(
            f"Expected a shape whose sizes are multiples of {multiples} for network '{name}'. Received: {spatial}. "
            f"The nearest valid one is {nearest}."
        )
    return module.build(tuple(input_shape), num_regions or (1 if num_classes == 2 else num_classes), **options)


def with_head(network, *, regions: bool = False):
    """Appends the float32 sigmoid (one logit, or one of each region) or softmax.

    The result is the whole model that is saved, exported and predicted with.
    """
    import keras

    logits = network.output
    activation = "sigmoid" if regions or logits.shape[-1] == 1 else "softmax"
    probabilities = keras.layers.Activation(activation, dtype="float32", name="probabilities")(logits)
    return keras.Model(network.input, probabilities, name=network.name)


def with_deep_supervision(network):
    """Adds heads to the decoder levels below full resolution, for training only.

    Args:
        network: A network whose decoder levels are named as `_blocks.name_level` says.

    Returns:
        A model from the network's input to a list of logits. The network's own come first, then `(B, *P / 2, K)`, `(B, *P / 4, K)`
        and so on. It shares the network's weights; those of its heads are its own.

    Raises:
        ValueError: If the network has no such levels.
    """
    import keras

    from modules.networks._blocks import CONVOLUTION

    names = {layer.name for layer in network.layers}
    levels = sorted(name for name in names if name.startswith("decoder_"))
    if not levels:
        raise ValueError(f"Expected a U-Net for `deep_supervision`. Received: {network.name}. Choose another `--network`, or leave it out.")
    logits = network.output
    head = CONVOLUTION[len(logits.shape) - 2]
    lower = [head(logits.shape[-1], 1, dtype="float32", name=f"logits_{name}")(network.get_layer(name).output) for name in levels]
    return keras.Model(network.input, [logits, *lower], name=network.name)


def _check_stages(name: str, options: Mapping[str, Any], rank: int) -> None:
    """Raises ValueError for `strides` and `kernels` that do not fit the rank and the levels."""
    for key in _list_stages(name):
        allowed, stages = _STAGES[key], options.get(key) or ()
        number = (find_levels(name, options) or 0) + (key == "kernels")
        fits = all(len(stage) == rank and set(stage) <= set(allowed) for stage in stages)
        if stages and not (len(stages) == number and fits):
            raise ValueError(f"Expected `{key}` of {number} tuples of {rank} numbers in {allowed}. Received: {stages}.")


def _list_stages(name: str) -> tuple[str, ...]:
    """Returns those arguments of a network's `build` that have no flag."""
    return tuple(argument.arg for argument in _find_build(name).args.kwonlyargs if argument.arg in _STAGES)


def _find_build(name: str) -> ast.FunctionDef:
    for node in _parse_source(name).body:
        if isinstance(node, ast.FunctionDef) and node.name == "build":
            return node
    raise ValueError(f"Expected a function `build` in modules/networks/{name}.py. Received: none. Add it there.")


def _read_arguments(docstring: str) -> dict[str, str]:
    """Reads the section `Args:` of a docstring: `{argument: its text on one line}`."""
    lines: dict[str, str] = {}
    section = docstring.partition("\nArgs:\n")[2].partition("\n\n")[0]
    name = ""
    for line in textwrap.dedent(section).splitlines():
        if not line.startswith(" "):
            name, _, line = line.partition(":")
        lines[name] = f"{lines.get(name, '')} {line.strip()}".strip()
    return lines


@functools.cache
def _parse_source(name: str) -> ast.Module:
    if name not in NETWORKS:
        raise ValueError(f"Expected `network` in {NETWORKS}. Received: {name!r}.")
    return ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))


def find_constant(name: str, constant: str, default: Any = None) -> Any:
    """Returns a literal constant of a network's file, without importing Keras; raises ValueError where it has neither it nor a default."""
    for node in _parse_source(name).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == [constant]:
            return ast.literal_eval(node.value)
    if default is not None:
        return default
    raise ValueError(f"Expected a literal `{constant}` in modules/networks/{name}.py. Received: none. Add it there.")
