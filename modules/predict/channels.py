"""Groups the files of one scan that hold a channel each, by numbers or by the names of a model's channels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from modules.data.files import suffix_of


class _Image(Protocol):
    """An image to predict, see `modules.predict.inputs.FoundImage`."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def folder(self) -> str:
        """The sub-folder of the output that its results go to."""
        ...

    @property
    def stem(self) -> str:
        """The name of its results, without their endings."""
        ...


Image = TypeVar("Image", bound=_Image)


@dataclass(frozen=True)
class ChannelGroup(Generic[Image]):
    """The files of one case.

    Attributes:
        images: One image, or one for each channel in the model's order.
        name: The case's name.
        folder: The sub-folder of the output that its results go to.
    """

    images: tuple[Image, ...]
    name: str
    folder: str


def group_channels(images: Sequence[Image], names: Sequence[str]) -> tuple[list[ChannelGroup[Image]], list[Exception]]:
    """Groups the files of one case, for a model of several channels; others stay alone.

    They are `<name>_0000`, `<name>_0001`, ..., or bear the names of the model's channels: `<name>_t1` and `<name>_t2`, `t1` and `t2` in
    a folder for each case, or `<name>` in folders `t1` and `t2`.

    Args:
        images: The images.
        names: Names of the model's channels.

    Returns:
        The groups, and an error for each numbered group that lacks a file.
    """
    if len(names) == 1:
        return [_stay_alone(image) for image in images], []
    given = {(image.path.parent, image.stem): image for image in images}
    groups: list[ChannelGroup[Image]] = []
    failures: list[Exception] = []
    grouped: set[Path] = set()
    for first in images:
        stem = first.stem
        if not stem.endswith("_0000"):
            continue
        base = stem.removesuffix("_0000")
        stems = [f"{base}_{channel:04d}" for channel in range(len(names))]
        members = [given.get((first.path.parent, name)) for name in stems]
        present = tuple(member for member in members if member is not None)
        grouped |= {member.path for member in present}
        if len(present) == len(names):
            groups.append(ChannelGroup(present, base, first.folder))
        else:
            missing = stems[members.index(None)]
            failures.append(
                FileNotFoundError(
                    f"Expected {len(names)} channels of {first.path}. Received: no {missing}{suffix_of(first.path)}. Give all its files."
                )
            )
    named = _group_by_names([image for image in images if image.path not in grouped], names)
    grouped |= {image.path for group in named for image in group.images}
    return [*groups, *named, *(_stay_alone(image) for image in images if image.path not in grouped)], failures


def _stay_alone(image: Image) -> ChannelGroup[Image]:
    return ChannelGroup((image,), image.stem, image.folder)


def _group_by_names(images: Sequence[Image], names: Sequence[str]) -> list[ChannelGroup[Image]]:
    """Groups files by the names of channels in their own names or their folders' names. A group that lacks a channel is none."""
    if len(set(names)) < len(names) or not all(names):
        return []
    # A name such as `pre_t1` comes before `t1`.
    ending = re.compile(rf"(?:^|[_. -])({'|'.join(re.escape(name) for name in sorted(names, key=len, reverse=True))})$")
    found: dict[tuple[Path, str, str], dict[str, Image]] = {}
    for image in images:
        stem, parent = image.stem, image.path.parent
        if match := ending.search(stem):
            base = stem[: match.start()]
            found.setdefault((parent, base or parent.name or stem, image.folder), {})[match[1]] = image
        elif parent.name in names:
            found.setdefault((parent.parent, stem, _leave(image.folder)), {})[parent.name] = image
    return [
        ChannelGroup(tuple(members[channel] for channel in names), name, folder)
        for (_, name, folder), members in found.items()
        if len(members) == len(names)
    ]


def _leave(folder: str) -> str:
    """Returns the folder that holds a folder of the output; "" for the output itself."""
    return folder.rpartition("/")[0]
