"""The command `mri-serve`: loads a model once, and predicts scans that come over HTTP."""

import argparse
import logging
import math
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import utils
from modules.api.predictor import Predictor
from modules.run.flags import OneLineParser
from modules.run.listing import find_newest_run
from modules.serve.limits import Limits

log = logging.getLogger("mri.serve")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return utils.run_command("mri-serve", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    # One name for the package that is missing, before a model is loaded for nothing.
    import python_multipart  # noqa: F401
    import uvicorn

    from modules.serve.app import make_app

    utils.start_log()
    limits = Limits(options.max_megabytes, options.max_seconds, options.queue, options.workers)
    # OpenCV reads it when it is first imported, and then refuses pictures of more pixels.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(limits.upload_bytes // 4)
    models = options.model or [str(find_newest_run())]
    predictor = Predictor.load(models, threads=options.threads)
    name = " + ".join(Path(model).absolute().name for model in models)
    place = open_place(options.host, options.port, options.max_seconds)
    app = make_app(predictor, name, limits)
    log.info("%s (%s) at http://%s:%d", name, ", ".join(predictor.engines), options.host, place.getsockname()[1])
    # Warnings of the other rooms name scans.
    logging.getLogger("mri").setLevel(logging.ERROR)
    log.setLevel(logging.INFO)
    try:
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, server_header=False)).run(sockets=[place])
    except KeyboardInterrupt:
        # uvicorn has answered the requests that were there, and then passes the signal on.
        log.info("stopped")


def open_place(host: str, port: int, seconds: float) -> socket.socket:
    """Opens the socket that the server listens to. A client that takes nothing of its answer for so many seconds is cut off.

    Raises:
        ValueError: If the port is not free, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        place = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        line = f"Expected a free port at --host {host}. Received: {error.strerror} for {port}. Choose another --port."
        raise ValueError(line) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; the sockets of its clients inherit it
        place.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(math.ceil(1000 * seconds), 1 << 30))
    return place


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    limits = Limits()
    parser = OneLineParser(
        prog="mri-serve",
        description="Loads a model once, and predicts scans that come over HTTP. It asks nobody for a password: see docs/serving.md.",
    )
    parser.add_argument("--model", nargs="+", metavar="RUN", help="as for predict.py (default: the run under runs/ that finished last)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s, which this machine alone reaches)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at; 0 for a free one (default %(default)s)")
    parser.add_argument(
        "--max-megabytes", type=int, default=limits.megabytes, metavar="N", help="MiB of an upload, and unpacked (default %(default)s)"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=limits.seconds, metavar="S", help="seconds for an upload, and for a prediction (default 300)"
    )
    parser.add_argument("--queue", type=int, default=limits.queue, metavar="N", help="requests that may wait (default %(default)s)")
    parser.add_argument("--workers", type=int, default=limits.workers, metavar="N", help="scans predicted at a time (default %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of OpenVINO (default: as many as cores)")
    options = parser.parse_args(argv)
    for name, least in (("max_megabytes", 1), ("queue", 0), ("workers", 1), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"Expected --{name.replace('_', '-')} of {least} or more. Received: {value}.")
    if not 0 < options.max_seconds < math.inf:
        raise ValueError(f"Expected --max-seconds above 0. Received: {options.max_seconds:g}.")
    if not 0 <= options.port <= 65535:
        raise ValueError(f"Expected --port from 0 to 65535. Received: {options.port}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
