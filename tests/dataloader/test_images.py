"""Strict reading of images: what is accepted, and the one sentence for everything else."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from dataloader import images
from hovernet_cyclic.core.errors import DatasetError


@pytest.fixture
def picture():
    return np.random.default_rng(3).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def encode(suffix, array):
    return cv2.imencode(suffix, array)[1].tobytes()


def complaint(path):
    with pytest.raises(DatasetError) as caught:
        images.read_rgb(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and sentence.endswith(".")
    return sentence


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp"])
def test_lossless_formats_come_back_exactly_in_rgb_order(tmp_path, picture, suffix):
    path = tmp_path / f"Gewebe λ 組織{suffix}"
    path.write_bytes(encode(suffix, picture[..., ::-1]))
    image = images.read_rgb(path)
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, picture)
    assert images.image_shape(path) == (37, 53)


def test_jpeg_is_read_in_rgb_order(tmp_path):
    path = tmp_path / "red.jpg"
    path.write_bytes(encode(".jpg", np.full((20, 30, 3), (10, 20, 200), np.uint8)))
    assert np.abs(images.read_rgb(path).astype(int) - (200, 20, 10)).max() < 6
    assert images.image_shape(path) == (20, 30)


def test_opaque_alpha_is_dropped_and_transparency_is_refused(tmp_path, picture):
    path = tmp_path / "a.png"
    alpha = np.full(picture.shape[:2], 255, np.uint8)
    path.write_bytes(encode(".png", np.dstack([picture[..., ::-1], alpha])))
    np.testing.assert_array_equal(images.read_rgb(path), picture)
    alpha[3, 4] = 254
    path.write_bytes(encode(".png", np.dstack([picture[..., ::-1], alpha])))
    assert "transparent" in complaint(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_and_grey_are_refused(tmp_path, picture, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(encode(suffix, picture.astype(np.uint16)))
    assert "8-bit RGB" in complaint(path) and "uint16" in complaint(path)
    path.write_bytes(encode(suffix, picture[..., 0]))
    assert "grey" in complaint(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_label_map_gets_its_own_sentence(tmp_path, dtype):
    path = tmp_path / "labels.png"
    inst_map = np.zeros((60, 60), dtype)
    inst_map[10:30, 10:30], inst_map[30:50, 20:40] = 1, 2
    path.write_bytes(encode(".png", inst_map))
    assert "label map" in complaint(path)


def test_a_palette_image_gets_its_own_sentence(tmp_path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(b"\0\0\1\0\1\0")
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 3, 0, 0, 0)), chunk(b"PLTE", bytes(6))]
    path = tmp_path / "palette.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", rows), chunk(b"IEND", b"")]))
    assert "palette" in complaint(path)


def test_empty_missing_folder_and_text_files_are_refused(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    assert "empty" in complaint(tmp_path / "empty.png")
    assert "damaged" in complaint(tmp_path / "text.png")
    assert "cannot be read" in complaint(tmp_path / "folder.png")
    assert "does not exist" in complaint(tmp_path / "none.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.97])
def test_torn_files_are_refused(tmp_path, picture, suffix, kept):
    whole = encode(suffix, np.tile(picture, (6, 6, 1)))
    path = tmp_path / f"torn{suffix}"
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert "damaged" in complaint(path)


def test_a_flipped_byte_in_a_png_is_found(tmp_path, picture):
    data = bytearray(encode(".png", picture))
    data[len(data) // 2] ^= 0x10
    path = tmp_path / "flipped.png"
    path.write_bytes(bytes(data))
    assert "checksum" in complaint(path)


def test_a_jpeg_whose_thumbnail_ends_is_still_torn(tmp_path, picture):
    whole = encode(".jpg", np.tile(picture, (6, 6, 1)))
    thumbnail = encode(".jpg", picture[:8, :8])
    exif = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    path = tmp_path / "photo.jpg"
    path.write_bytes(whole[:2] + exif + whole[2:])
    assert images.read_rgb(path).shape == (222, 318, 3)
    path.write_bytes((whole[:2] + exif + whole[2:])[: len(whole) // 2])
    assert "end is missing" in complaint(path)


def test_cmyk_is_refused(tmp_path, picture):
    data = bytearray(encode(".jpg", picture))
    frame = data.index(b"\xff\xc0")
    data[frame + 9] = 4
    path = tmp_path / "print.jpg"
    path.write_bytes(bytes(data))
    assert "CMYK" in complaint(path)


def test_write_png_round_trip_and_no_trace_of_the_temporary(tmp_path, picture):
    path = tmp_path / "new folder" / "bild é.png"
    images.write_png(path, picture)
    np.testing.assert_array_equal(images.read_rgb(path), picture)
    assert [p.name for p in path.parent.iterdir()] == ["bild é.png"]
    inst_map = np.array([[0, 1], [65535, 7]], np.uint16)
    images.write_png(tmp_path / "map.png", inst_map)
    stored = cv2.imdecode(np.fromfile(tmp_path / "map.png", np.uint8), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, inst_map)


def test_write_png_refuses_what_png_would_change(tmp_path):
    with pytest.raises(ValueError, match="float32"):
        images.write_png(tmp_path / "x.png", np.zeros((4, 4, 3), np.float32))
    assert not list(tmp_path.iterdir())


def test_list_images_sorts_and_ignores_other_files(tmp_path):
    for name in ("b.PNG", "a.tif", "c.jpeg", ".a.png.1.tmp", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in images.list_images(tmp_path)] == ["a.tif", "b.PNG", "c.jpeg"]


def test_list_images_names_a_missing_and_an_empty_folder(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        images.list_images(tmp_path / "none")
    with pytest.raises(DatasetError, match="holds no image"):
        images.list_images(tmp_path)


def test_image_shape_of_broken_files(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    for name in ("text.png", "none.png"):
        with pytest.raises(DatasetError, match=name):
            images.image_shape(tmp_path / name)
