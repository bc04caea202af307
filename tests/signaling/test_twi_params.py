"""`twi_params`: every map that may travel comes back exactly; every other is refused with a reason."""

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.twi_params import (
    MAX_NAME_LENGTH,
    MAX_PARAMETERS,
    check_name,
    check_parameters,
    decode_params,
    encode_params,
    unique_parameters,
)

NAME_CHARACTERS = [chr(c) for c in range(0x21, 0x7F) if chr(c) not in "&=%+#"]
names = st.text(NAME_CHARACTERS, min_size=1, max_size=MAX_NAME_LENGTH)
maps = st.dictionaries(names, st.text(), max_size=MAX_PARAMETERS)


@given(maps)
@example({})
@example({"a": ""})
@example({"z": "", "a": "", "m": "x"})
@example({"a": "&=%+# ?/\\\x00\n", "b": "100 % + 20%20", "c": "Tür \N{BELL} \N{SNOWMAN}"})
def test_allowed_map_comes_back_exactly_and_in_its_order(parameters: dict[str, str]) -> None:
    decoded = decode_params(encode_params(parameters))
    assert list(decoded.items()) == list(parameters.items())


@given(maps)
def test_encoded_map_is_printable_ascii_without_space_or_plus(parameters: dict[str, str]) -> None:
    text = encode_params(parameters)
    assert text.isascii()
    assert not set(text) & set(" +#\n\t")
    assert text.isprintable()


@given(maps)
def test_another_query_string_reader_sees_the_same_map(parameters: dict[str, str]) -> None:
    text = encode_params(parameters)
    assert parse_qsl(text, keep_blank_values=True) == list(parameters.items())


@given(maps)
def test_map_written_by_another_encoder_is_read(parameters: dict[str, str]) -> None:
    text = urlencode(parameters, safe="".join(NAME_CHARACTERS))
    assert decode_params(text) == parameters


@given(st.text(st.sampled_from("ab&=;+%240cZé \N{SNOWMAN}")))
def test_any_text_is_read_as_the_standard_library_reads_it(text: str) -> None:
    # Names travel as they are, where the standard library decodes them: compared are the others.
    pairs = [part.partition("=")[::2] for part in text.split("&")]
    plain = "&".join(f"{k}={v}" for k, v in pairs if k and not set(k) & set("+%"))
    assert decode_params(plain) == dict(parse_qsl(plain, keep_blank_values=True))


@given(st.text(st.characters()) | st.text("%&=+0aéF\udc80"))
def test_reading_never_fails_on_any_text(text: str) -> None:
    decoded = decode_params(text)
    assert all(name and "&" not in name and "=" not in name for name in decoded)


def test_every_character_that_an_address_gives_a_meaning_is_percent_encoded() -> None:
    assert encode_params({"a": "/?:@!$'()*,;"}) == "a=%2F%3F%3A%40%21%24%27%28%29%2A%2C%3B"


def test_map_is_written_as_the_seed_shows_it() -> None:
    parameters = {"caller_first_name": "alice", "caller_last_name": "smith"}
    assert encode_params(parameters) == "caller_first_name=alice&caller_last_name=smith"


def test_space_is_written_as_percent_20_and_plus_as_percent_2b() -> None:
    assert encode_params({"floor": "2 + 3"}) == "floor=2%20%2B%203"


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("", {}),
        ("a=x%20y", {"a": "x y"}),
        ("a=x+y", {"a": "x y"}),
        ("a=x%2By", {"a": "x+y"}),
        ("a=%F0%9F%94%94", {"a": "\N{BELL}"}),
        ("a=1=2", {"a": "1=2"}),
        ("a=", {"a": ""}),
        ("a", {"a": ""}),
        ("a&b=1", {"a": "", "b": "1"}),
        ("&&a=1&", {"a": "1"}),
        ("=1&a=1", {"a": "1"}),
        ("a=%zz", {"a": "%zz"}),
        ("a=%", {"a": "%"}),
        ("a=%ff", {"a": "\N{REPLACEMENT CHARACTER}"}),
        ("a=1;b=2", {"a": "1;b=2"}),
        ("a%20b=1", {"a%20b": "1"}),
    ],
)
def test_query_string_is_read_leniently(text: str, parameters: dict[str, str]) -> None:
    assert decode_params(text) == parameters


def test_last_value_wins_where_a_name_stands_twice_on_reading() -> None:
    assert decode_params("a=1&b=2&a=3") == {"a": "3", "b": "2"}


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a\tb",
        "a\n",
        "a&b",
        "a=b",
        "100%",
        "a+b",
        "#1",
        "é",
        "a\x00",
        "a\x7f",
        "\xa0",
        "\ud800",
        "a" * (MAX_NAME_LENGTH + 1),
    ],
)
def test_name_that_cannot_travel_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        check_name(name)
    with pytest.raises(InvalidInput, match="name"):
        encode_params({"good": "1", name: "x"})


@given(st.text(min_size=1, max_size=3))
def test_name_is_refused_exactly_where_the_rule_says(name: str) -> None:
    if set(name) <= set(NAME_CHARACTERS):
        assert check_name(name) == name
    else:
        with pytest.raises(InvalidInput):
            check_name(name)


def test_refusal_shows_the_name_it_refuses() -> None:
    with pytest.raises(InvalidInput, match="first name"):
        encode_params({"first name": "alice"})


def test_value_that_is_no_unicode_text_is_refused_with_its_name() -> None:
    with pytest.raises(InvalidInput, match="floor"):
        encode_params({"floor": "\ud83d"})


def test_name_given_twice_is_refused_when_making_an_invite() -> None:
    with pytest.raises(InvalidInput, match="'a' is given twice"):
        unique_parameters([("a", "1"), ("b", "2"), ("a", "1")])


def test_pairs_become_a_map_in_their_order() -> None:
    assert list(unique_parameters([("z", "1"), ("a", "2")]).items()) == [("z", "1"), ("a", "2")]


def test_as_many_parameters_as_allowed_travel_and_one_more_is_refused_with_both_numbers() -> None:
    allowed = {f"n{i}": "x" for i in range(MAX_PARAMETERS)}
    assert decode_params(encode_params(allowed)) == allowed
    with pytest.raises(InvalidInput, match=rf"{MAX_PARAMETERS + 1}.*{MAX_PARAMETERS}"):
        check_parameters({**allowed, "more": "x"})


def test_checked_parameters_do_not_change_with_the_map_they_came_from() -> None:
    given_map = {"a": "1"}
    checked = check_parameters(given_map)
    given_map["b b"] = "2"
    assert checked == {"a": "1"}
