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
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.clips import clip, drawn
from tests.data.hostile import images as hostile
from tests.data.hostile import tables, videos
from tests.data.hostile.use import prepared
from vlmexp.data import images, regular_files, table_child, video_process
from vlmexp.data.image_files import FORMATS, MediaError, opened_image, row_size
from vlmexp.data.images import ImageOptions, image_size, load_image, picture, within
from vlmexp.data.limits import MIB, Budget, Limits, budget, set_limits
from vlmexp.data.pictures import identity
from vlmexp.data.regular_files import Unopened, content_digest, open_regular, require_stored
from vlmexp.data.tables import read_rows
from vlmexp.data.video_child import Child
from vlmexp.data.video_process import ReaderProcess
from vlmexp.data.video_readers import LIBRARIES, VideoHeader, works
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


def test_a_share_of_the_budget_grows_by_what_is_free_and_gives_all_of_it_back():
    budget = Budget()
    budget.limits = Limits(decode_memory_mib=100)
    with budget.taken(60 * MIB) as first, budget.taken(20 * MIB) as second:
        assert not second.grown(21 * MIB)
        assert second.grown(20 * MIB)
        assert not first.grown(1)
        assert (first.size, second.size) == (60 * MIB, 40 * MIB)
    with budget.taken(100 * MIB) as all_of_it:
        assert all_of_it.size == 100 * MIB


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


def test_a_file_that_is_mostly_a_hole_is_neither_hashed_nor_read(tmp_path):
    path, table = drawn(tmp_path / "a.mkv", 8), tmp_path / "train.csv"
    table.write_text("question,answer\nq,a\n")
    os.truncate(path, 2**33)
    os.truncate(table, 2**33)
    begun = time.process_time()
    with pytest.raises(MediaError, match=r"a\.mkv has 8,589,934,592 bytes, of which .* were ever written, .* again\.$"):
        check_video(path, "auto")
    assert "has 8,589,934,592 bytes, of which" in prepared(tmp_path, _row(tmp_path, path), "video")
    with pytest.raises(UserError, match=r"train\.csv has 8,589,934,592 bytes, of which"):
        prepared(tmp_path, table)
    assert time.process_time() - begun < 5  # to hash one of them takes longer
    with open(tmp_path / "b", "wb") as file:  # a hole that a file system may have made of zeros
        file.truncate(2**30)
        file.seek(2**29)
        file.write(b"x")
    with open_regular(tmp_path / "b") as file:
        require_stored(file)


def test_the_hash_of_a_file_has_an_end(monkeypatch, tmp_path):
    monkeypatch.setattr(regular_files, "_LARGE", 0)
    (tmp_path / "a").write_bytes(b"abc" * 10**6)
    expected = hashlib.sha256(b"abc" * 10**6).hexdigest()
    assert content_digest(tmp_path / "a", seconds=60) == content_digest(tmp_path / "a") == expected
    with pytest.raises(Unopened, match=r"has 3,000,000 bytes, which take longer than 0 s to read"):
        content_digest(tmp_path / "a", seconds=0)


def test_a_large_table_is_looked_at_before_it_is_hashed(monkeypatch, tmp_path):
    monkeypatch.setattr("vlmexp.data.tables._LARGE", 9)
    monkeypatch.setattr("vlmexp.data.prepare.content_digest", lambda *given: pytest.fail("hashed"))
    for name, content in {"a.jsonl": b"\xff" * 99, "a.parquet": b"PAR1" + bytes(99), "a.csv": b"a,a\n" * 9}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} cannot be read: "):
            prepared(tmp_path, tmp_path / name)


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


def test_frames_and_the_process_that_decodes_them_share_the_budget(library):
    set_limits(Limits(decode_memory_mib=256))
    frames = load_video(clip("bikes"), VideoOptions(library, num_frames=20)).frames
    assert frames.shape == (20, 272, 640, 3)
    assert (np.diff(frames.reshape(20, -1).mean(axis=1)) != 0).all()
    assert load_video(clip("bikes"), VideoOptions(library, num_frames=1)).frames.tobytes() == frames[0].tobytes()


