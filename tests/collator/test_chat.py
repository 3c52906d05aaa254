"""What a chat template writes before an answer, and what it does not take."""

from __future__ import annotations

import pytest

from tests.conftest import example
from tests.models.families import FAMILIES, QWEN_TEMPLATE
from tests.models.marked import marked
from vlmexp.collator.lengths import fit
from vlmexp.data.example import Example
from vlmexp.data.turns import Turn
from vlmexp.errors import UserError
from vlmexp.evaluation.stage import eval_base
from vlmexp.parts import build_collator, note_texts
from vlmexp.runs import Run

HEAD = "<|im_start|>user\n<|vision_start|><|image_pad|>*16<|vision_end|>is it red?\nAnswer briefly.<|im_end|>\n"
ROLE = "<|im_start|>assistant\n"
CLOSED = "<think>\n\n</think>\n\n"


def thinking(asked: str, finished: str) -> str:
    """A template that writes `asked` behind the role where an answer is due, and `finished` before the last answer."""
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        f"{{% if message['role'] == 'assistant' and loop.last %}}{{{{ '{finished}' }}}}{{% endif %}}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{asked}{{% endif %}}"
    ).replace("\n", "\\n")


HYBRID = "{% if not (enable_thinking is defined and enable_thinking) %}{{ '" + CLOSED + "' }}{% endif %}"


@pytest.mark.parametrize(
    ("asked", "finished", "options", "before"),
    [
        ("{{ '<think>\n' }}", CLOSED, [], CLOSED),
        ("", CLOSED, [], CLOSED),
        ("{{ '<think>\n' }}", "", [], ""),
        ("{{ '<think>' }}", "<think></think>\n", [], "<think></think>\n"),
        ("{{ '[THINK]' }}", "", [], ""),
        ("", "<|channel|>final<|message|>", [], "<|channel|>final<|message|>"),
        # Not open: what the template writes is how it asks.
        ("{{ '" + CLOSED + "' }}", "", [], CLOSED),
        (HYBRID, "", [], CLOSED),
        (HYBRID, CLOSED, ["collator.template_options={enable_thinking: true}"], CLOSED),
        # The option decides: the answers bring their thoughts themselves.
        ("{{ '<think>\n' }}", CLOSED, ["collator.answer_follows=generation_prompt"], "<think>\n"),
        ("", CLOSED, ["collator.answer_follows=generation_prompt"], ""),
    ],
)
def test_an_answer_is_trained_and_asked_behind_the_same(
    asked, finished, options, before, processor, compose, draw, monkeypatch
):
    monkeypatch.setattr(processor, "chat_template", thinking(asked, finished))
    collator = build_collator(compose(*options), processor)
    item = example("is it red?", "yes", draw("red"))
    row = marked(processor, collator([item]))
    assert row == f"{HEAD}{ROLE}{before}[yes][<|im_end|>]"
    prompt = collator.prompts([item])["input_ids"][0]
    assert collator([item])["input_ids"][0, : len(prompt)].tolist() == prompt.tolist()
    assert fit(collator, [item], 200, "error").lengths[0] == len(prompt) + 2


