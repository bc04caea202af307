"""Every link of the documents leads somewhere."""

import re
from pathlib import Path

import pytest

from tests.docs.documents import DOCUMENTS, ROOT, anchors, links, prose


def broken_links(path: Path) -> list[str]:
    """The relative links of a document that lead to no file, or to no heading of it."""
    broken = []
    for link in links(path):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_and_anchors_resolve(path: Path) -> None:
    assert not broken_links(path)


@pytest.mark.parametrize("link", ["gone.md", "#gone", "there.md#gone", "there.md#a-heading-2"])
def test_broken_link_is_found(link: str, tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading\n\n## A `heading`\n")
    document = tmp_path / "here.md"
    document.write_text(f"# Here\n\n[x]({link}) [y](there.md#a-heading-1) [z](#here)\n")
    assert broken_links(document) == [link]


def test_every_document_is_reached_from_the_readme() -> None:
    readme = ROOT / "README.md"
    reached = {(ROOT / link.partition("#")[0]).resolve() for link in links(readme)}
    assert set(DOCUMENTS) - {readme} <= reached


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paths_named_in_the_text_exist(path: Path) -> None:
    folders = "signaling|config|broker|push|hardware|agent|cli|deploy|bench|tests|docs|script"
    named = re.findall(rf"`((?:{folders})/(?!v1/)[\w./-]*)`", path.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_reference_link_is_left_undefined(path: Path) -> None:
    defined = set(re.findall(r"^\[([^\]]+)\]: ", path.read_text(), re.MULTILINE))
    used = re.findall(r"\[[^\]\n]+\]\[([^\]\n]+)\]", prose(path))
    assert set(used) <= defined
