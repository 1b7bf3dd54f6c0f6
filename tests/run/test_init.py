"""Trainings that begin from a trained model: its weights, the settings that follow it, the scans that it has seen, and no second look."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from command_helpers import TINY, expect_one_line

import train
from dataset import DATASETS
from modules.data.case import Case
from modules.predict.bundle import ModelBundle, read_description, write_description
from modules.run.flags import parse_training
from modules.run.folder import RunFolder, write_json
from modules.run.init import adopt_settings
from modules.run.proof import hash_weights
from modules.run.seen import describe_seen, read_seen, write_seen
from modules.run.settings import Settings

SMALL = ["--epochs", "1", "--batch-size", "4", "--shape", "64", "64"]


@pytest.fixture
def prepare(phantoms, tmp_path, monkeypatch):
    """Prepares a training up to its first step, and returns it."""

    def run(dataset, source, *flags):
        held = []
        monkeypatch.setattr(train, "carry_out", lambda prepared, run, environment, **_: held.append(prepared))
        places = ["--data", str(phantoms / dataset), "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
        assert train.main(["--dataset", dataset, "--init", str(source), *SMALL, *places, *flags]) == 0
        return held[0]

    return run


def _find(network, name):
    return [np.array(weight) for weight in next(layer for layer in network.layers if layer.name == name).weights]


def test_the_same_task_begins_with_the_weights_of_the_bundle(runs, prepare):
    prepared = prepare("hipmri", runs["hipmri"], "--name", "a")
    bundle = ModelBundle.load(runs["hipmri"], "keras")
    assert hash_weights(prepared.network) == hash_weights(bundle.model)
    assert [line for line in prepared.describe() if "init" in line] == [
        f"init: 34 of 34 weights are those of {runs['hipmri']} (SHA-256 {prepared.begun.identity:.16}...)"
    ]
    # Its splits are those of the first run, so that nothing leaks.
    assert prepared.record_init()["init"] == {
        **{"path": str(runs["hipmri"]), "bundle_sha256": prepared.begun.identity, "weights_taken": 34, "weights": 34},
        "seen_subjects": {"validate": 0, "test": 0},
    }
    settings = prepared.settings
    options = {"base_filters": 2, "levels": 1, "norm": "batch", "dropout": 0.2}
    assert (settings.network, dict(settings.network_options), settings.learning_rate) == ("unet2d", options, 2e-4)


def test_other_classes_keep_the_logits_of_their_names(runs, prepare):
    prepared = prepare("hipmri", runs["hipmri"], "--target", "bladder")
    kernel, bias = _find(ModelBundle.load(runs["hipmri"], "keras").model, "logits")
    mine = _find(prepared.network, "logits")
    # Bladder is class 3.
    np.testing.assert_array_equal(mine[0][..., 0], kernel[..., 3] - kernel[..., 0])
    np.testing.assert_array_equal(mine[1][0], bias[3] - bias[0])
    assert "init: classes: background, bladder as there" in prepared.describe()


def test_other_channels_take_the_mean_and_other_classes_are_random(runs, prepare):
    prepared = prepare("hipmri", runs["lgg"])
    source = ModelBundle.load(runs["lgg"], "keras").model
    first, mine = (np.array(model.weights[0]) for model in (source, prepared.network))
    assert (first.shape, mine.shape) == ((3, 3, 3, 2), (3, 3, 1, 2))
    np.testing.assert_allclose(mine[:, :, 0], 3 * first.mean(axis=2), rtol=1e-6)
    np.testing.assert_array_equal(np.array(prepared.network.weights[5]), np.array(source.weights[5]))
    lines = prepared.describe()
    assert "init: classes: background as there; body, bone, bladder, rectum, prostate at random" in lines
    assert "init: channels: T2 as the mean of all" in lines
    # The model's way of scaling intensities is taken too.
    assert prepared.plan.preprocessing.intensity == ModelBundle.load(runs["lgg"], "keras").preprocessing.intensity
    assert not any("intensity" in line for line in lines)


def test_hounsfield_units_are_scaled_as_the_model_was_trained(runs, prepare, tmp_path):
    shutil.copytree(runs["hipmri"] / "bundle", tmp_path / "ct")
    description = read_description(tmp_path / "ct")
    numbers = {"intensity": "ct", "clip": [-100.0, 200.0], "mean": 50.0, "std": 40.0}
    write_description(tmp_path / "ct", description | {"preprocessing": description["preprocessing"] | numbers})
    prepared = prepare("hipmri", tmp_path / "ct")
    found = prepared.plan.preprocessing
    assert (found.intensity, found.clip, found.mean, found.std) == ("ct", (-100.0, 200.0), 50.0, 40.0)
    assert not any("intensity" in line for line in prepared.describe())
    # A model without such numbers leaves them to the training scans.
    found = prepare("hipmri", runs["hipmri"], "--intensity", "ct").plan.preprocessing
    assert found.intensity == "ct"
    assert found.clip != (-100.0, 200.0)


def test_a_model_of_which_nothing_fits_is_refused_before_a_folder_is_made(runs, phantoms, tmp_path, capsys):
    places = ["--data", str(phantoms / "hipmri"), "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    source = runs["hipmri"]
    for flags, message in (
        (
            ["--base-filters", "4"],
            f"Expected base_filters 2 of the model in {source}, so that its weights fit. Received: base_filters 4. Le",
        ),
        (["--network", "segresnet"], f"Expected network 'unet2d', as the model in {source / 'bundle'} has it. Received: 'segresnet'."),
        (["--init", str(tmp_path)], f"Expected a trained model in {tmp_path}. Received: no bundle.json there. Give a run or a bundle"),
    ):
        status = train.main(["--dataset", "hipmri", "--init", str(source), *SMALL, *places, *flags])
        expect_one_line(capsys, status, message)
    (tmp_path / "fold_0").mkdir()
    status = train.main(["--dataset", "hipmri", "--init", str(tmp_path)])
    expect_one_line(capsys, status, f"Expected a trained model in {tmp_path}. Received: no bundle.json there. Name one of fold_0.")
    status = train.main(["--dataset", "ibsr18", "--init", str(source), "--mode", "patch"])
    expect_one_line(capsys, status, "Expected samples of 2 dimensions, which the model in ")
    assert not (tmp_path / "runs").exists()


def test_subjects_that_the_model_has_seen_are_named(runs, prepare, tmp_path):
    first, other = RunFolder(runs["lgg"]).read_record()["splits"], prepare("lgg", runs["lgg"], "--seed", "7")
    subject = {split: {case.subject_id for case in cases} for split, cases in other.splits.items()}
    trained = {case.subject_id for cases in other.splits.values() for case in cases if case.case_id in first["train"]}
    leaked = {split: sorted(subject[split] & trained) for split in ("validate", "test")}
    assert leaked["test"]
    lines = [line for line in other.describe() if "--init" in line]
    for split, names in leaked.items():
        text = f"warning: 1 of 1 {split} subjects trained the model of --init, {runs['lgg']}: {', '.join(names)}. So {split} scores are not"
        assert any(line.startswith(text) for line in lines) == bool(names)
    assert other.record_init()["init"]["seen_subjects"]["test"] == 1
    # A bundle alone knows it too, and tells it to what is trained from it.
    shutil.copytree(runs["lgg"] / "bundle", tmp_path / "alone")
    alone = prepare("lgg", tmp_path / "alone", "--seed", "7")
    assert alone.find_seen() == other.find_seen()
    grandchild = read_seen(alone.make_bundle({}).provenance, None, "")
    assert set(grandchild.files["train"]) >= set(alone.begun.seen.files["train"])
    assert len(grandchild.files["train"]) == 4 * len(trained | subject["train"])


def test_an_older_bundle_tells_by_its_run_or_not_at_all(runs, prepare, tmp_path):
    shutil.copytree(runs["lgg"], tmp_path / "old")
    description = read_description(tmp_path / "old" / "bundle")
    for name in ("network", "network_options", "seen"):
        del description["provenance"][name]
    write_description(tmp_path / "old" / "bundle", description)
    prepared = prepare("lgg", tmp_path / "old", "--seed", "7")
    assert prepared.settings.network_options["base_filters"] == 2
    assert prepared.record_init()["init"]["seen_subjects"]["test"] == 1
    shutil.move(tmp_path / "old" / "bundle", tmp_path / "alone")
    chosen = adopt_settings(tmp_path / "alone", DATASETS["lgg"], {})
    assert "network" not in chosen
    prepared = prepare("lgg", tmp_path / "alone", *TINY[2:6])
    assert prepared.record_init()["init"]["seen_subjects"] is None
    assert any(line.startswith(f"warning: nothing tells which scans {tmp_path / 'alone'} has seen") for line in prepared.describe())


def test_a_file_of_several_subjects_tells_nothing():
    def make(subject, digest):
        return Case(f"{subject}-1", subject, (subject,), None), SimpleNamespace(sources_sha256=[digest * 64, "e" * 64])

    train_set, test_set = [make("p1", "a"), make("p2", "b")], [make("p3", "c"), make("p4", "b")]
    splits = {"train": [case for case, _ in train_set], "validate": [], "test": [case for case, _ in test_set]}
    prepared = {"train": [ready for _, ready in train_set], "validate": [], "test": [ready for _, ready in test_set]}
    provenance = {"seen": {"train": f"{'b' * 12} {'c' * 12}", "validate": "a" * 12}}
    seen = read_seen(provenance, None, "")
    found = seen.find(splits, prepared)
    assert found == {"validate": {"train": [], "validate": []}, "test": {"train": ["p3"], "validate": []}}
    (line,) = describe_seen(found, splits, "m")
    assert line.startswith("warning: 1 of 2 test subjects trained the model of --init, m: p3. So test scores are not of unseen scans.")
    # Labels are no scans: many are alike.
    assert write_seen(splits, prepared, seen) == {"train": f"{'a' * 12} {'b' * 12} {'c' * 12}", "validate": "a" * 12}


def test_a_run_killed_before_its_first_checkpoint_needs_only_its_own_copy(runs, phantoms, tmp_path, monkeypatch, capsys):
    source = tmp_path / "source"
    shutil.copytree(runs["hipmri"] / "bundle", source)
    places = ["--data", str(phantoms / "hipmri"), "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    command = ["--dataset", "hipmri", "--init", str(source), *SMALL, *places]
    alone, killed = (tmp_path / "runs" / name for name in ("alone", "killed"))
    assert train.main([*command, "--name", "alone"]) == 0

    with monkeypatch.context() as patched:
        patched.setattr(train, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert train.main([*command, "--name", "killed"]) == 130
    assert not (killed / "checkpoint").exists()
    shutil.rmtree(source)
    for run in (alone, killed):
        assert sorted(path.name for path in (run / "init").iterdir()) == ["bundle.json", "model.keras"]
    assert train.main(["--resume", str(killed)]) == 0
    for name in ("proof.json", "scores.csv"):
        assert (killed / name).read_bytes() == (alone / name).read_bytes()
    summaries = [json.loads((run / "summary.json").read_text()) for run in (alone, killed)]
    for name in ("weights_sha256", "bundle_weights_sha256", "init"):
        assert summaries[0][name] == summaries[1][name]
    assert train.main(["--verify", str(killed)]) == 0

    (killed / "summary.json").unlink()
    capsys.readouterr()
    for spoil, message in (
        (lambda: shutil.copy(alone / "bundle" / "bundle.json", killed / "init"), "Expected "),
        (lambda: (killed / "init").rename(killed / "other"), f"Expected the model that {killed} began from in {killed / 'init'}."),
    ):
        spoil()
        status = train.main(["--resume", str(killed)])
        assert status == 2
        assert message in capsys.readouterr().err
    for file in (alone / "bundle").glob("*.*"):
        (killed / "init").mkdir(exist_ok=True)
        shutil.copy(file, killed / "init")
    assert train.main(["--verify", str(killed)]) == 2
    assert f"Expected the initial model of {killed}, " in capsys.readouterr().err


def test_folds_share_one_copy_of_the_model(runs, tmp_path):
    settings = replace(RunFolder(runs["hipmri"]).read_settings(), init=str(runs["hipmri"]))
    run = RunFolder(tmp_path / "cv")
    run.create(settings)
    for fold in run.list_folds(2):
        assert fold.init == run.init == tmp_path / "cv" / "init"
        fold.create(settings)
        assert not (fold.path / "init").exists()
    # A run may be called like a fold.
    (tmp_path / "init").mkdir()
    assert RunFolder(tmp_path / "fold_0").init == tmp_path / "fold_0" / "init"


def _describe(runs, folder, window, provenance=None, **preprocessing):
    """Writes the description of a model of other samples than its bundle's; nothing reads the model."""
    shutil.copytree(runs["hipmri"] / "bundle", folder)
    description = read_description(folder)
    preprocessing = description["preprocessing"] | {"spatial_dims": len(window), "spacing_mm": [], "foreground_crop": True} | preprocessing
    changed = {"window": list(window), "flipped_axes": None, "trained": None, "preprocessing": preprocessing}
    write_description(folder, description | changed | {"provenance": description["provenance"] | (provenance or {})})
    return folder


