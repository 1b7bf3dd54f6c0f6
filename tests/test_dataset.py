"""Finders, splits by subject, the cache and the order of the pipeline."""

import dataclasses
import gzip
import shutil
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest

from dataset import DATASETS
from modules.data.cache import Decoded, prepare_cases, read_pack, write_pack
from modules.data.case import Case, place_in_volume, read_volume
from modules.data.patches import Window
from modules.data.pipeline import make_pipeline
from modules.data.spec import choose_target, find_cases, load_spec
from modules.data.splits import describe_splits, split_cases

SLICES = ("hipmri", "lgg", "oasis")


def _case(case_id, subject, split=None):
    return Case(case_id, subject, (), Path("label"), split, subject, 0)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_entry_is_complete(phantoms, name):
    spec = load_spec(DATASETS[name], phantoms / name)
    assert spec.name == name
    assert len(spec.channels) > 0
    assert len(spec.class_names) > 1
    assert sorted(spec.label_rule.values.values()) == list(range(len(spec.class_names)))
    assert len(spec.preprocessing.shape) == (2 if name in SLICES else 0)
    for text in (spec.title, spec.url, spec.licence, spec.terms):
        assert text


@pytest.mark.parametrize(("name", "cases", "subjects"), [("hipmri", None, 6), ("oasis", 16, 4), ("lgg", 16, 4)])
def test_finders_on_phantoms(phantoms, name, cases, subjects):
    found = find_cases(DATASETS[name], phantoms / name)
    assert len({case.case_id for case in found}) == len(found)
    assert len({case.subject_id for case in found}) == subjects
    assert cases is None or len(found) == cases
    order = [(case.volume_id, case.slice_index) for case in found]
    assert order == sorted(order)
    for case in found[:2]:
        assert case.image_paths[0].is_file()
        assert case.label_path.is_file()


def test_hipmri_subject_is_the_patient_across_weeks(tmp_path):
    for week in (0, 3):
        for kind, stem in (("", "case"), ("seg_", "seg")):
            folder = tmp_path / f"keras_slices_{kind}train"
            folder.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(np.zeros((4, 4), np.uint8), np.eye(4)), folder / f"{stem}_005_week_{week}_slice_2.nii.gz")
    cases = find_cases(DATASETS["hipmri"], tmp_path)
    assert [(case.subject_id, case.volume_id, case.slice_index) for case in cases] == [
        ("case_005", "case_005_week_0", 2),
        ("case_005", "case_005_week_3", 2),
    ]


@pytest.mark.parametrize("name", SLICES)
def test_what_a_desktop_leaves_behind_is_ignored(phantoms, tmp_path, name):
    root = tmp_path / name
    shutil.copytree(phantoms / name, root)
    for folder in (root, *(path for path in root.iterdir() if path.is_dir())):
        for junk in (".DS_Store", "._case_001_slice_0.nii.png", "Thumbs.db"):
            (folder / junk).write_text("x")
    if name == "lgg":  # some archives come with names in capitals
        for path in [*root.glob("*/*_2.tif"), *root.glob("*/*_2_mask.tif")]:
            path.rename(path.with_suffix(".TIF"))
    assert len(find_cases(DATASETS[name], root)) == len(find_cases(DATASETS[name], phantoms / name))


def test_place_in_volume():
    assert place_in_volume("case_005_week_1_slice_12") == ("case_005_week_1", 12)
    assert place_in_volume("TCGA_CS_5393_19990606_7") == ("TCGA_CS_5393_19990606", 7)
    assert place_in_volume("brain") == (None, 0)


@pytest.mark.parametrize(("name", "folder"), [("hipmri", "keras_slices_seg_train"), ("oasis", "keras_png_slices_seg_train"), ("lgg", "")])
def test_incomplete_pairs_are_named(phantoms, tmp_path, name, folder):
    root = tmp_path / name
    shutil.copytree(phantoms / name, root)
    case = next(case for case in find_cases(DATASETS[name], root) if case.split in (None, "train"))
    kept = tmp_path / "kept"
    shutil.move(case.label_path, kept)
    with pytest.raises(ValueError, match=f"Expected a label for .*{case.image_paths[0].name}"):
        find_cases(DATASETS[name], root)
    shutil.move(kept, case.label_path)
    case.image_paths[0].unlink()
    with pytest.raises(ValueError, match=f"Expected an image for the label .*{case.label_path.name}"):
        find_cases(DATASETS[name], root)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_missing_and_empty_folders_say_what_to_give(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"Expected the data set '{name}' in the folder .*Give it with `--data`"):
        load_spec(DATASETS[name], tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="Received: no"):
        find_cases(load_spec(DATASETS[name], tmp_path), tmp_path)


