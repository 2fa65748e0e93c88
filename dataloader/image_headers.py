"""What the first bytes of an image file say, and whether its last bytes arrived. No pixel is decoded here."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_PALETTE = 3
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_JPEG_NOT_FRAMES = {0xC4, 0xC8, 0xCC}  # DHT, JPG, DAC share the SOF range


class ImageHeader(NamedTuple):
    """Size in pixels, stored channels, bits of one channel, and whether the values are palette indices or CMYK inks."""

    height: int
    width: int
    channels: int
    bits: int
    palette: bool = False
    cmyk: bool = False


def parse_header(data: bytes) -> ImageHeader | None:
    """The header of a PNG, JPEG or BMP from its first bytes; None for other formats or too few bytes."""
    try:
        if data.startswith(PNG_SIGNATURE):
            return _png_header(data)
        if data.startswith(b"\xff\xd8"):
            return _jpeg_header(data)
        if data.startswith(b"BM"):
            return _bmp_header(data)
    except (struct.error, IndexError):
        return None
    return None


def torn_part(data: bytes) -> str | None:
    """What is missing from (or damaged in) a whole PNG or JPEG file, in words; None if nothing was found.

    Decoders fill what is missing with grey and say nothing, so the file is judged before it is decoded: a PNG by
    its chunk lengths, checksums and IEND, a JPEG by its end-of-image marker.
    """
    if data.startswith(PNG_SIGNATURE):
        return _torn_png(data)
    if data.startswith(b"\xff\xd8"):
        return _torn_jpeg(data)
    return None


def _png_header(data: bytes) -> ImageHeader:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    return ImageHeader(height, width, _PNG_CHANNELS.get(colour, 0), bits, colour == _PNG_PALETTE)


def _torn_png(data: bytes) -> str | None:
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if end > len(data):
            break
        if struct.unpack_from(">I", data, end - 4)[0] != zlib.crc32(memoryview(data)[position + 4 : end - 4]):
            return "a checksum does not match"
        if kind == b"IEND":
            return None
        position = end
    return "its end is missing"


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, position of its length field) of each segment up to and including the start of the first scan."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return
        marker = data[position + 1]
        if marker == 0xFF or marker in _JPEG_ALONE:
            position += 1 if marker == 0xFF else 2
            continue
        yield marker, position + 2
        if marker == 0xDA:
            return
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]


def _jpeg_header(data: bytes) -> ImageHeader | None:
    for marker, at in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in _JPEG_NOT_FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 2)
            return ImageHeader(height, width, channels, bits, cmyk=channels == 4)
    return None


def _torn_jpeg(data: bytes) -> str | None:
    # The search starts at the first scan: a thumbnail inside the EXIF block has an end marker of its own.
    scan = next((at for marker, at in _jpeg_segments(data) if marker == 0xDA), None)
    return None if scan is not None and data.find(b"\xff\xd9", scan) >= 0 else "its end is missing"


def _bmp_header(data: bytes) -> ImageHeader:
    width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    channels = max(1, bits // 8)
    return ImageHeader(abs(height), width, channels, 8, palette=bits <= 8)
