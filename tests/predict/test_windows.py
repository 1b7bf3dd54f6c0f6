"""From windows to whole cases: merging gives what a whole array would give, without holding one."""

import dataclasses
import tracemalloc
import weakref
from collections import deque
from itertools import count

import nibabel as nib
import numpy as np
import pytest

from modules.data.case import Case, LabelRule, Volume
from modules.data.patches import Window, cut, make_gaussian, make_grid
from modules.data.preprocess import Geometry, Preprocessing
from modules.predict import cases
from modules.predict.bundle import ModelBundle
from modules.predict.cases import PredictionOptions, predict_cases, predict_images
from modules.predict.windows import Tiling, average_planes, choose_batch_size, merge_windows, mirror, predict_windows

GRIDS = [
    ((7, 9, 11), (4, 4, 4), 0.5),
    ((20, 5, 6), (8, 8, 3), 0.25),
    ((16, 8, 8), (4, 8, 16), 0.0),
    ((5, 40, 3), (1, 16, 4), 0.5),
    ((30, 6, 6), (7, 3, 5), 0.9),
    ((9, 9, 2), (9, 4, 1), 0.75),
    ((3, 4, 5), (8, 8, 8), 0.5),
    ((1, 21, 33), (1, 16, 16), 0.5),
]


def _make_tiling(shape, window, overlap=0.5, num_classes=3):
    return Tiling(shape, window, tuple(make_grid(shape, window, overlap)), num_classes, batch_size=2)


def _merge_naively(outputs, tiling):
    """Merges with the weighted sum and the sum of weights over the whole array, in double precision."""
    axes = range(len(tiling.shape))
    profiles = []
    for axis in axes:
        single = len({start[axis] for start in tiling.starts}) == 1
        profiles.append(np.ones(tiling.window[axis]) if single else make_gaussian(tiling.window[axis]).astype(np.float64))
    weight = np.einsum("i,j,k->ijk", *profiles)
    margin = max(tiling.window)
    total = np.zeros((*(size + 2 * margin for size in tiling.shape), tiling.num_classes))
    weights = np.zeros((*total.shape[:-1], 1))
    for start, output in zip(tiling.starts, outputs, strict=True):
        place = tuple(slice(first + margin, first + margin + length) for first, length in zip(start, tiling.window, strict=True))
        total[place] += output * weight[..., np.newaxis]
        weights[place] += weight[..., np.newaxis]
    inside = tuple(slice(margin, margin + size) for size in tiling.shape)
    return total[inside] / weights[inside]


@pytest.mark.parametrize(("shape", "window", "overlap"), GRIDS)
def test_merging_agrees_with_the_whole_array(shape, window, overlap):
    tiling = _make_tiling(shape, window, overlap)
    outputs = np.random.default_rng(0).normal(size=(len(tiling.starts), *window, 3)).astype(np.float32)
    merged = list(merge_windows(outputs, tiling))
    assert len(merged) == shape[0]
    assert all(plane.dtype == np.float32 and plane.shape == (*shape[1:], 3) for plane in merged)
    np.testing.assert_allclose(np.stack(merged), _merge_naively(outputs, tiling), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "window", "overlap"), GRIDS)
def test_sums_on_disk_are_those_in_memory(shape, window, overlap, tmp_path):
    tiling = _make_tiling(shape, window, overlap)
    outputs = np.random.default_rng(0).normal(size=(len(tiling.starts), *window, 3)).astype(np.float32)
    expected = np.stack(list(merge_windows(outputs, tiling)))
    merged = merge_windows(outputs, dataclasses.replace(tiling, disk=tmp_path / "out"))
    planes = [next(merged)]
    # Nobody has to tidy up, even if the process is killed now.
    assert list((tmp_path / "out").iterdir()) == []
    np.testing.assert_array_equal(np.stack([*planes, *merged]), expected)


