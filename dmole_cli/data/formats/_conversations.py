"""Conversations in the spellings of LLaVA/ShareGPT, LLaMA-Factory, ms-swift, Qwen and OpenAI, with the places of their images.

| turns | a turn |
|---|---|
| `conversations`, `conversation`, `messages` | `from` or `role`; `value`, `content` or `text`: a text, or parts |
| `texts` | `user` and `assistant` |
| `query` and `response`, `instruction`, `input` and `output` | the last turn; `history` has pairs |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmole_cli.data import markers
from dmole_cli.data.formats._fields import Record
from dmole_cli.data.formats._image_fields import NOTHING, image_names, names_of, refuse_other_media

LISTS = ("conversations", "conversation", "messages", "texts")
PAIRS = (("query", "response"), ("instruction", "output"), ("prompt", "response"), ("prompt", "completion"))
ROLES = {
    **dict.fromkeys(("human", "user"), "question"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt"), "answer"),
    "system": "system",
}
PLAIN = {"from", "role", "value", "content", "text"}  # fields of a turn without images of its own
TEXT_PARTS, IMAGE_PARTS = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")
PATH_IN_TEXT = re.compile(r"<img>([^<>]*|<[^<>]*>)</img>")
# Placeholders of ms-swift and LLaMA-Factory for what is not read here.
OTHER_MARKERS = ("<video>", "<audio>", "<bbox>", "<ref-object>")


@dataclass
class Conversation:
    """A record's turns.

    Attributes:
        record: the record.
        system: the system text, may be empty.
        turns: (question, answer) pairs; `<image>` in a question is the place of the next image.
        images: names of the images.
    """

    record: Record
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)
    images: tuple[str, ...] = ()

    def samples(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Question with all earlier turns, answer, and images up to this answer, of each answer."""
        found, earlier = list[tuple[str, str, tuple[str, ...]]](), list[str]()
        before, _ = markers.leading(self.turns[0][0])
        marked = any(markers.IMAGE in text for text in (self.system, *(question for question, _ in self.turns)))
        for number, (question, answer) in enumerate(self.turns):
            # Images in front of the first question precede the system text, too.
            text = question if number else markers.leading(question)[1]
            earlier.append(f"User: {text}" if number else text)
            whole = markers.IMAGE * before + "\n".join([*([self.system] if self.system else []), *earlier])
            shown = self.images[: whole.count(markers.IMAGE)] if marked else self.images
            found.append((whole, answer, shown))
            if not number:
                earlier = [f"User: {text}"]
            earlier.append(f"Assistant: {answer}")
        return found


def conversation(record: Record) -> Conversation:
    """Parse a record.

    Raises:
        InvalidRecord: it has no turns, turns do not alternate, a text is empty or has another form, or its image markers are
            not as many as its images.
    """
    parser = _Parser(record)
    texts = [turn for value in _turns(record) for turn in parser.turns(value)]
    system = record.value.get("system")
    if system not in NOTHING:
        texts.insert(0, ("system", parser.text(system)))
    out = Conversation(record)
    if texts and texts[0][0] == "system":
        out.system = texts.pop(0)[1]
    out.turns = _paired(record, texts)
    out.images = parser.images([out.system, *(question for question, _ in out.turns)])
    return out


def _turns(record: Record) -> Sequence[Any]:
    """The turns as they stand in the record."""
    value = record.value
    present = [name for name in LISTS if value.get(name) not in NOTHING]
    if any(value[name] != value[present[0]] for name in present):
        record.invalid(f"it has turns in '{present[0]}' and in '{present[1]}'", "keep one of the fields")
    if present:
        turns = value[present[0]]
        if not isinstance(turns, list):
            record.invalid("the record has no conversations")
        return turns
    pair = next((pair for pair in PAIRS if pair[0] in value and pair[1] in value), None)
    if pair is None:
        record.invalid("the record has no conversations")
    return [*_history(record), {"user": _with_input(record, pair[0]), "assistant": value[pair[1]]}]


def _history(record: Record) -> list[Any]:
    pairs = record.value.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        record.invalid("'history' must be a list of pairs of question and answer")
    return [{"user": question, "assistant": answer} for question, answer in pairs]


def _with_input(record: Record, question: str) -> Any:
    """The question, with the field `input` that continues an instruction."""
    text, more = record.value[question], record.value.get("input")
    if more in NOTHING or question != "instruction":
        return text
    if not isinstance(text, str) or not isinstance(more, str):
        record.invalid("'instruction' and 'input' must be texts")
    return f"{text}\n{more}" if text.strip() else more


