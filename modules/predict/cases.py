"""Predicts cases: reads them, lays windows over them, computes and merges the windows, and returns to each scan's own grid."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from modules.backend_choice import has_nvidia
from modules.data.case import Case, Predicted, Volume, read_case
from modules.data.documents import to_line
from modules.data.patches import cut, make_grid
from modules.data.preprocess import Geometry, find_orientation
from modules.data.regions import Region, list_parts, paint_regions
from modules.hardware import is_lack_of_memory
from modules.predict import windows
from modules.predict.bundle import ModelBundle
from modules.predict.doubt import Doubt, DoubtTally, measure_maps
from modules.predict.engines import EngineError, NotFiniteError
from modules.predict.flips import CANONICAL, Order, make_predictor
from modules.predict.memory import MemoryLimit
from modules.predict.postprocess import share


def _do_nothing(*_: object) -> None:
    """Stands for a function that reports progress."""


@dataclass(frozen=True)
class PredictionOptions:
    """Options of a prediction.

    Attributes:
        overlap: Fraction in [0, 1) of a window that its neighbour along an axis shares.
        batch_size: Windows predicted together; 0 chooses by their size.
        memory: The bound on memory, by which `batch_size` may be smaller and sums may lie on disk; None for no bound.
        mirror: Whether to average over flips as well; None as each model's bundle says.
        dropout: Number of models that each model's dropout makes of it, to average over; 0 for the model as it is.
        postprocess: Whether label maps go through the models' postprocessing. Probabilities never do.
        doubt: Whether to gather what the probabilities tell of errors, see `modules.predict.doubt`.
        maps: Whether to gather its voxel maps too; it needs `doubt`.
        on_tiling: A function called with each image's windows before the first of them is predicted.
        on_batch: A function called after each batch with the number of its windows.
        on_image: A function called with each case and its image as it lies on disk, before it is predicted.
        on_failure: A function called with each case that cannot be read or computed and with its error, so that the others are still
            predicted. Without it the error is raised.
    """

    overlap: float = 0.5
    batch_size: int = 0
    memory: MemoryLimit | None = None
    mirror: bool | None = None
    dropout: int = 0
    postprocess: bool = True
    doubt: bool = False
    maps: bool = False
    on_tiling: Callable[[windows.Tiling], None] = _do_nothing
    on_batch: Callable[[int], None] = _do_nothing
    on_image: Callable[[Case, Volume], None] = _do_nothing
    on_failure: Callable[[Case, Exception], None] | None = None


class _TiledImage(NamedTuple):
    """An image as one model sees it, and the windows that lie over it; see `predict_images`."""

    array: np.ndarray
    geometry: Geometry
    tiling: windows.Tiling


class _ReadCase(NamedTuple):
    """A case as it was read, with its windows for each model."""

    case: Case
    image: Volume
    label: np.ndarray | None
    tiled: list[_TiledImage]


def predict_cases(
    bundles: Sequence[ModelBundle],
    cases: Iterable[Case],
    options: PredictionOptions = PredictionOptions(),
    *,
    keep_probabilities: bool = False,
) -> Iterator[Predicted]:
    """Reads and predicts cases with one model, or with the mean of several.

    Cases come in chunks of as many windows as make a batch. Slices share batches, and a large volume is alone. Memory holds one chunk.

    Args:
        bundles: Models of the same channels and classes; they may differ in rank, window and preprocessing.
        cases: The cases; a case whose `label_path` is None gets no label.
        options: The options by which windows are laid and merged.
        keep_probabilities: Whether to keep the probabilities of all classes. Otherwise they are dropped plane by plane.

    Raises:
        FileNotFoundError, ValueError: If a case cannot be read or computed, or an image does not fit a model, naming the file. With
            `options.on_failure` such a case is passed over.
        ValueError: If the models do not fit one another.
    """
    order = choose_order(bundles)
    waiting, failure = deque(cases), None
    while failure is None:
        chunk, failure = _read_chunk(bundles, waiting, options, order)
        if not chunk:
            break
        yield from _predict_chunk(bundles, chunk, options, order, keep_probabilities)
        # Memory need not hold this chunk while the next is read.
        del chunk
    if failure is not None:
        raise failure


def predict_read(
    bundles: Sequence[ModelBundle],
    case: Case,
    image: Volume,
    options: PredictionOptions = PredictionOptions(),
    *,
    keep_probabilities: bool = False,
) -> Predicted:
    """Predicts a case whose image `(*S, C)` was read and checked before; raises as `predict_cases`, of which the options are."""
    order = choose_order(bundles)
    item = _ReadCase(case, image, None, [_tile(bundle, image, options, order) for bundle in bundles])
    (predicted,) = _predict_chunk(bundles, [item], options, order, keep_probabilities)
    return predicted


def choose_order(bundles: Sequence[ModelBundle]) -> Order:
    """Chooses the order of a volume's axes in which models predict together; raises ValueError if they do not fit one another."""
    first = bundles[0]
    for bundle in bundles[1:]:
        for name, one, other in (
            ("class_names", first.class_names, bundle.class_names),
            ("channels", first.channels, bundle.channels),
            ("regions", first.regions, bundle.regions),
            ("output_values", first.label_rule.output_values, bundle.label_rule.output_values),
        ):
            if one != other:
                raise ValueError(f"Expected models of the same {name} for an ensemble, {one}. Received: {other}.")
    # Memory holds as many planes as a window is deep, so planes lie across the axis along which the windows are thinnest.
    return _put_first(int(np.argmin(np.sum([bundle.window.deep for bundle in bundles], axis=0))))


