"""The programs that XLA, PyTorch and Triton compile: kept on disk, so that a network of a known shape is compiled only once.

Nothing here imports a backend. All of them read these variables when they are imported, or when they first compile.
"""

import contextlib
import logging
import os
import sys
from pathlib import Path

from modules.backend_choice import has_nvidia

# The folder within the data cache.
FOLDER = "compiled"
# When its files take more than this, those that nobody has used for longest go first. One network takes some ten megabytes.
MOST_BYTES = 4 << 30

log = logging.getLogger("mri")


def keep_compiled(cache: Path) -> None:
    """Lets the backends keep what they compile in the folder `compiled` of a cache, and take it from there.

    Must be called before a backend compiles, and under TensorFlow before it is imported. What the environment sets stays as it is.
    Processes can share the folder. JAX compiles anew what was cut short, or made by other versions or for another CPU. TensorFlow writes
    whole files only, and fails on one that was damaged afterwards. Where the folder cannot be written, nothing is kept.

    Args:
        cache: The cache; it need not exist.
    """
    folder = Path(cache).absolute() / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        log.debug("compiled programs are not kept: %s cannot be written", folder)
        return
    _limit_size(folder, MOST_BYTES)
    for name, value in list_variables(folder).items():
        os.environ.setdefault(name, value)
    # A program may forbid an import by None.
    if sys.modules.get("jax"):
        _tell_jax()


def list_variables(folder: Path) -> dict[str, str]:
    """Lists the variables by which the backends find the folder."""
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        # A second is the default. An epoch has a dozen small programs, each of some tenths.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    # On a CPU TensorFlow compiles nothing here.
    if has_nvidia():
        # Without the quotes a blank would end the path.
        variables["TF_XLA_FLAGS"] = f'--tf_xla_persistent_cache_directory="{folder / "tensorflow"}"'
    return variables


def _tell_jax() -> None:
    """Gives JAX what it has read from the environment already, where it was imported before."""
    import jax

    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]))


def _limit_size(folder: Path, most: int) -> None:
    """Deletes the files that were used longest ago, until the others take at most so many bytes. Other processes may delete too."""
    files = []
    # `os.walk` passes over a folder that another process deletes meanwhile, and `rglob` does not.
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                state = (path := Path(where, name)).stat()
                files.append((max(state.st_atime, state.st_mtime), state.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
