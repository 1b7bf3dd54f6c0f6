"""Many scans by one command, or by several at once: what fails, what is told of each case, shards, and interrupts."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from batch_helpers import use_threshold, write_scans
from command_helpers import expect_one_line

import predict
from modules import reports, score_tables

ROOT = Path(__file__).parents[1]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs predict.py on `scans` below `tmp_path` and on other paths there, with the stand-in for a model."""
    use_threshold(monkeypatch.setattr)

    def run(*flags, paths=(), output="out"):
        places = [str(tmp_path / name) for name in ("scans", *paths)]
        return predict.main([*places, "--model", "x", "--output", str(tmp_path / output), *map(str, flags)])

    return run


def _read_maps(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*_prediction.nii*"))}


def _read_log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_three_damaged_scans_of_fifty_and_shards_that_equal_the_whole(command, tmp_path, capsys):
    write_scans(tmp_path, 47)
    scans = tmp_path / "scans"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((4, 5, 6), np.float32), np.eye(4)), scans / "cut.nii.gz")
    (scans / "cut.nii.gz").write_bytes((scans / "cut.nii.gz").read_bytes()[:-40])
    nib.save(nib.Nifti1Image(np.ones((8, 8), np.float32), np.eye(4)), scans / "flat.nii")
    array = np.ones((4, 5, 6), np.float32)
    array[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(array, np.eye(4)), scans / "holes.nii")

    assert command("--log-json", tmp_path / "log.jsonl") == 3
    text = capsys.readouterr().out
    assert "47 done, 3 failed, 0 skipped" in text
    for name, message in (
        ("cut.nii.gz", "Expected a whole NIfTI file in"),
        ("flat.nii", "Expected a 3-D image"),
        ("holes.nii", "Expected finite values. Received: 1 NaN or infinite in"),
    ):
        assert sum(line.startswith(f"failed: {message}") and name in line for line in text.splitlines()) == 1
    maps = _read_maps(tmp_path / "out")
    assert len(maps) == 47

    log = _read_log(tmp_path / "log.jsonl")
    assert [sum(line["status"] == status for line in log) for status in ("done", "failed", "skipped")] == [47, 3, 0]
    first = log[0]
    assert first.keys() == {"case", "status", "seconds", "peak_bytes", "error", "files"}
    files = {kind: str(tmp_path / "out" / f"case_000_{kind}{suffix}") for kind, suffix in (("prediction", ".nii"), ("overlay", ".png"))}
    assert (first["case"], first["error"], first["files"]) == ("case_000", None, files)
    assert first["seconds"] >= 0
    assert first["peak_bytes"] > 2**20
    failed = {line["case"]: line["error"] for line in log if line["status"] == "failed"}
    assert failed.keys() == {"cut", "flat", "holes"}
    assert "1 NaN or infinite" in failed["holes"]
    # The cases that fail count as well.
    assert "1/50 case_000: " in text
    assert "50/50 " in text or log[-1]["status"] == "failed"

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.name != "predictions.jsonl"}
    assert command("--log-json", tmp_path / "log.jsonl") == 3
    assert "0 done, 3 failed, 47 skipped" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in times} == times
    again = _read_log(tmp_path / "log.jsonl")[50:]
    assert [sum(line["status"] == status for line in again) for status in ("done", "failed", "skipped")] == [0, 3, 47]
    assert next(line["files"] for line in again if line["case"] == "case_000") == files

    numbers = []
    for index in range(3):
        before = len(_read_maps(tmp_path / "parts")) if index else 0
        assert command("--shard", f"{index}/3", output="parts") in (0, 3)
        numbers.append(len(_read_maps(tmp_path / "parts")) - before)
        # Another scan moves no scan to another shard.
        assert command("--shard", f"{index}/3", output="parts") in (0, 3)
        assert len(_read_maps(tmp_path / "parts")) == sum(numbers)
    assert min(numbers) > 5
    assert _read_maps(tmp_path / "parts") == maps
    capsys.readouterr()
    assert command(output="parts") == 3
    assert "0 done, 3 failed, 47 skipped" in capsys.readouterr().out


def test_a_shard_without_scans_is_done(command, tmp_path, capsys):
    write_scans(tmp_path, 1)
    statuses = [command("--shard", f"{index}/4") for index in range(4)]
    assert statuses == [0] * 4
    assert capsys.readouterr().out.count("1 done, 0 failed, 0 skipped") == 1


def test_a_path_that_gives_no_case_is_told_by_the_first_shard_alone(command, tmp_path, capsys):
    write_scans(tmp_path, 4)
    assert [command("--shard", f"{index}/2", paths=["notes.txt"]) for index in range(2)] == [3, 0]
    assert capsys.readouterr().out.count("failed: Expected images") == 1
    assert len(_read_maps(tmp_path / "out")) == 4


