"""The pipelines: each window once, or an endless row of draws that seed and step alone decide."""

from itertools import islice

import numpy as np
import pytest

from modules.data.cache import Decoded, read_pack, write_pack
from modules.data.patches import Window, choose_points
from modules.data.pipeline import PatchSampler, count_samples, make_pipeline
from modules.data.regions import IGNORE

SHAPES = [(6, 5, 4), (6, 7, 4), (3, 5, 8)]


def _write_cases(folder, shapes, foreground=()):
    """Writes cases whose images hold the case and the place of each voxel in four channels. The label is a function of these."""
    cases = []
    for number, shape in enumerate(shapes):
        places = np.stack(np.indices(shape), axis=-1).astype(np.float32)
        image = np.concatenate([np.full((*shape, 1), number + 1, np.float32), places], axis=-1)
        label = np.zeros(shape, np.uint8)
        if foreground:
            label[foreground] = number % 2 + 1
        else:
            label[...] = image.sum(axis=-1) % 3
        points = choose_points(label, 3, np.random.default_rng(0)) if len(shape) == 3 else ()
        write_pack(folder / f"{number}.pack", {"case": Decoded(image, label, points, (1,) * len(shape))})
        cases.append(read_pack(folder / f"{number}.pack")["case"])
    return cases


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return _write_cases(tmp_path_factory.mktemp("pipeline"), SHAPES)


@pytest.fixture(scope="module")
def centred(tmp_path_factory):
    """Cases with foreground in their middle only, away from the borders."""
    middle = np.s_[8:12, 8:12, 8:12]
    return _write_cases(tmp_path_factory.mktemp("centred"), [(20, 20, 20)] * 3, middle)


def _read(pipeline, batches=None):
    return [(batch["image"].numpy(), batch["label"].numpy()) for batch in islice(pipeline, batches)]


def _first_voxels(batches):
    """Returns the case and the place of the first voxel of each sample."""
    return [tuple(int(value) for value in sample.reshape(-1, 4)[0]) for images, _ in batches for sample in images]


def _same(one, other):
    return len(one) == len(other) and all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_a_grid_of_slices_gives_each_slice_of_each_volume_once(cases, plane):
    # The window is as large as the largest extents, up to the next multiple of eight.
    window = tuple(1 if axis == plane else 8 for axis in range(3))
    batches = _read(make_pipeline(cases, Window(window), 4, batch_size=4, training=False))
    rest = tuple(size for axis, size in enumerate(window) if axis != plane)
    found = []
    for images, labels in batches:
        assert (images.dtype, labels.dtype) == (np.float16, np.uint8)
        assert images.shape[1:] == (*rest, 4)
        assert labels.shape[1:] == rest
        for image, label in zip(images, labels, strict=True):
            number, place = int(image[..., 0].max()), int(image[..., 1 + plane].max())
            found.append((number, place))
            # The middle of the window holds exactly the slice's voxels and their labels; everything around them is dark.
            inside = tuple(
                slice((size - old) // 2, (size - old) // 2 + old) for size, old in zip(rest, _without(number, plane), strict=True)
            )
            np.testing.assert_array_equal(image[(*inside, 1 + plane)], place)
            np.testing.assert_array_equal(label[inside], image[inside].sum(axis=-1) % 3)
            outside = np.ones(rest, bool)
            outside[inside] = False
            assert not label[outside].any()
            np.testing.assert_array_equal(image[outside], [[number, 0, 0, 0]] * outside.sum())
    expected = [(number + 1, place) for number, shape in enumerate(SHAPES) for place in range(shape[plane])]
    # The last batch is filled from the beginning.
    assert found == expected + expected[: -len(expected) % 4]
    assert len(expected) == count_samples([case.shape for case in cases], Window(window), None)
    assert [len(images) for images, _ in batches[:-1]] == [4] * (len(batches) - 1)


def _without(number, plane):
    return tuple(size for axis, size in enumerate(SHAPES[number - 1]) if axis != plane)


def test_slices_of_2d_cases_come_whole(tmp_path):
    shapes = [(4, 6)] * 3
    filled = [(np.full((*shape, 1), number, np.float32), np.full(shape, number, np.uint8)) for number, shape in enumerate(shapes)]
    write_pack(tmp_path / "a.pack", {str(number): Decoded(*arrays, (), (1, 1)) for number, arrays in enumerate(filled)})
    cases = list(read_pack(tmp_path / "a.pack").values())
    pipeline = make_pipeline(cases, Window((4, 6)), 1, batch_size=2, training=False)
    batches = _read(pipeline)
    assert [images.shape for images, _ in batches] == [(2, 4, 6, 1), (2, 4, 6, 1)]
    assert [int(label[0, 0]) for _, labels in batches for label in labels][:3] == [0, 1, 2]
    # The fourth only fills the batch. The others weigh 4/3, so the mean over both batches is that of three samples.
    weights = np.concatenate([batch["weight"] for batch in pipeline])
    np.testing.assert_allclose(weights, [4 / 3, 4 / 3, 4 / 3, 0])
    assert pipeline.cardinality() == 2


def test_training_reaches_all_of_a_slice_that_is_larger_than_the_window(tmp_path):
    cases, window = _write_cases(tmp_path, [(4, 9), (3, 3)]), Window((4, 5))
    draw = PatchSampler("uniform", 1)
    assert count_samples([case.shape for case in cases], window, draw) == 2
    batches = _read(make_pipeline(cases, window, 3, batch_size=2, training=True, sampler=draw, seed=0), 40)
    seen = [image for images, _ in batches for image in images]
    # The last channel of the wide slice holds the column. Five columns begin at 0 to 4, each of them in 40 epochs.
    assert {int(image[0, 0, 2]) for image in seen if image[0, 0, 0] == 1} == {0, 1, 2, 3, 4}
    # The small slice lies in the middle: one column lies before and behind it, one row below. They are as dark as its darkest.
    small = [image for image in seen if image[0, 0, 0] == 2]
    assert len(small) == 40
    for image in small:
        np.testing.assert_array_equal(image[..., 2], [[0, 0, 1, 2, 0]] * 3 + [[0] * 5])
    validation = _read(make_pipeline(cases, window, 3, batch_size=1, training=False))
    assert [int(images[0, 0, 0, 2]) for images, _ in validation] == [0, 4, 0]


@pytest.mark.parametrize("training", [True, False])
def test_hosts_share_each_batch(cases, training):
    def read(**options):
        pipeline = make_pipeline(cases, Window((1, 5, 4)), 4, batch_size=6, training=training, first_step=2 if training else 0, **options)
        return _read(pipeline, 3)

    whole = read()
    parts = [read(host_slice=(host, 3)) for host in range(3)]
    for step, (images, labels) in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[step][0] for part in parts]), images)
        np.testing.assert_array_equal(np.concatenate([part[step][1] for part in parts]), labels)
    with pytest.raises(ValueError, match="Expected a `batch_size` that 4 hosts can share equally. Received: 6"):
        read(host_slice=(0, 4))


