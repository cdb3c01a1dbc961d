"""Encodings that people's pictures have: their pixels, and that engine and learner get the same ones of each."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from vllm.sampling_params import SamplingParams

from masters_ray.data import BadPictureError, check, decode, pictures
from masters_ray.method.prompts import question_messages
from masters_ray.models import vllm_engine
from masters_ray.models.chat import Chat
from masters_ray.records import Picture
from tests.builders import encoded_png, problem
from tests.conftest import PAIR

Colours = tuple[tuple[int, int, int], ...]
Make = Callable[[], bytes]

COLOURS: Colours = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (200, 200, 30))
"""Of the quarters: above left and right, below left and right."""
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
CLEAR_ON_WHITE: Colours = (WHITE, COLOURS[1], (143, 143, 238), COLOURS[3])
"""The same when the first quarter is transparent, and the third by 127 of 255."""
CLEAR = ((0, 0, 0, 0), *((*colour, alpha) for colour, alpha in zip(COLOURS[1:], (255, 127, 255), strict=True)))
GREY = (0, 85, 170, 255)
GREYS: Colours = tuple((value, value, value) for value in GREY)
GREY_CLEAR: Colours = (WHITE, *GREYS[1:])
GREY_ALPHA = ((0, 0), (85, 255), (170, 255), (255, 255))
WIDTH, HEIGHT = 96, 64
STORED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""EXIF orientation → Pillow's transposition that a camera has done to the upright picture."""


