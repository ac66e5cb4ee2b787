"""What people type is content, never structure: a special token written in a question must not end the turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def structure_tokens(tokenizer: Any) -> list[str]:
    """What a tokenizer reads as one token wherever it is written, the longest first; white space is no structure."""
    return sorted((token for token in tokenizer.get_added_vocab() if len(token.strip()) > 1), key=len, reverse=True)


def structure_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds every place where one of `structure_tokens` begins, overlapping ones too; group 1 is the token."""
    return re.compile(f"(?=({'|'.join(map(re.escape, structure_tokens(tokenizer))) or '(?!)'}))")


def plain_pieces(parts: Sequence[str], structure: re.Pattern[str]) -> list[str]:
    """The joined parts, cut so that no special token begins or ends in what a person said.

    parts: in turns what the template says and what a person said, the template first. The pieces are to be tokenised one by
    one. Text without special tokens stays in one piece, since its tokens may merge across the borders of the parts.
    """
    text, said, at = "".join(parts), [], 0
    for number, part in enumerate(parts):
        if number % 2:
            said.append((at, at + len(part)))
        at += len(part)
    cuts = [0]
    for found in structure.finditer(text):
        start, end = found.span(1)
        first = next((begin for begin, stop in said if begin < end and start < stop), None)
        if first is not None:
            # Within the token in any case, and never within one that the template itself says.
            cuts.append(max(start + 1, first))
    return [text[start:end] for start, end in pairwise([*sorted(set(cuts)), len(text)])]