def _paired(record: Record, texts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(question, answer) pairs of turns (kind, text)."""
    for index, (kind, text) in enumerate(texts):
        if kind != ("question", "answer")[index % 2]:
            record.invalid("questions (human) and answers (gpt) must alternate, a question first")
        if not markers.without(text).strip():
            record.invalid(
                f"the {kind} is empty",
                "" if kind == "question" else "add an answer or remove the record",
                kind="record" if kind == "question" else "empty",
            )
        if kind == "answer" and markers.IMAGE in text:
            record.invalid(f"an answer has an image marker ({markers.IMAGE})", "a model answers with text")
    if len(texts) % 2 or not texts:
        record.invalid("the answer is empty", "add an answer or remove the record", kind="empty")
    return [(question, answer) for (_, question), (_, answer) in zip(texts[::2], texts[1::2], strict=True)]


class _Parser:
    """Parses the turns of a record, and collects the images that they name.

    Args:
        record: the record.
    """

    def __init__(self, record: Record) -> None:
        self.record, self.named, self.parts = record, list[str](), 0

    def turns(self, turn: Any) -> list[tuple[str, str]]:
        """The kind (see `ROLES`) and the text of a turn, or of a question and its answer."""
        if not isinstance(turn, dict):
            self.record.invalid("a turn must be a text of 'human' or of 'gpt'")
        if "user" in turn and "assistant" in turn:
            return [("question", self.text(turn["user"])), ("answer", self.text(turn["assistant"]))]
        role = next((turn[name] for name in ("from", "role") if turn.get(name) is not None), None)
        kind = ROLES.get(role.lower()) if isinstance(role, str) else None
        if kind is None:
            own = f", not {role!r}" if isinstance(role, str) else ""
            self.record.invalid(f"a turn must be a text of 'human' or of 'gpt'{own}")
        content = next((turn[name] for name in ("value", "content", "text") if turn.get(name) is not None), None)
        own_images: tuple[str, ...] = ()
        if not turn.keys() <= PLAIN:
            own_images = image_names(Record(self.record.path, self.record.place, turn, hint=self.record.hint))
        text = self.text(content)
        if own_images and not text.count(markers.IMAGE):
            text = markers.IMAGE * len(own_images) + text
        self.named += own_images
        return [(kind, text)]

    def text(self, content: Any) -> str:
        """The text of a turn, a marker for every image."""
        if isinstance(content, (list, Mapping)):
            content = "".join(map(self._part, content if isinstance(content, list) else [content]))
        if not isinstance(content, str):
            self.record.invalid("a turn must be a text of 'human' or of 'gpt'")
        if "<" not in content:
            return content.strip()
        if found := next((marker for marker in OTHER_MARKERS if marker in content), None):
            self.record.invalid(f"its text has '{found}', and only images are placed in a text", "remove the record")
        content = PATH_IN_TEXT.sub(self._named_in_text, content)
        try:
            return markers.with_plain_markers(content).strip()
        except ValueError as error:
            self.record.invalid(str(error))

    def _named_in_text(self, found: re.Match[str]) -> str:
        """A marker for `<img>path</img>`, the spelling of the first Qwen-VL."""
        if not markers.count(found[1]):
            self.named += names_of(self.record, "<img>", found[1].strip() or 0)
        return markers.IMAGE

    def _part(self, part: Any) -> str:
        """The text of a part, or a marker if it is an image."""
        if isinstance(part, str):
            return part
        if not isinstance(part, Mapping):
            self.record.invalid("a part of a turn must be a text or an image")
        own = Record(self.record.path, self.record.place, dict(part), hint=self.record.hint)
        refuse_other_media(own)
        kind, text = part.get("type"), part.get("text")
        if kind in (None, *TEXT_PARTS) and isinstance(text, str):
            return text
        fields = ("image", "image_url", "path", "url", "image_path")
        named = next((name for name in fields if part.get(name) not in NOTHING), None)
        if kind not in (None, *IMAGE_PARTS) or (kind is None and named is None):
            self.record.invalid(f"a part of a turn must be a text or an image, not {kind or sorted(part)!r}")
        if named is not None:
            self.named += names_of(own, named, part[named])
        elif part.get("index") not in (None, self.parts):
            self.record.invalid("the images of its turns are not in order")
        self.parts += 1
        return markers.IMAGE

    def images(self, texts: Sequence[str]) -> tuple[str, ...]:
        """All images of the record, for texts with their markers."""
        record, fields = self.record, image_names(self.record)
        same = [name.rsplit("/", 1)[-1] for name in fields] == [name.rsplit("/", 1)[-1] for name in self.named]
        if fields and self.named and not same:
            record.invalid("its turns name other images than its field", "keep one of them")
        found, marked = fields or tuple(self.named), sum(text.count(markers.IMAGE) for text in texts)
        if marked and marked != len(found):
            text = f"its texts have {marked} image marker(s) ({markers.IMAGE}), but it names {len(found)} image(s)"
            record.invalid(text, "one marker for each image, or none")
        return found
