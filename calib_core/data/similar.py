"""Questions that are nearly the same: one may give the other's answer away, so both belong into one fold.

Two questions are alike where their loose texts are equal (`calib_core.data.texts.normalize_text`), whatever
their options; or where they have the same options, but for one at most, or the same right answer, and their
texts differ in a typo, a word more, or something put in front or behind. Other numbers in a text make another
question, and so do other words: sets made from templates stay apart.

Candidates are questions with equal options, wrong options or right answers. Where many share those (yes and
no), candidates also have rare words, a beginning or an end in common. So work and memory grow with the
number of questions, not with its square. The candidates' texts are then compared word by word with
`rapidfuzz`.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from string import ascii_uppercase
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import OSA, Levenshtein, Opcode

from calib_core.data.questions import Question
from calib_core.data.texts import loose_hash, loose_tokens, normalize_text

Keys = NDArray[np.uint64]

SMALL_GROUP = 20
"""So many questions with equal options are compared each with each; of more, those that share more."""
RUN_LIMIT = 8
"""So many questions share a key at most, for the key to tell anything."""
PAIRS_PER_QUESTION = 6
"""Bound on the comparisons among the questions of large groups, on average."""
MIXER = np.uint64(0x9E3779B97F4A7C15)
RARE_WORDS = 4
ENDS = (4, 8)
"""Numbers of words of which the beginnings and ends are compared."""

COMPARED_TOKENS = 4096
TYPO_LETTERS = 5
"""Letters that a word has at least for one that differs in a letter to be a typo, and not another word."""
LETTERS_PER_EDIT = 8
TOKENS_PER_EDIT = 8
TELLING_OPTIONS = 3
"""So many options a question has at least for equal ones to tell much: yes and no are everybody's."""
LEAST_MATCH = 4
LEAST_MATCH_OTHER_OPTIONS = 6


def near_groups(questions: Sequence[Question]) -> NDArray[np.int64]:
    """Which questions are alike, directly or by way of others.

    Args:
        questions: N questions; of those with equal loose texts the options don't matter.

    Returns:
        int64 (N,): for each question the index of the first one of its group; its own where it is alone.
    """
    groups = _Groups(len(questions))
    first: dict[bytes, int] = {}
    alone = []
    for index, question in enumerate(questions):
        same = first.setdefault(loose_hash(question.question), index)
        groups.join(same, index)
        if same == index:
            alone.append(index)
    del first

    @lru_cache(maxsize=2**15)  # candidates come in groups
    def facts(index: int) -> _Facts:
        return _facts(questions[index])

    for one, other, many in _candidates(questions, np.array(alone, dtype=np.int64)):
        if groups.find(one) != groups.find(other) and _alike(facts(one), facts(other), strict=many):
            groups.join(one, other)
    return groups.roots()


class _Facts(NamedTuple):
    """What is compared of a question."""

    options: list[str]
    answer: str
    tokens: list[str]
    words: frozenset[str]


def _facts(question: Question) -> _Facts:
    options = _options(question)
    tokens = loose_tokens(question.question)[:COMPARED_TOKENS]
    return _Facts(options, options[question.answer], tokens, frozenset(tokens))


def _alike(one: _Facts, other: _Facts, *, strict: bool) -> bool:
    """Whether two questions are nearly the same, by their options and a comparison word by word.

    With `strict` many questions have these options, so that equal ones tell little: then a word is another
    one misspelt only if it is hardly anything else.
    """
    shorter, longer = (one, other) if len(one.tokens) <= len(other.tokens) else (other, one)
    if len(shorter.words - longer.words) > _most_edits(len(shorter.tokens)):
        return False  # what most candidates end with, and quicker than a comparison in order
    same_options = _same_options(one.options, other.options)
    if not same_options and one.answer != other.answer:
        return False
    if same_options and not strict and len(one.options) >= TELLING_OPTIONS:
        return texts_alike(shorter.tokens, longer.tokens, least_match=LEAST_MATCH, misspelt=_may_be_misspelt)
    return texts_alike(
        shorter.tokens, longer.tokens, least_match=LEAST_MATCH_OTHER_OPTIONS, misspelt=_is_misspelt
    )


