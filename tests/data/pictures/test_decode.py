"""Decoding pictures as they come: every form gives upright RGB of 8 bits, or one line of reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from data.pictures.decode import MOST_PIXELS, NotAPicture, OpenedPicture, check
from pictures import encoded, pixels

SAMPLES = Path(matplotlib.get_data_path()) / "sample_data"


def loaded(raw: bytes, shrink: float = 1.0) -> np.ndarray:
    return np.asarray(OpenedPicture(raw).load(shrink))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand: `rows` are unfiltered."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = [*chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in [(b"IHDR", head), *body])


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def test_16_bits_become_their_upper_8() -> None:
    gray = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], dtype=">u2")
    found = loaded(png(4, 2, 16, 0, gray.tobytes()))
    assert found.shape == (2, 4, 3)
    assert found[..., 0].tolist() == [[0, 0, 1, 0x12], [0x7F, 0x80, 0xFF, 0xFF]]
    colour = np.array([[[0x1234, 0x5678, 0x9ABC]]], dtype=">u2")
    assert loaded(png(1, 1, 16, 2, colour.tobytes())).tolist() == [[[0x12, 0x56, 0x9A]]]


def test_palettes_bits_and_grays_become_rgb() -> None:
    palette = (b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    assert loaded(png(3, 1, 8, 3, bytes([2, 1, 0]), palette)).tolist() == [
        [[0, 0, 255], [0, 255, 0], [255, 0, 0]]
    ]
    assert loaded(png(2, 1, 1, 0, bytes([0b01000000]))).tolist() == [[[0] * 3, [255] * 3]]
    assert loaded(saved(Image.new("L", (3, 2), 77), "JPEG")).tolist() == [[[77] * 3] * 3] * 2


def test_what_is_transparent_is_laid_on_white() -> None:
    red = [255, 0, 0]
    rgba = np.array([[[*red, 255], [*red, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    assert loaded(saved(Image.fromarray(rgba), "PNG")).tolist() == [[red, [255] * 3, [127] * 3]]
    palette, transparent = (b"PLTE", bytes([255, 0, 0, 1, 2, 3])), (b"tRNS", bytes([255, 0]))
    assert loaded(png(2, 1, 8, 3, bytes([0, 1]), palette, transparent)).tolist() == [[red, [255] * 3]]
    gray = png(2, 1, 8, 0, bytes([9, 7]), (b"tRNS", bytes([0, 7])))
    assert loaded(gray).tolist() == [[[9] * 3, [255] * 3]]


def test_cmyk_and_progressive_jpegs_show_what_they_show() -> None:
    array = pixels(3, 64, 64)
    picture = Image.fromarray(array)
    fine = {"quality": 95, "subsampling": 0}
    plain = loaded(saved(picture, "JPEG", **fine)).astype(int)
    assert abs(plain - array).mean() < 4
    assert abs(loaded(saved(picture, "JPEG", **fine, progressive=True)) - plain).max() <= 1
    cmyk = saved(picture.convert("CMYK"), "JPEG", **fine)
    assert Image.open(io.BytesIO(cmyk)).mode == "CMYK"
    assert abs(loaded(cmyk) - plain).mean() < 6
    for form in ("PNG", "WEBP", "GIF", "BMP"):
        assert abs(loaded(saved(picture, form)) - array.astype(int)).mean() < 12, form


@pytest.mark.parametrize("turned", range(1, 9))
def test_every_orientation_of_exif_is_turned_upright(turned: int) -> None:
    upright = np.zeros((16, 24, 3), dtype=np.uint8)
    upright[:8, :8] = 255  # the upper left corner
    exif = Image.Exif()
    exif[0x0112] = turned
    # The stored pixels of each orientation, by its definition: where row 0 and column 0 are.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # row 0 is the visual right side, column 0 the visual top
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[turned]
    for form in ("JPEG", "PNG", "WEBP"):
        options = {} if form == "PNG" else {"quality": 100}
        raw = saved(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **options)
        opened = OpenedPicture(raw)
        assert (opened.width, opened.height) == (24, 16), form
        found = np.asarray(opened.load())
        assert found.shape == upright.shape and abs(found.astype(int) - upright).mean() < 3, form


def test_a_jpeg_is_decoded_smaller_only_as_far_as_is_asked() -> None:
    raw = saved(Image.fromarray(pixels(1, 200, 300)), "JPEG")
    sizes = [loaded(raw, shrink).shape[:2] for shrink in (1.0, 0.51, 0.5, 0.26, 0.25, 0.13, 0.1)]
    assert sizes == [(200, 300), (200, 300), (100, 150), (100, 150), (50, 75), (50, 75), (25, 38)]
    assert loaded(saved(Image.new("RGB", (1, 1)), "JPEG"), 0.1).shape == (1, 1, 3)


def test_damaged_pictures_and_other_files_are_refused_with_a_reason() -> None:
    whole = (SAMPLES / "grace_hopper.jpg").read_bytes()
    assert check(whole) == "jpg" and check(encoded(pixels(0))) == "png"
    for raw, reason in (
        (whole[: len(whole) // 2], "truncated"),
        (encoded(pixels(0))[:-200], "truncated|broken"),
        (b"", "no JPEG, PNG, WEBP, GIF, BMP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "."),
        (whole[:20] + bytes(99), "."),
    ):
        with pytest.raises(NotAPicture, match=reason) as caught:
            check(raw)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_bomb_of_pixels_is_refused_before_it_is_decoded() -> None:
    """A few kilobytes that would be gigabytes of pixels."""
    width = height = 1 << 15
    head = png(width, height, 1, 0, bytes(width // 8 * 2) * (height // 2))
    assert len(head) < 1 << 18
    with pytest.raises(NotAPicture, match=r"pixels|exceeds limit"):
        check(head)
    side = int(MOST_PIXELS**0.5) + 1
    with pytest.raises(NotAPicture, match=rf"{side} × {side} pixels, more than {MOST_PIXELS:,}"):
        check(png(side, side, 1, 0, bytes(-(-side // 8)) * side))


def test_the_extension_is_of_the_content() -> None:
    for form, extension in (
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
    ):
        assert check(saved(Image.new("RGB", (2, 2)), form)) == extension