@pytest.mark.parametrize("number", [1, 2, 3, 5, 15, 17])
def test_an_epoch_of_training_is_a_permutation_and_the_next_another(tmp_path, number):
    cases = _write_cases(tmp_path, [(number, 3, 3)])
    window = (1, 3, 3)
    stream = _first_voxels(_read(make_pipeline(cases, Window(window), 4, batch_size=1, training=True, seed=1), 6 * number))
    epochs = [[place for _, place, _, _ in stream[number * epoch : number * (epoch + 1)]] for epoch in range(6)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(number))
    if number > 2:
        assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize(
    "draw", [None, PatchSampler("uniform", 3), PatchSampler("foreground", 3), PatchSampler("weighted", 3, (1.0, 1.0, 2.0))]
)
def test_training_is_a_function_of_seed_and_step(cases, draw):
    def take(batches, **options):
        return _read(make_pipeline(cases, Window((1, 5, 4)), 4, batch_size=3, training=True, sampler=draw, **options), batches)

    stream = take(12, seed=7)
    assert all(images.shape == (3, 5, 4, 4) for images, _ in stream)
    assert _same(stream, take(12, seed=7))
    for first_step in (1, 5, 11):
        assert _same(stream[first_step:], take(12 - first_step, seed=7, first_step=first_step))
    assert not _same(stream, take(12, seed=8))


def test_each_sample_has_an_augmentation_of_its_own(tmp_path):
    shape = (5, 4, 4)
    image = np.zeros((*shape, 1), np.float32)
    write_pack(tmp_path / "a.pack", {"a": Decoded(image, np.zeros(shape, np.uint8), (), (3.0, 0.5, 2.0))})
    case = read_pack(tmp_path / "a.pack")["a"]

    def draw(rng, spacing_mm):
        return {"drawn": rng.random(2), "spacing": np.array(spacing_mm)}

    options = {"batch_size": 3, "training": True, "draw_augmentation": draw, "seed": 7}
    batches = list(islice(make_pipeline([case], Window((1, 4, 4)), 1, **options), 4))
    # A pure function of the seed and of the sample's position in the endless row, whatever its epoch.
    expected = [np.random.default_rng([7, position, 1]).random(2) for position in range(12)]
    np.testing.assert_array_equal(np.concatenate([batch["drawn"] for batch in batches]), expected)
    # The voxel size along the axes that a sample keeps.
    np.testing.assert_array_equal(batches[0]["spacing"], [[0.5, 2.0]] * 3)


