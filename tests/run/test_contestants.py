"""Contestants of a comparison: runs, folders with scores and label maps, and what must be alike before they are compared."""

import numpy as np
import pytest
from compare_helpers import make_run, make_scores

from modules.run import contestants
from modules.run.contestants import Contestant, check_alike, find_different, read_contestants
from modules.score_tables import write_scores


def test_a_run_has_its_scores_costs_and_settings(tmp_path):
    (one,) = read_contestants([make_run(tmp_path / "one", make_scores())])
    assert (one.name, list(map(repr, one.scores))) == ("one", list(map(repr, make_scores())))
    assert one.costs == {"minutes": 1.5, "parameters": 100, "peak_bytes": 2_000_000_000, "epochs": 3, "device": "cpu:0"}
    assert one.settings == {
        "dataset": "d", "loss": "dice", "plan.network": "plain_unet", "plan.augment": "mild", "plan.epochs": 3,
    }  # fmt: skip


def test_a_cross_validation_takes_what_its_folds_took(tmp_path):
    whole = make_run(tmp_path / "cv", make_scores())
    for name in ("plan.json", "summary.json"):
        (whole / name).unlink()
    for fold in range(2):
        make_run(whole / f"fold_{fold}", seconds=60.0)
    (one,) = read_contestants([whole])
    assert (one.costs["minutes"], one.costs["parameters"]) == (2, 100)


def test_what_a_folder_lacks_is_not_known(tmp_path):
    write_scores(tmp_path / "scores.csv", make_scores())
    (one,) = read_contestants([tmp_path])
    assert (one.costs, one.settings, len(one.scores)) == ({}, {}, 4)
    run = make_run(tmp_path / "run", make_scores(), seconds="long")
    (run / "plan.json").unlink()
    (one,) = read_contestants([run])
    assert (one.costs["minutes"], one.costs["parameters"], one.costs["epochs"]) == (None, None, None)


def test_names_tell_models_apart(tmp_path):
    paths = [make_run(tmp_path / place, make_scores()) for place in ("a/one", "b/one", "a/two")]
    names = [one.name for one in read_contestants([*paths, paths[2]])]
    assert names == [str(paths[0]), str(paths[1]), "two", "two (2)"]


def test_settings_in_which_runs_differ(tmp_path):
    runs = [make_run(tmp_path / "one", loss="dice", width=3), make_run(tmp_path / "two", loss="ce")]
    contestants = [*read_contestants(runs), Contestant("maps", tmp_path, [])]
    # Names and places say nothing, and label maps have no settings at all.
    assert find_different(contestants) == {"loss": ["dice", "ce", None], "width": [3, None, None]}
    # An earlier version knew no `postprocess`, whose default is "learn".
    runs = [make_run(tmp_path / f"run{number}", postprocess=value) for number, value in enumerate(("learn", "none"))]
    old, same, other = (read_contestants([path])[0] for path in (tmp_path / "one", *runs))
    assert find_different([old, same]) == {"width": [3, None]}
    assert find_different([same, other]) == {"postprocess": ["learn", "none"]}


# ---------------------------------------------------------------------------------------------------------------- the same


def _refuse(scores, other, message):
    with pytest.raises(ValueError, match=message):
        check_alike([Contestant(name, None, of) for name, of in (("one", scores), ("two", other))])


def test_other_classes_are_refused():
    _refuse(make_scores(), make_scores(classes="ac"), "^Expected the classes of one: a, b. Received: a, c in two. Compare models of the ")


def test_other_test_cases_are_named():
    _refuse(make_scores("xy"), make_scores("x"), "^Expected the same test cases from one and two. Received: two lacks y. Compare ")
    _refuse(make_scores("x"), make_scores("xy"), "Received: one lacks y. ")
    _refuse(make_scores("x"), make_scores("uvwyz"), "Received: two lacks x; one lacks u, v, w and 2 more. ")


def test_other_labels_are_refused():
    message = "^Expected the same label of x for one and two. Received: {} voxels of a, hashes {}. Score both with the same labels.$"
    _refuse(make_scores(), make_scores(reference_voxels=9), message.format("10 and 9", "0123456789ab and 0123456789ab"))
    _refuse(make_scores(), make_scores(reference="ba9876543210"), message.format("10 and 10", "0123456789ab and ba9876543210"))
    # A table of version 0.1 has no hashes.
    assert check_alike([Contestant(name, None, make_scores(reference=text)) for name, text in (("one", ""), ("two", "0123456789ab"))])


def test_scans_count_where_all_have_them():
    both, slices = make_scores() + make_scores("pq", level="slice"), make_scores("pq", level="slice")
    for other, level in ((make_scores(), "volume"), (both, "volume"), (slices, "slice")):
        alike = check_alike([Contestant("one", None, both), Contestant("two", None, other)])
        assert {score.level for one in alike for score in one.scores} == {level}
    _refuse(make_scores(), slices, "^Expected scores of scans, or of slices, from all. Received: one: volume, two: slice. ")


# --------------------------------------------------------------------------------------------------------------- label maps


