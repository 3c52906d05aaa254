"""What a file may cost, and what is not opened at all. `python -m tests.data.hostile` runs many more files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.clips import clip, drawn
from tests.data.hostile import images as hostile
from tests.data.hostile import tables, videos
from tests.data.hostile.use import prepared
from vlmexp.data import images, video_process
from vlmexp.data.image_files import FORMATS, MediaError, opened_image
from vlmexp.data.images import ImageOptions, image_size, load_image, picture, within
from vlmexp.data.limits import MIB, Budget, Limits, budget, set_limits
from vlmexp.data.pictures import identity
from vlmexp.data.regular_files import Unopened, content_digest, open_regular
from vlmexp.data.video_child import Child
from vlmexp.data.video_process import ReaderProcess
from vlmexp.data.video_readers import LIBRARIES, works
from vlmexp.data.videos import VideoOptions, check_video, load_video, video_header
from vlmexp.errors import UserError


@pytest.fixture(autouse=True)
def as_before():
    yield
    set_limits(Limits())


def test_the_budget_is_for_all_threads_together():
    budget, most, taken, lock = Budget(), 0, 0, threading.Lock()
    budget.limits = Limits(decode_memory_mib=100)

    def decode(size: int) -> None:
        nonlocal most, taken
        with budget.taken(size * MIB):
            with lock:
                taken += min(size, 100)
                most = max(most, taken)
            time.sleep(0.01)
            with lock:
                taken -= min(size, 100)

    threads = [threading.Thread(target=decode, args=(size,)) for size in (40, 40, 40, 90, 500, 10, 10, 60) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert taken == 0
    assert 80 <= most <= 100


def test_an_image_that_needs_more_than_the_budget_says_so(tmp_path):
    """A progressive JPEG in full colours keeps two bytes for each of its 3 x 6,000 x 6,000 samples."""
    Image.new("RGB", (6_000, 6_000)).save(tmp_path / "a.jpg", progressive=True, subsampling=0)
    set_limits(Limits(decode_memory_mib=300))
    for read in (load_image, lambda path: picture(path).__enter__()):
        with pytest.raises(
            MediaError, match=r"a\.jpg, 6,000 x 6,000 in .*, needs about \d+ MiB .* more than "
        ) as caught:
            read(tmp_path / "a.jpg")
        assert "dataset.decode_memory_mib=300: shrink it, or raise that limit" in str(caught.value)
        assert caught.value.reason == "too large"
    set_limits(Limits(decode_memory_mib=800))
    assert load_image(tmp_path / "a.jpg").size == image_size(tmp_path / "a.jpg", ImageOptions()) == (5792, 5792)
    assert image_size(tmp_path / "a.jpg") == (6_000, 6_000)


def test_a_file_may_have_so_many_bytes(tmp_path):
    path = hostile.png(tmp_path / "a.png", 8, 8, 2)
    os.truncate(path, 2**40)
    with pytest.raises(MediaError, match=r"a\.png has 1,099,511,627,776 bytes, more than dataset.max_file_gib=16: "):
        load_image(path)
    with pytest.raises(MediaError, match=r"dataset.max_file_gib="):
        check_video(path, "auto")
    assert prepared(tmp_path, _row(tmp_path, path), "image").startswith("0 kept") is False
    os.truncate(tmp_path / "train.jsonl", 2**40)
    with pytest.raises(
        UserError, match=r"has 1,099,511,627,776 bytes, more than 17,179,869,184: raise dataset.max_file_gib"
    ):
        prepared(tmp_path, tmp_path / "train.jsonl")


def _row(folder: Path, path: Path) -> Path:
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "answer": "a", "file": str(path)}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "train.jsonl"


MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(90, 61), (61, 90), (700, 1), (1, 700)])
def test_a_large_image_in_pieces_is_what_it_is_as_a_whole(mode, size, monkeypatch, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    image = Image.fromarray(values).convert("RGB")
    if mode in ("RGBA", "LA"):
        image = Image.fromarray(values).convert(mode)
    elif mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(values[..., 0].astype(kind) * 200)
    image = image if image.mode == mode else image.convert(mode)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        path = tmp_path / f"{orientation}.{'jpg' if mode == 'CMYK' else 'tif' if mode in ('I', 'F') else 'png'}"
        image.save(path, exif=exif)
        whole = load_image(path)
        expected = hashlib.sha256(f"{whole.size} ".encode() + whole.tobytes()).digest()[:16]
        with picture(path) as found:
            assert identity(found.size, found.pieces()) == expected
        with monkeypatch.context() as patch:
            patch.setattr(images, "LARGE", 500)
            patch.setattr(images, "_PIECE", 300)
            with picture(path) as found:
                assert identity(found.size, found.pieces()) == expected
            options = ImageOptions(max_pixels=1_500)
            small = load_image(path, options)
            assert small.size == image_size(path, options) == final(whole.size)
        if mode not in ("1", "P"):  # of these, pieces are made RGB first, and then scaled, as the whole is
            difference = np.abs(np.asarray(small, int) - np.asarray(whole.resize(small.size, Image.BICUBIC), int))
            assert difference.mean() < 0.6  # the two passes of a scaling round in between, and turning exchanges them
            assert difference.max() < 10


def final(size: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same shape with 1,500 pixels, rounded down."""
    scale = min(1.0, (1_500 / (size[0] * size[1])) ** 0.5)
    return int(size[0] * scale) or 1, int(size[1] * scale) or 1


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [((100, 100), 10_000, (100, 100)), ((4000, 3000), 10**6, (1154, 866)), ((1, 10**6), 1000, (1, 1000)),
     ((10**6, 2), 10, (10, 1)), ((13_000, 13_000), 2**25, (5792, 5792))],
)  # fmt: skip
def test_sizes_within_a_number_of_pixels(size, most, expected):
    assert within(size, most) == expected
    assert expected[0] * expected[1] <= most