@pytest.mark.parametrize("training", [True, False])
def test_no_finished_pipeline_waits_for_a_thread_that_tunes_it(cases, training):
    pipeline = make_pipeline(cases, Window((8, 8, 8)), 4, batch_size=2, training=training)
    assert pipeline.options().autotune.enabled is False


def test_seeds_may_be_large(cases):
    for seed in (0, 2**31, 2**40):
        assert len(_read(make_pipeline(cases, Window((1, 5, 4)), 4, batch_size=3, training=True, seed=seed), 2)) == 2


def test_patches_are_drawn_anew_each_epoch_and_for_each_case_as_often_as_asked(centred):
    draw = PatchSampler("foreground", 4)
    number = count_samples([case.shape for case in centred], Window((8, 8, 8)), draw)
    assert number == 12
    stream = _first_voxels(_read(make_pipeline(centred, Window((8, 8, 8)), 4, batch_size=6, training=True, sampler=draw), 6))
    epochs = [stream[number * epoch : number * (epoch + 1)] for epoch in range(3)]
    for epoch in epochs:
        assert np.bincount([case for case, *_ in epoch]).tolist() == [0, 4, 4, 4]
    assert len(set(stream)) > 30
    assert set(epochs[0]) != set(epochs[1])


@pytest.mark.parametrize("per_case", [1, 2, 3, 4, 8])
def test_a_third_of_the_patches_are_centred_on_foreground(centred, per_case):
    draw = PatchSampler("foreground", per_case)
    epochs = 4
    samples = epochs * count_samples([case.shape for case in centred], Window((8, 8, 8)), draw)
    batches = _read(make_pipeline(centred, Window((8, 8, 8)), 4, batch_size=1, training=True, sampler=draw), samples)
    for case in (1, 2, 3):
        labels = [label[0] for image, label in batches if image[0, 0, 0, 0, 0] == case]
        assert len(labels) == epochs * per_case
        assert sum(label[4, 4, 4] > 0 for label in labels) >= len(labels) / 3


@pytest.mark.parametrize("sampling", ["uniform", "foreground"])
def test_patches_of_a_sparsely_labelled_case_show_what_is_labelled(tmp_path, sampling):
    image, label = np.zeros((20, 20, 20, 1), np.float32), np.full((20, 20, 20), IGNORE, np.uint8)
    label[:, :, 10], label[9, 9, 10] = 0, 1
    write_pack(tmp_path / "a.pack", {"a": Decoded(image, label, choose_points(label, 2, np.random.default_rng(0)), (1.0,) * 3)})
    case = read_pack(tmp_path / "a.pack")["a"]
    assert case.classes == (0, 1, IGNORE)
    draw = PatchSampler(sampling, 6)
    (batch,) = _read(make_pipeline([case], Window((8, 8, 2)), 1, batch_size=30, training=True, sampler=draw), 1)
    # Of places anywhere, one in ten would show the plane.
    assert (batch[1] != IGNORE).any(axis=(1, 2, 3)).all()
    assert (batch[1][:, 4, 4, 1] == 1).any() == (sampling == "foreground")


def test_weighted_patches_give_a_rare_class_its_share(tmp_path):
    cases = _write_cases(tmp_path, [(20, 20, 20)], np.s_[9:11, 9:11, 10])
    draw = PatchSampler("weighted", 10, (0.5, 0.5, 0.0))
    batches = _read(make_pipeline(cases, Window((8, 8, 8)), 4, batch_size=10, training=True, sampler=draw), 20)
    centres = np.concatenate([label[:, 4, 4, 4] for _, label in batches])
    np.testing.assert_allclose((centres == 1).mean(), 0.5, atol=0.1)


def _read_shown(cases, window, sampler, batch_size=5, batches=60, **options):
    """Returns the samples of a training as `(case, whether its window shows each class)`, and the batches."""
    read = _read(make_pipeline(cases, Window(window), 4, batch_size=batch_size, training=True, sampler=sampler, **options), batches)
    samples = [pair for images, labels in read for pair in zip(images, labels, strict=True)]
    return [(int(image[..., 0].max()), {1, 2} & set(label.ravel().tolist())) for image, label in samples], read


