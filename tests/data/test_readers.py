"""Processes that read: the same batches as threads give, errors that name the file, and no process left behind."""

import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from modules.data import readers
from modules.data.cache import Decoded, read_pack, write_pack
from modules.data.draws import AUGMENTATIONS, Drawer
from modules.data.patches import Window, choose_points
from modules.data.pipeline import PatchSampler, make_pipeline
from modules.data.readers import ReaderPool, make_aligned
from modules.data.resident import find_bases

ROOT = Path(__file__).parents[2]
DRAW = Drawer(AUGMENTATIONS["strong"], (4, 4, 5), 2, 0)
OPTIONS = {"batch_size": 3, "training": True, "sampler": PatchSampler("foreground", 2), "draw_augmentation": DRAW}


@pytest.fixture
def cases(tmp_path):
    rng, decoded = np.random.default_rng(0), {}
    for number, shape in enumerate([(6, 5, 7), (3, 8, 4)]):
        label = rng.integers(0, 3, shape).astype(np.uint8)
        image = rng.normal(size=(*shape, 2)).astype(np.float32)
        decoded[str(number)] = Decoded(image, label, choose_points(label, 3, rng), (1.0,) * 3)
    write_pack(tmp_path / "a.pack", decoded)
    return list(read_pack(tmp_path / "a.pack").values())


@pytest.fixture(scope="module")
def pool():
    with ReaderPool(2) as pool:
        yield pool


@pytest.mark.parametrize("resident", [False, True])
def test_processes_and_threads_read_the_same_batches(cases, pool, resident):
    options = OPTIONS | {"bases": find_bases(cases) if resident else None}
    # One pool serves two pipelines, each with its own draws.
    for seed in (1, 2):
        pipelines = [make_pipeline(cases, Window((4, 4, 5)), 2, seed=seed, pool=one, **options) for one in (None, pool)]
        for one, other in islice(zip(*(pipeline.as_numpy_iterator() for pipeline in pipelines), strict=True), 5):
            assert list(one) == list(other)
            assert ("base" in one) == resident
            for name, array in one.items():
                np.testing.assert_array_equal(array, other[name])
                assert array.dtype == other[name].dtype


def test_a_strange_folder_a_user_with_many_pipes_and_signals_stop_nothing(cases, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readers.fcntl, "fcntl", refuse)
    with ReaderPool(1) as pool:
        batches = make_pipeline(cases, Window((4, 4, 5)), 2, pool=pool, **OPTIONS).as_numpy_iterator()
        assert "matrix" in next(batches)
        # A cluster asks all processes of a job to stop. The training ends them.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            pool._processes[0].send_signal(number)
        assert len(list(islice(batches, 20))) == 20


def test_an_error_of_reading_names_the_file(cases, pool):
    Path(cases[0].path).unlink()
    failures = []
    with pytest.raises(Exception, match="gone or damaged"):
        next(iter(make_pipeline(cases, Window((4, 4, 5)), 2, pool=pool, failures=failures, **OPTIONS)))
    assert f"Expected the cache's file {cases[0].path} as it was written." in str(failures[0])


def test_a_process_that_dies_is_told_in_one_line_and_none_is_left(cases):
    with ReaderPool(1) as pool:
        batches = iter(make_pipeline(cases, Window((4, 4, 5)), 2, pool=pool, failures=(failures := []), **OPTIONS))
        next(batches)
        (process,) = pool._processes
        process.kill()
        with pytest.raises(Exception, match="Expected a process that reads"):
            list(islice(batches, 20))
    assert str(failures[0]) == (
        "Expected a process that reads training samples to go on. Received: its end with status -9. "
        "The machine may lack memory. Go on with `train.py --resume RUN`."
    )
    assert process.poll() == -9


def test_batches_read_ahead_are_no_failure_once_the_training_is_over(cases):
    with ReaderPool(1) as pool:
        batches = iter(make_pipeline(cases, Window((4, 4, 5)), 2, pool=pool, failures=(failures := []), **OPTIONS))
        next(batches)
    with pytest.raises(Exception, match="the training is over"):
        list(islice(batches, 20))
    assert failures == []


def test_no_process_outlives_a_killed_training():
    program = "import time; from modules.data.readers import ReaderPool; pool = ReaderPool(2)\n"
    program += "print(*(process.pid for process in pool._processes), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as training:
        left = [int(pid) for pid in training.stdout.readline().split()]
        assert len(left) == 2
        training.kill()
    until = time.monotonic() + 60
    while any(_runs(pid) for pid in left):
        assert time.monotonic() < until
        time.sleep(0.02)


def _runs(pid):
    """Returns whether a process runs; one that has ended may wait for somebody to ask how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_load_neither_tensorflow_nor_keras():
    program = "import sys, modules.data.pipeline; print({'tensorflow', 'keras', 'nibabel', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 256, 128, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_batches_lie_where_tensorflow_need_not_copy_them(shape, dtype):
    array = make_aligned(shape, dtype)
    assert (array.shape, array.dtype, array.ctypes.data % 64) == (shape, dtype, 0)
    assert array.flags.c_contiguous
