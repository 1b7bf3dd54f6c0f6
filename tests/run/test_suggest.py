"""`dataset.py suggest`: its files, what it leaves out and refuses, and the commands of docs/few_labels.md one after the other."""

import csv
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_helpers import expect_one_line

import dataset
import train
from modules import phantom
from modules.data.case import Case
from modules.data.formats import read_file
from modules.run.folder import RunFolder
from modules.run.suggest import _leave_out_namesakes, _warn_of_held_out

ROOT = Path(__file__).parents[2]
TRAINING = "keras_slices_train"


def _read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Sixteen slices that nobody has labelled, of other pelves than the runs'; read only."""
    root = phantom.write_hipmri(tmp_path_factory.mktemp("new") / "hipmri", subjects=(3, 1, 1), slices=4, seed=7)
    folder = root.parent / "scans"
    folder.mkdir()
    for path in (root / TRAINING).iterdir():
        shutil.copy(path, folder / path.name.replace("case_", "new_"))
    return folder


def test_the_commands_of_the_documentation_run(runs, scans, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/first").symlink_to(runs["hipmri"])
    # Scores and pictures of a run are tested elsewhere. The shared run above has its own, for other tests too.
    monkeypatch.setattr(train, "evaluate", lambda *_: None)
    Path("scans").symlink_to(scans)
    commands = re.search(r"```bash\n(.*?)```", (ROOT / "docs" / "few_labels.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    for line in commands.splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "mv":
            for path in Path().glob(arguments[0]):
                shutil.move(path, arguments[1])
        elif program == "python":
            tiny = ["--epochs", "1", "--batch-size", "4", "--shape", "64", "64"] if arguments[0] == "train.py" else []
            assert {"dataset.py": dataset, "train.py": train}[arguments[0]].main([*arguments[1:], *tiny]) == 0, line
    said = capsys.readouterr().out
    assert "10 of 16 scan(s) to label: correct round1/predictions" in said
    # The second model knows the ten, the others are left.
    assert "10 scan(s) are left out: the model's run has them already" in said
    assert "6 of 6 scan(s) to label: correct round2/predictions" in said
    assert "init: 34 of 34 weights are those of runs/first" in said

    ranked = _read(Path("round1/suggestions.csv"))
    assert sorted(row["case"] for row in ranked) == sorted(path.name.removesuffix(".nii.gz") for path in scans.iterdir())
    assert [row["rank"] for row in ranked] == [str(place) for place in range(1, 17)]
    doubts = [float(row["doubt"]) for row in ranked]
    assert doubts[0] == max(doubts)
    assert doubts[10:] == sorted(doubts[10:], reverse=True)
    assert [bool(row["prediction"]) for row in ranked] == [True] * 10 + [False] * 6
    assert [bool(row["distance"]) for row in ranked] == [False] + [True] * 9 + [False] * 6

    rows = _read(Path("round1/cases.csv"))
    first, second = (RunFolder(Path("runs") / name).read_record()["splits"] for name in ("first", "second"))
    assert {split: len(names) for split, names in second.items()} == {"train": len(first["train"]) + 10, "validate": 4, "test": 8}
    assert [row["label"] for row in rows[-10:]] == [f"labels/{row['case']}.nii.gz" for row in ranked[:10]]
    assert {row["split"] for row in rows[-10:]} == {"train"}
    # The second table has the scans of the first.
    assert len(_read(Path("round2/cases.csv"))) == len(rows) + 6
    label = read_file(Path("round1") / rows[-1]["label"])
    assert set(np.unique(label.array)) <= {0, 1, 2, 3, 4, 5}
    assert label.array.shape[:2] == read_file(Path(rows[-1]["image"])).array.shape[:2]


def test_a_bundle_alone_ranks_and_a_label_that_nobody_corrected_is_refused(runs, scans, tmp_path, capsys):
    shutil.copytree(runs["hipmri"] / "bundle", tmp_path / "model")
    few = sorted(scans.iterdir())[:3]
    output = tmp_path / "out"
    command = ["suggest", str(tmp_path / "model"), *map(str, few), "--number", "2", "--output", str(output)]
    assert dataset.main(command) == 0
    said = capsys.readouterr().out
    assert f"the labelled scans of {tmp_path / 'model'} are not known" in said
    rows = _read(output / "cases.csv")
    assert [row["split"] for row in rows] == ["", ""]
    assert (output / "labels.csv").read_text() == "index,name\n0,background\n1,body\n2,bone\n3,bladder\n4,rectum\n5,prostate\n"
    assert sorted(path.name for path in (output / "predictions").iterdir()) == sorted(
        [*(f"{row['case']}.nii.gz" for row in rows), "itksnap_labels.txt", "slicer_labels.ctbl"]
    )
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    status = train.main(["--dataset", "folder", "--cases", str(output / "cases.csv"), *places])
    expect_one_line(capsys, status, f"Expected the label {output / rows[0]['label']}, as row 2 of {output / 'cases.csv'} says.")
    # What a person corrected there must not be replaced.
    expect_one_line(capsys, dataset.main(command), f"Expected a new folder for `--output`. Received: {output}, which is there already.")


def test_nothing_is_suggested_that_the_run_has(runs, phantoms, tmp_path, capsys):
    command = ["suggest", str(runs["hipmri"]), "--output", str(tmp_path / "out")]
    for split in ("train", "test"):
        folder = phantoms / "hipmri" / f"keras_slices_{split}"
        copies = shutil.copytree(folder, tmp_path / split)
        for place in (folder, copies):
            expect_one_line(capsys, dataset.main([*command, str(place)]), "Expected unlabelled scans at ")
    expect_one_line(capsys, dataset.main([*command, str(tmp_path / "none")]), f"at {tmp_path / 'none'}. Received: none there.")
    expect_one_line(capsys, dataset.main([*command, ".", "--number", "0"]), "Expected `--number` of 1 or more. Received: 0.")
    expect_one_line(capsys, dataset.main(["suggest", str(tmp_path / "no"), "."]), f"Expected a trained model in {tmp_path / 'no'}.")
    assert not (tmp_path / "out").exists()


def test_namesakes_are_left_out_and_scans_of_tested_subjects_are_named(caplog):
    new = [Case(name, name, (Path(f"{name}.nii.gz"),)) for name in ("case_1_week_9", "case_12_week_1", "old", "p")]
    assert _leave_out_namesakes(new, {"old"}) == [new[0], new[1], new[3]]
    with pytest.raises(ValueError, match=r"Expected scans of other names than the labelled ones. Received: p.nii.gz. Rename them."):
        _leave_out_namesakes(new[3:], {"p"})
    caplog.clear()
    _warn_of_held_out(new, {"case_1": "test", "p": "validate"})
    assert [line.partition(":")[0] for line in caplog.messages] == [
        "case_1_week_9.nii.gz looks like a scan of case_1, a subject of the test split",
        "p.nii.gz looks like a scan of p, a subject of the validate split",
    ]


def test_a_scan_that_cannot_be_read_ends_no_other(runs, scans, tmp_path, capsys):
    one = shutil.copy(min(scans.iterdir()), tmp_path / "fine.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes(b"no scan")
    assert dataset.main(["suggest", str(runs["hipmri"]), str(one), str(tmp_path / "bad.nii.gz"), "--output", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "left out: " in captured.out + captured.err
    assert [row["case"] for row in _read(tmp_path / "out" / "suggestions.csv")] == ["fine"]
