"""The server's application: its addresses, and the way of a scan from a request to an answer."""

import logging
import os
import secrets
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

import modules
from modules.api.errors import MissingPackageError, MRIError, PredictionError, TooLargeError
from modules.api.predictor import Predictor
from modules.serve.answers import ANSWERS, describe_model, make_answer
from modules.serve.desk import Desk
from modules.serve.limits import Gone, Limits, Refusal
from modules.serve.uploads import read_form, store_scan

log = logging.getLogger("mri.serve")

# nginx's status for a client that went away; nobody receives it.
CLIENT_GONE = 499
# The first that fits. A package that is missing is no fault of the client's: this server cannot do what others can.
_STATUSES = ((TooLargeError, 413), (PredictionError, 500), (MissingPackageError, 501))
_FORM = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}, "series": {"type": "string"}},
    "required": ["file"],
}
_PREDICT = {
    "parameters": [{"name": "answer", "in": "query", "schema": {"type": "string", "enum": list(ANSWERS), "default": ANSWERS[0]}}],
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}},
}


def make_app(predictor: Predictor, name: str, limits: Limits) -> FastAPI:
    """Makes the application of a model that is loaded, and is called `name` in answers."""
    service = _Service(predictor, name, limits)
    # The pages that FastAPI offers load their scripts from the internet.
    app = FastAPI(title="MRI segmentation", version=modules.__version__, docs_url=None, redoc_url=None)
    app.add_api_route("/health", service.report_health, methods=["GET"])
    app.add_api_route("/model", service.describe, methods=["GET"])
    app.add_api_route("/predict", service.predict, methods=["POST"], openapi_extra=_PREDICT)
    app.add_exception_handler(HTTPException, _answer_wrong_address)
    return app


async def _answer_wrong_address(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    line = (
        f"Expected GET /health, GET /model or POST /predict. Received: {request.method} of {'another address' if status == 404 else 'it'}."
    )
    return JSONResponse({"error": line}, status)


class _Service:
    """The functions behind the addresses."""

    def __init__(self, predictor: Predictor, name: str, limits: Limits) -> None:
        self._predictor, self._name, self._limits = predictor, name, limits
        self._desk = Desk(limits)

    async def report_health(self) -> dict[str, Any]:
        """Says that the server is ready, and what it has to do."""
        return {
            "ready": True,
            "model": self._name,
            "classes": list(self._predictor.class_names),
            "version": modules.__version__,
            "waiting": self._desk.waiting,
            "running_seconds": self._desk.running_seconds,
        }

    async def describe(self) -> dict[str, Any]:
        """Describes the model and the limits of a request."""
        limits = {"megabytes": self._limits.megabytes, "seconds": self._limits.seconds, "queue": self._limits.queue}
        return describe_model(self._predictor, self._name) | {"limits": limits}

    async def predict(self, request: Request) -> Response:
        """Predicts a scan. The log gets a number, seconds and the status, and nothing of the scan or its names."""
        number, begun = secrets.token_hex(4), time.perf_counter()
        try:
            with self._desk.take_place():
                response = await self._predict(request)
        except Refusal as refusal:
            response = JSONResponse({"error": refusal.line}, refusal.status, refusal.headers)
        except (Gone, ClientDisconnect):
            response = Response(status_code=CLIENT_GONE)
        except Exception as error:
            # Its text may hold what a scan says about a patient, so the log gets its kind and place alone.
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("request %s: %s in %s, line %d", number, type(error).__name__, place.filename, place.lineno)
            line = f"Expected an answer. Received: a defect of the server. Tell those who run it the number of this request, {number}."
            response = JSONResponse({"error": line}, 500)
        response.headers["X-Request-Id"] = number
        log.info("request %s: status %d after %.1f s", number, response.status_code, time.perf_counter() - begun)
        return response

    async def _predict(self, request: Request) -> Response:
        kind = request.query_params.get("answer", ANSWERS[0])
        if kind not in ANSWERS:
            raise Refusal(400, f"Expected `answer` in {', '.join(ANSWERS)}. Received: {kind[:100]!r}. Choose one.")

        async def wait_until_gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        form = await read_form(request, self._limits, len(self._predictor.channels))
        try:
            return await self._desk.work(lambda check: self._predict_form(form, kind, check), wait_until_gone())
        finally:
            await form.close()

    def _predict_form(self, form: FormData, kind: str, check: Callable[[], None]) -> Response:
        """Predicts the scan of a form; `check` raises where that shall end. Its folder is removed in any case."""
        series = form.get("series", "")
        with tempfile.TemporaryDirectory(prefix="mri-serve-", ignore_cleanup_errors=True) as temporary:
            folder = Path(os.path.realpath(temporary))
            try:
                paths = store_scan(form, folder, self._predictor.channels, self._limits.upload_bytes)
                check()
                saved = self._predictor.save_file(
                    paths,
                    folder,
                    series=series if isinstance(series, str) else "",
                    max_bytes=self._limits.memory_bytes,
                    on_batch=lambda windows: check(),
                )
            except MRIError as error:
                status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 400)
                raise Refusal(status, str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "the upload")) from error
            return make_answer(kind, saved, self._name)
