"""Who may ring whom, as an operator says it: rules of which the first that fits a call counts."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bellwire.signaling.identifiers import GroupNameField, parse_identity

ANYBODY = "*"
GROUP = "group:"

_GROUP_NAME: TypeAdapter[str] = TypeAdapter(GroupNameField)


def _known_party(text: str) -> str:
    if text == ANYBODY:
        return text
    if not text.startswith(GROUP):
        return parse_identity(text)
    try:
        return GROUP + _GROUP_NAME.validate_python(text.removeprefix(GROUP))
    except ValidationError as error:
        raise ValueError(f"{text[:40]!r} names no group: write `group:NAME`") from error


PolicyParty = Annotated[
    str, Field(min_length=1, max_length=128), AfterValidator(lambda text: _known_party(text))
]
"""An identity, `group:NAME` for the members of a group, or `*` for anybody."""


def _somebody(parties: tuple[str, ...]) -> tuple[str, ...]:
    if not parties:
        raise ValueError("nobody is named: write an identity, `group:NAME`, or `*` for anybody")
    return parties


PolicyParties = Annotated[
    tuple[PolicyParty, ...], Field(max_length=256), AfterValidator(lambda all_: _somebody(all_))
]


class PolicyRule(BaseModel):
    """Lets those in `from` ring those in `to`, or keeps them from it. Each is an identity, `group:NAME`
    for the members of a group, or `*` for anybody."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    from_: PolicyParties = Field(alias="from")
    to: PolicyParties
    allow: bool


class PolicySettings(BaseModel):
    """Which identities may ring which: the first of `rules` that fits counts, and `default` where none
    does. It is for what apps and devices ask; a server with an API key may ring anybody."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: Literal["allow", "deny"] = "allow"
    rules: Annotated[tuple[PolicyRule, ...], Field(max_length=1024)] = ()

    @property
    def lets_all_ring_all(self) -> bool:
        """Whether it keeps nobody from anything."""
        return self.default == "allow" and all(rule.allow for rule in self.rules)
