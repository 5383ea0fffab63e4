"""SPDY/3.1 frames: known bytes, both ways, in pieces, and what is not SPDY."""

import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.lab.kubelet.stream.spdy import (
    DICTIONARY,
    Data,
    Decoder,
    Encoder,
    GoAway,
    Headers,
    Ping,
    Rst,
    SpdyError,
    Syn,
)

STREAMS = st.integers(1, (1 << 31) - 1)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
HEADERS = st.dictionaries(NAMES, st.text(max_size=20), max_size=5)
FRAMES = st.one_of(
    st.builds(Syn, STREAMS, HEADERS, st.booleans(), st.booleans()),
    st.builds(Headers, STREAMS, HEADERS, st.booleans()),
    st.builds(Data, STREAMS, st.binary(max_size=200), st.booleans()),
    st.builds(Rst, STREAMS, st.integers(1, 11)),
    st.builds(Ping, st.integers(0, (1 << 32) - 1)),
    st.builds(GoAway, STREAMS, st.integers(0, 2)),
)


def test_the_dictionary_is_the_specification_s():
    """Its checksum is at the front of every SPDY/3 header block: 78 bb e3 c6 a7 c2."""
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)
    assert bytes.fromhex("78bbe3c6a7c2") in Encoder().encode(Syn(1, {"port": "80"}))


@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (Data(1, b"hi"), "00000001 00000002 6869"),
        (Data(3, b"", fin=True), "00000003 01000000"),
        (Ping(7), "80030006 00000004 00000007"),
        (Rst(5, 5), "80030003 00000008 00000005 00000005"),
        (GoAway(9), "80030007 00000008 00000009 00000000"),
    ],
)
def test_frames_on_the_wire(frame, wire):
    assert Encoder().encode(frame) == bytes.fromhex(wire)


@given(st.lists(FRAMES, max_size=8), st.integers(1, 50))
def test_what_is_sent_arrives_however_it_is_cut(frames, step):
    encoder, decoder = Encoder(), Decoder()
    wire = b"".join(map(encoder.encode, frames))
    pieces = [wire[at : at + step] for at in range(0, len(wire), step)]
    assert [frame for piece in pieces for frame in decoder.decode(piece)] == frames


def test_frames_of_no_meaning_here_are_passed_over():
    settings, window = bytes.fromhex("80030004000000040000000080030009000000080000000100001000"), b""
    assert list(Decoder().decode(settings + window + Encoder().encode(Ping(1)))) == [Ping(1)]


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        ("80020006 00000004 00000001", "version 2"),
        ("80030006 00000002 0000", "cut short"),
        ("00000001 00ffffff", "too large"),
        ("80030002 00000006 00000001 ffff", "decompressed"),
    ],
)
def test_what_is_no_spdy(wire, why):
    with pytest.raises(SpdyError, match=why):
        list(Decoder().decode(bytes.fromhex(wire)))


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_refused(data):
    with suppress(SpdyError):
        list(Decoder().decode(data))
