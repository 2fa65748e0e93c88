import numpy as np
import pytest

from hovernet_cyclic.core.geometry import slide_tiles, within
from hovernet_cyclic.core.types import Box, RawMaps
from infer.strips import Piece, Strips, cut, join


def whole_piece(height, width, typed):
    rng = np.random.default_rng(0)
    raw = RawMaps(
        rng.random((height, width), np.float32),
        rng.random((height, width, 2), np.float32),
        rng.integers(0, 3, (height, width), dtype=np.uint8) if typed else None,
        rng.random((height, width, 3)).astype(np.float16) if typed else None,
    )
    return Piece(Box(0, 0, height, width), rng.integers(0, 255, (height, width, 3), dtype=np.uint8), raw)


def same(first, second):
    pairs = [(first.image, second.image)]
    pairs += [
        (getattr(first.raw, name), getattr(second.raw, name))
        for name in ("np_prob", "hv_map", "type_map", "type_probs")
    ]
    return first.box == second.box and all((a is None and b is None) or np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("typed", [False, True])
def test_every_tile_gets_what_it_reads_from_windows_that_are_asked_once(tmp_path, typed):
    slide = whole_piece(70, 95, typed)
    across = -(-95 // 20)
    with Strips(tmp_path, 2 * 6) as strips:
        for i, tile in enumerate(slide_tiles((70, 95), (16, 20), 6)):
            row, column = divmod(i, across)
            window = cut(slide, tile.window)
            pieces = [*strips.before(row, column), window]
            strips.forget_before(row, column)
            strips.keep(row, column, window)
            assert same(join(pieces, tile.read), cut(slide, tile.read))
        assert 0 < len(list(tmp_path.iterdir())) <= across + 2, "strips that nobody reads any more are left"
    assert not list(tmp_path.iterdir())


def test_what_was_never_asked_is_background(tmp_path):
    slide = whole_piece(10, 10, True)
    joined = join([slide], Box(5, 5, 20, 20))
    assert (
        (joined.raw.np_prob[5:] == 0).all() and (joined.image[5:] == 255).all() and (joined.raw.type_map[5:] == 0).all()
    )
    np.testing.assert_array_equal(joined.image[:5, :5], slide.image[within(Box(5, 5, 10, 10), slide.box)])
    (tmp_path / "0_0.npz").write_bytes(b"left by a run that was killed")
    assert Strips(tmp_path, 4).before(1, 0) == [] and not list(tmp_path.iterdir())
