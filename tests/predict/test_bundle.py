"""A bundle comes back as it was saved, or is refused."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from modules.data.case import Case, LabelRule, Volume
from modules.data.files import TEMPORARY
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.data.regions import IGNORE, Region
from modules.networks import build, with_head
from modules.predict.bundle import ModelBundle, find_bundle, set_mirror, set_postprocessing, write_description
from modules.predict.cases import PredictionOptions, cut_samples, predict_cases, predict_images
from modules.predict.postprocess import Postprocessing, Step
from modules.run.proof import hash_weights


def make_bundle(num_classes=3, channels=("T1",)):
    """A tiny untrained bundle of 16x32."""
    keras.utils.set_random_seed(1)
    return ModelBundle(
        model=with_head(build("unet2d", (16, 32, len(channels)), num_classes, base_filters=2, levels=1)),
        preprocessing=Preprocessing(2, shape=(16, 32)),
        window=Window((16, 32)),
        class_names=("background", "a", "b")[:num_classes],
        channels=channels,
        label_rule=LabelRule(dict(list({0: 0, 85: 1, 170: 2}.items())[:num_classes]), renames=(("^case_", "seg_"),), source="oasis"),
        mirrored_labels=((1, 2),)[: num_classes - 2],
        flipped_axes=(1,),
        postprocessing=Postprocessing((Step("remove_small", 1, 2.5), Step("fill_holes", 1))),
        precision="bfloat16",
        provenance={"dataset": "oasis", "seed": 42},
    )


def _volume(rows, columns, channels=1, seed=0):
    return Volume(np.random.default_rng(seed).random((rows, columns, channels), np.float32), None, (1.0, 1.0))


def test_round_trip(tmp_path):
    bundle = make_bundle()
    bundle.save(tmp_path / "bundle")
    for folder in (tmp_path, tmp_path / "bundle"):
        loaded = ModelBundle.load(folder)
        for item in dataclasses.fields(bundle)[1:]:
            assert getattr(loaded, item.name) == getattr(bundle, item.name)
        assert hash_weights(loaded.model) == hash_weights(bundle.model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def _make_bundle_of_regions():
    """A tiny untrained bundle of a whole of two parts, and of one of them; some labels hold voxels to ignore."""
    return dataclasses.replace(
        make_bundle(),
        model=with_head(build("unet2d", (16, 32, 1), 3, num_regions=2, base_filters=2, levels=1), regions=True),
        class_names=("background", "whole", "core"),
        label_rule=LabelRule({0: 0, 1: 1, 2: 2, 3: IGNORE}, source="msd"),
        regions=(Region((1, 2), 1), Region((2,), 2)),
        mirrored_labels=(),
        postprocessing=Postprocessing(),
    )


def test_a_bundle_of_regions_comes_back_and_an_older_one_has_none(tmp_path):
    bundle = _make_bundle_of_regions()
    assert (bundle.num_maps, make_bundle().num_maps, make_bundle(2).num_maps) == (2, 3, 2)
    bundle.save(tmp_path / "a")
    loaded = ModelBundle.load(tmp_path / "a", "keras")
    assert (loaded.regions, loaded.label_rule) == (bundle.regions, bundle.label_rule)
    make_bundle().save(tmp_path / "b")
    record = json.loads((tmp_path / "b" / "bundle.json").read_text())
    del record["bundle_sha256"], record["regions"]
    write_description(tmp_path / "b", record | {"format": 5})
    assert ModelBundle.load(tmp_path / "b", "keras").regions == ()
    # A network of one output a class cannot be one of regions.
    record = json.loads((tmp_path / "a" / "bundle.json").read_text()) | {"regions": []}
    write_description(tmp_path / "a", {name: value for name, value in record.items() if name != "bundle_sha256"})
    with pytest.raises(ValueError, match=r"Expected a model of output \(None, 16, 32, 3\), as bundle.json says"):
        ModelBundle.load(tmp_path / "a", "keras")


def test_models_of_other_regions_make_no_ensemble():
    bundle = _make_bundle_of_regions()
    other = dataclasses.replace(bundle, regions=(Region((1, 2), 2), Region((1,), 1)))
    with pytest.raises(ValueError, match=r"Expected models of the same regions for an ensemble, \(Region.*Received: "):
        next(predict_cases([bundle, other], []))


def test_samples_are_windows_as_the_model_gets_them(write_picture, write_nifti):
    bundle = make_bundle()
    pictures = [np.random.default_rng(number).integers(0, 255, shape, np.uint8) for number, shape in enumerate([(16, 32), (16, 96)])]
    cases = [Case(str(number), "s", (write_picture(f"{number}.png", picture),)) for number, picture in enumerate(pictures)]
    scaled = [(picture - picture.min()) / np.ptp(picture) for picture in pictures]
    # Windows of the wide picture begin at 0, 16, 32, 48 and 64. The first one after a third of them is the second.
    expected = np.stack([scaled[0], scaled[1][:, 16:48]])[..., np.newaxis]
    samples = cut_samples(bundle, cases)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, expected, atol=1e-6)
    # Coronal slices of a volume have no axis that they lie across.
    scan = np.random.default_rng(2).random((16, 9, 32), np.float32)
    deep = dataclasses.replace(bundle, preprocessing=Preprocessing(3, intensity="fixed"), window=Window((16, 1, 32)))
    samples = cut_samples(deep, [Case("scan", "s", (write_nifti("scan.nii.gz", scan),))])
    np.testing.assert_allclose(samples[..., 0], [scan[:, 4], scan[:, 3]], atol=1e-6)


def _predict(bundle, images, batch_size):
    """Predicts slices and returns the one plane of each."""
    return [next(planes) for planes in predict_images(bundle, images, PredictionOptions(batch_size=batch_size))]


@pytest.mark.parametrize("num_classes", [2, 3])
def test_prediction_does_not_depend_on_the_batch_and_keeps_each_grid(num_classes):
    bundle = make_bundle(num_classes)
    images = [_volume(16, 32, seed=1), _volume(16, 40, seed=2), _volume(10, 20, seed=3)]
    together = _predict(bundle, images, 2)
    for image, probabilities in zip(images, together, strict=True):
        assert probabilities.shape == (*image.array.shape[:2], num_classes)
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
        np.testing.assert_allclose(_predict(bundle, [image], 1)[0], probabilities, atol=1e-5)
    # Two windows see a slice that is wider than the window. Its outer columns come from one of them alone.
    wide = images[1].array
    for start, columns in ((0, np.s_[:8]), (8, np.s_[-8:])):
        window = (wide[:, start : start + 32] - wide.min()) / np.ptp(wide)
        alone = np.asarray(bundle.model.predict_on_batch(window[np.newaxis]))[0]
        alone = np.concatenate([1 - alone, alone], axis=-1) if num_classes == 2 else alone
        np.testing.assert_allclose(together[1][:, columns], alone[:, columns], atol=1e-5)


def test_another_rank_or_number_of_channels_is_refused_by_name(write_picture, write_nifti):
    bundle = make_bundle()
    colour = write_picture("colour.png", np.zeros((16, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"Expected 1 channel\(s\) \(T1\) for this model. Received: 3 in .*colour.png"):
        list(predict_cases([bundle], [Case("c", "s", (colour,))]))
    scan = write_nifti("scan.nii.gz", np.zeros((8, 9, 10), np.float32))
    with pytest.raises(ValueError, match=r"Expected a 2-D image for this model. Received: 3-D, \(8, 9, 10\), in .*scan.nii.gz"):
        list(predict_cases([bundle], [Case("c", "s", (scan,))]))


def test_a_save_that_was_killed_between_its_renames_loses_nothing(tmp_path):
    bundle = make_bundle()
    bundle.save(tmp_path / "bundle")
    (tmp_path / "bundle").rename(tmp_path / f"{TEMPORARY}bundle.old")
    assert hash_weights(ModelBundle.load(tmp_path).model) == hash_weights(bundle.model)
    bundle.save(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_values_of_the_file_come_back():
    np.testing.assert_array_equal(make_bundle().label_rule.to_file_values(np.array([[0, 1, 2]])), [[0, 85, 170]])


def _cut(folder: Path):
    path = folder / "model.keras"
    path.write_bytes(path.read_bytes()[:-1])


def _flip(folder: Path):
    path = folder / "model.keras"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _edit(folder: Path):
    record = json.loads((folder / "bundle.json").read_text())
    record["class_names"][1] = "b"
    (folder / "bundle.json").write_text(json.dumps(record))


def _garble(folder: Path):
    (folder / "bundle.json").write_text("{")


def _empty(folder: Path):
    (folder / "bundle.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "cut or altered"),
        (_flip, "cut or altered"),
        (_edit, "a file altered since"),
        (_garble, "Expected JSON in .*bundle.json. Received: Expecting property name"),
        (_empty, "description in .*bundle.json"),
    ],
)
def test_a_damaged_bundle_is_refused(tmp_path, damage, message):
    make_bundle().save(tmp_path / "bundle")
    damage(tmp_path / "bundle")
    with pytest.raises(ValueError, match=message):
        ModelBundle.load(tmp_path)


def test_a_model_that_carries_code_is_refused(tmp_path):
    bundle = make_bundle()
    inputs = keras.Input((16, 32, 1))
    unsafe = keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs))
    ModelBundle(**{**vars(bundle), "model": unsafe}).save(tmp_path / "bundle")
    with pytest.raises(ValueError, match="[Ll]ambda"):
        ModelBundle.load(tmp_path)


def test_no_bundle_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="no bundle.json there. Give a finished run"):
        ModelBundle.load(tmp_path)


def test_a_bundle_of_format_3_is_converted_and_an_unknown_one_refused(tmp_path):
    bundle = make_bundle()
    bundle.save(tmp_path / "bundle")
    path = tmp_path / "bundle" / "bundle.json"
    record = json.loads(path.read_text())
    del record["bundle_sha256"], record["version"]
    rule = record.pop("label_rule")
    # Format 3 kept the label's values in places of their own, and no rule for its name.
    del record["postprocessing"]
    old = record | {"format": 3, "label_values": rule["values"], "output_values": rule["output_values"]}
    write_description(tmp_path / "bundle", old)
    loaded = ModelBundle.load(tmp_path, "keras")
    assert loaded.label_rule == dataclasses.replace(bundle.label_rule, renames=())
    assert (loaded.window, loaded.preprocessing, loaded.mirrored_labels) == (bundle.window, bundle.preprocessing, bundle.mirrored_labels)
    write_description(tmp_path / "bundle", old | {"format": 2})
    with pytest.raises(ValueError, match=r"Expected a bundle of `format` 3 to 8 in .*bundle.json. Received: 2. Train it again"):
        ModelBundle.load(tmp_path)


def test_a_bundle_of_format_5_is_read_and_has_no_postprocessing(tmp_path):
    bundle = make_bundle()
    bundle.save(tmp_path / "bundle")
    record = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    ranges = {"spacing_mm": [[1, 2]] * 2, "extent_mm": [[1, 2]] * 2, "quartiles": [[[0, 1]] * 3], "spread": [[1, 2]], "share": [[1, 2]]}
    old = {name: value for name, value in record.items() if name not in ("postprocessing", "bundle_sha256")}
    write_description(tmp_path / "bundle", old | {"format": 5, "trained": ranges | {"in_mm": False}})
    loaded = ModelBundle.load(tmp_path, "keras")
    assert loaded.postprocessing == Postprocessing()
    assert loaded.trained is not None
    assert loaded.flipped_axes == bundle.flipped_axes
    # What sets the postprocessing writes the present format.
    set_postprocessing(tmp_path, bundle.postprocessing)
    assert ModelBundle.load(tmp_path, "keras").postprocessing == bundle.postprocessing
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["format"] == 8


def test_a_bundle_of_format_7_predicts_without_flips(tmp_path):
    bundle = make_bundle()
    bundle.save(tmp_path / "bundle")
    set_mirror(tmp_path, bool(bundle.flipped_axes))
    assert ModelBundle.load(tmp_path, "keras").mirror
    record = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    old = {name: value for name, value in record.items() if name not in ("mirror", "bundle_sha256")}
    write_description(tmp_path / "bundle", old | {"format": 7})
    assert not ModelBundle.load(tmp_path, "keras").mirror


def test_flips_without_axes_are_refused(tmp_path):
    dataclasses.replace(make_bundle(), flipped_axes=()).save(tmp_path / "bundle")
    set_mirror(tmp_path, True)
    with pytest.raises(
        ValueError, match=r"Expected false, or `flipped_axes` of the training for `mirror` in .*bundle.json. Received: true without them"
    ):
        ModelBundle.load(tmp_path, "keras")


def test_a_bundle_of_format_6_predicts_in_float32(tmp_path):
    make_bundle().save(tmp_path / "bundle")
    record = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    old = {name: value for name, value in record.items() if name not in ("precision", "bundle_sha256")}
    write_description(tmp_path / "bundle", old | {"format": 6})
    loaded = ModelBundle.load(tmp_path, "keras")
    assert (loaded.precision, loaded.computed_in) == ("float32", "float32")
    assert loaded.postprocessing == make_bundle().postprocessing


@pytest.mark.parametrize("number", [4, 5])
def test_bundles_from_before_hounsfield_units_are_converted(tmp_path, number):
    bundle = make_bundle()
    bundle.save(tmp_path / "bundle")
    record = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    del record["bundle_sha256"], record["preprocessing"]["clip"]
    if number == 4:
        del record["trained"]
    write_description(tmp_path / "bundle", record | {"format": number})
    loaded = ModelBundle.load(tmp_path, "keras")
    assert (loaded.preprocessing, loaded.preprocessing.clip, loaded.trained) == (bundle.preprocessing, (), bundle.trained)


def test_hounsfield_units_survive_a_bundle(tmp_path):
    preprocessing = Preprocessing(2, intensity="ct", clip=(-100.0, 200.0), mean=50.0, std=40.0)
    dataclasses.replace(make_bundle(), preprocessing=preprocessing).save(tmp_path / "bundle")
    assert ModelBundle.load(tmp_path, "keras").preprocessing == preprocessing


def test_hash_of_weights_sees_one_bit():
    model = make_bundle().model
    before = hash_weights(model)
    assert hash_weights(make_bundle().model) == before
    weight = model.weights[0]
    array = np.array(weight)
    array.flat[0] = np.nextafter(array.flat[0], np.float32(1))
    weight.assign(array)
    assert hash_weights(model) != before


def test_what_was_trained_in_half_precision_predicts_in_full(tmp_path):
    bundle = make_bundle()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = dataclasses.replace(make_bundle(), model=with_head(build("unet2d", (16, 32, 1), 3, base_filters=2, levels=1)))
    finally:
        keras.config.set_dtype_policy("float32")
    half.model.set_weights(bundle.model.get_weights())
    image = np.random.default_rng(0).random((1, 16, 32, 1), np.float32)
    expected = bundle.model.predict_on_batch(image)
    # Both must differ clearly, or this would test nothing.
    assert np.abs(half.model.predict_on_batch(image) - expected).max() > 1e-4
    half.save(tmp_path / "bundle")
    np.testing.assert_allclose(ModelBundle.load(tmp_path).model.predict_on_batch(image), expected, atol=1e-6)


def test_a_case_whose_probabilities_are_not_finite_fails_and_the_others_are_predicted(write_nifti):
    class Overflowing:
        def predict_on_batch(self, inputs):
            outputs = np.full((*inputs.shape[:-1], 3), 1 / 3, np.float32)
            outputs[inputs.min(axis=(1, 2, 3)) > -1] = np.nan
            return outputs

    bundle = dataclasses.replace(make_bundle(), model=Overflowing(), preprocessing=Preprocessing(2, intensity="fixed"))
    low, high = np.full((16, 32), -5.0), np.zeros((16, 32))
    cases = [Case(name, name, (write_nifti(f"{name}.nii", image),)) for name, image in (("a", low), ("b", high), ("c", low))]
    with pytest.raises(ValueError, match=r"Expected finite probabilities. Received: NaN from the model for .*b.nii"):
        list(predict_cases([bundle], cases))
    failed = []
    predicted = list(predict_cases([bundle], cases, PredictionOptions(on_failure=lambda case, error: failed.append(case.case_id))))
    assert ([item.case.case_id for item in predicted], failed) == (["a", "c"], ["b"])


def test_a_reader_that_brings_the_old_bundle_back_does_not_end_the_training_that_saves(tmp_path, monkeypatch):
    bundle, rename = make_bundle(), Path.rename
    bundle.save(tmp_path / "bundle")
    newer = dataclasses.replace(bundle, provenance={"seed": 43})
    calls = []

    def rename_and_read(path, target):
        result = rename(path, target)
        calls.append(path.name)
        if len(calls) == 1:
            # The first rename moved the old bundle aside. A prediction looks for it now.
            ModelBundle.load(tmp_path)
        return result

    monkeypatch.setattr(Path, "rename", rename_and_read)
    newer.save(tmp_path / "bundle")
    assert ModelBundle.load(tmp_path).provenance == {"seed": 43}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_is_found_from_within_its_run(tmp_path, monkeypatch):
    make_bundle().save(tmp_path / "run" / "bundle")
    for place, path in (("run", "."), ("run/bundle", "."), ("run/bundle", "..")):
        monkeypatch.chdir(tmp_path / place)
        assert find_bundle(Path(path)) == tmp_path / "run" / "bundle"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="Expected a trained model in .* Received: no bundle.json there."):
        find_bundle(Path("."))
