"""Training steps a second of the same U-Net: this application on one backend, or PyTorch, or MONAI; a child of cpu.py and gpu.py.

    python benchmarks/training.py --step ours --rank 2 --base-filters 32 --batch 8 --size 256x128
    python benchmarks/training.py --step torch --rank 3 --base-filters 16 --batch 2 --size 64x64x64

One batch is trained on again and again, with cross-entropy and Adam; ours goes through `modules.model.trainer` as train.py does. With
`--late 1` ours goes through `Trainer.fit`, and all programs read their losses after several steps, as train.py does on a GPU. With
`--profile 1` it prints the time of a step by kind of operation instead (ours: on TensorFlow).
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np

CLASSES = 6
# The weights of two runs are compared after so many steps.
SAME_STEPS = 5


def measure_ours(options: argparse.Namespace) -> dict[str, float]:
    """Measures samples a second, seconds of the first step, FLOPs a sample, and with `--late 1` the hash of the weights after 5 steps."""
    from modules import devices, networks

    devices.start_backend(42, bool(options.deterministic))
    import keras

    from modules.model.losses import SegmentationLoss
    from modules.model.metrics import Overlap
    from modules.model.trainer import Trainer

    devices.choose_precision(options.precision)
    network = networks.build(f"unet{options.rank}d", (*options.size, 1), CLASSES, base_filters=options.base_filters)
    trainer = Trainer(network, SegmentationLoss("ce"), Overlap([str(index) for index in range(CLASSES)]))
    trainer.compile(optimizer=keras.optimizers.Adam(1e-3))
    # train.py does so too, because TensorFlow would trace the step twice.
    trainer.optimizer.build(trainer.trainable_variables)
    image, label = _make_batch(options)
    batch = {"image": image.astype(np.float16), "label": label.astype(np.uint8)}
    if options.profile:
        return profile_tensorflow(lambda: trainer.train_on_batch(batch))
    if not options.late:
        return _measure(lambda: trainer.train_on_batch(batch), options) | {"flops": count_flops(network)}
    import tensorflow as tf

    from modules.run.proof import hash_weights

    data = tf.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2)
    fit = harness.make_fit(trainer, data)
    harness.take_turn()
    return measure_late(fit, options, lambda: hash_weights(network)) | {"flops": count_flops(network)}


def measure_torch(options: argparse.Namespace) -> dict[str, float]:
    """The same in PyTorch."""
    import peers
    import torch

    network = peers.build(options.step, options.rank, options.base_filters, CLASSES).to(options.device)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=options.device == "cuda")
    forward = torch.compile(network) if options.compile else network
    image, label = _make_batch(options)
    memory = torch.channels_last if options.rank == 2 else torch.channels_last_3d
    image = torch.from_numpy(np.moveaxis(image, -1, 1).copy()).to(options.device, memory_format=memory)
    label = torch.from_numpy(label.astype(np.int64)).to(options.device)
    half = options.precision == "bfloat16"

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(options.device, torch.bfloat16, enabled=half):
            loss = torch.nn.functional.cross_entropy(forward(image), label)
        loss.backward()
        optimizer.step()
        if not options.late:
            # Our step also returns its loss each time.
            loss.item()

    def repeat(steps: int) -> None:
        for _ in range(steps):
            step()
        if options.device == "cuda":
            torch.cuda.synchronize()

    if options.profile:
        return profile_torch(step)
    if not options.late:
        return _measure(step, options)
    harness.take_turn()
    return measure_late(repeat, options)


def measure_ceiling(options: argparse.Namespace) -> dict[str, float]:
    """Measures FLOP/s of a large matrix product, the most that a network could reach."""
    import torch

    kind = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    # A CPU may take minutes for a larger product in half precision.
    size = 8192 if options.device == "cuda" else 2048 if kind == torch.float32 else 128
    matrix = torch.randn(size, size, device=options.device, dtype=kind)

    def step() -> None:
        product = matrix @ matrix
        product[0, 0].item()

    harness.take_turn()
    step()
    return {"flops": 2 * size**3 * harness.rate(step, options.seconds)}


def count_flops(network) -> int:
    """Counts multiplications and additions in the convolutions of one sample's forward pass; a training step takes three times that."""
    import keras

    total = 0
    for layer in network.layers:
        transposed = isinstance(layer, keras.layers.Conv2DTranspose | keras.layers.Conv3DTranspose)
        if transposed or isinstance(layer, keras.layers.Conv2D | keras.layers.Conv3D):
            # In a transposed one each input voxel is multiplied with the whole kernel.
            shape = (layer.input if transposed else layer.output).shape
            voxels = shape[1:-1] if layer.data_format == "channels_last" else shape[2:]
            total += 2 * int(np.prod(voxels)) * int(np.prod(layer.kernel.shape))
    return total


