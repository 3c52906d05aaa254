"""Answers of `generate()` to one question after the other: `python -m tests.benchmarks.one_by_one MODEL ROWS NEW`.

Prints a JSON object with the answers and the seconds that they took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import transformers as hf
from PIL import Image


def main(model_folder: str, rows: str, new_tokens: int) -> None:
    """Load, answer, print."""
    torch.set_num_threads(1)
    model = hf.AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32).eval()
    processor = hf.AutoProcessor.from_pretrained(model_folder)
    answers, start = [], time.perf_counter()
    for line in Path(rows).read_text().splitlines():
        row = json.loads(line)
        content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        with Image.open(Path(rows).parent / row["image"]) as image:
            inputs = processor(images=[image.convert("RGB")], text=[prompt], return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        said = ids[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(said, skip_special_tokens=True).strip())
    print(json.dumps({"seconds": time.perf_counter() - start, "answers": answers}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