def _predict_chunk(
    bundles: Sequence[ModelBundle], chunk: Sequence[_ReadCase], options: PredictionOptions, order: Order, keep: bool
) -> Iterator[Predicted]:
    """Predicts cases that share batches. Where an engine or the memory fails, each of those left is tried alone."""
    done, steps = 0, share([bundle.postprocessing for bundle in bundles])
    try:
        # All models go through the chunk in step, a plane at a time.
        tiled = _fit_memory([[item.tiled[number] for item in chunk] for number in range(len(bundles))], chunk, options, keep)
        streams = [_predict_tiled(bundle, images, options, order) for bundle, images in zip(bundles, tiled, strict=True)]
        for item, planes in zip(chunk, zip(*streams, strict=True), strict=True):
            merged = windows.average_planes(planes)
            prediction, probabilities, doubt, finite = _assemble(merged, item, bundles[0], order, keep, options)
            done += 1
            if not finite:
                error = NotFiniteError(
                    f"Expected finite probabilities. Received: NaN from the model for {item.case.image_paths[0]}. Look at its intensities, "
                    "or train the model in `--precision float32`."
                )
                if options.on_failure is None:
                    raise error
                options.on_failure(item.case, error)
                continue
            if options.postprocess:
                steps.apply(prediction, item.image.spacing_mm)
            yield Predicted(item.case, item.image, item.label, prediction, probabilities, doubt)
        return
    except Exception as error:
        if isinstance(error, NotFiniteError) or not (isinstance(error, EngineError) or is_lack_of_memory(error)):
            raise
        if len(chunk) == 1:
            named = _name_case(chunk[0].case, error)
            if options.on_failure is None:
                raise named from error
            options.on_failure(chunk[0].case, named)
            return
    # Outside of the handler the error no longer holds on to the memory that ran out.
    for item in chunk[done:]:
        yield from _predict_chunk(bundles, [item], options, order, keep)


def _fit_memory(
    tiled: list[list[_TiledImage]], chunk: Sequence[_ReadCase], options: PredictionOptions, keep: bool
) -> list[list[_TiledImage]]:
    """Returns the images of each model with the batch size, and the place of the slab, for which there is memory."""
    if options.memory is None:
        return tiled
    numbers = (tiled[0][0].tiling.num_classes if keep else 0) + (2 if options.maps else 0)
    kept_bytes = max((1 + 4 * numbers) * math.prod(item.image.array.shape[:-1]) for item in chunk)
    chosen = options.memory.fit([[image.tiling for image in images] for images in tiled], kept_bytes)
    return [
        [image._replace(tiling=replace(image.tiling, batch_size=batch_size, disk=disk)) for image in images]
        for images, (batch_size, disk) in zip(tiled, chosen, strict=True)
    ]


def _name_case(case: Case, error: Exception) -> EngineError:
    """Returns the error of a case that could not be computed; it names the case's first file."""
    path = case.image_paths[0]
    if is_lack_of_memory(error):
        return EngineError(
            f"Expected enough memory to predict {path}. Received: {to_line(error, 400)}. Resample it, or use a larger machine."
        )
    return EngineError(f"Expected an engine that computes {path}. Received: {to_line(error)}")