def test_a_large_jpeg_is_decoded_smaller(monkeypatch, tmp_path):
    picture_of = Image.radial_gradient("L").resize((1600, 1200)).convert("RGB")
    picture_of.save(tmp_path / "a.jpg", quality=95)
    monkeypatch.setattr(images, "LARGE", 10_000)
    decoded = []
    monkeypatch.setattr(images.Picture, "__init__", _noting(decoded, images.Picture.__init__))
    small = load_image(tmp_path / "a.jpg", ImageOptions(max_pixels=30_000))
    assert decoded == [(200, 150)] or decoded == [(400, 300)]
    assert small.size == (200, 150)
    assert np.abs(np.asarray(small, int) - np.asarray(picture_of.resize((200, 150)), int)).mean() < 2


def _noting(sizes, init):
    def noting(self, image, *arguments):
        sizes.append(image.size)
        init(self, image, *arguments)

    return noting


@pytest.mark.parametrize("name", ["iCCP", "zTXt", "eXIf"])
def test_packed_headers_do_no_harm(name, tmp_path):
    content = {
        "iCCP": b"x\0\0" + hostile.zeros(40 * MIB), "zTXt": b"x\0\0" + hostile.zeros(40 * MIB),
        "eXIf": hostile.overlapping(MIB, 4_000),
    }[name]  # fmt: skip
    path = hostile.png(tmp_path / "a.png", 8, 8, 2, before=hostile.chunk(name.encode(), content))
    with contextlib.suppress(MediaError):
        assert load_image(path).size == (8, 8)


def test_tags_that_all_stand_for_the_same_bytes(tmp_path):
    path = hostile.jpeg_with(tmp_path, hostile.exif_segments(hostile.overlapping(60_000, 4_500)))
    with pytest.raises(MediaError, match="has tags of more bytes"):
        image_size(path)
    with pytest.raises(MediaError):
        image_size(hostile.written(tmp_path / "a.tif", hostile.overlapping(4 * MIB, 60_000)))


def test_formats_that_are_no_pixels_are_not_opened(tmp_path):
    assert not {"EPS", "WMF", "PDF", "IPTC", "FITS", "MPEG", "HDF5"} & set(FORMATS)
    makers = hostile.other_things()
    for name in ("eps", "eps as png", "eps in DOS form", "pdf", "wmf", "svg", "svg as png", "fits", "pickle as jpg"):
        (tmp_path / name).mkdir()
        with pytest.raises(MediaError, match=r"in no format that Pillow knows, or in one without pixels"):
            load_image(makers[name](tmp_path / name))
        assert not (tmp_path / name / "ran").exists()


@pytest.mark.parametrize("to", [to for to in hostile.LINKS if os.path.lexists(to)])
def test_only_stored_files_are_read(to, tmp_path):
    (tmp_path / "a.png").symlink_to(to)
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    for path in (tmp_path / "a.png", tmp_path / "b.png"):
        with pytest.raises(Unopened):
            content_digest(path)
        with pytest.raises(MediaError, match=r"is a .*and not|does not exist|cannot be looked at"):
            image_size(path)
        with pytest.raises(MediaError, match=r"is a .*and not|does not exist|cannot be looked at"):
            video_header(path, VideoOptions())


