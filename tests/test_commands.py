"""The commands on each data set: train, resume and predict, and one line for bad input to a finished run."""

import csv
import json
import math
import shutil

import cv2
import nibabel as nib
import numpy as np
import pytest
from command_helpers import OWN, SLICES, TINY, copy_spoilt, expect_one_line, read_summary, train_tiny
from helpers import make_fingerprint

import predict
import train
from dataset import DATASETS
from modules.data.files import suffix_of
from modules.data.spec import choose_target, find_cases
from modules.networks import NETWORKS, find_divisor
from modules.predict.bundle import ModelBundle
from modules.run.callbacks import Checkpoint
from modules.run.costs import count_flops
from modules.run.flags import parse_training
from modules.run.plan import make_plan
from modules.run.prepared import build_network
from modules.run.settings import LOSSES, PRESETS


@pytest.mark.parametrize("name", SLICES)
def test_a_run_leaves_everything_behind(runs, phantoms, name):
    run, spec = runs[name], DATASETS[name]
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == pytest.approx([0.75e-3, 0.25e-3, 0], abs=1e-9)  # half a cosine over three epochs: (1 + cos(pi e / 3)) / 2
    for key in ("loss", "val_loss", "accuracy", "val_accuracy", "val_mean_dice", *(f"val_dice_{name}" for name in spec.class_names[1:])):
        assert key in rows[0]
    pictures = {path.name for path in (run / "figures").iterdir()}
    assert {"loss.png", "accuracy.png", "dice.png"} < pictures
    drawn = sum(picture.startswith("comparison_") for picture in pictures)
    assert drawn == {"hipmri": 6, "oasis": 4, "lgg": 2}[name]  # two slices of LGG have a tumour

    record = json.loads((run / "run.json").read_text())
    subject_of = {case.case_id: case.subject_id for case in find_cases(spec, phantoms / name)}
    subjects = [{subject_of[case] for case in record["splits"][split]} for split in ("train", "validate", "test")]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == len(set(subject_of.values()))
    assert f"train {len(subjects[0])} subjects" in " ".join((run / "log.txt").read_text().split())
    with (run / "scores.csv").open() as file:
        scores = list(csv.DictReader(file))
    assert {row["level"] for row in scores} == {"slice", "volume"}
    assert {row["case"] for row in scores if row["level"] == "slice"} == set(record["splits"]["test"])
    assert {row["class"] for row in scores} == set(spec.class_names[1:])
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["weights_sha256"]) == 64
    assert summary["seconds"] > 0
    # A process with these libraries takes more than 100 MB.
    assert summary["peak_bytes"] > 100e6
    measured = json.loads((run / "fingerprint.json").read_text())
    assert [case["case_id"] for case in measured["cases"]] == record["splits"]["train"]
    assert set(measured["pooled"]["classes"]) == set(spec.class_names)
    assert ModelBundle.load(run).provenance["scores"]["volume"].keys() == summary["test"]["volume"].keys()


@pytest.mark.parametrize("name", SLICES)
def test_predictions_lie_on_the_images_own_grid_with_the_sets_own_values(runs, phantoms, tmp_path, name):
    spec, cases = DATASETS[name], find_cases(DATASETS[name], phantoms / name)
    test = [case for case in cases if case.split == "test"] or cases[:4]
    paths = [str(case.image_paths[0]) for case in test]
    labels = str(test[0].label_path.parent)
    argv = [*paths, "--model", str(runs[name]), "--output", str(tmp_path), "--labels", labels, "--probabilities"]
    assert predict.main(argv) == 0
    for case in test:
        source = case.image_paths[0]
        result = tmp_path / f"{case.case_id}_prediction{suffix_of(source)}"
        if suffix_of(source) == ".nii.gz":
            before, after = nib.load(source), nib.load(result)
            assert after.shape == before.shape
            np.testing.assert_array_equal(after.affine, before.affine)
            assert np.issubdtype(after.get_data_dtype(), np.floating) == np.issubdtype(before.get_data_dtype(), np.floating)
            values = set(np.unique(np.asarray(after.dataobj)).tolist())
            probabilities = nib.load(tmp_path / f"{case.case_id}_probabilities.nii.gz").get_fdata()
        else:
            after = cv2.imread(str(result), cv2.IMREAD_UNCHANGED)
            assert after.shape == cv2.imread(str(source), cv2.IMREAD_UNCHANGED).shape[:2]
            values = set(np.unique(after).tolist())
            probabilities = np.load(tmp_path / f"{case.case_id}_probabilities.npz")["probabilities"]
        assert values <= set(spec.label_rule.values)
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-4)
        assert cv2.imread(str(tmp_path / f"{case.case_id}_overlay.png")) is not None


