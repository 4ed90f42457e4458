"""Questions to token ids: plain and chat prompts, worked examples, and the option letters' tokens after them.

What a user wrote never becomes a control token: `<|im_end|>` in a question stays ten characters of text, and
so does `<think>`, which some tokenizers add without calling it special. A prompt depends on model
and question alone: templates that print the date are shown a fixed one.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from calib_core.data.questions import Question
from calib_core.errors import ConfigError, TokenizationError
from calib_core.storage.files import sha256_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PLAIN_ENDING = "\nAnswer:"
CHAT_ENDING = "\nAnswer with the letter of the correct option only."

CLOCK = datetime(2024, 7, 26)
"""What every chat template is told that the time is, so that a model's scores are the same tomorrow."""

TEMPLATE_ARGUMENTS: dict[str, Any] = {
    "enable_thinking": False,
    "date_string": CLOCK.strftime("%d %b %Y"),
}
"""Variables of some chat templates: else a prompt would hold today's date, or open a thinking block."""

TIME_FORMATS = {
    f"%{code}": CLOCK.strftime(f"%{code}")
    for code in [*"aAbBcCdDeFgGhHIjklmMprRStTuUVwWxXyYzZ", *(f"-{letter}" for letter in "deHIjklmMSUWy")]
}
CLOCK_MACRO = (
    "{% macro strftime_now(format) %}"
    "{% for part in format.split('%%') %}{{ '' if loop.first else '%' }}{{ part"
    + "".join(f"|replace({code!r}, {text!r})" for code, text in TIME_FORMATS.items())
    + " }}{% endfor %}{% endmacro %}\n"
)
"""A chat template's way to ask for the time, told `CLOCK`; transformers' own takes the machine's alone.

It goes in front of a template that asks. Jinja drops its line's end, so the template's text stays as it is.
"""

SLOT = "calibslot{}end"
"""Stands for a message's content while the chat template is rendered, once per encoder."""


Form = Literal["plain", "chat"]


@dataclass(frozen=True, kw_only=True)
class PromptForm:
    """How a question is put to the model.

    Attributes:
        form: `plain` ends with "Answer:"; `chat` is a user's turn in the tokenizer's chat template.
        shots: worked examples before every question.
    """

    form: Form = "plain"
    shots: tuple[Question, ...] = ()


