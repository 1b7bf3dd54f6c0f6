"""Scans that workers predict: the label maps, results and scores of one process, also where a worker is killed."""

import sys
from pathlib import Path

import pytest
from batch_helpers import use_threshold, write_scans
from command_helpers import expect_one_line
from worker_helpers import need_package, read_cases, read_maps, write_script

import predict
from modules import backend_choice
from modules.run import workers

FAILING = """
import sys

print("predict.py: error: Expected a bundle in x. Received: shard " + sys.argv[-1] + ".")
sys.exit(3 if "1/2" in sys.argv and "half" in sys.argv[1] else 2)
"""


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs predict.py on twelve scans below `tmp_path`, with the stand-in for a model."""
    use_threshold(monkeypatch.setattr)
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    write_scans(tmp_path, 12)

    def run(*flags, output="out"):
        return predict.main([str(tmp_path / "scans"), "--model", "x", "--output", str(tmp_path / output), *map(str, flags)])

    return run


def _compare(one, two):
    """Compares all that two calls left."""
    assert len(read_maps(one)) == 12
    assert read_maps(two) == read_maps(one)
    assert read_cases(two) == read_cases(one)
    for name in ("volumes.csv", "scores.csv"):
        assert not (one / name).exists() or (two / name).read_bytes() == (one / name).read_bytes()


def test_a_killed_process_loses_nothing(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "__file__", str(write_script(tmp_path)))
    assert command(output="one") == 0
    capsys.readouterr()
    assert command("--workers", 2, output="two") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (tmp_path / "killed").exists()
    assert sum(line == "shard 0/2 is begun again: killed by signal 9" for line in lines) == 1
    ends = sorted(line for line in lines if line.startswith("shard") and " done, " in line)
    # A hash of the names puts five scans into the first shard. Two of them were done before the kill.
    assert ends == ["shard 0/2: 3 done, 0 failed, 2 skipped", "shard 1/2: 7 done, 0 failed, 0 skipped"]
    _compare(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("package", "flags"), [("submitit", ["--slurm", "cluster=local"]), ("ray", ["--ray", "num_cpus=1"])], ids=["slurm", "ray"]
)
def test_a_lost_worker_loses_nothing(command, tmp_path, monkeypatch, capsys, package, flags):
    need_package(package, monkeypatch)
    # The worker is killed, not the command that it runs.
    monkeypatch.setattr(predict, "__file__", str(write_script(tmp_path, kill="os.getppid()")))
    labels = ["--labels", tmp_path / "labels"]
    assert command(*labels, output="one") == 0
    text = capsys.readouterr().out
    assert command("--workers", 2, *labels, *flags, output="two") == 0
    assert (tmp_path / "killed").exists()
    _compare(tmp_path / "one", tmp_path / "two")
    found = capsys.readouterr().out
    assert "shard 0/2 is begun again: its worker was lost: " in found
    # Both print the same means.
    means = [line for line in text.splitlines() if "bright" in line and "model" not in line]
    assert means
    assert set(means) <= set(found.splitlines())
    assert not list((tmp_path / "two").rglob("*.pkl"))


def test_shards_that_fail_are_told(command, tmp_path, monkeypatch, capsys):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    monkeypatch.setattr(predict, "__file__", str(script))
    expect_one_line(capsys, command("--workers", 2), "predict.py: error: Expected a bundle in x. Received: shard ")
    (tmp_path / "scans").rename(tmp_path / "half")
    assert predict.main([str(tmp_path / "half"), "--model", "x", "--output", str(tmp_path / "out"), "--workers", "2"]) == 3
    text = capsys.readouterr().out
    assert "failed: shard 0/2: predict.py: error: Expected a bundle in x. Received: shard 0/2." in text
    assert "1 of 2 shards failed; the same command does the rest, and writes results.json" in text


def test_the_newest_run_is_named_to_all_workers(monkeypatch, tmp_path):
    asked = []

    def submit(commands):
        asked.extend(commands)
        return [workers.Job(lambda: True, lambda: workers.Ended(0, "1 done, 0 failed, 0 skipped"), lambda: None) for _ in commands]

    use_threshold(monkeypatch.setattr)
    monkeypatch.setattr(workers, "_start_process", lambda command: submit([command])[0])
    monkeypatch.setattr(backend_choice, "_GIVEN", False)
    monkeypatch.setattr(predict, "find_newest_run", lambda: Path("runs/a"))
    write_scans(tmp_path, 1)
    output = ["--output", str(tmp_path / "out"), "--threads", "3"]
    assert predict.main([str(tmp_path / "scans"), "--workers", "2", *output]) == 0
    script = str(Path(predict.__file__).absolute())
    shared = [sys.executable, script, str(tmp_path / "scans"), *output, "--no-results", "--model", "runs/a", "--backend", "auto", "--shard"]
    assert [command[2:] for command in asked] == [[*shared, "0/2"], [*shared, "1/2"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--workers", 0), "Expected `workers` of 1 or more. Received: 0."),
        (("--ray",), "Expected --workers beside --ray. Received: none. Say how many shards to divide the scans into."),
        (("--workers", 2, "--slurm"), "Expected --slurm time=MINUTES: the most that a job may take. Received: none. Add it."),
        (("--workers", 2, "--slurm", "time=5", "--ray"), "Expected either --slurm or --ray. Received: both. Leave one out."),
        (("--workers", 2, "--ray", "scans/"), "Expected NAME=VALUE after --ray. Received: scans/. Name paths before the flag."),
        (("--workers", 2, "--shard", "0/2"), "Expected workers without --shard 0/2. Received: both. Leave one out."),
    ],
)
def test_what_cannot_be_is_one_line(command, tmp_path, capsys, flags, message):
    expect_one_line(capsys, command(*flags), message)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_one_line(command, tmp_path, monkeypatch, capsys):
    for flags, package, extra in ((["--slurm", "time=5"], "submitit", "slurm"), (["--ray"], "ray", "ray")):
        monkeypatch.setitem(sys.modules, package, None)
        expect_one_line(capsys, command("--workers", 2, *flags), f"pip install {package}; the extra '{extra}' of this program has all")
    expect_one_line(capsys, predict.main([str(tmp_path), "--export", "onnx", "--workers", "2"]), "Expected --export alone with a run.")


def test_a_broken_scan_fails_alone_and_a_shard_leaves_the_results_to_others(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "killed").touch()
    monkeypatch.setattr(predict, "__file__", str(write_script(tmp_path)))
    (tmp_path / "scans" / "case_003.nii").write_bytes(b"no scan")
    assert command("--workers", 2, "--log-json", tmp_path / "log.jsonl") == 3
    captured = capsys.readouterr()
    assert captured.out.count("failed: Expected") == 1
    assert len(read_cases(tmp_path / "out")) == 11
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 12
    assert command("--no-results", "--shard", "0/2", output="part") in (0, 3)
    left = {path.name for path in (tmp_path / "part").iterdir()}
    assert left.isdisjoint({"results.json", "volumes.csv", "report.html"})


def test_overwriting_is_the_work_of_the_workers(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "killed").touch()
    monkeypatch.setattr(predict, "__file__", str(write_script(tmp_path)))
    assert command() == 0
    capsys.readouterr()
    assert command("--workers", 1, "--overwrite") == 0
    text = capsys.readouterr().out
    assert "shard 0/1: 12 done, 0 failed, 0 skipped" in text
    assert "\n0 done, 0 failed, 12 skipped" in text