def test_a_whole_data_folder_is_predicted_without_its_labels(runs, phantoms, tmp_path):
    for name in ("oasis", "lgg"):
        root, output = tmp_path / name, tmp_path / name / "here"
        shutil.copytree(phantoms / name, root)
        for _ in range(2):
            assert predict.main([str(root), "--labels", str(root), "--model", str(runs[name]), "--output", str(output)]) == 0
            # The output has the folders of the images.
            found = {path.relative_to(output).parent for path in output.rglob("*_overlay.png")}
            assert found == {case.image_paths[0].parent.relative_to(root) for case in find_cases(DATASETS[name], root)}
            assert len(list(output.rglob("*_overlay.png"))) == 16
            assert not list(output.rglob("seg_*"))


def _spoil_place(image, label):
    """Moves a label by 30 mm, as a program does that writes headers of its own."""
    source = nib.load(label)
    moved = source.affine.copy()
    moved[0, 3] += 30
    nib.save(nib.Nifti1Image(np.asarray(source.dataobj), moved), label)


def test_a_label_that_lies_elsewhere_is_scored_only_where_the_user_says_so(runs, phantoms, tmp_path, capsys):
    root, case = copy_spoilt(phantoms, tmp_path, _spoil_place)
    whole = next(other for other in find_cases(DATASETS["hipmri"], phantoms / "hipmri") if other.case_id == case.case_id)
    flags = [str(case.image_paths[0]), "--model", str(runs["hipmri"]), "--output", str(tmp_path / "out"), "--labels"]
    assert predict.main([*flags, str(whole.label_path.parent)]) == 0
    expected = (tmp_path / "out" / "scores.csv").read_text()
    capsys.readouterr()
    expect_one_line(capsys, predict.main([*flags, str(case.label_path.parent), "--overwrite"]), "with `--ignore-geometry`")
    assert predict.main([*flags, str(case.label_path.parent), "--overwrite", "--ignore-geometry"]) == 0
    assert f"--ignore-geometry: label {case.label_path} is used voxel by voxel. It lies at " in capsys.readouterr().out
    assert (tmp_path / "out" / "scores.csv").read_text() == expected
    # Scores that ignored the geometry are none for a call that does not.
    expect_one_line(capsys, predict.main([*flags, str(case.label_path.parent)]), "with `--ignore-geometry`")
    expect_one_line(capsys, predict.main([*flags[:-1], "--ignore-geometry"]), "Expected --labels beside --ignore-geometry")

    # Training says so too, before it reads the files, and the cache keeps both ways apart.
    places = [*TINY, "--data", str(root), "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    settings = parse_training(["--dataset", "hipmri", *places, "--ignore-geometry"], DATASETS).settings
    assert any(f"label {case.label_path} is used voxel by voxel" in remark for remark in train.prepare(settings).remarks)
    expect_one_line(capsys, train.main(["--dataset", "hipmri", *places]), "with `--ignore-geometry`")


def test_scores_of_predict_equal_those_of_train(runs, phantoms, tmp_path):
    folders = [str(phantoms / "hipmri" / f"keras_slices_{kind}test") for kind in ("", "seg_")]
    assert predict.main([folders[0], "--model", str(runs["hipmri"]), "--output", str(tmp_path), "--labels", folders[1]]) == 0
    assert (tmp_path / "scores.csv").read_text() == (runs["hipmri"] / "scores.csv").read_text()
    # A prediction does not know that the weeks of `case_007` are one person's: the scan's name stands for the subject.
    for folder, end in ((tmp_path, "_week_1"), (runs["hipmri"], "")):
        with (folder / "scored_cases.csv").open(newline="") as file:
            assert {row["subject"] for row in csv.DictReader(file)} == {f"case_007{end}", f"case_010{end}"}


def test_a_slice_of_256x144_with_a_trailing_axis_comes_back_as_such(runs, write_nifti, tmp_path):
    affine = np.diag([-0.8, 0.9, 3.0, 1.0])
    source = write_nifti("slice.nii.gz", np.random.default_rng(0).random((256, 144, 1)), affine)
    assert predict.main([str(source), "--model", str(runs["hipmri"]), "--output", str(tmp_path / "out")]) == 0
    result = nib.load(tmp_path / "out" / "slice_prediction.nii.gz")
    assert (result.shape, result.get_data_dtype()) == ((256, 144, 1), np.uint8)
    np.testing.assert_array_equal(result.affine, nib.load(source).affine)


def test_folders_are_searched_without_labels_and_earlier_output(runs, phantoms, monkeypatch, tmp_path):
    root = tmp_path / "lgg"
    shutil.copytree(phantoms / "lgg", root)
    monkeypatch.chdir(root)
    for _ in range(2):
        assert predict.main([".", "--model", str(runs["lgg"])]) == 0
        assert len(list((root / "predictions").rglob("*_prediction.tif"))) == 16
    names = [path.name for path in (root / "predictions").rglob("*.*") if path.is_file()]
    assert len([name for name in names if name.endswith(("_prediction.tif", "_overlay.png"))]) == 32
    shared = {"predictions.jsonl", "results.json", "volumes.csv", "itksnap_labels.txt", "slicer_labels.ctbl", "report.html"}
    assert set(names) - {name for name in names if name.startswith("TCGA")} == shared
    assert predict.main([str(root / "TCGA_*" / "*_1.tif"), "--model", str(runs["lgg"]), "--output", str(tmp_path / "glob")]) == 0
    assert len(list((tmp_path / "glob").glob("*/*_prediction.tif"))) == 4


def test_without_a_model_the_run_that_finished_last_is_taken(runs, phantoms, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(runs["lgg"].parents[1])
    image = next((phantoms / "lgg").glob("*/*_1.tif"))
    assert predict.main([str(image), "--output", str(tmp_path)]) == 0
    newest = max(runs.values(), key=lambda run: (run / "summary.json").stat().st_mtime)
    assert f"model runs/{newest.name}" in capsys.readouterr().out


def test_a_binary_target_in_half_precision(phantoms, tmp_path, capsys):
    """A binary target has one logit and keeps its value in the file, and the record names the precision."""
    flags = ["--target", "body", "--loss", "bce", "--epochs", "1", "--seed", "7", "--precision", "bfloat16", "--deterministic"]
    run = train_tiny(tmp_path, phantoms / "hipmri", *flags)
    bundle = ModelBundle.load(run, "keras")
    assert bundle.model.output.shape[-1] == 1
    assert (bundle.class_names, bundle.label_rule.output_values) == (("background", "body"), (0, 1))
    assert json.loads((run / "run.json").read_text())["precision"] == "bfloat16"
    assert "deterministic kernels: no cost" in capsys.readouterr().out


def test_a_training_says_what_it_uses_and_warns_of_leaks(phantoms, tmp_path, capsys):
    root = tmp_path / "hipmri"
    shutil.copytree(phantoms / "hipmri", root)
    cases = find_cases(DATASETS["hipmri"], root)
    first, test = (next(case for case in cases if case.split == split) for split in ("train", "test"))
    shutil.copy(first.image_paths[0], test.image_paths[0])
    (root / "notes.png").touch()
    run = train_tiny(tmp_path, root, "--epochs", "1", "--subjects", r"(case_\d+)")
    for text in (capsys.readouterr().out, (run / "log.txt").read_text()):
        assert f"files: {2 * len(cases) + 1} found below {root}, {2 * len(cases)} used, 1 left out" in text
        assert "left out in .: 1 (notes.png)" in text
        assert f"warning: {first.image_paths[0]} (train) and {test.image_paths[0]} (test) are equal to the byte" in text
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    status = train.main(["--dataset", "hipmri", "--data", str(root), *TINY, *places, "--subjects", "(patient)"])
    expect_one_line(capsys, status, "Expected the subject of every case from `subjects`, (patient). Received: none for case_")


def test_the_same_command_gives_the_same_weights(runs, phantoms, tmp_path):
    again = train_tiny(tmp_path, phantoms / "oasis")
    assert read_summary(again) == read_summary(runs["oasis"])
    assert (again / "scores.csv").read_text() == (runs["oasis"] / "scores.csv").read_text()


def _without_times(run):
    with (run / "history.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_s")} for row in csv.DictReader(file)]


