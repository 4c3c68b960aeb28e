"""The bytes of a JPEG, PNG, WebP, GIF or BMP file → an upright RGB picture of 8 bits a channel.

The format is found by the content, whatever the file's name. Of an animation the first frame is taken. EXIF's
orientation is applied; what is transparent is laid on white, as img2dataset does; 16 bits a channel become
their upper 8 (Pillow's own conversion clips them).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# As RGB 201 MB; a JPEG that is stored progressively takes twice as much while it is decoded.
MOST_PIXELS = 1 << 26
# Pillow's name of a format → the extension of its files.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ORIENTATION = 0x0112  # EXIF tag: 1 is upright, from 5 on width and height change places
_EXIF = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow keeps EXIF
_TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")


class NotAPicture(ValueError):
    """These bytes are no picture that can be read; the message is the reason."""


class OpenedPicture:
    """A picture whose header was read; its pixels are decoded by `load`.

    width, height: of the upright picture, in pixels; of a PNG that states its orientation at the end only
        right after `load`.

    Raises NotAPicture.
    """

    def __init__(self, raw: bytes) -> None:
        import PIL.Image

        try:
            self._picture: Image = PIL.Image.open(io.BytesIO(raw), formats=_FORMATS)
        except PIL.Image.UnidentifiedImageError:
            raise NotAPicture(f"no {', '.join(_FORMATS)}") from None
        except Exception as error:  # damaged headers raise many kinds
            raise NotAPicture(_line(error)) from None
        width, height = self._picture.size
        if width * height > MOST_PIXELS:
            raise NotAPicture(f"{width} × {height} pixels, more than {MOST_PIXELS:,}")
        self.format = self._picture.format or ""
        self._orient()

    def _orient(self) -> None:
        picture, self._turned = self._picture, 1
        self.width, self.height = picture.size
        if any(key in picture.info for key in _EXIF):
            try:
                self._turned = picture.getexif().get(_ORIENTATION, 1)
            except Exception:  # EXIF that cannot be read says nothing
                return
            if self._turned in (5, 6, 7, 8):
                self.width, self.height = self.height, self.width

    @property
    def extension(self) -> str:
        """The extension of such files, whatever the name of this one."""
        return EXTENSIONS[self.format]

    def load(self, shrink: float = 1.0) -> Image:
        """Decode the pixels; return them upright, as RGB.

        shrink: a JPEG may come as 1/2, 1/4 or 1/8 of its size, if that is at least `shrink` of it: the
            decoder leaves out the frequencies that would be lost in resizing anyway, and saves most of its
            time.

        Raises NotAPicture where the pixels cannot be decoded, as those of a file that is cut short.
        """
        picture = self._picture
        try:
            if self.extension == "jpg" and shrink <= 0.5:
                part = 8 if shrink <= 0.125 else 4 if shrink <= 0.25 else 2
                picture.draft(None, (max(1, picture.width // part), max(1, picture.height // part)))
            known = any(key in picture.info for key in _EXIF)
            picture.load()
            if not known:  # the end of a PNG may state it
                self._orient()
            return _rgb(self._upright(picture))
        except NotAPicture:
            raise
        except Exception as error:
            raise NotAPicture(_line(error)) from None

    def _upright(self, picture: Image) -> Image:
        from PIL.Image import Transpose

        turns = {
            2: Transpose.FLIP_LEFT_RIGHT,
            3: Transpose.ROTATE_180,
            4: Transpose.FLIP_TOP_BOTTOM,
            5: Transpose.TRANSPOSE,
            6: Transpose.ROTATE_270,
            7: Transpose.TRANSVERSE,
            8: Transpose.ROTATE_90,
        }
        turn = turns.get(self._turned)
        return picture if turn is None else picture.transpose(turn)


def check(raw: bytes) -> str:
    """The extension of the picture that these bytes are. Raises NotAPicture where they are none, or where
    their pixels cannot be decoded.
    """
    picture = OpenedPicture(raw)
    picture.load(0.0)
    return picture.extension


def _rgb(picture: Image) -> Image:
    import PIL.Image

    if picture.mode.startswith("I"):
        high = np.asarray(picture).astype(np.int64) >> 8
        return PIL.Image.fromarray(high.clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in _TRANSPARENT or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _line(error: Any) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__
