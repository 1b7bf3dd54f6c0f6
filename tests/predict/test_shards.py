"""Parts of a batch: disjoint, together complete, and the same whatever else lies in the folder."""

from pathlib import Path

import pytest

from modules.data.case import Case
from modules.predict.shards import Shard, parse_shard


def _make_cases(names, volume_id=None):
    return [Case(name, name, (Path(f"{name}.nii"),), volume_id=volume_id and name.rpartition("_")[0]) for name in names]


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_shards_are_disjoint_and_complete_in_order(number):
    cases = _make_cases(f"p{index}/T1" for index in range(200))
    parts = [Shard(index, number).choose(cases) for index in range(number)]
    assert sorted((case for part in parts for case in part), key=cases.index) == cases
    assert all(part == [case for case in cases if case in part] for part in parts)
    # Three deviations of a fair draw.
    assert all(abs(len(part) - 200 / number) <= 3 * (200 / number) ** 0.5 for part in parts)


def test_a_scan_stays_in_its_shard_whatever_comes_and_goes():
    names = [f"case_{index:03}" for index in range(30)]
    before = {case.case_id for case in Shard(1, 4).choose(_make_cases(names))}
    more = {case.case_id for case in Shard(1, 4).choose(_make_cases(["a", "b", *names[5:], "z"]))}
    assert more - {"a", "b", "z"} == before - set(names[:5])


def test_the_hash_is_that_of_the_name_by_hand():
    # sha256("a") begins with ca978112ca1bbdca, sha256("b") with 3e23e8160039594a.
    assert [0xCA978112CA1BBDCA % 5, 0x3E23E8160039594A % 5] == [0, 1]
    shards = [Shard(index, 5).choose(_make_cases(["a", "b"])) for index in range(5)]
    assert [[case.case_id for case in part] for part in shards] == [["a"], ["b"], [], [], []]


def test_slices_of_a_scan_are_in_one_shard():
    cases = _make_cases([f"scan{scan}_{index}" for scan in range(12) for index in range(9)], volume_id=True)
    for index in range(3):
        numbers = [case.volume_id for case in Shard(index, 3).choose(cases)]
        assert all(numbers.count(name) == 9 for name in numbers)


def test_a_shard_is_read_from_its_text():
    assert parse_shard("2/3") == (2, 3)
    assert str(parse_shard("02/3")) == "2/3"
    assert [parse_shard(f"{index}/2").leads for index in range(2)] == [True, False]
    for text in ("3/3", "a/b", "1", "1/2/3", "-1/2", "0/0", "", "1.0/2", "٣/٤"):
        with pytest.raises(ValueError, match=r"^Expected `shard` i/n with i from 0 to n - 1"):
            parse_shard(text)