def test_an_interrupted_run_resumes_to_the_same_weights(runs, phantoms, tmp_path, monkeypatch, capsys):
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--name", "cut"]
    with monkeypatch.context() as patch:
        write = Checkpoint.on_epoch_end

        def interrupt(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt
            write(self, epoch, logs)

        patch.setattr(Checkpoint, "on_epoch_end", interrupt)
        assert train.main(["--dataset", "oasis", "--data", str(phantoms / "oasis"), *TINY, *OWN["oasis"], *places]) == 130
    cut = tmp_path / "runs" / "cut"
    assert f"go on with: python train.py --resume {cut}" in capsys.readouterr().out
    assert not (cut / "summary.json").exists()
    # The data and the cache have moved meanwhile; the hashes decide.
    shutil.copytree(phantoms / "oasis", tmp_path / "moved")
    assert train.main(["--resume", str(cut), "--data", str(tmp_path / "moved"), "--cache", str(tmp_path / "other")]) == 0
    assert read_summary(cut) == read_summary(runs["oasis"])
    assert (cut / "scores.csv").read_text() == (runs["oasis"] / "scores.csv").read_text()
    assert _without_times(cut) == _without_times(runs["oasis"])


def test_resume_with_other_data_or_backend_is_refused(runs, phantoms, tmp_path, capsys, monkeypatch):
    root, cut = tmp_path / "lgg", tmp_path / "runs" / "cut"
    shutil.copytree(phantoms / "lgg", root)
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--name", "cut"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", _interrupt)
        assert train.main(["--dataset", "lgg", "--data", str(root), *TINY, *places]) == 130
    capsys.readouterr()
    # One more patient would move the split, so that a training patient could be tested.
    newcomer = root / "TCGA_AA_0001_20000101"
    shutil.copytree(next(root.iterdir()), newcomer)
    for path in newcomer.iterdir():
        path.rename(newcomer / f"{newcomer.name}_{path.name.split('_', 4)[4]}")
    expect_one_line(capsys, train.main(["--resume", str(cut)]), f"Expected the data that {cut} began with. Received: TCGA_")
    shutil.rmtree(newcomer)
    record = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps(record | {"backend": "other"}))
    expect_one_line(capsys, train.main(["--resume", str(cut)]), f"Expected the backend of {cut}, other. Received: ")
    (cut / "run.json").write_text("{")
    expect_one_line(capsys, train.main(["--resume", str(cut)]), f"Expected JSON in {cut / 'run.json'}")


