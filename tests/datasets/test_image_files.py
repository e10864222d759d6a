"""Images are read as what they are, or refused by name."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from stripefold.errors import DataError
from stripefold_lab.datasets.image_files import read_class_map, read_image

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8)


def deep_png(values: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits, which Pillow writes in grey only."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def as_rgb(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})])
def test_16_bits_of_grey_are_16_bits(tmp_path, suffix, options):
    values = RNG.integers(0, 65536, (6, 7), dtype=np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path, **options)
    image = read_image(path)
    expected = torch.from_numpy(values.astype(np.float32)) / 65535
    assert image.dtype == torch.float32
    assert torch.equal(image, expected.expand(3, -1, -1))
    # The control: what Pillow makes of it is another picture.
    assert not torch.allclose(as_rgb(Image.open(path)).float() / 255, image, atol=0.1)


@pytest.mark.parametrize(("most", "value"), [(65535, 1000), (4095, 4095), (1000, 250)])
def test_grey_is_counted_from_0_to_what_the_file_says(tmp_path, most, value):
    path = tmp_path / "grey.pgm"
    path.write_bytes(f"P5 2 1 {most}\n".encode() + struct.pack(">2H", value, 0))
    assert torch.allclose(read_image(path), torch.tensor([value / most, 0]).expand(3, 1, 2), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (np.int32, "signed or 32-bit integers"), (np.int16, "signed or 32-bit integers"),
        (np.uint32, "signed or 32-bit integers"), (np.float32, "floating-point"),
    ],
)  # fmt: skip
def test_numbers_without_a_range_are_refused(tmp_path, kind, reason):
    path = tmp_path / "odd.tiff"
    Image.fromarray(np.full((3, 4), 300, dtype=kind)).save(path)
    with pytest.raises(DataError, match=rf"odd\.tiff holds {reason}"):
        read_image(path)


def test_a_portable_float_map_and_inverted_grey_are_refused(tmp_path):
    (tmp_path / "map.pfm").write_bytes(b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0.5, 2))
    with pytest.raises(DataError, match=r"map\.pfm holds floating-point"):
        read_image(tmp_path / "map.pfm")
    tags = {262: 0}
    Image.fromarray(np.full((3, 4), 300, dtype=np.uint16)).save(tmp_path / "white.tif", tiffinfo=tags)
    with pytest.raises(DataError, match=r"white\.tif holds inverted grey"):
        read_image(tmp_path / "white.tif")


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bits_per_colour_are_refused(tmp_path, colour_type, channels):
    values = np.full((3, 4, channels), 65535, dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(deep_png(values, colour_type))
    with pytest.raises(DataError, match=r"deep\.png holds 16 bits per colour"):
        read_image(tmp_path / "deep.png")


def oriented(image: Image.Image, orientation: int, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(tmp_path, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    oriented(Image.fromarray(COLOURS), orientation, path)
    with Image.open(path) as image:
        expected = as_rgb(ImageOps.exif_transpose(image))
    found = read_image(path)
    assert torch.equal(found, expected)
    assert tuple(found.shape[1:]) == ((14, 9) if orientation > 4 else (9, 14))


def test_a_damaged_exif_block_says_nothing(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "odd.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert read_image(tmp_path / "odd.jpg").shape == (3, 9, 14)


def test_annotations_tell_which_way_up_they_were_made(tmp_path):
    path = tmp_path / "turned.png"
    oriented(Image.fromarray(COLOURS), 6, path)
    assert torch.equal(read_image(path, annotated=(9, 14)), torch.from_numpy(COLOURS).permute(2, 0, 1))
    assert torch.equal(read_image(path, annotated=(14, 9)), read_image(path))
    with pytest.raises(DataError, match=r"turned\.png has 14 x 9 pixels, its annotations are of 20 x 20"):
        read_image(path, annotated=(20, 20))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"])
def test_colours_of_every_kind(tmp_path, mode):
    path = tmp_path / "picture.tiff"
    image = Image.fromarray(COLOURS)
    image = Image.merge("LAB", image.split()) if mode == "LAB" else image.convert(mode)
    image.save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        assert torch.equal(read_image(path), as_rgb(image))


def test_a_cmyk_photograph(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "photo.jpg")
    assert torch.allclose(read_image(tmp_path / "photo.jpg")[:, 4, 4].float(), torch.tensor([0.0, 255, 255]), atol=3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_alpha(tmp_path, mode, suffix):
    solid = Image.fromarray(COLOURS).convert(mode)
    solid.save(tmp_path / f"solid.{suffix}")
    assert torch.equal(read_image(tmp_path / f"solid.{suffix}"), as_rgb(solid))
    solid.putalpha(Image.new("L", solid.size, 254))
    solid.save(tmp_path / f"glass.{suffix}")
    with pytest.raises(DataError, match=rf"glass\.{suffix} has transparent pixels"):
        read_image(tmp_path / f"glass.{suffix}")


def test_a_transparent_colour_of_a_palette_counts_where_it_is_used(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "unused.png", transparency=0)
    assert torch.equal(read_image(tmp_path / "unused.png")[:, 0, 0], torch.tensor([0, 0, 255], dtype=torch.uint8))
    image.save(tmp_path / "used.png", transparency=1)
    with pytest.raises(DataError, match=r"used\.png has transparent pixels"):
        read_image(tmp_path / "used.png")


@pytest.mark.parametrize("suffix", ["gif", "tiff", "png", "webp"])
def test_several_frames_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8)) for _ in range(3)]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=rf"moving\.{suffix} holds 3 frames"):
        read_image(path)


def test_the_first_picture_of_a_camera_stands_for_it(tmp_path):
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    pictures[0].save(tmp_path / "camera.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    assert read_image(tmp_path / "camera.jpg")[:, 5, 5].tolist()[0] > 250


@pytest.mark.parametrize("form", ["JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated_files_are_named(tmp_path, form, share):
    content = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(content, form)
    whole = content.getvalue()
    path = tmp_path / "half.png"
    path.write_bytes(whole)
    assert read_image(path).shape == (3, 64, 64)
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"half\.png is no readable image"):
        read_image(path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "GIF"])
def test_damaged_files_are_read_or_named(tmp_path, form):
    content = io.BytesIO()
    Image.fromarray(COLOURS).save(content, form)
    path = tmp_path / "damaged"
    for _ in range(60):
        damaged = bytearray(content.getvalue())
        for place in RNG.integers(0, len(damaged), 3):
            damaged[place] = RNG.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):  # any other error fails
            assert read_image(path).shape[0] == 3


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICO", "JPEG2000"])
def test_no_other_decoder_is_started(tmp_path, form, monkeypatch):
    Image.fromarray(COLOURS).save(tmp_path / "picture.jpg", format=form)
    monkeypatch.setattr(os, "posix_spawn", None)
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(DataError, match=r"picture\.jpg is no readable image \(none of JPEG, PNG"):
        read_image(tmp_path / "picture.jpg")


@pytest.mark.parametrize("reader", [read_image, read_class_map])
def test_a_pipe_is_refused_before_it_is_opened(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is a pipe \(FIFO\), not a file"):
        reader(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"/dev/zero is a device"):
        reader("/dev/zero")


def test_class_maps_stand_upright_and_hold_bytes(tmp_path):
    classes = RNG.integers(0, 5, (9, 14), dtype=np.uint8)
    oriented(Image.fromarray(classes), 3, tmp_path / "turned.png")
    assert torch.equal(read_class_map(tmp_path / "turned.png"), torch.from_numpy(classes[::-1, ::-1].copy()))
    Image.fromarray(classes.astype(np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png has more than 8 bits"):
        read_class_map(tmp_path / "deep.png")
