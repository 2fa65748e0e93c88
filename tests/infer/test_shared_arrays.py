import errno
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from infer import shared_arrays
from infer.shared_arrays import OpenParcel, SharedBlocks


@pytest.fixture
def blocks():
    made = SharedBlocks()
    yield made
    made.close()


def opened(parcel):
    there = OpenParcel(pickle.loads(pickle.dumps(parcel)))
    copies = [None if array is None else array.copy() for array in there.arrays()]
    there.close()
    return copies


def test_arrays_arrive_as_they_were(blocks):
    generator = np.random.default_rng(0)
    arrays = [generator.random((7, 5), np.float32), None, generator.integers(0, 9, (3, 2, 4)).astype(np.uint8)]
    arrays.append(arrays[0][::2, ::-1])  # not contiguous
    found = opened(blocks.put(arrays))
    assert found[1] is None
    for place in (0, 2, 3):
        np.testing.assert_array_equal(found[place], arrays[place])
        assert found[place].dtype == arrays[place].dtype
    empty = opened(blocks.put([np.zeros((0, 3))]))
    assert empty[0].shape == (0, 3)


def test_what_is_opened_cannot_be_written_to(blocks):
    there = OpenParcel(blocks.put([np.zeros(3)]))
    with pytest.raises(ValueError, match="read-only"):
        there.arrays()[0][0] = 1
    there.close()


def test_blocks_are_used_again_once_they_are_taken_back_and_not_before(blocks):
    first, second = blocks.put([np.zeros(9)]), blocks.put([np.ones(9)])
    assert first.block != second.block
    blocks.take_back(first)
    third = blocks.put([np.full(9, 3.0)])
    assert third.block == first.block
    assert opened(second)[0].sum() == 9 and opened(third)[0].sum() == 27
    blocks.take_back(third)
    larger = blocks.put([np.zeros(100_000)])
    assert larger.block != third.block
    with pytest.raises(FileNotFoundError):
        OpenParcel(third)


def test_where_the_system_has_no_room_there_is_no_parcel(blocks, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared_arrays.os, "posix_fallocate", full)
    assert blocks.put([np.zeros(9)]) is None


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory cannot be listed here")
def test_nothing_is_left_behind():
    blocks = SharedBlocks()
    names = [blocks.put([np.zeros(1000)]).block for _ in range(3)]
    assert all((Path("/dev/shm") / name).exists() for name in names)
    blocks.close()
    assert not any((Path("/dev/shm") / name).exists() for name in names)
    assert multiprocessing.active_children() == []
