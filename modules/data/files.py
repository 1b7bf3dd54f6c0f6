"""Names of image files, hashes that tell files apart, and writing that never leaves half a file."""

import functools
import hashlib
import os
import stat
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

NIFTI_SUFFIXES = (".nii", ".nii.gz")
PICTURE_SUFFIXES = (".png", ".tif", ".tiff")
SUFFIXES = NIFTI_SUFFIXES + PICTURE_SUFFIXES
# Every name that we write under before a file or folder is whole begins like this, so that a sweep knows ours from a user's.
TEMPORARY = ".mri-part-"

# The mask can only be read by changing it, and that is not safe once there are threads.
_UMASK = os.umask(0)
os.umask(_UMASK)


def suffix_of(path: Path) -> str:
    """Returns the suffix of `path` in lower case; `.nii.gz` is one suffix. It is "" for a kind of file that is not read here."""
    name = path.name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def stem_of(path: Path) -> str:
    """Returns the file's name without its suffix: `case_1` for `case_1.nii.gz` and for `case_1.nii.png`."""
    name = path.name[: len(path.name) - len(suffix_of(path))]
    # OASIS slices are called `*.nii.png` although they are plain PNG files.
    return name.removesuffix(".nii")


def fingerprint_files(paths: Iterable[Path]) -> str:
    """Returns a hash that changes when a file is replaced.

    The hash covers each absolute path, inode, size, time of last change, and the time at which the system noticed a change. A program
    can set back the former time, but not the latter. The hash does not cover the content.
    """
    digest = hashlib.sha256()
    for path in paths:
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            folder, name = os.path.split(path)
            where = os.stat(folder or ".")
            place = os.path.join(_resolve_folder(os.path.join(os.getcwd(), folder), where.st_dev, where.st_ino), name)
        else:
            status, place = os.stat(path), os.path.realpath(path)
        state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(f"{place}\0{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


@functools.lru_cache(maxsize=1024)
def _resolve_folder(folder: str, device: int, inode: int) -> str:
    """Returns the folder's path without symbolic links. Device and inode make sure that a link turned elsewhere is followed anew."""
    return os.path.realpath(folder)


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replace_file(path: Path) -> Generator[Path, None, None]:
    """Yields a temporary name beside `path` and renames it to `path` on success, so that no reader ever sees half a file.

    Raises:
        OSError: If the file cannot be written to its end, naming `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_failure(path):
        # The suffix stays last: libraries choose the format by it. A part of the stem is enough, because names have a longest length.
        prefix = f"{TEMPORARY}{stem_of(path)[:40]}-"
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix_of(path) or path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_UMASK)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def name_failure(path: Path) -> Generator[None, None, None]:
    """Names `path` where writing it fails with an error that names no file, or only a temporary one. A full disk does that.

    Raises:
        OSError: In place of such an error.
    """
    try:
        yield
    except FileNotFoundError:
        # It comes from reading something else. Our own errors of this kind name their file in the text alone.
        raise
    except OSError as error:
        if error.filename is not None and TEMPORARY not in os.fsdecode(error.filename):
            raise
        reason = error.strerror or str(error)
        raise OSError(f"Expected to write {path} to its end. Received: {reason}. Free some space, or write elsewhere.") from error
