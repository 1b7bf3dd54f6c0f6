"""Runs in MLflow: at a real server and in a local database."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from tracking_helpers import MEANS, PARAMETERS, TAGS
from tracking_helpers import make_row as _row
from tracking_helpers import open_run_tracker as _open
from tracking_helpers import train_on as _train
from tracking_helpers import write_history as _write_history

from modules.run import mlflow_sink
from modules.run.folder import RunFolder
from modules.run.tracking import check_tracker, open_tracker

pytestmark = pytest.mark.usefixtures("_environment")


def _find_free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Starts an MLflow server of our own and yields its address."""
    pytest.importorskip("flask", reason="the whole of MLflow")
    pytest.importorskip("mlflow")
    folder, port = tmp_path_factory.mktemp("server"), _find_free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts")),
    ]
    # Its job workers are seven more processes.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | quiet, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        _wait_for(uri, process, folder / "log.txt")
        yield uri
    finally:
        # It and its workers.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _wait_for(uri, process, output, seconds=180):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"no MLflow server: {output.read_text()[-2000:]}")


def _connect(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _find_run(uri, folder):
    return _connect(uri).get_run(json.loads((folder / "tracking.json").read_text())["mlflow_run"])


def _find_history(uri, run_id, name):
    return [(item.step, item.value) for item in _connect(uri).get_metric_history(run_id, name)]


def test_a_run_at_a_server_has_all_there_is_to_know(server, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with _open("mlflow", run) as tracker:
        assert _find_run(server, run).info.status == "RUNNING"
        _train(run, tracker, 1, 3)
        tracker.log_summary(MEANS)
    found = _find_run(server, run)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "first")
    assert _connect(server).get_experiment(found.info.experiment_id).name == "oasis"
    expected = {
        **{
            "dataset": "oasis",
            "shape": "64, 32",
            "learning_rate": "0.001",
            "norm": "None",
            "demo": "False",
            "target": "",
            "loss": "x" * 500,
        }
    }
    assert found.data.params == expected
    tags = {"backend": "tensorflow", "versions.keras": "3.15.1", "versions.numpy": "2.4.6", "git_commit": "0123abc"}
    assert {**tags, "devices": "cpu:0, cpu:1"}.items() <= found.data.tags.items()
    assert _find_history(server, found.info.run_id, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert _find_history(server, found.info.run_id, "val_loss") == [(1, 2.0), (2, 1.0), (3, 2 / 3)]
    # NaN stands for a value that was not measured.
    assert _find_history(server, found.info.run_id, "val_dice_white matter") == [(2, 0.5), (3, 0.5)]
    test = {name: value for name, value in found.data.metrics.items() if name.startswith("test_")}
    assert test == {"test_slice/dice_white matter": 0.875, "test_slice/cases_white matter": 4, "test_slice/dice_mean": 0.75}
    client = _connect(server)
    files = [item.path for folder in (None, "figures", "bundle") for item in client.list_artifacts(found.info.run_id, folder)]
    assert sorted(files) == ["bundle", "bundle/bundle.json", "figures", "figures/loss.png", "scores.csv", "summary.json"]


def test_a_resumed_run_goes_on_in_the_same_one(server, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    tracker = _open("mlflow", run)
    _train(run, tracker, 1, 3)
    with pytest.raises(KeyboardInterrupt), tracker:
        raise KeyboardInterrupt
    begun = _find_run(server, run)
    assert begun.info.status == "KILLED"
    # The server was away, so two more epochs are in the folder alone.
    _write_history(run, [_row(epoch) for epoch in range(1, 6)])
    tracker = open_tracker(
        "mlflow", RunFolder(run), experiment="oasis", parameters=PARAMETERS | {"new": 1}, tags=TAGS | {"git_commit": "4567def"}
    )
    assert _find_run(server, run).info.status == "RUNNING"
    # The fifth epoch is repeated, because its checkpoint was not written.
    _train(run, tracker, 5, 6)
    tracker.close()
    found = _find_run(server, run)
    assert (found.info.run_id, found.info.status) == (begun.info.run_id, "FINISHED")
    assert _find_history(server, found.info.run_id, "loss") == [(epoch, 1 / epoch) for epoch in range(1, 7)]
    assert found.data.params == begun.data.params | {"new": "1"}
    assert found.data.tags["git_commit"] == "0123abc"


def test_an_error_makes_the_run_a_failed_one(server, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with pytest.raises(ZeroDivisionError), _open("mlflow", run):
        raise ZeroDivisionError
    assert _find_run(server, run).info.status == "FAILED"


def test_a_run_that_is_gone_is_not_begun_anew(server, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    _open("mlflow", run).close()
    number = json.loads((run / "tracking.json").read_text())["mlflow_run"]
    _connect(server).delete_run(number)
    text = (
        rf"Expected the MLflow run {number} of .*first at {server}. Received: no such run. Set MLFLOW_TRACKING_URI to {server}, or remove "
        r".*tracking.json to log a new one."
    )
    with pytest.raises(ValueError, match=text):
        _open("mlflow", run)
    (run / "tracking.json").write_text(json.dumps({"mlflow_run": "0" * 32, "uri": server}))
    with pytest.raises(ValueError, match="Received: no such run"):
        _open("mlflow", run)


def test_without_a_server_it_is_the_current_folders_database(run, tmp_path):
    pytest.importorskip("sqlalchemy", reason="the whole of MLflow")
    pytest.importorskip("mlflow")
    fold = run / "fold_1"
    fold.mkdir()
    (run / "run.json").write_text("{}")
    (fold / "summary.json").write_text("{}")
    with _open("mlflow", fold) as tracker:
        _train(fold, tracker, 1, 2)
        tracker.log_summary({})
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert json.loads((fold / "tracking.json").read_text())["uri"] == uri
    found = _find_run(uri, fold)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "first/fold_1")
    assert _find_history(uri, found.info.run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert [path.name for path in (tmp_path / "mlruns").rglob("summary.json")] == ["summary.json"]


def test_a_run_knows_its_database_from_any_folder(run, tmp_path, monkeypatch):
    (run / "tracking.json").write_text(json.dumps({"mlflow_run": "1", "uri": "sqlite:////elsewhere/mlflow.db"}))
    assert mlflow_sink.find_uri(RunFolder(run)) == "sqlite:////elsewhere/mlflow.db"
    assert mlflow_sink.find_uri(RunFolder(tmp_path)) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert mlflow_sink.find_uri(RunFolder(run)) == "http://server"


def test_a_server_that_is_not_there_is_one_line_and_no_password(run, monkeypatch):
    pytest.importorskip("mlflow")
    port = _find_free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    text = rf"^Expected an MLflow server at http://127.0.0.1:{port}. Received: .*[Cc]onnection refused. Start it, or use --track none.$"
    with pytest.raises(ValueError, match=text):
        check_tracker("mlflow")
    with pytest.raises(ValueError, match=text):
        _open("mlflow", run)
    assert not (run / "tracking.json").exists()
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_asks_for_user_and_password(status, monkeypatch):
    mlflow = pytest.importorskip("mlflow")

    def refuse(self, **options):
        raise mlflow.exceptions.RestException({"error_code": {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}[status], "message": "no"})

    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", refuse)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"no. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or use --track none.$"):
        check_tracker("mlflow")


def test_a_page_that_is_no_server_is_named(monkeypatch, run):
    mlflow = pytest.importorskip("mlflow")

    def answer(self, **options):
        raise json.JSONDecodeError("Expecting value", "<html>", 0)

    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", answer)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"^Expected an MLflow server at http://127.0.0.1:9. Received: Expecting value"):
        check_tracker("mlflow")


def test_without_the_package_it_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    text = r"^Expected the package mlflow for --track mlflow. Received: import of mlflow halted.*Install it: pip install mlflow$"
    with pytest.raises(ValueError, match=text):
        _open("mlflow", run)


def test_a_damaged_record_is_named(run):
    (run / "tracking.json").write_text('{"mlflow_run": "1"')
    with pytest.raises(ValueError, match=r"^Expected JSON in .*tracking.json. Received: .*Remove the file to log a new one.$"):
        _open("mlflow", run)
