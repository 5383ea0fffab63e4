"""The wire format against the examples of its documentation, and against itself."""

import contextlib
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.lab.cri.message import (
    ContainerStatus,
    ImageStatusResponse,
    KeyValue,
    Mount,
    PodSandboxConfig,
    PodSandboxMetadata,
    StatusResponse,
)
from poplin.lab.cri.protobuf import Message, decode, encode
from poplin.model.errors import InvalidInputError


class Colour(IntEnum):
    RED = 0
    BLUE = 1


class Inner(Message, frozen=True):
    number: Annotated[int, 1] = 0
    text: Annotated[str, 2] = ""


class Nothing(Message, frozen=True):
    pass


class Whole(Message, frozen=True):
    number: Annotated[int, 1] = 0
    flag: Annotated[bool, 2] = False
    text: Annotated[str, 3] = ""
    data: Annotated[bytes, 4] = b""
    inner: Annotated[Inner | None, 5] = None
    many: Annotated[tuple[Inner, ...], 6] = ()
    words: Annotated[tuple[str, ...], 7] = ()
    pairs: Annotated[Mapping[str, str], 8] = {}
    colour: Annotated[Colour, 9] = Colour.RED
    far: Annotated[int, 1000] = 0


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        # protobuf.dev, "Encoding": A Simple Message, Length-Delimited Records, Submessages, Signed Integers.
        (Inner(number=150), "089601"),
        (Inner(text="testing"), "120774657374696e67"),
        (Whole(inner=Inner(number=150)), "2a03089601"),
        (Inner(number=-2), "08feffffffffffffffff01"),
        (Whole(flag=True, colour=Colour.BLUE, far=1), "10014801c03e01"),
        # An empty submessage is there, an absent one is not.
        (Whole(inner=Inner()), "2a00"),
        (Whole(), ""),
        (Whole(many=(Inner(), Inner(number=1))), "320032020801"),
        (Whole(pairs={"a": "b", "c": ""}), "42060a016112016242030a0163"),
    ],
)
def test_examples(message, encoded):
    assert encode(message).hex() == encoded
    assert decode(bytes.fromhex(encoded), type(message)) == message


inner = st.builds(Inner, number=st.integers(-(2**63), 2**63 - 1), text=st.text())
whole = st.builds(
    Whole,
    number=st.integers(-(2**63), 2**63 - 1),
    flag=st.booleans(),
    text=st.text(),
    data=st.binary(),
    inner=st.none() | inner,
    many=st.lists(inner).map(tuple),
    words=st.lists(st.text()).map(tuple),
    pairs=st.dictionaries(st.text(), st.text()),
    colour=st.sampled_from(Colour),
    far=st.integers(0, 2**63 - 1),
)


@given(whole)
def test_what_is_encoded_is_read_back(message):
    assert decode(encode(message), Whole) == message


@given(whole)
def test_fields_that_are_not_known_are_skipped(message):
    assert decode(encode(message), Nothing) == Nothing()


@given(whole, st.data())
def test_what_is_cut_short_is_refused_or_is_a_shorter_message(message, data):
    encoded = encode(message)
    cut = data.draw(st.integers(0, len(encoded)))
    try:
        decode(encoded[:cut], Whole)
    except InvalidInputError as error:
        assert cut < len(encoded)
        assert error.where == "Whole"  # noqa: PT017  - both outcomes are right


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_are_refused(data):
    with contextlib.suppress(InvalidInputError):
        assert isinstance(decode(data, Whole), Whole)


@pytest.mark.parametrize(
    "encoded",
    ["0a", "0a05", "08", "0880", "0a01", "12ff", "080a0b", "1a01ff", "4805", "0affffffffffffffffffff01"],
)
def test_what_is_no_message_is_refused(encoded):
    with pytest.raises(InvalidInputError, match="Whole"):
        decode(bytes.fromhex(encoded), Whole)


def test_fixed_width_fields_are_skipped():
    assert decode(bytes.fromhex("51" + "00" * 8 + "55" + "00" * 4 + "0801"), Inner) == Inner(number=1)


def test_the_interfaces_own_messages():
    config = PodSandboxConfig(PodSandboxMetadata("web", "uid", "default", 2), labels={"a": "b"})
    assert decode(encode(config), PodSandboxConfig) == config
    assert decode(encode(KeyValue("a", "b")), KeyValue) == KeyValue("a", "b")
    assert decode(encode(Mount("/a", "/b", readonly=True)), Mount).readonly
    assert decode(b"", ImageStatusResponse).image is None
    assert decode(b"", StatusResponse).status is None
    assert decode(encode(ContainerStatus(exit_code=137)), ContainerStatus).exit_code == 137
