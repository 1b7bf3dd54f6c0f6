"""Runs in TensorBoard's event files."""

import contextlib

import pytest
from tracking_helpers import MEANS
from tracking_helpers import open_run_tracker as _open
from tracking_helpers import train_on as _train

pytestmark = pytest.mark.usefixtures("_environment")


def _read_events(folder):
    """`{tag: [(step, value)]}` of the event files in a folder."""
    import tensorflow as tf

    events = {}
    for path in sorted(folder.glob("events.*")):
        with contextlib.suppress(tf.errors.DataLossError):
            for record in tf.data.TFRecordDataset(str(path)):
                event = tf.compat.v1.Event.FromString(record.numpy())
                for value in event.summary.value:
                    events.setdefault(value.tag, []).append((event.step, tf.make_ndarray(value.tensor).tolist()))
    return events


def test_tensorboard_has_a_point_an_epoch_the_settings_the_scores_and_the_pictures(run):
    with _open("tensorboard", run) as tracker:
        _train(run, tracker, 1, 3)
        tracker.log_summary(MEANS)
    train, validate, test = (_read_events(run / "tensorboard" / name) for name in ("train", "validate", "test"))
    assert train["loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert validate == {"loss": [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))], "dice_white matter": [(2, 0.5), (3, 0.5)]}
    assert b"| shape | 64, 32 |" in train["settings"][0][1]
    assert train["status"] == [(3, b"FINISHED")]
    assert test["test_slice/dice_white matter"] == [(3, 0.875)]
    assert "test_slice/hd95_mm_white matter" not in test
    assert test["loss"] == [(3, [b"30", b"20", (run / "figures" / "loss.png").read_bytes()])]


def test_tensorboard_goes_on_behind_a_killed_run(run):
    tracker = _open("tensorboard", run)
    _train(run, tracker, 1, 3)
    # Killed while it wrote: the file ends in the middle of the third epoch.
    path = next((run / "tensorboard" / "train").glob("events.*"))
    path.write_bytes(path.read_bytes()[:-10])
    tracker = _open("tensorboard", run)
    _train(run, tracker, 2, 4)
    with pytest.raises(KeyboardInterrupt), tracker:
        raise KeyboardInterrupt
    events = _read_events(run / "tensorboard" / "train")
    assert [step for step, _ in events["epoch"]] == [1, 2, 3, 4]
    assert {step for step, _ in events["loss"]} == {1, 2, 3, 4}
    assert events["status"] == [(4, b"KILLED")]


def test_tensorboard_itself_reads_it(run):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tensorflow = pytest.importorskip("tensorflow")
    with _open("tensorboard", run) as tracker:
        _train(run, tracker, 1, 2)
        tracker.log_summary(MEANS)
    events = {name: reader.EventAccumulator(str(run / "tensorboard" / name)) for name in ("train", "test")}
    for event in events.values():
        event.Reload()
    assert events["train"].SummaryMetadata("loss").plugin_data.plugin_name == "scalars"
    points = [(item.step, float(tensorflow.make_ndarray(item.tensor_proto))) for item in events["train"].Tensors("loss")]
    assert points == [(1, 1.0), (2, 0.5)]
    assert events["test"].PluginTagToContent("images").keys() == {"loss"}
