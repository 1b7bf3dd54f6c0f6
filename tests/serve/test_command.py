"""The command `mri-serve`: the commands of docs/serving.md against it, its end, and its flags."""

import errno
import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from serve_helpers import httpx

import predict
from modules.packages import describe_missing
from modules.serve.__main__ import main, open_place

ROOT = Path(__file__).parents[2]


def test_the_commands_of_the_documentation_run(model, scan, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    commands = re.search(r"```bash\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    shutil.copy(scan, tmp_path / "scan.nii.gz")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "modules.serve", "--model", str(model), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            line = server.stdout.readline()
            assert re.match(r"run \(openvino\) at http://127.0.0.1:\d+$", line), line + server.stdout.read()
            place = re.search(r"127.0.0.1:\d+", line)[0]
            commands = commands.replace("127.0.0.1:8000", place)
            result = subprocess.run(["bash", "-ec", commands], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stdout + result.stderr
            taken = main(["--model", str(model), "--port", place.split(":")[1]])
            wrong = httpx.post(f"http://{place}/predict", files={"file": ("Jane_Doe.nii", b"no scan")})
        finally:
            server.send_signal(signal.SIGTERM)
            rest = server.stdout.read()
    assert (server.returncode, taken, wrong.status_code) == (0, 2, 400)
    assert [re.sub(r"[0-9a-f]{8}|[0-9]+\.[0-9]", "#", one) for one in rest.splitlines()] == [
        *["request #: status 200 after # s"] * 3,
        "request #: status 400 after # s",
        "stopped",
    ]
    assert predict.main([str(scan), "--model", str(model), "--engine", "openvino", "--output", str(tmp_path / "out")]) == 0
    written = gzip.decompress((tmp_path / "out" / "scan_prediction.nii.gz").read_bytes())
    assert gzip.decompress((tmp_path / "label.nii.gz").read_bytes()) == written
    assert [one["name"] for one in json.loads((tmp_path / "results.json").read_text())["classes"]] == ["a", "b"]
    assert not list(tmp_path.glob("mri-serve-*"))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--max-megabytes", "0"], "Expected --max-megabytes of 1 or more. Received: 0."),
        (["--workers", "0"], "Expected --workers of 1 or more. Received: 0."),
        (["--queue", "-1"], "Expected --queue of 0 or more. Received: -1."),
        (["--max-seconds", "nan"], "Expected --max-seconds above 0. Received: nan."),
        (["--port", "70000"], "Expected --port from 0 to 65535. Received: 70000."),
        (["--model", "nowhere"], "Expected a trained model in "),
    ],
)
def test_wrong_flags_are_one_line(flags, line, capsys):
    assert main(flags) == 2
    assert capsys.readouterr().err.startswith(f"mri-serve: error: {line}")


def test_a_package_that_is_missing_names_the_extra():
    assert describe_missing(ModuleNotFoundError(name="python_multipart")) == (
        "Expected the package python-multipart. Received: none. pip install python-multipart; the extra 'serve' of this program has all "
        "that it uses."
    )


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off():
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("only Linux knows this limit")
    with open_place("127.0.0.1", 0, 0.2) as place, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(place.getsockname())
        answering, _ = place.accept()
        with answering:
            answering.settimeout(60)
            with pytest.raises(OSError, match="timed out") as caught:
                answering.sendall(bytes(1 << 25))
        assert caught.value.errno == errno.ETIMEDOUT
