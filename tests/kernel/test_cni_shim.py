"""The compiled poplin-cni against the real server; only what the agent does for a command is a stand-in."""

import array
import asyncio
import json
import os
import signal
import socket
import subprocess
import uuid
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import poplin.cni
from poplin.cni.deletions import forget_deletion, read_deletions
from poplin.cni.error import CniError
from poplin.cni.frame import decode_answer, encode_request
from poplin.cni.protocol import Request
from poplin.cni.result import Interface, IPConfig, Result, Route, decode_result
from poplin.cni.server import CniServer
from poplin.model.errors import InvalidInputError, KernelError, PoplinError

SHIM = Path(poplin.cni.__file__).with_name("poplin-cni")
RESULT = Result(
    interfaces=(Interface("eth0", "0a:00:00:00:00:01", 1450, "/run/netns/pod"),),
    ips=(IPConfig(ip_interface("10.244.1.5/32"), ip_address("169.254.1.1"), 0),),
    routes=(Route(ip_network("0.0.0.0/0"), ip_address("169.254.1.1")),),
)


@dataclass
class StandInHandler:
    """Records what it was asked, and fails as it is told to."""

    asked: list[Request] = field(default_factory=list)
    namespaces: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    failure: Exception | None = None
    delay_s: float = 0
    running: dict[str, int] = field(default_factory=dict)
    overlapped: bool = False
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def _take(self, request, netns_fd=None):
        self.asked.append(request)
        self.begun.set()
        if netns_fd is not None:
            self.namespaces.append(os.fstat(netns_fd).st_ino)
            self.descriptors.append(netns_fd)
        key = request.container_id
        self.overlapped |= self.running.get(key, 0) > 0
        self.running[key] = self.running.get(key, 0) + 1
        try:
            await asyncio.sleep(self.delay_s)
        finally:
            self.running[key] -= 1
        if self.failure is not None:
            raise self.failure

    async def add(self, request, netns_fd):
        await self._take(request, netns_fd)
        return RESULT

    async def check(self, request, netns_fd):
        await self._take(request, netns_fd)

    async def delete(self, request, netns_fd):
        await self._take(request)

    async def gc(self, request):
        await self._take(request)

    async def status(self):
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def netns():
    name = f"cnishim-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


class Place:
    """A socket and a state directory, and the shim run against them."""

    def __init__(self, directory, netns):
        self.socket = directory / "run" / "cni.sock"
        self.socket.parent.mkdir(mode=0o700)
        self.state_dir = directory / "state"
        self.netns = netns

    def environment(self, command, **changes):
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u",
        } | changes
        return {name: value for name, value in variables.items() if value is not None}

    def config(self, **changes):
        config = {
            "cniVersion": "1.1.0",
            "name": "poplin",
            "type": "poplin-cni",
            "socket": str(self.socket),
            "stateDir": str(self.state_dir),
            "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
        } | changes
        return json.dumps({name: value for name, value in config.items() if value is not None}).encode()

    async def run(self, command, *, stdin=None, environment=None, **config):
        process = await asyncio.create_subprocess_exec(
            SHIM,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment(command, **(environment or {})),
        )
        output, errors = await process.communicate(self.config(**config) if stdin is None else stdin)
        assert errors == b""
        return process.returncode, json.loads(output) if output else None

    async def fail(self, command, **how):
        status, output = await self.run(command, **how)
        assert status == 1
        assert set(output) == {"cniVersion", "code", "msg", "details"}
        return output["code"], output["msg"]


@pytest.fixture
def place(tmp_path, netns):
    return Place(tmp_path, netns)


@pytest.fixture
def handler():
    return StandInHandler()


@pytest.fixture
async def server(place, handler):
    server = CniServer(handler, read_timeout_s=0.5, handler_timeout_s=20)
    server.listen(place.socket)
    before = open_descriptors()
    yield server
    await server.close()
    assert open_descriptors() < before  # the listener's is gone, and so is every client's


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_add_prints_the_result_and_hands_over_the_very_namespace(place, server, handler):
    status, output = await place.run("ADD")
    assert status == 0
    assert output["cniVersion"] == "1.1.0"
    assert decode_result(json.dumps(output).encode()) == RESULT
    assert handler.namespaces == [Path(place.netns).stat().st_ino]
    [asked] = handler.asked
    assert (asked.container_id, asked.ifname, asked.netns) == ("c1", "eth0", place.netns)
    assert (asked.pod.namespace, asked.pod.name, asked.pod.uid) == ("default", "web", "u")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handler.descriptors[0])


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_add_answers_in_the_version_it_was_asked_in(place, server, version):
    status, output = await place.run("ADD", cniVersion=version)
    assert status == 0
    assert output["cniVersion"] == version
    assert output["ips"][0].get("version") == ("4" if version.startswith("0.") else None)
    assert output["interfaces"][0].get("mtu") == (1450 if version == "1.1.0" else None)


