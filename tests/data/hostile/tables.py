"""Data files that are deep, wide, long, packed or no data. Each function writes one and returns its path."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from tests.data.hostile.images import linked, written

Maker = Callable[[Path], Path]
ROW = {"question": "q", "answer": "a"}
LINE = json.dumps(ROW).encode() + b"\n"
MIB = 2**20


def wide() -> dict:
    return {f"k{n}": n for n in range(200_000)}


def deep(depth: int) -> bytes:
    return b'{"question": "q", "answer": "a", "x": ' + b"[" * depth + b"]" * depth + b"}\n"


def lines(name: str, *content: bytes | Callable[[], Iterable[bytes]]) -> Maker:
    def make(folder: Path) -> Path:
        return written(
            folder / name, (part for each in content for part in ([each] if isinstance(each, bytes) else each()))
        )

    return make


def row(**more: object) -> bytes:
    return json.dumps(ROW | more).encode() + b"\n"


def table(folder: Path, columns: dict, notes: dict | None = None, **options) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns).replace_schema_metadata(notes), folder / "a.parquet", **options)
    return folder / "a.parquet"


def parquets() -> dict[str, Maker]:
    import pyarrow as pa

    def nested(depth: int) -> pa.Array:
        array = pa.array([1, 2])
        for _ in range(depth):
            array = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), array)
        return array

    def cut(folder: Path, change: Callable[[bytes], bytes]) -> Path:
        whole = table(folder, {"question": ["q"] * 50, "answer": ["a"] * 50}).read_bytes()
        return written(folder / "a.parquet", change(whole))

    two = {"question": ["q", "r"], "answer": ["a", "b"]}

    def large() -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["x" * 60 * MIB]))

    return {
        "a hundred million rows": lambda p: table(
            p, {"question": pa.nulls(10**8, pa.string()), "answer": pa.nulls(10**8, pa.string())}
        ),
        "one text of 60 MB in 500 rows": lambda p: table(
            p, {"question": large(), "answer": ["a"] * 500}, dictionary_pagesize_limit=2**30
        ),
        "nested": lambda p: table(p, two | {"x": nested(300)}),
        "20,000 columns": lambda p: table(p, two | {f"c{n}": [1, 2] for n in range(20_000)}),
        "maps": lambda p: table(
            p, two | {"m": pa.array([[(1, [None])], None], pa.map_(pa.int8(), pa.list_(pa.null())))}
        ),
        "times beyond time": lambda p: table(p, two | {"t": pa.array([2**62, -(2**62)], pa.timestamp("us"))}),
        "long durations": lambda p: table(p, two | {"t": pa.array([2**62, 1], pa.duration("s"))}),
        "an object with 5,000 fields": lambda p: table(
            p, two | {"o": pa.array([{f"f{n}": n for n in range(5_000)}] * 2)}
        ),
        "no footer": lambda p: cut(p, lambda whole: whole[:-9]),
        "footer of 2 GB": lambda p: cut(p, lambda whole: whole[:-8] + b"\xff\xff\xff\x7fPAR1"),
        "noise in the footer": lambda p: cut(p, lambda whole: whole[:-120] + bytes(90) + whole[-30:]),
        "noise in the pages": lambda p: cut(p, lambda whole: whole[:8] + b"\xff" * 30 + whole[38:]),
        "text": lambda p: written(p / "a.parquet", b"PAR1 is not PAR1"),
    }


def packed_parquets() -> dict[str, Maker]:
    """Files of a few bytes that stand for many, in each way that the format knows."""
    import pyarrow as pa

    def dictionary(text: bytes, rows: int) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text.decode()]))

    def lists(values: pa.Array, *ends: int) -> pa.Array:
        return pa.LargeListArray.from_arrays(pa.array([0, *ends], pa.int64()), values)

    def with_column(column: Callable[[], pa.Array], **options) -> Maker:
        def make(folder: Path) -> Path:
            values = column()
            rows = len(values)
            return table(folder, {"question": ["q"] * rows, "answer": ["a"] * rows, "x": values}, **options)

        return make

    zeros, packed = partial(np.zeros, dtype=np.int8), {"compression": "zstd", "data_page_size": 2**30}
    return {
        "one text of 15 MB in 100,000 rows": lambda p: table(
            p,
            {"question": dictionary(b"x" * 15 * MIB, 100_000), "answer": dictionary(b"a", 100_000)},
            dictionary_pagesize_limit=2**30,
        ),
        "one text of 60 MB in 500 rows, zstd": with_column(
            lambda: dictionary(b"x" * 60 * MIB, 500), dictionary_pagesize_limit=2**30, compression="zstd"
        ),
        "one text of 1.9 GB": with_column(
            lambda: pa.array([b"x" * 1_900 * MIB, b""], pa.large_binary()), use_dictionary=False, **packed
        ),
        "a page of 1 GB": with_column(
            lambda: pa.array([b"x" * 2**20] * 1_024, pa.binary()),
            use_dictionary=False,
            write_statistics=False,
            **packed,
        ),
        "a row of 300 million numbers": with_column(lambda: lists(pa.array(zeros(3 * 10**8)), 3 * 10**8), **packed),
        "rows of 900,000 numbers": with_column(
            lambda: lists(pa.array(zeros(9 * 10**7)), *range(900_000, 9 * 10**7 + 1, 900_000)), **packed
        ),
        "rows of 90,000 nulls": with_column(
            lambda: lists(pa.nulls(27 * 10**6), *range(90_000, 27 * 10**6 + 1, 90_000)), **packed
        ),
        "a row of 3 million nulls": with_column(lambda: lists(pa.nulls(3 * 10**6), 3 * 10**6), **packed),
        "a row of 200 million nulls": with_column(lambda: lists(pa.nulls(2 * 10**8), 2 * 10**8), **packed),
        "a row of 50 million empty texts": with_column(
            lambda: lists(pa.array([""]).take(pa.array(np.zeros(5 * 10**7, np.int32))), 5 * 10**7), **packed
        ),
        "a row of 100,000 texts of 60 kB": with_column(
            lambda: lists(dictionary(b"y" * 60_000, 100_000), 100_000), dictionary_pagesize_limit=2**30
        ),
        "fixed lists of 10 million": with_column(
            lambda: pa.FixedSizeListArray.from_arrays(pa.array(zeros(10**8)), 10**7), **packed
        ),
        "a map of 30 million": with_column(
            lambda: pa.MapArray.from_arrays(pa.array([0, 3 * 10**7]), pa.array(zeros(3 * 10**7)), pa.nulls(3 * 10**7))
        ),
        "30,000 groups of rows": with_column(lambda: pa.array(zeros(30_000)), row_group_size=1),
        "a note of 300 MB": lambda p: table(
            p, {"question": ["q"], "answer": ["a"]}, store_schema=False, notes={"x": "y" * 300 * MIB}
        ),
        "2,000 rows of 6,000 columns": lambda p: table(
            p, dict.fromkeys(("question", "answer"), ["a"] * 2_000) | {f"c{n}": pa.nulls(2_000) for n in range(6_000)}
        ),
        "images of 40 MB": with_column(lambda: pa.array([os.urandom(40 * MIB)] * 12), use_dictionary=False),
    } | {f"noise in the pages {n}": partial(noisy_parquet, seed=n) for n in range(6)}


def noisy_parquet(folder: Path, seed: int) -> Path:
    rng = random.Random(seed)
    words = [f"{n} {n % 7}" for n in range(3_000)]
    path = table(folder, {"question": words, "answer": words}, compression=["none", "zstd", "gzip"][seed % 3])
    content = bytearray(path.read_bytes())
    for _ in range(12):
        content[rng.randrange(4, 60 if seed < 3 else len(content) - 8)] = rng.randrange(256)
    return written(path, bytes(content))


def long_texts() -> dict[str, Maker]:
    """Files of text whose lines, names or numbers are as long as they may be, or a little longer."""
    return {
        "line of 60 million emoji": lines(
            "a.jsonl", LINE, b'{"question": "', lambda: ("\U0001f600".encode() * 2**18 for _ in range(240)), b'"}\n'
        ),
        "60 MB of escapes": lines(
            "a.jsonl", LINE, b'{"question": "', lambda: (b"\\u00e9" * 2**18 for _ in range(38)), b'"}'
        ),
        "a name of 60 MB": lines("a.jsonl", LINE, b'{"', lambda: (b"x" * MIB for _ in range(60)), b'": 1}\n'),
        "30 lines of 60 MB": lines(
            "a.jsonl",
            lambda: (b'{"question": "' + b"x" * 60 * MIB + b'", "answer": "a"}\n' for _ in range(30)),
        ),
        "300 rows of 15 MB": lines(
            "a.jsonl",
            lambda: (b'{"question": "' + b"x" * 15 * MIB + b'", "answer": "a"}\n' for _ in range(60)),
        ),
        "rows of 900,000 values": lines(
            "a.jsonl",
            lambda: (b'{"question": "q", "answer": "a", "x": [' + b"1," * 900_000 + b"1]}\n" for _ in range(12)),
        ),
        "rows of 900,000 objects": lines(
            "a.jsonl",
            lambda: (b'{"question": "q", "answer": "a", "x": [' + b"{}," * 450_000 + b"1]}\n" for _ in range(9)),
        ),
        "9,000 columns in tsv": lines(
            "a.tsv",
            b"question\tanswer",
            lambda: (b"\tc%d" % n for n in range(9_000)),
            b"\n",
            lambda: (b"q\ta" + b"\t1" * 9_000 + b"\n" for _ in range(300)),
        ),
        "a text of 60 MB in tsv": lines(
            "a.tsv", b"question\tanswer\nq\t", lambda: (b"x" * MIB for _ in range(60)), b"\n"
        ),
        "quotes in tsv": lines("a.tsv", b'question\tanswer\nq\t"', lambda: (b'""' * 2**19 for _ in range(50)), b'"\n'),
        "a number of 10 million digits": lines(
            "a.json", b'[{"question": ', lambda: (b"9" * MIB for _ in range(10)), b"}]"
        ),
        "an exponent of a billion": lines("a.jsonl", LINE, b'{"question": 1e999999999, "answer": 1}\n'),
        "one text in json": lines("a.json", b'"', lambda: (b"z" * MIB for _ in range(600)), b'"'),
        "feather": lambda p: written(p / "a.feather", b"ARROW1\0\0" + bytes(99)),
        "arrow": lambda p: written(p / "a.arrow", b"\xff\xff\xff\xff" + b"\xff\xff\xff\x7f" * 9),
        "zstd": lambda p: written(p / "a.jsonl", b"\x28\xb5\x2f\xfd" + bytes(90)),
        "gz by its name": lambda p: written(p / "a.jsonl.gz", gzip.compress(LINE)),
        "12 GB of noise's beginning": lambda p: (
            written(p / "a.jsonl", os.urandom(9)),
            os.truncate(p / "a.jsonl", 12 * 2**30),
        )[0],
        "holes between rows": holes,
    }


def holes(folder: Path) -> Path:
    with (folder / "a.csv").open("wb") as file:
        file.write(b"question,answer\n")
        for n in range(40):
            file.seek(n * 2**28)
            file.write(b"q,a\n" * 2_000)
    return folder / "a.csv"


def tables() -> dict[str, Maker]:
    return (
        long_texts()
        | packed_parquets()
        | {
            "900 levels": lines("a.jsonl", LINE, deep(900)),
            "100,000 levels": lines("a.jsonl", LINE, deep(100_000)),
            "300 levels": lines("a.jsonl", LINE * 9, deep(300)),
            "900 levels in json": lines("a.json", b"[", LINE, b",", deep(900), b"]"),
            "objects in objects": lines("a.jsonl", LINE, b'{"x":' * 400 + b"1" + b"}" * 400),
            "levels as text": lines("a.jsonl", row(answer="[" * 90_000 + "]" * 90_000)),
            "200,000 keys": lines("a.jsonl", LINE, lambda: [row(**wide())]),
            "200,000 keys inside": lines("a.jsonl", LINE, lambda: [row(x=wide())]),
            "2,000 new keys in each row": lines(
                "a.jsonl", lambda: (row(x={f"{r}-{n}": n for n in range(2_000)}) for r in range(3_000))
            ),
            "20 new columns in each row": lines(
                "a.jsonl", lambda: (row(**{f"{r}-{n}": n for n in range(20)}) for r in range(3_000))
            ),
            "300 new keys in each row": lines(
                "a.jsonl", lambda: (row(x=[{f"{r}-{n}": n for n in range(300)}]) for r in range(6_000))
            ),
            "a million columns": lines(
                "a.csv", b"question,answer", lambda: (b",c%d" % n for n in range(10**6)), b"\nq,a,1\n"
            ),
            "a million values": lines("a.csv", b"question,answer\nq,a" + b"," * 10**6 + b"\n"),
            "60 million values": lines(
                "a.csv", b"question,answer\nq,a", lambda: (b"," * MIB for _ in range(60)), b"\n"
            ),
            "an open quote": lines("a.csv", b'question,answer\nq,"a\n', lambda: (b"q,a\n" * 2**18 for _ in range(300))),
            "an open quote in a short file": lines("a.csv", b'question,answer\nq,"a\n', b"q,a\n" * 200_000),
            "line of 1.2 GB": lines(
                "a.jsonl", LINE, b'{"question": "', lambda: (b"x" * MIB for _ in range(1_200)), b'", "answer": "a"}\n'
            ),
            "line of 60 MB": lines(
                "a.jsonl", LINE, b'{"question": "', lambda: (b"x" * MIB for _ in range(60)), b'", "answer": "a"}\n'
            ),
            "line of 1.2 GB in csv": lines("a.csv", b"question,answer\n", lambda: (b"x" * MIB for _ in range(1_200))),
            "line of 1.2 GB in json": lines("a.json", b'[{"question": "', lambda: (b"x" * MIB for _ in range(1_200))),
            "line of 1.2 GB of Chinese": lines("a.jsonl", lambda: ("鑫".encode() * 2**18 for _ in range(1_500))),
            "endless list": lines("a.json", lambda: (b"[" * MIB for _ in range(600))),
            "60 MB of empty lists": lines("a.jsonl", b'{"x": [', lambda: (b"[]," * MIB for _ in range(20)), b"[]]}\n"),
            "60 MB of empty lists in json": lines(
                "a.json", b'[{"x": [', lambda: (b"[]," * MIB for _ in range(20)), b"[]]}]"
            ),
            "60 MB of objects": lines("a.json", b'{"a": {"x": [', lambda: (b"{}," * MIB for _ in range(20)), b"{}]}}"),
            "600 MB of spaces": lines("a.json", lambda: (b" " * MIB for _ in range(600)), b"[" + LINE + b"]"),
            "two million rows in json": lines(
                "a.json", b"[", lambda: (b",".join([LINE] * 1_000) + b"," for _ in range(300)), LINE, b"]"
            ),
            "no end of a text": lines("a.json", b'{"a": "', lambda: (b"y" * MIB for _ in range(600))),
            "zeros": lines("a.jsonl", lambda: (bytes(MIB) for _ in range(300))),
            "zeros in csv": lines("a.csv", b"question,answer\nq,a\0\n"),
            "UTF-16": lambda p: written(p / "a.jsonl", LINE.decode().encode("utf-16")),
            "UTF-16 in csv": lambda p: written(p / "a.csv", "question,answer\nq,a\n".encode("utf-16")),
            "no UTF-8": lines("a.jsonl", LINE * 9_000, b'{"question": "\xff\xfe", "answer": "a"}\n'),
            "surrogates": lines("a.jsonl", LINE, b'{"question": "\\ud800", "answer": "a"}\n'),
            "number of 5,000 digits": lines("a.jsonl", LINE, b'{"question": "q", "answer": ' + b"9" * 5_000 + b"}\n"),
            "number of 5,000 digits as text": lines("a.jsonl", row(answer="9" * 5_000, choices=["a"])),
            "number of 4,000 digits": lines("a.jsonl", LINE, b'{"question": "q", "answer": ' + b"9" * 4_000 + b"}\n"),
            "number of 5,000 digits in csv": lines("a.csv", b"question,answer\nq," + b"9" * 5_000 + b"\nq,1e+400\n"),
            "numbers that are none": lines(
                "a.jsonl",
                LINE,
                b'{"question": NaN, "answer": Infinity, "x": -Infinity}\n'
                b'{"question": 1e999, "answer": 1, "x": 1e-999}\n',
            ),
            "keys twice": lines("a.jsonl", b'{"question": "q", "question": "r", "answer": "a"}\n'),
            "empty keys": lines("a.jsonl", row(**{"": 1, " ": 2, "\0": 3, "a.b": 4})),
            "nothing but ends of lines": lines("a.jsonl", lambda: (b"\n" * MIB for _ in range(50))),
            "other ends of lines": lines("a.jsonl", LINE.replace(b"\n", b"\r") * 3),
            "answers in lists in lists": lines("a.jsonl", row(answer=[[["a"]]]), row(answer=[["a"] * 400_000])),
            "link to /dev/zero": lambda p: linked(p, "/dev/zero").rename(p / "a.jsonl"),
            "link to /proc/kmsg": lambda p: linked(p, "/proc/kmsg").rename(p / "a.jsonl"),
            "link to /proc/self/mem": lambda p: linked(p, "/proc/self/mem").rename(p / "a.csv"),
            "pipe": lambda p: (os.mkfifo(p / "a.jsonl"), p / "a.jsonl")[1],
            "folder": lambda p: ((p / "a.jsonl").mkdir(), p / "a.jsonl")[1],
            "gz": lambda p: written(p / "a.jsonl", b"\x1f\x8b\x08" + bytes(90)),
            "sparse terabyte": lambda p: (
                written(p / "a.csv", b"question,answer\nq,a\n"),
                os.truncate(p / "a.csv", 2**40),
            )[0],
            **parquets(),
        }
    )
