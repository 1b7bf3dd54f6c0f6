"""Streaming metrics for the epoch log. Final scores come from `modules.scoring` instead, case by case."""

from collections.abc import Sequence

import keras
from keras import ops


def classify(logits, regions: Sequence[tuple[Sequence[int], int]] = ()):
    """Turns logits `(B, *P, K)` into class indices `(B, *P)` int32; one logit means background or foreground.

    Of regions, see `Overlap`, each whose logit is above 0 is painted over the earlier ones, as in a prediction.
    """
    if regions:
        label = ops.zeros_like(logits[..., 0], dtype="int32")
        for place, (_, painted) in enumerate(regions):
            label = ops.where(logits[..., place] > 0, painted, label)
        return label
    if logits.shape[-1] == 1:
        return ops.cast(logits[..., 0] > 0, "int32")
    return ops.cast(ops.argmax(logits, axis=-1), "int32")


class Overlap(keras.metrics.Metric):
    """A metric of pixel accuracy, and of Dice and IoU of each foreground class, pooled over all voxels since the last reset.

    `result()` is a dict: `accuracy`, `mean_dice` (over the foreground classes that occur in the labels), and `dice_<class>` and
    `iou_<class>`. A class that occurs neither in the labels nor in the predictions is NaN. The labels alone decide which classes the mean
    is over, so that it is the same ones in each epoch. It is NaN where no label holds any. Ignored voxels are in no score.

    Of regions `accuracy` is the share of voxels that are in the right ones, all of them.

    Counts are float32, because JAX has no 64-bit integers by default. Beyond 16 million voxels they are right to about seven digits.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        name: str = "overlap",
        *,
        regions: Sequence[tuple[Sequence[int], int]] = (),
        ignore: int | None = None,
    ) -> None:
        """Starts with no voxels.

        Args:
            class_names: Names of all `K` classes, the background first.
            name: The metric's name in Keras.
            regions: Of each class but the background the indices in the label that it is the union of, and the one that it is painted
                with; empty where classes exclude one another.
            ignore: The index in the label of voxels that do not count; None where there are none.
        """
        super().__init__(name=name)
        self.class_names = tuple(class_names)
        self._regions, self._ignore = tuple(regions), ignore
        shape = (len(self.class_names),)
        self._intersection = self.add_variable(shape, initializer="zeros", name="intersection")
        self._total = self.add_variable(shape, initializer="zeros", name="total")
        self._truth = self.add_variable(shape, initializer="zeros", name="truth")

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Adds a batch of labels `(B, *P)` and logits `(B, *P, K)`; `K` is 1 for a binary task. Samples of weight 0 are left out."""
        label = ops.cast(y_true, "int32")
        prediction = classify(y_pred, self._regions)
        counted = None
        if sample_weight is not None:
            counted = ops.cast(ops.reshape(sample_weight, (-1, *(1 for _ in label.shape[1:]))) > 0, "float32")
        if self._ignore is not None:
            judged = ops.cast(label != self._ignore, "float32")
            counted = judged if counted is None else judged * counted
        masks = self._list_region_masks(label, prediction) if self._regions else None
        intersection, total, truths = [], [], []
        for index in range(len(self.class_names)):
            truth = ops.cast(label == index, "float32") if masks is None else masks[0][index]
            guess = ops.cast(prediction == index, "float32") if masks is None else masks[1][index]
            if counted is not None:
                truth, guess = truth * counted, guess * counted
            intersection.append(ops.sum(truth * guess))
            truths.append(ops.sum(truth))
            total.append(truths[-1] + ops.sum(guess))
        self._intersection.assign_add(ops.stack(intersection))
        self._total.assign_add(ops.stack(total))
        self._truth.assign_add(ops.stack(truths))

    def _list_region_masks(self, label, prediction) -> tuple[list, list]:
        """Lists the masks of each region in both maps. In place of the background's it lists the right voxels, and all voxels."""
        of_label, of_prediction = (
            [sum(ops.cast(array == part, "float32") for part in parts) for parts, _ in self._regions] for array in (label, prediction)
        )
        wrong = sum(ops.abs(one - other) for one, other in zip(of_label, of_prediction, strict=True))
        right = ops.cast(wrong == 0, "float32")
        return [right, *of_label], [ops.ones_like(right), *of_prediction]

    def result(self) -> dict:
        """Returns the scores described above."""
        intersection, total = self._intersection, self._total
        nan = ops.full_like(ops.convert_to_tensor(total), float("nan"))
        dice = ops.where(total > 0, 2.0 * intersection / ops.maximum(total, 1.0), nan)
        iou = ops.where(total > 0, intersection / ops.maximum(total - intersection, 1.0), nan)
        occurs = self._truth[1:] > 0
        number = ops.sum(ops.cast(occurs, "float32"))
        mean = ops.sum(ops.where(occurs, dice[1:], ops.zeros_like(nan[1:]))) / ops.maximum(number, 1.0)
        scores = {
            # The total counts every voxel twice: once in the labels and once in the predictions. Of regions the first pair of masks is
            # the right voxels within all voxels.
            "accuracy": iou[0] if self._regions else 2.0 * ops.sum(intersection) / ops.maximum(ops.sum(total), 1.0),
            "mean_dice": ops.where(number > 0, mean, nan[0]),
        }
        for index, name in enumerate(self.class_names[1:], start=1):
            scores[f"dice_{name}"] = dice[index]
            scores[f"iou_{name}"] = iou[index]
        return scores