@pytest.mark.parametrize("name", ["hipmri", "hipmri3d", "ibsr18"])
def test_endings_in_upper_case_and_pairs_of_two_endings_are_found(phantoms, tmp_path, name):
    spec, root = DATASETS[name], tmp_path / name
    shutil.copytree(phantoms / name, root)
    before = find_cases(spec, root)
    for number, case in enumerate(before):
        for path in (*case.image_paths, case.label_path):
            if path and path.name.endswith(".gz"):
                path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
        label = case.label_path
        if label and number % 2 and label.name.endswith(".gz"):
            label = label.with_name(label.name.replace(".nii.gz", ".NII.GZ"))
            plain = label.with_name(label.name.replace(".NII.GZ", ".nii"))
            plain.write_bytes(gzip.decompress(label.read_bytes()))
            label.unlink()
    after = find_cases(spec, root)
    assert [(case.case_id, case.subject_id, case.split, case.label_path is None) for case in after] == [
        (case.case_id, case.subject_id, case.split, case.label_path is None) for case in before
    ]
    assert all(path.is_file() for case in after for path in (*case.image_paths, case.label_path) if path)
    assert not {case.label_path for case in after} & {case.image_paths[0] for case in after}


def test_two_cases_of_one_name_are_refused_by_both_files(tmp_path):
    twice = [Case("a", "a", (tmp_path / folder / "a.nii",), None) for folder in ("x", "y")]
    spec = dataclasses.replace(DATASETS["ibsr18"], find=lambda root: twice)
    with pytest.raises(ValueError, match=r"Expected cases of different names. Received: a for .*x/a.nii and .*y/a.nii. Rename or remove"):
        find_cases(spec, tmp_path)