def test_a_pipe_a_socket_and_a_loop_are_no_files(tmp_path):
    makers = hostile.other_things()
    for name, words in {
        "pipe": "is a pipe",
        "socket": "is a socket",
        "folder": "is a folder",
        "link to itself": "looked at",
    }.items():
        (tmp_path / name).mkdir()
        with pytest.raises(Unopened, match=words):
            open_regular(makers[name](tmp_path / name))
    for number, name in enumerate(("pipe", "link to /proc/kmsg", "link to /dev/zero")):
        (tmp_path / str(number)).mkdir()
        path = tables.tables()[name](tmp_path / str(number))
        with pytest.raises(UserError, match=r"is a (pipe|device|file of the kernel's)"):
            prepared(tmp_path, path)


def test_a_file_that_grows_has_an_end(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 1_000)
    with open_regular(tmp_path / "a") as file, (tmp_path / "a").open("ab") as more:
        more.write(b"y" * 1_000_000)
        more.flush()
        assert io.TextIOWrapper(file).read() == "x" * 1_000
    with open_regular(tmp_path / "a") as file:
        assert len(file.read()) == 1_001_000


@pytest.fixture(params=list(LIBRARIES))
def library(request):
    if not works(request.param):
        pytest.skip(f"{request.param} does not load here")
    return request.param


def test_lists_of_files_are_no_videos(library, tmp_path):
    for name, make in videos.lists_of_files().items():
        (tmp_path / name).mkdir()
        path = make(tmp_path / name)
        with pytest.raises(MediaError, match=rf"cannot be read with {library}: "):
            check_video(path, library)


def test_a_video_that_ends_its_process_costs_a_row(library, monkeypatch, tmp_path):
    path = drawn(tmp_path / "a.mp4", 8)
    whole = ReaderProcess.open

    def ended(self, *arguments):
        whole(self, *arguments)
        os.kill(self._process.pid, signal.SIGABRT)

    monkeypatch.setattr(ReaderProcess, "open", ended)
    with pytest.raises(
        MediaError, match=rf"a.mp4 cannot be read with {library}: it is damaged in a way .* \(SIGABRT\)"
    ):
        check_video(path, library)
    said = prepared(tmp_path, _row(tmp_path, path), "video", library)
    assert said.startswith("1 kept, bad: split train, row train-1, column file: The video ")
    monkeypatch.undo()
    assert load_video(path, VideoOptions(library)).frames.shape == (8, 48, 64, 3)


def test_a_video_that_takes_too_long_is_given_up(monkeypatch, tmp_path):
    path, whole, pids = drawn(tmp_path / "a.mp4", 8), ReaderProcess.open, []

    def stopped(self, *arguments):
        whole(self, *arguments)
        os.kill(self._process.pid, signal.SIGSTOP)
        self._deadline = time.monotonic() + 0.3
        pids.append(self._process.pid)

    monkeypatch.setattr(ReaderProcess, "open", stopped)
    with pytest.raises(MediaError, match=r"a.mp4 takes longer to read with \w+ than dataset.decode_timeout_s=40: "):
        check_video(path, "auto")
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_clip_of_more_frames_than_memory_says_so():
    set_limits(Limits(decode_memory_mib=64))
    with pytest.raises(
        MediaError, match=r"250 frames of 640 x 272, which are 125 MiB, more than dataset.decode_memory_mib=64"
    ):
        load_video(clip("bikes"), VideoOptions(num_frames=250))


def test_frames_too_large_for_memory(library, tmp_path):
    set_limits(Limits(decode_memory_mib=64))
    with pytest.raises(MediaError) as caught:
        check_video(videos.large(tmp_path, 3_000, "mpeg4", "a.mp4", 3), library)
    assert "dataset.decode_memory_mib=64" in str(caught.value) or "cannot be read" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("900 levels", "1 kept, bad: split train, row train-1, column x: it is nested too deeply, more than 64 levels"),
        ("900 levels in json", "1 kept, bad: split train, row train-1, column x: it is nested too deeply"),
        ("100,000 levels", "line 2 is nested too deeply"),
        ("200,000 keys", "1 kept, bad: split train, row train-1: the row has 200,002 columns, more than 10,000"),
        ("20 new columns in each row", "the train split up to number 500 have more than 10,000 different columns"),
        ("a million columns", "its first line names 1,000,002 columns, more than 10,000"),
        ("number of 5,000 digits", "line 2 has a number that is too long"),
        ("number of 4,000 digits", "2 kept"),
        ("number of 5,000 digits as text", "1 kept"),
        ("number of 5,000 digits in csv", "2 kept"),
        ("an open quote in a short file", "unexpected end of data"),
        ("UTF-16", "not in UTF-8"),
        ("20,000 columns", "it has 20,002 columns, more than 10,000"),
        ("times beyond time", "cannot be read"),
        ("keys twice", "1 kept"),
    ],
)
def test_tables_beyond_reason(name, said, tmp_path):
    makers = tables.tables()
    try:
        found = prepared(tmp_path, makers[name](tmp_path))
    except UserError as error:
        found = str(error)
    assert said in found
    assert "\n" not in found