def test_what_a_template_writes_before_an_answer_is_said(processor, compose, draw, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", thinking("{{ '<think>\n' }}", CLOSED))
    collator = build_collator(compose(), processor)
    notes: list[str] = []
    note_texts(
        collator, fit(collator, [example("red?", "yes", draw("red"))], 200, "error").found, "train", notes.append
    )
    assert notes == [
        r"The chat template of this checkpoint ends its prompt in 'assistant\n<think>\n', and a finished turn has "
        r"'assistant\n<think>\n\n</think>\n\n' before the answer. Answers are trained and asked for behind what "
        "collator.answer_follows=finished_turn names."
    ]


def test_thoughts_in_an_earlier_turn_are_those_of_the_template(processor, compose, draw, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", thinking("{{ '<think>\n' }}", CLOSED))
    chat = ["dataset=conversations", "dataset.options.train=train.jsonl", "collator=chat"]
    collator = build_collator(compose(*chat), processor)
    turns = [
        Turn(role, (("text", text),)) for role, text in (("user", "red?"), ("assistant", "yes"), ("user", "blue?"))
    ]
    assert marked(processor, collator([Example("0", {}, ("no",), turns=tuple(turns))])) == (
        f"<|im_start|>user\nred?<|im_end|>\n{ROLE}[yes][<|im_end|>]\n<|im_start|>user\nblue?<|im_end|>\n"
        f"{ROLE}{CLOSED}[no][<|im_end|>]"
    )


REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATING = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}"
)
PLAIN = "{% for message in messages %}{{ '[' + message['content'] + ']' }}{% endfor %}"
PRINTED = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
FIRST_ONLY = "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}"
TEXT_ONLY = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
USER = "{role: user, content: [{type: image}, {text: '{question}'}]}"
ASSISTANT = "{role: assistant, content: [{text: '{answer}'}]}"
SYSTEM = f"collator.messages=[{{role: system, content: [{{text: '{{system_prompt}}'}}]}}, {USER}, {ASSISTANT}]"
TWICE = f"collator.messages=[{USER}, {{role: user, content: [{{text: more}}]}}, {ASSISTANT}]"


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        (
            REFUSING + QWEN_TEMPLATE,
            [SYSTEM],
            r"takes no system message \(System role not supported\). Set collator.system_prompt=''",
        ),
        (
            ALTERNATING + QWEN_TEMPLATE,
            [SYSTEM],
            r"takes no system message \(Roles must alternate\). Set collator.system_prompt=''",
        ),
        (ALTERNATING + QWEN_TEMPLATE, [TWICE], r"a conversation of user, user \(Roles must alternate\): change"),
        (PLAIN, [], r"as one text and not as parts, .* model.processor_kwargs.chat_template='...'"),
        (PRINTED, [], r"as one text and not as parts, which media need \(it leaves out the text of the user\)"),
        (
            FIRST_ONLY,
            ["collator.messages.0.content=[{text: a}, {text: '{question}'}, {type: image}]"],
            r"leaves out the text of the user",
        ),
        ("{{ messages[0]['content'] + 1 }}", [], r"does not take a conversation of user \("),
        ("{% if %}", [], r"does not take a conversation of user \("),
        (None, ["collator.template_options={enable_thinkin: false}"], r"enable_thinkin: .* reads no such variable"),
        (None, ["collator.answer_follows=prompt"], r"answer_follows='prompt' must be one of finished_turn, generation"),
        (None, ["collator.system_prompt='a <image>'"], r"system_prompt: 'a <image>' holds <image>, and only marks"),
        (
            None,
            ["collator.messages.0.content.1.text='<image 1> {question}'"],
            r"messages: .* holds <image 1>, and only",
        ),
    ],
)
def test_what_a_template_does_not_take_is_a_sentence(template, options, message, processor, compose, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", template or processor.chat_template)
    with pytest.raises(UserError, match=message.replace("{EMPTY}", "collator.system_prompt=''")):
        build_collator(compose(*options), processor)


def test_a_template_without_a_system_role_takes_the_others(processor, compose, draw, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", REFUSING + processor.chat_template)
    collator = build_collator(compose(SYSTEM, "collator.system_prompt=''"), processor)
    assert collator.template.prompt(example("red?", "yes", draw("red"))).text.startswith("<|im_start|>user\n<|vision")
    chat = ["dataset=conversations", "dataset.options.train=train.jsonl", "collator=chat"]
    collator = build_collator(compose(*chat), processor)
    turns = (Turn("system", (("text", "Be brief."),)), Turn("user", (("text", "red?"),)))
    with pytest.raises(UserError, match="a system turn of the data set's own conversations belongs into"):
        collator([Example("0", {}, ("no",), turns=turns)])


def test_a_template_that_shows_no_image(processor, compose, draw, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", TEXT_ONLY)
    collator = build_collator(compose(), processor)
    with pytest.raises(UserError, match="writes nothing for the image of an example"):
        collator([example("red?", "yes", draw("red"))])


def test_a_model_that_reads_both_ways_needs_a_prefix(compose):
    processor = FAMILIES["paligemma"]()[1]
    processor.chat_template = TEXT_ONLY
    with pytest.raises(UserError, match="PaliGemmaProcessor is that of a model which reads all text before its answer"):
        build_collator(compose("model=qwen2vl"), processor)


def test_what_a_template_does_not_take_is_known_before_weights_are_read(compose, tmp_path, processor, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", REFUSING + processor.chat_template)
    monkeypatch.setattr("vlmexp.evaluation.stage.check_model", lambda *_: processor)
    monkeypatch.setattr("vlmexp.evaluation.stage.load_model", pytest.fail)
    config = compose("stage=eval_base", SYSTEM)
    with pytest.raises(UserError, match="takes no system message"), Run.open(tmp_path / "run", config, []) as run:
        eval_base(config, run)