def test_frames_of_several_sizes_are_refused_and_the_process_goes_on():
    class Changing:
        header = VideoHeader(2, 4, 2, 5.0)

        def frames(self, numbers):
            return (np.full((2, 4 + 4 * number, 3), 7, np.uint8) for number in numbers)

    requests = [{"numbers": [0, 1], "seconds": 9}, {"numbers": [0], "seconds": 9, "memory": 2**40}]
    answers = io.BytesIO()
    child = Child(io.BytesIO(b"".join(json.dumps(request).encode() + b"\n" for request in requests)), answers)
    child._reader, child._memory = Changing(), 2**40
    child.run()
    frame = b'{"shape": [2, 4, 3]}\n' + b"\7" * 24
    assert answers.getvalue() == frame + b'{"unreadable": "its frames are of several sizes, 4 x 2 and 8 x 2"}\n' + frame


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


def test_packed_tables(tmp_path):
    makers = tables.tables()
    with pytest.raises(UserError, match=r"a row has 6,0\d\d,\d{3},\d{3} bytes, more than 268,435,456"):
        prepared(tmp_path, makers["a row of 100,000 texts of 60 kB"](tmp_path))
    with pytest.raises(UserError, match=r"a row has more than 1,000,000 values"):
        prepared(tmp_path, makers["a row of 3 million nulls"](tmp_path))
    path = makers["one text of 60 MB in 500 rows"](tmp_path)
    set_limits(Limits(decode_memory_mib=96))
    with pytest.raises(UserError, match=r"need more memory than half of dataset.decode_memory_mib=96: write it anew"):
        prepared(tmp_path, path)


@pytest.mark.parametrize(
    ("limits", "said"),
    [({"_FREE": 999, "_DENSE": 0}, "999"), ({"_FREE_VALUES": 99, "_MANY": 0}, "99 values")],
)
def test_a_table_of_more_than_its_file_can_hold_is_a_bomb(limits, said, monkeypatch, tmp_path):
    monkeypatch.setattr(table_child, "limit_memory", lambda memory: 0)
    for name, value in limits.items():
        monkeypatch.setattr(table_child, name, value)
    pq.write_table(pa.table({"a": ["word " * 9] * 60, "b": [1] * 60}), tmp_path / "a.parquet", row_group_size=10)
    request, answers = {"path": str(tmp_path / "a.parquet"), "memory": 0}, io.BytesIO()
    table_child.Child(io.BytesIO(json.dumps(request).encode() + b"\n"), answers).run()
    last = json.loads(answers.getvalue()[answers.getvalue().rindex(b'{"unreadable') :])["unreadable"]
    assert f"bytes stand for more than {said}, and it is taken for a decompression bomb" in last


def test_what_values_are_as_objects():
    """A dictionary has each text once, and the objects made of it have it as often as it is said."""
    words = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 0]), pa.array(["x" * 1_000, "y"]))
    assert table_child.size(words) == (4_000, 4)
    assert table_child.size(words.slice(2)) == (2_000, 2)
    numbers = pa.array([[1, 2, 3], None, [4]], pa.list_(pa.int64()))
    assert table_child.size(numbers) == (3 * 8 + 4 * 8, 3 + 4)
    assert table_child.size(numbers.slice(1)) == (2 * 8 + 8, 2 + 1)
    nested = pa.ListArray.from_arrays(pa.array([0, 3, 4], pa.int32()), words)
    assert table_child.size(nested) == (2 * 8 + 4_000, 2 + 4)
    mapped = pa.array([[(1, 2)], [(3, 4), (5, 6)]], pa.map_(pa.int64(), pa.int64()))
    assert table_child.size(mapped)[1] == 2 + 3 * 3
    assert table_child.size(mapped.slice(0, 1))[1] == 1 + 3


