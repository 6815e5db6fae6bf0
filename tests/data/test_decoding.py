"""One picture out of one file. What is expected is computed from the pixels that were written, not by Pillow."""

import io
import os
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from layerwise_lr.data import decoding
from layerwise_lr.data.decoding import FORMATS, look, open_picture
from layerwise_lr.planning import UserError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 16, 3), np.uint8)
PLAIN = np.full((16, 16, 3), (200, 100, 40), np.uint8)


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def pixels(path, channels=3):
    picture = open_picture(path, channels)
    assert picture.mode == ("RGB" if channels == 3 else "L")
    return np.asarray(picture)


def psd(array):
    """Photoshop's file of one flat picture, by its specification."""
    height, width, _ = array.shape
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, height, width, 8, 3)
    return header + bytes(12) + bytes(2) + array.transpose(2, 0, 1).tobytes()


# --- formats


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_list_is_read(name, tmp_path):
    path = tmp_path / f"x{FORMATS[name][0]}"
    if name == "PSD":
        path.write_bytes(psd(PLAIN))
    else:
        saved(path, PLAIN, format=name)
    assert np.abs(pixels(path).astype(int) - PLAIN[0, 0]).max() <= (4 if name in ("JPEG", "WEBP", "AVIF", "GIF") else 0)
    assert look(path) == ("", False)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"TGA"}))
