"""Requests over a real socket: answers as predict.py writes them, refusals in one line, many clients at once, and nothing left behind."""

import gzip
import io
import json
import logging
import zipfile
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
from serve_helpers import StubPredictor, httpx, serve, wait_for

import predict
from modules.serve.limits import Limits


def _post(client, name, data, answer="zip", **fields):
    return client.post("/predict", params={"answer": answer}, files={"file": (name, data)}, data=fields)


@pytest.fixture(scope="module")
def written(model, scan, tmp_path_factory):
    """The folder of what predict.py writes for the scan."""
    folder = tmp_path_factory.mktemp("written")
    assert predict.main([str(scan), "--model", str(model), "--engine", "openvino", "--output", str(folder)]) == 0
    return folder


def test_the_label_map_is_that_of_the_command(client, scan, written):
    response = _post(client, "Jane_Doe.nii.gz", scan.read_bytes())
    assert response.status_code == 200
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.namelist() == ["label.nii.gz", "results.json"]
        found, results = nib.Nifti1Image.from_bytes(gzip.decompress(archive.read("label.nii.gz"))), json.loads(archive.read("results.json"))
    expected = nib.load(written / "scan_prediction.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    assert found.header == expected.header
    (case,) = json.loads((written / "results.json").read_text())["cases"]
    assert [one["name"] for one in results["classes"]] == ["a", "b"]
    assert (results["classes"], results["shape"]) == (case["classes"], [24, 20, 18])
    assert _post(client, "a.nii.gz", scan.read_bytes(), "json").json() | {"seconds": 0} == results | {"seconds": 0}
    label = _post(client, "a.nii.gz", scan.read_bytes(), "label")
    assert gzip.decompress(label.content) == gzip.decompress((written / "scan_prediction.nii.gz").read_bytes())
    assert label.headers["content-disposition"] == 'attachment; filename="label.nii.gz"'
    assert list(client.temporary.iterdir()) == []


def test_health_and_model_are_told(client):
    health = client.get("/health").json()
    assert health["ready"] is True
    assert (health["model"], health["classes"], health["waiting"], health["running_seconds"]) == ("small", ["background", "a", "b"], 0, [])
    model = client.get("/model").json()
    assert [(one["name"], one["value"]) for one in model["classes"]] == [("a", 10), ("b", 20)]
    assert (model["channels"], model["label_values"], model["limits"]["megabytes"]) == (["T1"], [0, 10, 20], 1)
    assert "Not a medical device" in model["intended_use"]
    wrong = client.get("/predict")
    assert (wrong.status_code, wrong.json()["error"].split(".")[0]) == (405, "Expected GET /health, GET /model or POST /predict")
    assert client.get("/docs").status_code == 404
    assert "/predict" in client.get("/openapi.json").json()["paths"]


def test_a_dicom_series_in_a_zip_is_one_scan(client, model, tmp_path):
    dicom = pytest.importorskip("dicom_helpers")
    volume = np.random.default_rng(7).integers(0, 400, (17, 18, 19)).astype(np.uint16)
    dicom.write_series(tmp_path / "study", volume, spacing=(1.5, 1.5))
    assert predict.main([str(tmp_path / "study"), "--model", str(model), "--engine", "openvino", "--output", str(tmp_path / "out")]) == 0
    dicom.write_series(tmp_path / "more" / "b", volume[:5], SeriesInstanceUID="1.2.3.9", SeriesNumber=9, SeriesDescription="t2")
    one, two = io.BytesIO(), io.BytesIO()
    for target, folders in ((one, ["study"]), (two, ["study", "more"])):
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("DICOMDIR", b"\0" * 128 + b"DICM")
            archive.writestr("__MACOSX/._IM0001.dcm", b"\0")
            for path in sorted(path for folder in folders for path in (tmp_path / folder).rglob("IM*")):
                archive.write(path, path.relative_to(tmp_path))
    expected = gzip.decompress((tmp_path / "out" / "study_prediction.nii.gz").read_bytes())
    for data, fields in ((one, {}), (two, {"series": "4"})):
        response = _post(client, "study.zip", data.getvalue(), "label", **fields)
        assert response.status_code == 200, response.text
        assert gzip.decompress(response.content) == expected
    response = _post(client, "study.zip", two.getvalue())
    assert response.status_code == 400
    assert "t1 mprage" in response.json()["error"]
    assert "t2" in response.json()["error"]


def test_sixteen_clients_are_all_answered(predictor, scan, written):
    expected = gzip.decompress((written / "scan_prediction.nii.gz").read_bytes())
    with serve(predictor, Limits(queue=6)) as client:

        def ask(number):
            with httpx.Client(base_url=client.base_url, timeout=120) as own:
                return _post(own, "a.nii.gz", scan.read_bytes(), "label")

        with ThreadPoolExecutor(16) as pool:
            responses = list(pool.map(ask, range(16)))
        done = [response for response in responses if response.status_code == 200]
        assert len(done) >= 7
        assert all(gzip.decompress(response.content) == expected for response in done)
        refused = [response for response in responses if response.status_code != 200]
        assert all(response.status_code == 503 and int(response.headers["retry-after"]) >= 1 for response in refused)
        assert all("Expected a place in the queue" in response.json()["error"] for response in refused)
        assert client.get("/health").json()["waiting"] == 0
        assert _post(client, "a.nii.gz", scan.read_bytes()).status_code == 200


def test_a_busy_server_tells_its_health_refuses_and_forgets_who_went_away(caplog):
    stub = StubPredictor()
    with serve(stub, Limits(queue=2)) as client, ThreadPoolExecutor(3) as pool, caplog.at_level(logging.INFO, "mri.serve"):
        first = pool.submit(_post, client, "Jane_Doe.nii", b"a scan")
        assert stub.begun.wait(60)
        waiting = pool.submit(_post, client, "a.nii", b"a scan")
        wait_for(lambda: client.get("/health").json()["waiting"] == 1)
        # Its client has no patience.
        with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=client.base_url, timeout=1) as hasty:
            wait_for(lambda: _post(hasty, "a.nii", b"a scan").status_code == 503)
        wait_for(lambda: client.get("/health").json()["waiting"] == 1)
        health = client.get("/health").json()
        assert (len(health["running_seconds"]), health["ready"]) == (1, True)
        third = pool.submit(_post, client, "a.nii", b"a scan")
        wait_for(lambda: client.get("/health").json()["waiting"] == 2)
        assert _post(client, "a.nii", b"a scan").status_code == 503
        stub.free.set()
        response = first.result()
        assert waiting.result().status_code == third.result().status_code == 500
        # The hasty one never began.
        assert stub.calls == 3
    assert response.status_code == 500
    number = response.headers["x-request-id"]
    assert response.json() == {
        "error": f"Expected an answer. Received: a defect of the server. Tell those who run it the number of this request, {number}."
    }
    assert f"request {number}: SystemError in " in caplog.text
    assert "patient" not in caplog.text
    assert "Jane_Doe" not in caplog.text


def test_a_client_that_goes_away_ends_its_prediction():
    stub = StubPredictor()
    with serve(stub, Limits()) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/predict", files={"file": ("a.nii", b"a scan")}, timeout=0.5)
        wait_for(lambda: stub.left == stub.calls == 1)
        wait_for(lambda: client.get("/health").json()["running_seconds"] == [])


def test_a_prediction_that_takes_too_long_is_ended():
    stub = StubPredictor()
    with serve(stub, Limits(seconds=0.2)) as client:
        response = _post(client, "a.nii", b"a scan")
        assert response.status_code == 504
        assert response.json()["error"].startswith("Expected a scan that is predicted in 0.2 s. Received: one that takes longer.")
        assert stub.left == 1

        def send_slowly():
            yield b"--b\r\n"
            stub.free.wait(0.5)
            yield b"--b--"

        response = client.post("/predict", content=send_slowly(), headers={"content-type": "multipart/form-data; boundary=b"})
        assert response.status_code == 408
        assert response.json()["error"].startswith("Expected a request that arrives in 0.2 s.")
