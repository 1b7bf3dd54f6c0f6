"""Logs a run to event files for TensorBoard."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from modules.run.folder import RunFolder

log = logging.getLogger("mri")


class TensorBoardSink:
    """Event files for TensorBoard.

    TensorFlow has the writer, and a name tells TensorBoard the kind of data. Writing therefore does not need TensorBoard.
    """

    def __init__(self, run: RunFolder, parameters: Mapping[str, str]) -> None:
        import tensorflow as tf

        self._tf = tf
        self._run = run
        self._events = run.events
        self._last_epoch = max(self._read_epochs(), default=0)
        self._writers = {name: tf.summary.create_file_writer(str(self._events / name)) for name in ("train", "validate", "test")}
        if not self._last_epoch:
            lines = ["| setting | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in parameters.items())]
            self._write("train", "settings", "text", "\n".join(lines), 0)
        log.info("tracking: tensorboard --logdir %s", run.path)

    def find_last_epoch(self) -> int:
        """Returns the last epoch that the event files hold; 0 for none."""
        return self._last_epoch

    def log_epoch(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs the metrics of an epoch."""
        # Training and validation share the names of metrics, so that TensorBoard draws both curves in one chart.
        for name, value in values.items():
            split = "validate" if name.startswith("val_") else "train"
            if name != "epoch":
                self._write(split, name.removeprefix("val_"), "scalars", value, epoch)
        self._writers["validate"].flush()
        # The epoch's number comes last: an epoch counts as logged once it is there.
        self._write("train", "epoch", "scalars", epoch, epoch)
        self._writers["train"].flush()
        self._last_epoch = epoch

    def log_summary(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs the test scores and the run's pictures."""
        for name, value in values.items():
            self._write("test", name, "scalars", value, epoch)
        for path in sorted(self._run.figures.glob("*.png")):
            picture = path.read_bytes()
            # In a PNG file, width and height follow the signature and the head of the first chunk.
            size = [str(int.from_bytes(picture[start : start + 4], "big")) for start in (16, 20)]
            self._write("test", path.stem, "images", [*size, picture], epoch)
        self._writers["test"].flush()

    def close(self, status: str) -> None:
        """Logs a status (FINISHED, FAILED or KILLED) and closes the files."""
        self._write("train", "status", "text", status, self._last_epoch)
        for writer in self._writers.values():
            writer.close()

    def _write(self, split: str, name: str, plugin: str, value: Any, step: int) -> None:
        metadata = self._tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = plugin
        metadata.data_class = {"scalars": 1, "text": 2, "images": 3}[plugin]
        tensor = self._tf.constant(value, self._tf.float32 if plugin == "scalars" else self._tf.string)
        with self._writers[split].as_default():
            self._tf.summary.write(name, tensor, step=step, metadata=metadata)

    def _read_epochs(self) -> Iterator[int]:
        for path in sorted((self._events / "train").glob("events.*")):
            # A process that was killed may have written only half of its last event.
            with contextlib.suppress(self._tf.errors.DataLossError):
                for record in self._tf.data.TFRecordDataset(str(path)):
                    event = self._tf.compat.v1.Event.FromString(record.numpy())
                    if any(value.tag == "epoch" for value in event.summary.value):
                        yield event.step
