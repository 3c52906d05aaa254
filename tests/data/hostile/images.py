"""Images that are large, endless, packed, damaged or something else. Each function writes one and returns its path."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 13_000  # pixels; a little less than what Pillow takes for a decompression bomb
Maker = Callable[[Path], Path]
MIB = 2**20


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def zeros(size: int) -> bytes:
    """So many zero bytes, packed by zlib."""
    packer = zlib.compressobj(6)
    return b"".join(packer.compress(bytes(min(MIB, size - at))) for at in range(0, size, MIB)) + packer.flush()


def png(
    path: Path, width: int, height: int, kind: int, bits: int = 8, before: bytes = b"", interlaced: int = 0, after=b""
) -> Path:
    """Black pixels; `kind` is PNG's: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    row = (width * channels * bits + 7) // 8 + 1
    pixels = zeros(row * height + (8 * (width + height) if interlaced else 0))
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if kind == 3 else b""
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + before)
        file.write(chunk(b"IDAT", pixels) + after + chunk(b"IEND", b""))
    return path


def large_pngs() -> dict[str, Maker]:
    shapes = {
        "grey 16 bits": (0, 16),
        "RGBA": (6, 8),
        "RGB": (2, 8),
        "grey and alpha": (4, 8),
        "palette": (3, 8),
        "one bit": (0, 1),
        "two bits": (0, 2),
    }
    found: dict[str, Maker] = {
        f"png {name}": lambda p, k=kind, b=bits: png(p / "a.png", SIDE, SIDE, k, b)
        for name, (kind, bits) in shapes.items()
    }
    clear = chunk(b"tRNS", bytes(range(256)))
    return found | {
        "png palette with transparency": lambda p: png(p / "a.png", SIDE, SIDE, 3, before=clear),
        "png grey with transparency": lambda p: png(p / "a.png", SIDE, SIDE, 0, before=chunk(b"tRNS", b"\0\7")),
        "png RGBA 16 bits": lambda p: png(p / "a.png", 9_000, 9_000, 6, 16),
        "png RGB 16 bits": lambda p: png(p / "a.png", SIDE, SIDE, 2, 16),
        "png interlaced": lambda p: png(p / "a.png", SIDE, SIDE, 0, interlaced=1),
        "png one row": lambda p: png(p / "a.png", 178_000_000, 1, 0),
        "png one column": lambda p: png(p / "a.png", 1, 30_000_000, 2),
        "png RGBA turned": lambda p: png(p / "a.png", SIDE, SIDE, 6, before=chunk(b"eXIf", exif(6))),
        "png bomb": lambda p: png(p / "a.png", 100_000, 3_000, 2),
        "png of sides beyond reason": lambda p: png(p / "a.png", 2**31 - 1, 1, 0, 1),
    }


def exif(orientation: int) -> bytes:
    return b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x112, 3, 1, orientation, 0) + b"\0\0\0\0"


def overlapping(size: int, tags: int, base: int = 0) -> bytes:
    """TIFF data whose tags all stand for the same bytes."""
    entries = b"".join(struct.pack("<HHII", 1000 + n, 7, size - 16, 8 + base) for n in range(tags))
    found = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", tags) + entries + bytes(4)
    return found + bytes(max(0, size - len(found)))


