"""The static echo server answers as the one in Python does, byte for byte."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import poplin.lab.cri
from poplin.lab.http2 import PREFACE, SETTINGS, Frame, encode_check, encode_frame

PROGRAM = Path(poplin.lab.cri.__file__).parent / "echo"
SERVE = """
import socket, sys
from poplin.lab import echo
port = int(sys.argv[1])
echo.serve(socket.gethostname(), echo.listen([(port, "TCP"), (port, "UDP")]))
"""
ADDRESSES = ["127.0.0.1", "::1"]
UNKNOWN_METHOD = encode_check("a").replace(b"Health/Check", b"Health/Chuck")


def free_port():
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as one:
        return one.getsockname()[1]


def wait_until_open(port):
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    pytest.fail(f"port {port} is not served")


@pytest.fixture(scope="module")
def ports():
    """Of the static server, and of the one in Python."""
    static, ours = free_port(), free_port()
    line = [sys.executable, "-c", SERVE, str(ours)]
    with (
        subprocess.Popen([PROGRAM, f"{static}/TCP", f"{static}/UDP"]) as program,
        subprocess.Popen(line) as python,
    ):
        try:
            wait_until_open(static)
            wait_until_open(ours)
            yield static, ours
        finally:
            program.terminate()
            python.terminate()
        assert program.wait() == 0


def talk(port, address, *pieces):
    """All that the server says to these pieces, sent one after another, until it or we have ended."""
    with socket.create_connection((address, port), timeout=5) as connection:
        mine = connection.getsockname()[1]
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.05)
        connection.shutdown(socket.SHUT_WR)
        said = b""
        while data := connection.recv(1 << 16):
            said += data
    # The port is the one thing that differs, in its length too.
    return re.sub(rb"Content-Length: \d+", b"Content-Length: N", said.replace(b":%d\n" % mine, b":PORT\n"))


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "pieces",
    [
        (b"hello",),
        (b"GETAWAY",),
        (b"hel", b"lo"),
        (b"",),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",),
        (b"GE", b"T /x HTTP/1.1\r\nHo", b"st: a\r\n\r\n"),
        (b"GET / HTTP/1.0\r\n\r\n",),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2,),
        (b"GET /1 HTTP/1.1\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",),
        (b"HEAD / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n",),
        (b"POST / HTTP/1.1\r\ncontent-length:  5\r\n\r\n12", b"345GET / HTTP/1.1\r\n\r\n"),
        (encode_check("a", "service"),),
        (UNKNOWN_METHOD,),
        (PREFACE + encode_frame(Frame(SETTINGS, 0, 0, b"")) + encode_frame(Frame(6, 0, 0, b"12345678")),),
    ],
)
def test_both_say_the_same(ports, address, pieces):
    static, ours = (talk(port, address, *pieces) for port in ports)
    assert static
    assert static == ours


@pytest.mark.parametrize("address", ADDRESSES)
def test_datagrams_are_answered_the_same(ports, address):
    said = []
    for port in ports:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(5)
            one.sendto(b"x" * 1000, (address, port))
            said.append(one.recv(2000).replace(b":%d\n" % one.getsockname()[1], b":PORT\n"))
    assert said[0] == said[1]
    assert said[0].endswith(b"\n" + b"x" * 1000)


def test_who_says_nothing_is_spoken_to(ports):
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=5) as connection:
        assert connection.recv(1000).startswith(b"pod: ")


def test_many_connections_at_once(ports):
    connections = [socket.create_connection(("127.0.0.1", ports[0]), timeout=5) for _ in range(200)]
    try:
        for number, connection in enumerate(connections):
            connection.sendall(b"number %d" % number)
        for number, connection in enumerate(connections):
            said = b""
            while not said.endswith(b"\nnumber %d" % number):
                data = connection.recv(1000)
                assert data, said
                said += data
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("port", ["80/SCTP", "0/TCP/"])
def test_what_cannot_be_served_is_named(port):
    done = subprocess.run([PROGRAM, port], capture_output=True, text=True, timeout=5, check=False)
    assert done.returncode == 2
    assert port in done.stderr
