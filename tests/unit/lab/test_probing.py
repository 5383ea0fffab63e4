"""What an echo server says, as a probe reads it."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.lab.echo import describe
from poplin.lab.probing import _checksum, _encode_echo, read_answer


@pytest.mark.parametrize(
    ("peer", "seen"),
    [
        (("10.244.0.5", 4711), "10.244.0.5"),
        (("fd00::5", 4711, 0, 0), "fd00::5"),
        (("::ffff:10.244.0.5", 4711, 0, 0), "10.244.0.5"),
    ],
)
def test_what_the_echo_server_writes_is_read(peer, seen):
    assert read_answer(describe("web-1", peer) + b"payload") == ("web-1", ip_address(seen))


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\n", b"pod", b"\xff\xfe", b"client: nonsense\n"])
def test_what_another_server_says_tells_nothing(data):
    assert read_answer(data) == ("", None)


@given(st.binary(min_size=8, max_size=64).filter(lambda token: len(token) % 2 == 0))
def test_the_checksum_of_an_echo_request_makes_its_sum_zero(token):
    assert _checksum(_encode_echo(4, token)) == 0
