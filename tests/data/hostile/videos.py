"""Videos that are large, endless, damaged, or lists of other files. Each function writes one and returns its path."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.data.clips import drawn, remuxed
from tests.data.hostile.images import bound, encoded, frames, linked, written

Maker = Callable[[Path], Path]
MIB = 2**20


def box(kind: bytes, *content: bytes) -> bytes:
    inside = b"".join(content)
    return struct.pack(">I4s", len(inside) + 8, kind) + inside


def lists_of_files() -> dict[str, Maker]:
    """Texts that FFmpeg reads as names of further files, whatever they are called."""

    def near(text: str) -> Maker:
        def make(folder: Path) -> Path:
            secret = drawn(folder / "secret.mp4", 8)
            content = text.replace("SECRET", str(secret)).replace("NAME", secret.name)
            return written(folder / "a.mp4", content.encode("latin-1"))

        return make

    play_list = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://SECRET\n#EXT-X-ENDLIST\n"
    description = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    description += "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    return {
        "ffconcat": near("ffconcat version 1.0\nfile NAME\n"),
        "ffconcat of an address": near("ffconcat version 1.0\nfile http://127.0.0.1:9/a.mp4\n"),
        "hls": near(play_list),
        "hls of an address": near(play_list.replace("file://SECRET", "http://127.0.0.1:9/a.ts")),
        "hls with a key": near(
            play_list.replace("#EXTINF", '#EXT-X-KEY:METHOD=AES-128,URI="file:///etc/passwd"\n#EXTINF')
        ),
        "sdp": near(description),
        "sdp behind a box": near("\0\0\0\x18ftypmp42\n" + description),
        "hls behind a box": near("\0\0\0\x10ftypmp42\n" + play_list),
        "dash": near(
            '<?xml version="1.0"?><MPD><Period><AdaptationSet><BaseURL>SECRET</BaseURL></AdaptationSet></Period></MPD>'
        ),
        "ffmetadata": near(";FFMETADATA1\ntitle=x\n"),
        "avisynth": near('DirectShowSource("SECRET")\n'),
        "vapoursynth": near("import os\nos.system('touch ran')\n"),
        "webvtt": near("WEBVTT\n\n00:00.000 --> 00:09.000\nx\n"),
        "transport stream and a description": near("G" + "\n" * 187 + "G" + "\n" * 187 + "G\n" + description),
        "movie of another file": outer_reference,
    }


def outer_reference(folder: Path) -> Path:
    """An mp4 whose frames are said to lie in another file."""
    whole = drawn(folder / "secret.mp4", 8).read_bytes()
    own = box(b"url ", struct.pack(">I", 1))
    assert own in whole
    other = box(b"alis", struct.pack(">I", 0), struct.pack(">HH", 0, 2), bytes(138), b"\0\2\0\nsecret.mp4\xff\xff\0\0")
    result = bytearray(_replaced(whole, own, other))
    start, end = result.index(b"mdat") + 4, result.index(b"moov") - 4
    result[start:end] = bytes(end - start)  # here are none
    return written(folder / "a.mov", bytes(result))


def _replaced(whole: bytes, old: bytes, new: bytes) -> bytes:
    """The file with another box in the place of one, and the sizes of those around it."""
    at, grown = whole.index(old), len(new) - len(old)
    result = bytearray(whole[:at] + new + whole[at + len(old) :])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = whole.rindex(kind, 0, at) - 4
        result[place : place + 4] = struct.pack(">I", struct.unpack(">I", whole[place : place + 4])[0] + grown)
    return bytes(result)


def patched(name: str, change: Callable[[bytearray], object], source: str = "") -> Maker:
    """A small video with some of its bytes changed."""

    def make(folder: Path) -> Path:
        content = bytearray(drawn(folder / (source or f"whole-{name}"), 30).read_bytes())
        change(content)
        return written(folder / name, bytes(content))

    return make


def put(kind: bytes, offset: int, form: str, *values: int | float) -> Callable[[bytearray], object]:
    """Change what stands so many bytes behind the name of a box."""

    def change(content: bytearray) -> None:
        struct.pack_into(form, content, content.index(kind) + 4 + offset, *values)

    return change


def wrong_numbers() -> dict[str, Maker]:
    return {
        "no time scale": patched("a.mp4", put(b"mdhd", 12, ">I", 0)),
        "no duration": patched("a.mp4", put(b"mvhd", 16, ">I", 0)),
        "negative duration": patched("a.mp4", put(b"mdhd", 16, ">i", -9)),
        "four billion frames": patched("a.mp4", put(b"stts", 8, ">II", 2**32 - 1, 1)),
        "frames without time": patched("a.mp4", put(b"stts", 12, ">I", 0)),
        "frames before time": patched("a.mp4", put(b"stts", 12, ">i", -500)),
        "frames of 4 GB": patched("a.mp4", put(b"stsz", 4, ">I", 2**32 - 1)),
        "a billion sizes": patched("a.mp4", put(b"stsz", 8, ">I", 2**30)),
        "chunks outside": patched("a.mp4", put(b"stco", 8, ">I", 2**32 - 9)),
        "wide header": patched("a.mp4", put(b"mp4v", 24, ">HH", 65_535, 65_535)),
        "box of 4 GB": patched("a.mp4", put(b"moov", -8, ">I", 2**32 - 1)),
        "box of no size": patched("a.mp4", put(b"trak", -8, ">I", 1)),
        "avi of no rate": patched("a.avi", put(b"strh", 24, "<II", 0, 0)),
        "avi of a billion frames": patched("a.avi", put(b"avih", 20, "<I", 2**31 - 1)),
        "avi of four billion frames": patched("a.avi", put(b"strh", 36, "<I", 2**32 - 1)),
        "avi of no microseconds": patched("a.avi", put(b"avih", 4, "<I", 0)),
        "avi of frames as wide as possible": patched("a.avi", put(b"strf", 8, "<ii", 2**31 - 1, 2**31 - 1)),
        "mkv of no duration": patched(
            "a.mkv", lambda c: struct.pack_into(">d", c, c.index(b"\x44\x89\x88") + 3, float("nan"))
        ),
        "mkv of endless duration": patched(
            "a.mkv", lambda c: struct.pack_into(">d", c, c.index(b"\x44\x89\x88") + 3, 1e300)
        ),
        "mkv of negative duration": patched(
            "a.mkv", lambda c: struct.pack_into(">d", c, c.index(b"\x44\x89\x88") + 3, -5.0)
        ),
        "boxes in boxes": lambda p: written(p / "a.mp4", _nested(20_000)),
        "elements in elements": lambda p: written(
            p / "a.mkv", b"\x1aE\xdf\xa3\x80" + b"\x18S\x80g\x01\xff\xff\xff\xff\xff\xff\xff" * 50_000
        ),
    }


def _nested(depth: int) -> bytes:
    sizes = [8 * (depth - n) for n in range(depth)]
    return box(b"ftyp", b"isom\0\0\2\0isom") + b"".join(struct.pack(">I4s", size, b"moov") for size in sizes)


def large(folder: Path, side: int, codec: str, name: str, count: int = 1) -> Path:
    import av

    with av.open(str(folder / name), "w") as file:
        stream = file.add_stream(codec, rate=5)
        stream.width = stream.height = side
        stream.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), format="rgb24")
        for number in range(count):
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return folder / name


def many_frames(folder: Path, count: int, name: str) -> Path:
    """A video whose frames are packets that nearly all say: the same again."""
    import av

    with av.open(str(folder / name), "w") as file:
        stream = file.add_stream("mpeg4", rate=1_000)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return folder / name


def large_videos() -> dict[str, Maker]:
    return {
        "raw frames of 16,000 x 16,000": lambda p: large(p, 16_000, "rawvideo", "a.avi"),
        "png of 12,000 x 12,000": lambda p: large(p, 12_000, "png", "a.mov"),
        "mpeg4 of 8,000 x 8,000": lambda p: large(p, 8_000, "mpeg4", "a.mp4", 3),
        "mpeg4 of 4,000 x 4,000": lambda p: large(p, 4_000, "mpeg4", "a.mp4", 12),
        "200,000 frames": lambda p: many_frames(p, 200_000, "a.mp4"),
        "100,000 frames in avi": lambda p: many_frames(p, 100_000, "a.avi"),
        "gif of 20,000 frames": lambda p: frames(p / "a.gif", 20_000),
        "apng": lambda p: frames(p / "a.png", 300),
        "gif wide": lambda p: written(
            p / "a.gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2\4\1\0;"
        ),
        "y4m of 60,000 x 60,000": lambda p: written(
            p / "a.y4m", b"YUV4MPEG2 W60000 H60000 F5:1 C420\nFRAME\n" + bytes(900)
        ),
        "y4m of no rate": lambda p: written(
            p / "a.y4m", b"YUV4MPEG2 W16 H16 F0:0 C420\n" + (b"FRAME\n" + bytes(384)) * 30
        ),
        "sparse terabyte": lambda p: (drawn(p / "a.mp4", 8), os.truncate(p / "a.mp4", 2**40))[0],
        "sparse 8 GB": lambda p: (drawn(p / "a.mkv", 8), os.truncate(p / "a.mkv", 2**33))[0],
        "one frame": lambda p: drawn(p / "a.mp4", 1),
    }


def odd_streams() -> dict[str, Maker]:
    """Streams that change on the way, begin in the middle, or say things that no camera does."""

    def joined(folder: Path, *sizes: tuple[int, int]) -> Path:
        """Streams of several sizes, one behind the other."""
        parts = [remuxed(drawn(folder / f"{n}.mp4", 20, size), folder / f"{n}.ts") for n, size in enumerate(sizes)]
        return written(folder / "a.ts", [part.read_bytes() for part in parts])

    def encoded_as(name: str, codec: str, form: str, size: int, count: int, rate: int = 5, **options: str) -> Maker:
        def make(folder: Path) -> Path:
            import av

            with av.open(str(folder / name), "w") as file:
                stream = file.add_stream(codec, rate=rate, options=options)
                stream.width = stream.height = size
                stream.pix_fmt = form
                for number in range(count):
                    pixels = np.full((size, size, 3), number % 250, np.uint8)
                    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=form)
                    frame.pts = number
                    file.mux(stream.encode(frame))
                file.mux(stream.encode(None))
            return folder / name

        return make

    def without_key_frames(folder: Path) -> Path:
        import av

        with av.open(str(drawn(folder / "b.mp4", 30))) as read, av.open(str(folder / "a.mkv"), "w") as file:
            stream = read.streams.video[0]
            copy = file.add_stream_from_template(stream)
            for packet in read.demux(stream):
                if packet.dts is not None and not packet.is_keyframe:
                    packet.stream = copy
                    file.mux(packet)
        return folder / "a.mkv"

    def index_cut(folder: Path) -> Path:
        whole = drawn(folder / "b.mp4", 30).read_bytes()
        return written(folder / "a.mp4", whole[: whole.index(b"moov") + 200])

    def behind(folder: Path, name: str) -> Path:
        path = drawn(folder / name, 8)
        with path.open("ab") as file:
            for _ in range(1_000):
                file.write(bytes(MIB))
        return path

    return {
        "other sizes on the way": lambda p: joined(p, (64, 48), (640, 480)),
        "much larger on the way": lambda p: joined(p, (64, 48), (6_000, 4_000)),
        "smaller on the way": lambda p: joined(p, (640, 480), (64, 48)),
        "frames larger than said": patched("a.mp4", put(b"mp4v", 24, ">HH", 16, 16)),
        "a billion frames a second": patched("a.mp4", put(b"mdhd", 12, ">I", 10**9)),
        "16 bits": encoded_as("a.mkv", "ffv1", "yuv444p16le", 512, 9),
        "16 bits and alpha of 4,000": encoded_as("a.mkv", "ffv1", "gbrap16le", 4_000, 3),
        "grey of 10 bits": encoded_as("a.mkv", "ffv1", "gray10le", 512, 9),
        "h264 of 8,000 x 8,000": encoded_as("a.mp4", "libx264", "yuv420p", 8_000, 6, preset="ultrafast"),
        "h264 of 4,000 with 16 references": encoded_as(
            "a.mp4", "libx264", "yuv420p", 4_000, 20, preset="ultrafast", refs="16", bf="8"
        ),
        "h264 with B frames alone": encoded_as(
            "a.mp4", "libx264", "yuv420p", 128, 400, bf="16", g="400", b_strategy="0"
        ),
        "one key frame in 5,000": encoded_as(
            "a.mp4", "libx264", "yuv420p", 64, 5_000, rate=1_000, g="5000", sc_threshold="0"
        ),
        "mjpeg of 8,000 x 8,000": encoded_as("a.avi", "mjpeg", "yuvj420p", 8_000, 3),
        "no key frames": without_key_frames,
        "index cut": index_cut,
        "1 GB of zeros behind mkv": lambda p: behind(p, "a.mkv"),
        "1 GB of zeros behind mp4": lambda p: behind(p, "a.mp4"),
        "1 GB of zeros behind avi": lambda p: behind(p, "a.avi"),
        "1 GB of zeros behind a transport stream": lambda p: remuxed(behind(p, "b.mp4"), p / "a.ts"),
        "zeros behind ftyp, 1 GB": lambda p: written(
            p / "a.mp4", [box(b"ftyp", b"isom\0\0\2\0isom"), *[bytes(MIB)] * 1_000]
        ),
        "zeros behind ebml, 1 GB": lambda p: written(p / "a.mkv", [b"\x1aE\xdf\xa3\x80", *[bytes(MIB)] * 1_000]),
        "noise behind a program stream, 300 MB": lambda p: written(
            p / "a.mpg", [b"\0\0\1\xba", *[random.Random(1).randbytes(MIB)] * 300]
        ),
        "starts of h264 alone": lambda p: written(p / "a.h264", b"\0\0\0\1\x67\x64\0\x1f" * 4_000_000),
        "folder named png": lambda p: ((p / "a.png").mkdir(), p / "a.png")[1],
        "socket": lambda p: bound(p),
        "links in a circle": lambda p: ((p / "b").symlink_to("a.png"), linked(p, "b"))[1],
        "name of two lines": lambda p: drawn(p / "a\nb\x1b[2J\r.mp4", 8),
    }


def other_things(seed: int) -> dict[str, Maker]:
    def start(content: bytes, name: str = "a.mp4", size: int = 3 * MIB) -> Maker:
        return lambda folder: written(folder / name, content + random.Random(seed).randbytes(size))

    def noisy(name: str, number: int) -> Maker:
        def change(content: bytearray) -> None:
            rng = random.Random(f"{seed} {number}")
            for _ in range(40):
                content[rng.randrange(len(content))] = rng.randrange(256)

        return patched(name, change)

    def cut(name: str, share: float) -> Maker:
        return patched(name, lambda content: content.__delitem__(slice(int(len(content) * share), None)))

    found: dict[str, Maker] = {
        "noise": start(b""),
        "noise behind ftyp": start(box(b"ftyp", b"isom\0\0\2\0isom")),
        "noise behind ebml": start(b"\x1aE\xdf\xa3", "a.mkv"),
        "noise behind RIFF": start(b"RIFF\xff\xff\xff\x7fAVI LIST", "a.avi"),
        "noise behind flv": start(b"FLV\1\5\0\0\0\t\0\0\0\0", "a.flv"),
        "noise behind ogg": start(b"OggS\0\2", "a.ogv"),
        "noise behind a program stream": start(b"\0\0\1\xba", "a.mpg"),
        "noise behind a video stream": start(b"\0\0\1\xb3", "a.mpg"),
        "noise behind h264": start(b"\0\0\0\1\x67\x64\0\x1f", "a.h264"),
        "noise behind asf": start(b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa\0b\xcel", "a.wmv"),
        "transport stream of noise": lambda p: written(
            p / "a.ts", b"".join(b"G" + random.Random(n).randbytes(187) for n in range(20_000))
        ),
        "nothing": lambda p: written(p / "a.mp4", b""),
        "jpeg": lambda p: written(p / "a.mp4", encoded("JPEG")),
        "text": lambda p: written(p / "a.mp4", b"hello"),
        "webm as mp4": lambda p: drawn(p / "b.webm", 8, codec="libvpx").rename(p / "a.mp4"),
        "transport stream": lambda p: remuxed(drawn(p / "b.mp4", 30), p / "a.ts"),
        "flv": lambda p: remuxed(drawn(p / "b.flv", 30, codec="flv1"), p / "a.flv"),
        "name with %": lambda p: drawn(p / "a%03d.mp4", 8),
        "name as an address": lambda p: (
            ((p / "http:" / "127.0.0.1:9").mkdir(parents=True), p)[1] / "http:" / "127.0.0.1:9" / "a.mp4"
        ),
        "name as a list": lambda p: written(p / "concat:a|b.mp4", b"x"),
        "link to /dev/zero": lambda p: linked(p, "/dev/zero"),
        "link to /proc/kmsg": lambda p: linked(p, "/proc/kmsg"),
        "pipe": lambda p: (os.mkfifo(p / "a.mp4"), p / "a.mp4")[1],
    }
    found |= {f"noisy {name} {n}": noisy(name, n) for n in range(4) for name in ("a.mp4", "a.avi", "a.mkv")}
    return found | {
        f"{share} of {name}": cut(name, share) for share in (0.2, 0.9) for name in ("a.mp4", "a.avi", "a.mkv")
    }


def videos(seed: int) -> dict[str, Maker]:
    return lists_of_files() | wrong_numbers() | large_videos() | odd_streams() | other_things(seed)