def test_a_full_disk_is_a_lack_of_memory(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    tiling = dataclasses.replace(_make_tiling((512, 512, 512), (512, 8, 8)), disk=tmp_path)
    with pytest.raises(MemoryError, match=r"no 1\.5 GiB on the disk of .* \(No space left on device\)"):
        next(merge_windows([], tiling))


@pytest.mark.parametrize(("shape", "window"), [((6, 7, 8), (6, 7, 8)), ((3, 4, 5), (8, 8, 8)), ((8, 3, 6), (8, 16, 6))])
def test_a_single_window_comes_out_as_the_network_gave_it(shape, window):
    tiling = _make_tiling(shape, window)
    output = np.random.default_rng(0).random((*window, 3), np.float32)
    expected = cut(output, [-first for first in tiling.starts[0]], shape)
    np.testing.assert_array_equal(np.stack(list(merge_windows([output], tiling))), expected)


@pytest.mark.parametrize(("shape", "window", "overlap"), GRIDS)
def test_a_constant_network_gives_that_constant(shape, window, overlap):
    tiling = _make_tiling(shape, window, overlap)
    output = np.broadcast_to(np.array([0.2, 0.7, 0.1], np.float32), (*window, 3))
    for plane in merge_windows((output for _ in tiling.starts), tiling):
        np.testing.assert_allclose(plane, np.broadcast_to(output[0, 0, 0], plane.shape), rtol=1e-5)


@pytest.mark.parametrize(("shape", "window", "overlap"), GRIDS)
def test_a_network_that_copies_gives_the_image_back(shape, window, overlap):
    tiling = _make_tiling(shape, window, overlap)
    # The values grow along the first axis, so the test finds planes that change places.
    image = np.random.default_rng(0).random((*shape, 3), np.float32) + np.arange(shape[0]).reshape(-1, 1, 1, 1)
    windows = (cut(image, start, window, fill=-99) for start in tiling.starts)
    merged = merge_windows(predict_windows(lambda batch: batch, windows, tiling.batch_size), tiling)
    np.testing.assert_allclose(np.stack(list(merged)), image, rtol=1e-5)


def test_a_case_draws_its_own_windows_and_leaves_the_next_ones():
    tiling = _make_tiling((12, 6, 6), (4, 4, 4))
    numbers = count()
    outputs = (np.full((*tiling.window, 3), next(numbers), np.float32) for _ in iter(int, 1))
    for number in (1, 2, 3):
        list(merge_windows(outputs, tiling))
        assert next(numbers) == number * len(tiling.starts) + number - 1


def test_planes_come_as_soon_as_no_window_can_change_them():
    tiling = _make_tiling((40, 6, 6), (8, 4, 4))
    drawn = []
    outputs = (drawn.append(start) or np.ones((*tiling.window, 3), np.float32) for start in tiling.starts)
    for index, _ in enumerate(merge_windows(outputs, tiling)):
        # No window behind this plane has been drawn yet.
        assert max(start[0] for start in drawn) <= index


def test_too_few_windows_are_not_passed_over():
    tiling = _make_tiling((12, 6, 6), (4, 4, 4))
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(merge_windows([np.ones((*tiling.window, 3), np.float32)] * (len(tiling.starts) - 1), tiling))


def _measure_peak(planes):
    tracemalloc.start()
    try:
        deque(planes, maxlen=0)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("way_back", ["none", "spacing"])
def test_memory_does_not_grow_with_the_length_of_a_volume(way_back):
    def predict(length):
        tiling = _make_tiling((length, 24, 24), (16, 16, 16), num_classes=4)
        planes = merge_windows((np.ones((*tiling.window, 4), np.float32) for _ in tiling.starts), tiling)
        if way_back == "spacing":
            shape = (length * 2, 36, 30)
            geometry = Geometry((0, 1, 2), (False,) * 3, shape, tuple((0, size) for size in shape), tiling.shape)
            planes = Preprocessing(3, spacing_mm=(2, 1.5, 1.25)).restore_planes(planes, geometry)
        return _measure_peak(planes)

    short = predict(32)
    # The slab of 16 planes, one plane on its way, and one window with its weights.
    assert short < 4 * 4 * (16 * 24 * 24 + 5 * 36 * 30 + 4 * 16**3)
    assert predict(320) < 1.2 * short


def test_weights_are_laid_over_planes_only_where_windows_meet():
    tiling = _make_tiling((4, 8, 4), (4, 4, 4), overlap=0.0, num_classes=1)
    outputs = [np.full((4, 4, 4, 1), value, np.float32) for value in (1, 3)]
    merged = np.stack(list(merge_windows(outputs, tiling)))
    np.testing.assert_allclose(merged[:, :4], 1, rtol=1e-6)
    np.testing.assert_allclose(merged[:, 4:], 3, rtol=1e-6)


def test_two_windows_by_hand():
    # Windows of four begin at 0 and 2. The two voxels they share have places 2 and 3 in the first, 0 and 1 in the second.
    tiling = Tiling((6, 1, 1), (4, 1, 1), ((0, 0, 0), (2, 0, 0)), 1, 1)
    outputs = [np.full((4, 1, 1, 1), value, np.float32) for value in (0, 1)]
    near, far = np.exp(-0.5 * (0.5 / 0.5) ** 2), np.exp(-0.5 * (1.5 / 0.5) ** 2)
    expected = [0, 0, far / (near + far), near / (near + far), 1, 1]
    np.testing.assert_allclose(np.ravel(list(merge_windows(outputs, tiling))), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("number", "batch_size", "rows"), [(5, 4, [4, 1]), (7, 4, [4, 4]), (8, 4, [4, 4]), (11, 6, [6, 6]), (3, 16, [4]), (0, 4, [])]
)
def test_batches_are_padded_to_few_shapes(number, batch_size, rows):
    batches = []

    def predict(batch):
        batches.append(batch)
        return batch * 2

    windows = (np.full((2, 3, 1), index + 1, np.float64) for index in range(number))
    outputs = list(predict_windows(predict, windows, batch_size))
    assert [len(batch) for batch in batches] == rows
    assert all(batch.dtype == np.float32 for batch in batches)
    assert [output.item(0) for output in outputs] == [2 * (index + 1) for index in range(number)]
    if batches:
        assert not batches[-1][number - sum(rows[:-1]) :].any()


@pytest.mark.parametrize(("number", "rows"), [(1, [4]), (5, [4, 4]), (0, [])])
def test_batches_are_padded_to_one_shape(number, rows):
    batches = []
    windows = (np.full((2, 3, 1), index + 1.0) for index in range(number))
    outputs = list(predict_windows(lambda batch: batches.append(batch) or batch, windows, 4, one_shape=True))
    assert [len(batch) for batch in batches] == rows
    assert [output.item(0) for output in outputs] == list(range(1, number + 1))


def test_windows_are_drawn_no_further_than_a_batch():
    drawn = []
    windows = (drawn.append(index) or np.zeros((2, 2, 1)) for index in range(100))
    outputs = predict_windows(lambda batch: batch, windows, 4)
    for index, _ in zip(range(9), outputs, strict=False):
        assert len(drawn) == (index // 4 + 1) * 4


def test_mirroring_leaves_a_network_that_does_not_mind_as_it_is():
    inputs = np.random.default_rng(0).random((2, 4, 5, 6, 1), np.float32)
    calls = []

    def predict(batch):
        assert batch.flags.c_contiguous
        calls.append(batch.shape)
        return np.concatenate([batch, 1 - batch], axis=-1)

    np.testing.assert_allclose(mirror(predict, (1, 2, 3))(inputs), predict(inputs), rtol=1e-6)
    assert len(calls) == 8 + 1
    np.testing.assert_array_equal(mirror(predict, ())(inputs), predict(inputs))


def test_mirroring_averages_over_all_flips_by_hand():
    # The network returns the place of each voxel. After the way back, place i is 3 - i along a flipped axis.
    place = np.arange(4.0)[np.newaxis, :, np.newaxis, np.newaxis] + 10 * np.arange(4.0)[np.newaxis, np.newaxis, :, np.newaxis]
    inputs = np.zeros((1, 4, 4, 1), np.float32)
    np.testing.assert_allclose(mirror(lambda batch: place, (1,))(inputs)[0, :, 2, 0], 1.5 + 20)
    np.testing.assert_allclose(mirror(lambda batch: place, (1, 2))(inputs), 1.5 + 15)


def test_mirroring_left_and_right_swaps_their_classes():
    # The classes are background, left and right. The network calls the first half of axis 1 left and the other half right.
    said = np.zeros((1, 4, 2, 3), np.float32)
    said[:, :2, :, 1] = said[:, 2:, :, 2] = 1
    inputs = np.zeros((1, 4, 2, 1), np.float32)
    np.testing.assert_array_equal(mirror(lambda batch: said, (1,), left_right=1, swaps=[(1, 2)])(inputs), said)
    np.testing.assert_array_equal(mirror(lambda batch: said, (1, 2), left_right=1, swaps=[(1, 2)])(inputs), said)
    # Without the swap, half of the flips give the other side. Flips of another axis swap nothing.
    np.testing.assert_array_equal(mirror(lambda batch: said, (1,))(inputs)[0, 0, 0], [0, 0.5, 0.5])
    np.testing.assert_array_equal(mirror(lambda batch: said, (2,), left_right=1, swaps=[(1, 2)])(inputs), said)


def test_averages_of_models_by_hand():
    first, second = [np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])], [np.array([[0.0, 1.0]]), np.array([[0.1, 0.9]])]
    np.testing.assert_allclose(list(average_planes([first, second])), [[[0.5, 0.5]], [[0.3, 0.7]]])
    assert next(average_planes([first])) is first[0]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        list(average_planes([first, second[:1]]))


