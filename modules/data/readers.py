"""Processes that read batches beside Python's lock, for machines whose device would wait for the threads of one process.

Each process runs this file. On its standard input it gets an object that reads batches, then for each batch the numbers of its samples.
The arrays come back on its standard output. It ends with its input, so none outlives the training, however that ends.
"""

import contextlib
import fcntl
import math
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

# A message begins with its length in bytes. A request of length 0 wants a batch, and a reply of length 0 has one.
_LENGTH = struct.Struct("<q")
# A pipe holds so many bytes; the system's 64 KiB would wake both sides up a hundred times for a batch.
_PIPE_BYTES = 1 << 18

Layout = Mapping[str, tuple[tuple[int, ...], np.dtype]]
Read = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]


class Reader(Protocol):
    """A reader of batches, see `modules.data.pipeline.BatchReader`. Pickle must take it."""

    layout: Layout

    def read(self, samples: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        """Reads a batch by the numbers `(B,)` and the positions `(B,)` of its samples."""
        ...


def make_arrays(layout: Layout) -> list[np.ndarray]:
    """Makes empty arrays of the given shapes and types."""
    return [make_aligned(shape, dtype) for shape, dtype in layout.values()]


def make_aligned(shape: Sequence[int], dtype: np.dtype | type) -> np.ndarray:
    """Makes an empty array at a multiple of 64 bytes. TensorFlow takes such an array as it is, and copies others."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 63, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(dtype).reshape(shape)


class ReaderPool:
    """A pool of processes that read batches. Used as a context manager, it ends them with the block."""

    def __init__(self, number: int) -> None:
        """Starts so many processes, which load their libraries beside this one."""
        self.number = number
        self._closed = False
        # Each process, with what it was last told to read by.
        self._free: queue.SimpleQueue[tuple[subprocess.Popen, bytes]] = queue.SimpleQueue()
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        # A sample is too small for several threads.
        environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(
                # Without `-P` a module of the user's folder could take the place of ours.
                [sys.executable, "-P", "-m", f"{__package__}.readers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                # Ctrl-C then reaches this process alone, which ends the others.
                start_new_session=True,
                env=environment,
            )
            for _ in range(number)
        ]
        for process in self._processes:
            _widen(process.stdin)
            _widen(process.stdout)
            self._free.put((process, b""))

    def __enter__(self) -> "ReaderPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed = True
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def serve(self, reader: Reader) -> Read:
        """Makes a function that reads batches as `reader.read` does, in the processes; threads may call it beside one another."""
        return partial(self._read, pickle.dumps(reader), reader.layout)

    def _read(self, told: bytes, layout: Layout, samples: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        process, before = self._free.get()
        try:
            return _ask(process, b"" if told is before else told, layout, np.stack([samples, positions]).astype(np.int64))
        except (EOFError, BrokenPipeError) as error:
            if self._closed:
                # Batches that nobody waits for any more: no error of reading, which would hide what ended the training.
                raise RuntimeError("the training is over") from error
            raise ValueError(
                f"Expected a process that reads training samples to go on. Received: its end with status {process.wait()}. "
                "The machine may lack memory. Go on with `train.py --resume RUN`."
            ) from error
        finally:
            self._free.put((process, told))


def _widen(pipe: Any) -> None:
    """Lets a pipe hold `_PIPE_BYTES`. The system refuses that to a user who has many pipes, and to some systems it is unknown."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _ask(process: subprocess.Popen, told: bytes, layout: Layout, numbers: np.ndarray) -> list[np.ndarray]:
    """Asks a process for a batch, and tells it before what to read by, if anything.

    Raises:
        EOFError, BrokenPipeError: If the process has ended.
        OSError, ValueError: The error of reading.
    """
    if told:
        _write(process.stdin, _LENGTH.pack(len(told)) + told)
    _write(process.stdin, _LENGTH.pack(0) + numbers.tobytes())
    if failure := _read_message(process.stdout):
        raise pickle.loads(failure)
    arrays = make_arrays(layout)
    for array in arrays:
        _fill(process.stdout, array.reshape(-1).view(np.uint8))
    return arrays


def main() -> None:
    """Reads batches until standard input ends."""
    # A cluster sends SIGTERM to all processes of a job, and the training still wants the batches of its last steps.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    requests, replies = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    # Libraries print to standard output, which is for arrays alone.
    os.dup2(2, 1)
    reader: Any = None
    while True:
        try:
            if told := _read_message(requests):
                reader = pickle.loads(told)
                continue
            size = next(iter(reader.layout.values()))[0][0]
            samples, positions = np.frombuffer(_fill(requests, bytearray(16 * size)), np.int64).reshape(2, size)
            _reply(replies, reader, samples, positions)
        except (EOFError, BrokenPipeError):
            return


def _reply(replies: Any, reader: Reader, samples: np.ndarray, positions: np.ndarray) -> None:
    try:
        arrays = reader.read(samples, positions)
    except (OSError, ValueError) as error:
        failure = pickle.dumps(error)
        _write(replies, _LENGTH.pack(len(failure)) + failure)
        return
    _write(replies, _LENGTH.pack(0))
    for array in arrays:
        _write(replies, array.reshape(-1).view(np.uint8))


def _read_message(stream: Any) -> bytearray:
    """Reads a message with its length in front; empty for a length of 0."""
    (length,) = _LENGTH.unpack(_fill(stream, bytearray(_LENGTH.size)))
    return _fill(stream, bytearray(length))


def _fill(stream: Any, buffer: Any) -> Any:
    """Fills a buffer of bytes from a stream and returns it; raises EOFError where the stream ends before."""
    view = memoryview(buffer)
    while view:
        if not (number := stream.readinto(view)):
            raise EOFError
        view = view[number:]
    return buffer


def _write(stream: Any, content: Any) -> None:
    """Writes all bytes to a stream, which takes only some at a time."""
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]


if __name__ == "__main__":
    main()
