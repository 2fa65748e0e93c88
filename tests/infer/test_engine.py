import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import Box, Pixels, RawMaps, whole_image
from infer.base import NetworkSegmenter
from infer.engine import Work, through_networks
from infer.finish import Outcome
from models.hovernet.net_desc import HoVerNet


def picture(number):
    return np.full((8, 9, 3), number, np.uint8)


class Echo:
    """A segmenter whose probability is the image's first byte; some images take longer than others."""

    def __init__(self, slow=0, all_begin=None):
        self.slow, self.seen, self.all_begin = slow, [], all_begin

    def begin(self, pixels):
        number = int(pixels.image[0, 0, 0])
        self.seen.append(number)
        if self.all_begin and len(self.seen) == 1:
            self.all_begin.wait(30)
        time.sleep(self.slow * (number % 3))
        if number == 66:
            raise MemoryError
        if number == 77:
            raise KeyboardInterrupt
        shape = (pixels.wanted.height, pixels.wanted.width)
        return lambda: RawMaps(np.full(shape, number, np.float32), np.zeros((*shape, 2), np.float32))


def works(count, started=None):
    for number in range(count):
        if started is not None:
            started.append(number)
        yield Work(f"w{number}", lambda number=number: whole_image(picture(number)))


@pytest.mark.parametrize(("devices", "readers"), [(1, 0), (1, 3), (2, 1), (3, 4)])
def test_answers_come_in_order_from_any_number_of_devices(devices, readers):
    all_begin = threading.Barrier(devices)  # none is so fast that it leaves another nothing to do
    segmenters = [Echo(0.004, all_begin) for _ in range(devices)]
    jobs = list(through_networks(works(20), segmenters, readers))
    assert [job.key for job in jobs] == [f"w{number}" for number in range(20)]
    for number, job in enumerate(jobs):
        assert (job.raw.np_prob == number).all() and (job.image == number).all() and job.box == Box(0, 0, 8, 9)
    assert sorted(number for segmenter in segmenters for number in segmenter.seen) == list(range(20))
    assert all(segmenter.seen for segmenter in segmenters)


def test_works_are_asked_for_late():
    started = []
    jobs = through_networks(works(50, started), [Echo()], readers=2)
    for done in range(50):
        next(jobs)
        assert len(started) <= done + 1 + 2 + 2
    assert len(started) == 50 and next(jobs, None) is None


def torn():
    raise DatasetError("w1.png is torn: mend it.")


def odd():
    raise KeyError("seven")


def test_one_bad_work_is_named_and_the_others_go_on():
    def bad():
        yield Work("w0", lambda: whole_image(picture(0)))
        yield Work("w1", torn)
        yield Work(Path("dir/w2.png"), odd)
        yield Work("w66", lambda: whole_image(picture(66)))
        yield Work("w4", lambda: whole_image(picture(4)))

    first, second, third, fourth, fifth = through_networks(bad(), [Echo(), Echo()], 2)
    assert (first.key, fifth.key) == ("w0", "w4")
    assert second == Outcome("w1", failure="w1.png is torn: mend it.")
    assert third.failure.startswith("dir/w2.png: it failed in an unexpected way (KeyError: 'seven')")
    assert fourth.failure.startswith("w66: memory is too small")


def test_a_window_comes_with_its_own_pixels_alone():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    read, window = Box(10, 20, 30, 40), Box(12, 25, 20, 33)
    pixels = Pixels(image[10:30, 20:40], read, (30, 40), window)
    (job,) = through_networks([Work("w", lambda: pixels)], [Echo()], 1)
    np.testing.assert_array_equal(job.image, image[12:20, 25:33])
    assert job.box == window and job.raw.np_prob.shape == (8, 8)


def test_an_interrupt_on_a_device_ends_the_run_and_leaves_no_thread():
    before = threading.active_count()
    numbers = [1, 77, *range(3, 30)]
    with pytest.raises(KeyboardInterrupt):
        list(through_networks((Work(n, lambda n=n: whole_image(picture(n))) for n in numbers), [Echo(), Echo()], 2))
    assert threading.active_count() == before


def test_whoever_stops_early_leaves_no_thread():
    before = threading.active_count()
    jobs = through_networks(works(50), [Echo(0.01), Echo(0.01)], 2)
    next(jobs)
    jobs.close()
    assert threading.active_count() == before


def test_two_devices_give_what_one_gives():
    torch.manual_seed(0)
    nets = [HoVerNet("small") for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    images = np.random.default_rng(0).integers(0, 256, (5, 70, 90, 3), dtype=np.uint8)

    def answers(segmenters, readers):
        todo = (Work(i, lambda i=i: whole_image(images[i])) for i in range(5))
        return [job.raw for job in through_networks(todo, segmenters, readers)]

    one = answers([NetworkSegmenter(nets[0], "small", "cpu")], 1)
    two = answers([NetworkSegmenter(net, "small", "cpu") for net in nets], 3)
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.np_prob, second.np_prob)
        np.testing.assert_array_equal(first.hv_map, second.hv_map)
