"""Texts compared: exactly, where two rows may be one; loosely, where one may give the other's answer away.

Identity is `exact_text`: Unicode's canonical form (NFC) and white space are all that doesn't count, so mW and
MW, 2³ and 23 are different. `normalize_text` is the loose key that folds and searches for leaks use: a text
in disguise (case, punctuation, invisible marks, look-alike letters, a number in front) has the key of the
plain one, so both get the same fold. It never decides that two questions are the same question.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from functools import lru_cache

from calib_core.storage.limits import MARKS


def exact_text(text: str) -> str:
    r"""Text as two rows are the same by it: NFC, every run of white space one space, none at the ends.

    >>> exact_text("  2³\u00a0mW ")
    '2³ mW'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def normalize_text(text: str) -> str:
    r"""The loose key of a text: words and numbers alone, without what separates the words.

    Compatibility forms (NFKC), case, accents, look-alike letters of other alphabets, HTML entities
    and tags, invisible characters, punctuation, and a label in front ("Question 12:", "3)") do not count.
    Signs that make another number or another calculation of a text (minus, decimal point, %, +, <) do.

    >>> normalize_text("  12. What\u00a0IS \u201cit\u201d, ex\u00adactly? ")
    'whatisitexactly'
    >>> normalize_text("Is 3.5 - 2 > 1?") == normalize_text("Is 35 - 2 > 1?")
    False
    """
    compact = ""
    for token in loose_tokens(text):
        if compact and compact[-1].isdigit() and token[0].isdigit():
            compact += " "
        compact += token
    # A text of nothing but punctuation has no other key than itself.
    return compact or "".join(unicodedata.normalize("NFKC", text).casefold().split())


@lru_cache(maxsize=2**18)  # a set's folds are made in several passes
def loose_hash(text: str) -> bytes:
    """Stable hash of a text's loose key, 16 bytes."""
    return hashlib.sha256(normalize_text(text).encode(errors="surrogatepass")).digest()[:16]


def loose_tokens(text: str) -> list[str]:
    """Words, numbers and signs of a text, in order, without what `normalize_text` leaves out."""
    for _ in range(3):  # a text may be escaped more than once on its way
        if "&" in text:
            text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    text = text.casefold()
    if not text.isascii():
        # NFKC before NFD: compatibility forms become their plain letters, and accents come apart.
        text = unicodedata.normalize("NFKC", text).casefold()
        text = unicodedata.normalize("NFD", text).translate(_plain())
        text = unicodedata.normalize("NFKC", text)
    start = 0
    for _ in range(2):  # "Question: 3. ..." has two
        if label := _LABEL.match(text[start : start + _LABEL_CHARS]):
            start += label.end()
    if ending := _ENDING.search(text, max(start, len(text) - _LABEL_CHARS)):
        text = text[: ending.start()]
    return _TOKEN.findall(text, start)


def has_too_many_marks(text: str) -> bool:
    """Whether a text has more combining marks in a row than the limit `marks`: normalising such is slow."""
    if text.isascii():
        return False
    pattern = _marks(MARKS.value() + 1)
    return pattern.search(text) is not None


_TAG = re.compile(
    r"</?(?:p|b|i|u|br|em|strong|sub|sup|span|div|li|ul|ol|code|pre|h[1-6])\b[^<>]{0,200}>", re.I
)

_LABEL = re.compile(
    r"[\s*_#>(\[\u2022-]{0,16}"
    r"(?:(?:(?:question|problem|exercise|item|no|nr|q)[\s.:#*_]{0,4})?"
    r"(?:\d{1,6}|[ivxl]{2,5}|[a-z](?=[)\]]))[*_]{0,4}[.):\]]{1,3}(?=[\s*_])"
    r"|(?:question|q)[\s*_]{0,4}:)"
)
"""A label in front of a text: "Question:", "Q12.", "3)", "(b) ", "**7.** "."""

_LABEL_CHARS = 64

_ENDING = re.compile(r"\banswer\s{0,4}:\s{0,4}$")
"""What a prompt may have behind a question."""

_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # scripts without spaces: each character a token
    r"|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
    r"|(?<=\d)[.,:/*](?=\d)"
    r"|(?<![^\W\d_])-(?=\d)|(?<=\d )-(?= \d)"
    r"|(?<=[^\W\d_])#"
    r"|[%+=<>^|]"  # not "~", which is a space in LaTeX
    r"|[^\x00-\x7f\w\s]"
)

_LOOK_ALIKES = str.maketrans(
    # Cyrillic and Greek letters, in lower case, that are read as Latin ones, and small capitals.
    "авеікмнорстухһјѕԁԛԝցοανρικτυχϲ" + "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘꞯʀꜱᴛᴜᴠᴡʏᴢ",
    "abeikmhopctyxhjsdqwgoavpiktuxc" + "abcdefghijklmnopqrstuvwyz",
)

_IGNORED = "\u2800\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180e\u180f\u3164\uffa0"


@lru_cache(maxsize=1)
def _plain() -> dict[int, str | int | None]:
    """What becomes of characters outside ASCII: invisible ones vanish, punctuation is made plain."""
    table: dict[int, str | int | None] = dict(_LOOK_ALIKES)
    for code in (*range(0x80, 0x20000), *range(0xE0000, 0xE0080)):  # no other plane has punctuation
        category = unicodedata.category(chr(code))
        if category == "Cf":
            table[code] = None
        elif category == "Pd":
            table[code] = "-"
        elif category[0] == "P":
            table[code] = " "
    # Accents of Latin, Greek and Cyrillic letters, variation selectors, and characters without a shape.
    table.update(dict.fromkeys([*range(0x300, 0x370), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
    table.update(dict.fromkeys(map(ord, _IGNORED)))
    table[0x2212] = "-"  # the minus sign
    return table


@lru_cache(maxsize=2)
def _marks(count: int) -> re.Pattern[str]:
    """A pattern for so many combining marks in a row."""
    ranges: list[list[int]] = []
    for code in range(0x300, 0x1F000):
        if unicodedata.combining(chr(code)):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    members = "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)
    return re.compile(f"[{members}]{{{count}}}")