async def test_add_in_a_chain_goes_behind_the_previous_result(place, server):
    previous = {"interfaces": [{"name": "br0"}], "ips": [{"address": "10.9.0.2/24", "interface": 0}]}
    _, output = await place.run("ADD", cniVersion="1.0.0", prevResult=previous)
    assert [interface["name"] for interface in output["interfaces"]] == ["br0", "eth0"]
    assert [ip["interface"] for ip in output["ips"]] == [0, 1]


async def test_the_other_commands_print_nothing(place, server, handler):
    for command in ("DEL", "GC", "STATUS"):
        assert await place.run(command) == (0, None)
    assert await place.run("CHECK", prevResult={"ips": []}) == (0, None)
    assert [request.command for request in handler.asked] == ["DEL", "GC", "CHECK"]
    assert handler.asked[1].valid_attachments == {("c1", "eth0")}
    assert read_deletions(place.state_dir) == []


async def test_del_asks_the_agent_also_when_the_namespace_is_gone(place, server, handler):
    for netns in (None, "", "/run/netns/no-such-namespace", "/etc/hostname"):
        assert await place.run("DEL", environment={"CNI_NETNS": netns}) == (0, None)
    assert len(handler.asked) == 4


async def test_version_echoes_the_version_it_was_asked_in(place):
    supported = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    for stdin, version in ((b"", "1.1.0"), (b'{"cniVersion":"0.4.0"}', "0.4.0"), (b"{}", "1.1.0")):
        status, output = await place.run("VERSION", stdin=stdin)
        assert (status, output) == (0, {"cniVersion": version, "supportedVersions": supported})


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (CniError(7, "no such address", "10.0.0.1"), 7),
        (InvalidInputError("wrong", where="here", remedy="mend it"), 7),
        (KernelError("busy", errno=16), 11),
        (PoplinError("broken"), 100),
        (ZeroDivisionError("a defect"), 999),
    ],
)
async def test_a_failure_has_the_code_of_its_kind_and_the_server_lives_on(
    place, server, handler, failure, code
):
    handler.failure = failure
    assert await place.fail("ADD") == (code, str(failure) if code != 999 else f"internal error: {failure!r}")
    handler.failure = None
    assert (await place.run("ADD"))[0] == 0


async def test_status_says_why_no_add_can_be_served(place, server, handler):
    handler.failure = PoplinError("no pod CIDR yet")
    assert await place.fail("STATUS") == (50, "no pod CIDR yet")
    handler.failure = CniError(51, "the overlay is down")
    assert await place.fail("STATUS") == (51, "the overlay is down")


async def test_without_an_agent_del_succeeds_and_leaves_a_note(place):
    long_id = "f" * 64
    for container_id, ifname in (
        ("c1", "eth0"),
        ("a.b", "c"),
        ("a", "b.c"),
        (long_id, "x" * 15),
        ("c1", "eth0"),
    ):
        environment = {"CNI_CONTAINERID": container_id, "CNI_IFNAME": ifname}
        assert await place.run("DEL", environment=environment) == (0, None)
    notes = {("c1", "eth0"), ("a.b", "c"), ("a", "b.c"), (long_id, "x" * 15)}
    assert set(read_deletions(place.state_dir)) == notes
    assert len(read_deletions(place.state_dir)) == 4
    forget_deletion(place.state_dir, "a.b", "c")
    forget_deletion(place.state_dir, "a.b", "c")
    assert set(read_deletions(place.state_dir)) == notes - {("a.b", "c")}


async def test_without_an_agent_a_del_that_cannot_be_noted_fails(place):
    place.state_dir.write_text("a file where the directory should be")
    code, _ = await place.fail("DEL")
    assert code == 5
    code, _ = await place.fail("DEL", environment={"CNI_CONTAINERID": "a" * 300})
    assert code == 4


@pytest.fixture(params=["never ran", "died", "hangs up"])
async def dead_agent(request, place):
    """The ways in which no agent answers."""
    if request.param == "died":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(place.socket))
    hangs_up = await asyncio.start_unix_server(hang_up, place.socket) if request.param == "hangs up" else None
    yield
    if hangs_up is not None:
        hangs_up.close()
        await hangs_up.wait_closed()


