"""Pictures of letters and digits, drawn with the fonts that matplotlib brings.

A class is a folder with one WebDataset tar: KEY.png, KEY.txt (the Unicode name) and KEY.json (font and code
point).
"""

import io
import json
import random
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

SIZE = 32  # pixels of a picture's side
_SCRIPTS = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN", "HEBREW", "ARABIC", "LAO", "CANADIAN")
_MOST_LETTERS = 96  # of a script
_POINTS, _MARGIN = 24, 2
_DRAWN_TIMES = 24  # each digit in each font


class Sample(NamedTuple):
    """A picture, its caption, and what is known of it besides."""

    picture: "Image"
    caption: str
    about: dict[str, Any]


def write_glyphs(folder: Path) -> None:
    """Write a picture of each letter of some scripts in each font that has it."""
    fonts = {path.stem: _letters(path) for path in _fonts("DejaVuSans", "DejaVuSerif", "STIXGeneral")}
    for script in _SCRIPTS:
        letters = sorted({letter for known in fonts.values() for letter in known.get(script, ())})
        _write_class(folder / script.lower(), _glyphs(letters[:_MOST_LETTERS], script, fonts))


def _glyphs(letters: list[str], script: str, fonts: dict[str, dict[str, set[str]]]) -> Iterator[Sample]:
    for path in _fonts(*fonts):
        known = fonts.get(path.stem, {}).get(script, set())
        for letter in letters:
            if letter in known:
                about = {"font": path.stem, "codepoint": f"U+{ord(letter):04X}"}
                yield Sample(_drawn(letter, path), unicodedata.name(letter).lower(), about)


def write_digits(folder: Path) -> None:
    """Write pictures of the ten digits: scikit-learn's, enlarged; without it, in several fonts, turned, moved
    and sized by chance.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        for digit in range(10):
            _write_class(folder / str(digit), _tilted(digit))
        return
    from PIL import Image

    found = load_digits()
    pictures = [Image.fromarray((255 - image * 15.9).astype("uint8")) for image in found.images]
    for digit in range(10):
        of_digit = (
            Sample(picture.resize((SIZE, SIZE)), _name(digit), {"from": "scikit-learn"})
            for picture, target in zip(pictures, found.target.tolist())
            if target == digit
        )
        _write_class(folder / str(digit), of_digit)


def _tilted(digit: int) -> Iterator[Sample]:
    from PIL.Image import Resampling

    drawn = random.Random(digit)  # only `random()`, which promises the same numbers for ever
    for path in _fonts("DejaVuSans", "DejaVuSerif", "STIXGeneral"):
        for _ in range(_DRAWN_TIMES):
            degrees, scale = 40 * drawn.random() - 20, 0.7 + 0.5 * drawn.random()
            moved = (int(9 * drawn.random()) - 4, int(9 * drawn.random()) - 4)
            picture = _drawn(str(digit), path, round(_POINTS * scale))
            picture = picture.rotate(degrees, Resampling.BILINEAR, translate=moved, fillcolor=255)
            yield Sample(picture, _name(digit), {"font": path.stem})


def _name(digit: int) -> str:
    return unicodedata.name(str(digit)).lower()


def _fonts(*names: str) -> list[Path]:
    """The files of matplotlib's fonts whose names begin so, in order, without those of display sizes."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = [path for path in sorted(folder.glob("*.ttf")) if path.name.startswith(names)]
    return [path for path in found if "Display" not in path.name]


def _letters(font: Path) -> dict[str, set[str]]:
    """Script → the letters of it that a font has."""
    from matplotlib.ft2font import FT2Font

    found: dict[str, set[str]] = {}
    for point in FT2Font(str(font)).get_charmap():
        if unicodedata.category(letter := chr(point)) in ("Lu", "Ll", "Lo"):
            found.setdefault(unicodedata.name(letter, "").partition(" ")[0], set()).add(letter)
    return found


def _drawn(text: str, path: Path, points: int = _POINTS) -> "Image":
    """A picture of a text in the middle, black on white, smaller where it would not fit."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (SIZE, SIZE), 255)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = draw.textbbox((0, 0), text, _font(path, points))
    room = SIZE - 2 * _MARGIN
    if (largest := max(right - left, bottom - top)) > room:
        points = max(4, int(points * room / largest))
        left, top, right, bottom = draw.textbbox((0, 0), text, _font(path, points))
    at = ((SIZE - left - right) / 2, (SIZE - top - bottom) / 2)
    draw.text(at, text, fill=0, font=_font(path, points))
    return picture


def _font(path: Path, points: int) -> "FreeTypeFont":
    from PIL import ImageFont

    return ImageFont.truetype(str(path), points, layout_engine=ImageFont.Layout.BASIC)


def _write_class(folder: Path, samples: Iterable[Sample]) -> None:
    """Write a tar of these samples, whose bytes depend on them alone."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "pictures.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples):
            raw = io.BytesIO()
            sample.picture.save(raw, "PNG")
            about = json.dumps(sample.about).encode()
            members = {"json": about, "png": raw.getvalue(), "txt": sample.caption.encode()}
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{number:06d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
