"""The tables of docs/calls.md that the tests of the rules play: what stands there is what is tested."""

import re

from tests.docs.documents import ROOT

_TABLE = r"<!-- table: {} -->\n```text\n(.*?)\n```"


def documented(name: str) -> str:
    """The table of this name, as it stands in the document."""
    text = (ROOT / "docs" / "calls.md").read_text()
    (table,) = re.findall(_TABLE.format(name), text, re.DOTALL)
    return str(table)