def test_shards_that_end_at_the_same_time_keep_each_others_scores(command, tmp_path, monkeypatch):
    write_scans(tmp_path, 6)
    labels = ["--labels", tmp_path / "labels"]
    add_scores = predict.add_scores

    def run_another_first(*arguments, **options):
        monkeypatch.setattr(predict, "add_scores", add_scores)
        assert command(*labels, "--shard", "1/2") == 0
        return add_scores(*arguments, **options)

    assert command(*labels, output="whole") == 0
    monkeypatch.setattr(predict, "add_scores", run_another_first)
    assert command(*labels, "--shard", "0/2") == 0
    table = (tmp_path / "out" / "scores.csv").read_text()
    assert table == (tmp_path / "whole" / "scores.csv").read_text()
    assert len(score_tables.read_scores(tmp_path / "out" / "scores.csv")) == 6
    # Scores by other options are not kept beside those of this call.
    first = {score.case for score in score_tables.read_scores(tmp_path / "out" / "scores.csv")}
    assert command(*labels, "--shard", "0/2", "--overlap", "0.25") == 0
    left = {score.case for score in score_tables.read_scores(tmp_path / "out" / "scores.csv")}
    assert 0 < len(left) < len(first)
    assert command(*labels, "--shard", "1/2", "--overlap", "0.25") == 0
    assert {score.case for score in score_tables.read_scores(tmp_path / "out" / "scores.csv")} == first


def test_a_table_of_another_program_is_replaced_only_with_overwrite(command, tmp_path, capsys):
    write_scans(tmp_path, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.csv").write_text("mine\n")
    expect_one_line(capsys, command("--labels", tmp_path / "labels"), "Expected the columns")
    assert (tmp_path / "out" / "scores.csv").read_text() == "mine\n"
    assert command("--labels", tmp_path / "labels", "--overwrite") == 0
    assert len(score_tables.read_scores(tmp_path / "out" / "scores.csv")) == 1


def test_two_processes_predict_into_one_folder(tmp_path):
    write_scans(tmp_path, 12)
    code = "import sys; sys.path[:0] = sys.argv[1:3]; import batch_helpers, predict; batch_helpers.use_threshold(); "
    code += "sys.exit(predict.main(sys.argv[3:]))"
    flags = [str(tmp_path / "scans"), "--model", "x", "--output", str(tmp_path / "out"), "--labels", str(tmp_path / "labels")]
    flags += ["--log-json", str(tmp_path / "log.jsonl")]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(ROOT), str(ROOT / "tests"), *flags, "--shard", f"{index}/2"], stdout=subprocess.PIPE, text=True
        )
        for index in range(2)
    ]
    texts = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], texts
    names = {f"case_{index:03}" for index in range(12)}
    log = _read_log(tmp_path / "log.jsonl")
    assert sorted(line["case"] for line in log) == sorted(names)
    # Each case is noted before and after its files are written.
    record = _read_log(tmp_path / "out" / "predictions.jsonl")
    assert sorted(line["case"] for line in record if "sources" in line) == sorted(names)
    assert len(record) == 24
    assert {score.case for score in score_tables.read_scores(tmp_path / "out" / "scores.csv")} == names
    assert sorted(path.name for path in (tmp_path / "out").glob(".*")) == []


def test_an_interrupted_batch_is_completed_by_the_same_command(command, tmp_path, monkeypatch, capsys):
    write_scans(tmp_path, 4)
    labels = ["--labels", tmp_path / "labels"]
    draw = reports.draw_overlay

    def interrupt(path, *arguments, **options):
        if path.name.startswith("case_002"):
            raise KeyboardInterrupt
        draw(path, *arguments, **options)

    monkeypatch.setattr(reports, "draw_overlay", interrupt)
    assert command(*labels) == 130
    assert {score.case for score in score_tables.read_scores(tmp_path / "out" / "scores.csv")} == {"case_000", "case_001"}
    assert len(_read_maps(tmp_path / "out")) == 3
    monkeypatch.setattr(reports, "draw_overlay", draw)
    capsys.readouterr()
    assert command(*labels) == 0
    assert "2 done, 0 failed, 2 skipped" in capsys.readouterr().out
    assert len(score_tables.read_scores(tmp_path / "out" / "scores.csv")) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--shard", "3/3"), "Expected `shard` i/n with i from 0 to n - 1, such as 0/3, 1/3 and 2/3. Received: 3/3."),
        (("--shard", "a/b"), "Received: a/b."),
        (("--shard", "0/0"), "Received: 0/0."),
        (("--shard=-1/3",), "Received: -1/3."),
        (("--threads", "-2"), "Expected `threads` above 0. Received: -2. Leave it out for the default."),
        (("--batch-size", "-1"), "Expected `batch_size` above 0. Received: -1."),
        (("--max-memory", "nan"), "Expected `max_memory` above 0. Received: nan."),
        (("--log-json", "."), "Expected a file that can be written for `--log-json`. Received: . (Is a directory). Name another."),
        (("--max-memory", "0.001"), "GiB or more, which the program takes with one window of 4x4x4. Received: 0.001 GiB. Give more"),
    ],
)
def test_what_cannot_be_is_one_line(command, tmp_path, capsys, flags, message):
    write_scans(tmp_path, 1)
    expect_one_line(capsys, command(*flags), message)
    assert not (tmp_path / "out").exists()


def test_an_export_has_no_shards(tmp_path, capsys):
    expect_one_line(capsys, predict.main([str(tmp_path), "--export", "onnx", "--shard", "1/2"]), "Received: --shard too, which only a")


def test_help_tells_the_exit_statuses(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "0 all is there; 2 wrong usage, or nothing was done; 3 some scans failed and the others are there; 130 interrupted" in text