def test_the_content_decides_and_not_the_name(name, tmp_path):
    path = tmp_path / "x.png"
    if name == "PSD":
        path.write_bytes(psd(PLAIN))
    else:
        saved(path, PLAIN, format=name)
    assert np.abs(pixels(path).astype(int) - PLAIN[0, 0]).max() <= 4


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".eps", ".tga"])
def test_postscript_is_never_run(suffix, tmp_path, monkeypatch):
    """A Ghostscript that leaves a mark: Pillow alone runs it, we do not."""
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\n: > {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(EPS)
    assert look(path)[0]
    with pytest.raises(UserError, match=r"not a readable picture"):
        open_picture(path, 3)
    assert not ran.exists()
    with pytest.raises(OSError):
        Image.open(path).load()
    assert ran.exists(), "else this test shows nothing"


def dos_eps():
    return struct.pack("<IIIIIIIH", 0xC6D3D0C5, 30, len(EPS), 0, 0, 0, 0, 0xFFFF) + EPS


NOT_PICTURES = {
    "eps": EPS,
    "eps with a header": dos_eps(),
    "pdf": b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF",
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(200),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    "mac's fork": b"\x00\x05\x16\x07" + bytes(60),
    "text": b"hello\n" * 20,
    "nothing": b"",
    "a zip": b"PK\x03\x04" + bytes(100),
    "fits": b"SIMPLE  =                    T" + b" " * 50 + b"END" + b" " * 3000,
    "mpeg": b"\0\0\x01\xb3" + bytes(60),
    "a grib stub": b"GRIB\0\0\0\x01" + bytes(60),
    "an html page": b"<!doctype html><html>404</html>",
}


@pytest.mark.parametrize("kind", NOT_PICTURES)
@pytest.mark.parametrize("suffix", [".jpg", ".tiff"])
def test_what_is_no_picture_is_refused_in_one_line(kind, suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(NOT_PICTURES[kind])
    fault, _ = look(path)
    assert fault == ("an empty file" if kind == "nothing" else "of no format that is read")
    with pytest.raises(UserError) as refused:
        open_picture(path, 3)
    assert str(path) in str(refused.value) and fault in str(refused.value) and str(refused.value).isprintable()


@pytest.mark.parametrize("suffix", [".heic", ".HEIC", ".svg", ".nef"])
def test_pictures_of_other_formats_are_named(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    assert look(path)[0] == f"{suffix.lower()} is not read"


# --- faulty files


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI"])
def test_a_file_cut_short_is_found_before_it_is_decoded(name, tmp_path):
    """look and open_picture agree wherever the cut is; Pillow makes do with what is left of a JPEG 2000 or a GIF."""
    whole = io.BytesIO()
    Image.fromarray(NOISE).save(whole, name)
    packed, path = whole.getvalue(), tmp_path / f"x{FORMATS[name][0]}"
    refused = 0
    cuts = np.linspace(0, len(packed) - 3, 25).astype(int)
    for cut in cuts:
        path.write_bytes(packed[:cut])
        fault, _ = look(path)
        try:
            open_picture(path, 3)
        except UserError as error:
            assert fault and fault in str(error) + fault
            refused += 1
        else:
            assert not fault or name == "PNG"  # whose end mark is missing, and nothing else
    assert refused >= 20


def test_every_changed_byte_of_a_png_s_pixels_is_found(tmp_path):
    path = saved(tmp_path / "x.png", NOISE)
    packed = bytearray(path.read_bytes())
    for at in range(45, len(packed) - 20, 37):
        path.write_bytes(packed[:at] + bytes([packed[at] ^ 0x55]) + packed[at + 1 :])
        assert look(path)[0], at


@pytest.mark.parametrize("behind", [b"", b"\0" * 20, b"\r\n", b"made by a camera" * 9])
def test_what_follows_a_whole_jpeg_is_no_matter(behind, tmp_path):
    path = saved(tmp_path / "x.jpg", NOISE)
    path.write_bytes(path.read_bytes() + behind)
    assert look(path) == ("", False)
    assert pixels(path).shape == NOISE.shape


def test_a_bomb_is_one_line_and_never_decoded(tmp_path):
    """A header of 20000 x 20000; and what Pillow only warns of is read without a word."""
    head = b"P5\n20000 20000\n255\n"
    path = tmp_path / "x.pgm"
    path.write_bytes(head)
    assert look(path)[0] == "more than 178,956,970 pixels"
    with pytest.raises(UserError, match=r"more than 178,956,970 pixels"):
        open_picture(path, 1)
    large = tmp_path / "large.png"
    Image.new("1", (10000, 9000)).save(large)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoding.pillow.cache_clear()
        assert look(large) == ("", False)


def test_folders_and_missing_files_have_their_own_word(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    assert look(tmp_path / "x.jpg")[0] == "is a directory"
    assert look(tmp_path / "y.jpg")[0] == "no such file or directory"


def test_names_cannot_speak_to_the_terminal(tmp_path):
    path = tmp_path / "a\n\x1b[31mb\u202e.png"
    path.write_bytes(b"junk")
    with pytest.raises(UserError) as refused:
        open_picture(path, 3)
    assert str(refused.value).isprintable()


# --- upright


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""EXIF 2.3: where row 0 and column 0 of what is stored belong."""


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_camera_s_orientation_is_set_upright(orientation, name, tmp_path):
    blocks = np.kron(RNG.integers(0, 2, (3, 2)) * 200, np.ones((16, 16), int)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if name == "WEBP" else {"quality": 95} if name == "JPEG" else {}
    path = saved(tmp_path / "x", np.stack([blocks] * 3, 2), format=name, exif=exif, **lossless)
    found, expected = pixels(path, 1).astype(int), TURNS[orientation](blocks).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (12 if name == "JPEG" else 0)


def test_a_faulty_orientation_is_none(tmp_path):
    path = saved(tmp_path / "x.png", NOISE, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(pixels(path), NOISE)


# --- more than 8 bits


RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(1, -1).repeat(8, 0)


@pytest.mark.parametrize("kind", ["png", "tiff", "tiff big-endian", "pgm"])
def test_sixteen_bits_are_divided_by_257(kind, tmp_path):
    path = tmp_path / f"x.{kind[:4].strip()}"
    if kind == "pgm":
        path.write_bytes(b"P5\n64 8\n65535\n" + RAMP.astype(">u2").tobytes())
    elif kind == "tiff big-endian":
        path.write_bytes(tiff(RAMP.astype(">u2").tobytes(), 64, 8, bits=16, order=">"))
    else:
        saved(path, RAMP)
    assert np.array_equal(pixels(path, 1), np.round(RAMP / 257))
    assert np.array_equal(pixels(path, 3)[..., 2], np.round(RAMP / 257))
    assert look(path) == ("", False)


def tiff(packed, width, height, bits, order="<", photometric=1, sample=1):
    """A grey TIFF of one strip, by its specification."""
    entries = [
        (256, 3, width),
        (257, 3, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, height),
        (279, 4, len(packed)),
        (339, 3, sample),
    ]
    ifd = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        ifd += struct.pack(f"{order}HHI", tag, kind, 1) + struct.pack(
            f"{order}HH" if kind == 3 else f"{order}I", *((value, 0) if kind == 3 else (value,))
        )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(packed) + len(packed) % 2)
    return head + packed + bytes(len(packed) % 2) + ifd + bytes(4)


def test_twelve_bits_reach_white(tmp_path):
    values = np.array([[0, 1000, 2048, 4095]], np.uint16)
    a, b = values[:, ::2], values[:, 1::2]
    packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 2).astype(np.uint8).tobytes()
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(packed, 4, 1, bits=12))
    assert pixels(path, 1).tolist() == [[0, 62, 128, 255]]


def test_sixteen_bits_whose_zero_is_white(tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(RAMP.astype("<u2").tobytes(), 64, 8, bits=16, photometric=0))
    assert np.array_equal(pixels(path, 1), 255 - np.round(RAMP / 257))


def test_floats_are_from_0_to_1(tmp_path):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(pixels(saved(tmp_path / "x.tif", values), 1), np.round(values * 255))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.linspace(0, 255, 64, dtype=np.float32), "floats from 0 to 255"),
        (np.linspace(-0.1, 1, 64, dtype=np.float32), "floats from -0.1 to 1"),
        (np.full(64, np.nan, np.float32), "floats from nan to nan"),
        (np.arange(64, dtype=np.int32), "integers of 32 bits"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(values, says, tmp_path):
    path = saved(tmp_path / "x.tif", values.reshape(8, 8))
    assert says in look(path)[0]
    with pytest.raises(UserError, match=says):
        open_picture(path, 1)


# --- transparency and colour


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode, channels, tmp_path):
    array = RNG.integers(0, 256, (9, 9, 4 if mode == "RGBA" else 2), np.uint8)
    share = array[..., -1:] / 255.0
    over = array[..., :-1] * share + 255 * (1 - share)
    expected = (
        np.broadcast_to(over, (9, 9, 3))
        if channels == 3
        else (over @ [0.299, 0.587, 0.114] if mode == "RGBA" else over[..., 0])
    )
    assert np.abs(pixels(saved(tmp_path / "x.png", array), channels) - expected).max() <= 1


def test_one_transparent_colour_and_a_palette_s(tmp_path):
    for name, image, key in (
        ("rgb", Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
        ("grey", Image.new("L", (4, 4), 7), 7),
        ("palette", Image.new("P", (4, 4), 0), 0),
    ):
        image.save(tmp_path / f"{name}.png", transparency=key)
        assert (pixels(tmp_path / f"{name}.png") == 255).all(), name
    Image.new("P", (4, 4), 0).save(tmp_path / "x.gif", transparency=0)
    assert (pixels(tmp_path / "x.gif") == 255).all()


def test_hidden_colours_do_not_come_out(tmp_path):
    array = np.zeros((8, 8, 4), np.uint8)
    array[..., 0] = 200  # red that nobody sees
    assert (pixels(saved(tmp_path / "x.png", array)) == 255).all()


def test_print_colours_palettes_and_bits(tmp_path):
    cmyk = np.zeros((8, 8, 4), np.uint8)
    cmyk[..., 0] = 255  # cyan
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "x.tif")
    assert pixels(tmp_path / "x.tif")[0, 0].tolist() == [0, 255, 255]
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "x.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "x.jpg")[0, 0].astype(int) - [0, 255, 255]).max() <= 4
    bits = Image.fromarray(np.eye(8, dtype=bool))
    bits.save(tmp_path / "x.png")
    assert np.array_equal(pixels(tmp_path / "x.png", 1), np.eye(8) * 255)
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    palette.putpalette([c for i in range(256) for c in (i, 255 - i, 3)])
    palette.save(tmp_path / "p.png")
    assert pixels(tmp_path / "p.png")[2, 5].tolist() == [21, 234, 3]


# --- several pictures in one file


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_is_taken_and_told(name, tmp_path):
    path = tmp_path / f"x{FORMATS[name][0]}"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(path, name, save_all=True, append_images=frames[1:])
    assert look(path) == ("", True)
    assert np.abs(pixels(path).astype(int) - [255, 0, 0]).max() <= 3


def test_a_phone_s_second_version_is_no_frame(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(PLAIN).save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert look(path) == ("", False)
    assert np.abs(pixels(path).astype(int) - PLAIN[0, 0]).max() <= 4