def test_every_third_slice_of_files_shows_foreground(tmp_path):
    # Ten slices: the first holds class 1, the second class 2, the others none.
    filled = [np.zeros((6, 7), np.uint8) for _ in range(10)]
    filled[0][1, 2], filled[1][4, 5] = 1, 2
    images = [np.full((6, 7, 4), number, np.float32) for number in range(10)]
    write_pack(tmp_path / "a.pack", {str(n): Decoded(*pair, (), (1, 1)) for n, pair in enumerate(zip(images, filled, strict=True))})
    cases = list(read_pack(tmp_path / "a.pack").values())
    sampler = PatchSampler("foreground", 1)
    samples, batches = _read_shown(cases, (6, 7), sampler)
    # Positions 0, 3, ..., 297 show one class or the other, each with chance 1/2: 50 of 100 times, and 5 is the standard deviation.
    drawn = [seen for _, seen in samples[::3]]
    assert all(len(seen) == 1 for seen in drawn)
    assert 35 <= sum(seen == {1} for seen in drawn) <= 65
    # The other positions are those of the permutation.
    uniform, _ = _read_shown(cases, (6, 7), PatchSampler("uniform", 1))
    kept = [index for index in range(300) if index % 3]
    assert [samples[index] for index in kept] == [uniform[index] for index in kept]
    # In another epoch the same place of the permutation shows another class.
    assert len({(uniform[index][0], *samples[index][1]) for index in range(0, 300, 3)}) > 10
    assert _same(batches[7:], _read_shown(cases, (6, 7), sampler, batches=53, first_step=7)[1])
    halves = [_read_shown(cases, (6, 7), sampler, 6, 4, host_slice=(host, 2))[0] for host in range(2)]
    whole = _read_shown(cases, (6, 7), sampler, 6, 4)[0]
    assert [one for step in range(4) for half in halves for one in half[3 * step : 3 * step + 3]] == whole
    # A window smaller than the slice lies about the voxel.
    assert all(len(seen) == 1 for _, seen in _read_shown(cases, (3, 4), sampler)[0][::3])


def test_every_third_slice_of_volumes_shows_foreground(tmp_path):
    # Each of three volumes of 20 slices holds its class in slices 8 to 11: 1, 2 and 1.
    cases = _write_cases(tmp_path, [(20, 12, 12)] * 3, np.s_[8:12, 2:4, 9:11])
    sampler = PatchSampler("foreground", 0)
    assert count_samples([case.shape for case in cases], Window((1, 12, 12)), sampler) == 60
    samples, batches = _read_shown(cases, (1, 12, 12), sampler)
    drawn = samples[::3]
    assert {number for number, seen in drawn if seen == {1}} == {1, 3}
    assert {number for number, seen in drawn if seen == {2}} == {2}
    # Class 2 is drawn as often as class 1, although one volume holds it and two hold class 1.
    assert 35 <= sum(seen == {2} for _, seen in drawn) <= 65
    places = [int(image[0, 0, 1]) for images, _ in batches for image in images]
    assert set(places[::3]) == {8, 9, 10, 11}
    uniform = _read(make_pipeline(cases, Window((1, 12, 12)), 4, batch_size=5, training=True), 60)
    assert [one for n, one in enumerate(_first_voxels(batches)) if n % 3] == [one for n, one in enumerate(_first_voxels(uniform)) if n % 3]
    assert all(len(seen) == 1 for _, seen in _read_shown(cases, (1, 4, 4), sampler)[0][::3])


def test_slices_without_any_foreground_come_as_they_are(tmp_path):
    image = np.arange(3 * 4 * 4 * 4, dtype=np.float32).reshape(3, 4, 4, 4)
    write_pack(tmp_path / "a.pack", {str(n): Decoded(one, np.zeros((4, 4), np.uint8), (), (1, 1)) for n, one in enumerate(image)})
    cases = list(read_pack(tmp_path / "a.pack").values())
    one, other = (_read_shown(cases, (4, 4), PatchSampler(name, 1), batches=4)[1] for name in ("foreground", "uniform"))
    assert _same(one, other)


def test_patches_larger_than_a_case_are_filled_up(cases):
    draw = PatchSampler("foreground", 2)
    for images, labels in _read(make_pipeline(cases, Window((8, 8, 8)), 4, batch_size=2, training=True, sampler=draw), 6):
        for image, label in zip(images, labels, strict=True):
            shape = SHAPES[int(image[0, 0, 0, 0]) - 1]
            inside = tuple(slice((8 - size) // 2, (8 - size) // 2 + size) for size in shape)
            np.testing.assert_array_equal(image[inside][..., 1:], np.stack(np.indices(shape), axis=-1))
            assert label.sum() == label[inside].sum() > 0


def test_counts_by_hand(cases):
    assert count_samples([case.shape for case in cases], Window((1, 8, 8)), None) == 6 + 6 + 3
    assert count_samples([case.shape for case in cases], Window((8, 8, 8)), None) == 3
    # Windows of 4, 4, 4 over (6, 5, 4), (6, 7, 4) and (3, 5, 8).
    assert count_samples([case.shape for case in cases], Window((4, 4, 4)), None) == 2 * 2 * 1 + 2 * 2 * 1 + 1 * 2 * 2
    assert count_samples([case.shape for case in cases], Window((4, 4, 4)), PatchSampler(per_case=5)) == 15