def profile_tensorflow(step: Callable[[], object]) -> dict[str, float]:
    """Measures seconds of the third step by kind of operation, the longest first. Operations do not overlap, so they add up to the step."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    step()
    step()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            step()
        space = xplane_pb2.XSpace.FromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    seconds = Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                # "name:Kind", as the executor calls what it runs.
                name = plane.event_metadata[event.metadata_id].name
                if ":" in name and "::" not in name and " " not in name:
                    seconds[name.rpartition(":")[2]] += event.duration_ps / 1e12
    return _list_longest(seconds)


def profile_torch(step: Callable[[], object]) -> dict[str, float]:
    """The same in PyTorch."""
    import torch

    step()
    step()
    with torch.profiler.profile() as profile:
        step()
    return _list_longest(Counter({event.key: event.self_cpu_time_total / 1e6 for event in profile.key_averages()}))


def _list_longest(seconds: Counter) -> dict[str, float]:
    return {"sum": round(sum(seconds.values()), 3), **{name: round(time, 3) for name, time in seconds.most_common(16)}}


def _make_batch(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(42)
    shape = (options.batch, *options.size)
    return rng.standard_normal((*shape, 1)).astype(np.float32), rng.integers(0, CLASSES, shape)


def measure_late(
    repeat: Callable[[int], None], options: argparse.Namespace, describe: Callable[[], str] = lambda: ""
) -> dict[str, float | str]:
    """Measures a function that makes so many steps and waits for the last: samples a second, seconds of the first step.

    `weights` is what `describe` says after `SAME_STEPS` steps, by which two runs are compared.
    """
    began = time.perf_counter()
    repeat(1)
    first = time.perf_counter() - began
    repeat(SAME_STEPS - 1)
    described = describe()
    began = time.perf_counter()
    repeat(2)
    # There are about three rounds.
    steps = max(1, round(2 * options.seconds / 3 / (time.perf_counter() - began)))
    rate = steps * options.batch * harness.rate(lambda: repeat(steps), options.seconds)
    return {"rate": rate, "first": first, "weights": described}


def _measure(step: Callable[[], object], options: argparse.Namespace) -> dict[str, float]:
    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    return {"rate": options.batch * harness.rate(step, options.seconds), "first": first}


STEPS = {"ours": measure_ours, "torch": measure_torch, "monai": measure_torch, "ceiling": measure_ceiling}


def main() -> None:
    """Measures what `--step` says and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", choices=tuple(STEPS), required=True)
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--base-filters", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), default=(256, 128), help="as 256x128")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", type=int, default=0, help="1 for where a step's time goes")
    parser.add_argument("--compile", type=int, default=0, help="1 for torch.compile")
    parser.add_argument("--late", type=int, default=0, help="1 to read losses after several steps")
    parser.add_argument("--deterministic", type=int, default=0, help="1 for kernels that repeat bit for bit (ours)")
    options = parser.parse_args()
    print(json.dumps(STEPS[options.step](options)))


if __name__ == "__main__":
    main()