def quarters(values: Iterable[Any], kind: Any = np.uint8) -> np.ndarray:
    array = np.array([*values], kind)
    return array.reshape(2, 2, *array.shape[1:]).repeat(HEIGHT // 2, 0).repeat(WIDTH // 2, 1)


HIGH = (quarters(GREY, np.uint16) * 257).astype("<u2")
"""Grey of 16 bits."""
RGB, RGBA, L, LA = (Image.fromarray(quarters(values)) for values in (COLOURS, CLEAR, GREY, GREY_ALPHA))
PALETTE = Image.fromarray(quarters(range(4)), "P")
PALETTE.putpalette([channel for colour in COLOURS for channel in colour])


def saved(image: Image.Image, kind: str, **options: Any) -> Make:
    def make() -> bytes:
        content = io.BytesIO()
        image.copy().save(content, kind, **options)
        return content.getvalue()

    return make


def turned(orientation: int, kind: str, **options: Any) -> Make:
    """The picture as a camera that was held otherwise writes it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(RGB.transpose(Image.Transpose(STORED[orientation])), kind, exif=exif, **options)


LYING = RGB.transpose(Image.Transpose(STORED[6]))
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
UNWRITABLE = b"Exif\0\0II*\0\10\0\0\0" + struct.pack("<HHHIIHHIII", 2, 0x0112, 3, 1, 6, 296, 4, 1, 70_000, 0)
"""Orientation 6, and a resolution unit too large for the type that Pillow writes it in."""


def frames(kind: str, **options: Any) -> Make:
    others = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("black", "white")]
    return saved(RGB, kind, save_all=True, append_images=others, **options)


def sixteen(values: Iterable[Any], colour_type: int, *chunks: tuple[bytes, bytes]) -> Make:
    """A PNG with 16 bits a channel, which Pillow does not write."""
    rows = (quarters(values, np.uint16) * 257).astype(">u2").reshape(HEIGHT, -1)
    filtered = b"".join(b"\0" + row.tobytes() for row in rows)
    return partial(encoded_png, WIDTH, HEIGHT, 16, colour_type, zlib.compress(filtered), *chunks)


def tiff(values: np.ndarray, **tags: int) -> Make:
    """A TIFF of grey, some of whose tags say something else."""
    content = saved(Image.fromarray(values), "TIFF")()
    for number, name, usual in ((258, "bits", 8 * values.itemsize), (262, "photometric", 1)):
        before, after = (struct.pack("<HHIHH", number, 3, 1, one, 0) for one in (usual, tags.get(name, usual)))
        content = content.replace(before, after)
    return lambda: content


class Look(NamedTuple):
    """What an animal looks like to a model."""

    colours: Colours
    tolerance: int = 0
    changes: frozenset[str] = frozenset()


CHANGES = (pictures.TURNED, pictures.ON_WHITE, pictures.SCALED, pictures.FIRST_FRAME)
TURNED, ON_WHITE, SCALED, FIRST = (frozenset({one}) for one in CHANGES)
LOSSY = 16
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
JPEG = partial(saved, RGB, "JPEG", quality=95)
SHORTS = struct.pack(">HHH", *(257 * value for value in COLOURS[0]))
ANIMALS: dict[Look, dict[str, Make]] = {
    Look(COLOURS): {
        **{f"rgb {kind}": saved(RGB, kind) for kind in ("JPEG2000", "GIF", "BMP", "PPM")},
        "palette": saved(PALETTE, "PNG", bits=2),
        "opaque rgba": saved(RGB.convert("RGBA"), "PNG"),
        "rgb of 16 bits": sixteen(COLOURS, 2),
        "webp lossless": saved(RGB, "WEBP", lossless=True),
        "tga": saved(RGB, "TGA", compression="tga_rle"),
        "ico": saved(RGB, "ICO", sizes=[(WIDTH, HEIGHT)]),
    },
    Look(COLOURS, LOSSY): {
        "jpeg broken exif": JPEG(exif=b"Exif\0\0broken"),
        "jpeg cmyk": saved(RGB.convert("CMYK"), "JPEG", quality=95),
        "jpeg with a profile": JPEG(icc_profile=PROFILE),
    },
    Look(COLOURS, LOSSY, TURNED): {
        **{f"jpeg exif {one}": turned(one, "JPEG", quality=95) for one in range(2, 9)},
        "avif exif 8": turned(8, "AVIF", quality=95),
        "jpeg xmp 6": saved(LYING, "JPEG", quality=95, xmp=XMP),
        "jpeg exif 6 beside a tag that Pillow cannot write": saved(LYING, "JPEG", quality=95, exif=UNWRITABLE),
    },
    Look(COLOURS, changes=TURNED): {
        "png exif 5": turned(5, "PNG"),
        "tiff exif 7": turned(7, "TIFF"),
    },
    Look(COLOURS, changes=FIRST): {
        **{f"{kind} of several frames": frames(kind) for kind in ("GIF", "PNG", "TIFF")},
        "WEBP of several frames": frames("WEBP", lossless=True),
    },
    Look(COLOURS, LOSSY, FIRST): {f"{kind} of several frames": frames(kind, quality=95) for kind in ("MPO", "AVIF")},
    Look(CLEAR_ON_WHITE, changes=ON_WHITE): {
        **{f"rgba {kind}": saved(RGBA, kind) for kind in ("PNG", "TIFF", "TGA", "JPEG2000")},
        "rgba WEBP": saved(RGBA, "WEBP", lossless=True),
        "rgba of 16 bits": sixteen(CLEAR, 6),
        "palette with alphas": saved(PALETTE, "PNG", transparency=bytes([0, 255, 127, 255])),
    },
    Look((WHITE, *COLOURS[1:]), changes=ON_WHITE): {
        **{f"{kind} with a clear colour": saved(PALETTE, kind, transparency=0) for kind in ("PNG", "GIF")},
        "rgb with a clear colour": saved(RGB, "PNG", transparency=COLOURS[0]),
        "rgb of 16 bits with a clear colour": sixteen(COLOURS, 2, (b"tRNS", SHORTS)),
    },
    Look(GREY_CLEAR, changes=ON_WHITE): {
        "la png": saved(LA, "PNG"),
        "la of 16 bits": sixteen(GREY_ALPHA, 4),
        "grey with a clear value": saved(L, "PNG", transparency=0),
    },
    Look(GREY_CLEAR, changes=SCALED | ON_WHITE): {
        "grey of 16 bits with a clear value": sixteen(GREY, 0, (b"tRNS", b"\0\0"))
    },
    Look(COLOURS[:1] * 4): {  # a fourth byte that nobody set hides nothing
        f"{kind} with alpha 0": saved(Image.new("RGBA", RGB.size, (*COLOURS[0], 0)), kind) for kind in ("TGA", "BMP")
    },
    Look(GREYS): {"png 8 bits": saved(L, "PNG"), "tiff 8 bits, white zero": tiff(255 - quarters(GREY), photometric=0)},
    Look(GREYS, changes=SCALED): {
        "png 16 bits": sixteen(GREY, 0),
        "pgm 16 bits": saved(Image.fromarray(HIGH).convert("I"), "PPM"),
        "tiff 16 bits": tiff(HIGH),
        "tiff 16 bits, big end first": saved(Image.frombytes("I;16B", RGB.size, HIGH.astype(">u2").tobytes()), "TIFF"),
    },
    Look((BLACK, BLACK, WHITE, WHITE)): {"png of one bit": saved(L.convert("1", dither=Image.Dither.NONE), "PNG")},
}
ZOO = {name: (make, *look) for look, makes in ANIMALS.items() for name, make in makes.items()}


@pytest.mark.parametrize("name", ZOO)
def test_a_picture_is_upright_on_white_and_as_bright_as_it_was_meant(name: str) -> None:
    make, expected, tolerance, changes = ZOO[name]
    picture = Picture(data=make())
    assert check(picture)[1] == changes
    pixels = decode(picture)
    assert (pixels.mode, pixels.size, pixels.info, dict(pixels.getexif())) == ("RGB", (WIDTH, HEIGHT), {}, {})
    found = np.asarray(pixels, int)[HEIGHT // 4 :: HEIGHT // 2, WIDTH // 4 :: WIDTH // 2].reshape(4, 3)
    assert np.abs(found - expected).max() <= tolerance, found.tolist()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "what begins with b'%!PS-Adobe-3.0 .* is none of PNG, JPEG"),
        (b"", "an empty file is none of"),
        (saved(L, "PNG")()[:-20] + bytes(20), "broken PNG file|Truncated"),
        (saved(RGB, "JPEG")()[:-40], "truncated"),
        (saved(RGB, "WEBP")()[:-40], "cannot be decoded"),
        *((tiff(quarters(GREY, kind))(), "brightness cannot be known") for kind in ("<f4", "<i4")),
        *((tiff(HIGH, **tag)(), "brightness cannot be known") for tag in ({"bits": 12}, {"photometric": 0})),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_no_picture_or_has_no_honest_scale_is_refused_with_its_reason(content: bytes, reason: str) -> None:
    for look in (check, decode):
        with pytest.raises(BadPictureError, match=reason):
            look(Picture(data=content))


@pytest.mark.parametrize("name", ["pipe.png", ".", "loop.png", "/dev/zero", "a\0b"])
def test_only_ordinary_files_are_opened(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(
        BadPictureError, match="cannot be read: " if name in ("loop.png", "a\0b") else "is not an ordinary"
    ):
        check(Picture(path=str(tmp_path / name)))


def internvl(folder: Path) -> Path:
    """The processor and the configuration of an InternVL without weights."""
    import transformers as hf

    marks = {"start_image_token": "<|vision_start|>", "end_image_token": "<|vision_end|>"}
    marks |= {"context_image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer = hf.AutoTokenizer.from_pretrained(PAIR / "student", extra_special_tokens=marks)
    template, size = tokenizer.chat_template, {"height": 28, "width": 28}
    images = hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    video = hf.InternVLVideoProcessor(size=size)
    hf.InternVLProcessor(images, tokenizer, video, 1, chat_template=template).save_pretrained(folder)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": "qwen2", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48}
    vision = {"hidden_size": 16, "intermediate_size": 24, "patch_size": [14, 14], "image_size": [28, 28]}
    hf.InternVLConfig(
        text_config=text | layers | {"num_key_value_heads": 2},
        vision_config=vision | layers,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        image_seq_length=1,
        downsample_ratio=0.5,
        architectures=["InternVLForConditionalGeneration"],
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[lambda _: PAIR / "student", internvl], ids=["qwen", "internvl"])
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Chat]:
    """What an engine reads its requests with, and what a learner reads its prompts with, of the same checkpoint."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.models import registry
    from vllm.v1.engine.input_processor import InputProcessor

    folder = request.param(tmp_path_factory.mktemp("checkpoint"))
    usual: dict[str, Any] = {"dtype": "float32", "max_model_len": 2048, "enforce_eager": True}
    usual |= {"kv_cache_memory_bytes": 1 << 20, "mm_processor_cache_gb": 0, "skip_mm_profiling": True}
    settings = EngineArgs(model=str(folder), limit_mm_per_prompt={"image": 1, "video": 0}, **usual)
    with pytest.MonkeyPatch.context() as patched:  # vLLM looks at a class in another process, for the sake of GPUs
        patched.setattr(registry, "_run_in_subprocess", lambda look: look())
        return InputProcessor(settings.create_engine_config()), Chat(folder)


def test_the_tensor_that_enters_the_engines_model_is_the_learners(sides: tuple[Any, Chat]) -> None:
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