class PromptEncoder:
    """Turns questions into token ids for one tokenizer and one prompt form.

    Raises:
        ConfigError: the form is unknown, or `chat` is asked of a tokenizer without a chat template.
        TokenizationError: the chat template changes or drops what it is given.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: PromptForm) -> None:
        if form.form not in ("plain", "chat"):
            raise ConfigError(f"prompt form: {form.form!r} is not one of plain, chat")
        self.tokenizer, self.form = tokenizer, form
        controls = [token.content for token in tokenizer.added_tokens_decoder.values() if _is_markup(token)]
        self._control = re.compile(
            "|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"(?!)"
        )
        self._bos = leading_bos(tokenizer)
        self._frame, self._leads = ([""], (" ", "")) if form.form == "plain" else self._chat_frame()
        self._letters: dict[int, list[int]] = {}

    def encode(self, question: Question) -> list[int]:
        """Token ids of the prompt, up to the position whose next token is the answer's letter.

        Raises:
            TokenizationError: the question holds control markup that this tokenizer can't keep as plain text.
        """
        return self._encode(question)

    def letter_ids(self, n_options: int) -> list[int]:
        """The tokens that the letters A, B, ... are right after a prompt with `n_options` options.

        Every letter holds `encode(prompt + letter) == encode(prompt) + [id]`, all with a leading space or all
        without.

        Raises:
            TokenizationError: a letter is not one token there.
        """
        if n_options not in self._letters:
            self._letters[n_options] = self._resolve_letters(n_options)
        return self._letters[n_options]

    def describe(self) -> dict[str, Any]:
        """The prompt's protocol, JSON-able: predictions are comparable where this is equal."""
        shots = [[shot.question, list(shot.choices), shot.answer] for shot in self.form.shots]
        return {
            "form": self.form.form,
            "shots": len(shots),
            "shots_fingerprint": sha256_json(shots) if shots else None,
            "template": sha256_json([self._frame, self._ending, _block("q", ("a", "b"))]),
            "letters": self.tokenizer.convert_ids_to_tokens(self.letter_ids(2)),
            **({"clock": CLOCK.date().isoformat()} if self.form.form == "chat" else {}),
        }

    @property
    def _ending(self) -> str:
        return PLAIN_ENDING if self.form.form == "plain" else CHAT_ENDING

    def _encode(self, question: Question, letter: str = "") -> list[int]:
        content = _block(question.question, question.choices) + self._ending
        if self.form.form == "plain":
            text = "".join(
                f"{_block(shot.question, shot.choices)}{PLAIN_ENDING} {ascii_uppercase[shot.answer]}\n\n"
                for shot in self.form.shots
            )
            return self._bos + text_ids(self.tokenizer, text + content + letter)
        contents = [part for shot in self.form.shots for part in self._turns(shot)] + [content]
        frame = [*self._frame[:-1], self._frame[-1] + letter]
        if not any(self._control.search(text) for text in contents):
            # Template and contents in one piece, which is what the model's own chat tokenization does.
            return self._template_ids(_interleave(frame, contents))
        ids = self._split_ids(frame, contents)
        harmless = [self._control.sub("x", text) for text in contents]
        if self._split_ids(frame, harmless) != self._template_ids(_interleave(frame, harmless)):
            raise TokenizationError(
                f"question {question.id!r}: it, or a worked example, holds text that is a control token of "
                f"{_name(self.tokenizer)}, which this tokenizer can't keep as plain text inside its chat "
                "template; reword it, or use the plain form"
            )
        return ids

    def _turns(self, shot: Question) -> tuple[str, str]:
        return _block(shot.question, shot.choices) + CHAT_ENDING, ascii_uppercase[shot.answer]

    def _template_ids(self, text: str) -> list[int]:
        # The template has written BOS itself where there is one.
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])

    def _split_ids(self, frame: Sequence[str], contents: Sequence[str]) -> list[int]:
        """Ids where only the template's control tokens count: they cut the text, the rest of it is plain."""
        ids: list[int] = []
        plain = ""
        for index, text in enumerate(frame):
            end = 0
            for found in self._control.finditer(text):
                ids += text_ids(self.tokenizer, plain + text[end : found.start()]) + self._template_ids(
                    found.group()
                )
                plain, end = "", found.end()
            plain += text[end:] + (contents[index] if index < len(contents) else "")
        return ids + text_ids(self.tokenizer, plain)

    def _chat_frame(self) -> tuple[list[str], tuple[str, ...]]:
        """The template's texts around the contents, and what may stand before a letter, likeliest first."""
        slots = [SLOT.format(index) for index in range(2 * len(self.form.shots) + 1)]
        text = self._render(slots, generation=True)
        pieces = re.split("|".join(map(re.escape, slots)), text)
        if re.findall("|".join(map(re.escape, slots)), text) != slots:
            raise TokenizationError(
                f"the chat template of {_name(self.tokenizer)} drops, repeats or reorders messages; use the "
                "plain form"
            )
        answered = self._render([*slots, "A"], generation=False)
        follows = answered[len(text) :] if answered.startswith(text) else ""
        return pieces, (" ", "") if follows.startswith(" A") else ("", " ")

    def _render(self, contents: Sequence[str], *, generation: bool) -> str:
        messages = [
            {"role": "assistant" if index % 2 else "user", "content": text}
            for index, text in enumerate(contents)
        ]
        dice = random.getstate()
        random.seed(0)  # what a template draws (`random`, `lipsum`) is the same each time
        try:
            template = self.tokenizer.get_chat_template()
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=CLOCK_MACRO * ("strftime_now" in template) + template,
                    tokenize=False,
                    add_generation_prompt=generation,
                    **TEMPLATE_ARGUMENTS,
                )
            )
        except Exception as error:  # a template is a program: it raises what it likes
            raise ConfigError(
                f"prompt form: the chat template of {_name(self.tokenizer)} can't be used "
                f"({str(error) or type(error).__name__}); use the plain form, or a tokenizer with a chat "
                "template"
            ) from error
        finally:
            random.setstate(dice)

    def _resolve_letters(self, n_options: int) -> list[int]:
        if not 2 <= n_options <= len(ascii_uppercase):
            raise TokenizationError(f"{n_options} options: a question has 2 to 26, one letter each")
        probe = Question(id="probe", question="Which one?", choices=("this",) * n_options, answer=0)
        prompt = self._encode(probe)
        broken = ""
        for lead in self._leads:
            ids = [self._encode(probe, lead + letter) for letter in ascii_uppercase[:n_options]]
            bad = [letter for letter, row in zip(ascii_uppercase, ids, strict=False) if row[:-1] != prompt]
            letters = [row[-1] for row in ids]
            if not bad and len(set(letters)) == n_options:
                return letters
            broken = broken or f"{lead}{bad[0] if bad else 'A'}"
        raise TokenizationError(
            f"the letter {broken!r} is not a single token of its own after {self._ending.strip()!r} in "
            f"{_name(self.tokenizer)}; use another prompt form, fewer options, or another model"
        )


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a user's text: no BOS, no EOS, and control markup in it stays text."""
    plain = _without_added_tokens(tokenizer)
    if plain is not None and plain.markup.search(text):
        return list(plain.tokenizer.encode(text, add_special_tokens=False).ids)
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@dataclass(frozen=True, eq=False)
class _Plain:
    """A tokenizer that knows none of the tokens that were added without being special, and their texts."""

    tokenizer: Tokenizer
    markup: re.Pattern[str]