def test_split_by_subject_repeats_and_follows_the_seed():
    cases = [_case(f"{subject}_{index}", f"s{subject}") for subject in range(20) for index in range(3)]
    splits, _ = split_cases(cases, (0.1, 0.2), seed=1)
    assert [len(splits[name]) for name in ("train", "validate", "test")] == [42, 6, 12]
    groups = [{case.subject_id for case in members} for members in splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    assert split_cases(cases, (0.1, 0.2), seed=1)[0] == splits
    assert split_cases(cases, (0.1, 0.2), seed=2)[0] != splits


def test_official_split_wins_and_what_it_lacks_is_held_out_of_train():
    cases = [_case(f"t{index}", f"t{index}", "train") for index in range(8)] + [
        _case("v0", "v0", "validate"),
        _case("v1", "v1", "validate"),
    ]
    splits, remarks = split_cases(cases, (0.1, 0.2))
    assert [len(splits[name]) for name in ("train", "validate", "test")] == [6, 2, 2]
    assert {case.case_id for case in splits["validate"]} == {"v0", "v1"}
    assert remarks == ["2 of 8 training subjects held out for test, drawn with seed 42."]


def test_a_subject_in_two_official_splits_stays_in_the_later_one():
    cases = [_case("a0", "a", "train"), _case("a1", "a", "test"), _case("b", "b", "train"), _case("c", "c", "validate")]
    splits, remarks = split_cases(cases)
    assert {name: [case.case_id for case in members] for name, members in splits.items()} == {
        "train": ["b"],
        "validate": ["c"],
        "test": ["a1"],
    }
    assert remarks == ["1 subject(s) of train are also in test: their 1 cases in train are left out."]


def test_too_few_subjects():
    with pytest.raises(ValueError, match="Expected more than 1 subject"):
        split_cases([_case("a", "a"), _case("b", "b")])
    with pytest.raises(ValueError, match="Expected cases to train on"):
        split_cases([_case("a", "a", "test"), _case("b", "b", "validate")])


def test_split_is_described_with_subjects_scans_and_slices():
    lines = describe_splits({"train": [_case("a0", "a"), _case("a1", "a"), _case("b", "b")], "test": []})
    assert [line.split() for line in lines] == [
        ["train", "2", "subjects", "2", "scans", "3", "slices"],
        ["test", "0", "subjects", "0", "scans"],
    ]


def test_targets():
    assert choose_target(DATASETS["oasis"], ()) == DATASETS["oasis"]
    assert DATASETS["oasis"].label_rule.output_values == (0, 85, 170, 255)
    spec = choose_target(DATASETS["oasis"], ("grey matter",))
    assert (spec.class_names, spec.label_rule.output_values) == (("background", "grey matter"), (0, 170))
    assert dict(spec.label_rule.values) == {0: 0, 85: 0, 170: 1, 255: 0}
    spec = choose_target(DATASETS["hipmri"], ("rectum", "bladder"))
    assert (spec.class_names, spec.label_rule.output_values) == (("background", "rectum+bladder"), (0, 4))
    assert [value for value, index in spec.label_rule.values.items() if index] == [3, 4]
    assert spec.label_rule.name_label("case_1.nii.gz") == "seg_1.nii.gz"
    with pytest.raises(ValueError, match=r"Expected `target` in \('body', 'bone'.*Received: 'heart'"):
        choose_target(DATASETS["hipmri"], ("heart",))


@pytest.fixture
def oasis_files(phantoms, tmp_path):
    """The OASIS phantom's cases and their decoded files."""
    spec = DATASETS["oasis"]
    cases = find_cases(spec, phantoms / "oasis")
    return cases, prepare_cases(cases, spec, spec.preprocessing, tmp_path / "cache")


def test_cache_decodes_once_and_notices_changes(phantoms, tmp_path):
    spec = DATASETS["oasis"]
    root = tmp_path / "oasis"
    shutil.copytree(phantoms / "oasis", root)
    cases = find_cases(spec, root)

    def read():
        return [case.read((0, 0), (256, 256))[0] for case in prepare_cases(cases, spec, spec.preprocessing, tmp_path / "cache")]

    def prepare(preprocessing=spec.preprocessing):
        return [Path(case.path) for case in prepare_cases(cases, spec, preprocessing, tmp_path / "cache")]

    first = prepare()
    times = [path.stat().st_mtime_ns for path in first]
    assert [path.stat().st_mtime_ns for path in prepare()] == times
    # 9,664 such slices must fit in 2 GiB.
    assert sum(path.stat().st_size for path in set(first)) / len(first) * 9664 < 2 * 2**30
    whole = read()
    first[2].write_bytes(first[2].read_bytes()[:100])
    np.testing.assert_array_equal(read(), whole)
    first = prepare()
    cv2.imwrite(str(cases[0].image_paths[0]), np.eye(256, dtype=np.uint8))
    again = prepare()
    assert again[0] != first[0]
    assert again[1:] == first[1:]
    assert not set(prepare(dataclasses.replace(spec.preprocessing, mean=0.5))) & set(first)


def test_pipeline_gives_what_is_on_disk(oasis_files):
    cases, files = oasis_files
    batches = list(make_pipeline(files, Window((256, 256)), 1, batch_size=6, training=False).as_numpy_iterator())
    assert [batch["image"].shape for batch in batches] == [(6, 256, 256, 1)] * 3
    images, labels = (np.concatenate([batch[name] for batch in batches]) for name in ("image", "label"))
    assert (images.dtype, labels.dtype) == (np.float16, np.uint8)
    raw = cv2.imread(str(cases[5].image_paths[0]), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(images[5, ..., 0], (raw / 255 - 0.1317) / 0.1864, atol=2e-3)
    mask = cv2.imread(str(cases[5].label_path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(labels[5], mask // 85)


def test_order_is_a_function_of_seed_and_step(tmp_path):
    filled = {str(index): Decoded(np.full((2, 2, 1), index, np.float32), np.full((2, 2), index), (), (1, 1)) for index in range(10)}
    write_pack(tmp_path / "a.pack", filled)
    files = list(read_pack(tmp_path / "a.pack").values())

    def take(seed, first_step, steps):
        pipeline = make_pipeline(files, Window((2, 2)), 1, batch_size=4, training=True, seed=seed, first_step=first_step).take(steps)
        return [batch["label"][:, 0, 0].tolist() for batch in pipeline.as_numpy_iterator()]

    batches = take(42, 0, 10)
    assert take(42, 0, 10) == batches
    assert take(42, 7, 3) == batches[7:]
    assert take(43, 0, 10) != batches
    assert {len(batch) for batch in batches} == {4}
    drawn = [index for batch in batches for index in batch]
    epochs = [drawn[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_broken_case_is_named_before_training(phantoms, tmp_path):
    spec = DATASETS["lgg"]
    root = tmp_path / "lgg"
    shutil.copytree(phantoms / "lgg", root)
    cases = find_cases(spec, root)
    cv2.imwrite(str(cases[1].label_path), np.zeros((128, 256), np.uint8))
    with pytest.raises(
        ValueError, match=rf"one shape. Received: image \(256, 256\) in .*{cases[1].image_paths[0].name}, label \(128, 256\)"
    ):
        prepare_cases(cases, spec, spec.preprocessing, tmp_path / "cache")
    cv2.imwrite(str(cases[1].image_paths[0]), np.zeros((256, 256), np.uint8))
    with pytest.raises(ValueError, match=rf"3 channel\(s\) .*Received: 1 in .*{cases[1].image_paths[0].name}"):
        prepare_cases(cases, spec, spec.preprocessing, tmp_path / "cache")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "folder", "subjects", "slices"), [("hipmri", "hipmri", 24, 604), ("oasis", "oasis", 10, 320), ("lgg", "kaggle_3m", 16, 584)]
)
def test_real_scans_are_found_and_split(real_data, name, folder, subjects, slices, tmp_path):
    spec = DATASETS[name]
    cases = find_cases(spec, real_data / folder)
    assert (len({case.subject_id for case in cases}), len(cases)) == (subjects, slices)
    splits, _ = split_cases(cases)
    assert all(splits.values())
    shapes = {read_volume(case.image_paths).array.shape for case in cases[::40]}
    assert {shape[-1] for shape in shapes} == {len(spec.channels)}
    assert len(prepare_cases(cases[:8], spec, spec.preprocessing, tmp_path)) == 8
