"""Text out of tokens as they come."""

from __future__ import annotations

from typing import Any

_INCOMPLETE = "\ufffd"


class TextPieces:
    """Turns tokens into pieces of text whose sum is the text of all tokens.

    A character may span several tokens: what ends in the middle of one is held back until it is
    whole. Only the tokens since the last piece are decoded anew, with those of that piece before
    them, since some tokenizers write a token differently at the start of a text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = 0  # tokens whose text has been given out
        self._context = 0  # where decoding starts

    def add(self, token: int) -> str:
        """The text that is now certain; often one word, sometimes nothing."""
        self._tokens.append(token)
        text = self._rest()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._context, self._shown = self._shown, len(self._tokens)
        return text

    def end(self) -> str:
        """What was held back, where the tokens end in the middle of a character."""
        text = self._rest()
        self._context, self._shown = self._shown, len(self._tokens)
        return text

    def _rest(self) -> str:
        given = text_of(self._tokenizer, self._tokens[self._context : self._shown])
        return text_of(self._tokenizer, self._tokens[self._context :])[len(given) :]


def text_of(tokenizer: Any, tokens: list[int]) -> str:
    """The tokens as text, special ones left out and spaces as they are."""
    text: str = tokenizer.decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text