def _most_edits(n_tokens: int) -> int:
    return max(1, n_tokens // TOKENS_PER_EDIT)


def texts_alike(
    shorter: Sequence[str], longer: Sequence[str], *, least_match: int, misspelt: Callable[[str, str], bool]
) -> bool:
    """Whether two texts differ in typos, single words, and what stands before or behind one of them.

    Args:
        shorter: the tokens of the text that has fewer.
        longer: the other text's.
        least_match: number of tokens that both have at least, in this order.
        misspelt: whether a word is another one misspelt.

    Source: Damerau 1964, *A technique for computer detection and correction of spelling errors* (one letter
    wrong, missing, extra, or two swapped make four fifths of all misspellings).
    """
    if len(shorter) < least_match:
        return list(shorter) == list(longer)
    edits, matched = 0, 0
    for step in Levenshtein.opcodes(shorter, longer):
        gone, come = shorter[step.src_start : step.src_end], longer[step.dest_start : step.dest_end]
        if step.tag == "equal":
            matched += len(gone)
        elif step.tag == "replace":
            matched += len(gone)
            if "".join(gone) == "".join(come):
                continue  # one word in two pieces
            if len(gone) != len(come) or not all(map(misspelt, gone, come)):
                return False
            edits += len(gone)
        elif not (step.tag == "insert" and _is_outside(shorter, longer, step)):
            if not all(map(str.isalpha, (*gone, *come))):  # another number, or another calculation
                return False
            edits += len(gone) + len(come)
    return matched >= least_match and edits <= _most_edits(len(shorter))


def _is_outside(shorter: Sequence[str], longer: Sequence[str], step: Opcode) -> bool:
    """Whether what is inserted stands in front of all of a text, or behind it.

    Where it begins or ends with the same words as the text, it may be found one step inside.
    """
    begun, left = step.src_start, len(shorter) - step.src_start
    return (
        longer[step.dest_end - begun : step.dest_end] == shorter[:begun]
        or longer[step.dest_start : step.dest_start + left] == shorter[begun:]
    )


def _may_be_misspelt(one: str, other: str) -> bool:
    """Whether a word may be another one misspelt: a letter or two differ, in a long word."""
    if not (one.isalpha() and other.isalpha()):
        return False
    if len(one) == len(other) == 1:  # a word in scripts without spaces, a name ("vitamin B") in others
        return min(one, other) > "\u3000"
    most = 1 if min(len(one), len(other)) < TYPO_LETTERS else 2
    return OSA.distance(one, other, score_cutoff=most) <= most


def _is_misspelt(one: str, other: str) -> bool:
    """Whether a word is hardly anything but another one misspelt.

    Two letters are swapped, or one differs in a word of five letters or more, and it isn't the first.
    """
    if not (one.isalpha() and other.isalpha()) or OSA.distance(one, other, score_cutoff=1) > 1:
        return False
    swapped = sorted(one) == sorted(other)
    return swapped or (min(len(one), len(other)) >= TYPO_LETTERS and one[0] == other[0])


def _same_options(options: Sequence[str], others: Sequence[str]) -> bool:
    """Whether options are the same in any order, but for one at most that is misspelt."""
    rest, other_rest = sorted(set(options) - set(others)), sorted(set(others) - set(options))
    if not rest and not other_rest:
        return True
    if len(rest) != 1 or len(other_rest) != 1 or len(options) != len(others):
        return False
    most = max(1, max(len(rest[0]), len(other_rest[0])) // LETTERS_PER_EDIT)
    return OSA.distance(rest[0], other_rest[0], score_cutoff=most) <= most


def _options(question: Question) -> list[str]:
    """The options' loose texts, without the letters that some sets put in front of them."""
    choices = question.choices
    if all(
        re.match(rf"{letter}[.):]\s", text) for letter, text in zip(ascii_uppercase, choices, strict=False)
    ):
        choices = tuple(text[2:] for text in choices)
    return [_option(choice) for choice in choices]


@lru_cache(maxsize=100_000)
def _option(text: str) -> str:
    return normalize_text(text)


def _candidates(questions: Sequence[Question], indices: NDArray[np.int64]) -> Iterator[tuple[int, int, bool]]:
    """Pairs that may be alike: their options, their right answers or their wrong options are equal.

    A typo in one option leaves one of the three as it was.

    Yields:
        Two of the indices, and whether many questions share what these do.
    """
    anchors = _anchors(questions, indices)
    large: list[tuple[int, NDArray[np.int64]]] = []
    for column in range(anchors.shape[1]):
        for run in _runs(anchors[:, column]):
            if len(run) <= SMALL_GROUP:
                yield from ((*pair, False) for pair in combinations(indices[run].tolist(), 2))
            else:
                large.append((column, run))
    if not large:
        return
    members = np.unique(np.concatenate([run for _, run in large]))
    left = PAIRS_PER_QUESTION * len(members)
    for key in _word_keys([questions[index].question for index in indices[members]]):
        for column in sorted({column for column, _ in large}):
            inside = np.concatenate([run for other, run in large if other == column])
            shared = key[np.searchsorted(members, inside)]
            inside, shared = inside[shared > 0], shared[shared > 0]
            for run in _runs(anchors[inside, column] ^ shared * MIXER, longest=RUN_LIMIT):
                found = indices[inside[run]].tolist()
                left -= len(found) * (len(found) - 1) // 2
                if left < 0:
                    return
                yield from ((*pair, True) for pair in combinations(found, 2))


def _anchors(questions: Sequence[Question], indices: NDArray[np.int64]) -> Keys:
    """Hashes of each question's options, right answer and wrong options, (n, 3)."""
    anchors = np.empty((len(indices), 3), dtype=np.uint64)
    for row, index in enumerate(indices.tolist()):
        options, answer = _options(questions[index]), questions[index].answer
        wrong = options[:answer] + options[answer + 1 :]
        anchors[row] = [_hash(sorted(options)), _hash([options[answer]]), _hash(sorted(wrong))]
    return anchors


def _runs(keys: Keys, *, longest: int | None = None) -> Iterator[NDArray[np.int64]]:
    """Positions of the keys that are there more than once, and `longest` times at most, key by key."""
    if not len(keys):
        return
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    lengths = np.diff(starts)
    for place in np.flatnonzero((lengths > 1) & (lengths <= (longest or len(keys)))).tolist():
        yield order[starts[place] : starts[place + 1]]


def _word_keys(texts: Sequence[str]) -> Iterator[Keys]:
    """Keys that texts with nearly the same words share, most of them; 0 if a text has none of a kind.

    Yields:
        uint64 (n,): hashes of the beginnings and ends, of pairs of rare words, and of single ones.
    """
    words, offsets = array("I"), array("Q", [0])
    ends = np.zeros((len(texts), 2 * len(ENDS)), dtype=np.uint64)
    for row, text in enumerate(texts):
        tokens = loose_tokens(text)[:COMPARED_TOKENS]
        words.extend({crc32(token.encode(errors="replace")) for token in tokens})
        offsets.append(len(words))
        for place, count in enumerate(ENDS):
            if len(tokens) >= count:
                ends[row, 2 * place : 2 * place + 2] = [_hash(tokens[:count]), _hash(["", *tokens[-count:]])]
    yield from ends.T
    rare = _rare_words(np.frombuffer(words, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64))
    for one, other in combinations(range(RARE_WORDS), 2):
        low, high = np.minimum(rare[:, one], rare[:, other]), np.maximum(rare[:, one], rare[:, other])
        yield np.where(low > 0, low << np.uint64(32) | high, np.uint64(0))
    yield from rare.T


def _rare_words(words: NDArray[np.uint32], offsets: NDArray[np.int64]) -> Keys:
    """Each text's rarest words among those that others have too, (n, RARE_WORDS); 0 if it has fewer."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    _, place, counts = np.unique(words, return_inverse=True, return_counts=True)
    count = counts[place]
    known = np.flatnonzero(count > 1)
    order = known[np.lexsort((words[known], count[known], owner[known]))]
    begins = np.searchsorted(owner[order], np.arange(len(offsets)))
    rank = np.arange(len(order)) - begins[owner[order]]
    rare = np.zeros((len(offsets) - 1, RARE_WORDS), dtype=np.uint64)
    first = rank < RARE_WORDS
    rare[owner[order[first]], rank[first]] = words[order[first]]
    return rare


def _hash(texts: Sequence[str]) -> int:
    data = "\x1f".join(texts).encode(errors="replace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


class _Groups:
    """Disjoint sets of numbers below n."""

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n)

    def find(self, member: int) -> int:
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = int(parent[member])
        return member

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low

    def roots(self) -> NDArray[np.int64]:
        return np.array([self.find(member) for member in range(len(self._parent))], dtype=np.int64)
