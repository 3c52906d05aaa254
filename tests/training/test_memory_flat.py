"""The memory of a training, its preparation included, does not grow with the number of rows."""

from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmexp.files import read_json, read_jsonl

pytestmark = pytest.mark.slow

WORDS = "is there a red circle large small blue what color the image which shape".split()
OPTIONS = [
    "stage=train", "dataset=files", "threads=1", "dataset.splits.validation=null", "dataset.validation_fraction=0.01",
    "train.max_steps=3", "train.logging_steps=1", "train.eval_strategy=no", "export.parity_examples=0",
    "train.per_device_train_batch_size=8", "train.gradient_accumulation_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Parquet files of so many rows, of half a kilobyte each, about 100 images."""
    folder = tmp_path_factory.mktemp("rows")
    rng = random.Random(0)
    for number in range(100):
        Image.new("RGB", (64, 64), (number, 255 - number, 7 * number % 255)).save(folder / f"{number}.png")

    def write(name: str, count: int) -> None:
        columns = {
            "image": [f"{number % 100}.png" for number in range(count)],
            "question": [" ".join(rng.choices(WORDS, k=rng.randint(3, 14))) for _ in range(count)],
            "answer": [rng.choices(["yes", "no", "red", "blue"], k=10) for _ in range(count)],
            "note": ["what nobody reads " * 16] * count,
        }
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")

    for count in (5_000, 100_000):
        write(str(count), count)
    write("test", 20)
    return folder


@pytest.mark.parametrize(
    "how",
    [
        ["collator.share_images=never"],
        ["collator.share_images=auto", "train.tokens_per_batch=500"],
    ],
    ids=["by length", "shared, by tokens"],
)
def test_twenty_times_the_rows_take_no_more_memory(cli, tables, tmp_path, how):
    peak = {}
    for count in (5_000, 100_000):
        run = tmp_path / str(count)
        files = [f"dataset.options.train={tables / str(count)}.parquet", f"dataset.options.test={tables}/test.parquet"]
        done = cli(*OPTIONS, *files, *how, f"hydra.run.dir={run}", timeout=580)
        assert done.returncode == 0, done.stderr
        assert read_json(run / "run.json")["data"]["splits"]["train"]["examples"] > 0.9 * count
        peak[count] = read_jsonl(run / "metrics.jsonl")[-1]["memory_gib"]
    assert peak[100_000] < 1.05 * peak[5_000]
