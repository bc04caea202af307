"""The errors a user can meet: Twilio's codes complete, each with text that helps."""

import pytest

from bellwire.signaling import errors
from bellwire.signaling.errors import (
    ERROR_TABLE,
    CallError,
    InvalidInput,
    OperationRefused,
    Refusal,
    WhyRefused,
)
from tests.docs.documents import ROOT

CODES = [
    *(20151, 31005, 31008, 31009, 31201, 31403, 31408, 31481, 31487, 31500, 31502, 31503, 31504),
    *(31530, 31600, 31604, 53001, 53400, 53401, 53402, 53403, 53404, 53405),
]
"""All codes of the seeds: 000, "Authentication Errors", "Connection Errors" and `reject`."""

REFUSALS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, Refusal) and kind is not Refusal
]


def test_every_code_of_the_specification_is_in_the_table_and_no_other() -> None:
    assert sorted(ERROR_TABLE) == sorted(CODES)


@pytest.mark.parametrize("code", CODES)
def test_every_error_says_what_it_is_why_it_is_seen_and_what_helps(code: int) -> None:
    kind = ERROR_TABLE[code]
    assert kind.code == code
    assert kind.causes
    assert kind.solutions
    texts = [kind.name, kind.description, kind.explanation, *kind.causes, *kind.solutions]
    assert all(text == text.strip() and len(text) > 3 for text in texts), texts
    assert isinstance(kind.causes, tuple)
    assert isinstance(kind.solutions, tuple)


def test_every_error_has_its_own_name_as_twilio_writes_them() -> None:
    names = [kind.name for kind in ERROR_TABLE.values()]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name.endswith("Error") for name in names)


@pytest.mark.parametrize("code", CODES)
def test_call_error_carries_all_that_its_code_means(code: int) -> None:
    kind = ERROR_TABLE[code]
    error = CallError(code, "the relay hung up", "ConnectionResetError: 104")
    assert (error.code, error.name) == (code, kind.name)
    assert (error.description, error.explanation) == (kind.description, kind.explanation)
    assert (error.causes, error.solutions) == (kind.causes, kind.solutions)
    assert error.message == "the relay hung up"
    assert error.original_error == "ConnectionResetError: 104"
    assert str(error) == f"{kind.name} ({code}): the relay hung up"


def test_call_error_without_a_message_says_what_its_code_means() -> None:
    error = CallError(31600)
    assert error.message == "Busy everywhere"
    assert error.original_error is None


def test_call_error_of_an_unknown_code_cannot_be_made() -> None:
    with pytest.raises(KeyError):
        CallError(31999)


@pytest.mark.parametrize("kind", REFUSALS)
def test_every_refusal_names_its_kind_and_uses_only_codes_of_the_table(kind: type[Refusal]) -> None:
    assert kind.title
    assert kind.code is None or kind.code in ERROR_TABLE


def test_every_refusal_has_its_own_slug_fit_for_an_address() -> None:
    slugs = [kind.slug for kind in REFUSALS]
    assert len(set(slugs)) == len(slugs) >= 10
    assert all(slug.replace("-", "").isalpha() and slug.islower() for slug in slugs)


def test_refused_operation_names_state_and_operation_for_the_problem_document() -> None:
    refusal = OperationRefused("accept", "Timeout", "too late")
    assert (refusal.operation, refusal.state, refusal.detail) == ("accept", "Timeout", "too late")
    assert refusal.fields == {"operation": "accept", "state": "Timeout", "reason": "state"}
    assert str(refusal) == "too late"
    assert refusal.code == 31403


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (WhyRefused.STATE, 31403),
        (WhyRefused.CANCELLED, 31008),
        (WhyRefused.ENDED, 31487),
        (WhyRefused.TIMED_OUT, 31487),
        (WhyRefused.NOT_MAIN_DEVICE, 31403),
    ],
)
def test_code_of_a_refused_operation_follows_from_its_reason(reason: WhyRefused, code: int) -> None:
    assert OperationRefused("accept", "ended", "no", reason).code == code
    assert {*WhyRefused} == {
        WhyRefused.STATE,
        WhyRefused.CANCELLED,
        WhyRefused.ENDED,
        WhyRefused.TIMED_OUT,
        WhyRefused.NOT_MAIN_DEVICE,
    }


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_documented_with_when_it_happens(code: int) -> None:
    kind, text = ERROR_TABLE[code], (ROOT / "docs" / "errors.md").read_text()
    assert text.count(f"### {code}\n\n`{kind.name}`: {kind.description}\n") == 1
    assert kind.happens in text


def test_refusal_keeps_the_members_of_its_problem_document() -> None:
    assert InvalidInput("no", where="to").fields == {"where": "to"}
