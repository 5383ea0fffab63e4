"""Batches, interrupted dumps and lost answers, against a scripted kernel."""

import errno
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.channel import BATCH_BYTES, BATCH_MESSAGES, DUMP_ATTEMPTS, Channel
from poplin.dataplane.netlink.frame import NLMSGHDR, decode_messages
from poplin.dataplane.netlink.request import Request
from poplin.model.errors import KernelError


class Kernel:
    """Answers requests as rtnetlink does: failures, and what asks for an answer.

    `refused` holds the positions that fail, of all that were ever sent; `dumps` what each dump receives.
    """

    def __init__(self, *, refused=(), dumps=(), lose_answers=False):
        self.refused = set(refused)
        self.dumps = deque(dumps)
        self.lose_answers = lose_answers
        self.batches = []
        self.received = 0
        self.queue = deque()

    def send(self, data):
        messages = list(decode_messages(data))
        self.batches.append((len(data), messages))
        for message in messages:
            if message.flags & uapi.NLM_F_DUMP == uapi.NLM_F_DUMP:
                self.queue.extend(self.dumps.popleft())
                continue
            code = -errno.EINVAL if self.received in self.refused else 0
            self.received += 1
            if code or message.flags & uapi.NLM_F_ACK:
                self.queue.append(answer(code, message.sequence))
        if self.lose_answers:
            self.queue = deque([OSError(errno.ENOBUFS, "full")])

    def recv(self, _size):
        if not self.queue:
            raise BlockingIOError
        head = self.queue.popleft()
        if isinstance(head, OSError):
            raise head
        return head


def wire(kind, body, *, flags=0, sequence=0):
    return NLMSGHDR.pack(NLMSGHDR.size + len(body), kind, flags, sequence, 0) + body


def answer(code, sequence, kind=uapi.NLMSG_ERROR):
    return wire(kind, code.to_bytes(4, "little", signed=True) + bytes(16), sequence=sequence)


DONE = answer(0, 0, uapi.NLMSG_DONE)


def requests(count, size=44):
    return [
        Request(uapi.RTM_NEWROUTE, 0, number.to_bytes(4, "little") + bytes(size - 4))
        for number in range(count)
    ]


# Up to three batches full by number, and as many full by size.
MANY = st.tuples(st.integers(1, 3000), st.sampled_from([4, 44, 400]))
LARGE = st.tuples(st.integers(1, 12), st.just(20_000))


@given(MANY | LARGE, st.sets(st.integers(0, 11) | st.integers(0, 2999), max_size=20))
def test_each_request_is_sent_once_in_order_and_each_failure_finds_its_own(load, refused):
    count, size = load
    kernel = Kernel(refused=refused)
    failed = Channel(kernel).transact(requests(count, size))
    sent = [int.from_bytes(message.body[:4], "little") for _, batch in kernel.batches for message in batch]
    assert sent == list(range(count))
    assert {position: answer.errno for position, answer in failed.items()} == {
        position: errno.EINVAL for position in refused if position < count
    }
    assert all(size <= BATCH_BYTES and len(batch) <= BATCH_MESSAGES for size, batch in kernel.batches)
    assert all(
        [bool(m.flags & uapi.NLM_F_ACK) for m in batch] == [False] * (len(batch) - 1) + [True]
        for _, batch in kernel.batches
    )


def test_lost_answers_are_failures_not_successes():
    failed = Channel(Kernel(lose_answers=True)).transact(requests(3))
    assert {position: answer.errno for position, answer in failed.items()} == dict.fromkeys(
        range(3), errno.ENOBUFS
    )


def test_an_interrupted_dump_is_read_again():
    interrupted = [wire(24, b"old!") + wire(24, b"torn", flags=uapi.NLM_F_DUMP_INTR), DONE]
    kernel = Kernel(dumps=[interrupted, [wire(24, b"new1") + wire(24, b"new2"), DONE]])
    assert Channel(kernel).dump(uapi.RTM_GETROUTE, b"", where="routes") == [b"new1", b"new2"]


def test_a_dump_that_lost_messages_is_read_again():
    lost = [wire(24, b"one!"), OSError(errno.ENOBUFS, "full"), DONE]
    kernel = Kernel(dumps=[lost, [wire(24, b"one!") + wire(24, b"two!"), DONE]])
    assert Channel(kernel).dump(uapi.RTM_GETROUTE, b"", where="routes") == [b"one!", b"two!"]


def test_a_dump_that_never_settles_is_an_error():
    torn = [wire(24, b"torn", flags=uapi.NLM_F_DUMP_INTR), DONE]
    with pytest.raises(KernelError, match=r"IPv4 routes: .*change faster") as caught:
        Channel(Kernel(dumps=[torn] * DUMP_ATTEMPTS)).dump(uapi.RTM_GETROUTE, b"", where="IPv4 routes")
    assert caught.value.errno == errno.EINTR


@pytest.mark.parametrize("kind", [uapi.NLMSG_ERROR, uapi.NLMSG_DONE])
def test_a_refused_dump_is_an_error(kind):
    kernel = Kernel(dumps=[[answer(-errno.EPERM, 0, kind)]])
    with pytest.raises(KernelError, match="routes: Operation not permitted; run with CAP_NET_ADMIN"):
        Channel(kernel).dump(uapi.RTM_GETROUTE, b"", where="routes")
