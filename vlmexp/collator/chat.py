"""A conversation rendered by the processor's chat template, or a sentence that says why it is not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmexp.collator.control import TEMPLATE_ERRORS
from vlmexp.collator.said import placeholders
from vlmexp.errors import UserError, closest

Conversation = list[dict[str, Any]]
# What a user can do about a template that does not take parts.
_OTHER = "choose another checkpoint, or give a chat template that does with model.processor_kwargs.chat_template='...'"


def render_chat(
    processor: Any, conversation: Conversation, options: Mapping[str, Any], texts: Sequence[tuple[str, str]]
) -> str:
    """The text up to where the model is to speak.

    Args:
        options: variables of the template.
        texts: (role, text) of all that the conversation says, as the template must write it.

    Raises:
        UserError: the template refuses the conversation, leaves out one of its texts, or shows no media.
    """
    try:
        rendered = _render(processor, conversation, options)
    except TEMPLATE_ERRORS as error:
        raise UserError(_refusal(processor, conversation, options, " ".join(str(error).split()))) from None
    for role, text in texts:
        if text not in rendered:
            raise UserError(_refusal(processor, conversation, options, f"it leaves out the text of the {role}"))
    media = {part["type"] for message in conversation for part in message["content"]} - {"text"}
    marks = placeholders(processor)
    if media and marks.pattern and not marks.search(rendered):
        raise UserError(
            f"The chat template of this checkpoint writes nothing for the {' and the '.join(sorted(media))} of an "
            f"example: {_OTHER}."
        )
    return rendered


def render_finished(processor: Any, conversation: Conversation, options: Mapping[str, Any], answer: str) -> str:
    """The whole text of a conversation that has taken place with this answer."""
    said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    rendered = processor.apply_chat_template(
        [*conversation, said], add_generation_prompt=False, tokenize=False, **options
    )
    assert isinstance(rendered, str)
    return rendered


def check_options(processor: Any, options: Mapping[str, Any]) -> None:
    """Raise a UserError for a variable that the chat template never reads."""
    template = str(processor.chat_template)
    names = set(re.findall(r"[A-Za-z_]\w*", " ".join(re.findall(r"\{[{%](.*?)[%}]\}", template, re.DOTALL))))
    for name in options:
        if name not in names:
            raise UserError(
                f"collator.template_options.{name}: the chat template of this checkpoint reads no such variable"
                f"{closest(name, sorted(names)) or '.'}"
            )


def keeps_order(processor: Any, options: Mapping[str, Any]) -> bool:
    """Whether the template shows an image where it stands; some write all images before all texts."""
    before, behind = "\ue002", "\ue003"
    content = [{"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": behind}]
    try:
        text = _render(processor, [{"role": "user", "content": content}], options)
    except TEMPLATE_ERRORS:  # it takes no such message, and is not asked for one
        return True
    first, last = text.find(before), text.find(behind)
    shown = [match.start() for match in placeholders(processor).finditer(text) if match[0]]
    return not shown or first < shown[0] < last


def _render(processor: Any, conversation: Conversation, options: Mapping[str, Any]) -> str:
    rendered = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False, **options)
    assert isinstance(rendered, str)
    return rendered


def _refusal(processor: Any, conversation: Conversation, options: Mapping[str, Any], reason: str) -> str:
    """The sentence for a conversation that the template refuses for a reason, with the way out that there is."""
    roles = ", ".join(message["role"] for message in conversation)
    without = [message for message in conversation if message["role"] != "system"]
    if len(without) < len(conversation) and _takes(processor, without, options):
        return (
            f"The chat template of this checkpoint takes no system message ({reason}). Set collator.system_prompt='', "
            "or put its text into the user's message with collator.messages; a system turn of the data set's own "
            "conversations belongs into their first user turn."
        )
    as_text = [
        {**message, "content": "".join(part.get("text", "") for part in message["content"])} for message in conversation
    ]
    if _takes(processor, as_text, options):
        return (
            f"The chat template of this checkpoint takes the content of a message as one text and not as parts, which "
            f"media need ({reason}): {_OTHER}."
        )
    return (
        f"The chat template of this checkpoint does not take a conversation of {roles} ({reason}): change "
        f"collator.messages, {_OTHER}."
    )


def _takes(processor: Any, conversation: Conversation, options: Mapping[str, Any]) -> bool:
    try:
        rendered = _render(processor, conversation, options)
    except TEMPLATE_ERRORS:
        return False
    contents = [message["content"] for message in conversation]
    texts = [text for c in contents for text in ([c] if isinstance(c, str) else [p.get("text", "") for p in c])]
    return all(text in rendered for text in texts)
