"""The process that measures plans for `modules.run.probe`: a line of JSON comes for each, and a line goes back.

Its first line describes the machine. Samples are noise of the plan's shape, because time does not depend on what they show.
"""

import gc
import json
import os
import statistics
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from modules import devices, hardware
from modules.data.case import LabelRule
from modules.data.pipeline import switch_tuning_off
from modules.data.regions import IGNORE, Region, count_parts
from modules.data.resident import choose_table
from modules.data.spec import DatasetSpec
from modules.run.plan import Plan
from modules.run.settings import Settings

# Fewer steps than these are not measured, however long they take.
_LEAST_STEPS, _MOST_STEPS = 2, 50
_ROUNDS = 5


def main() -> None:
    """Answers requests until standard input ends."""
    # Libraries print to standard output, which is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    seed, deterministic = int(sys.argv[1]), sys.argv[2] == "1"
    devices.start_backend(seed, deterministic)
    _answer(answers, asdict(hardware.describe_hardware()))
    base = hardware.read_memory()
    for line in sys.stdin:
        try:
            _answer(answers, {"base_bytes": base, **_measure(json.loads(line))})
        except Exception as error:
            if hardware.is_lack_of_memory(error):
                _answer(answers, {"out_of_memory": True})
            elif isinstance(error, ValueError):
                _answer(answers, {"error": str(error)})
            else:
                raise


def _answer(answers: Any, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    """Builds and compiles a plan's training, and times its steps; see `modules.run.probe.Timing`."""
    import keras

    from modules.run.fit import build_trainer, make_draw_augmentation
    from modules.run.prepared import build_network

    plan, settings = Plan.from_json(request["plan"], "the plan"), Settings.from_json(request["settings"], "the settings")
    spec = _make_spec(request, plan)
    keras.backend.clear_session()
    gc.collect()
    hardware.reset_peak()
    held = hardware.read_memory()
    begin = time.perf_counter()
    devices.choose_precision(settings.precision)
    devices.distribute(names := devices.choose_devices(request["devices"], plan.batch_size))
    machine, backend = hardware.describe_hardware(), devices.name_backend()
    size, _ = choose_table(settings.resident, request["voxels"], len(spec.channels), machine, backend, len(names))
    # It takes the memory of the training cases until the steps are measured.
    table = keras.ops.ones((size,), "uint8")
    network = build_network(settings, spec, plan)
    trainer = build_trainer(network, settings, spec, plan)
    batch = _make_batch(plan, spec, make_draw_augmentation(settings, spec, plan))
    trainer.optimizer.build(trainer.trainable_variables)
    fit = _make_fit(trainer, batch)
    fit(1)
    validate = _make_validation(trainer, batch)
    validate(1)
    first = time.perf_counter() - begin
    step, validation = _time(fit, request["seconds"]), _time(validate, request["seconds"] / 4)
    del table
    return {
        "first_s": first,
        "step_s": step,
        "validation_s": validation,
        "held_bytes": held,
        "peak_bytes": hardware.read_peak(),
        "device_bytes": hardware.read_device_peak(),
        "weights": network.count_params(),
    }


def _time(run, seconds: float, clock=time.perf_counter) -> float:
    """Returns the seconds of a step: the median of several rounds, as another program may disturb one or two of them."""
    begin = clock()
    run(1)
    steps = max(_LEAST_STEPS, min(_MOST_STEPS, int(seconds / (clock() - begin))))
    rounds = []
    for _ in range(min(_ROUNDS, steps)):
        begin = clock()
        run(each := max(1, steps // _ROUNDS))
        rounds.append((clock() - begin) / each)
    return statistics.median(rounds)


def _make_fit(trainer, batch):
    import tensorflow as tf

    data = switch_tuning_off(tf.data.Dataset.from_tensors(batch).repeat())

    def fit(steps: int) -> None:
        trainer.fit(data, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)

    return fit


def _make_validation(trainer, batch):
    import tensorflow as tf

    own = {name: batch[name] for name in ("image", "label")} | {"weight": np.ones(len(batch["label"]), np.float32)}
    data = switch_tuning_off(tf.data.Dataset.from_tensors(own).repeat())

    def validate(steps: int) -> None:
        trainer.evaluate(data, steps=steps, verbose=0)

    return validate


def _make_batch(plan: Plan, spec: DatasetSpec, draw_augmentation) -> dict[str, np.ndarray]:
    rng, shape = np.random.default_rng(0), (plan.batch_size, *plan.window.shape)
    batch = {
        "image": rng.standard_normal((*shape, len(spec.channels))).astype(np.float16),
        "label": rng.integers(0, spec.num_parts, shape).astype(np.uint8),
    }
    if draw_augmentation is not None:
        drawn = [draw_augmentation(rng, (1.0,) * len(plan.window.axes)) for _ in range(plan.batch_size)]
        batch |= {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}
    return batch


def _make_spec(request: dict[str, Any], plan: Plan) -> DatasetSpec:
    """Makes a data set of the request's channels and classes, without any files."""
    names = tuple(request["class_names"])
    regions = tuple(Region(tuple(parts), painted) for parts, painted in request["regions"])
    values = {index: index for index in range(count_parts(names, regions))} | ({IGNORE: IGNORE} if request["ignores"] else {})
    return DatasetSpec(
        name="probe",
        title="",
        url="",
        licence="",
        terms="",
        channels=tuple(request["channels"]),
        class_names=names,
        label_rule=LabelRule(values),
        preprocessing=plan.preprocessing,
        find=lambda root: [],
        write_phantom=lambda root, seed=0: root,
        mirrored_labels=tuple((first, second) for first, second in request["mirrored_labels"]),
        regions=regions,
    )


if __name__ == "__main__":
    main()
