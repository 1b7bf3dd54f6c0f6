"""The recipe: it decides what the user leaves open and nothing else, and no preset leaves it anything that alters a result."""

import dataclasses

import pytest
from helpers import make_fingerprint, make_spec

from dataset import DATASETS
from modules.data.preprocess import Preprocessing
from modules.data.regions import Region
from modules.data.spec import choose_target
from modules.run import recipe
from modules.run.flags import parse_training
from modules.run.plan import make_plan
from modules.run.recipe import Schedule
from modules.run.settings import NETWORK_OPTIONS, PRESETS, Settings

SCANS = make_fingerprint([(64, 64, 64)] * 4)
LENGTHS = [Schedule(1, 1), Schedule(10, 100), Schedule(40, 250), Schedule(1000, 250)]
SPECS = {
    "volumes": make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2}),
    "sides": make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2}, mirrored_labels=((1, 2),)),
    "slices": DATASETS["oasis"],
    "sides of slices": dataclasses.replace(DATASETS["hipmri"], mirrored_labels=((1, 2),)),
}
# A value for each setting that the recipe may choose, which it would hardly choose itself.
OWN = {
    "loss": "focal",
    "batch_dice": False,
    "augment": "none",
    "deep_supervision": False,
    "optimizer": "sgd",
    "learning_rate": 0.123,
    "schedule": "polynomial",
    "warmup_epochs": 0,
    "weight_decay": 0.5,
    "clip_norm": 3.0,
    "ema": 0.25,
    "patience": 7,
    "keep": "best",
    "predict_mirror": "try",
}


@pytest.mark.parametrize("length", LENGTHS, ids=lambda length: str(length.steps))
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_plan_leaves_nothing_of_a_training_open(spec, length):
    settings = Settings("d")
    plan = make_plan(settings, spec, make_fingerprint([(64,) * spec.spatial_dims] * 4), length)
    filled = plan.resolve(settings)
    assert not [name for name in (*OWN, "epochs") if filled.is_open(name)]
    assert (filled.epochs, filled.minutes) == (length.epochs, None)
    assert filled.network_options["base_filters"] >= 1
    # The table of the plan shows these.
    assert all(plan.reasons[name] for name in ("mode", "network", "intensity", "window", "batch", "augment"))


@pytest.mark.parametrize("length", LENGTHS, ids=lambda length: str(length.steps))
def test_what_the_user_sets_stays(length):
    assert not set(make_plan(Settings("d", **OWN), SPECS["volumes"], SCANS, length).recipe) & set(OWN)
    for name, value in OWN.items():
        plan = make_plan(Settings("d", **{name: value}), SPECS["volumes"], SCANS, length)
        assert set(OWN) - set(plan.recipe) == {name}
        assert getattr(Settings("d", **{name: value}).fill({name: "other"}), name) == value
    plan = make_plan(Settings("d", batch_size=3, network="unet3d", network_options={"base_filters": 5}), SPECS["volumes"], SCANS, length)
    assert (plan.batch_size, plan.network, plan.recipe["base_filters"]) == (3, "unet3d", 5)


def test_long_trainings_are_augmented_without_bending():
    def choose(steps):
        settings = Settings("d", shape=(64, 64, 64), batch_size=1)
        return make_plan(settings, SPECS["volumes"], SCANS, Schedule(1, steps)).recipe["augment"]

    augmented = [choose(4**power) for power in range(2, 10)]
    assert augmented == sorted(augmented, key=["none", "mild", "full"].index)
    assert set(augmented) == {"none", "mild", "full"}


def test_only_decoder_levels_below_full_resolution_are_supervised():
    def choose(length, **settings):
        return make_plan(Settings("d", **settings), SPECS["volumes"], SCANS, length).recipe["deep_supervision"]

    assert [choose(length) for length in LENGTHS] == [False, False, False, True]
    # Other networks have none that are named, and a network of one level has none at all: the training would be refused.
    assert [choose(LENGTHS[-1], network=name) for name in ("residual_unet", "unet3d", "segresnet", "unetr")] == [True, True, False, False]
    assert not choose(LENGTHS[-1], network="unet3d", network_options={"levels": 1})


