"""What docs/architecture.md says of where a thing is, is there."""

import ast
import re
from collections.abc import Iterator

from tests.docs.documents import ROOT

TEXT = (ROOT / "docs/architecture.md").read_text()
WHERE = re.findall(
    r"^\| (?P<rule>[^|]+) \| \[(?P<shown>[^\]]+)\]\(\.\./(?P<path>[^)]+)\) \| (?P<names>`[^|]+`) \|$",
    TEXT,
    re.MULTILINE,
)
WAY = re.findall(r"^\| \d+ \| \[([^\]]+)\]\(\.\./([^)]+)\) \| [^|]+ \|$", TEXT, re.MULTILINE)


def definitions(body: list[ast.stmt], within: str = "") -> Iterator[str]:
    """What a module defines: `name`, and `Class.name` of what stands in a class."""
    for node in body:
        match node:
            case ast.ClassDef(name=name, body=inner):
                yield within + name
                yield from definitions(inner, f"{within}{name}.")
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield within + name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield within + name
            case ast.Assign(targets=targets):
                yield from (within + one.id for one in targets if isinstance(one, ast.Name))


def test_each_rule_stands_in_the_one_file_that_the_table_names() -> None:
    assert len(WHERE) >= 40
    wrong = []
    for rule, shown, path, names in WHERE:
        assert shown == path, rule
        defined = set(definitions(ast.parse((ROOT / path).read_text()).body))
        wrong += [
            f"{path}: {name}" for name in re.findall(r"`([^`]+)`", names) if name not in defined
        ]
    assert not wrong, f"the table is out of date: {', '.join(wrong)}"


def test_no_rule_stands_there_twice() -> None:
    rules = [rule for rule, *_ in WHERE]
    assert len(set(rules)) == len(rules)


def test_every_row_of_the_table_is_read_here() -> None:
    table = TEXT.partition("## Where is what")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    assert len([row for row in rows if not row.startswith("| where is")]) == len(WHERE)


def test_every_file_of_an_invites_way_is_there() -> None:
    assert len(WAY) > 20
    for shown, path in WAY:
        assert shown == path
        assert (ROOT / path).is_file(), path