@pytest.fixture
def maps(write_nifti, tmp_path):
    """Two references of 24 voxels, 2 x 1 x 1 mm each, and label maps of them: the first is right, the second lacks a half of class 1."""
    label = np.zeros((4, 3, 2), np.uint8)
    label[:2], label[2] = 1, 2
    half = label.copy()
    half[0] = 0
    affine = np.diag([2.0, 1, 1, 1])
    for name, array in (("x", label), ("y", half)):
        write_nifti(f"labels/{name}_seg.nii.gz", label, affine)
        write_nifti(f"maps/{name}.nii.gz", array, affine)
    return tmp_path / "maps", tmp_path / "labels"


def test_label_maps_are_scored_against_references_of_their_names(maps):
    (one,) = read_contestants([maps[0]], maps[1])
    table = {(score.case, score.class_name): score for score in one.scores}
    assert [score.dice for score in table.values()] == [1, 1, 2 * 6 / (6 + 12), 1]
    assert list(table) == [("x", "class 1"), ("x", "class 2"), ("y", "class 1"), ("y", "class 2")]
    assert (table["y", "class 1"].volume_bias_ml, table["y", "class 1"].nsd) == (pytest.approx(-0.012), 12 / 18)
    assert {score.subject for score in one.scores} == {""}
    (one,) = read_contestants([maps[0]], maps[1], classes=("liver", "spleen"), tolerance_mm=(3.0,))
    assert {(score.class_name, score.tolerance_mm) for score in one.scores} == {("liver", 3.0), ("spleen", 3.0)}


def test_label_maps_are_turned_onto_their_references(maps, write_nifti):
    label = np.zeros((4, 3, 2), np.uint8)
    label[:2], label[2] = 1, 2
    # The same voxels, stored from the other side.
    write_nifti("maps/y.nii.gz", label[::-1], np.array([[-2.0, 0, 0, 6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    (one,) = read_contestants([maps[0]], maps[1])
    assert [score.dice for score in one.scores] == [1, 1, 1, 1]


def test_label_maps_beside_a_run(maps, tmp_path):
    scores = read_contestants([maps[0]], maps[1])[0].scores
    run = make_run(tmp_path / "run", [score for score in scores if score.case == "y"])
    # Without a model the classes are those of the references. The map of x is of no test case.
    one, other = check_alike(read_contestants([run, maps[0]], maps[1]))
    assert one.scores == other.scores
    assert [score.case for score in one.scores] == ["y", "y"]
    (maps[0] / "y.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="^Expected a label map of each test case in .*maps. Received: none of y. Predict "):
        read_contestants([run, maps[0]], maps[1])


def test_classes_beside_a_model_are_told_to_do_nothing(maps, tmp_path, monkeypatch, caplog):
    description = {
        "label_rule": {"values": {"0": 0, "1": 1, "2": 2}, "output_values": [0, 1, 2], "renames": []},
        **{"class_names": ["background", "a", "b"], "regions": [], "preprocessing": {"spatial_dims": 3}},
    }
    monkeypatch.setattr(contestants, "find_bundle", lambda path: path)
    monkeypatch.setattr(contestants, "read_description", lambda path: description)
    run = make_run(tmp_path / "run", make_scores())
    (run / "bundle").mkdir()
    for classes, told in (((), []), (("x", "y"), [f"--classes has no effect: label maps have the classes and values of {run}"])):
        assert {score.class_name for score in read_contestants([run, maps[0]], maps[1], classes)[1].scores} == {"a", "b"}
        assert caplog.messages == told


def test_a_class_that_no_label_map_holds_is_named(maps, write_nifti, caplog):
    assert not caplog.messages
    for name in "xy":
        write_nifti(f"maps/{name}.nii.gz", np.ones((4, 3, 2), np.uint8), np.diag([2.0, 1, 1, 1]))
    (one,) = read_contestants([maps[0]], maps[1])
    assert [score.dice for score in one.scores if score.class_name == "class 2"] == [0, 0]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"no label map in {maps[0]} holds class 2, although references do; it has the value 2 there"]


def test_label_maps_that_cannot_be_scored(maps, tmp_path):
    with pytest.raises(ValueError, match="^Expected a run, or --labels with the references of label maps. Received: .*maps without scores"):
        read_contestants([maps[0]])
    for path, labels in ((tmp_path / "nothing", None), (maps[0], tmp_path / "nothing")):
        with pytest.raises(FileNotFoundError, match="Received: no such folder. Check the path."):
            read_contestants([path], labels)
    (maps[0] / "x.nii.gz").rename(maps[0] / "z.nii.gz")
    (maps[0] / "y.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="^Expected label maps in .* with the names of references in .* Received: z and x, y. "):
        read_contestants([maps[0]], maps[1])
    for name in ("a_seg", "a"):
        (maps[1] / f"{name}.nii.gz").touch()
    with pytest.raises(
        ValueError, match="^Expected one label map of a in .*labels. Received: a.nii.gz and a_seg.nii.gz. Move one elsewhere"
    ):
        read_contestants([maps[0]], maps[1])


def test_label_maps_have_the_names_that_predict_gives_them(maps):
    for name in "xy":
        (maps[0] / f"{name}.nii.gz").rename(maps[0] / f"{name}_prediction.nii.gz")
        (maps[0] / f"{name}_overlay.png").touch()
        (maps[0] / f"{name}_probabilities.nii.gz").touch()
    (one,) = read_contestants([maps[0]], maps[1])
    assert [score.dice for score in one.scores] == [1, 1, 2 * 6 / (6 + 12), 1]