def packed_headers() -> dict[str, Maker]:
    def small(path: Path, before: bytes = b"", after: bytes = b"") -> Path:
        return png(path / "a.png", 8, 8, 2, before=before, after=after)

    def hole(path: Path, kind: bytes, size: int, is_behind: bool) -> Path:
        """A chunk that is a hole in the file."""
        whole = small(path).read_bytes()
        at = whole.index(b"IEND" if is_behind else b"IDAT") - 4
        with (path / "a.png").open("wb") as file:
            file.write(whole[:at] + struct.pack(">I", size) + kind)
            file.seek(size + 4, 1)
            file.write(whole[at:])
        return path / "a.png"

    many = b"".join(chunk(b"zTXt", b"k%d\0\0" % n + zeros(MIB)) for n in range(2_000))
    return {
        "png iCCP bomb": lambda p: small(p, chunk(b"iCCP", b"x\0\0" + zeros(2**30))),
        "png zTXt bomb": lambda p: small(p, chunk(b"zTXt", b"x\0\0" + zeros(2**30))),
        "png iTXt bomb": lambda p: small(p, chunk(b"iTXt", b"x\0\1\0\0\0" + zeros(2**30))),
        "png 2000 zTXt bombs": lambda p: small(p, many),
        "png zTXt bombs behind": lambda p: small(p, after=many),
        "png chunk of 1.8 GB": lambda p: hole(p, b"abCd", 1_800 * MIB, False),
        "png chunk of 1.8 GB behind": lambda p: hole(p, b"abCd", 1_800 * MIB, True),
        "png tEXt of 900 MB": lambda p: hole(p, b"tEXt", 900 * MIB, False),
        "png eXIf bomb": lambda p: small(p, chunk(b"eXIf", overlapping(8 * MIB, 5_000))),
        "jpeg exif bomb": lambda p: jpeg_with(p, exif_segments(overlapping(60_000, 4_500))),
        "jpeg exif bomb in parts": lambda p: jpeg_with(p, exif_segments(overlapping(6 * MIB, 60_000))),
        "jpeg 300 MB of segments": lambda p: jpeg_with(p, (b"\xff\xe5\xff\xff" + bytes(65_533) for _ in range(4_800))),
        "jpeg comments": lambda p: jpeg_with(p, (b"\xff\xfe\xff\xff" + bytes(65_533) for _ in range(900))),
        "gif 100 MB of comments": gif_comments,
        "tiff overlapping tags": lambda p: written(p / "a.tif", overlapping(4 * MIB, 60_000)),
        "tiff small overlapping tags": lambda p: written(p / "a.tif", overlapping(30_000, 2_400)),
        "tiff tag of 4 GB": lambda p: written(
            p / "a.tif", b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 270, 2, 2**32 - 1, 8) + bytes(400)
        ),
        "tiff that comes back": lambda p: written(p / "a.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0" + bytes(64)),
        "tiff huge tile": huge_tile,
    }


def written(path: Path, content: bytes | Iterable[bytes]) -> Path:
    with path.open("wb") as file:
        file.writelines([content] if isinstance(content, bytes) else content)
    return path


def exif_segments(content: bytes) -> Iterable[bytes]:
    for start in range(0, len(content), 65_000):
        part = b"Exif\0\0" + content[start : start + 65_000]
        yield b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part


def jpeg_with(folder: Path, segments: Iterable[bytes]) -> Path:
    whole = encoded("JPEG")
    return written(folder / "a.jpg", (part for parts in ([whole[:2]], segments, [whole[2:]]) for part in parts))


def encoded(format: str, size: tuple[int, int] = (64, 64), **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, format, **options)
    return buffer.getvalue()


def gif_comments(folder: Path) -> Path:
    whole = encoded("GIF")
    at = whole.index(b"\x2c", 781)
    block = b"\xff" + b"c" * 255
    return written(folder / "a.gif", [whole[:at], b"!\xfe", *[block] * 400_000, b"\0", whole[at:]])


def huge_tile(folder: Path) -> Path:
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 8, 325: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = b"II*\0" + struct.pack("<I", 200) + zeros(100)
    return written(folder / "a.tif", start.ljust(200, b"\0") + struct.pack("<H", len(tags)) + entries + bytes(4))


