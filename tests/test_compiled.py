"""Compiled programs are kept: a second process takes them from the disk, and a folder that cannot be used stops nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modules import compiled
from modules.compiled import keep_compiled

VARIABLES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "TF_XLA_FLAGS",
)
COMPILE = """
import sys
from pathlib import Path
if "early" in sys.argv:
    import jax
from modules.compiled import keep_compiled
keep_compiled(Path("cache"))
import jax
counts = {"hits": 0, "misses": 0}
def count(event, **_):
    for name in counts:
        counts[name] += event == f"/jax/compilation_cache/cache_{name}"
jax.monitoring.register_event_listener(count)
print(int(jax.jit(lambda x: (x * 2).sum())(jax.numpy.arange(4))))
print(counts["hits"], counts["misses"])
"""


@pytest.fixture
def variables(monkeypatch):
    """The environment without the variables, and as it was afterwards."""
    for name in VARIABLES:
        # Unlike `delenv` alone, this also removes afterwards what the test sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return os.environ


def _compile(folder, *arguments):
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", COMPILE, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, counts = done.stdout.splitlines()
    assert total == "12"
    return tuple(map(int, counts.split()))


def test_a_second_process_compiles_nothing_anew(tmp_path, variables):
    pytest.importorskip("jax")
    hits, misses = _compile(tmp_path)
    assert (hits, misses > 0) == (0, True)
    kept = list((tmp_path / "cache" / "compiled" / "jax").glob("*-cache"))
    assert len(kept) == misses
    # JAX has read its variables before, and is told.
    assert _compile(tmp_path, "early") == (misses, 0)
    # One that was cut short is compiled anew.
    for path in kept:
        path.write_bytes(path.read_bytes()[:20])
    assert _compile(tmp_path)[0] == 0


def test_all_backends_are_told_where(tmp_path, variables, monkeypatch):
    monkeypatch.setattr(compiled, "has_nvidia", lambda: False)
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "jax")
    variables["TRITON_CACHE_DIR"] = "own"
    keep_compiled(tmp_path / "cache")
    folder = tmp_path / "cache" / "compiled"
    assert variables["JAX_COMPILATION_CACHE_DIR"] == str(folder / "jax")
    assert variables["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "torch")
    assert variables["TRITON_CACHE_DIR"] == "own"
    assert "TF_XLA_FLAGS" not in variables
    monkeypatch.setattr(compiled, "has_nvidia", lambda: True)
    keep_compiled(tmp_path / "cache")
    assert variables["TF_XLA_FLAGS"] == f'--tf_xla_persistent_cache_directory="{folder / "tensorflow"}"'


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, variables, monkeypatch):
    (tmp_path / "file").write_text("")
    keep_compiled(tmp_path / "file")
    monkeypatch.setattr(compiled.os, "access", lambda path, mode: False)
    keep_compiled(tmp_path / "cache")
    assert not set(VARIABLES) & set(variables)


def test_what_was_used_longest_ago_goes_first(tmp_path, variables, monkeypatch):
    monkeypatch.setattr(compiled, "MOST_BYTES", 250)
    folder = tmp_path / "compiled" / "torch" / "ab"
    folder.mkdir(parents=True)
    # Written long ago, but read a moment ago; then two written one after the other.
    for name, read, written in (("a", 300, 100), ("b", 150, 150), ("c", 200, 200)):
        (folder / name).write_bytes(bytes(100))
        os.utime(folder / name, (read, written))
    keep_compiled(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c"]


def test_a_folder_that_another_process_deletes_meanwhile_stops_nothing(tmp_path, variables, monkeypatch):
    gone = tmp_path / "compiled" / "triton" / "tmp.1"
    gone.mkdir(parents=True)
    scan = os.scandir

    def scandir(path):
        if str(path) == str(gone):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    keep_compiled(tmp_path)
    assert variables["TRITON_CACHE_DIR"] == str(tmp_path / "compiled" / "triton")