def test_one_side_alone_is_never_mirrored():
    names = {"class_names": ("background", "left lung", "right lung")}
    lungs = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2}, mirrored_labels=(names["class_names"][1:],), **names)
    regions = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2}, regions=(Region((1,), 1), Region((2,), 2)), **names)
    left, right, both = (choose_target(lungs, target) for target in (["left lung"], ["right lung"], ["right lung", "left lung"]))
    # So long a training flips, and both sides change places or are one class.
    for spec, augment in ((lungs, "full"), (both, "full"), (left, "mild"), (right, "mild"), (regions, "mild")):
        plan = make_plan(Settings("d", shape=(64, 64, 64), batch_size=1), spec, SCANS, Schedule(1, 4**7))
        assert plan.recipe["augment"] == augment
    assert choose_target(regions, ["left lung", "right lung"]).one_sided is False
    with pytest.raises(ValueError, match="^Expected `augment` without flips, which would show left lung of 'd' on the other side too. Rec"):
        make_plan(Settings("d", augment="light"), left, SCANS, LENGTHS[1])
    make_plan(Settings("d", augment="light"), both, SCANS, LENGTHS[1])


def test_few_validation_subjects_choose_no_epoch():
    def choose(subjects, **settings):
        scans = dataclasses.replace(SCANS, subjects=subjects)
        return make_plan(Settings("d", **settings), SPECS["volumes"], scans, LENGTHS[1]).recipe.get("keep")

    assert (choose(99), choose(100)) == ("last", "best")
    # What the validation ends, or a rate that never falls, it must choose too.
    assert [choose(4, **own) for own in ({"patience": 3}, {"stop_at_dice": 0.7}, {"schedule": "constant"})] == ["best"] * 3
    assert choose(4, keep="best") is None


def test_flips_at_prediction_are_tried_where_the_training_flips_and_is_long():
    def choose(length, **settings):
        return make_plan(Settings("d", shape=(64, 64, 64), batch_size=1, **settings), SPECS["volumes"], SCANS, length).recipe[
            "predict_mirror"
        ]

    # A validation or test case for the four cases of training, of one window in eight turns: 5 % of 160 steps.
    assert [choose(Schedule(1, steps), augment="light") for steps in (159, 160)] == ["never", "try"]
    assert [choose(Schedule(1, 1600), augment=name) for name in ("none", "mild", "strong")] == ["never", "never", "try"]


def _plan(name):
    settings = parse_training(["--preset", name], DATASETS).settings
    spec = choose_target(DATASETS[settings.dataset], settings.target)
    return settings, make_plan(settings, spec, make_fingerprint([(64,) * spec.spatial_dims] * 4))


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"demo", "demo3d"}))
def test_another_recipe_changes_no_preset(name, monkeypatch):
    settings, plan = _plan(name)
    assert set(plan.recipe) <= {"epochs", *NETWORK_OPTIONS}
    # Were every rule another one, the plan would be the same, but for the reasons.
    monkeypatch.setattr(recipe, "NETWORKS", {2: "efficientnet_unet", 3: "resunet3d"})
    monkeypatch.setattr(recipe, "BASE_FILTERS", 7)
    monkeypatch.setattr(recipe, "MOST_PATCH", {"cpu": 16**3, "gpu": 16**3})
    monkeypatch.setattr(recipe, "BATCH", {2: 3, 3: 3})
    monkeypatch.setattr(recipe, "WHOLE", Schedule(5, 5))
    # Whole volumes are not drawn.
    other = OWN if settings.mode == "volume" else {"sampling": "foreground", **OWN}
    monkeypatch.setattr(recipe, "choose_recipe", lambda settings, *_: {key: value for key, value in other.items() if settings.is_open(key)})
    _, again = _plan(name)
    assert again.resolve(settings) == plan.resolve(settings)
    assert dataclasses.replace(again, recipe=plan.recipe, reasons=plan.reasons) == plan


@pytest.mark.parametrize("flags", [["--dataset", "oasis"], ["--dataset", "ibsr18"]])
def test_a_demo_leaves_no_part_of_its_training_open(flags):
    settings = parse_training([*flags, "--demo"], DATASETS).settings
    spec = DATASETS[settings.dataset]
    plan = make_plan(settings, spec, make_fingerprint([(64,) * spec.spatial_dims] * 4))
    assert not set(plan.recipe) & set(OWN)
