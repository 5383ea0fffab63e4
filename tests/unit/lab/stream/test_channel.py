"""Messages of exec and attach."""

import pytest

from poplin.lab.kubelet.stream.channel import Channel, ChannelError, Input, Size, decode, encode, make_status


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        (b"\x00ls\n", Input(b"ls\n")),
        (b"\x00", None),
        (b"", None),
        (b"\xff\x00", Input(b"")),
        (b'\x04{"Width":80,"Height":24}', Size(80, 24)),
        (b'\x04{"Width":0,"Height":0}', None),
        (b'\x04{"Width":70000,"Height":24}', None),
    ],
)
def test_what_clients_say(message, meaning):
    assert decode(message) == meaning


@pytest.mark.parametrize("message", [b"\x01out", b"\x09?", b"\x04{", b"\xff\x01", b"\xff"])
def test_what_no_client_says(message):
    with pytest.raises(ChannelError):
        decode(message)


def test_output():
    assert encode(Channel.STDERR, b"oh") == b"\x02oh"


def test_how_a_command_ended():
    assert make_status(0)["status"] == "Success"
    failed = make_status(137)
    assert (failed["status"], failed["reason"]) == ("Failure", "NonZeroExitCode")
    assert failed["details"]["causes"] == [{"reason": "ExitCode", "message": "137"}]