def _interrupt(*_):
    raise KeyboardInterrupt


def test_a_run_killed_while_it_was_scored_is_scored_on_resume(runs, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(runs["lgg"], cut)
    for name in ("summary.json", "scores.csv"):
        (cut / name).unlink()
    assert train.main(["--resume", str(cut)]) == 0
    assert read_summary(cut) == read_summary(runs["lgg"])
    for name in ("scores.csv", "history.csv"):
        assert (cut / name).read_text() == (runs["lgg"] / name).read_text()


def test_folds_test_every_subject_once_resume_and_predict_together(phantoms, tmp_path, monkeypatch, capsys):
    flags = ["--folds", "2", "--epochs", "1", "--track", "tensorboard", *OWN["oasis"], "--augment", "none"]
    with monkeypatch.context() as patch:
        fit = train.fit
        patch.setattr(train, "fit", lambda run, *rest: _interrupt() if run.settings.fold == 1 else fit(run, *rest))
        places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--name", "cv"]
        assert train.main(["--dataset", "oasis", "--data", str(phantoms / "oasis"), *TINY, *places, *flags]) == 130
    run = tmp_path / "runs" / "cv"
    assert f"go on with: python train.py --resume {run}\n" in capsys.readouterr().out
    before = (run / "fold_0" / "summary.json").read_text()
    assert train.main(["--resume", str(run)]) == 0
    assert (run / "fold_0" / "summary.json").read_text() == before
    assert list((run / "fold_1" / "tensorboard" / "train").iterdir())

    tested = [json.loads((run / f"fold_{fold}" / "run.json").read_text())["splits"]["test"] for fold in range(2)]
    everyone = [case.case_id for case in find_cases(DATASETS["oasis"], phantoms / "oasis")]
    assert sorted(tested[0] + tested[1]) == sorted(everyone)
    with (run / "scores.csv").open() as file:
        assert {row["case"] for row in csv.DictReader(file) if row["level"] == "slice"} == set(everyone)
    interval = json.loads((run / "summary.json").read_text())["test"]["volume"]["mean"]["dice"]
    assert interval["subjects"] == 4
    assert interval["low"] <= interval["mean"] <= interval["high"]
    assert cv2.imread(str(run / "figures" / "folds.png")) is not None
    assert train.main(["--resume", str(run)]) == 2
    assert "which is finished" in capsys.readouterr().err

    # A fold that is trained alone is the same fold, and the whole run predicts the mean of its folds.
    alone = train_tiny(tmp_path / "alone", phantoms / "oasis", *flags, "--fold", "1")
    own, other = (json.loads((folder / "summary.json").read_text())["weights_sha256"] for folder in (alone, run / "fold_1"))
    assert own == other
    image = str(next((phantoms / "oasis" / "keras_png_slices_test").iterdir()))
    models = {"whole": [str(run)], "parts": [str(run / "fold_0"), str(run / "fold_1")]}
    for name, runs in models.items():
        assert predict.main([image, "--model", *runs, "--output", str(tmp_path / name), "--probabilities"]) == 0
    files = [next((tmp_path / name).glob("*_probabilities.npz")) for name in models]
    first, second = (np.load(file)["probabilities"] for file in files)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"demo", "demo3d"}))