def test_a_batch_is_sent_in_pieces(monkeypatch):
    monkeypatch.setattr(table_child, "_PIECE", 3_000)
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 9), pa.array(["x" * 1_000]))
    batch = pa.record_batch({"a": words, "b": pa.array(range(9))})
    found = [piece for piece, *_ in table_child.pieces(batch)]
    assert [piece.num_rows for piece in found] == [2, 2, 2, 1, 2]
    assert [row for piece in found for row in piece.to_pylist()] == batch.to_pylist()


def test_rows_that_do_not_fit_together_are_read_one_by_one(monkeypatch):
    class File:
        metadata = type("Of", (), {"num_row_groups": 2, "row_group": staticmethod(lambda number: Group)})

        def iter_batches(self, batch_size, row_groups, use_threads):
            for start in range(0, 10, batch_size):
                if row_groups == [1] and start == 8 and batch_size == 4:
                    raise MemoryError
                yield pa.record_batch(
                    {"n": [10 * row_groups[0] + start + n for n in range(min(batch_size, 10 - start))]}
                )

    class Group:
        num_rows, total_byte_size = 10, 10

    monkeypatch.setattr(table_child, "_BATCH", 4)
    batches = [batch["n"].to_pylist() for batch in table_child._batches(File())]
    assert [n for batch in batches for n in batch] == list(range(20))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 1, 1]


def test_a_parquet_file_comes_through_the_process_as_it_is(tmp_path):
    rows = [
        {"n": n, "t": f"é{n}", "l": [n, None], "o": {"a": [{"b": n / 2}]}, "d": date(2020, 1, n % 28 + 1), "b": b"\0"}
        for n in range(1_000)
    ]
    whole = pa.Table.from_pylist(rows).append_column("w", pa.array(["p", "q"] * 500).dictionary_encode())
    pq.write_table(whole, tmp_path / "a.parquet", row_group_size=300)
    assert list(read_rows(tmp_path / "a.parquet")) == whole.to_pylist()
    first = next(rows := read_rows(tmp_path / "a.parquet"))  # and one that is left in the middle
    rows.close()
    assert first == next(read_rows(tmp_path / "a.parquet"))


def test_one_row_of_many_pixels_is_scaled_without_weights_for_all_of_them(monkeypatch, tmp_path):
    values = np.repeat(np.arange(250, dtype=np.uint8), 200)[None]
    Image.fromarray(values).save(tmp_path / "a.png")
    with opened_image(tmp_path / "a.png") as image:
        assert row_size(image) == 2 * 50_000
    for most in (images._PIECE, 400):
        monkeypatch.setattr(images, "_PIECE", most)
        small = np.asarray(load_image(tmp_path / "a.png", ImageOptions(max_size=50)))[0, :, 0]
        assert np.abs(small - np.linspace(2, 247, 50)).max() <= 1
    assert len(list(images._tiles((1_000, 1), (100_000, 1)))) == 250
    assert len(list(images._tiles((1, 1_000), (1, 100_000)))) == 250


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


@pytest.mark.parametrize(("behind", "is_read"), [(MIB, True), (65 * MIB, False)])
def test_what_lies_behind_the_end_of_an_avi_is_not_looked_through(tmp_path: Path, behind: int, is_read: bool):
    path = drawn(tmp_path / "a.avi", 8)
    length = path.stat().st_size
    os.truncate(path, length + behind)  # zeros
    if is_read:
        assert video_header(path, VideoOptions()).frames == 8
        return
    with pytest.raises(MediaError, match="65 MiB lie behind the end of its avi"):
        video_header(path, VideoOptions())
    content = bytearray(path.read_bytes()[:length])
    content[4:8] = bytes(4)  # as a writer leaves it that was stopped: nobody knows where the end is
    path.write_bytes(content)
    assert video_header(path, VideoOptions()).frames == 8
