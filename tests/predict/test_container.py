"""The container's promises: `predict.py` needs what the Dockerfile copies, and no rights, network, home or root that can be written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engine_helpers import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]


def _list_ignored(paths):
    """Lists the paths that .dockerignore leaves out, by Docker's rule: the last line counts that fits a path or a folder above it."""
    rules = []
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = re.escape(line.lstrip("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
            rules.append((re.compile(pattern), not line.startswith("!")))

    def is_ignored(path):
        places = [path, *map(str, list(Path(path).parents)[:-1])]
        return next((ignored for rule, ignored in reversed(rules) if any(rule.fullmatch(place) for place in places)), False)

    return [path for path in paths if is_ignored(path)]


def test_the_build_sees_what_it_copies_and_no_scan():
    copied = [name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]
    copied = [name.replace("${MODEL}", "runs/cv/fold_0") for name in copied]
    assert {"requirements.lock", "requirements-dev.lock", "predict.py", "modules", "runs/cv/fold_0/bundle"} <= set(copied)
    assert not _list_ignored([*copied, "modules/predict/cases.py", "modules/presets/demo.toml", "runs/first/bundle/model.keras"])
    kept_out = [
        *("data/ibsr18/a.nii.gz", ".git/config", ".venv/bin/python", "predictions/a.nii.gz", "modules/__pycache__/a.pyc", "images/a.png"),
        *("runs/first/data.json", "runs/first/figures/a.png", "runs/first/checkpoint/a.h5", "runs/first/log.txt", "cache/a.npy"),
    ]
    assert _list_ignored(kept_out) == kept_out
    for name in copied:
        assert name.startswith("runs/") or (ROOT / name).exists()
    # The program imports nothing that was not copied.
    sources = [ROOT / name for name in copied if name.endswith(".py")]
    imported = {name for path in sources for name in re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE)}
    assert {name for name in imported if (ROOT / f"{name}.py").exists()} <= {path.stem for path in sources}


def test_every_stage_that_runs_belongs_to_a_user_without_rights():
    names = [stage.splitlines()[0].partition(" AS ")[2] for stage in STAGES]
    assert names == ["build", "program", "with-model", ""]
    for stage in STAGES[1:3]:
        assert re.findall(r"^USER (.*)$", stage, re.MULTILINE)[-1] == "65534:65534"
    # The last stage, which is built without a target, adds nothing.
    assert STAGES[3].strip() == "program"
    environment = dict(part.split("=") for part in re.search(r"^ENV (.*)$", STAGES[1], re.MULTILINE)[1].split())
    assert environment.pop("PYTHONDONTWRITEBYTECODE") == "1"
    assert {Path(place).parts[1] for place in environment.values()} == {"tmp"}
    assert {"HOME", "TMPDIR", "MPLCONFIGDIR"} <= set(environment)
    assert 'ENTRYPOINT ["/opt/venv/bin/python", "/app/predict.py"]' in STAGES[1]


def test_every_package_is_locked_with_its_hash(tmp_path):
    (install,) = re.findall(r"pip install .*", DOCKERFILE)
    assert "--require-hashes" in install
    assert "http" not in DOCKERFILE
    if shutil.which("awk") is None:
        pytest.skip("awk is not installed")
    command = re.search(r"awk .* requirements-dev\.lock", DOCKERFILE)[0]
    found = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    packages = re.findall(r"^(\S+)==", found, re.MULTILINE)
    assert packages == ["highdicom", "pydicom", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg", "simpleitk"]
    blocks = re.split(r"^(?=\S+==)", found, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks)


@pytest.fixture
def make_image(tmp_path):
    """Runs `make image` with a stand-in for docker that prints its arguments, or without any."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    stand_in = tmp_path / "docker"
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)

    def make(*variables, builders=f"no-such-tool {stand_in}"):
        command = ["make", "--no-print-directory", "image", f"BUILDERS={builders}", *variables]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    return make


def test_make_image_builds_with_and_without_a_model_or_says_what_to_install(make_image, run):
    assert make_image().stdout.splitlines() == ["build --tag mri-segmentation ."]
    assert make_image(f"MODEL={run}", "IMAGE=brains").stdout.splitlines() == [
        f"build --tag brains --target with-model --build-arg MODEL={run} ."
    ]
    for variables, builders, message in (
        ([], "no-such-tool", "make: Expected docker or podman, ready to build. Received: neither. Install and start one: https://docs"),
        (["MODEL=runs/none"], None, "make: Expected MODEL=runs/NAME, a finished run. Received: runs/none, without a model. Train one."),
    ):
        result = make_image(*variables, **({"builders": builders} if builders else {}))
        assert result.returncode == 2
        lines = [line for line in result.stderr.splitlines() if "***" not in line]
        assert len(lines) == 1
        assert lines[0].startswith(message)


# All file systems but the two folders are read-only, and there is no network. The user keeps no right of root's.
JAIL = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1/tmp"
mount --bind "$1/out" "$1/out"
mount -o remount,bind,ro /
! touch "$1/app/predict.py" 2>/dev/null
cd "$1/app"
export HOME=/nonexistent TMPDIR="$1/tmp"
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all "$2" predict.py "$3" --output "$1/out"
"""


def test_predictions_need_no_rights_network_home_or_root_that_can_be_written(run, slice_path, tmp_path):
    for name in ("unshare", "setpriv"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    for name in ("app", "out", "tmp"):
        (tmp_path / name).mkdir()
    for name in ("dataset.py", "predict.py", "utils.py"):
        shutil.copy(ROOT / name, tmp_path / "app")
    shutil.copytree(ROOT / "modules", tmp_path / "app" / "modules", ignore=shutil.ignore_patterns("__pycache__"))
    # A run in the working folder needs no `--model`.
    shutil.copytree(run / "bundle", tmp_path / "app" / "runs" / "model" / "bundle")
    (tmp_path / "app" / "runs" / "model" / "summary.json").write_text("{}")
    jail = ["unshare", "--user", "--map-root-user", "--mount", "--net", "sh"]
    if subprocess.run([*jail, "-ec", "mount --make-rprivate / && mount -o remount,bind,ro /"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let a user make namespaces")
    environment = {"PATH": os.environ["PATH"], "KERAS_BACKEND": "tensorflow"}
    command = [*jail, "-c", JAIL, "sh", tmp_path, sys.executable, slice_path]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    names = {path.name.replace(slice_path.name.partition(".")[0], "") for path in (tmp_path / "out").iterdir()}
    assert {"_prediction.nii.gz", "_overlay.png", "predictions.jsonl"} <= names
    assert not list(tmp_path.rglob("__pycache__"))
