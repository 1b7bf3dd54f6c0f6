"""Training curves, and the epoch that they mark as the best."""

import pytest
from picture_helpers import CLASSES, NAN, find_colour, read_png

from modules import reports


def make_history(epochs: int, *, validated: bool = True) -> list[dict[str, float]]:
    history = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch, "mean_dice": 1 - 0.6 / epoch, "seconds": 2.0}
        row |= {f"dice_{name}": 1 - 0.2 * i - 0.3 / epoch for i, name in enumerate(CLASSES[1:])}
        row |= {f"iou_{name}": 0.5 for name in CLASSES[1:]}
        measured = [key for key in row if key not in ("epoch", "seconds")]
        history.append(row | ({f"val_{key}": 0.9 * row[key] for key in measured} if validated else {}))
    return history


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([{"val_mean_dice": NAN}, {"val_mean_dice": 0.4}, {"val_mean_dice": 0.7}, {"val_mean_dice": NAN}], 2),
        ([{"val_mean_dice": 0.5}, {"val_mean_dice": 0.5}], 0),
        ([{"mean_dice": 0.9, "val_mean_dice": 0.3}, {"mean_dice": 0.1, "val_mean_dice": 0.4}], 1),
        ([{"mean_dice": 0.9}, {"mean_dice": 0.1, "val_mean_dice": 0.4}], 1),
        ([{"mean_dice": 0.2}, {"mean_dice": NAN}, {"mean_dice": 0.6}], 2),
        ([{"mean_dice": 0.2, "val_mean_dice": NAN}, {"mean_dice": 0.1, "val_mean_dice": NAN}], 0),
        ([{"val_mean_dice": float("inf")}, {"val_mean_dice": 0.1}], 1),
        ([{"mean_dice": NAN}, {"loss": 1.0}], None),
        ([], None),
    ],
)
def test_best_epoch(history, expected):
    assert reports.find_kept_epoch(history) == expected


def test_the_last_epoch_that_was_measured_is_kept_where_the_last_is_asked_for():
    history = [{"val_mean_dice": 0.9}, {"val_mean_dice": 0.2}, {"val_mean_dice": NAN}]
    assert reports.find_kept_epoch(history, keeps_last=True) == 1


@pytest.mark.parametrize("epochs", [1, 2, 40])
@pytest.mark.parametrize("validated", [True, False])
def test_plot_history_writes_three_pictures_and_nothing_else(tmp_path, epochs, validated):
    folder = tmp_path / "run" / "figures"
    paths = reports.plot_history(make_history(epochs, validated=validated), folder)
    assert paths == [folder / "loss.png", folder / "accuracy.png", folder / "dice.png"]
    assert sorted(folder.iterdir()) == sorted(paths)
    for path in paths:
        picture = read_png(path)
        assert (picture == 255).all(axis=-1).mean() > 0.5  # paper
        assert (picture.min(axis=-1) < 100).sum() > 500  # ink


def test_plot_history_draws_each_class_in_its_colour(tmp_path):
    history = make_history(12)
    both = read_png(reports.plot_history(history, tmp_path)[2])
    vermilion = "#E0480A"
    assert not find_colour(both, vermilion).any()
    for row in history:
        row |= {f"dice_{i}": 0.2 for i in range(3)} | {f"val_dice_{i}": 0.1 + 0.01 * i for i in range(3)}
    assert reports.PALETTE[5] == vermilion
    assert find_colour(read_png(reports.plot_history(history, tmp_path)[2]), vermilion).any()


def test_plot_history_leaves_gaps_and_survives_missing_values(tmp_path):
    history = make_history(9)
    whole = read_png(reports.plot_history(history, tmp_path / "whole")[0])
    for i, value in ((3, NAN), (4, float("inf")), (7, NAN)):
        history[i]["loss"] = history[i]["val_loss"] = value
    del history[5]["accuracy"]
    for row in history:
        row["dice_rectum"] = row["val_dice_rectum"] = NAN
    gaps = read_png(reports.plot_history(history, tmp_path / "gaps")[0])
    blue = "#0072B2"
    assert 0 < find_colour(gaps, blue).sum() < find_colour(whole, blue).sum()


def test_plot_history_without_any_finite_value(tmp_path):
    row = {"epoch": 1, "loss": NAN, "mean_dice": NAN, "dice_bladder": NAN}
    for path in reports.plot_history([row], tmp_path):
        assert read_png(path).std() > 0


def test_plot_history_follows_the_history(tmp_path):
    history = make_history(5)
    before = [path.read_bytes() for path in reports.plot_history(history, tmp_path)]
    assert [path.read_bytes() for path in reports.plot_history(history, tmp_path)] == before
    after = [path.read_bytes() for path in reports.plot_history(make_history(6), tmp_path)]
    assert all(old != new for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("history", [[], [{"loss": 1.0}]])
def test_plot_history_refuses_rows_without_epochs(tmp_path, history):
    with pytest.raises(ValueError, match=rf"Expected `history` .*Received: {len(history)} rows"):
        reports.plot_history(history, tmp_path)
    assert not list(tmp_path.iterdir())