@pytest.mark.parametrize(
    ("window", "expected"), [((96, 96, 96), 2), ((128, 128, 128), 1), ((256, 256, 256), 1), ((1, 256, 256), 16), ((64, 64, 64), 8)]
)
def test_batch_size_by_hand(window, expected):
    assert choose_batch_size(window) == expected


@pytest.mark.parametrize(
    ("engine", "gpu", "expected"), [("openvino", False, 2), ("keras", False, 2), ("keras", True, 16), ("openvino", True, 2)]
)
def test_a_cpu_predicts_few_windows_together(monkeypatch, engine, gpu, expected):
    """Windows of 40x56x40 have 89,600 voxels, of which 2**18 hold two."""
    monkeypatch.setattr(cases, "has_nvidia", lambda: gpu)
    assert cases.choose_batch_size((40, 56, 40), engine) == expected


def test_a_plan_says_what_it_takes():
    tiling = _make_tiling((512, 512, 400), (96, 96, 96), num_classes=6)
    assert tiling.slab_bytes == 96 * 512 * 400 * 6 * 4
    assert str(tiling) == "512x512x400 voxels, 800 windows of 96x96x96 in batches of 2, 450 MiB for the slab under work"
    assert _make_tiling((10, 4, 4), (96, 4, 4)).slab_bytes == 10 * 4 * 4 * 3 * 4