async def hang_up(_reader, writer):
    writer.close()


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
async def test_without_an_agent_the_rest_says_which_socket_is_dead(place, dead_agent, command, code):
    got, message = await place.fail(command)
    assert got == code
    assert str(place.socket) in message


async def test_without_an_agent_however_that_comes_a_del_is_noted(place, dead_agent):
    assert await place.run("DEL") == (0, None)
    assert read_deletions(place.state_dir) == [("c1", "eth0")]


@pytest.mark.parametrize(
    "waits_for", ["the network configuration on stdin", "the answer of the poplin agent"]
)
async def test_at_its_deadline_the_shim_says_what_it_waited_for(place, server, handler, waits_for):
    handler.delay_s = 0.5
    process = await asyncio.create_subprocess_exec(
        SHIM, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=place.environment("ADD")
    )
    if "agent" in waits_for:
        process.stdin.write(place.config())
        process.stdin.close()
        await handler.begun.wait()
    else:
        while "S (sleeping)" not in Path(f"/proc/{process.pid}/status").read_text():  # noqa: ASYNC110  - no event tells
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGALRM)
    output = json.loads(await process.stdout.read())
    assert await process.wait() == 1
    assert (output["code"], output["msg"]) == (11, f"gave up after 60 s of waiting for {waits_for}")
    process.stdin.close()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
MEMBERS = st.sampled_from(["cniVersion", "name", "socket", "stateDir", "other", "a\\b"])
OBJECTS = st.dictionaries(MEMBERS, TEXTS | JSON, max_size=4)
MUTATIONS = st.lists(st.tuples(st.integers(0, 200), st.sampled_from('"\\{}[]:,0.eE+-u \n\tn')), max_size=2)


@settings(max_examples=300, deadline=None)
@given(value=OBJECTS, ascii_only=st.booleans(), mutations=MUTATIONS)
def test_the_shim_takes_for_json_what_the_agent_does(value, ascii_only, mutations):
    text = json.dumps(value, ensure_ascii=ascii_only)
    for place, character in mutations:
        text = text[: place % len(text)] + character + text[place % len(text) + 1 :]
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        expected = False
    else:
        kept = (
            [found.get(name) for name in ("cniVersion", "name", "socket", "stateDir")]
            if isinstance(found, dict)
            else [0]
        )
        expected = all(member is None or isinstance(member, str) for member in kept)
    environment = {"CNI_COMMAND": "STATUS"}
    shim = subprocess.run([SHIM], input=text.encode(), env=environment, capture_output=True, check=False)
    assert (shim.returncode, shim.stderr) == (1, b"")
    assert (json.loads(shim.stdout)["code"] != 6) == expected


