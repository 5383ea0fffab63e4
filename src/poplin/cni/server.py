"""The agent's end of CNI: a unix socket on which each poplin-cni asks one thing and gets one answer."""

import array
import asyncio
import logging
import os
import socket
import struct
from functools import partial
from pathlib import Path
from typing import Final, Protocol
from weakref import WeakValueDictionary

from poplin.cni.error import CniError, ErrorCode, as_cni_error, encode_error
from poplin.cni.frame import REQUEST_HEADER_BYTES, Answer, decode_request, encode_answer, request_length
from poplin.cni.protocol import Command, Request, answer_version, parse_request
from poplin.cni.result import VERSIONS, Result, chain_result, encode_result
from poplin.model.errors import PoplinError

log = logging.getLogger(__name__)

READ_TIMEOUT_S: Final = 5.0
"""From connection to whole request; the shim has everything at hand when it connects."""

HANDLER_TIMEOUT_S: Final = 50.0
"""Below the shim's own 60 s, so that the reason reaches the runtime."""

# Each client may hold two descriptors; what comes beyond waits in the listening socket's queue.
_MAX_CLIENTS: Final = 256
_BACKLOG: Final = 4096
_CHUNK_BYTES: Final = 16 << 10
_PEER: Final = struct.Struct("iII")  # struct ucred
_CONTROL_BYTES: Final = socket.CMSG_SPACE(4 * array.array("i").itemsize)


class Handler(Protocol):
    """What the agent does for each command; every failure is an exception.

    A PoplinError reaches the runtime as `as_cni_error` says (of `status` as code 50 unless it is a CniError);
    anything else is logged and answered with code 999. `netns_fd` stays open until the call returns; that of
    `delete` is None where the namespace is gone. Commands
    of one container never overlap. A call that exceeds the server's bound is cancelled: `add` undoes itself
    then as on any failure. `add` returns its own part only, which goes behind the request's prevResult.
    """

    async def add(self, request: Request, netns_fd: int) -> Result: ...

    async def delete(self, request: Request, netns_fd: int | None) -> None: ...

    async def check(self, request: Request, netns_fd: int) -> None: ...

    async def gc(self, request: Request) -> None: ...

    async def status(self) -> None: ...