def large_files() -> dict[str, Maker]:
    def saved(name: str, mode: str, side: int = SIDE, **options) -> Maker:
        def make(folder: Path) -> Path:
            Image.new(mode, (side, side)).save(folder / name, **options)
            return folder / name

        return make

    def array(name: str, dtype: type, side: int, **options) -> Maker:
        def make(folder: Path) -> Path:
            values = np.zeros((side, side), dtype)
            values[0, 0] = 1_000
            Image.fromarray(values).save(folder / name, **options)
            return folder / name

        return make

    def sparse(name: str, header: bytes, size: int) -> Maker:
        def make(folder: Path) -> Path:
            written(folder / name, header)
            os.truncate(folder / name, len(header) + size)
            return folder / name

        return make

    pixels = SIDE * SIDE
    return {
        "jpeg": saved("a.jpg", "RGB"),
        "jpeg CMYK": saved("a.jpg", "CMYK", 12_000),
        "jpeg progressive": saved("a.jpg", "RGB", progressive=True),
        "jpeg progressive 9000": saved("a.jpg", "RGB", 9_000, progressive=True, subsampling=0),
        "jpeg turned": saved("a.jpg", "RGB", exif=b"Exif\0\0" + exif(8)),
        "webp": saved("a.webp", "RGB", SIDE, method=0),
        "webp 7000": saved("a.webp", "RGBA", 7_000, method=0),
        "tiff float": array("a.tif", np.float32, 12_000),
        "tiff int": array("a.tif", np.int32, 12_000),
        "tiff 16 bits": array("a.tif", np.uint16, SIDE),
        "tiff deflate": saved("a.tif", "RGB", 12_000, compression="tiff_adobe_deflate"),
        "tiff group 4": saved("a.tif", "1", compression="group4"),
        "tiff LZW RGBA": saved("a.tif", "RGBA", 9_000, compression="tiff_lzw"),
        "tiff turned": saved("a.tif", "RGB", 8_000, tiffinfo={274: 6}),
        "gif": saved("a.gif", "P"),
        "bmp one bit": saved("a.bmp", "1"),
        "tga packed": saved("a.tga", "RGBA", compression="tga_rle"),
        "jpeg 2000": saved("a.jp2", "RGB", 7_000),
        "avif": saved("a.avif", "RGB", 7_000, speed=10),
        "ppm sparse": sparse("a.ppm", b"P6 13000 13000 255\n", 3 * pixels),
        "pgm sparse 10 bits": sparse("a.pgm", b"P5 13000 13000 1023\n", 2 * pixels),
        "pgm 10 bits 4000": sparse("a.pgm", b"P5 4000 4000 1023\n", 2 * 4000 * 4000),
        "pfm sparse": sparse("a.pfm", b"Pf 13000 13000 -1.0\n", 4 * pixels),
        "ppm plain": lambda p: written(p / "a.ppm", [b"P3 13000 13000 255\n", *[b"0 " * MIB] * 60]),
        "ppm plain 4000": lambda p: written(p / "a.ppm", [b"P2 4000 4000 255\n", *[b"0 " * 1_000_000] * 16]),
        "qoi run": lambda p: written(
            p / "a.qoi", b"qoif" + struct.pack(">IIBB", SIDE, SIDE, 4, 0) + b"\xfd" * (pixels // 62 + 1)
        ),
        "qoi 4000": lambda p: written(
            p / "a.qoi", b"qoif" + struct.pack(">IIBB", 4000, 4000, 4, 0) + b"\0" * 16_000_000
        ),
        "bmp packed": lambda p: written(
            p / "a.bmp",
            b"BM"
            + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54 + 1024, 40, SIDE, SIDE, 1, 8, 1, 0, 0, 0, 256, 0)
            + bytes(1024)
            + b"\xff\0" * 1_000_000,
        ),
        "ico with a large png": lambda p: icon(p, "ico"),
        "icns with a large png": lambda p: icon(p, "icns"),
        "dds sparse": sparse(
            "a.dds",
            b"DDS "
            + struct.pack("<7I", 124, 0x1007, 12_000, 12_000, 0, 0, 0)
            + bytes(44)
            + struct.pack("<II4s5I", 32, 4, b"DXT1", 0, 0, 0, 0, 0)
            + bytes(20),
            12_000 * 6_000,
        ),
        "psd": lambda p: written(
            p / "a.psd",
            b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, SIDE, SIDE, 8, 3) + bytes(12) + b"\0\0" + bytes(4096),
        ),
        "sgi sparse": sparse(
            "a.sgi", struct.pack(">HBBHHHH", 474, 0, 1, 3, SIDE, SIDE, 3).ljust(512, b"\0"), 3 * pixels
        ),
        "xpm": lambda p: written(
            p / "a.xpm",
            [
                b'/* XPM */\nstatic char *a[] = {\n"9000 9000 1 1",\n"a c #000000",\n',
                *[b'"' + b"a" * 9_000 + b'",\n'] * 9_000,
            ],
        ),
        "spider": saved("a.spi", "F", 8_000, format="SPIDER"),
        "png of a terabyte": lambda p: (png(p / "a.png", 8, 8, 2), os.truncate(p / "a.png", 2**40))[0],
        "png of 12 GB": lambda p: (png(p / "a.png", 8, 8, 2), os.truncate(p / "a.png", 12 * 2**30))[0],
        "jpeg of many scans": many_scans,
        "gif of 20,000 frames": lambda p: frames(p / "a.gif", 20_000),
        "apng of 3,000 frames": lambda p: frames(p / "a.png", 3_000),
        "webp of 500 frames": lambda p: frames(p / "a.webp", 500),
        "tiff of 3,000 pages": lambda p: frames(p / "a.tif", 3_000),
    }


