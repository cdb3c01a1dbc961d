import base64
import dataclasses
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from masters_ray.data import PILLOW_MAX_PIXELS, BadPictureError, check, decode, pictures, with_embedded_pictures
from masters_ray.data.pictures import named
from masters_ray.data.texts import BadRowError
from masters_ray.records import Picture
from tests.builders import encoded_png, png, problem


@pytest.mark.parametrize("look", [check, decode])
def test_a_picture_with_more_pixels_than_allowed_is_refused_by_its_header(look: type, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded_png(8000, 9000, 8, 2, b""))
    with pytest.raises(BadPictureError, match=r"x.png has 8000 x 9000 pixels; .*max_picture_pixels allows 50000000$"):
        look(Picture(path=str(tmp_path / "x.png")), 50_000_000)
    look(Picture(data=png()), 64 * 64)
    with pytest.raises(BadPictureError, match=f"900000000 pixels.* exceeds limit of {PILLOW_MAX_PIXELS} pixels"):
        look(Picture(data=encoded_png(30000, 30000, 8, 2, b"")))  # which Pillow itself refuses


def test_a_question_is_known_by_what_its_pictures_hold_and_not_by_where_they_lie(tmp_path: Path) -> None:
    def digest(picture: Picture) -> str:
        return dataclasses.replace(problem(), pictures=(picture,)).digest

    (tmp_path / "x.png").write_bytes(png())
    assert digest(check(Picture(path=str(tmp_path / "x.png")))[0]) == digest(Picture(data=png()))
    assert digest(Picture(data=png())) != digest(Picture(data=png(colour=(0, 0, 0))))


@pytest.mark.parametrize(
    "spelling",
    [
        *("x y.png", "./x y.png", "{folder}/x y.png", "file://{folder}/x%20y.png"),
        unicodedata.normalize("NFD", "x ü.png"),
        *("data:image/png;base64,{base64}", "DATA:;base64, {base64}", "{base64}"),
    ],
)
def test_a_picture_may_be_named_in_the_ways_that_people_name_them(spelling: str, tmp_path: Path) -> None:
    for name in ("x y.png", unicodedata.normalize("NFC", "x ü.png")):
        (tmp_path / name).write_bytes(png())
    for letters in (base64.b64encode(png()).decode().rstrip("="), base64.encodebytes(png()).decode()):
        assert decode(named(spelling.format(folder=tmp_path, base64=letters), tmp_path)).size == (64, 64)


@pytest.mark.parametrize(
    "text",
    [
        *("https://x.org/a.png", "s3://b/a.png", "zip://a.png::b.zip", "data:image/png,abc", "file://host/a.png"),
        "data:image/png;base64," + "A" * 100_000 + "!",
    ],
)
def test_pictures_are_not_fetched(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadRowError, match="image: expected a path, .*Pictures are not fetched from elsewhere") as told:
        named(text, tmp_path)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize("path", ["x" * 100_000 + ".png", "\x1b[2Jx.png"])
def test_no_name_of_a_picture_floods_a_terminal_or_governs_it(path: str, tmp_path: Path) -> None:
    with pytest.raises(BadPictureError) as bad:
        decode(named(path, tmp_path))
    assert len(str(bad.value)) < 200 and str(bad.value).isprintable()


def test_a_picture_that_changes_after_the_data_were_read_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(png())
    asked = dataclasses.replace(problem(), pictures=(check(Picture(path=str(file)))[0],))
    assert with_embedded_pictures(asked).pictures[0].data == png()
    file.write_bytes(png(colour=(0, 0, 0)))
    for use in (lambda: decode(asked.pictures[0]), lambda: with_embedded_pictures(asked)):
        with pytest.raises(BadPictureError, match=r"x.png has changed since the data were read$"):
            use()


def test_large_pictures_wait_for_each_other_and_small_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    places = threading.Semaphore(0)
    monkeypatch.setattr(pictures, "_LARGE", 64 * 64 - 1)
    monkeypatch.setattr(pictures, "_LARGE_ONES", places)
    with ThreadPoolExecutor(2) as executor:
        large, small = (executor.submit(decode, Picture(data=png((side, side)))) for side in (64, 63))
        assert small.result().size == (63, 63) and not large.done()
        places.release()
        assert large.result().size == (64, 64)
