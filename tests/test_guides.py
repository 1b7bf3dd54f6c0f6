"""The guides for students, researchers and engineers: their commands run as they are printed, but for the size of the trainings."""

import importlib
import re
import shlex
import shutil
from pathlib import Path

import keras
import pytest

import dataset
import predict
import train
from dataset import DATASETS
from modules.run.flags import parse_training
from modules.run.prediction_flags import parse_prediction
from modules.score_tables import read_scores

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMANDS = {"dataset.py": dataset.main, "predict.py": predict.main, "train.py": train.main}
# A training of a guide takes seconds with these. What a guide says stands before them, and must be valid.
SMALL = ["--epochs", "1", "--base-filters", "2", "--levels", "1", "--batch-size", "4", "--predict-precision", "float32"]
SMALL += ["--postprocess", "none", "--predict-mirror", "never"]


def read_blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def run_guide(page, *small):
    """Runs the commands of a page, and returns how many they were."""
    lines = [line for block in read_blocks(page, "bash") for line in block.splitlines()]
    for line in lines:
        python, script, *flags = shlex.split(line)
        assert python == "python"
        if script == "train.py" and "--dataset" in flags:
            assert parse_training(flags, DATASETS).settings
            flags += [*SMALL, *small]
        assert COMMANDS[script](flags) == 0, line
    return len(lines)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("one backend suffices")
    monkeypatch.chdir(tmp_path)


def test_the_course(phantoms):
    shutil.copytree(phantoms / "hipmri", "data/hipmri-phantom")
    assert run_guide("course.md", "--shape", "64", "64") == 7
    for path in ("looks/check.json", "runs/first/report.html", "comparison/compare.json", "comparison/compare.png"):
        assert Path(path).is_file(), path
    # The scores of the slices do not depend on who predicts them.
    slices = [{score.case: score.dice for score in read_scores(Path(folder) / "scores.csv")} for folder in ("runs/first", "predictions")]
    assert slices[0].keys() == slices[1].keys()


def test_the_research(phantoms):
    shutil.copytree(phantoms / "folder", "scans")
    for name, kind in (("new_scans", "images"), ("new_labels", "labels"), ("others", "labels")):
        shutil.copytree(f"scans/{kind}", name)
    assert run_guide("research.md", "--shape", "16", "16", "16") == 6
    for path in ("checked/check.json", "checked/check.png", "predictions/volumes.csv", "predictions/itksnap_labels.txt"):
        assert Path(path).is_file(), path
    assert len(list(Path("runs/mine").glob("fold_*/report.html"))) == 2


def test_the_service(runs, phantoms):
    shutil.copytree(runs["hipmri"], "runs/demo")
    Path("scans").mkdir()
    for name, path in zip(("scan", "other"), sorted((phantoms / "hipmri" / "keras_slices_test").iterdir()), strict=False):
        shutil.copy(path, f"scans/{name}.nii.gz")
    assert run_guide("service.md") == 3
    assert len(Path("log.jsonl").read_text().splitlines()) == 2
    (code,) = read_blocks("service.md", "python")
    exec(compile(code.replace("mri_segmentation", "modules"), "service.md", "exec"), {"__name__": "example"})
    maps = [{path.name: path.read_bytes() for path in Path(folder).glob("*_prediction.nii.gz")} for folder in ("out", "bounded", "many")]
    assert maps[0] == maps[1] == maps[2]
    assert len(maps[0]) == 2


# ------------------------------------------------------------------------------------------------------------------ pages


def test_the_commands_for_many_machines_are_valid():
    lines = [line.partition("  #")[0] for block in read_blocks("scaling.md", "") for line in block.splitlines()]
    for line in lines:
        _, script, *flags = shlex.split(line)
        if script == "predict.py":
            assert parse_prediction(flags).paths
        elif "--resume" not in flags:
            request = parse_training(flags, DATASETS)
            assert request.search or request.workers
    assert len(lines) == 8


def _list_anchors(page):
    """Lists the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", [*sorted(DOCS.glob("*.md")), ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or file.suffix != ".md" or anchor in _list_anchors(file), target


def test_the_glossary_is_in_order_and_no_word_comes_twice():
    words = re.findall(r"^\| ([^|]+?) \|", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)[1:]
    assert words == sorted(words, key=str.lower)
    assert len({word.lower() for word in words}) == len(words)


def test_the_pictures_of_scores_show_what_the_text_says(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "pictures")
    draw_scores = importlib.import_module("draw_scores")
    text = (DOCS / "scores_in_pictures.md").read_text(encoding="utf-8")
    sizes = [example.score() for example in draw_scores.list_sizes()]
    assert f"Dice falls from {sizes[0].dice:.2f} to {sizes[-1].dice:.2f}" in text
    rim, bump, speck = (example.score() for example in draw_scores.list_distances())
    assert f"The bump is {bump.hd_mm:g} mm away" in text
    assert f"the small speck {speck.hd_mm:g} mm away" in text
    assert speck.hd95_mm == 0 < bump.hd95_mm
    assert rim.nsd < 1 == draw_scores.list_distances()[0].score(1.5).nsd
    lesions = draw_scores.draw_lesions().score()
    assert (lesions.lesions, lesions.found_lesions, lesions.false_lesions) == (4, 3, 1)