_PLAIN: WeakKeyDictionary[Any, _Plain | None] = WeakKeyDictionary()


def _without_added_tokens(tokenizer: PreTrainedTokenizerBase) -> _Plain | None:
    """The tokenizer for user text with such markup in it; None if there is no such markup.

    `split_special_tokens` leaves added tokens whole that aren't special.
    """
    if tokenizer not in _PLAIN:
        from tokenizers import Tokenizer  # noqa: PLC0415 (importing this module needs no tokenizer)

        added = [t for t in tokenizer.added_tokens_decoder.values() if not t.special and _is_markup(t)]
        backend = getattr(tokenizer, "backend_tokenizer", None)
        plain = None
        if added and backend is not None:
            contents = {token.content for token in added}
            state = json.loads(backend.to_str())
            kept = [token for token in state["added_tokens"] if token["content"] not in contents]
            stripped = Tokenizer.from_str(
                json.dumps({**state, "added_tokens": kept, "padding": None, "truncation": None})
            )
            stripped.encode_special_tokens = True
            plain = _Plain(stripped, re.compile("|".join(map(re.escape, contents))))
        _PLAIN[tokenizer] = plain
    return _PLAIN[tokenizer]


def _is_markup(token: Any) -> bool:
    """Whether an added token stands for more than white space, runs of which some tokenizers add as text."""
    return bool(token.special or token.content.strip())


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """BOS where the tokenizer puts one before a text by itself; an EOS that it adds behind is left out."""
    bos = tokenizer.bos_token_id
    ids = list(tokenizer("a")["input_ids"])
    return [bos] if bos is not None and ids[:1] == [bos] else []


def _block(question: str, choices: Sequence[str]) -> str:
    options = "".join(f"\n{letter}. {text}" for letter, text in zip(ascii_uppercase, choices, strict=False))
    return f"Question: {question}{options}"


def _interleave(frame: Sequence[str], contents: Sequence[str]) -> str:
    return "".join(piece + text for piece, text in zip(frame, [*contents, ""], strict=True))


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"
