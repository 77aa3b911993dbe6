"""On which line of a JSON text each entry of its top-level lists begins; `json` itself forgets."""

from __future__ import annotations

import json
import re

_SPACE = re.compile(r"[ \t\r\n]*")


def entry_lines(text: str) -> dict[str, list[int]]:
    """Lines of the entries of each list in the top-level object.

    Args:
        text: valid JSON.

    Returns:
        Key -> 1-based line of each entry; empty when the text is no object. Of a key that is written twice the last
        counts, as it does for `json`.
    """
    scan = json.JSONDecoder().raw_decode

    def skip(at: int) -> int:
        found = _SPACE.match(text, at)
        return at if found is None else found.end()

    lines: dict[str, list[int]] = {}
    line, counted = 1, 0
    at = skip(0)
    if text[at : at + 1] != "{":
        return {}
    at = skip(at + 1)
    while text[at] != "}":
        key, at = scan(text, at)
        at = skip(skip(at) + 1)  # the colon
        if text[at] == "[":
            own = lines[key] = []
            at = skip(at + 1)
            while text[at] != "]":
                line, counted = line + text.count("\n", counted, at), at
                own.append(line)
                _, at = scan(text, at)
                at = skip(at)
                at = skip(at + 1) if text[at] == "," else at
            at += 1
        else:
            lines.pop(key, None)
            _, at = scan(text, at)
        at = skip(at)
        at = skip(at + 1) if text[at] == "," else at
    return lines
