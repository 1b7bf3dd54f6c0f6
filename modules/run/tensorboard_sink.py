"""Logs a run to event files for TensorBoard."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from modules.run.folder import RunFolder

log = logging.getLogger("mri")


class TensorBoardSink:
    """Event files for TensorBoard, which is not needed to write them: TensorFlow has the writer, and each kind of data is a name."""

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
        return self._last_epoch

    def log_epoch(self, values: Mapping[str, float], epoch: int) -> None:
        # The curve of validation lies over that of training if both have one name.
        for name, value in values.items():
            split = "validate" if name.startswith("val_") else "train"
            if name != "epoch":
                self._write(split, name.removeprefix("val_"), "scalars", value, epoch)
        self._writers["validate"].flush()
        # Last: with it an epoch is whole.
        self._write("train", "epoch", "scalars", epoch, epoch)
        self._writers["train"].flush()
        self._last_epoch = epoch

    def log_summary(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._write("test", name, "scalars", value, epoch)
        for path in sorted(self._run.figures.glob("*.png")):
            picture = path.read_bytes()
            # Width and height stand behind the signature and the first chunk's head.
            size = [str(int.from_bytes(picture[start : start + 4], "big")) for start in (16, 20)]
            self._write("test", path.stem, "images", [*size, picture], epoch)
        self._writers["test"].flush()

    def close(self, status: str) -> None:
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
            # The last event of a process that was killed may be half a one.
            with contextlib.suppress(self._tf.errors.DataLossError):
                for record in self._tf.data.TFRecordDataset(str(path)):
                    event = self._tf.compat.v1.Event.FromString(record.numpy())
                    if any(value.tag == "epoch" for value in event.summary.value):
                        yield event.step
