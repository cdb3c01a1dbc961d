"""Encodings that people's pictures have: their pixels, and that engine and learner get the same ones of each."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from masters_ray.data import BadPictureError, check, decode
from masters_ray.engines import vllm_engine, vllm_loop
from masters_ray.engines.chat import Chat
from masters_ray.prompts import question_messages
from masters_ray.records import Picture
from tests.builders import problem
from tests.conftest import ROOT

Colours = tuple[tuple[int, int, int], ...]
Make = Callable[[], bytes]

COLOURS: Colours = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (200, 200, 30))
"""Of the quarters: above left and right, below left and right."""
ON_WHITE: Colours = ((255, 255, 255), (30, 200, 30), (143, 143, 238), (200, 200, 30))
"""The same when the first quarter is transparent, and the third by 127 of 255."""
CLEAR = ((0, 0, 0, 0), *((*colour, alpha) for colour, alpha in zip(COLOURS[1:], (255, 127, 255), strict=True)))
ONE_CLEAR: Colours = ((255, 255, 255), *COLOURS[1:])
GREY = (0, 85, 170, 255)
GREYS: Colours = tuple((value, value, value) for value in GREY)
GREY_CLEAR: Colours = ((255, 255, 255), *GREYS[1:])
WIDTH, HEIGHT = 96, 64
STORED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""EXIF orientation → Pillow's transposition that a camera has done to the upright picture."""


def quarters(values: Iterable[Any], kind: Any = np.uint8) -> np.ndarray:
    a, b, c, d = (np.array(value, kind) for value in values)
    grid = np.zeros((HEIGHT, WIDTH, *a.shape), kind)
    half_height, half_width = HEIGHT // 2, WIDTH // 2
    grid[:half_height, :half_width], grid[:half_height, half_width:] = a, b
    grid[half_height:, :half_width], grid[half_height:, half_width:] = c, d
    return grid


def rgb() -> Image.Image:
    return Image.fromarray(quarters(COLOURS))


def grey16() -> Image.Image:
    return Image.fromarray(high())


def one_bit() -> Image.Image:
    return grey().convert("1", dither=Image.Dither.NONE)


def high(kind: str = "<u2") -> np.ndarray:
    """Grey of 16 bits."""
    return (quarters(GREY, np.uint16) * 257).astype(kind)


def floats() -> np.ndarray:
    return quarters(GREY, "<f4")


def rgba() -> Image.Image:
    return Image.fromarray(quarters(CLEAR))


def grey() -> Image.Image:
    return Image.fromarray(quarters(GREY))


def palette() -> Image.Image:
    image = Image.fromarray(quarters(range(4)), "P")
    image.putpalette([channel for colour in COLOURS for channel in colour])
    return image