def icon(folder: Path, kind: str) -> Path:
    inner = png(folder / "inner.png", SIDE, SIDE, 6).read_bytes()
    if kind == "ico":
        head = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22)
        return written(folder / "a.ico", head + inner)
    return written(folder / "a.icns", b"icns" + struct.pack(">I4sI", len(inner) + 16, b"ic07", len(inner) + 8) + inner)


def many_scans(folder: Path) -> Path:
    """A progressive JPEG whose last scan is there again and again."""
    whole = encoded("JPEG", (4_000, 4_000), progressive=True, quality=5)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return written(folder / "a.jpg", [whole[:-2], *[last[:14]] * 20_000, b"\xff\xd9"])


def frames(path: Path, count: int) -> Path:
    first, *others = (Image.new("P", (16, 16), n % 251) for n in range(count))
    options = {"compression": "raw"} if path.suffix == ".tif" else {"duration": 20}
    first.convert("RGB" if path.suffix == ".webp" else "P").save(path, save_all=True, append_images=others, **options)
    return path


def other_things() -> dict[str, Maker]:
    trap = b"%%!PS-Adobe-3.0 EPSF-3.0\n%%%%BoundingBox: 0 0 9 9\n(%s) (w) file closefile\n"
    trap += b"(%%pipe%%touch %s) (w) file closefile\n"
    svg = b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&e;</svg>'

    def program(folder: Path, name: str) -> Path:
        mark = str(folder / "ran").encode()
        return written(folder / name, trap % (mark, mark))

    placeable = struct.pack("<IHhhhhHIH", 0x9AC6CDD7, 0, 0, 0, 100, 100, 72, 0, 0)
    found: dict[str, Maker] = {
        "eps": lambda p: program(p, "a.eps"),
        "eps as png": lambda p: program(p, "a.png"),
        "eps in DOS form": lambda p: written(
            p / "a.eps", b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 100) + bytes(20) + trap
        ),
        "pdf": lambda p: written(
            p / "a.pdf", b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/Launch/F(touch)>>>>endobj"
        ),
        "wmf": lambda p: written(p / "a.wmf", placeable + b"\1\0\t\0" + bytes(60)),
        "svg": lambda p: written(p / "a.svg", svg),
        "svg as png": lambda p: written(p / "a.png", svg),
        "zip as png": lambda p: written(p / "a.png", b"PK\3\4" + bytes(900)),
        "pickle as jpg": lambda p: written(p / "a.jpg", b"\x80\4cposix\nsystem\n(S'true'\ntR."),
        "gz": lambda p: written(p / "a.png", b"\x1f\x8b\x08" + bytes(40)),
        "fits": lambda p: written(
            p / "a.fits",
            b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80) + bytes(6_000),
        ),
        "jpeg as png": lambda p: written(p / "a.png", encoded("JPEG")),
        "nothing": lambda p: written(p / "a.png", b""),
        "half a jpeg": lambda p: written(p / "a.jpg", encoded("JPEG", (3_000, 3_000))[:50_000]),
        "half a png": lambda p: written(p / "a.png", encoded("PNG", (3_000, 3_000))[:50_000]),
        "half a tiff": lambda p: written(p / "a.tif", encoded("TIFF", (900, 900), compression="tiff_lzw")[:50_000]),
    }
    return (
        found
        | {f"link to {to}": lambda p, to=to: linked(p, to) for to in LINKS}
        | {
            "pipe": lambda p: (os.mkfifo(p / "a.png"), p / "a.png")[1],
            "folder": lambda p: ((p / "a.png").mkdir(), p / "a.png")[1],
            "socket": bound,
            "link to itself": lambda p: linked(p, str(p / "a.png")),
            "link to nothing": lambda p: linked(p, "/none"),
            "name of 5,000 characters": lambda p: p / ("n" * 5_000),
            "name with a zero": lambda p: p / "a\0.png",
            "link to a link to a pipe": lambda p: (
                os.mkfifo(p / "pipe"),
                (p / "b").symlink_to(p / "pipe"),
                linked(p, str(p / "b")),
            )[2],
        }
    )


