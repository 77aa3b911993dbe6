"""What each token of a tokenizer writes, in bytes: constraints are checked on text, so every segmentation of a term is
one term.

Byte-level BPE maps printable characters to bytes (GPT-2's table); SentencePiece and its descendants write a space as
`▁` and unknown bytes as `<0x0A>`. Special tokens write nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from vlm.generation.automaton import fold, is_word
from vlm.types import InputError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_TABLES: WeakKeyDictionary[Any, TokenTable] = WeakKeyDictionary()


STOPS = ".!?"

PRIME = 1_099_511_628_211
"""Multiplier of the rolling hash of a sentence's letters and digits (FNV's prime; sums wrap at 64 bits)."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenTraits:
    """(V,) each.

    Args:
        lengths: bytes.
        hashes, powers: share in the rolling hash of its sentence: hash * power + own hash.
        ends_sentence: it holds a full stop or a line break.
        may_open: it can begin a sentence: its first letter is a capital, or it has none.
        begins_in_word: its first byte is a letter or digit.
        stops_early: it writes a full stop before any letter or digit, which ends an empty sentence where none is open.
        stops_twice: it ends an empty sentence wherever it stands ("..").
    """

    lengths: np.ndarray
    hashes: np.ndarray
    powers: np.ndarray
    ends_sentence: np.ndarray
    may_open: np.ndarray
    begins_in_word: np.ndarray
    stops_early: np.ndarray
    stops_twice: np.ndarray


class TokenTable:
    """Bytes of every token.

    Args:
        pieces: bytes of token i; empty for special tokens and holes.
        tokenizer: encodes text to ids.
    """

    def __init__(self, pieces: list[bytes], tokenizer: Any) -> None:
        self.pieces = pieces
        self.tokenizer = tokenizer
        self._written: dict[bytes, list[int] | None] = {}

    @classmethod
    def of(cls, tokenizer: Any) -> TokenTable:
        """The table of a Hugging Face tokenizer, made once.

        Raises:
            InputError: the tokenizer has no fast backend, or its decoder is of a kind whose bytes are not known.
        """
        if tokenizer not in _TABLES:
            _TABLES[tokenizer] = cls(_pieces(tokenizer), tokenizer)
        return _TABLES[tokenizer]

    @cached_property
    def sentence_ends(self) -> tuple[int, ...]:
        """Tokens that hold a full stop or a line break."""
        marks = [mark.encode() for mark in (*STOPS, "\n")]
        return tuple(token for token, piece in enumerate(self.pieces) if any(mark in piece for mark in marks))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def write(self, tokens: list[int]) -> bytes:
        """Bytes of a token sequence."""
        return b"".join(self.pieces[token] for token in tokens)

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """Token of a byte string; of two that write the same, the first."""
        table: dict[bytes, int] = {}
        for token, piece in enumerate(self.pieces):
            if piece:
                table.setdefault(piece, token)
        return table

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.pieces), default=1)

    @cached_property
    def matrix(self) -> np.ndarray:
        """(V, L) int16: bytes of each token, 256 behind its end."""
        matrix = np.full((len(self.pieces), max(1, self.longest)), 256, dtype=np.int16)
        for token, piece in enumerate(self.pieces):
            matrix[token, : len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        return matrix

    @cached_property
    def traits(self) -> TokenTraits:
        """What constraints ask of every token."""
        matrix = self.matrix
        folded = np.array([fold(bytes([b]))[0] if is_word(b) else 0 for b in range(256)] + [0], dtype=np.uint64)
        hashes, powers = np.zeros(len(matrix), dtype=np.uint64), np.ones(len(matrix), dtype=np.uint64)
        with np.errstate(over="ignore"):
            for column in folded[matrix].T:
                written = column > 0
                hashes = np.where(written, hashes * np.uint64(PRIME) + column, hashes)
                powers = np.where(written, powers * np.uint64(PRIME), powers)
        letter = np.array([byte < 128 and chr(byte).isalpha() for byte in range(256)] + [False])[matrix]
        first = matrix[np.arange(len(matrix)), letter.argmax(1)]
        capital = ~letter.any(1) | ((first >= 65) & (first <= 90))
        words = np.array([is_word(byte) for byte in range(256)] + [False])
        return TokenTraits(
            lengths=(matrix < 256).sum(1),
            hashes=hashes.view(np.int64),
            powers=powers.view(np.int64),
            ends_sentence=np.asarray(np.isin(matrix, [ord(char) for char in ".!?\n"]).any(1)),
            may_open=capital | (capital.mean() < 0.01),
            begins_in_word=words[matrix[:, 0]],
            stops_early=_empty_sentence(matrix, words, False),
            stops_twice=_empty_sentence(matrix, words, True),
        )

    def greedy(self, text: bytes) -> list[int] | None:
        """Tokens that write exactly these bytes, longest first; None when no token goes on."""
        if text not in self._written:
            self._written[text] = self._greedy(text)
        return self._written[text]

    def _greedy(self, text: bytes) -> list[int] | None:
        tokens, start = [], 0
        while start < len(text):
            for end in range(min(len(text), start + self.longest), start, -1):
                token = self.by_bytes.get(text[start:end])
                if token is not None:
                    tokens.append(token)
                    start = end
                    break
            else:
                return None
        return tokens


def hash_letters(text: bytes) -> int:
    """Hash of a folded text's letters and digits, as a search makes it of a sentence's tokens."""
    value = 0
    for byte in text:
        if is_word(byte):
            value = (value * PRIME + byte) % 2**64
    return value - 2**64 if value >= 2**63 else value


def _empty_sentence(matrix: np.ndarray, words: np.ndarray, begun: bool) -> np.ndarray:
    """(V,) bool, tokens (V, L) in which a full stop ends a sentence without a letter; `begun`: one is open already."""
    inside = np.full(len(matrix), begun)
    empty = np.zeros(len(matrix), dtype=bool)
    for column in matrix.T:
        stop = np.isin(column, [ord(char) for char in STOPS])
        empty |= stop & ~inside
        inside = (inside | words[column]) & ~(stop | (column == 10))
    return empty


def _pieces(tokenizer: Any) -> list[bytes]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"tokenizer {type(tokenizer).__name__}: constraints need a fast tokenizer (one with a tokenizer.json)"
        )
    decoder = json.dumps(json.loads(backend.to_str()).get("decoder") or {})
    if '"ByteLevel"' in decoder:
        write = _byte_level()
    elif '"Metaspace"' in decoder or "\\u2581" in decoder:
        write = _sentence_piece
    else:
        raise InputError("tokenizer of an unknown kind: constraints need byte-level BPE or SentencePiece pieces")
    vocabulary = tokenizer.get_vocab()
    pieces = [b""] * (max(vocabulary.values()) + 1)
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special}
    for piece, index in vocabulary.items():
        if index not in special:
            pieces[index] = piece.encode() if index in added else write(piece)
    return pieces


def _sentence_piece(piece: str) -> bytes:
    match = _BYTE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece.replace("▁", " ").encode()


def _byte_level() -> Any:
    """GPT-2's table: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    table |= {chr(256 + position): byte for position, byte in enumerate(hidden)}

    def write(piece: str) -> bytes:
        return bytes(table[char] for char in piece) if all(char in table for char in piece) else piece.encode()

    return write