def saved(make: Callable[[], Image.Image], kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    make().save(content, kind, **options)
    return content.getvalue()


def turned(orientation: int, kind: str, **options: Any) -> bytes:
    """The picture as a camera that was held otherwise writes it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = rgb() if orientation == 1 else rgb().transpose(Image.Transpose(STORED[orientation]))
    return saved(lambda: stored, kind, exif=exif, **options)


def frames(kind: str, **options: Any) -> bytes:
    others = [Image.new("RGB", (WIDTH, HEIGHT), "black"), Image.new("RGB", (WIDTH, HEIGHT), "white")]
    return saved(rgb, kind, save_all=True, append_images=others, **options)


def png(bits: int, colour_type: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that Pillow does not write. rows: packed, without filters."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    per_row = len(rows) // HEIGHT
    filtered = b"".join(b"\0" + rows[start : start + per_row] for start in range(0, len(rows), per_row))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def few_bits(bits: int) -> bytes:
    values = quarters([round(value / 255 * (2**bits - 1)) for value in GREY])
    packed = np.unpackbits(values[..., None], axis=-1)[..., -bits:]
    return png(bits, 0, np.packbits(packed.reshape(HEIGHT, -1), axis=-1).tobytes())


def sixteen(values: Iterable[Any], colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    return png(16, colour_type, (quarters(values, np.uint16) * 257).astype(">u2").tobytes(), *chunks)


def tiff(values: np.ndarray, bits: int, *, sample: int = 1, photometric: int = 1) -> bytes:
    """A TIFF of one strip of grey, which Pillow does not write."""
    content = values.tobytes()
    tags = [(256, WIDTH), (257, HEIGHT), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, HEIGHT)]
    tags += [(279, len(content)), (339, sample)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def twelve_bits() -> np.ndarray:
    pairs = (quarters(GREY, np.uint32) * 4095 // 255).reshape(-1, 2)
    first, second = pairs[:, 0], pairs[:, 1]
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8)


def pfm() -> bytes:
    return b"Pf\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + (floats()[::-1] / np.float32(255)).tobytes()


def xmp(orientation: int) -> bytes:
    packet = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
    stored = rgb().transpose(Image.Transpose(STORED[orientation]))
    return saved(lambda: stored, "JPEG", quality=95, xmp=packet.encode())


P3 = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSY, EXACT = 16, 0
ZOO: dict[str, tuple[Make, Colours, int, set[str]]] = {
    **{
        f"jpeg exif {one}": (partial(turned, one, "JPEG", quality=95), COLOURS, LOSSY, {"turned"} if one > 1 else set())
        for one in range(1, 9)
    },
    **{f"png exif {one}": (partial(turned, one, "PNG"), COLOURS, EXACT, {"turned"}) for one in (5, 6)},
    **{f"tiff exif {one}": (partial(turned, one, "TIFF"), COLOURS, EXACT, {"turned"}) for one in (3, 6, 7)},
    "webp exif 6": (partial(turned, 6, "WEBP", lossless=True), COLOURS, EXACT, {"turned"}),
    "avif exif 8": (partial(turned, 8, "AVIF", quality=95), COLOURS, LOSSY, {"turned"}),
    "jpeg xmp 6": (partial(xmp, 6), COLOURS, LOSSY, {"turned"}),
    "jpeg broken exif": (partial(saved, rgb, "JPEG", quality=95, exif=b"Exif\0\0broken"), COLOURS, LOSSY, set()),
    "rgba png": (partial(saved, rgba, "PNG"), ON_WHITE, EXACT, {"on_white"}),
    "rgba webp": (partial(saved, rgba, "WEBP", lossless=True), ON_WHITE, EXACT, {"on_white"}),
    "rgba tiff": (partial(saved, rgba, "TIFF"), ON_WHITE, EXACT, {"on_white"}),
    "rgba tga": (partial(saved, rgba, "TGA"), ON_WHITE, EXACT, {"on_white"}),
    "rgba jp2": (partial(saved, rgba, "JPEG2000"), ON_WHITE, EXACT, {"on_white"}),
    "rgba avif": (partial(saved, rgba, "AVIF", quality=95), ON_WHITE, LOSSY, {"on_white"}),
    "rgba of 16 bits": (
        partial(sixteen, CLEAR, 6),
        *(ON_WHITE, EXACT, {"on_white"}),
    ),
    "opaque rgba": (partial(saved, lambda: rgb().convert("RGBA"), "PNG"), COLOURS, EXACT, set()),
    "la png": (
        partial(saved, lambda: Image.fromarray(quarters([(0, 0), (85, 255), (170, 255), (255, 255)])), "PNG"),
        *(GREY_CLEAR, EXACT, {"on_white"}),
    ),
    "la of 16 bits": (
        partial(sixteen, [(0, 0), (85, 255), (170, 255), (255, 255)], 4),
        *(GREY_CLEAR, EXACT, {"on_white"}),
    ),
    "palette with alphas": (
        partial(saved, palette, "PNG", transparency=bytes([0, 255, 127, 255])),
        *(ON_WHITE, EXACT, {"on_white"}),
    ),
    "palette with a clear colour": (partial(saved, palette, "PNG", transparency=0), ONE_CLEAR, EXACT, {"on_white"}),
    "gif with a clear colour": (partial(saved, palette, "GIF", transparency=0), ONE_CLEAR, EXACT, {"on_white"}),
    "rgb with a clear colour": (partial(saved, rgb, "PNG", transparency=COLOURS[0]), ONE_CLEAR, EXACT, {"on_white"}),
    "rgb of 16 bits with a clear colour": (
        partial(sixteen, COLOURS, 2, (b"tRNS", struct.pack(">HHH", *(257 * value for value in COLOURS[0])))),
        *(ONE_CLEAR, EXACT, {"on_white"}),
    ),
    "grey with a clear value": (
        partial(saved, grey, "PNG", transparency=0),
        *(GREY_CLEAR, EXACT, {"on_white"}),
    ),
    "grey of 16 bits with a clear value": (
        partial(sixteen, GREY, 0, (b"tRNS", b"\0\0")),
        *(GREY_CLEAR, EXACT, {"scaled", "on_white"}),
    ),
    **{
        f"{name} grey": (make, GREYS, tolerance, changes)
        for name, make, tolerance, changes in (
            ("png 2 bits", partial(few_bits, 2), EXACT, set[str]()),
            ("png 4 bits", partial(few_bits, 4), EXACT, set()),
            ("png 8 bits", partial(saved, grey, "PNG"), EXACT, set()),
            ("png 16 bits", partial(sixteen, GREY, 0), EXACT, {"scaled"}),
            ("jpeg", partial(saved, grey, "JPEG", quality=95), LOSSY, set()),
            ("webp", partial(saved, grey, "WEBP", lossless=True), EXACT, set()),
            (
                "jp2 16 bits",
                partial(saved, grey16, "JPEG2000"),
                EXACT,
                {"scaled"},
            ),
            (
                "pgm 16 bits",
                partial(saved, lambda: grey16().convert("I"), "PPM"),
                EXACT,
                {"scaled"},
            ),
            ("pfm", pfm, EXACT, {"scaled"}),
            ("tiff 12 bits", partial(tiff, twelve_bits(), 12), EXACT, {"scaled"}),
            ("tiff 16 bits", partial(tiff, high(), 16), EXACT, {"scaled"}),
            (
                "tiff 16 bits, white zero",
                partial(tiff, 65535 - high(), 16, photometric=0),
                EXACT,
                {"scaled"},
            ),
            ("tiff 8 bits, white zero", partial(tiff, 255 - quarters(GREY), 8, photometric=0), EXACT, set()),
            (
                "tiff floats to 1",
                partial(tiff, floats() / np.float32(255), 32, sample=3),
                EXACT,
                {"scaled"},
            ),
            ("tiff floats to 255", partial(tiff, floats(), 32, sample=3), EXACT, {"scaled"}),
        )
    },
    "tiff 16 bits, big end first": (
        partial(
            saved,
            lambda: Image.frombytes("I;16B", (WIDTH, HEIGHT), high(">u2").tobytes()),
            "TIFF",
        ),
        *(GREYS, EXACT, {"scaled"}),
    ),
    **{
        f"{name} of one bit": (make, ((0,) * 3, (0,) * 3, (255,) * 3, (255,) * 3), EXACT, set())
        for name, make in (
            ("png", partial(few_bits, 1)),
            ("tiff", partial(saved, one_bit, "TIFF", compression="group4")),
            ("pbm", partial(saved, one_bit, "PPM")),
            ("bmp", partial(saved, one_bit, "BMP")),
        )
    },
    **{
        name: (make, COLOURS, tolerance, set())
        for name, make, tolerance in (
            ("palette of 2 bits", partial(saved, palette, "PNG", bits=2), EXACT),
            ("palette of 8 bits", partial(saved, palette, "PNG", bits=8), EXACT),
            ("palette bmp", partial(saved, palette, "BMP"), EXACT),
            ("palette tiff", partial(saved, palette, "TIFF"), EXACT),
            ("rgb of 16 bits", partial(sixteen, COLOURS, 2), EXACT),
            ("jpeg 4:2:0", partial(saved, rgb, "JPEG", quality=95, subsampling=2), LOSSY),
            ("jpeg progressive", partial(saved, rgb, "JPEG", quality=95, progressive=True), LOSSY),
            ("jpeg rgb", partial(saved, rgb, "JPEG", quality=95, keep_rgb=True), LOSSY),
            ("jpeg cmyk", partial(saved, lambda: rgb().convert("CMYK"), "JPEG", quality=95), LOSSY),
            ("tiff cmyk", partial(saved, lambda: rgb().convert("CMYK"), "TIFF"), EXACT),
            ("tiff ycbcr", partial(saved, lambda: rgb().convert("YCbCr"), "TIFF"), LOSSY),
            ("tiff lab", partial(saved, lambda: rgb().convert("LAB"), "TIFF"), LOSSY),
            ("tiff lzw", partial(saved, rgb, "TIFF", compression="tiff_lzw"), EXACT),
            ("tiff deflate", partial(saved, rgb, "TIFF", compression="tiff_adobe_deflate"), EXACT),
            ("tiff jpeg", partial(saved, rgb, "TIFF", compression="jpeg", quality=95), LOSSY),
            ("tiff packbits", partial(saved, rgb, "TIFF", compression="packbits"), EXACT),
            ("jp2", partial(saved, rgb, "JPEG2000"), EXACT),
            ("avif", partial(saved, rgb, "AVIF", quality=95), LOSSY),
            ("webp lossless", partial(saved, rgb, "WEBP", lossless=True), EXACT),
            ("webp", partial(saved, rgb, "WEBP", quality=95), LOSSY),
            ("gif", partial(saved, rgb, "GIF"), EXACT),
            ("bmp", partial(saved, rgb, "BMP"), EXACT),
            ("dib", partial(saved, rgb, "DIB"), EXACT),
            ("ppm", partial(saved, rgb, "PPM"), EXACT),
            ("tga", partial(saved, rgb, "TGA", compression="tga_rle"), EXACT),
            ("ico", partial(saved, rgb, "ICO", sizes=[(WIDTH, HEIGHT)]), EXACT),
            ("jpeg with a profile", partial(saved, rgb, "JPEG", quality=95, icc_profile=P3), LOSSY),
            ("png with a profile", partial(saved, rgb, "PNG", icc_profile=b"no profile"), EXACT),
        )
    },
    **{
        f"{kind} of several frames": (partial(frames, kind, **options), COLOURS, tolerance, {"first_frame"})
        for kind, options, tolerance in (
            ("GIF", {}, EXACT),
            ("PNG", {}, EXACT),
            ("WEBP", {"lossless": True}, EXACT),
            ("TIFF", {}, EXACT),
            ("MPO", {"quality": 95}, LOSSY),
            ("AVIF", {"quality": 95}, LOSSY),
        )
    },
}


@pytest.mark.parametrize("name", ZOO)
def test_a_picture_is_upright_on_white_and_as_bright_as_it_was_meant(name: str) -> None:
    make, expected, tolerance, changes = ZOO[name]
    picture = Picture(data=make())
    assert check(picture).changes == changes
    pixels = decode(picture)
    assert (pixels.mode, pixels.size, pixels.info, dict(pixels.getexif())) == ("RGB", (WIDTH, HEIGHT), {}, {})
    places = [(WIDTH // 4, HEIGHT // 4), (3 * WIDTH // 4, HEIGHT // 4)]
    places += [(x, y + HEIGHT // 2) for x, y in places]
    found = np.array([pixels.getpixel(place) for place in places])
    assert np.abs(found - np.array(expected)).max() <= tolerance, found.tolist()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "PostScript is none of PNG, JPEG"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG is none of"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is none of"),
        (b"\x1f\x8b\x08\0", "gzip data is none of"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", "an empty file is none of"),
        (png(8, 0, bytes(HEIGHT * WIDTH))[:-20] + bytes(20), "broken PNG file|Truncated"),
        (saved(rgb, "JPEG")[:-40], "truncated"),
        (saved(rgb, "GIF")[:60], "cannot be decoded"),
        (saved(rgb, "WEBP")[:-40], "cannot be decoded"),
        (tiff(quarters(GREY)[:-9], 8), "cannot be decoded"),
        (tiff(quarters(GREY, "<i4"), 32, sample=2), "32-bit integers: which of them is white"),
        (tiff(floats() * np.float32(9), 32, sample=3), "floats from 0 to 2295, expected 0 to 1"),
        (tiff(floats() * np.float32("nan"), 32, sample=3), "floats from nan to nan"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_no_picture_or_has_no_honest_scale_is_refused_with_its_reason(content: bytes, reason: str) -> None:
    for look in (check, decode):
        with pytest.raises(BadPictureError, match=reason):
            look(Picture(data=content))


def test_only_ordinary_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "x.png").write_bytes(saved(rgb, "PNG"))
    (tmp_path / "link.png").symlink_to("x.png")
    reasons = {"pipe.png": "is not an ordinary file", ".": "is not an ordinary file", "loop.png": "cannot be read: "}
    for name, reason in {**reasons, "/dev/zero": "is not an ordinary file", "x\0.png": "null"}.items():
        with pytest.raises(BadPictureError, match=reason):
            check(Picture(path=str(tmp_path / name)))
    link, file = (check(Picture(path=str(tmp_path / name))).picture for name in ("link.png", "x.png"))
    assert link.digest == file.digest


def qwen(folder: Path) -> Path:
    return ROOT / "examples" / "toy" / "pair" / "student"


def internvl(folder: Path) -> Path:
    """The processor and the configuration of an InternVL without weights."""
    from transformers import (
        AutoTokenizer,
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    marks = {"start_image_token": "<|vision_start|>", "end_image_token": "<|vision_end|>"}
    marks |= {"context_image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer = AutoTokenizer.from_pretrained(qwen(folder), extra_special_tokens=marks)
    size = {"height": 28, "width": 28}
    InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=1,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    text = {"model_type": "qwen2", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    InternVLConfig(
        text_config=text,
        vision_config=vision | {"patch_size": [14, 14], "image_size": [28, 28]},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        image_seq_length=1,
        downsample_ratio=0.5,
        architectures=["InternVLForConditionalGeneration"],
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[qwen, internvl])
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Chat]:
    """What an engine reads its requests with, and what a learner reads its prompts with, of the same checkpoint."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.models import registry
    from vllm.v1.engine.input_processor import InputProcessor

    folder = request.param(tmp_path_factory.mktemp("checkpoint"))
    settings = EngineArgs(
        model=str(folder),
        dtype="float32",
        max_model_len=2048,
        limit_mm_per_prompt={"image": 1, "video": 0},
        enforce_eager=True,
        skip_mm_profiling=True,
        kv_cache_memory_bytes=1 << 20,
        mm_processor_cache_gb=0,
    )
    with pytest.MonkeyPatch.context() as patched:  # vLLM looks at a class in another process, for the sake of GPUs
        patched.setattr(registry, "_run_in_subprocess", lambda look: look())
        return InputProcessor(settings.create_engine_config()), Chat(folder)


def test_the_tensor_that_enters_the_engines_model_is_the_learners(sides: tuple[Any, Chat]) -> None:
    from vllm import SamplingParams

    reader, chat = sides
    messages = question_messages(problem())
    for name, (make, *_) in ZOO.items():
        pixels = decode(Picture(data=make()))
        asked = vllm_engine._request(vllm_engine.Prompt(token_ids=chat.token_ids(messages), pictures=(pixels,)))
        request = reader.process_inputs(name, asked, SamplingParams(max_tokens=1), ("generate",))
        learner = chat.inputs(messages, [pixels])
        engine = request.mm_features[0].data["pixel_values"].data
        if engine.dtype == torch.uint8:  # which vLLM's model normalizes itself: here (x / 255 - 1/2) / (1/2)
            engine = (engine.float() - 127.5) / 127.5
        assert torch.equal(engine.reshape(learner["pixel_values"].shape), learner["pixel_values"]), name
        assert request.prompt_token_ids == learner["input_ids"][0].tolist(), name


@pytest.mark.parametrize("sides", [qwen], indirect=True)
def test_a_picture_that_is_too_long_for_a_processor_is_refused_with_the_processors_reason(
    sides: tuple[Any, Chat],
) -> None:
    from vllm import SamplingParams

    reader, chat = sides
    token_ids = chat.token_ids(question_messages(problem()))
    asked = vllm_engine._request(vllm_engine.Prompt(token_ids=token_ids, pictures=(Image.new("RGB", (2010, 10)),)))
    with pytest.raises(ValueError, match="Failed to apply") as refused:
        reader.process_inputs("long", asked, SamplingParams(max_tokens=1), ("generate",))
    assert re.fullmatch(
        r"absolute aspect ratio must be smaller than 200, got 201\.0", vllm_loop._first_cause(refused.value)
    )