LINKS = (
    "/proc/kmsg",
    "/dev/zero",
    "/dev/random",
    "/dev/full",
    "/dev/tty",
    "/dev/stdin",
    "/dev/kmsg",
    "/proc/self/mem",
    "/proc/kcore",
    "/proc/self/environ",
    "/proc/self/pagemap",
    "/sys/kernel/notes",
    "/proc/1/root",
    "/proc/self/fd/0",
)


def linked(folder: Path, to: str) -> Path:
    (folder / "a.png").symlink_to(to)
    return folder / "a.png"


def bound(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(folder / "a.png"))
    return folder / "a.png"


def long_sides() -> dict[str, Maker]:
    """One row or one column of all the pixels that an image may have."""

    def row(name: str, head: bytes, size: int) -> Maker:
        return lambda folder: (written(folder / name, head), os.truncate(folder / name, len(head) + size))[0]

    def bmp(width: int, height: int) -> bytes:
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)

    def tiff(folder: Path, size: tuple[int, int], **options) -> Path:
        Image.new("RGB", size).save(folder / "a.tif", **options)
        return folder / "a.tif"

    return {
        "png one row RGBA 16 bits": lambda p: png(p / "a.png", 178_000_000, 1, 6, 16),
        "png one row RGB": lambda p: png(p / "a.png", 90_000_000, 1, 2),
        "png one row interlaced": lambda p: png(p / "a.png", 100_000_000, 1, 0, interlaced=1),
        "png one column interlaced": lambda p: png(p / "a.png", 1, 20_000_000, 0, interlaced=1),
        "png one row palette": lambda p: png(p / "a.png", 170_000_000, 1, 3, before=chunk(b"tRNS", bytes(9))),
        "png two rows turned": lambda p: png(p / "a.png", 80_000_000, 2, 0, before=chunk(b"eXIf", exif(6))),
        "png interlaced RGBA 16 bits": lambda p: png(p / "a.png", 9_000, 9_000, 6, 16, interlaced=1),
        "ppm one row": row("a.ppm", b"P6 170000000 1 255\n", 510_000_000),
        "ppm one column": row("a.ppm", b"P6 1 60000000 255\n", 180_000_000),
        "pfm one row": row("a.pfm", b"Pf 170000000 1 -1.0\n", 680_000_000),
        "bmp one row": row("a.bmp", bmp(100_000_000, 1), 300_000_000),
        "bmp one column": row("a.bmp", bmp(1, 60_000_000), 240_000_000),
        "tiff one row": lambda p: tiff(p, (100_000_000, 1)),
        "tiff one row deflate": lambda p: tiff(p, (100_000_000, 1), compression="tiff_adobe_deflate"),
        "tiff one column": lambda p: tiff(p, (1, 20_000_000)),
        "tiff one row a strip": lambda p: tiff(p, (600, 60_000), compression="tiff_lzw", tiffinfo={278: 1}),
        "jpeg as wide as it may be": lambda p: tall(p, "a.jpg", (65_000, 2_000), "JPEG", progressive=True),
        "gif as wide as it may be": lambda p: tall(p, "a.gif", (65_535, 2_600), "GIF"),
        "webp as wide as it may be": lambda p: tall(p, "a.webp", (16_383, 100), "WEBP"),
    }


