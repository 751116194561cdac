"""The text of an answer, piece by piece, whose pieces together are the answer to the letter."""

from __future__ import annotations

from typing import Any

UNFINISHED = "\ufffd"  # what a decoder returns for the first bytes of a character


class TextStream:
    """Turns tokens into pieces of text.

    White space at the ends is not part of an answer, so that it is held back until more text follows. Where the tokenizer joins
    words to the punctuation behind them (`clean_up_tokenization_spaces`), the last word is held back, too.

    Args:
        tokenizer: of the backbone.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._tokens, self._sent = tokenizer, list[int](), ""
        self._joins = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))

    def add(self, token: int) -> str:
        """The next piece after a token; empty where it is held back."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True).lstrip()
        known = text.rstrip(UNFINISHED).rstrip()
        if self._joins:
            known = known.rpartition(" ")[0].rstrip()
        return self._send(known) if known.startswith(self._sent) else ""

    def rest(self, answer: str) -> str:
        """The last piece of a complete answer.

        Raises:
            ValueError: the pieces so far are not its beginning.
        """
        if not answer.startswith(self._sent):
            raise ValueError(f"the stream began with {self._sent!r}, which is not the beginning of {answer!r}")
        return self._send(answer)

    def _send(self, text: str) -> str:
        piece, self._sent = text[len(self._sent) :], text
        return piece
