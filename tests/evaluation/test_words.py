# ruff: noqa: RUF001 (letters of other scripts are what these tests are about)
"""Metrics beyond ASCII: every script has words, and what is ASCII alone scores as it always did."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import sacrebleu

from vlmexp.evaluation.bleu import corpus_bleu, tokenizers
from vlmexp.evaluation.caption_words import caption_words
from vlmexp.evaluation.cider import cider
from vlmexp.evaluation.metrics import (
    METRICS,
    anls,
    exact_match,
    relaxed_accuracy,
    rouge,
    token_f1,
    vqa_accuracy,
    vqa_accuracy_2015,
)
from vlmexp.evaluation.qa import multiple_choice_accuracy
from vlmexp.evaluation.row import Row
from vlmexp.evaluation.score import summarise
from vlmexp.evaluation.words import composed, folded, words

ASCII = [json.loads(line) for line in (Path(__file__).parent.parent / "golden" / "ascii_metrics.jsonl").open()]


def test_ascii_scores_as_the_official_rules_do():
    """200 pairs of texts; the values were found with rules that know nothing but ASCII."""
    assert len(ASCII) == 200
    for case in ASCII:
        prediction, answers = case["prediction"], case["answers"]
        found = {"vqa_accuracy": vqa_accuracy_2015(prediction, answers * 10 if len(answers) == 1 else answers)}
        for name in ("exact_match", "anls", "relaxed_accuracy", "token_f1", "multiple_choice_accuracy", "bleu"):
            found[name] = METRICS[name](prediction, answers)
        assert found | rouge(prediction, answers) == case["scores"], case
        assert caption_words(case["prediction"]) == case["caption_words"]
    predictions, answers = [case["prediction"] for case in ASCII], [case["answers"] for case in ASCII]
    assert corpus_bleu(predictions, answers) == 0.5895402975684698
    assert set(tokenizers(answers)) == {"13a"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("iPhone 红色", "iphone 红 色"),
        ("赤いスーパーカー", "赤 い ス ー パ ー カ ー"),
        ("빨간색 원이 있다.", "빨간색 원이 있다"),
        ("Красный круг, ёлка", "красный круг ёлка"),
        ("دائرة حمراء، كبيرة", "دائرة حمراء كبيرة"),
        ("हिन्दी में लाल", "हिन्दी में लाल"),
        ("שלום עולם", "שלום עולם"),
        ("Ελλάδα café ÜBER", "ελλάδα café über"),
        ("สีดำ", "สี ดำ"),
        ("\uff29\uff30 \uff11\uff12\u3000\uff76\uff9e", "ip 12 ガ"),  # full- and half-width forms
        ("\ufeffre\u200bd so\u00adft", "red soft"),  # a mark of byte order, a space of no width, a soft hyphen
        ("cafe\u0301 don\u2019t \u201cx\u201d \u2014 y\u2026", "café don t x y"),
        ("😀 no_1 5% ½", "😀 no 1 5 ½"),
        ("。、！", ""),
    ],
)
def test_the_words_of_a_script(text, found):
    assert words(text) == found.split()
    assert words(unicodedata.normalize("NFD", text)) == found.split()


def test_what_looks_alike_is_alike():
    assert composed("Ａ１％") == "A1%"
    assert (
        folded("\u201cit\u2019s\u201d \u2013 5\u00a0% \u2212 \u300c\u8d64\u300d\u3002\u2026\u061f")
        == '"it\'s" - 5 % - "赤"....?'
    )
    for text in ("plain", "1,000 ~ {x}", ""):
        assert composed(text) == folded(text) == text


ALIKE = [
    ("ＲＥＤ", "red"), ("“red”", "red"), ("红色。", "红色"), ("¿rojo?", "rojo"), ("don\u2019t", "don't"),
    ("«красный»", "красный"),
    ("cafe\u0301", "café"), ("１，０００", "1000"), ("赤い車！", "赤い車"), ("الأحمر،", "الأحمر"),
    ("한국\u200b어", "한국어"),
]  # fmt: skip


@pytest.mark.parametrize(("prediction", "answer"), ALIKE)
def test_forms_of_writing_make_no_answer_wrong(prediction, answer):
    assert exact_match(prediction, [answer]) == 1.0
    assert vqa_accuracy(prediction, [answer] * 9 + ["x"]) == 1.0
    assert token_f1(prediction, ["x", answer]) == 1.0


@pytest.mark.parametrize(
    ("prediction", "answer", "rouge_1", "f1"),
    [
        ("iPhone 红色", "iPhone 蓝色", 2 / 3, 2 / 3),
        ("빨간색", "빨간색", 1.0, 1.0),
        ("빨간색", "파란색", 0.0, 0.0),
        ("빨간색 원", "빨간색 네모", 0.5, 0.5),
        ("красный круг", "Красный квадрат.", 0.5, 0.5),
        ("दिन", "दन", 0.0, 0.0),  # the same consonants with other vowels
        ("สีแดง", "สีดำ", 2 / 6, 2 / 6),
        ("دائرة حمراء", "دائرة، زرقاء", 0.5, 0.5),
        ("红，蓝", "红 蓝", 1.0, 1.0),
    ],
)
def test_words_of_other_scripts_are_counted(prediction, answer, rouge_1, f1):
    assert rouge(prediction, [answer])["rouge1"] == pytest.approx(rouge_1, abs=1e-12)
    assert token_f1(prediction, [answer]) == pytest.approx(f1, abs=1e-12)


def test_numbers_and_edit_distances_know_other_forms():
    assert relaxed_accuracy("５０％", ["50%"]) == relaxed_accuracy("\u22125.1", ["-5"]) == 1.0
    assert relaxed_accuracy("٥٢", ["50"]) == 1.0  # digits of another script are digits
    assert anls("Cafe\u0301", ["café"]) == 1.0
    assert anls("东京都", ["东京市"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("（Ｂ）", "B", 1.0), ("B、红", "B", 1.0), ("答案是B", "B", 1.0), ("答案：C", "B", 0.0),
        ("정답은 B입니다", "B", 1.0),
        ("가) 빨강", "가", 1.0), ("나. 빨강", "가", 0.0), ("Б) красный", "Б", 1.0), ("Б) красный", "В", 0.0),
        ("Ответ: Б", "Б", 1.0), ("① 빨강", "①", 1.0), ("②", "①", 0.0), ("빨강", "① 빨강", 1.0), ("甲. 红", "甲", 1.0),
        ("红。", "B. 红", 1.0), ("红", "C. 蓝", 0.0), ("维生素C", "B. 维生素C", 1.0), ("개.", "B. 개", 1.0),
        ("а", "б", 0.0),
    ],
)  # fmt: skip
def test_choices_in_other_scripts(prediction, answer, expected):
    assert multiple_choice_accuracy(prediction, [answer]) == expected


PERFECT = {
    "vqa_accuracy": 1.0, "exact_match": 1.0, "anls": 1.0, "relaxed_accuracy": 1.0, "token_f1": 1.0, "bleu": 1.0,
    "rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0, "cider": 10.0, "coco_bleu1": 1.0, "coco_bleu2": 1.0,
    "coco_bleu3": 1.0, "coco_bleu4": 1.0, "coco_rougeL": 1.0, "gqa_accuracy": 1.0, "ocrbench_accuracy": 1.0,
}  # fmt: skip


SENTENCES = {  # right ones, and others that share no word with them
    "Chinese": (["这只猫在红色的沙发上睡觉。", "两个人在公园里骑自行车"], ["飞机停靠码头", "海洋深处很冷"]),
    "Korean": (
        ["고양이가 빨간 소파에서 자고 있다", "두 사람이 공원에서 자전거를 탄다"],
        ["비행기는 어제 밤늦게 도착했다", "바다 물결은 매우 높았다"],
    ),
    "Arabic": (
        ["القطة تنام على الأريكة الحمراء", "شخصان يركبان الدراجة في الحديقة"],
        ["طائرة كبيرة هبطت أمس", "محيط بارد عميق جدا"],
    ),
    "Japanese": (
        ["猫が赤いソファで眠っている。", "二人が公園で自転車に乗る"],
        ["飛行機は遅れました", "海洋水温は低そう"],
    ),
}


@pytest.mark.parametrize("language", SENTENCES)
@pytest.mark.parametrize("annotators", [1, 10])
def test_perfect_answers_are_perfect_in_every_script_and_wrong_ones_nothing(language, annotators):
    answers, wrong = SENTENCES[language]
    metrics = [name for name in METRICS if name in PERFECT] + ["rouge", "cider", "coco_caption"]
    rows = [Row((answer,) * annotators, str(number)) for number, answer in enumerate(answers)]
    assert summarise(answers, rows, metrics)[1]["metrics"] == pytest.approx(PERFECT)
    assert summarise(wrong, rows, metrics)[1]["metrics"] == pytest.approx(dict.fromkeys(PERFECT, 0.0), abs=1e-5)


def test_captions_in_other_scripts_have_words():
    assert caption_words("naïve café, 日本 🐱") == ["naïve", "café", "日", "本"]
    assert caption_words("हिन्दी iPhone红色， two\u2013year") == ["हिन्दी", "iphone", "红", "色", "two", "year"]
    predictions = ["一只红色的狗", "两只猫"]
    answers = [["一只红色的狗"], ["三只鸟"]]
    right, wrong = cider(predictions, answers)
    assert right == pytest.approx(10.0)
    assert wrong < 1


CHINESE = ["一只红色的狗在左边，很大。", "两只狗在跑"], [["一只红色的狗在右边，很大。"], ["两只狗在跑步", "狗在跑"]]
JAPANESE = ["赤いスーパーカーが走っている"], [["赤い車が走っている"]]
RUSSIAN = ["красный круг слева от «синего» квадрата"], [["красный круг справа от «синего» квадрата"]]


@pytest.mark.parametrize(
    ("corpus", "tokenizer", "value"),
    [(CHINESE, "zh", 0.7672943384), (JAPANESE, "char", 0.3934995962), (RUSSIAN, "intl", 0.125**0.25)],
)
def test_bleu_is_that_of_sacrebleu_with_the_script_s_tokenizer(corpus, tokenizer, value):
    predictions, answers = corpus
    streams = [[given[k] if k < len(given) else None for given in answers] for k in range(max(map(len, answers)))]
    expected = sacrebleu.corpus_bleu(predictions, streams, tokenize=tokenizer).score / 100
    assert corpus_bleu(predictions, answers) == expected
    assert expected == pytest.approx(value, abs=1e-9)
    _, summary = summarise(predictions, [Row(answers=tuple(given)) for given in answers], ["bleu"])
    assert summary["bleu_tokenizer"] == tokenizer
    assert summary["metrics"]["bleu"] == pytest.approx(expected, abs=1e-9)


def test_every_example_is_cut_as_its_script_is_written():
    answers = [["the red car"], ["红色的车"], ["12"], ["빨간 차"], ["รถสีแดง"]]
    assert tokenizers(answers) == ["13a", "zh", "13a", "intl", "char"]
    _, summary = summarise(["x"] * 5, [Row(answers=tuple(given)) for given in answers], ["bleu"])
    assert summary["bleu_tokenizer"] == "13a (2), zh (1), intl (1), char (1)"
    assert tokenizers([["12"]]) == ["13a"]
