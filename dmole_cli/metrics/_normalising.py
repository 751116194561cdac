"""The VQA challenge's normalisation of answers, as its evaluation server applies it."""

from __future__ import annotations

import re

_COUNTED = "zero one two three four five six seven eight nine ten"
NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNTED.split())}
ARTICLES = frozenset({"a", "an", "the"})

# Without colon and apostrophe, so "3:45" and "o'clock" stay whole. Comma and question mark are removed before, which also turns
# "1,000" into "1000".
PUNCTUATION = ';/[]"{}()=+\\_->@<`!'

# A period before a digit stays ("$5.00"). The server's code passes a regex flag where the number of replacements
# belongs, so it removes at most 32 periods; reproduced, so that scores are exactly the same.
SENTENCE_PERIOD = re.compile(r"\.(?!\d)")
PERIODS_REMOVED = 32

# The misspellings that the server corrects: each of these words without one of its apostrophes.
_CORRECTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd've he'd
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CORRECTED.split() for at, letter in enumerate(word) if letter == "'"
}
# The one entry whose spelling and correction are swapped in the server's table.
CONTRACTIONS["somebody'd"] = "somebodyd"


def normalise(answer: str) -> str:
    """Normalise an answer as the evaluation server does before it compares.

    Lower case; no comma, question mark, article or sentence period; number words up to ten as digits; contractions
    with their apostrophe.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ")
    words = (NUMBER_WORDS.get(word, word) for word in _without_punctuation(text).split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """Remove a punctuation mark that is at a word's edge anywhere in the text; replace one that only joins words by a space."""
    cleaned = text
    for mark in PUNCTUATION:
        at_an_edge = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if at_an_edge else " ")
    return SENTENCE_PERIOD.sub("", cleaned, count=PERIODS_REMOVED)