def test_what_the_user_chooses_wins_over_the_model(runs, tmp_path):
    source = _describe(runs, tmp_path / "bundle", (32, 32, 1), intensity="percentile")

    def parse(*flags):
        return parse_training(["--dataset", "ibsr18", "--init", str(source), *flags], DATASETS).settings

    settings = parse()
    assert (settings.mode, settings.plane, settings.network) == ("slice", "axial", "unet2d")
    assert (settings.intensity, settings.crop, settings.network_options["base_filters"]) == ("percentile", "foreground", 2)
    changed = parse("--learning-rate", "0.01", "--intensity", "min_max", "--dropout", "0", "--plane", "coronal")
    assert (changed.learning_rate, changed.intensity, changed.network_options["dropout"]) == (0.01, "min_max", 0.0)
    assert changed.plane == "coronal"
    # The settings of a demo stand below the model's.
    demo = parse("--demo")
    assert (demo.network_options["base_filters"], demo.learning_rate, demo.epochs) == (2, 2e-4, 10)
    # What another run left open follows the model.
    write_json(tmp_path / "run.json", {"config": Settings("ibsr18").to_json()})
    assert parse("--config", str(tmp_path)).network == "unet2d"


@pytest.mark.parametrize(
    ("window", "fields", "chosen", "expected"),
    [
        ((32, 1, 48), {}, {}, {"mode": "slice", "plane": "coronal"}),
        ((32, 1, 48), {}, {"plane": "axial"}, {"mode": "slice"}),
        ((32, 32, 32), {"spacing_mm": [1, 1, 2]}, {}, {"mode": "patch", "spacing": [1, 1, 2]}),
        ((32, 32, 16), {"resize": True, "shape": [32, 32, 16]}, {}, {"mode": "volume", "shape": [32, 32, 16]}),
        ((32, 32, 16), {"resize": True, "shape": [32, 32, 16]}, {"shape": [16, 16, 16]}, {"mode": "volume"}),
        # A whole volume's size is that of the window where the user wants whole volumes.
        ((32, 32, 16), {"spacing_mm": [1, 1, 2]}, {"mode": "volume"}, {"shape": [32, 32, 16]}),
        ((32, 32), {"spacing_mm": [1, 1]}, {}, {"mode": "slice"}),
    ],
)
def test_the_kind_of_sample_and_the_grid_follow_the_model(runs, tmp_path, window, fields, chosen, expected):
    source = _describe(runs, tmp_path / "bundle", window, **fields)
    others = {"network": "unet2d", "base_filters": 2, "levels": 1, "norm": "batch", "dropout": 0.2}
    others |= {"intensity": "zscore", "crop": "foreground", "learning_rate": 2e-4}
    # A model that was trained without resampling gets no other grid now, whatever the plan would choose.
    volume = "volume" in (expected.get("mode"), chosen.get("mode"))
    others |= {} if volume or "spacing" in expected else {"resample": "none"}
    assert adopt_settings(source, DATASETS["ibsr18"], chosen) == expected | others


def test_a_network_bound_to_its_shape_keeps_it(runs, tmp_path):
    own = {"network": "unetr", "network_options": {"num_layers": 4, "hidden_size": "8", "speed": 1}}
    source = _describe(runs, tmp_path / "bundle", (32, 1, 48), own)
    adopted = adopt_settings(source, DATASETS["ibsr18"], {})
    assert adopted["shape"] == [32, 48]
    # An option of another type or name is none of this network's.
    assert (adopted["num_layers"], adopted["hidden_size"], "speed" in adopted) == (4, 768, False)
    _describe(runs, tmp_path / "other", (32, 48), {"network": "u2net"})
    with pytest.raises(ValueError, match="Expected `network` in .* Received: 'u2net' in .*other. Choose another `--init`."):
        adopt_settings(tmp_path / "other", DATASETS["oasis"], {})
