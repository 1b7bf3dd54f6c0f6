"""Options of networks: they are read from `build` without Keras and offered as flags, and a new one touches one file."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from modules import networks
from modules.networks import NETWORKS, Option, list_options

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="is the same on every backend")

NEW = '''"""A network of two convolutions."""

import keras
from keras import layers

DIVISOR = 1
RANKS = (2,)


def build(input_shape: tuple[int, ...], num_logits: int, *, base_filters: int = 4, reach: int = 3, linear: bool = False) -> keras.Model:
    """Two convolutions.

    Args:
        input_shape: `(rows, columns, C)`.
        num_logits: Channels of the output.
        base_filters: Filters of the first.
        reach: Voxels that the first
            sees along each axis.
        linear: Whether nothing lies between the two.
    """
    inputs = keras.Input(input_shape, name="image")
    x = layers.Conv2D(base_filters, reach, padding="same", activation=None if linear else "relu")(inputs)
    return keras.Model(inputs, layers.Conv2D(num_logits, 1, dtype="float32", name="logits")(x), name="tiny")
'''


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_options_with_types_defaults_and_help(name):
    options = {option.name: option for option in list_options(name)}
    assert options["base_filters"].kind is int
    for option in options.values():
        assert type(option.default) is option.kind
        assert len(option.help) > 10


def test_networks_agree_on_the_type_of_an_option():
    kinds = {}
    for name in NETWORKS:
        for option in list_options(name):
            assert kinds.setdefault(option.name, option.kind) is option.kind, option.name


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a network file of our own and returns its options."""

    def write(source):
        (tmp_path / "tiny.py").write_text(source)
        monkeypatch.setattr(networks, "NETWORKS", ("tiny",))
        monkeypatch.setattr(networks, "__file__", str(tmp_path / "__init__.py"))
        networks._parse_source.cache_clear()
        list_options.cache_clear()
        return list_options("tiny")

    yield write
    networks._parse_source.cache_clear()
    list_options.cache_clear()


def test_options_are_the_keyword_only_arguments_of_build(own):
    assert own(NEW) == (
        Option("base_filters", int, 4, "Filters of the first."),
        Option("reach", int, 3, "Voxels that the first sees along each axis."),
        Option("linear", bool, False, "Whether nothing lies between the two."),
    )


def test_an_argument_of_the_plan_is_no_option(own):
    assert [option.name for option in own(NEW.replace("reach: int = 3", "reach: tuple = ()"))] == ["base_filters", "linear"]


@pytest.mark.parametrize(
    "change", [("reach: int = 3", "reach: list = 3"), ("reach: int = 3", "reach: int"), ("        reach: Voxels", "        far: Voxels")]
)
def test_an_option_without_type_default_or_help_says_so(own, change):
    with pytest.raises(
        ValueError, match="Expected a type in .*a default and a line under `Args:` for `reach` of `build` in modules/networks/tiny.py"
    ):
        own(NEW.replace(*change))


def test_a_file_without_build_says_so(own):
    with pytest.raises(ValueError, match="Expected a function `build` in modules/networks/tiny.py. Received: none"):
        own('"""Nothing."""')


def test_a_new_network_is_one_file_and_trains_by_its_flags(phantoms, tmp_path):
    for name in ("train.py", "predict.py", "dataset.py", "utils.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "modules", tmp_path / "modules", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "modules" / "networks" / "tiny.py").write_text(NEW)
    flags = ["--network", "tiny", "--base-filters", "3", "--reach", "5", "--linear", "--shape", "32", "32", "--epochs", "1", "--name", "a"]
    command = [sys.executable, "train.py", "--dataset", "oasis", "--data", str(phantoms / "oasis"), *flags]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # 5 x 5 x 1 x 3 + 3 weights, and 3 x 4 + 4 of the logits.
    assert "tiny: 94 weights" in result.stdout
    assert json.loads((tmp_path / "runs" / "a" / "run.json").read_text())["config"]["reach"] == 5
    assert "Voxels that the first sees along each axis." in " ".join(
        subprocess.run([sys.executable, "train.py", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    )


def test_a_demo_trains_a_network_without_the_options_that_the_demo_sets(monkeypatch):
    from dataset import DATASETS
    from modules.run import flags, settings

    plain = {
        name: {network: option for network, option in forms.items() if network != "unet2d"}
        for name, forms in settings.NETWORK_OPTIONS.items()
    }
    monkeypatch.setattr(flags, "NETWORK_OPTIONS", plain)
    assert flags.parse_training(["--dataset", "oasis", "--demo", "--network", "unet2d"], DATASETS).settings.network_options == {}
    given = flags.parse_training(["--dataset", "oasis", "--demo"], DATASETS).settings.network_options
    assert given == {"base_filters": 16}


def test_an_option_named_like_a_setting_is_refused(monkeypatch):
    from dataset import DATASETS
    from modules.run import flags, settings

    epochs = {"epochs": {"tiny": Option("epochs", int, 3, "Rounds.")}}
    monkeypatch.setattr(flags, "NETWORK_OPTIONS", settings.NETWORK_OPTIONS | epochs)
    with pytest.raises(ValueError, match="Expected another name for the option 'epochs' in modules/networks/tiny.py: it is a setting"):
        flags.parse_training(["--version"], DATASETS)
