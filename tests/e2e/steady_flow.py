"""A UDP flow of 1,000 packets a second in each direction, and which of its packets never came."""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from poplin.dataplane.netns import in_namespace, open_netns

PACKETS_S = 1000
PORT = 7000
SO_RCVBUFFORCE = 33
BUFFER_BYTES = 64 << 20
"""Holds all of a flow of half a minute: nobody reads before its end, so that a busy machine loses nothing."""
LATE_S = 0.05
"""A sender that is later than this goes on from now: a burst would be another load than the one meant."""
DRAIN_S = 0.5
NUMBER = struct.Struct("!I")


@dataclass
class SteadyFlow:
    """Two connected sockets in two pods, and the numbers of packets that each has sent and got."""

    ends: tuple[socket.socket, socket.socket]
    sent: int = 0
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    def send(self) -> None:
        due_s = time.monotonic()
        while not self.stop.is_set():
            try:
                for end in self.ends:
                    end.send(NUMBER.pack(self.sent))
            except OSError as error:  # what a router or the other end refused comes back here
                self.error = f"packet {self.sent}: {error}"
                return
            self.sent += 1
            now_s = time.monotonic()
            due_s = max(due_s + 1 / PACKETS_S, now_s - LATE_S)
            time.sleep(max(0.0, due_s - now_s))

    def lost(self) -> list[set[int]]:
        """What each end did not get; after the flow's end."""
        return [set(range(self.sent)) - _drain(end) for end in self.ends]


def _drain(end: socket.socket) -> set[int]:
    got = set()
    end.settimeout(DRAIN_S)
    while True:
        try:
            got.add(NUMBER.unpack(end.recv(64))[0])
        except TimeoutError:
            return got


@contextmanager
def steady_flow(*pods: tuple[str, str]) -> Iterator[SteadyFlow]:
    """Run a flow between two pods, (path of the namespace, address) each; nothing of it may be lost."""
    (near_path, near), (far_path, far) = pods
    with closing(_open(near_path, near)) as one, closing(_open(far_path, far)) as other:
        one.connect((far, PORT))
        other.connect((near, PORT))
        flow = SteadyFlow((one, other))
        _establish(flow)
        thread = threading.Thread(target=flow.send, name="flow")
        thread.start()
        try:
            yield flow
        finally:
            flow.stop.set()
            thread.join()
        assert flow.error == ""
        assert flow.sent > PACKETS_S / 4
        lost = flow.lost()
        assert lost == [set(), set()], f"lost of {flow.sent}: {[sorted(one)[:20] for one in lost]}"


def _open(path: str, address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    netns_fd = open_netns(path)
    try:
        made = in_namespace(netns_fd, lambda: socket.socket(family, socket.SOCK_DGRAM))
    finally:
        os.close(netns_fd)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    made.bind((address, PORT))
    return made


def _establish(flow: SteadyFlow) -> None:
    """One packet each way, seen by the other end."""
    for sender, receiver in (flow.ends, flow.ends[::-1]):
        receiver.settimeout(5)
        sender.send(b"hello")
        assert receiver.recv(64) == b"hello"
    for end in flow.ends:
        end.settimeout(None)
