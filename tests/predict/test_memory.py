"""The bound on memory: what is measured, what is chosen by it, what is refused, and that a process keeps within it."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from modules.data import preprocess
from modules.data.case import Case, LabelRule
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.predict import memory
from modules.predict.bundle import ModelBundle
from modules.predict.cases import PredictionOptions, predict_cases
from modules.predict.memory import GIB, MemoryLimit, WindowCost, estimate_reading, share_room
from modules.predict.windows import Tiling

MIB = 1 << 20


class _Copier:
    """A stand-in for a model: foreground is where the image is bright."""

    input_shape = (None, 8, 8, 8, 1)

    def predict_on_batch(self, inputs):
        return (inputs > 0.5).astype(np.float32)


def _make_bundle(**fields):
    preprocessing = fields.pop("preprocessing", Preprocessing(3))
    return ModelBundle(_Copier(), preprocessing, Window((8, 8, 8)), ("background", "a"), ("T1",), LabelRule({0: 0, 1: 1}), **fields)


@pytest.fixture
def machine(monkeypatch):
    """A machine on which the program takes 1 GiB, what a model keeps 200 MiB, and each window of a batch 100 MiB."""
    taken = {"bytes": GIB}

    def find_peak(bundle, windows):
        taken["bytes"] = GIB + 200 * MIB
        return taken["bytes"] + 100 * MIB * len(windows)

    monkeypatch.setattr(memory, "RESERVE", 0)
    monkeypatch.setattr(memory, "read_memory", lambda: taken["bytes"])
    monkeypatch.setattr(memory, "_find_peak", find_peak)


def _tile(slab_mib, batch_size=8):
    """Windows of 64x64 pixels with a slab of so many MiB."""
    return Tiling((slab_mib, 64, 64), (slab_mib, 64, 64), ((0, 0, 0),), 64, batch_size)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        # 4 x 100, 40 + 2 x 5, 200 and 300: 950.
        (950, [(4, False), (3, False)]),
        (949, [(2, False), (3, False)]),
        # Where one model has a batch of one, that of the other shrinks too: 650, 645, 640.
        (649, [(1, False), (2, False)]),
        (640, [(1, False), (1, False)]),
        # The larger slab goes first.
        (639, [(1, False), (1, True)]),
        (340, [(1, False), (1, True)]),
        (339, [(1, True), (1, True)]),
        (140, [(1, True), (1, True)]),
        (139, None),
    ],
)
def test_room_is_shared_by_smaller_batches_and_then_on_disk(room, expected):
    assert share_room(room, slabs=[200, 300], costs=[WindowCost(100, 100), WindowCost(40, 5)], batch_sizes=[4, 3]) == expected


def test_batches_follow_from_what_is_left(machine, tmp_path):
    limit = MemoryLimit(2.0, [_make_bundle()], [8], tmp_path)
    # 824 MiB are left. A plane of 64 classes has 1 MiB, and eight are on their way. With a slab of 15 MiB there is room for 8 windows.
    assert limit.fit([[_tile(15)]], kept_bytes=0) == [(8, None)]
    assert limit.fit([[_tile(17)]], kept_bytes=0) == [(4, None)]
    assert limit.fit([[_tile(16)]], kept_bytes=401 * MIB) == [(2, None)]
    assert limit.fit([[_tile(800)]], kept_bytes=0) == [(1, tmp_path)]
    with pytest.raises(MemoryError, match=r"too little left of `--max-memory` 2 GiB beside the scan for one window"):
        limit.fit([[_tile(16)]], kept_bytes=717 * MIB)


def test_a_model_that_does_not_fit_is_refused_before_anything_is_predicted(machine, tmp_path):
    # 1 GiB and 200 MiB for the first call, 100 MiB for its window: 1.3 GiB.
    with pytest.raises(ValueError, match=r"Expected `--max-memory` of 1\.3 GiB or more, .* one window of 8x8x8. Received: 1.25 GiB. Give"):
        MemoryLimit(1.25, [_make_bundle()], [8], tmp_path)
    with pytest.raises(ValueError, match=r"Received: 0.5 GiB."):
        MemoryLimit(0.5, [_make_bundle()], [8], tmp_path)


def test_libraries_that_are_loaded_later_are_counted_once(machine, monkeypatch, tmp_path):
    case = _write_case(tmp_path, "a", (8, 8, 8))
    monkeypatch.setattr(memory, "RESERVE", 100 * MIB)
    # 1.2 GiB are taken, and 100 MiB set aside.
    limit = MemoryLimit(1.5, [_make_bundle()], [1], tmp_path)
    assert limit.admits(case, alone=True)
    for loaded, fits in ((80, True), (300, True), (320, False)):
        monkeypatch.setattr(memory, "read_memory", lambda loaded=loaded: GIB + (200 + loaded) * MIB)
        assert limit.admits(case, alone=False) == (loaded <= 200)
        if fits:
            assert limit.admits(case, alone=True)
        else:
            with pytest.raises(ValueError, match=r"within `--max-memory` 1.5 GiB. Received: 8x8x8 voxels in .*, for about 1.6 GiB with"):
                limit.admits(case, alone=True)


def _write_case(folder, name, shape, bright=1):
    array = np.zeros(shape, np.int16)
    array[1:-1] = bright
    nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii")
    return Case(name, name, (folder / f"{name}.nii",))


def test_reading_is_estimated_from_the_header(tmp_path):
    case = _write_case(tmp_path, "a", (10, 20, 30))
    # 4 bytes a voxel for the image, 4 for what the network sees, 12 on the way there.
    assert estimate_reading(case, [_make_bundle()]) == ((10, 20, 30), 20 * 6000)
    # A second model sees the scan in an array of its own.
    assert estimate_reading(case, [_make_bundle()] * 2) == ((10, 20, 30), 24 * 6000)
    # Twice as many voxels along each axis: 4 x 6,000 and 16 x 48,000.
    finer = _make_bundle(preprocessing=Preprocessing(3, spacing_mm=(0.5, 0.5, 0.5)))
    assert estimate_reading(case, [finer])[1] == 24_000 + 768_000
    # Only the voxels show the foreground, and a header may promise more of them than memory holds.
    cropped = _make_bundle(preprocessing=Preprocessing(3, foreground_crop=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "_find_foreground", None)
        assert estimate_reading(case, [cropped]) == ((10, 20, 30), 20 * 6000)
    # An error is told when the file is read.
    case.image_paths[0].write_bytes(b"x")
    assert estimate_reading(case, [_make_bundle()]) == ((), 0)


def test_a_scan_that_does_not_fit_fails_and_others_wait_for_room(tmp_path, monkeypatch):
    cases = [_write_case(tmp_path, f"small_{number}", (8, 8, 8)) for number in range(3)]
    cases.insert(1, _write_case(tmp_path, "large", (8, 80, 80)))
    taken = [0]
    monkeypatch.setattr(memory, "RESERVE", 0)
    monkeypatch.setattr(memory, "read_memory", lambda: taken[0])
    monkeypatch.setattr(memory, "_find_peak", lambda bundle, windows: 4096 * len(windows))
    limit = MemoryLimit(200_000 / GIB, [_make_bundle()], [4], tmp_path)
    failed, chunks = [], []
    options = PredictionOptions(
        batch_size=4,
        memory=limit,
        on_failure=lambda case, error: failed.append(str(error)),
        # A small scan needs 20 x 512 bytes to be read; two in memory leave no room for a third.
        on_image=lambda case, image: taken.__setitem__(0, taken[0] + 95_000),
        on_batch=lambda number: chunks.append(number) or taken.__setitem__(0, 0),
    )
    monkeypatch.setattr(limit, "fit", lambda tilings, kept_bytes: [(tilings[0][0].batch_size, None)])
    done = [item.case.case_id for item in predict_cases([_make_bundle()], cases, options)]
    assert done == ["small_0", "small_1", "small_2"]
    assert chunks == [1, 2]
    assert len(failed) == 1
    assert "Expected a scan that can be read within `--max-memory` 0.000186265 GiB. Received: 8x80x80 voxels in" in failed[0]


PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from modules.data.case import Case, LabelRule
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.data.formats import import_nibabel
from modules.hardware import read_memory, read_peak
from modules.predict import memory
from modules.predict.bundle import ModelBundle
from modules.predict.cases import PredictionOptions, predict_cases
from modules.predict.memory import GIB, MemoryLimit

class Bands:
    def predict_on_batch(self, inputs):
        outputs = np.empty((*inputs.shape[:-1], 64), np.float32)
        for index in range(64):
            outputs[..., index] = -abs(inputs[..., 0] * 63 - index)
        return outputs

folder, extra = Path(sys.argv[1]), int(sys.argv[2])
names = ("background", *(f"band {index}" for index in range(1, 64)))
rule = LabelRule({index: index for index in range(64)})
bundle = ModelBundle(Bands(), Preprocessing(3), Window((24, 24, 24)), names, ("T1",), rule)
import_nibabel()
memory.RESERVE, began = 0, read_memory()
limit = MemoryLimit((began + extra) / GIB, [bundle], [8], folder) if extra else None
tilings = []
(item,) = predict_cases([bundle], [Case("a", "a", (folder / "a.nii",))], PredictionOptions(memory=limit, on_tiling=tilings.append))
np.save(folder / f"{extra}.npy", item.prediction)
print(json.dumps([read_peak() - began, str(tilings[0])]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells and resets the peak of memory")
def test_a_process_keeps_within_its_memory(tmp_path):
    shape = (32, 72, 72)
    values = np.random.default_rng(0).random(shape, np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    grown, texts = [], []
    for extra in (0, 48 * MIB):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(extra)]
        result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        record = json.loads(result.stdout)
        grown.append(record[0])
        texts.append(record[1])
    np.testing.assert_array_equal(np.load(tmp_path / "0.npy"), np.load(tmp_path / f"{48 * MIB}.npy"))
    # 24 x 72 x 72 voxels of 64 classes: 30 MiB.
    assert texts[0].endswith("in batches of 16, 30 MiB for the slab under work")
    assert texts[1].endswith("in batches of 1, 30 MiB for the slab under work on disk")
    assert grown[0] > 64 * MIB
    assert grown[1] < 48 * MIB
