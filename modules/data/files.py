"""Names of image files, hashes that tell files apart, locks, and writing that never leaves half a file."""

import contextlib
import functools
import hashlib
import os
import stat
import tempfile
import time
import unicodedata
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no fcntl, so nothing keeps two processes apart there.
    fcntl = None

NIFTI_SUFFIXES = (".nii", ".nii.gz")
FREESURFER_SUFFIXES = (".mgz", ".mgh")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
# Of these a text header may name another file that holds the voxels.
DETACHED_SUFFIXES = (".mhd", ".nhdr")
VOLUME_SUFFIXES = NIFTI_SUFFIXES + FREESURFER_SUFFIXES + ITK_SUFFIXES
PICTURE_SUFFIXES = (".png", ".tif", ".tiff")
# The suffix of label maps by the value of `--format`. A format that is read in two files is written as one.
LABEL_FORMATS = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", "mgz": ".mgz"}
_WRITTEN_AS = {".mhd": ".mha", ".nhdr": ".nrrd"}
# A DICOM series is a folder of files that need no suffix at all.
SUFFIXES = VOLUME_SUFFIXES + PICTURE_SUFFIXES
# A voxel of microscopy may be 0.1 micrometres long. One of more than 5 m is a mistake of the unit or of a byte.
LEAST_MM, MOST_MM = 1e-4, 5e3
# Every name that we write under before a file or folder is whole begins like this, so that a sweep knows ours from a user's.
TEMPORARY = ".mri-part-"
# A file that is being written changes from second to second.
_OLD_SECONDS = 3600

# The mask can only be read by changing it, and that is not safe once there are threads.
_UMASK = os.umask(0)
os.umask(_UMASK)


def suffix_of(path: Path) -> str:
    """Returns the suffix of `path` in lower case; `.nii.gz` is one suffix. It is "" for a kind of file that is not read here."""
    name = path.name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def name_result_suffix(path: Path, wanted: str = "") -> str:
    """Returns the suffix of the label map of a scan: that of the wanted one of `LABEL_FORMATS`, else its own; NIfTI's for DICOM."""
    suffix = suffix_of(path)
    return LABEL_FORMATS[wanted] if wanted else _WRITTEN_AS.get(suffix, suffix) or LABEL_FORMATS["nifti"]


def stem_of(path: Path) -> str:
    """Returns the file's name without its suffix: `case_1` for `case_1.nii.gz` and for `case_1.nii.png`. Letters are composed (NFC)."""
    name = path.name[: len(path.name) - len(suffix_of(path))]
    # macOS writes an accent as a letter of its own, so that names that look alike would differ.
    name = name if name.isascii() else unicodedata.normalize("NFC", name)
    # OASIS slices are called `*.nii.png` although they are plain PNG files.
    return name[:-4] if name.lower().endswith(".nii") else name


def index_images(folder: Path, suffixes: Collection[str] = SUFFIXES) -> dict[str, Path]:
    """Maps the stem of each image file in a folder to the file, so that pairs are found whatever their endings.

    Hidden files and folders are passed over. A folder that is not there has none.

    Raises:
        ValueError: If two files have one stem, such as `a.nii` and `a.nii.gz`.
    """
    found: dict[str, Path] = {}
    for path in _list_files(folder) if folder.is_dir() else ():
        if suffix_of(path) not in suffixes:
            continue
        other = found.setdefault(stem_of(path), path)
        if other != path:
            raise ValueError(
                f"Expected one file of the name {stem_of(path)} in {folder}. Received: {other.name} and {path.name}. Remove one."
            )
    return found


def walk_files(root: Path, on_error: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    """Yields all files below a folder, sorted, without hidden files and folders. A link to nothing counts as a file.

    Linked folders are entered too. A link back to a folder that holds it is not, so that the walk always ends.

    Args:
        root: The folder.
        on_error: Called with the error of a folder that cannot be read. Without it the error is raised.
    """
    real = root.resolve()
    yield from _walk(root, {_identify(folder) for folder in (real, *real.parents)}, on_error)


def _walk(folder: Path, above: set[tuple[int, int]], on_error: Callable[[OSError], object] | None) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if on_error is None:
            raise
        on_error(error)
        return
    for entry in listed:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if not _is_folder(entry):
            yield path
        elif (place := _identify(path)) not in above:
            yield from _walk(path, above | {place}, on_error)


def _list_files(folder: Path) -> list[Path]:
    """Lists the files in a folder, sorted, without hidden ones. A link to nothing counts as a file."""
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if not (entry.name.startswith(".") or _is_folder(entry)))


def _is_folder(entry: os.DirEntry) -> bool:
    """Returns whether an entry is a folder or a link to one. A link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identify(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


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


def sweep(folder: Path) -> int:
    """Removes files in a folder, not below it, that a killed command left half written; returns how many.

    A younger file than `_OLD_SECONDS` stays: another command may be writing it.
    """
    removed = 0
    for path in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):  # another command removed it, or it is not ours to remove
            if path.is_file() and time.time() - path.stat().st_mtime > _OLD_SECONDS:
                path.unlink()
                removed += 1
    return removed


@contextmanager
def hold(path: Path, *, wait: bool = True) -> Generator[bool, None, None]:
    """Locks a file or folder for the duration of the block; yields whether that went well. The lock ends with the process."""
    with contextlib.ExitStack() as stack:
        held = fcntl is not None
        try:
            if fcntl is not None:
                lock = os.open(path, os.O_RDONLY)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            # Another process has it, the file system knows no locks, or nobody may read the folder.
            held = False
        yield held


def append_line(path: Path, line: str) -> None:
    """Appends a line of text to a file that other processes may append to as well, so that each line stays whole.

    A line that a killed process left half written is ended first; it would spoil this one.

    Raises:
        OSError: If the line cannot be written to its end, naming `path`.
    """
    with name_failure(path):
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # some network file systems know no locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            data = f"{line}\n".encode("utf-8", "backslashreplace")
            with contextlib.suppress(OSError):  # an empty file or a pipe has no last byte
                os.lseek(file, -1, os.SEEK_END)
                data = data if os.read(file, 1) == b"\n" else b"\n" + data
            while data:
                data = data[os.write(file, data) :]
        finally:
            os.close(file)


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