def predict_images(
    bundle: ModelBundle, images: Iterable[Volume], options: PredictionOptions = PredictionOptions(), order: Order = CANONICAL
) -> Iterator[Iterator[np.ndarray]]:
    """Predicts images one after the other, each on its own grid.

    Args:
        bundle: The model.
        images: Volumes `(*S, C)`; they may differ in shape.
        options: The options by which windows are laid and merged.
        order: The order of a volume's canonical axes. Planes lie across the first.

    Yields:
        The probabilities of each image, plane by plane. A volume has planes `(*S[1:], K)` float32, in canonical orientation and with its
        axes in `order`; a slice has one plane `(*S, K)`. They sum to 1 over the classes. Regions have one map each, without the
        background, and no such sum. Voxels outside the network's crop are background.
    """
    yield from _predict_tiled(bundle, [_tile(bundle, image, options, order) for image in images], options, order)


def cut_samples(bundle: ModelBundle, cases: Sequence[Case]) -> np.ndarray:
    """Cuts two windows of real scans as the model would get them, to try it on.

    They come from the middle of the first case and from a third of the case in the middle. A single slice gives the same window twice.

    Args:
        bundle: The model.
        cases: One case or more.

    Returns:
        `(2, *P, C)` float32.

    Raises:
        FileNotFoundError, ValueError: If a case cannot be read, naming its file.
    """
    chosen = (cases[0], 2), (cases[len(cases) // 2], 3)
    return np.stack([cut_sample(bundle, read_case(case, bundle)[0], part) for case, part in chosen])


def cut_sample(bundle: ModelBundle, image: Volume, part: int = 2) -> np.ndarray:
    """Cuts the window `(*P, C)` float32 of an image that lies behind 1 in `part` of all its windows; 2 is the middle one."""
    array, _, tiling = _tile(bundle, image, PredictionOptions(), CANONICAL)
    sample = cut(array, tiling.starts[len(tiling.starts) // part], tiling.window, fill=array.min(axis=(0, 1, 2)))
    return (sample if bundle.window.across is None else sample.squeeze(bundle.window.across)).astype(np.float32)


def count_windows(bundle: ModelBundle, image: Volume) -> int:
    """Counts the windows that a model lays over an image, each as often as it is flipped."""
    flips = 2 ** len(bundle.flipped_axes or ()) if bundle.mirror else 1
    return flips * len(_tile(bundle, image, PredictionOptions(), CANONICAL).tiling.starts)


def _read_chunk(
    bundles: Sequence[ModelBundle], cases: deque[Case], options: PredictionOptions, order: Order
) -> tuple[list[_ReadCase], Exception | None]:
    """Reads the first of `cases`, and removes them, until they fill a batch of windows for each model, or until one cannot be read.

    An error of reading is returned, not raised: the cases read before are still predicted, so one bad file costs no work. An empty
    chunk means that no case is left.
    """
    chunk, lacking = [], [1] * len(bundles)
    while cases and max(lacking) > 0:
        case = cases.popleft()
        try:
            if options.memory is not None and not options.memory.admits(case, alone=not chunk):
                cases.appendleft(case)
                break
            image, label = read_case(case, bundles[0])
            for bundle in bundles[1:]:
                bundle.check_image(image, str(case.image_paths[0]))
            tiled = [_tile(bundle, image, options, order) for bundle in bundles]
        except (ValueError, OSError, MemoryError) as error:
            if options.on_failure is None:
                return chunk, error
            options.on_failure(case, error)
            continue
        options.on_image(case, image)
        chunk.append(_ReadCase(case, image, label, tiled))
        lacking = [
            one.tiling.batch_size - sum(len(member.tiled[number].tiling.starts) for member in chunk) for number, one in enumerate(tiled)
        ]
    return chunk, None


def _tile(bundle: ModelBundle, image: Volume, options: PredictionOptions, order: Order) -> _TiledImage:
    """Preprocesses an image for a model and lays windows over it; the result has the axes of a volume, in `order`."""
    array, geometry = bundle.preprocessing.apply(image)
    array = array.transpose(*order, 3) if array.ndim == 4 else array[np.newaxis]
    window = tuple(bundle.window.deep[axis] for axis in order)
    starts = tuple(make_grid(array.shape[:-1], window, options.overlap))
    batch_size = options.batch_size or choose_batch_size(window, bundle.engine)
    return _TiledImage(array, geometry, windows.Tiling(array.shape[:-1], window, starts, bundle.num_maps + options.maps, batch_size))


def choose_batch_size(window: Sequence[int], engine: str) -> int:
    """Chooses how many windows of these sizes an engine predicts together: on a CPU so few that they take little memory."""
    on_gpu = engine == "keras" and has_nvidia()
    return windows.choose_batch_size(window, voxels=windows.GPU_VOXELS if on_gpu else windows.CPU_VOXELS)


def _predict_tiled(
    bundle: ModelBundle, images: Sequence[_TiledImage], options: PredictionOptions, order: Order
) -> Iterator[Iterator[np.ndarray]]:
    """Predicts images that share batches; see `predict_images`."""
    if not images:
        return
    for image in images:
        options.on_tiling(image.tiling)
    background = [0.0] * bundle.num_maps if bundle.regions else np.eye(len(bundle.class_names), dtype=np.float32)[0].tolist()
    # Nobody doubts what the network never saw.
    background += [0.0] * options.maps

    def cut_windows() -> Iterator[np.ndarray]:
        for array, _, tiling in images:
            darkest = array.min(axis=(0, 1, 2))
            for start in tiling.starts:
                yield cut(array, start, tiling.window, fill=darkest)

    mirror = bundle.mirror if options.mirror is None else options.mirror
    predict = make_predictor(bundle, mirror, order, doubt=options.maps, dropout=options.dropout)
    batch_size, compiled = images[0].tiling.batch_size, bundle.engine == "keras"
    outputs = windows.predict_windows(predict, cut_windows(), batch_size, options.on_batch, one_shape=compiled)
    for _, geometry, tiling in images:
        merged = windows.merge_windows(islice(outputs, len(tiling.starts)), tiling)
        planes = bundle.preprocessing.restore_planes(merged, geometry, background, order)
        yield planes
        # The next image's windows follow this one's in the stream, so we read what the caller left.
        for _ in planes:
            pass


def _put_first(axis: int) -> Order:
    """Returns the order of three axes with `axis` in front."""
    first, second = (other for other in range(3) if other != axis)
    return axis, first, second


def _decide(probabilities: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """Decides the class index of each voxel: the most probable class, or what the regions are painted with."""
    return paint_regions(probabilities, regions) if regions else probabilities.argmax(axis=-1)


def _assemble(
    planes: Iterable[np.ndarray], item: _ReadCase, bundle: ModelBundle, order: Order, keep: bool, options: PredictionOptions
) -> tuple[np.ndarray, np.ndarray | None, Doubt | None, bool]:
    """Assembles canonical planes to what is wanted on the image's grid.

    Returns:
        The label map `(*S)`; the probabilities `(*S, K)` if they are kept; the doubt if it is wanted; and whether all probabilities are
        finite. NaN would be taken for the background.
    """
    spatial = item.image.array.shape[:-1]
    axes, flipped = find_orientation(item.image)
    geometry = Geometry(axes, flipped, spatial, (), ())
    prediction = np.empty(spatial, np.uint8)
    probabilities = np.empty((*spatial, bundle.num_maps), np.float32) if keep else None
    maps = np.empty((*spatial, 2), np.float32) if options.maps else None

    def turn(array: np.ndarray) -> np.ndarray:
        # It is a view, so that filling it in canonical order fills the image's grid.
        turned = geometry.turn(array)
        return turned.transpose(*order, *range(3, turned.ndim)) if len(spatial) == 3 else turned

    turned = turn(prediction)
    turned_probabilities, turned_maps, turned_label = (
        None if array is None else turn(array) for array in (probabilities, maps, item.label)
    )
    tally = DoubtTally(list_parts(bundle.class_names, bundle.regions), regions=bool(bundle.regions)) if options.doubt else None
    finite = True
    for index, plane in enumerate(planes):
        finite = finite and math.isfinite(float(plane.sum()))
        place = index if len(spatial) == 3 else ...
        own = plane[..., : bundle.num_maps]
        turned[place] = _decide(own, bundle.regions)
        if turned_probabilities is not None:
            turned_probabilities[place] = own
        if turned_maps is not None:
            turned_maps[place] = measure_maps(plane, regions=bool(bundle.regions))
        if tally is not None:
            tally.add(own, None if turned_label is None else turned_label[place])
    return prediction, probabilities, tally.finish(maps, labelled=item.label is not None) if tally else None, finite