BAD_INPUT = {
    "no command": ({"CNI_COMMAND": None}, {}, 4, "required env variables [CNI_COMMAND] missing"),
    "two missing": ({"CNI_NETNS": None, "CNI_IFNAME": ""}, {}, 4, "required env variables [CNI_NETNS,CNI_IFNAME] missing"),
    "all missing": (
        {"CNI_CONTAINERID": None, "CNI_NETNS": None, "CNI_IFNAME": None, "CNI_PATH": None},
        {},
        4,
        "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing",
    ),
    "unknown command": ({"CNI_COMMAND": "FETCH"}, {}, 4, "unknown CNI_COMMAND: FETCH"),
    "two commands": ({"CNI_COMMAND": "ADD DEL"}, {}, 4, "unknown CNI_COMMAND: ADD DEL"),
    "id of a path": ({"CNI_CONTAINERID": "../x"}, {}, 4, "invalid characters in containerID"),
    "id with a bad first": ({"CNI_CONTAINERID": "_x"}, {}, 4, "invalid characters in containerID"),
    "id with a newline": ({"CNI_CONTAINERID": "x\n"}, {}, 4, "invalid characters in containerID"),
    "long ifname": ({"CNI_IFNAME": "e" * 16}, {}, 4, "interface name is too long"),
    "dot ifname": ({"CNI_IFNAME": ".."}, {}, 4, "interface name is . or .."),
    "slash ifname": ({"CNI_IFNAME": "a/b"}, {}, 4, "interface name contains / or : or whitespace characters"),
    "colon ifname": ({"CNI_IFNAME": "a:b"}, {}, 4, "interface name contains / or : or whitespace characters"),
    "space ifname": ({"CNI_IFNAME": "a b"}, {}, 4, "interface name contains / or : or whitespace characters"),
    "no name": ({}, {"name": None}, 7, "missing network name"),
    "empty name": ({}, {"name": ""}, 7, "missing network name"),
    "bad name": ({}, {"name": "a/b"}, 7, "invalid characters found in network name"),
    "no version": ({}, {"cniVersion": None}, 1, "incompatible CNI versions"),
    "old version": ({}, {"cniVersion": "0.3.0"}, 1, "incompatible CNI versions"),
    "future version": ({}, {"cniVersion": "1.1.0" * 10}, 1, "incompatible CNI versions"),
    "old CHECK": (
        {"CNI_COMMAND": "CHECK"},
        {"cniVersion": "0.3.1"},
        1,
        "config version does not allow CHECK",
    ),
    "old GC": ({"CNI_COMMAND": "GC"}, {"cniVersion": "1.0.0"}, 1, "config version does not allow GC"),
    "old STATUS": ({"CNI_COMMAND": "STATUS"}, {"cniVersion": "1.0.0"}, 1, "config version does not allow STATUS"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
async def test_bad_input_is_answered_without_the_agent(place, case):
    environment, config, code, message = BAD_INPUT[case]
    assert await place.fail("ADD", environment=environment, **config) == (code, message)


@pytest.mark.parametrize("case", BAD_INPUT)
async def test_the_agent_finds_the_same_faults_by_itself(place, server, case):
    environment, config, code, message = BAD_INPUT[case]
    variables = {k: v for k, v in (place.environment("ADD") | environment).items() if v is not None}
    request = encode_request(variables, place.config(**config))
    answer = decode_answer(await exchange(place, request))
    assert answer.exit_code == 1
    error = json.loads(answer.output)
    assert (error["code"], error["msg"]) == (code, message)


@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b"   ",
        b"null",
        b"[]",
        b"{",
        b'{"name":"a"',
        b'{"name":"a",}',
        b'{"name" "a"}',
        b"{name:1}",
        b'{"name":1}',
        b'{"cniVersion":["1.0.0"],"name":"a"}',
        b'{"a":01}',
        b'{"a":1.}',
        b'{"a":+1}',
        b'{"a":"\n"}',
        b'{"a":"\\x"}',
        b'{"a":"\\ud800"}',
        b'{"a":tru}',
        b'{"a":1}{"b":2}',
        b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
        b"\0" * 1000,
        b"[" * (1 << 20),
        b"x" * (1 << 20),
        b" " * ((1 << 20) + 1),
    ],
    ids=lambda text: f"{len(text)}:{text[:20]!r}",
)
async def test_what_is_no_json_object_is_code_6(place, stdin):
    for command in ("ADD", "DEL", "GC"):
        code, _ = await place.fail(command, stdin=stdin)
        assert code == 6


async def test_json_is_read_with_its_escapes_and_the_last_of_two_members(place, server, handler):
    text = place.config().decode()
    escaped = text.replace('"cniVersion"', '"cni\\u0056ersion"').replace('"poplin"', '"p\\u006fplin"')
    nested = (
        escaped[:-1]
        + ', "other": {"name": "a/b", "cniVersion": "9"}, "n": [-1.5e+3, true, null, "\\ud83d\\ude00"]}'
    )
    twice = '{"name": "a/b", ' + nested[1:]
    status, _ = await place.run("ADD", stdin=twice.encode())
    assert status == 0
    assert handler.asked[0].network == "poplin"


async def test_a_megabyte_of_configuration_arrives_whole(place, server, handler):
    padding = (1 << 20) - len(place.config(padding=""))
    status, _ = await place.run("ADD", padding="x" * padding)
    assert status == 0
    code, _ = await place.fail("ADD", padding="x" * (padding + 1))
    assert code == 6


async def test_the_plugins_own_namespace_and_what_is_none_are_refused(place, server, handler):
    for netns in ("/proc/self/ns/net", "/proc/self/ns/mnt", "/etc/hostname", "/no/such"):
        code, _ = await place.fail("ADD", environment={"CNI_NETNS": netns})
        assert code == 8
    assert handler.asked == []
    environment = {"CNI_NETNS": "/proc/self/ns/net", "CNI_NETNS_OVERRIDE": "True"}
    assert (await place.run("ADD", environment=environment))[0] == 0


async def test_a_socket_path_too_long_for_a_socket_is_a_bad_configuration(place):
    code, message = await place.fail("ADD", socket="/" + "s" * 120)
    assert (code, "socket" in message) == (7, True)


async def test_two_hundred_at_once_succeed(place, server, handler):
    handler.delay_s = 0.01
    gate = asyncio.Semaphore(200)

    async def add(number):
        async with gate:
            return await place.run("ADD", environment={"CNI_CONTAINERID": f"c{number}"})

    answers = await asyncio.gather(*(add(number) for number in range(200)))
    assert [status for status, _ in answers] == [0] * 200
    assert len(handler.asked) == 200
    assert set(handler.namespaces) == {Path(place.netns).stat().st_ino}