@pytest.mark.parametrize("size", [1, 7, 40, 2**20])
def test_json_is_read_in_pieces_as_it_is_as_a_whole(size, monkeypatch):
    from vlmexp.data import json_rows

    monkeypatch.setattr(json_rows, "_BLOCK", size)
    rows = [{"a": [1, -2.5e3, {"b": 'x]\\"é\\u00e9,{'}], "c": None}, {}, {"d": True, "e": "\\\\"}, [1], 12, "t", None]
    for text in (json.dumps(rows), json.dumps(rows, indent=3), f" \n{json.dumps(rows, ensure_ascii=False)} \n"):
        assert list(json_rows.json_rows(io.StringIO(text))) == list(enumerate(rows))
    for text in ('{"v": [1, 2], "rows": [{"a": 1}, {"a": 2}], "z": {"y": [{}]}}', '{"rows" : [ {"a": 1} ,\n{"a": 2}]}'):
        assert list(json_rows.json_rows(io.StringIO(text))) == [(0, {"a": 1}), (1, {"a": 2})]
    assert list(json_rows.json_rows(io.StringIO("[]"))) == []
    assert list(json_rows.json_rows(io.StringIO('{"a": 1, "b": []}'))) == [(0, {"a": 1, "b": []})]
    assert list(json_rows.json_rows(io.StringIO("{}"))) == [(0, {})]
    assert list(json_rows.json_rows(io.StringIO("12345"))) == [(0, 12345)]
    for text in (
        "[1,]",
        "[1 2]",
        '{"a" 1}',
        '{"a": 1,}',
        "[1",
        '{"a": 1',
        "[1] 2",
        "nul",
        "{1: 2}",
        "[,]",
        "",
        '{"a": "',
    ):
        with pytest.raises(ValueError, match=r"is no JSON"):
            list(json_rows.json_rows(io.StringIO(text)))


def test_limits_other_than_the_defaults_are_part_of_what_is_prepared(tmp_path):
    """Else a row that was too large would stay so after the limit is raised."""
    Image.new("RGB", (4_100, 4_100)).save(tmp_path / "a.jpg", progressive=True, subsampling=0)
    set_limits(Limits(decode_memory_mib=64))
    assert "bad: split train, row train-1" in prepared(tmp_path, _row(tmp_path, tmp_path / "a.jpg"), "image")
    assert budget.changed_limits() == {"decode_memory_mib": 64}
    set_limits(Limits())
    assert prepared(tmp_path, tmp_path / "train.jsonl", "image") == "2 kept"


def test_an_image_may_be_opened_by_several_at_once(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with opened_image(tmp_path / "a.png") as first, opened_image(tmp_path / "a.png") as second:
        assert first.size == second.size


@pytest.mark.skipif(not works("pyav"), reason="PyAV is not installed")
def test_a_reader_that_ended_while_it_had_nothing_to_do_is_no_broken_clip():
    video_process._end_idle()
    path = clip("bikes")
    first = video_header(path, VideoOptions(library="pyav"))
    (idle,) = video_process._idle
    idle._process.kill()
    idle._process.wait()
    assert video_header(path, VideoOptions(library="pyav")) == first
    assert len(video_process._idle) == 1


@pytest.mark.skipif(not works("pyav"), reason="PyAV is not installed")
def test_a_reader_that_waits_for_the_next_video_has_all_the_time_there_is(monkeypatch):
    monkeypatch.setattr(Child, "_limit", lambda self, memory: setattr(self, "_memory", memory))
    request = {"library": "pyav", "path": str(clip("bikes")), "memory": 10**12, "seconds": 40}
    answers = io.BytesIO()
    Child(io.BytesIO(json.dumps(request).encode() + b"\n"), answers).run()
    assert json.loads(answers.getvalue())["header"][0] == 250
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