def tall(folder: Path, name: str, size: tuple[int, int], format: str, **options) -> Path:
    Image.new("P" if format == "GIF" else "RGB", size).save(folder / name, format, **options)
    return folder / name


def large_notes() -> dict[str, Maker]:
    """Profiles, tags and frames of 100 MB and more."""

    def profile(count: int) -> Iterable[bytes]:
        for number in range(count):
            part = b"ICC_PROFILE\0" + bytes([number % 255 + 1, 255]) + os.urandom(65_000)
            yield b"\xff\xe2" + struct.pack(">H", len(part) + 2) + part

    def tagged(folder: Path, tag: int) -> Path:
        Image.new("RGB", (64, 64)).save(folder / "a.tif", tiffinfo={tag: b"\1" * 100 * MIB})
        return folder / "a.tif"

    noise = bytes(range(256)) * (400 * 1024)
    return {
        "jpeg profile of 100 MB": lambda p: jpeg_with(p, profile(1_600)),
        "jpeg profile of 16 MB": lambda p: jpeg_with(p, profile(255)),
        "jpeg exif of 100 MB": lambda p: jpeg_with(p, exif_segments(b"MM\0*\0\0\0\x08" + noise)),
        "png profile of 100 MB": lambda p: png(
            p / "a.png", 8, 8, 2, before=chunk(b"iCCP", b"x\0\0" + zlib.compress(noise, 0))
        ),
        "png eXIf of 100 MB": lambda p: png(p / "a.png", 8, 8, 2, before=chunk(b"eXIf", exif(6) + noise)),
        "png of 2 million chunks": lambda p: png(p / "a.png", 8, 8, 2, before=chunk(b"tEXt", b"k\0v") * 2_000_000),
        "png of a million empty pixels' chunks": lambda p: png(
            p / "a.png", 8, 8, 2, before=chunk(b"IDAT", b"") * 1_000_000
        ),
        "tiff profile of 100 MB": lambda p: tagged(p, 34675),
        "tiff exif of 100 MB": lambda p: tagged(p, 34665),
        "tiff description of 100 MB": lambda p: tagged(p, 270),
        "webp note of 300 MB": lambda p: written(
            p / "a.webp",
            (
                lambda w: (
                    w[:4]
                    + struct.pack("<I", len(w) + 300 * MIB)
                    + w[8:]
                    + b"XMP "
                    + struct.pack("<I", 300 * MIB)
                    + bytes(300 * MIB)
                )
            )(encoded("WEBP")),
        ),
        "gif of 100,000 frames": lambda p: frames(p / "a.gif", 100_000),
        "apng of 20,000 frames": lambda p: frames(p / "a.png", 20_000),
        "webp of 3,000 frames": lambda p: frames(p / "a.webp", 3_000),
        "tiff of 20,000 pages": lambda p: frames(p / "a.tif", 20_000),
        "tiff of noise": lambda p: written(p / "a.tif", b"II*\0\x08\0\0\0\xff\xff" + os.urandom(12 * 65_535)),
        "png of 3 GB with holes": lambda p: (png(p / "a.png", 8, 8, 2), os.truncate(p / "a.png", 3 * 2**30))[0],
        "name of two lines": lambda p: png(p / "a\nb\x1b[2J\r.png", 8, 8, 2),
        "folder named mp4": lambda p: ((p / "a.mp4").mkdir(), p / "a.mp4")[1],
        "name of 10,000 characters": lambda p: p / "/".join(["n" * 200] * 50),
        "links in a circle": lambda p: ((p / "b").symlink_to("a.png"), linked(p, "b"))[1],
        "file in a file": lambda p: written(p / "a.png", b"x") / "b.png",
    }


def images() -> dict[str, Maker]:
    return packed_headers() | other_things() | long_sides() | large_notes() | large_files() | large_pngs()
