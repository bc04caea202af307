"""The reasons of `bellwire_refused_total`: docs/operations.md says what each means."""

import re

from tests.docs.documents import ROOT

_TABLE = re.compile(r"\| `reason` \| what was refused \|\n.*?\n(.*?)\n\n", re.DOTALL)
_COUNTED = re.compile(
    r"(?:count_refused|refused\.labels|_refused|\.refused|counted|_ignore)\(\s*(?:\w+, \w+, )?\"([a-z-]+)\""
)


def documented() -> set[str]:
    (table,) = _TABLE.findall((ROOT / "docs" / "operations.md").read_text())
    cells = (line.split("|")[1] for line in table.splitlines())
    return {reason for cell in cells for reason in re.findall(r"`([a-z-]+)`", cell)}


def sources() -> list[str]:
    return [
        path.read_text() for folder in ("push", "broker") for path in (ROOT / folder).rglob("*.py")
    ]


def test_every_reason_that_is_counted_is_explained() -> None:
    counted = {reason for text in sources() for reason in _COUNTED.findall(text)}
    assert len(counted) > 15
    assert not counted - documented()


def test_every_reason_that_is_explained_is_counted() -> None:
    text = "\n".join(sources())
    assert not [reason for reason in documented() if f'"{reason}"' not in text]
