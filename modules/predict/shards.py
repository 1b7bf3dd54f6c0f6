"""Shards: the parts of a batch that the jobs of an array predict, each on its own."""

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from modules.data.case import Case


class Shard(NamedTuple):
    """One part of a batch. The parts are disjoint and together complete.

    A hash of a scan's name decides which part it is in. So files that come or go between the starts of two jobs move no other scan to
    another part; places in a sorted list would. The parts differ in size instead, by about the root of their mean size.

    Attributes:
        index: Which part, from 0.
        number: Number of parts.
    """

    index: int = 0
    number: int = 1

    @property
    def leads(self) -> bool:
        """Tells if this part reports what concerns no single part, such as a path without images."""
        return self.index == 0

    def choose(self, cases: Iterable[Case]) -> list[Case]:
        """Chooses the cases of this part, in order. Slices of one scan are in one part, because they are scored together."""
        return [case for case in cases if self.number == 1 or _hash_name(case.volume_id or case.case_id) % self.number == self.index]

    def __str__(self) -> str:
        return f"{self.index}/{self.number}"


def parse_shard(text: str) -> Shard:
    """Reads `i/n`; raises ValueError for anything else."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    shard = Shard(int(match[1]), int(match[2])) if match else None
    if shard is None or shard.index >= shard.number:
        raise ValueError(f"Expected `shard` i/n with i from 0 to n - 1, such as 0/3, 1/3 and 2/3. Received: {text}.")
    return shard


def _hash_name(name: str) -> int:
    """Returns a number that is the same in every process; Python's own hash of a text is not."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8])
