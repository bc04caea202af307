"""The table of attacks in SECURITY.md: each is played by a test that there is."""

import ast
import re

import pytest

from tests.docs.documents import ROOT

_TABLE = re.compile(r"<!-- attacks -->\n(.*?)<!-- end of attacks -->", re.DOTALL)
_ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in _TABLE.findall((ROOT / "SECURITY.md").read_text())[0].splitlines()[2:]
]
ATTACKS = [row for row in _ROWS if not row[0].startswith("**")]


def test_the_table_has_the_attacks() -> None:
    assert len(ATTACKS) > 40
    assert all(len(row) == 3 and all(row) for row in ATTACKS)


@pytest.mark.parametrize("row", ATTACKS, ids=[row[0][:60] for row in ATTACKS])
def test_each_attack_is_played_by_a_test(row: list[str]) -> None:
    tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row[2])
    assert tests, row
    for file, name in tests:
        tree = ast.parse((ROOT / file).read_text())
        found = [
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert name in found, f"{file} has no {name}"
