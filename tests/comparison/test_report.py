from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.comparison.synthetic import make_run, prediction, write_evaluation
from tests.comparison.test_rows import rows_of
from vlmexp.comparison import report
from vlmexp.comparison.rows import sort_rows
from vlmexp.comparison.thumbnails import find_media, thumbnail
from vlmexp.runs import NOT_IN_KEY


def build(folder: Path, **arguments) -> str:
    given = {"metric": "vqa_accuracy", "evaluation": "finetuned", "data_dir": folder / "prepared", "max_examples": 500}
    rows = sort_rows(rows_of(folder), "vqa_accuracy")
    return report.build_report(rows, ignored=NOT_IN_KEY, seed=0, **(given | arguments))


def content_of(page: str):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_is_alone(zoo):
    page = build(zoo)
    assert "{{" not in re.sub(r'<script type="text/plain".*?</script>', "", page, flags=re.DOTALL)
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?http', page)
    assert "default-src 'none'" in page
    assert len(page) < 6_000_000


def test_it_holds_every_run_and_what_varies(zoo):
    content = content_of(build(zoo))
    assert [run["name"] for run in content["runs"]][:3] == ["older", "other", "2"]
    assert len(content["runs"]) == 12
    assert content["options"] == ["peft.r", "seed", "train.learning_rate"]
    assert content["runs"][2]["curves"]["loss"] == [[10, 20], [2.0, 1.0]]
    assert content["runs"][2]["by"]["answer_type"] == {"open": [0.8, 5], "yes/no": [1.0, 5]}
    assert content["runs"][5]["note"] == "OutOfMemoryError: 80 GiB is not enough"
    assert "packages.torch" in content["differing"]
    assert "model.id" in content["differing"]  # the older run does not say


def test_answers_are_stored_once_and_tested_against_the_best(zoo):
    content = content_of(build(zoo / "multirun"))
    best, second = content["runs"][:2]
    assert (best["name"], best["test"]) == ("2", None)
    assert second["test"] | {"low": 0, "high": 0} == {
        "n": 10, "gains": 0, "losses": 3, "p": 0.25, "difference": pytest.approx(-0.3), "low": 0, "high": 0,
    }  # fmt: skip
    assert best["baseAnswers"] == second["baseAnswers"]
    assert content["columns"][best["answers"]][9] == ["circle", 0.0]
    assert len(content["columns"]) == 4


def test_the_reference_is_a_run_like_most(zoo):
    """`other` scores more, but on other data."""
    content = content_of(build(zoo))
    tests = {run["name"]: run["test"] for run in content["runs"]}
    assert tests["2"] is None
    assert (tests["0"]["losses"], tests["other"]["n"]) == (3, 5)
    assert [run["marks"] for run in content["runs"]][:3] == [[], ["other data", "n is 5, not 10"], []]
    assert len(content["examples"]) == 10


def test_it_says_which_metrics_are_shares_and_what_judges_an_example(tmp_path):
    for number, cider in enumerate((0.95, 0.5)):
        path = make_run(tmp_path / str(number)) / "evaluation" / "finetuned_vlm_model_evaluation.json"
        found = json.loads(path.read_text())
        found["metrics"] |= {"cider": cider, "words": 0.5 + 3 * number, "own": 0.5}
        path.write_text(json.dumps(found))
    content = content_of(build(tmp_path, metric="cider"))
    assert content["shares"] == ["exact_match", "own", "vqa_accuracy"]
    assert (content["metric"], content["judge"]) == ("cider", "vqa_accuracy")


def test_examples_are_a_sample_and_say_so(zoo):
    content = content_of(build(zoo / "multirun", max_examples=4))
    assert len(content["examples"]) == len(content["columns"][0]) == 4
    assert "The examples are a random sample of 4 of 10." in content["notes"]
    again = content_of(build(zoo / "multirun", max_examples=4))
    assert again["examples"] == content["examples"]


def test_text_cannot_leave_its_script(tmp_path):
    run = make_run(tmp_path / "run")
    evil = "</script><script>alert(1)</script><!-- {{DATA}} \u2028 &amp; 漢字 🦊"
    rows = [prediction(0, True, question=evil, prediction=evil, answers=[evil], id="x" * 300)]
    write_evaluation(run, "finetuned", rows)
    page = build(tmp_path)
    assert "alert(1)</script>" not in page
    assert page.count("</script>") == 3
    assert content_of(page)["examples"][0]["question"] == evil
    assert content_of(page)["columns"][0] == [[evil, 1.0]]


def test_images_come_from_where_the_run_found_them_or_from_paths_data(tmp_path):
    folder, moved = tmp_path / "runs" / "data", tmp_path / "prepared" / "data"
    run = make_run(tmp_path / "runs" / "run", {}, [True] * 3)
    for place, number in ((folder, 0), (moved, 1)):
        (place / "media").mkdir(parents=True)
        Image.new("RGB", (640, 320), "red").save(place / "media" / f"{number}.png")
    rows = [prediction(0, True), prediction(1, True, images=["1.png"]), prediction(2, True, images=["media/gone.png"])]
    write_evaluation(run, "finetuned", rows)
    content = content_of(build(tmp_path / "runs", data_dir=tmp_path / "prepared"))
    assert sorted(content["pictures"]) == ["1.png", "media/0.png"]
    assert all(uri.startswith("data:image/webp;base64,") for uri in content["pictures"].values())
    assert content["notes"] == ["The images of 1 examples are no longer where the run found them."]


def test_media_outside_of_the_prepared_data(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert find_media(str(tmp_path / "a.png"), [tmp_path / "elsewhere"]) == tmp_path / "a.png"
    assert find_media("b.png", [tmp_path]) is None
    (tmp_path / "b.png").write_text("no image")
    assert thumbnail(tmp_path / "b.png") is None


def test_odd_numbers_do_not_break_the_page(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "loss": NaN}\n{"step": 40, "loss": Infinity, "eval_loss": "x"}\n{"loss": 3}\n')
    assert content_of(build(tmp_path))["runs"][0]["curves"]["loss"] == [[10, 20], [2.0, 1.0]]


def test_long_curves_are_thinned(tmp_path):
    make_run(tmp_path / "run", losses=[float(i) for i in range(1000)])
    steps, values = content_of(build(tmp_path))["runs"][0]["curves"]["loss"]
    assert len(steps) == len(values) == 250
    assert (steps[0], steps[1], values[1]) == (10, 50, 4.0)


def test_with_a_loss_as_metric_examples_keep_their_own(tmp_path):
    make_run(tmp_path / "run", {}, [True, False])
    content = content_of(build(tmp_path, metric="eval_loss"))
    assert content["runs"][0]["score"]["value"] == 1.0
    assert content["columns"] == [[["square", 1.0], ["circle", 0.0]]]


def test_runs_without_any_evaluation(tmp_path):
    make_run(tmp_path / "run", {}, [])
    content = content_of(build(tmp_path, metric="eval_loss"))
    assert content["runs"][0]["score"]["value"] == 1.0
    assert "examples" not in content
