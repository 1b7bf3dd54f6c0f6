"""Optimisers and learning-rate schedules, all of them Keras's own; what is added is a warm-up that fits each schedule."""

import keras
from keras import ops

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "cosine_restarts", "polynomial")

# Both are nnU-Net's (Isensee et al., 2021).
MOMENTUM = 0.99
POLYNOMIAL_POWER = 0.9


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rises in a straight line to another schedule's first value, and follows that one from there on."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, steps: int, peak: float) -> None:
        """Args: schedule: what follows; steps: of the rise, at least 1; peak: the rate at its end."""
        self.schedule, self.steps, self.peak = schedule, steps, peak

    def __call__(self, step):
        """The rate of step `step`, counted from 0: the first is `peak / steps`, not 0, which would waste it."""
        step = ops.cast(step, "float32")
        rising = self.peak * (step + 1.0) / self.steps
        return ops.where(step < self.steps, rising, self.schedule(ops.maximum(step - self.steps, 0.0)))

    def get_config(self) -> dict:
        """The arguments, as Keras wants them."""
        return {"schedule": self.schedule, "steps": self.steps, "peak": self.peak}


def make_schedule(name: str, rate: float, steps: int, *, warmup_steps: int = 0, cycles: int = 3):
    """Makes a schedule over a whole training.

    Args:
        name: "constant"; "cosine", half a cosine down to 0 (Loshchilov and Hutter, SGDR, 2017); "cosine_restarts", `cycles` of them, one
            after the other; "polynomial", `(1 - step / steps)^0.9`.
        rate: The highest learning rate.
        steps: Updates of the weights in the whole training, the warm-up among them.
        warmup_steps: Updates in which the rate rises to `rate` first; 0 for none.
        cycles: Of "cosine_restarts".

    Returns:
        A schedule, or the bare `rate` for a constant one without warm-up.

    Raises:
        ValueError: For an unknown name, or where the warm-up leaves no step to train.
    """
    if warmup_steps >= steps and warmup_steps:
        raise ValueError(f"Expected a warm-up shorter than the training, {steps} updates. Received: {warmup_steps}. Shorten it.")
    remaining = steps - warmup_steps
    schedules = keras.optimizers.schedules
    if name == "constant":
        schedule = rate
    elif name == "cosine":
        schedule = schedules.CosineDecay(rate, remaining)
    elif name == "cosine_restarts":
        # Keras divides the step by this number, so that it need not be whole.
        schedule = schedules.CosineDecayRestarts(rate, remaining / cycles, t_mul=1.0, m_mul=1.0)
    elif name == "polynomial":
        schedule = schedules.PolynomialDecay(rate, remaining, end_learning_rate=0.0, power=POLYNOMIAL_POWER)
    else:
        raise ValueError(f"Expected `schedule` in {SCHEDULES}. Received: {name!r}.")
    if not warmup_steps:
        return schedule
    return WarmUp(schedules.PolynomialDecay(rate, 1, end_learning_rate=rate) if name == "constant" else schedule, warmup_steps, rate)


def make_optimizer(
    name: str, learning_rate, *, weight_decay: float = 0.0, clip_norm: float = 0.0, accumulate: int = 1
) -> keras.optimizers.Optimizer:
    """Makes an optimiser.

    Args:
        name: "adam"; "adamw", whose weight decay is decoupled from the gradient (Loshchilov and Hutter, 2019); "sgd" with Nesterov's
            momentum of 0.99.
        learning_rate: A number or a schedule.
        weight_decay: Of "adamw". For the others decay is a penalty in the loss, which `modules.trainer.Trainer` adds.
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
