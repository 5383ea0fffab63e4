import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.cni.error import CniError
from poplin.cni.frame import (
    CONFIG_MAX_BYTES,
    REQUEST_HEADER_BYTES,
    Answer,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    request_length,
)

NAMES = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(environment=st.dictionaries(NAMES, VALUES), config=st.binary())
def test_a_request_survives_the_round_trip(environment, config):
    frame = encode_request(environment, config)
    assert request_length(frame[:REQUEST_HEADER_BYTES]) == len(frame)
    assert decode_request(frame) == (environment, config)


@given(st.integers(0, 0xFFFF), st.binary())
def test_an_answer_survives_the_round_trip(exit_code, output):
    assert decode_answer(encode_answer(Answer(exit_code, output))) == Answer(exit_code, output)


def test_the_layout_is_the_one_that_the_shim_has():
    assert encode_request({"A": "1"}, b"{}") == b"POPL\0\1\0\0\0\0\0\4\0\0\0\2A=1\0{}"
    assert encode_answer(Answer(1, b"x")) == b"POPL\0\1\0\1\0\0\0\1x"


@given(st.binary() | st.binary().map(lambda tail: b"POPL\0\1\0\0" + tail))
def test_other_bytes_are_code_4_or_5(frame):
    for decode in (decode_request, decode_answer):
        try:
            decode(frame)
        except CniError as error:
            assert error.code in (4, 5)  # noqa: PT017  - either outcome is right, each in its form


@pytest.mark.parametrize("block", [b"A=1", b"A\0", b"A=\xff\0"])
def test_an_environment_that_is_no_variables_is_code_4(block):
    with pytest.raises(CniError) as error:
        decode_request(b"POPL\0\1\0\0" + len(block).to_bytes(4, "big") + bytes(4) + block)
    assert error.value.code == 4


def test_a_request_beyond_the_bounds_is_refused_from_its_header():
    head = b"POPL\0\1\0\0" + bytes(4) + (CONFIG_MAX_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(CniError, match="too large"):
        request_length(head)
