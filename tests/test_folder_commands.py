"""A folder of the user's own: trained, resumed, verified, merged and predicted without a word about its layout."""

import json
import shutil

import cv2
import nibabel as nib
import numpy as np
import pytest
from command_helpers import expect_one_line
from folder_helpers import write

import dataset
import predict
import train
from dataset import DATASETS
from modules.data.files import SUFFIXES
from modules.data.folder_set import Wishes
from modules.data.spec import find_cases, load_spec
from modules.predict.bundle import ModelBundle
from modules.run.flags import parse_training

QUICK = [*("--epochs", "1", "--base-filters", "2", "--levels", "1", "--batch-size", "4", "--postprocess", "none"), "--optimizer", "adam"]


def _flags(folder, name):
    return [*QUICK, "--runs", str(folder / "runs"), "--cache", str(folder / "cache"), "--name", name]


def _draw_pictures(root, number=8, size=32):
    """Draws bright squares as a student has them: `images/bild 0.png` in colour, `masks/bild 0.PNG` of 0 and 255."""
    rng = np.random.default_rng(0)
    for index in range(number):
        picture, mask = rng.integers(0, 60, (size, size, 3)).astype(np.uint8), np.zeros((size, size), np.uint8)
        row, column = rng.integers(2, size // 2, 2)
        mask[row : row + 12, column : column + 12] = 255
        picture[mask > 0] += 120
        write(root / "images" / f"bild {index}.png", picture)
        write(root / "masks" / f"bild {index}.PNG", mask)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A run on a folder of pictures: (folder with runs, data, run)."""
    folder = tmp_path_factory.mktemp("pictures")
    data = _draw_pictures(folder / "Meine Däten")
    assert train.main(["--dataset", "folder", "--data", str(data), *_flags(folder, "run")]) == 0
    return folder, data, folder / "runs" / "run"


def test_a_folder_of_pictures_is_trained_and_says_what_was_found(pictures):
    _, data, run = pictures
    record = json.loads((run / "run.json").read_text())
    assert {name: value for name, value in record["data_set"].items() if name != "found"} == {
        "spatial_dims": 2,
        "channels": ["red", "green", "blue"],
        "class_names": ["background", "class 1"],
        "label_values": {"0": 0, "255": 1},
        "regions": [],
    }
    found = record["data_set"]["found"]
    assert found[0].split("  ")[-1].strip() == "images/bild 0.png with masks/bild 0.PNG, ..."
    assert [line.split()[:4] for line in found if "255" in line] == [["data", "255", "class", "1"]]
    assert found[-1].startswith("warning: each picture counts as a person of its own.")
    assert sum(map(len, record["splits"].values())) == 8
    bundle = ModelBundle.load(run)
    assert (bundle.class_names, bundle.label_rule.output_values, bundle.preprocessing.scale) == (("background", "class 1"), (0, 255), 255)
    assert set(json.loads((run / "data.json").read_text())) == {
        f"{folder}/{path.name}" for folder in ("images", "masks") for path in (data / folder).iterdir()
    }


def test_pictures_are_predicted_and_scored_as_they_were_tested(pictures, tmp_path):
    _, data, run = pictures
    (test,) = json.loads((run / "run.json").read_text())["splits"]["test"]
    flags = [str(data), "--model", str(run), "--labels", str(data / "masks"), "--output", str(tmp_path)]
    assert predict.main(flags) == 0
    prediction = cv2.imdecode(np.fromfile(tmp_path / "images" / f"{test}_prediction.png", np.uint8), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(prediction)) <= {0, 255}
    rows = {line.split(",", 2)[1]: line for line in (tmp_path / "scores.csv").read_text().splitlines()}
    assert len(rows) == 9
    (own,) = [line for line in (run / "scores.csv").read_text().splitlines() if test in line]
    assert rows[f"images/{test}"] == own.replace(test, f"images/{test}")


def test_a_run_on_a_folder_is_verified_and_resumed_without_its_flags(pictures, tmp_path, monkeypatch, capsys):
    _, data, run = pictures
    assert train.main(["--verify", str(run)]) == 0
    copy = tmp_path / "moved"
    shutil.copytree(data, copy)
    (copy / "labels.csv").write_text("255,square\n")
    table = tmp_path / "classes.csv"
    table.write_text("value,name\n255,square\n")
    flags = ["--dataset", "folder", "--data", str(copy), "--classes", str(table), "--subjects", r"(\d+)", *_flags(tmp_path, "stopped")]
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert train.main(flags) == 130
    stopped = tmp_path / "runs" / "stopped"
    assert json.loads((stopped / "data.json").read_text())["classes.csv"][0] == "table"
    # The table may have moved, but it must say the same.
    shutil.move(table, tmp_path / "other.csv")
    capsys.readouterr()
    expect_one_line(capsys, train.main(["--resume", str(stopped)]), f"Expected a table in {table}. Received: no such file")
    expect_one_line(capsys, train.main(["--resume", str(stopped), "--classes", "square"]), "Expected `classes`")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "other.csv", tmp_path / "b" / "classes.csv")
    (tmp_path / "b" / "classes.csv").write_text("value,name\n255,round\n")
    resume = ["--resume", str(stopped), "--classes", str(tmp_path / "b" / "classes.csv")]
    expect_one_line(capsys, train.main(resume), "Received: classes.csv changed.")
    shutil.copy(tmp_path / "other.csv", tmp_path / "b" / "classes.csv")
    assert train.main(resume) == 0
    assert ModelBundle.load(stopped).class_names == ("background", "square")


def test_a_model_begins_another_training_of_its_own_rank(pictures):
    _, data, run = pictures
    settings = parse_training(["--dataset", "folder", "--data", str(data), "--init", str(run)], DATASETS).settings
    assert (settings.network, settings.mode, settings.plane) == ("unet2d", "", "")


def _draw_volumes(root, number=6):
    """Draws boxes in a folder for each case, `p0/t1.nii.gz`, `p0/t2.nii.gz` and `p0/seg.nii.gz`."""
    rng = np.random.default_rng(1)
    for index in range(number):
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:9, 4:12, 4:12], label[9:12, 4:12, 4:12] = 2, 4
        for name in ("t1", "t2"):
            write(root / f"p{index}" / f"{name}.nii.gz", (rng.normal(100, 5, label.shape) + 40 * label).astype(np.float32))
        write(root / f"p{index}" / "seg.nii.gz", label)
    return root


def test_folds_on_a_table_of_volumes_are_merged_and_predicted(tmp_path, capsys):
    data = _draw_volumes(tmp_path / "data")
    rows = [f"{data}/p{index}/t1.nii.gz,p{index}/t2.nii.gz,p{index}/seg.nii.gz,s{index}" for index in range(6)]
    table = data / "cases.csv"
    table.write_text("\n".join(["image_t1,image_t2,label,subject", *rows]))
    flags = ["--dataset", "folder", "--cases", str(table), "--classes", "left", "right", "--shape", "16", "16", "--mode", "slice"]
    flags += ["--folds", "2"]
    for fold in ("0", "1"):
        assert train.main([*flags, *_flags(tmp_path, f"f{fold}"), "--fold", fold]) == 0
    runs = [str(tmp_path / "runs" / f"f{fold}") for fold in "01"]
    assert "cases.csv" in json.loads((tmp_path / "runs/f0/data.json").read_text())
    assert train.main(["--merge", *runs, "--name", "whole", "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]) == 0
    assert len((tmp_path / "runs/whole/scores.csv").read_text().splitlines()) == 1 + 6 * 2
    # A folder for each case is predicted as one, with the model's own names of channels.
    assert predict.main([str(data), "--model", runs[0], "--labels", str(data), "--output", str(tmp_path / "out")]) == 0
    assert "6 case(s)" in capsys.readouterr().out
    result = nib.load(tmp_path / "out" / "p3" / "p3_prediction.nii.gz")
    assert set(np.unique(np.asarray(result.dataobj))) <= {0, 2, 4}
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 1 + 6 * 2
    # An altered row is told.
    table.write_text(table.read_text().replace(",s5", ",s4"))
    capsys.readouterr()
    expect_one_line(capsys, train.main(["--verify", runs[0]]), "Expected the data that")


def test_ct_is_planned_in_hounsfield_units(tmp_path, capsys):
    data = _draw_volumes(tmp_path / "data", 4)
    for path in data.rglob("t2.nii.gz"):
        path.unlink()
    for path in data.rglob("t1.nii.gz"):
        write(path, np.asarray(nib.load(path).dataobj) - 1000)
    flags = ["--dataset", "folder", "--data", str(data), "--plan-only", *_flags(tmp_path, "x"), "--shape", "16", "16", "16"]
    assert train.main([*flags, "--modality", "CT"]) == 0
    assert "plan  intensity ct " in capsys.readouterr().out
    assert train.main(flags) == 0
    text = capsys.readouterr().out
    assert "plan  intensity zscore" in text
    assert "as Hounsfield units do. If the scans are CT, give --modality CT." in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--dataset", "msd"],
            "dataset.json, which describes the data set. Received: nothing there. 8 pair(s) such as images/bild 0.png with",
        ),
        (
            ["--dataset", "oasis"],
            "keras_png_slices_train. Received: none. 8 pair(s) such as images/bild 0.png with masks/bild 0.PNG are there:",
        ),
        (["--dataset", "oasis", "--modality", "MR"], "Expected --dataset folder beside --modality. Received: --dataset oasis"),
        (["--dataset", "folder", "--demo"], "Expected either `demo` or `data`"),
        (["--dataset", "folder", "--classes", "a", "b"], "Expected a name in `classes` for each of the 1 value(s) 255 of the labels"),
        (["--dataset", "folder", "--modality", "CT"], "Expected one channel for --modality CT. Received: 3"),
        (["--dataset", "folder", "--modality", "PET"], "invalid choice: 'PET'"),
        (["--dataset", "folder", "--cases", "nowhere.csv"], "Expected a table in nowhere.csv"),
    ],
)
def test_wrong_flags_are_one_line_and_hints_are_true(pictures, tmp_path, capsys, flags, message):
    _, data, _ = pictures
    expect_one_line(capsys, train.main([*flags, "--data", str(data), *_flags(tmp_path, "x")]), message)


def test_a_hint_is_given_only_where_it_helps(tmp_path, capsys):
    write(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "b.jpg").touch()
    flags = ["--data", str(tmp_path), *_flags(tmp_path, "x")]
    expect_one_line(capsys, train.main(["--dataset", "msd", *flags]), "Received: nothing there. Give its folder with `--data`.")
    message = "Received: no pair: 1 image(s) without a label of their name, such as a.png; also 1 .jpg, which are not read. Convert .jpg"
    expect_one_line(capsys, train.main(["--dataset", "folder", *flags]), message)
    (tmp_path / "a.png").unlink()
    message = f"Received: no image ({', '.join(SUFFIXES)} or DICOM), but 1 .jpg. Convert .jpg to one of these."
    expect_one_line(capsys, train.main(["--dataset", "folder", *flags]), message)


def test_a_folder_is_shown_with_its_flags(pictures, tmp_path, capsys):
    _, data, _ = pictures
    output = tmp_path / "a.png"
    assert dataset.main(["show", "--dataset", "folder", "--data", str(data), "--classes", "square", "--output", str(output)]) == 0
    assert "255 square" in capsys.readouterr().out
    assert output.is_file()
    assert not (tmp_path / "cache").exists()
    status = dataset.main(["show", "--dataset", "oasis", "--classes", "square", "--output", str(output)])
    expect_one_line(capsys, status, "Expected --dataset folder beside --classes")


def test_the_phantom_is_a_folder_of_images_and_labels(phantoms):
    spec = load_spec(DATASETS["folder"], phantoms / "folder", Wishes(modality="MR"))
    assert (spec.channels, spec.class_names, spec.spatial_dims) == (("MR",), ("background", "anterior", "posterior"), 3)
    cases = find_cases(spec, phantoms / "folder")
    assert [case.case_id for case in cases] == [case.subject_id for case in cases] == ["p01", "p02", "p03", "p04"]
