"""The limits of a request, and the errors that refuse it."""

from collections.abc import Mapping
from dataclasses import dataclass

# Bytes of memory that a scan may take for each byte of an upload. A scan is packed, and its model's grid may be finer.
_EXPANSION = 8


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        megabytes: Size of an upload in MiB; also of the files that a zip holds.
        seconds: Time for an upload to arrive, and for a prediction once it has begun.
        queue: Requests that wait beside those that are predicted.
        workers: Scans that are predicted at the same time.
    """

    megabytes: int = 512
    seconds: float = 300.0
    queue: int = 16
    workers: int = 1

    @property
    def upload_bytes(self) -> int:
        """The most bytes of an upload, and of what it unpacks to."""
        return self.megabytes << 20

    @property
    def memory_bytes(self) -> int:
        """The most bytes of memory that reading a scan and bringing it to the model's grid may take."""
        return _EXPANSION * self.upload_bytes


class Refusal(Exception):
    """A request that is answered with an error.

    Attributes:
        status: Status of HTTP.
        line: The error in one line, for the client.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, line: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(line)
        self.status, self.line, self.headers = status, line, dict(headers or {})


class Gone(Exception):
    """The client went away before its answer was ready."""
