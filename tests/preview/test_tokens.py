"""What is trained, and how tokens are written."""

from __future__ import annotations

from vlmexp.preview.tokens import Piece, pieces, token_kinds, token_texts

TEMPLATE_END = "<|im_end|>"


def test_a_label_makes_a_token_trained_whatever_it_is():
    kinds = token_kinds(
        ids=[7, 9, 9, 5, 0, 0],
        present=[1, 1, 1, 1, 0, 0],
        labels=[-100, -100, 9, 5, -100, 0],
        media_ids={9},
        ignore_index=-100,
    )
    assert kinds == ["masked", "media", "trained", "trained", "padding", "trained"]


def test_texts_of_a_byte_level_tokenizer_add_up(bytewise):
    text = "is it a 🦊?\n  é 漢<|im_end|> ok"
    ids = bytewise(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(bytewise, ids)
    assert len(texts) == len(ids)
    assert "".join(texts).replace("\N{REPLACEMENT CHARACTER}", "") == text
    assert TEMPLATE_END in texts
    assert texts[texts.index("🦊") - 1] == "\N{REPLACEMENT CHARACTER}"


def test_runs_of_media_and_padding_are_folded(bytewise):
    media, pad, no = (bytewise.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|endoftext|>", "no"))
    ids = [no, no, media, media, media, no, pad, pad]
    kinds = ["masked", "masked", "media", "media", "media", "trained", "padding", "padding"]
    assert pieces(bytewise, ids, kinds, {media}) == [
        Piece(no, "no", "masked"),
        Piece(no, "no", "masked"),
        Piece(media, "<|image_pad|>", "media", 3),
        Piece(no, "no", "trained"),
        Piece(pad, "<|endoftext|>", "padding", 2),
    ]