class _Copier:
    """A stand-in for a model: background where the image is dark, else the other class."""

    def __init__(self, window):
        self.input_shape = (None, *window, 1)
        self.rows = []

    def predict_on_batch(self, inputs):
        self.rows.append(len(inputs))
        return (inputs > 0).astype(np.float32)


def _make_bundle(window, **options):
    preprocessing = Preprocessing(3, **options)
    return ModelBundle(_Copier(Window(window).shape), preprocessing, Window(window), ("background", "a"), ("T1",), LabelRule({0: 0, 1: 1}))


def _draw_volume(shape, seed=0):
    return Volume(np.random.default_rng(seed).random((*shape, 1), np.float32).round(), np.eye(4), (1.0,) * 3)


@pytest.mark.parametrize("window", [(8, 8, 8), (1, 16, 16), (16, 1, 16), (16, 16, 1), (32, 32, 32)])
def test_a_bundle_puts_each_image_back_on_its_own_grid(window):
    bundle = _make_bundle(window)
    images = [_draw_volume(shape, seed) for seed, shape in enumerate([(11, 12, 13), (20, 9, 10), (8, 8, 8)])]
    for image, planes in zip(images, predict_images(bundle, images), strict=True):
        np.testing.assert_allclose(np.stack(list(planes))[..., 1], image.array[..., 0], atol=1e-5)


def test_an_image_that_nobody_looks_at_does_not_shift_the_next():
    bundle = _make_bundle((8, 8, 8))
    images = [_draw_volume((12, 12, 12), seed) for seed in range(3)]
    last = None
    for planes in predict_images(bundle, images):
        last = planes if last is None else [next(planes), *planes]
    np.testing.assert_allclose(np.stack(last)[..., 1], images[-1].array[..., 0], atol=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_progress_counts_windows(mirrored):
    tilings, counts = [], []
    options = PredictionOptions(batch_size=4, mirror=mirrored, on_tiling=tilings.append, on_batch=counts.append)
    for planes in predict_images(_make_bundle((8, 8, 8)), [_draw_volume((8, 8, 45))], options):
        deque(planes, maxlen=0)
    assert len(tilings[0].starts) == 11
    assert sum(counts) == 11


def test_nothing_of_a_batch_is_held_while_the_next_is_read(tmp_path, monkeypatch):
    cases, held = [], []
    for number in range(3):
        path = tmp_path / f"case_{number}.nii"
        nib.save(nib.Nifti1Image(_draw_volume((8, 9, 10), number).array[..., 0], np.eye(4)), path)
        cases.append(Case(path.stem, path.stem, (path,)))
    read_case = predict_cases.__globals__["read_case"]

    def read(case, bundle):
        assert [reference() for reference in held] == [None] * len(held)
        image, label = read_case(case, bundle)
        held.append(weakref.ref(image.array))
        return image, label

    monkeypatch.setitem(predict_cases.__globals__, "read_case", read)
    for item in predict_cases([_make_bundle((8, 8, 8))], cases, PredictionOptions(batch_size=1)):
        del item
    assert len(held) == 3


def test_images_that_are_predicted_are_let_go_of(tmp_path):
    cases = []
    for number in range(4):
        path = tmp_path / f"case_{number}.nii"
        nib.save(nib.Nifti1Image(_draw_volume((8, 9, 10), number).array[..., 0], np.eye(4)), path)
        cases.append(Case(path.stem, path.stem, (path,)))
    held = []
    for number, item in enumerate(predict_cases([_make_bundle((8, 8, 8))], cases, PredictionOptions(batch_size=1))):
        held.append(weakref.ref(item.image.array))
        del item
        # The arrays of this case itself may still be in use.
        assert [reference() is None for reference in held[:number]] == [True] * number
