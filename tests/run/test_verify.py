"""Tests of the checks before a resume's first step: the data, the splits, the backend and the precision."""

import logging

import pytest
from helpers import make_spec

from modules.data.preprocess import Preprocessing
from modules.run.folder import RunFolder, write_json
from modules.run.verify import check_resumable

BEGUN = {
    **{"backend": "jax", "precision": "float32", "python": "3.11", "data_sha256": "2", "code_sha256": "1"},
    **{"devices": ["cpu:0"], "versions": {"keras": "3"}},
}
DATA = {"a.nii": ["train", "1"], "b.nii": ["test", "2"]}


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    write_json(run.record, {"config": {}, **BEGUN})
    write_json(run.data, DATA)
    return run


def test_the_same_data_and_machine_go_on_without_a_word(run, caplog):
    caplog.set_level(logging.INFO, "mri")
    check_resumable(run, BEGUN, dict(DATA))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (DATA | {"b.nii": ["test", "3"]}, "b.nii changed"),
        (DATA | {"b.nii": ["train", "2"]}, "b.nii moved to another split"),
        ({"a.nii": ["train", "1"]}, "b.nii missing"),
        (DATA | {"c.nii": ["train", "3"]}, "c.nii new"),
    ],
)
def test_other_data_are_refused(run, data, what):
    with pytest.raises(ValueError, match=f"Expected the data that {run.path} began with. Received: {what}. Restore it, or start a new run"):
        check_resumable(run, BEGUN, data)


@pytest.mark.parametrize("name", ["backend", "precision"])
def test_another_backend_or_precision_is_refused(run, name):
    with pytest.raises(ValueError, match=f"Expected the {name} of {run.path}, {BEGUN[name]}. Received: other. Restore it"):
        check_resumable(run, BEGUN | {name: "other"}, DATA)


@pytest.mark.parametrize("name", ["devices", "versions", "code_sha256"])
def test_another_machine_or_program_is_a_warning(run, name, caplog):
    check_resumable(run, BEGUN | {name: "other"}, DATA)
    assert [message.partition(" differs")[0] for message in caplog.messages] == [name]


def test_other_channels_or_classes_are_refused(run):
    spec = make_spec(Preprocessing(3), {0: 0, 1: 1})
    # A run of an earlier version says nothing of them.
    check_resumable(run, BEGUN, DATA, spec)
    write_json(run.record, {"config": {}, **BEGUN, "data_set": spec.to_json() | {"found": ["a line"]}})
    check_resumable(run, BEGUN, DATA, spec)
    with pytest.raises(ValueError, match=rf"Expected the channels of {run.path}, \['T1'\]. Received: \['T2'\]. Restore the data set"):
        check_resumable(run, BEGUN, DATA, make_spec(Preprocessing(3), {0: 0, 1: 1}, channels=("T2",)))
    with pytest.raises(ValueError, match=r"Expected the label_values of .*Received: \{'0': 0, '2': 1\}"):
        check_resumable(run, BEGUN, DATA, make_spec(Preprocessing(3), {0: 0, 2: 1}))
