import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.lab.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_FRAME_BYTES,
    PING,
    PREFACE,
    SERVING,
    SETTINGS,
    Frame,
    FrameReader,
    HealthServer,
    encode_check,
    encode_frame,
    encode_header,
    encode_message,
    read_health,
)

FRAMES = st.builds(
    Frame,
    st.integers(0, 9),
    st.integers(0, 255),
    st.integers(0, 2**31 - 1),
    st.binary(max_size=300),
)


@given(st.lists(FRAMES, max_size=5), st.integers(1, 40))
def test_frames_are_read_however_the_bytes_are_cut(frames, size):
    data = b"".join(encode_frame(frame) for frame in frames)
    reader = FrameReader()
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    assert [frame for piece in pieces for frame in reader.feed(piece)] == frames


def test_a_frame_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="bytes"):
        list(FrameReader().feed(encode_frame(Frame(DATA, 0, 1, bytes(MAX_FRAME_BYTES + 1)))))


@given(st.integers(1, 50), st.sampled_from(["", "service", "x" * 126]))
def test_our_check_is_answered_by_our_server(size, service):
    sent = encode_check("10.0.0.1:80", service)
    assert sent.startswith(PREFACE)
    server = HealthServer()
    answer = server.start()
    rest = sent[len(PREFACE) :]
    for start in range(0, len(rest), size):
        answer += server.feed(rest[start : start + size])
    frames = list(FrameReader().feed(answer))
    assert read_health(frames) == SERVING
    assert [frame.kind for frame in frames] == [SETTINGS, SETTINGS, HEADERS, DATA, HEADERS]
    assert frames[-1].flags == END_HEADERS | END_STREAM
    assert encode_header("grpc-status", "0") in frames[-1].payload


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (b"/grpc.health.v1.Health/Check", "0"),
        # As nghttp2 and Go write it: RFC 7541, appendix B.
        (bytes.fromhex("626b2b22f394742675fb857c651d099d8bd3949d7f"), "0"),
        (b"/shop.Cart/Get", "12"),
    ],
)
def test_health_is_the_only_service(path, status):
    server = HealthServer()
    headers = b"\x83\x86\x44" + bytes((len(path),)) + path
    call = encode_frame(Frame(HEADERS, END_HEADERS, 7, headers))
    call += encode_frame(Frame(DATA, END_STREAM, 7, encode_message(b"")))
    frames = list(FrameReader().feed(server.feed(call)))
    assert {frame.stream for frame in frames} == {7}
    assert frames[-1].payload.endswith(encode_header("grpc-status", status))


def test_pings_and_settings_are_acknowledged_once():
    server = HealthServer()
    asked = encode_frame(Frame(PING, 0, 0, b"12345678")) + encode_frame(Frame(SETTINGS, 0, 0, b""))
    answers = list(FrameReader().feed(server.feed(asked)))
    assert answers == [Frame(PING, ACK, 0, b"12345678"), Frame(SETTINGS, ACK, 0, b"")]
    assert server.feed(b"".join(encode_frame(answer) for answer in answers)) == b""


@pytest.mark.parametrize(
    ("message", "status"), [(b"", 0), (bytes((8, 1)), 1), (bytes((8, 2)), 2), (bytes((8, 3)), 3)]
)
def test_a_status_is_read_as_protobuf_writes_it(message, status):
    assert read_health([Frame(DATA, 0, 1, encode_message(message))]) == status
    assert read_health([Frame(DATA, 0, 1, encode_message(message)[:4])]) is None
