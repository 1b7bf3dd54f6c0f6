"""Takes scans from a request: reads it within limits, and files its parts in a folder under names of our own.

The client's names decide about nothing but the format. They never become paths, and nobody logs them.
"""

import asyncio
import errno
import shutil
import zipfile
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from modules.data.documents import to_line
from modules.data.files import DETACHED_SUFFIXES, SUFFIXES, suffix_of
from modules.data.series import DICOM_SUFFIXES, find_dicom
from modules.serve.limits import Limits, Refusal

# Files in a zip. A series of thin slices at many times has some thousands.
MOST_ENTRIES = 20_000
# Each entry of a zip's directory begins so.
_ENTRY_MARK = b"PK\x01\x02"
_PIECE = 1 << 20
_KINDS = ", ".join(suffix for suffix in SUFFIXES if suffix not in DETACHED_SUFFIXES)


async def read_form(request: Request, limits: Limits, channels: int) -> FormData:
    """Reads the form of a request. Its files lie on disk without names, and vanish when the form is closed.

    Raises:
        Refusal: If it is larger than the limit, takes longer than the limit, or is no form.
        ClientDisconnect: If the client goes away.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.upload_bytes:
        raise _refuse_size(limits)
    bounded = Request(request.scope, _bound_body(request.receive, limits))
    try:
        async with asyncio.timeout(limits.seconds):
            return await bounded.form(max_files=channels, max_fields=1)
    except TimeoutError:
        line = f"Expected a request that arrives in {limits.seconds:g} s. Received: a part of it. Send it again."
        raise Refusal(408, line) from None
    except HTTPException as error:
        line = f"Expected a form (multipart/form-data) with a scan as `file`. Received: {to_line(error.detail, 200)} Send it again."
        raise Refusal(400, line) from error


def _bound_body(receive: Callable[[], Awaitable[MutableMapping[str, Any]]], limits: Limits) -> Callable[[], Any]:
    """Wraps the function that gives the parts of a body, so that it refuses more bytes than the limit."""
    left = limits.upload_bytes

    async def receive_bounded() -> MutableMapping[str, Any]:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _refuse_size(limits)
        return message

    return receive_bounded


def _refuse_size(limits: Limits) -> Refusal:
    return Refusal(413, f"Expected an upload of {limits.megabytes} MiB or less. Received: more. Crop the scan, or pack it.")


def store_scan(form: FormData, folder: Path, channels: Sequence[str], most: int) -> list[Path]:
    """Files a scan in a folder.

    Args:
        form: The form: a part `file`, or several in the order of the channels, or one named after each channel.
        folder: An empty folder.
        channels: Names of the model's channels.
        most: The most bytes that all zips may unpack to.

    Returns:
        A file or the folder of a DICOM series, or one for each channel.

    Raises:
        Refusal: If the parts do not fit the model, are of another format, or unpack to more than they may.
    """
    parts = _choose_parts(form, channels)
    paths = []
    for number, part in enumerate(parts):
        stem = "scan" if len(parts) == 1 else f"scan_{number:04d}"
        name = part.filename or ""
        if name.lower().endswith(".zip"):
            path = folder / stem
            most -= _unpack(part.file, path, most)
        else:
            path = folder / f"{stem}{_find_suffix(part)}"
            if path.suffix in DICOM_SUFFIXES:
                # DICOM files in one folder are looked at together, and a slice that is a channel must not be taken for its neighbour's.
                path = folder / stem / path.name
                path.parent.mkdir()
            part.file.seek(0)
            with path.open("xb") as target:
                shutil.copyfileobj(part.file, target, _PIECE)
        paths.append(path)
    return paths


def _choose_parts(form: FormData, channels: Sequence[str]) -> list[UploadFile]:
    """Returns the files of a form, in the order of the model's channels."""
    named = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
    names = [name for name, _ in named]
    if set(names) == {"file"} and len(names) in (1, len(channels)):
        return [part for _, part in named]
    if sorted(names) == sorted(channels):
        parts = dict(named)
        return [parts[channel] for channel in channels]
    several = f", or one for each of {len(channels)} channels in this order: {', '.join(channels)}" if len(channels) > 1 else ""
    raise Refusal(400, f"Expected a scan as `file`{several}. Received: {', '.join(names)[:200] or 'no file'}. Send it as a form.")


def _find_suffix(part: UploadFile) -> str:
    """Returns the suffix that the file of a part gets."""
    path = PurePosixPath(part.filename or "")
    suffix = suffix_of(Path(path.name))
    part.file.seek(0)
    if not suffix and (path.suffix.lower() in DICOM_SUFFIXES or part.file.read(132)[128:] == b"DICM"):
        return DICOM_SUFFIXES[0]
    if not suffix or suffix in DETACHED_SUFFIXES:
        line = f"Expected a scan ({_KINDS} or .dcm), or a .zip of one DICOM series. Received: a file that is called {path.name[-100:]!r}."
        raise Refusal(400, f"{line} Convert or rename it.")
    return suffix


def _unpack(file: BinaryIO, folder: Path, most: int) -> int:
    """Unpacks the files of a zip into one folder under numbers; returns their bytes.

    Raises:
        Refusal: If it is no zip, is damaged, unpacks to more than `most` bytes, or holds no DICOM.
    """
    _check_entries(file)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            size = sum(entry.file_size for entry in entries)
            if size > most:
                line = f"Expected a zip that unpacks to {most >> 20} MiB or less. Received: {size >> 20} MiB."
                raise Refusal(413, f"{line} Leave out what is not the series.")
            for entry in entries:
                _check_entry(entry)
            folder.mkdir()
            for number, entry in enumerate(entry for entry in entries if _is_wanted(entry)):
                suffix = PurePosixPath(entry.filename).suffix.lower()
                # zipfile gives no more bytes than the entry says that it has.
                with (
                    archive.open(entry) as source,
                    (folder / f"{number:06d}{suffix if suffix in DICOM_SUFFIXES else ''}").open("xb") as target,
                ):
                    shutil.copyfileobj(source, target, _PIECE)
    except Refusal:
        raise
    except Exception as error:  # a damaged directory can make zipfile fail in any way
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that one is of a place before the file's beginning
            raise
        raise Refusal(400, f"Expected a whole zip of one DICOM series. Received: {to_line(error, 200)}. Pack it again.") from error
    if not find_dicom(folder):
        raise Refusal(400, f"Expected a zip of one DICOM series. Received: {len(entries)} other file(s). Send other formats without a zip.")
    return size


def _check_entries(file: BinaryIO) -> None:
    """Counts the entries of a zip without a list of them: the list of an evil zip could fill the memory."""
    file.seek(0)
    count, tail = 0, b""
    while piece := file.read(_PIECE):
        count += (tail + piece).count(_ENTRY_MARK)
        tail = piece[1 - len(_ENTRY_MARK) :]
    if count > MOST_ENTRIES:
        raise Refusal(413, f"Expected a zip of {MOST_ENTRIES:,} files or fewer. Received: {count:,}. Send one series.")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    """Refuses an entry that another program would unpack elsewhere, or that we cannot unpack."""
    name = entry.filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or ":" in name.split("/")[0]:
        raise Refusal(400, "Expected a zip whose files lie within it. Received: a name that leads out of it. Pack it again.")
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refusal(400, "Expected a zip that is stored or deflated, without a password. Received: another kind. Pack it again.")


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    """Tells a file from those that systems hide in zips, and from a DICOMDIR, which only lists others."""
    parts = entry.filename.split("/")
    return not any(part.startswith((".", "__MACOSX")) for part in parts) and not parts[-1].upper().startswith("DICOMDIR")
