"""The documents as data: their fenced blocks, commands, headings and links."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OPENAPI: dict[str, Any] = json.loads((ROOT / "docs/openapi.json").read_text())
"""The HTTP interface; that it is up to date, and what a relay serves, has tests of its own."""
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_SEPARATORS = {"|", "||", "&", "&&", ";"}


@dataclass(frozen=True)
class Block:
    """A fenced block. `place` is file:line."""

    place: str
    kind: str
    text: str

    def commands(self) -> Iterator[tuple[str, str]]:
        """The command lines of a `console` or `sh` block, each with the output shown under it."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.kind == "sh":
            yield from ((line, "") for line in lines if line.strip() and line[0] != "#")
            return
        for chunk in re.split(r"^\$ ", "\n".join(lines), flags=re.MULTILINE)[1:]:
            command, _, output = chunk.partition("\n")
            yield command, output


def blocks(path: Path) -> list[Block]:
    text = path.read_text()
    name = path.relative_to(ROOT)
    return [
        Block(f"{name}:{text.count(chr(10), 0, found.start()) + 1}", found[1], found[2])
        for found in _FENCE.finditer(text)
    ]


def all_blocks(*kinds: str) -> list[Block]:
    return [block for path in DOCUMENTS for block in blocks(path) if block.kind in kinds]


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a line, without variables set before it and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in _SEPARATORS:
            while words and re.match(r"^[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                yield words
            words = []
        else:
            words.append(word)


def prose(path: Path) -> str:
    """The text without its fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "`code`", _FENCE.sub("", path.read_text()))


def links(path: Path) -> list[str]:
    return _LINK.findall(_FENCE.sub("", path.read_text()))


def anchors(path: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    heads = re.findall(r"^#{1,6} (.+)$", _FENCE.sub("", path.read_text()), re.MULTILINE)
    found: set[str] = set()
    for head in heads:
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).lower()
        base = anchor = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        number = 0
        while anchor in found:
            number += 1
            anchor = f"{base}-{number}"
        found.add(anchor)
    return found