def test_every_preset_builds_its_network(name):
    settings = parse_training(["--preset", name], DATASETS).settings
    spec = choose_target(DATASETS[settings.dataset], settings.target)
    # If the size follows from the scans, any size that divides will do here.
    plan = make_plan(settings, spec, make_fingerprint([(64,) * spec.spatial_dims]))
    network = build_network(plan.resolve(settings), spec, plan)
    assert network.input.shape == (None, *plan.window.shape, len(spec.channels))
    assert all(size % find_divisor(plan.network) == 0 for size in plan.window.shape)
    assert network.output.shape[-1] == (1 if spec.num_classes == 2 else spec.num_classes)
    # Each voxel of the window has a hundred operations or more.
    assert count_flops(network) > 100 * math.prod(plan.window.shape)


def test_demo_draws_its_own_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from modules import phantom

    assert phantom.write_oasis(tmp_path / "data" / "oasis-phantom", subjects=(1, 1, 1), slices=2).is_dir()
    assert train.main(["--dataset", "oasis", "--demo", *TINY, "--name", "demo"]) == 0
    assert (tmp_path / "runs" / "demo" / "summary.json").is_file()


def test_without_arguments_it_says_what_there_is(tmp_path, monkeypatch, capsys, phantoms):
    monkeypatch.setenv("MRI_DATA", str(phantoms))
    assert train.main([]) == 0
    text = capsys.readouterr().out
    for name in DATASETS:
        assert f"found in {phantoms / name}" in text
    assert "Next: python train.py --dataset hipmri" in text
    assert train.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert listed == text
    for name in (*NETWORKS, *LOSSES, *PRESETS):
        assert name in listed
    monkeypatch.setenv("MRI_DATA", str(tmp_path))
    train.main([])
    assert "--demo" in capsys.readouterr().out


def test_a_run_is_never_overwritten_and_a_finished_one_not_resumed(runs, phantoms, capsys):
    run = runs["oasis"]
    flags = ["--dataset", "oasis", "--data", str(phantoms / "oasis"), "--runs", str(run.parent), "--name", run.name]
    expect_one_line(capsys, train.main(flags), "Expected a new name for the run")
    expect_one_line(capsys, train.main(["--resume", str(run)]), "which is finished")


def test_bad_input_of_predict(runs, phantoms, tmp_path, capsys, write_nifti, write_picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grey = str(write_picture("grey.png", np.zeros((256, 256), np.uint8)))
    scan = str(write_nifti("scan.nii.gz", np.zeros((16, 16, 16), np.float32)))
    empty = tmp_path / "empty.nii.gz"
    empty.touch()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "labels").mkdir()
    model = ["--model", str(runs["oasis"])]
    deep = str(write_picture("deep.png", np.full((256, 256), 4000, np.uint16)))
    bad = {
        (deep, *model): "Expected intensities up to 255. Received: 4000 in",
        (grey,): "Expected a finished run in runs/. Received: none",
        (grey, "--model", str(runs["lgg"])): "Expected 3 channel(s) (pre-contrast, FLAIR, post-contrast) for this model. Received: 1 in",
        (scan, *model): "Expected a 2-D image for this model. Received: 3-D",
        (str(empty), *model): "an empty file",
        ("absent.png", *model): "Received: none there",
        (str(tmp_path / "notes.txt"), *model): "Expected an image (.nii",
        (grey, "--model", "nowhere"): "Expected a trained model in nowhere",
        (grey, *model, "--labels", "labels"): "Expected a label for",
        (grey, *model, "--output", "notes.txt"): "Expected a folder for the results at notes.txt. Received: a file, notes.txt. Choose",
        (grey, *model, "--output", "notes.txt/a"): "Expected a folder for the results at notes.txt/a. Received: a file, ",
        (grey, *model, "--fast"): "unrecognized arguments: --fast",
    }
    for argv, message in bad.items():
        expect_one_line(capsys, predict.main(list(argv)), message)
    assert not list(tmp_path.glob("predictions/*"))
