"""Networks: one file each, found by its name.

`modules/networks/<name>.py` defines `build(input_shape, num_logits, *, ...options) -> keras.Model`. It returns a functional model
from `(B, *P, C)` to logits `(B, *P, num_logits)`. The literal `RANKS` lists the numbers of spatial sizes it takes. The first line of its
docstring is the help text.

The keyword-only arguments of `build` are the network's options: their types, defaults and lines in the docstring make the flags of
train.py. Every spatial size must be a multiple of `2**levels`, where the network has the option `levels`. Other networks have the
literal `DIVISOR`. Files whose name begins with an underscore hold code that several networks share.
"""

import ast
import functools
import importlib
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

_KINDS = {"int": int, "float": float, "bool": bool, "str": str}
# A window has 2**levels voxels or more along each axis.
MOST_LEVELS = 7
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
    return _find_constant(name, "DIVISOR") if levels is None else 2**levels


def find_ranks(name: str) -> tuple[int, ...]:
    """Returns the numbers of spatial sizes that the network takes, without importing Keras.

    Raises ValueError for an unknown name.
    """
    return _find_constant(name, "RANKS")


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

    Raises:
        ValueError: For an unknown network, and for an option whose kind, default or help is missing.
    """
    build_node = next((node for node in _parse_source(name).body if isinstance(node, ast.FunctionDef) and node.name == "build"), None)
    if build_node is None:
        raise ValueError(f"Expected a function `build` in modules/networks/{name}.py. Received: none. Add it there.")
    lines = _read_arguments(ast.get_docstring(build_node) or "")
    options = []
    for argument, default in zip(build_node.args.kwonlyargs, build_node.args.kw_defaults, strict=True):
        kind = _KINDS.get(argument.annotation.id if isinstance(argument.annotation, ast.Name) else "")
        if kind is None or default is None or argument.arg not in lines:
            raise ValueError(
                f"Expected a type in {tuple(_KINDS)}, a default and a line under `Args:` for `{argument.arg}` of `build` in "
                f"modules/networks/{name}.py. Received: one of them is missing. Add it there."
            )
        options.append(Option(argument.arg, kind, ast.literal_eval(default), lines[argument.arg]))
    return tuple(options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Checks options of a network before Keras is imported; None stands for the default.

    Raises:
        ValueError: For an option that the network does not have, listing those it has, and for a number out of its range.
    """
    known = {option.name: option.kind for option in list_options(name)}
    for key, value in options.items():
        if value is None:
            continue
        if key not in known:
            raise ValueError(f"Expected options of network '{name}' in {tuple(known)}. Received: {key!r}.")
        if (known[key] is int and value < 1) or (known[key] is float and value < 0):
            least = "1" if known[key] is int else "0"
            raise ValueError(f"Expected `{key}` of {least} or more. Received: {value}.")
        if key == "levels" and value > MOST_LEVELS:
            raise ValueError(f"Expected `levels` of {MOST_LEVELS} or less. Received: {value}.")


def build(name: str, input_shape: tuple[int, ...], num_classes: int, *, num_regions: int = 0, **options: Any):
    """Builds a network that returns logits.

    Args:
        name: One of `NETWORKS`.
        input_shape: `(*P, C)`.
        num_classes: `K` with background. Two classes get one logit, that of the foreground; more get one each.
        num_regions: Number of the classes that may overlap, which get a logit each, without the background; 0 where none may.
        **options: The network's own options; None means its default.

    Returns:
        A functional `keras.Model` from `(B, *P, C)` to `(B, *P, K)`, or `(B, *P, 1)` for two classes, or `(B, *P, num_regions)`.

    Raises:
        ValueError: For an unknown network or option; the error lists the valid ones. For a rank that the network does not take; the
            error names the networks that do. For a shape that does not divide; the error names the nearest that does.
    """
    options = {key: value for key, value in options.items() if value is not None}
    check_options(name, options)
    divisor, ranks = find_divisor(name, options), find_ranks(name)
    module = importlib.import_module(f"{__name__}.{name}")
    spatial = tuple(input_shape[:-1])
    if len(spatial) not in ranks:
        fitting = tuple(other for other in NETWORKS if len(spatial) in find_ranks(other))
        raise ValueError(
            f"Expected a shape of {' or '.join(map(str, ranks))} sizes for network '{name}'. Received: {spatial}. "
            f"The networks that take {len(spatial)} are {fitting}."
        )
    nearest = tuple(max(divisor, round(size / divisor) * divisor) for size in spatial)
    if spatial != nearest:
        raise ValueError(
            f"Expected a shape whose sizes are multiples of {divisor} for network '{name}'. Received: {spatial}. "
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


def _find_constant(name: str, constant: str) -> Any:
    for node in _parse_source(name).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == [constant]:
            return ast.literal_eval(node.value)
    raise ValueError(f"Expected a literal `{constant}` in modules/networks/{name}.py. Received: none. Add it there.")
