"""What the code knows itself stands in the documents as the code says it."""

import re
from typing import get_args

import pytest

from bellwire.signaling.calls.calls import EndReason
from bellwire.signaling.calls.events import CallEvent
from bellwire.signaling.calls.rules import Move
from bellwire.signaling.errors import WhyRefused
from docs.generate import FILES, PARTS, generated_files, with_parts
from tests.docs.documents import DOCUMENTS, ROOT
from tests.test_imports import MAY_IMPORT


def test_script_docs_would_change_nothing() -> None:
    stale = [
        str(path.relative_to(ROOT))
        for path, text in generated_files().items()
        if not path.exists() or path.read_text() != text
    ]
    assert not stale, f"run script/docs: {', '.join(stale)} would change"


@pytest.mark.parametrize("part", PARTS)
def test_every_generated_part_stands_in_a_document(part: str) -> None:
    assert any(f"<!-- generated: {part} -->" in path.read_text() for path in DOCUMENTS)


def test_every_marker_is_closed_and_known() -> None:
    for path in DOCUMENTS:
        text = path.read_text()
        markers = re.findall(r"^<!-- (generated: .*|end) -->$", text, re.MULTILINE)
        assert markers[1::2] == ["end"] * (len(markers) // 2), path.name
        assert len(markers) % 2 == 0, path.name
        assert {name.removeprefix("generated: ") for name in markers[::2]} <= PARTS.keys()


def test_stale_part_is_made_anew_and_the_rest_is_kept() -> None:
    fresh = with_parts("a\n<!-- generated: rights -->\nold\n<!-- end -->\nb\n")
    assert fresh == f"a\n<!-- generated: rights -->\n{PARTS['rights']()}<!-- end -->\nb\n"
    assert "old" not in fresh
    assert with_parts(fresh) == fresh


def test_command_line_and_openapi_are_generated_whole() -> None:
    assert {ROOT / name for name in FILES} == {
        ROOT / name for name in ("docs/cli.md", "docs/openapi.json", "docs/agent.schema.json")
    }


def test_tables_of_the_calls_page_have_every_operation_and_every_event() -> None:
    text = (ROOT / "docs/calls.md").read_text()
    head = "| `reason` | code | why |\n"
    reasons = text.partition(head)[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)`", reasons, re.MULTILINE)) == {*WhyRefused}
    ends_head = "| `end_reason` | what it means |\n"
    ends = text.partition(ends_head)[2].partition("\n\n")[0]
    ended = {
        name for row in ends.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])
    }
    assert ended == {*EndReason} - {EndReason.UNKNOWN}
    text = text.replace(head + reasons, "").replace(ends_head + ends, "")
    rows = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)
    operations = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    by_the_relay = {Move.NOT_RECEIVED, Move.TIMEOUT}
    assert operations == set(Move) - by_the_relay | {"feedback", "room"}
    events = {name for row in rows for name in re.findall(r"^\[([\w.]+)\]", row)}
    assert events == {kind.model_fields["event"].default for kind in get_args(CallEvent)}


def test_folder_table_of_the_architecture_is_what_the_imports_are_checked_against() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)/` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    assert {
        folder: frozenset(re.findall(r"`(\w+)`", allowed)) for folder, allowed in rows
    } == MAY_IMPORT
    assert [allowed for _, allowed in rows if "`" not in allowed] == ["nothing"]