async def test_more_clients_than_are_served_at_once_wait_their_turn(place, server, handler):
    handler.delay_s = 0.05
    request = encode_request(place.environment("DEL", CNI_NETNS=None), place.config())
    frames = [request.replace(b"c1", b"%02d" % (n % 100)) for n in range(600)]
    answers = await asyncio.gather(*(exchange(place, frame) for frame in frames))
    assert {decode_answer(answer).exit_code for answer in answers} == {0}
    assert not handler.overlapped


async def test_commands_of_one_container_never_overlap(place, server, handler):
    handler.delay_s = 0.05
    commands = ["ADD", "DEL", "ADD", "DEL"]
    answers = await asyncio.gather(*(place.run(command) for command in commands))
    assert [status for status, _ in answers] == [0] * 4
    assert not handler.overlapped


async def test_a_command_that_never_ends_is_cut_and_the_next_one_served(place, handler):
    server = CniServer(handler, handler_timeout_s=0.2)
    server.listen(place.socket)
    handler.delay_s = 60
    code, message = await place.fail("ADD")
    assert (code, message) == (11, "the agent did not finish within 0.2 s")
    handler.delay_s = 0
    assert (await place.run("DEL"))[0] == 0
    await server.close()


async def test_bad_and_slow_clients_beside_good_ones(place, server, handler):
    whole = encode_request(place.environment("ADD"), place.config())
    bad = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 64,
        b"POPL\0\2" + whole[6:],
        b"POPL\0\1\0\0\xff\xff\xff\xff\0\0\0\0",
        whole[:-5],
        whole[:3],
        whole + b"more",
    ]
    slow = [asyncio.create_task(exchange(place, frame, eof=False)) for frame in bad * 5]
    good = await asyncio.gather(
        *(place.run("ADD", environment={"CNI_CONTAINERID": f"g{n}"}) for n in range(10))
    )
    assert [status for status, _ in good] == [0] * 10
    for answer in await asyncio.gather(*slow):
        assert json.loads(decode_answer(answer).output)["code"] == 5


async def test_descriptors_beyond_the_one_are_refused_and_closed(place, server, handler):
    request = encode_request(place.environment("ADD"), place.config())
    before = open_descriptors()
    for count, code in ((0, 8), (2, 8), (4, 8), (50, 11)):
        answer = decode_answer(await exchange(place, request, descriptors=[0] * count))
        assert json.loads(answer.output)["code"] == code
    await asyncio.sleep(0)
    assert open_descriptors() == before
    assert handler.asked == []


async def test_a_client_that_is_not_root_is_refused(place, server):
    place.socket.chmod(0o666)
    for directory in place.socket.parents:
        if directory.stat().st_mode & 0o001 == 0:
            directory.chmod(directory.stat().st_mode | 0o011)
    process = await asyncio.create_subprocess_exec(
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", SHIM,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=place.environment("GC"),
    )  # fmt: skip
    output, _ = await process.communicate(place.config())
    assert "only root may" in json.loads(output)["msg"]


async def test_closing_waits_for_the_command_under_way(place, handler):
    server = CniServer(handler)
    server.listen(place.socket)
    handler.delay_s = 0.3
    add = asyncio.create_task(place.run("ADD"))
    idle = asyncio.create_task(exchange(place, b"POPL", eof=False))
    await handler.begun.wait()
    await server.close()
    assert (await add)[0] == 0
    assert await idle == b""
    code, _ = await place.fail("ADD")
    assert code == 11


async def exchange(place, request, *, eof=True, descriptors=()):
    """Send raw bytes as a client of the socket, and read what comes until the end."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        while True:
            try:
                client.connect(str(place.socket))
                break
            except BlockingIOError:
                await asyncio.sleep(0.01)
        if descriptors:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
            client.sendmsg([request], [rights])
        else:
            await loop.sock_sendall(client, request)
        if eof:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := await loop.sock_recv(client, 65536):
            answer += chunk
        return answer


async def test_requests_equal_those_of_the_python_encoder(place, server, handler):
    await exchange(place, encode_request(place.environment("DEL", CNI_NETNS=None), place.config()))
    await place.run("DEL", environment={"CNI_NETNS": None})
    by_python, by_shim = handler.asked
    assert by_python == by_shim


async def test_closing_drops_clients_that_have_only_just_connected(place, handler):
    server = CniServer(handler)
    server.listen(place.socket)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place.socket))
        server._accept(server._listener)
        await server.close()
        assert client.recv(1) == b""
