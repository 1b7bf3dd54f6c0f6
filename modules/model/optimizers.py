"""Optimisers and learning-rate schedules. All are Keras's own; we add only a warm-up that fits each schedule."""

import keras
from keras import ops

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "cosine_restarts", "polynomial")

# Both numbers are nnU-Net's (Isensee et al., 2021).
MOMENTUM = 0.99
POLYNOMIAL_POWER = 0.9


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that rises in a straight line to another schedule's first value, and then follows that one."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, steps: int, peak: float) -> None:
        """Takes the schedule that follows.

        Args:
            schedule: The schedule after the rise.
            steps: Steps of the rise, at least 1.
            peak: The rate at the end of the rise.
        """
        self.schedule, self.steps, self.peak = schedule, steps, peak

    def __call__(self, step):
        """Returns the rate of step `step`, counted from 0. The first is `peak / steps`: a rate of 0 would waste the step."""
        step = ops.cast(step, "float32")
        rising = self.peak * (step + 1.0) / self.steps
        return ops.where(step < self.steps, rising, self.schedule(ops.maximum(step - self.steps, 0.0)))

    def get_config(self) -> dict:
        """Returns the arguments by name, which is what Keras asks of a schedule."""
        return {"schedule": self.schedule, "steps": self.steps, "peak": self.peak}


def make_schedule(name: str, rate: float, steps: int, *, warmup_steps: int = 0, cycles: int = 3):
    """Makes a schedule over a whole training.

    Args:
        name: "constant"; "cosine", half a cosine down to 0 (Loshchilov and Hutter, SGDR, 2017); "cosine_restarts", `cycles` such halves in
            a row; "polynomial", `(1 - step / steps)^0.9`.
        rate: The highest learning rate.
        steps: Batches of the whole training, including the warm-up. Accumulated batches count one by one, as Keras counts them.
        warmup_steps: Batches in which the rate first rises to `rate`; 0 for none.
        cycles: Number of cycles of "cosine_restarts".

    Returns:
        A schedule, or the bare `rate` for a constant one without warm-up.

    Raises:
        ValueError: For an unknown name, or where the warm-up leaves no step to train.
    """
    if warmup_steps >= steps and warmup_steps:
        raise ValueError(f"Expected a warm-up shorter than the training, {steps} steps. Received: {warmup_steps}. Shorten it.")
    remaining = steps - warmup_steps
    schedules = keras.optimizers.schedules
    if name == "constant":
        schedule = rate
    elif name == "cosine":
        schedule = schedules.CosineDecay(rate, remaining)
    elif name == "cosine_restarts":
        # The number need not be whole: Keras only divides the step by it.
        schedule = schedules.CosineDecayRestarts(rate, remaining / cycles, t_mul=1.0, m_mul=1.0)
    elif name == "polynomial":
        schedule = schedules.PolynomialDecay(rate, remaining, end_learning_rate=0.0, power=POLYNOMIAL_POWER)
    else:
        raise ValueError(f"Expected `schedule` in {SCHEDULES}. Received: {name!r}.")
    if not warmup_steps:
        return schedule
    if not isinstance(schedule, schedules.LearningRateSchedule):
        schedule = schedules.PolynomialDecay(rate, 1, end_learning_rate=rate)
    return WarmUp(schedule, warmup_steps, rate)


def make_optimizer(
    name: str, learning_rate, *, weight_decay: float = 0.0, clip_norm: float = 0.0, accumulate: int = 1
) -> keras.optimizers.Optimizer:
    """Makes an optimiser.

    Args:
        name: "adam"; "adamw", whose weight decay is decoupled from the gradient (Loshchilov and Hutter, 2019); "sgd" with Nesterov's
            momentum of 0.99.
        learning_rate: A number or a schedule.
        weight_decay: Decay of "adamw". The others have a penalty in the loss instead, see `modules.model.trainer.Trainer`.
        clip_norm: Largest Euclidean norm of all gradients together; 0 for no limit.
        accumulate: Batches whose gradients are averaged for one update.

    Raises:
        ValueError: For an unknown name.
    """
    settings = {"global_clipnorm": clip_norm or None, "gradient_accumulation_steps": accumulate if accumulate > 1 else None}
    if name == "adam":
        return keras.optimizers.Adam(learning_rate, **settings)
    if name == "adamw":
        return keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay, **settings)
    if name == "sgd":
        return keras.optimizers.SGD(learning_rate, momentum=MOMENTUM, nesterov=True, **settings)
    raise ValueError(f"Expected `optimizer` in {OPTIMIZERS}. Received: {name!r}.")
