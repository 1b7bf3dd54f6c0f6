"""The plan: each decision follows from settings, data set and scans alone, and a file keeps it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import make_fingerprint

from dataset import DATASETS
from modules.data.patches import Window
from modules.data.pipeline import PatchSampler
from modules.hardware import Hardware
from modules.run.folder import RunFolder
from modules.run.plan import Plan, draft_plan, make_plan
from modules.run.plan_table import describe_plan
from modules.run.settings import Settings
from modules.run.sizes import count_samples_that_fit, derive_window
from modules.run.topology import Topology

BRAINS = replace(DATASETS["ibsr18"], name="brains")
SCANS = make_fingerprint([(40, 50, 33), (41, 48, 30), (36, 56, 35)])


def _plan(fingerprint=SCANS, spec=BRAINS, **settings):
    return make_plan(Settings("ibsr18", **{"epochs": 1, **settings}), spec, fingerprint)


def _describe(**settings):
    plan = _plan(**settings)
    return describe_plan(plan, plan.resolve(Settings("ibsr18", **{"epochs": 1, **settings})))


def test_slices_of_files_are_tiled_and_an_epoch_takes_one_patch_of_each():
    plan = _plan(make_fingerprint([(128, 96)] * 100), DATASETS["oasis"], batch_size=16)
    assert (plan.mode, plan.network, plan.levels, plan.fit) == ("slice", "unet2d", 4, "tile")
    assert (plan.window, plan.batch_size, plan.steps_per_epoch) == (Window((128, 96)), 16, 7)
    assert plan.sampler == PatchSampler("foreground", 1)
    assert (plan.preprocessing.shape, plan.preprocessing.resize) == ((), False)


def test_slices_show_foreground_unless_they_are_to_come_evenly():
    slices = make_fingerprint([(256, 256)] * 100)
    assert _plan(slices, DATASETS["oasis"], sampling="uniform").sampler == PatchSampler("uniform", 1)
    # Slices of volumes come once an epoch, as without a sampler.
    plan = _plan(mode="slice", plane="axial", batch_size=1)
    assert (plan.sampler, plan.steps_per_epoch) == (PatchSampler("foreground", 0), 98)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json())), "plan.json") == plan
    plan = _plan(mode="slice", plane="axial", batch_size=1, sampling="uniform")
    assert (plan.sampler, plan.steps_per_epoch) == (None, 98)


@pytest.mark.parametrize(
    ("shape", "foreground", "window"),
    # 256 * 144 = 36,864 pixels are no more than 40,000. Of 65,536 pixels 32,768 are left, or 16,384 where foreground is sparse.
    [((256, 144), 0.05, (256, 144)), ((256, 256), 0.05, (128, 128)), ((256, 256), 0.2, (176, 176))],
)
def test_a_cpu_learns_large_slices_by_crops(shape, foreground, window):
    pixels = shape[0] * shape[1]
    scans = make_fingerprint([shape] * 9, voxels=(pixels - int(foreground * pixels), int(foreground * pixels)))
    assert _plan(scans, DATASETS["lgg"]).window == Window(window)


@pytest.mark.parametrize("network", ["plain_unet", "residual_unet"])
@pytest.mark.parametrize("shape", [(256, 144), (256, 256), (700, 2)])
def test_slices_fit_the_strides_of_a_network_that_chooses_them(network, shape):
    plan = _plan(make_fingerprint([shape] * 9, voxels=(8, 2)), DATASETS["lgg"], network=network)
    divisors = [math.prod(stride[axis] for stride in plan.strides) for axis in range(2)]
    assert [size % divisor for size, divisor in zip(plan.window.sizes, divisors, strict=True)] == [0, 0]


@pytest.mark.parametrize("mode", ["patch", "volume"])
def test_a_volume_of_one_slice_within_its_margins_has_a_window_of_three_dimensions(mode):
    scans = make_fingerprint([(64, 48, 9)] * 3, box=((0, 64), (0, 48), (4, 5)))
    assert len(_plan(scans, mode=mode, crop="foreground").window.shape) == 3


def test_patches_tile_volumes_and_are_drawn():
    plan = _plan(sampling="weighted", class_probabilities=(1.0, 1.0, 2.0, 2.0), patches_per_case=5, batch_size=2)
    # The medians of (36, 40, 41), (48, 50, 56) and (30, 33, 35) are 40, 50 and 33. Each goes up to a multiple of 8.
    assert (plan.mode, plan.network, plan.levels, plan.fit, plan.window) == ("patch", "plain_unet", 3, "tile", Window((40, 56, 40)))
    assert (plan.strides, plan.kernels) == (((2, 2, 2),) * 3, ((3, 3, 3),) * 4)
    assert plan.sampler == PatchSampler("weighted", 5, (1.0, 1.0, 2.0, 2.0))
    assert (plan.batch_size, plan.steps_per_epoch) == (2, 8)
    assert plan.preprocessing.shape == ()


def test_the_sizes_of_a_shape_say_whether_it_is_that_of_a_slice():
    flat = make_fingerprint([(64, 64, 16)] * 4, (1.0, 1.0, 4.0))
    assert (_plan(flat).mode, _plan(flat).recipe["mode"]) == ("slice", "slice")
    # A CPU would learn these by slices, but three sizes are those of a patch.
    plan = _plan(flat, shape=(32, 32, 16))
    assert (plan.mode, plan.window.sizes, plan.reasons["mode"]) == ("patch", (32, 32, 16), "a set of volumes")
    # And these by patches, but two sizes are those of a slice.
    plan = _plan(shape=(32, 48))
    assert (plan.mode, plan.plane, plan.window.sizes, plan.reasons["mode"]) == ("slice", "axial", (32, 48, 1), "--shape has two sizes")
    with pytest.raises(ValueError, match="Expected `shape` of 3 numbers for 'brains' in mode 'patch'"):
        _plan(mode="patch", shape=(32, 48))


@pytest.mark.parametrize("hardware", [None, Hardware("gpu", device_bytes=80 << 30)])
def test_slices_of_flat_voxels_lie_across_their_long_side(hardware):
    def choose(depths_mm, **settings):
        settings = Settings("ibsr18", epochs=1, **settings)
        plan = make_plan(settings, BRAINS, make_fingerprint([(16, 64, 64)] * 4, depths_mm), hardware=hardware)
        return plan.plane, plan.window.sizes, plan.resolve(settings).plane

    sagittal = (4.0, 1.0, 1.0)
    assert choose(sagittal, mode="slice") == ("sagittal", (1, 64, 64), "sagittal")
    assert choose(sagittal, shape=(32, 48)) == ("sagittal", (1, 32, 48), "sagittal")
    # The user's plane stays, and so do slices of voxels that are hardly flat.
    assert choose(sagittal, mode="slice", plane="coronal")[0] == "coronal"
    assert choose((2.9, 1.0, 1.0), mode="slice") == ("axial", (16, 64, 1), "")


def test_whole_volumes_are_resampled():
    plan = _plan(mode="volume", network="resunet3d", batch_size=1)
    assert (plan.fit, plan.window, plan.levels) == ("resample", Window((48, 64, 48)), 4)
    assert plan.reasons["spacing"] == "each volume is brought to the window"
    assert (plan.preprocessing.shape, plan.preprocessing.resize, plan.steps_per_epoch) == ((48, 64, 48), True, 3)


def test_fewer_levels_fit_a_window_closer_to_the_scans():
    plan = _plan(network="unet3d", network_options={"levels": 1})
    assert (plan.levels, plan.window) == (1, Window((40, 50, 34)))
    # The encoder of this network is fixed.
    assert _plan(mode="slice", network="efficientnet_unet", shape=(32, 32)).levels is None
    with pytest.raises(ValueError, match="Expected options of network 'efficientnet_unet' in .*Received: 'levels'"):
        _plan(mode="slice", network="efficientnet_unet", network_options={"levels": 2})


@pytest.mark.parametrize(
    ("plane", "sizes", "slices"), [("sagittal", (1, 64, 48), 117), ("coronal", (48, 1, 48), 154), ("axial", (48, 64, 1), 98)]
)
def test_slices_of_volumes_are_counted_across_their_plane(plane, sizes, slices):
    plan = _plan(mode="slice", plane=plane, batch_size=1)
    assert (plan.window.sizes, plan.network, plan.fit, plan.steps_per_epoch) == (sizes, "unet2d", "tile", slices)


@pytest.mark.parametrize("mode", ["patch", "volume"])
def test_a_given_shape_and_spacing_are_what_is_planned(mode):
    plan = _plan(mode=mode, shape=(32, 16, 8), spacing=(1.0, 2.0, 3.0), interpolation="cubic", intensity="min_max", crop="none")
    assert plan.window == Window((32, 16, 8))
    assert (plan.preprocessing.spacing_mm, plan.preprocessing.interpolation) == ((1.0, 2.0, 3.0), "cubic")
    assert (plan.preprocessing.intensity, plan.preprocessing.foreground_crop) == ("min_max", False)
    assert (plan.reasons["window"], plan.reasons["spacing"]) == ("set", "set")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "unet2d"}, r"Expected a 3-D `network` for mode 'patch', one of \('plain_unet', .*Received: 'unet2d'"),
        ({"mode": "slice", "shape": (1, 2, 3)}, r"Expected `shape` of 2 numbers for 'brains' in mode 'slice'. Received: \(1, 2, 3\)"),
        ({"spacing": (1.0, 2.0)}, "Expected `spacing` of 3 numbers for 'brains' in mode 'patch'"),
        ({"class_probabilities": (1.0, 2.0)}, "Expected `class_probabilities` of 4 numbers"),
        (
            {"network_options": {"variant": "b1"}},
            "Expected options of network 'plain_unet' in .*Received: 'variant'",
        ),
        ({"tolerance_mm": (1.0, 2.0)}, "Expected `tolerance_mm` of one number, or of 3 for CSF, .*Received: 2 numbers"),
        ({"network_options": {"base_filters": 0}}, "Expected `base_filters` of 1 or more. Received: 0"),
        ({"network_options": {"dropout": -0.1}}, "Expected `dropout` of 0 or more. Received: -0.1"),
    ],
)
def test_settings_that_do_not_fit_show_before_a_file_is_read(settings, message):
    with pytest.raises(ValueError, match=message):
        draft_plan(Settings("ibsr18", **settings), BRAINS)
    with pytest.raises(ValueError, match="Expected `mode` 'slice' for 'oasis', which is a set of slices. Received: 'patch'"):
        draft_plan(Settings("oasis", mode="patch"), DATASETS["oasis"])


@pytest.mark.parametrize("settings", [{}, {"mode": "slice"}, {"mode": "volume", "shape": (16, 16, 16)}])
def test_a_plan_survives_its_file(settings):
    plan = _plan(**settings)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json())), "plan.json") == plan
    with pytest.raises(ValueError, match=r"Expected the field `plane` in plan.json. Received: none of that name. Start the run anew"):
        Plan.from_json({"mode": "patch"}, "plan.json")


def test_a_plan_whose_window_is_not_that_of_its_cases_is_refused():
    values = json.loads(json.dumps(_plan(mode="volume", shape=(16, 16, 16)).to_json()))
    with pytest.raises(ValueError, match=r"Expected a plan in plan.json. Received: .*window \(32, 16, 16\) of cases of \(16, 16, 16\)"):
        Plan.from_json(values | {"window": [32, 16, 16]}, "plan.json")
    for changed, message in (
        ({"batch_size": 0}, "a whole number from 1 to 1,048,576 for `batch_size` in plan.json. Received: 0"),
        ({"steps_per_epoch": math.inf}, "for `steps_per_epoch` in plan.json. Received: inf"),
        (
            {"preprocessing": values["preprocessing"] | {"std": 0}},
            "above 0 .*for `preprocessing.std` in plan.json. Received: 0",
        ),
        ({"sampler": {"sampling": "x", "per_case": 1, "probabilities": []}}, "for `sampler.sampling` in plan.json. Received: 'x'"),
        ({"cheese": "c" * 10_000_000}, "Expected no fields but .* in plan.json. Received: 'cheese'"),
        ({"mode": "m" * 10_000_000}, "^.{1,600}$"),
    ):
        with pytest.raises(ValueError, match=message):
            Plan.from_json(values | changed, "plan.json")


def test_a_plan_is_told_in_few_lines_with_a_reason_each():
    lines = _describe(mode="slice", plane="sagittal", batch_size=3)
    costs = {"weights": 1_234_567, "step_s": 0.25, "seconds": 600.0, "memory_bytes": 3 << 29, "disk_bytes": 1 << 28}
    plan = replace(_plan(mode="slice", batch_size=3), costs=costs)
    told = describe_plan(plan, plan.resolve(Settings("ibsr18", epochs=1)))
    assert len(lines) == 12
    assert len(told) <= 15
    assert [line.split()[:2] for line in (*lines, *told)] == [["plan", line.split()[1]] for line in (*lines, *told)]
    text = [" ".join(line.split()) for line in lines]
    assert "plan window 64x48, tile from the shapes of 3 training cases" in text
    assert "plan batch 3 set" in text
    assert [" ".join(line.split()) for line in told[12:]] == [
        "plan memory 1.5 GiB 1,234,567 weights, estimated",
        "plan time 10.0 min 0.25 s a step, estimated",
        "plan disk 0.25 GiB of the cache",
    ]


def test_shape_spacing_and_batch_size_reach_the_bundle_by_the_plan(phantoms, tmp_path, monkeypatch):
    import train
    from modules.predict.bundle import ModelBundle

    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--name", "a"]
    flags = ["--shape", "16", "16", "16", "--spacing", "6", "6", "6", "--batch-size", "3", "--epochs", "1", "--base-filters", "2"]
    assert train.main(["--dataset", "ibsr18", "--data", str(phantoms / "ibsr18"), *flags, "--patches-per-case", "1", *places]) == 0
    run = RunFolder(tmp_path / "runs" / "a")
    plan, bundle = run.read_plan(), ModelBundle.load(run.path)
    assert (plan.window, plan.preprocessing.spacing_mm, plan.batch_size) == (Window((16, 16, 16)), (6.0, 6.0, 6.0), 3)
    assert (bundle.window, bundle.preprocessing) == (plan.window, plan.preprocessing)


@pytest.mark.parametrize(
    ("shapes", "mode", "plane", "divisor", "expected"),
    [
        # The largest extents across the plane, up to the next multiple.
        ([(256, 256, 128), (288, 250, 112)], "slice", 2, 16, (288, 256, 1)),
        ([(256, 256, 128), (288, 250, 112)], "slice", 0, 16, (1, 256, 128)),
        ([(17, 3, 9)], "slice", 1, 8, (24, 1, 16)),
        # A single huge case does not decide for all others: twice their median is enough.
        ([(64, 64, 9)] * 3 + [(2000, 100, 9)], "slice", 2, 16, (128, 112, 1)),
        # The median is small enough and is only padded.
        ([(35, 50, 36), (31, 40, 24), (43, 59, 47)], "patch", 2, 8, (40, 56, 40)),
        # 256 x 256 x 128 x s**3 = 96**3 gives 121, 121, 60. Rounded up, 128, 128, 64 is too much, so the largest sizes shrink.
        ([(256, 256, 128)], "patch", 2, 8, (112, 120, 64)),
        ([(256, 256, 128)], "volume", 2, 8, (112, 120, 64)),
        ([(512, 512, 16)], "patch", 2, 16, (224, 240, 16)),
        ([(96, 96, 96)], "patch", 2, 32, (96, 96, 96)),
        # A divisor larger than a size.
        ([(5, 100, 100)], "patch", 2, 16, (16, 112, 112)),
    ],
)
def test_windows_by_hand(shapes, mode, plane, divisor, expected):
    assert derive_window(shapes, mode, plane, divisor) == expected


def test_derived_windows_divide_and_keep_their_budget():
    rng = np.random.default_rng(0)
    for _ in range(300):
        shapes = rng.integers(1, 400, (int(rng.integers(1, 6)), 3))
        divisor = int(rng.choice([8, 16, 32]))
        window = derive_window(shapes, "patch", 2, divisor)
        assert all(type(size) is int and size % divisor == 0 and size >= divisor for size in window)
        assert np.prod(window) <= 96**3
        # No size exceeds the median rounded up, because there would be nothing to see.
        assert all(size < median + divisor for size, median in zip(window, np.median(shapes, axis=0), strict=True))


def test_the_samples_of_a_step_have_a_reason():
    scans, gpu = make_fingerprint([(64, 64, 64)] * 40), Hardware("gpu", device_bytes=80 << 30)
    # 5 % of 40 scans are two windows; of 400 they are 20, more than 16.
    for fingerprint, hardware, settings, expected in (
        (scans, None, {}, (1, "few, as many steps teach a CPU's network more")),
        (scans, gpu, {}, (2, "5 % of all voxels")),
        (make_fingerprint([(64, 64, 64)] * 9), gpu, {}, (2, "at least 2")),
        (make_fingerprint([(64, 64, 64)] * 400), gpu, {}, (16, "at most 16 in 3-D")),
        (scans, gpu, {"network": "segresnet"}, (1, "few, as the memory of segresnet is not known")),
        (scans, gpu, {"batch_size": 3}, (3, "set")),
    ):
        plan = make_plan(Settings("ibsr18", epochs=1, **settings), BRAINS, fingerprint, hardware=hardware)
        assert (plan.batch_size, plan.reasons["batch"]) == expected
    assert _plan(make_fingerprint([(64, 64)] * 9, voxels=(4096, 1)), DATASETS["oasis"]).reasons["batch"].endswith("; foreground is sparse")


def test_a_gpu_holds_less_in_float32_than_it_could_in_half_precision():
    def choose(precision, *, able):
        scans = make_fingerprint([(200, 200, 200)] * 40)
        hardware = Hardware("gpu", device_bytes=8 << 30, bfloat16=able)
        plan = make_plan(Settings("ibsr18", epochs=1, precision=precision), BRAINS, scans, hardware=hardware)
        return plan.window.sizes

    assert choose("float32", able=True) == choose("auto", able=False)
    assert choose("float16", able=False) == choose("auto", able=True)
    assert math.prod(choose("float32", able=True)) < math.prod(choose("auto", able=True))


@pytest.mark.parametrize(
    ("network", "scans", "spec"),
    [
        # A mammogram, and a patch of a network that halves all axes.
        ("", make_fingerprint([(4096, 3328)] * 40), DATASETS["lgg"]),
        ("plain_unet", make_fingerprint([(4096, 3328)] * 40), DATASETS["lgg"]),
        ("unet3d", make_fingerprint([(300, 300, 200)] * 40), BRAINS),
    ],
)
def test_a_gpu_holds_two_samples_of_each_network_whose_costs_are_known(network, scans, spec):
    def choose(gigabytes):
        hardware = Hardware("gpu", device_bytes=gigabytes << 30, bfloat16=True)
        plan = make_plan(Settings("d", epochs=1, network=network), spec, scans, hardware=hardware)
        strides = plan.strides or ((2,) * len(plan.window.shape),) * plan.levels
        shape = Topology(plan.network, strides, ((3,) * len(plan.window.shape),) * (len(strides) + 1), plan.recipe["base_filters"])
        assert count_samples_that_fit(shape, plan.window.shape, spec, hardware) >= 2
        return math.prod(plan.window.sizes)

    sizes = [choose(gigabytes) for gigabytes in (4, 8, 24, 2000)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2]
    # With memory enough a slice is whole, and a patch as large as any.
    assert sizes[3] == 4096 * 3328 or 0.8 * 160**3 < sizes[3] <= 160**3


def test_a_patch_of_a_network_of_unknown_memory_is_small():
    hardware = Hardware("gpu", device_bytes=8 << 30)
    plan = make_plan(Settings("d", epochs=1, network="segresnet"), BRAINS, make_fingerprint([(300, 300, 200)] * 9), hardware=hardware)
    assert 0.8 * 96**3 < math.prod(plan.window.sizes) <= 96**3


def test_more_batches_an_update_than_steps_would_leave_the_weights_as_they_were():
    # 3 scans of 8 patches, 2 a batch, make 12 steps an epoch.
    assert _plan(epochs=2, accumulate=24, batch_size=2).steps_per_epoch == 12
    with pytest.raises(ValueError, match="Expected `accumulate` up to the 24 steps of the whole training. Received: 25"):
        _plan(epochs=2, accumulate=25, batch_size=2)


@pytest.mark.parametrize("intensity", ["ct", "own"])
def test_contrasts_are_not_drawn_where_intensities_mean_the_same_in_each_scan(intensity):
    spec = replace(BRAINS, preprocessing=replace(BRAINS.preprocessing, intensity="fixed"))
    with pytest.raises(
        ValueError, match=r"Expected `intensity` measured in each scan beside `augment` 'synthetic'. Received: '(ct|fixed)'"
    ):
        _plan(spec=spec, augment="synthetic", intensity=intensity)
    assert _plan(spec=spec, augment="synthetic", intensity="zscore").preprocessing.intensity == "zscore"
    assert _plan(spec=spec, augment="strong", intensity=intensity).preprocessing.intensity in ("ct", "fixed")
