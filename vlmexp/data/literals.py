"""Lists and objects that a table holds as text: as JSON, as Python writes them, or as NumPy and pandas print them."""

from __future__ import annotations

import ast
import io
import itertools
import json
import tokenize
from typing import Any

_BRACKETS = {"[": "]", "{": "}", "(": ")", "a": ")"}  # a: array([...])
_VQA = {"answer", "answer_id", "answer_confidence"}  # of an annotator's answer


def parsed(text: str) -> Any:
    """The list or object that a text is the writing of; None if it is none, or if it could be read in two ways.

    >>> parsed("['red', 'dark red']"), parsed('["red"]'), parsed("['red' 'dark red']"), parsed("[redacted]")
    (['red', 'dark red'], ['red'], ['red', 'dark red'], None)
    """
    text = text.strip()
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1]:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _python(text) if any(mark in text for mark in "'\",") else None  # most often it is none
    return value if isinstance(value, list | dict) else None


def _python(text: str) -> Any:
    """What a literal of Python or a print of NumPy stands for; None if it is neither."""
    try:
        found = tokenize.generate_tokens(io.StringIO(text).readline)
        tokens = [token for token in found if token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)]
        # Python would join two texts that stand side by side; NumPy prints no commas.
        if not any(a.type == b.type == tokenize.STRING for a, b in itertools.pairwise(tokens)):
            return _value(ast.parse(text, mode="eval").body)
        if text[0] == "[" and all(token.type == tokenize.STRING for token in tokens[1:-1]):
            return [_value(ast.parse(token.string, mode="eval").body) for token in tokens[1:-1]]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        pass
    return None


def _value(node: ast.expr) -> Any:
    """The value of a literal, of `array([...], dtype=object)` and of `np.str_('red')`; raises ValueError for others."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.Call) and node.args and _is_array(node.func):
        return _value(node.args[0])
    if isinstance(node, ast.Name) and node.id == "nan":
        return None
    return ast.literal_eval(node)


def _is_array(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        return isinstance(function.value, ast.Name) and function.value.id in ("np", "numpy")
    return isinstance(function, ast.Name) and function.id == "array"


def is_answers(value: Any) -> bool:
    """Whether a parsed value can only be accepted answers: texts, or objects as VQA's and SQuAD's, and no other object.

    A list of numbers may be a box, and an object may be what a model is to write.
    """
    if isinstance(value, dict):
        return _is_squad(value) or (_is_vqa(value) and len(value) > 1)
    if not isinstance(value, list):
        return False
    texts = [item for item in value if isinstance(item, str) or (isinstance(item, dict) and _is_vqa(item))]
    numbers = [item for item in value if item is None or isinstance(item, int | float)]
    return bool(texts) and len(texts) + len(numbers) == len(value)


def _is_squad(value: dict[Any, Any]) -> bool:
    return isinstance(value.get("text"), list) and value.keys() <= {"text", "answer_start"}


def _is_vqa(value: dict[Any, Any]) -> bool:
    return "answer" in value and value.keys() <= _VQA