class CniServer:
    """Serves `handler` from `listen` to `close`."""

    def __init__(
        self,
        handler: Handler,
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
        handler_timeout_s: float = HANDLER_TIMEOUT_S,
    ) -> None:
        self._handler = handler
        self._read_timeout_s = read_timeout_s
        self._handler_timeout_s = handler_timeout_s
        self._listener: socket.socket | None = None
        self._accepting = False
        self._clients: set[asyncio.Task[None]] = set()
        self._reading: set[asyncio.Task[None]] = set()
        # A container's lock lives as long as a command of it waits or runs.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def listen(self, path: Path) -> None:
        """Bind `path` (mode 0600, in place of a socket left there) and serve on the running loop.

        The caller makes the directory, 0700. Raises PoplinError where the socket cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise PoplinError(
                f"cannot serve CNI: {error.strerror or error}",
                where=str(path),
                remedy="check that its directory exists and is writable",
            ) from error
        self._listener = listener
        self._resume()

    async def close(self) -> None:
        """Stop listening, drop clients whose request is not whole, wait for the commands under way.

        The socket's file stays: by now it may be a successor's, and a dead one says the same as none.
        """
        self._pause()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for task in self._reading:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients)

    def _resume(self) -> None:
        if self._listener is not None and not self._accepting:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)
            self._accepting = True

    def _pause(self) -> None:
        if self._listener is not None and self._accepting:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._accepting = False

    def _accept(self, listener: socket.socket) -> None:
        while len(self._clients) < _MAX_CLIENTS:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of descriptors or memory: let some come back
                log.warning("cannot accept a CNI client: %s", error)
                self._pause()
                asyncio.get_running_loop().call_later(1.0, self._resume)
                return
            connection.setblocking(False)
            task = asyncio.create_task(self._serve(connection), name="cni client")
            self._clients.add(task)
            self._reading.add(task)
            task.add_done_callback(partial(self._leave, connection))
        self._pause()

    def _leave(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        connection.close()  # here, since a task that is cancelled before its first step runs none of its own code
        self._clients.discard(task)
        self._reading.discard(task)
        self._resume()

    async def _serve(self, connection: socket.socket) -> None:
        """One client, from connection to answer. Whatever it does, its descriptors are closed."""
        descriptors: list[int] = []
        try:
            answer = await self._answer(connection, descriptors)
            async with asyncio.timeout(self._read_timeout_s):
                await asyncio.get_running_loop().sock_sendall(connection, encode_answer(answer))
        except OSError as error:  # a TimeoutError is one
            log.info("a CNI client went away before its answer: %s", error or "it does not read")
        except asyncio.CancelledError:
            log.info("dropped a CNI client: the server is closing")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def _answer(self, connection: socket.socket, descriptors: list[int]) -> Answer:
        cni_version = VERSIONS[-1]
        asked = "a request"
        try:
            _check_peer(connection)
            frame = await self._receive(connection, descriptors)
            request = parse_request(*decode_request(frame))
            cni_version = request.cni_version
            asked = f"{request.command} {request.container_id} {request.ifname}".rstrip()
            return Answer(0, await self._dispatch(request, descriptors))
        except PoplinError as error:
            failure = as_cni_error(error)
            level = logging.ERROR if failure.code >= ErrorCode.FAILED else logging.WARNING
            log.log(level, "CNI %s failed with code %d: %s", asked, failure.code, failure)
        except Exception as error:
            log.exception("CNI %s failed in a way that is a defect of ours", asked)
            failure = CniError(ErrorCode.INTERNAL, f"internal error: {error!r}", "see the agent's log")
        return Answer(1, encode_error(failure, cni_version))

    async def _receive(self, connection: socket.socket, descriptors: list[int]) -> bytes:
        """One whole request frame; the descriptors that come with it are put into `descriptors` as they come."""
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(self._read_timeout_s):
                return await _read_frame(connection, descriptors)
        except TimeoutError:
            raise CniError(
                ErrorCode.IO_FAILURE, f"no whole request within {self._read_timeout_s:g} s"
            ) from None
        finally:
            if task is not None:
                self._reading.discard(task)

    async def _dispatch(self, request: Request, descriptors: list[int]) -> bytes:
        # GC, STATUS and VERSION, which have no container, wait for nobody.
        lock = self._locks.get(request.container_id) or asyncio.Lock()
        if request.container_id:
            self._locks[request.container_id] = lock
        try:
            async with asyncio.timeout(self._handler_timeout_s) as bound, lock:
                return await self._call(request, descriptors)
        except TimeoutError:
            if not bound.expired():
                raise
            raise CniError(
                ErrorCode.TRY_AGAIN_LATER, f"the agent did not finish within {self._handler_timeout_s:g} s"
            ) from None

    async def _call(self, request: Request, descriptors: list[int]) -> bytes:
        handler = self._handler
        match request.command:
            case Command.ADD:
                result = await handler.add(request, _netns_of(descriptors))
                if request.previous_result is not None:
                    result = chain_result(request.previous_result, result)
                return encode_result(result, request.cni_version)
            case Command.DEL:
                await handler.delete(request, descriptors[0] if descriptors else None)
            case Command.CHECK:
                await handler.check(request, _netns_of(descriptors))
            case Command.GC:
                await handler.gc(request)
            case Command.STATUS:
                await _status(handler)
            case Command.VERSION:
                return answer_version(request.cni_version)
        return b""


async def _status(handler: Handler) -> None:
    try:
        await handler.status()
    except CniError:
        raise
    except PoplinError as error:
        raise CniError(ErrorCode.NOT_AVAILABLE, str(error)) from error


def _netns_of(descriptors: list[int]) -> int:
    if len(descriptors) != 1:
        raise CniError(
            ErrorCode.BAD_NETNS, f"{len(descriptors)} network namespaces came with the request, not one"
        )
    return descriptors[0]


def _check_peer(connection: socket.socket) -> None:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(credentials)
    if uid != 0:
        raise CniError(ErrorCode.IO_FAILURE, f"process {pid} of user {uid} may not ask; only root may")


async def _read_frame(connection: socket.socket, descriptors: list[int]) -> bytes:
    frame = bytearray()
    missing = REQUEST_HEADER_BYTES
    whole = 0  # the request's length, once its header is here
    while missing:
        try:
            chunk, ancillary, flags, _ = connection.recvmsg(
                max(missing, _CHUNK_BYTES), _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            await _readable(connection)
            continue
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                descriptors.extend(fds)
        if flags & socket.MSG_CTRUNC:
            raise CniError(
                ErrorCode.TRY_AGAIN_LATER, "the agent has too many files open, or too many were passed"
            )
        if not chunk:
            raise CniError(ErrorCode.IO_FAILURE, f"the request ended {missing} bytes early")
        frame += chunk
        if not whole and len(frame) >= REQUEST_HEADER_BYTES:
            whole = request_length(frame)
        missing = (whole or REQUEST_HEADER_BYTES) - len(frame)
        if missing < 0:
            raise CniError(ErrorCode.IO_FAILURE, "more than one request came on one connection")
    return bytes(frame)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await ready
    finally:
        loop.remove_reader(connection)
