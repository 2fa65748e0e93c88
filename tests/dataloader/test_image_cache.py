"""The cache of decoded images."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dataloader.image_cache import ImageCache
from dataloader.images import write_png


def test_least_recently_used_goes_first_and_at_least_one_stays(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for k, path in enumerate(paths):
        write_png(path, np.full((10, 10, 3), k, np.uint8))
    cache = ImageCache(max_bytes=600)
    first, second = cache.read(paths[0]), cache.read(paths[1])
    assert cache.read(paths[0]) is first  # now 1 is the oldest
    cache.read(paths[2])
    assert cache.read(paths[0]) is first and cache.read(paths[1]) is not second
    small = ImageCache(max_bytes=1)
    assert small.read(paths[1]) is small.read(paths[1])


def test_cached_pixels_cannot_be_written(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    image = ImageCache(10**6).read(tmp_path / "a.png")
    with pytest.raises(ValueError, match="read-only"):
        image[0] = 1


def test_many_threads_may_read_at_once(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(8)]
    for k, path in enumerate(paths):
        write_png(path, np.full((20, 20, 3), k, np.uint8))
    cache = ImageCache(max_bytes=3 * 1200)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda k: (k, cache.read(paths[k]).max()), [k % 8 for k in range(400)]))
    assert all(k == value for k, value in read)
    assert pickle.loads(pickle.dumps(cache)).read(paths[5]).max() == 5
