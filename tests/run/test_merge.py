"""Folds of separate commands: collected if they belong together, and refused by name if not."""

from dataclasses import replace

import pytest

from modules.data.case import Case
from modules.run.folder import RunFolder, write_json
from modules.run.merge import check_parts, collect_folds
from modules.run.settings import Settings

SETTINGS = Settings("ibsr18", folds=2, mode="slice", epochs=3)
FILES = {"a.nii": ["train", "1" * 64], "b.nii": ["test", "2" * 64]}
ORIGIN = dict.fromkeys(("backend", "precision", "python", "data_sha256", "code_sha256"), "0") | {"devices": ["cpu:0"], "versions": {}}


@pytest.fixture
def make(tmp_path):
    """Makes a finished run of a fold; `origin` are entries of its `run.json`."""

    def make(name, fold=0, files=FILES, finished=True, origin=None, **settings):
        run = RunFolder(tmp_path / name)
        splits = {"train": [], "validate": [], "test": [f"case_{fold}"]}
        run.create(replace(SETTINGS, fold=fold, name=name, **settings), data=files, **ORIGIN | {"splits": splits} | (origin or {}))
        run.release()
        if finished:
            write_json(run.summary, {})
        return run.path

    return make


def test_folds_of_one_mode_and_of_several(make):
    first, second = make("x", 1, runs="here", cache="there"), make("y", 0, track="mlflow")
    assert collect_folds([first, second]) == (replace(SETTINGS, runs="here", cache="there"), {"fold_0": second, "fold_1": first})
    others = [make("p", 0, mode="patch"), make("q", 1, mode="patch")]
    settings, parts = collect_folds([*others, first, second])
    assert (settings.mode, settings.modes, settings.fold, settings.folds) == ("", ("patch", "slice"), None, 2)
    assert parts == {"patch/fold_0": others[0], "patch/fold_1": others[1], "slice/fold_0": second, "slice/fold_1": first}


def test_what_does_not_belong_together_is_refused(make):
    first = make("x")
    for path, message in (
        (make("other", 1, epochs=4), "Expected `epochs` 3 in every run to merge, as .*x has it. Received: 4 in .*other. Leave the run out"),
        (make("twice"), "Expected each fold once. Received: fold 0 in .*x and in .*twice. Leave one out."),
        (make("open", 1, finished=False), "Expected finished runs to merge. Received: .*open, which is not. Go on with it by --resume."),
        (make("whole", None), "Expected runs of single folds to merge. Received: .*whole, which is none."),
        (
            make("patch", 1, mode="patch"),
            "Expected folds 0 to 1 of mode 'slice' to merge. Received: no fold 1. Train what is missing by --folds 2",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            collect_folds([first, path])
    with pytest.raises(ValueError, match="Expected folds 0 to 4 of mode 'slice' to merge. Received: no fold 0, 2, 4. Train"):
        collect_folds([make("five_1", 1, folds=5), make("five_3", 3, folds=5)])
    with pytest.raises(FileNotFoundError, match=r"Expected a run in nowhere. Received: no run.json there"):
        collect_folds([first.parent.joinpath("nowhere").relative_to(first.parent)])


def test_folds_of_other_data_are_refused(make, tmp_path, caplog):
    tests = [[Case(f"case_{fold}", "p", (), None)] for fold in range(2)]
    first = make("x")
    # The splits of a file differ from fold to fold.
    turned = {name: ["validate", digest] for name, (_, digest) in FILES.items()}
    check_parts({"fold_0": first, "fold_1": make("y", 1, turned, origin={"code_sha256": "1"})}, tests, tmp_path)
    assert [record.message for record in caplog.records] == [
        f"code_sha256 differs between {first} and {tmp_path / 'y'}: the models may not be those of one command"
    ]
    for name, files, what in (
        ("changed", turned | {"b.nii": ["test", "3" * 64]}, "b.nii changed"),
        ("missing", {"a.nii": FILES["a.nii"]}, "b.nii missing"),
        ("new", FILES | {"c.nii": ["test", "3" * 64]}, "c.nii new"),
    ):
        with pytest.raises(
            ValueError, match=f"Expected the data of .*x in every run to merge. Received: {what} in .*{name}. Train it anew."
        ):
            check_parts({"fold_0": first, "fold_1": make(name, 1, files)}, tests, tmp_path)
    with pytest.raises(
        ValueError, match=f"Expected the test cases of {first} in {tmp_path}. Received: others. Give the folder of its data"
    ):
        check_parts({"fold_0": first}, tests[::-1], tmp_path)


def test_folds_of_other_classes_are_refused(make, tmp_path):
    tests = [[Case(f"case_{fold}", "p", (), None)] for fold in range(2)]
    one, other = ({"class_names": ["background", name], "found": [name]} for name in "ab")
    first = make("x", origin={"data_set": one})
    # The lines for people name places, which differ.
    check_parts({"fold_0": first, "fold_1": make("y", 1, origin={"data_set": one | {"found": []}})}, tests, tmp_path)
    with pytest.raises(
        ValueError, match="Expected channels and classes of .*x in every run to merge. Received: others in .*z. Train it anew"
    ):
        check_parts({"fold_0": first, "fold_1": make("z", 1, origin={"data_set": other})}, tests, tmp_path)


def test_folds_that_began_from_one_model_keep_it(make, tmp_path):
    tests = [[Case(f"case_{fold}", "p", (), None)] for fold in range(2)]
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for file in ("bundle.json", "model.keras"):
            (tmp_path / name / file).write_text("{}")
    one, other = ({"init": {"bundle_sha256": digit * 64}} for digit in "12")
    # Two machines have it in two places.
    first, second = make("x", init=str(tmp_path / "here"), origin=one), make("y", 1, init=str(tmp_path / "there"), origin=one)
    settings, parts = collect_folds([first, second])
    check_parts(parts, tests, tmp_path)
    whole = RunFolder(tmp_path / "cv")
    whole.create(settings, parts=parts)
    whole.release()
    assert [fold.init for fold in whole.list_folds(2)] == [tmp_path / "cv" / "init"] * 2
    assert (tmp_path / "cv" / "init" / "model.keras").is_file()
    # Merged again, its folds find the model in the folder above them.
    again = RunFolder(tmp_path / "again")
    again.create(settings, parts=dict(parts, fold_0=whole.path / "fold_0"))
    again.release()
    assert (tmp_path / "again" / "init" / "model.keras").is_file()
    for name, origin in (("z", other), ("random", {})):
        with pytest.raises(ValueError, match=f"Expected the model of --init of .*x in every run to merge. Received: another in .*{name}. "):
            check_parts({"fold_0": first, "fold_1": make(name, 1, init=str(tmp_path / "here"), origin=origin)}, tests, tmp_path)


def test_tables_may_lie_in_several_places(make):
    own = {"dataset": "folder", "cases": "here/a.csv", "classes": ("here/b.csv",)}
    first = make("x", **own)
    settings, _ = collect_folds([first, make("y", 1, **own | {"cases": "there/a.csv", "classes": ("there/b.csv",)})])
    assert settings.classes == ("here/b.csv",)
    with pytest.raises(ValueError, match=r"Expected `classes` \('here/b.csv',\) in every run to merge"):
        collect_folds([first, make("z", 1, **own | {"classes": ("liver",)})])
