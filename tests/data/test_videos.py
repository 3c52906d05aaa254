"""The same frames from every library, on real clips and on damaged ones."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.data.clips import FRAMES, clip, cut_off, drawn, remuxed, turned
from vlmexp.data.images import MediaError
from vlmexp.data.video_readers import LIBRARIES, VideoHeader, resolve_library, works
from vlmexp.data.videos import VideoOptions, check_video, frame_numbers, load_video, video_header
from vlmexp.errors import UserError


@pytest.fixture(params=list(LIBRARIES))
def library(request):
    if not works(request.param):
        pytest.skip(f"{request.param} does not load here")
    return request.param


@pytest.mark.parametrize("name", FRAMES)
def test_every_library_gives_the_same_frames(name, library):
    path = clip(name)
    options = VideoOptions(library=library)
    header = video_header(path, options)
    assert header.frames == FRAMES[name]
    found, reference = load_video(path, options), load_video(path, VideoOptions(library="decord"))
    assert found.frames.shape == (8, header.height, header.width, 3)
    assert found.numbers == reference.numbers
    assert found.header.fps == pytest.approx(reference.header.fps)
    difference = np.abs(found.frames.astype(int) - reference.frames).mean(axis=(1, 2, 3))
    assert difference.max() < 0.05  # neighbouring frames differ by 0.08 to 20


@pytest.mark.parametrize("container", ["mkv", "mov"])
def test_frames_are_those_of_the_same_clip_in_another_container(container, library, tmp_path):
    source = clip("carphone_pristine")
    path = remuxed(source, tmp_path / f"same.{container}")
    numbers = VideoOptions(library=library, num_frames=31)
    assert (load_video(path, numbers).frames == load_video(source, numbers).frames).all()


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.avi", "libx264"), ("a.webm", "libvpx"), ("a.mkv", "libx264")],
)
def test_all_frames_in_order(name, codec, library, tmp_path):
    path = drawn(tmp_path / name, 25, codec=codec)
    if (library, name, codec) == ("torchcodec", "a.avi", "libx264"):
        with pytest.raises(MediaError, match="cannot be read with torchcodec"):
            load_video(path, VideoOptions(library=library, num_frames=100))
        return
    found = load_video(path, VideoOptions(library=library, num_frames=100))
    assert found.numbers == list(range(25))
    assert np.abs(found.frames.mean(axis=(1, 2, 3)) - (10 + 8 * np.arange(25))).max() < 4


def test_a_video_of_one_frame(library, tmp_path):
    path = drawn(tmp_path / "one.mp4", 1)
    check_video(path, library)
    assert load_video(path, VideoOptions(library=library)).frames.shape == (1, 48, 64, 3)


def test_a_rotated_video_is_upright(library, tmp_path):
    path = turned(clip("carphone_pristine"), tmp_path / "turned.mp4", height=144)
    options = VideoOptions(library=library, num_frames=2)
    found, plain = load_video(path, options), load_video(clip("carphone_pristine"), options)
    assert (found.header.width, found.header.height) == (144, 176)
    assert np.abs(found.frames.astype(int) - np.rot90(plain.frames, -1, axes=(1, 2))).mean() < 1


def test_opencv_can_leave_its_order_of_channels():
    pytest.importorskip("cv2")
    path = clip("bikes")
    rgb, bgr = (
        load_video(path, VideoOptions("cv2", num_frames=2, convert_to_rgb=flag)).frames for flag in (True, False)
    )
    assert (rgb == bgr[..., ::-1]).all()
    assert (rgb != bgr).any()


@pytest.mark.parametrize(
    ("frames", "fps", "options", "numbers"),
    [
        (250, 25.0, {"num_frames": 4}, [0, 83, 166, 249]),
        (250, 25.0, {"num_frames": 1}, [0]),
        (3, 25.0, {"num_frames": 8}, [0, 1, 2]),
        (250, 25.0, {"num_frames": 3, "max_duration": 2.0}, [0, 24, 49]),
        (250, 25.0, {"num_frames": 3, "max_duration": 0.001}, [0]),
        (250, 25.0, {"num_frames": 2, "max_duration": 60.0}, [0, 249]),
        (250, 25.0, {"sampling_strategy": "fps", "fps": 0.5}, [0, 50, 100, 150, 200]),
        (101, 25.0, {"sampling_strategy": "fps", "fps": 1.0}, [0, 25, 50, 75, 100]),
        (10, 25.0, {"sampling_strategy": "fps", "fps": 100.0}, list(range(10))),
        (90, 29.97, {"sampling_strategy": "fps", "fps": 1.0}, [0, 29, 59]),
        (250, 25.0, {"sampling_strategy": "fps", "fps": 1.0, "max_duration": 2.0}, [0, 25]),
        (40, 0.0, {"num_frames": 2, "max_duration": 1.0}, [0, 39]),
    ],
)
def test_which_frames(frames, fps, options, numbers):
    assert frame_numbers(VideoHeader(frames, 64, 48, fps), VideoOptions(**options)) == numbers


@pytest.mark.parametrize("content", [b"", b"hello, I am text", b"\0\0\0\x18ftypmp42" + bytes(400)])
def test_what_is_no_video(content, library, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=rf"clip.mp4 cannot be read with {library}: it is damaged or no video"):
        check_video(tmp_path / "clip.mp4", library)


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_video_that_is_cut_off(share, library, tmp_path):
    path = cut_off(clip("carphone_pristine"), tmp_path / "cut.mp4", share)
    with pytest.raises(MediaError, match="cannot be read") as caught:
        check_video(path, library)
    assert caught.value.reason == "damaged"


@pytest.mark.parametrize(("name", "codec"), [("cut.mkv", "libx264"), ("cut.webm", "libvpx"), ("sound.mkv", "libx264")])
def test_a_file_that_ends_before_the_time_that_its_header_says(name, codec, tmp_path):
    """Such files have no list of their frames."""
    pytest.importorskip("av")
    whole = drawn(tmp_path / f"whole-{name}", 25, codec=codec, sound=9 * (name == "sound.mkv"))
    check_video(whole, "pyav")
    content = whole.read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(MediaError, match=r"it is cut off, with \d\.\d\d of its (5|9)\.\d\d seconds"):
        check_video(tmp_path / name, "pyav")


@pytest.mark.parametrize("options", [{}, {"live": "1"}])  # live: without a duration, as cameras write it
def test_a_whole_file_is_not_taken_for_cut_off(options, tmp_path):
    slow = drawn(tmp_path / "slow.mp4", 3, rate=Fraction(1, 60))
    check_video(remuxed(slow, tmp_path / "slow.mkv", **options), "pyav")


UNEVEN = [0, 1, 2, 10, 11, 30, 31, 32, 33, 50, 60, 61, 62, 63, 90, 91, 92, 100, 101, 102]


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_frames_at_uneven_times(name, library, tmp_path):
    """20 frames in 103 / 25 seconds."""
    path = drawn(tmp_path / name, 20, codec="libx264", rate=25, times=UNEVEN)
    options = VideoOptions(library=library, sampling_strategy="fps", fps=3)
    if (library, name) == ("cv2", "a.mkv"):
        with pytest.raises(MediaError, match=r"20 of the 103 frames .* or its frames are at uneven times"):
            video_header(path, options)
        return
    found = load_video(path, options)
    assert found.header.fps == pytest.approx(20 / (103 / 25))
    assert found.numbers == [0, 1, 3, 4, 6, 8, 9, 11, 12, 14, 16, 17]
    assert np.abs(found.frames.mean(axis=(1, 2, 3)) - (10 + 8 * np.array(found.numbers))).max() < 4


def test_a_sound_without_a_picture(library, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "sound.mp4"), "w") as written:
        stream = written.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        written.mux(stream.encode(frame))
        written.mux(stream.encode(None))
    with pytest.raises(MediaError, match="cannot be read"):
        check_video(tmp_path / "sound.mp4", library)


def test_a_missing_video_and_a_folder(library, tmp_path):
    with pytest.raises(MediaError, match="does not exist"):
        check_video(tmp_path / "none.mp4", library)
    with pytest.raises(MediaError, match="is a folder"):
        check_video(tmp_path, library)


def test_auto_takes_what_works():
    assert resolve_library("auto") == next(name for name in LIBRARIES if works(name))


def test_a_library_that_is_not_there(monkeypatch):
    monkeypatch.setattr("vlmexp.data.video_readers.works", lambda name: name == "decord")
    with pytest.raises(UserError, match=r"library=pyav does not load here: it needs av. Those that do: decord"):
        resolve_library("pyav")
    monkeypatch.setattr("vlmexp.data.video_readers.works", lambda name: False)
    with pytest.raises(UserError, match="no video library is installed here: pip install av"):
        resolve_library("auto")
