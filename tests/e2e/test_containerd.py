"""Containerd calls poplin-cni: its own loopback, its own arguments, its own names of namespaces."""

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from e2e.containerd_node import running_containerd
from kernel.nodes import cluster, wait_for
from kernel.topology import Host
from poplin.dataplane.netns import open_netns
from poplin.lab.container import Binding
from poplin.lab.cri.client import Cri, CriError
from poplin.lab.cri.message import ExecRequest
from poplin.lab.cri.runtime import CriRuntime
from poplin.lab.cri.streaming import RemoteConsole
from poplin.lab.kubelet.runtime import ContainerOrder, ImageError
from poplin.lab.kubelet.stream.channel import Channel, Size
from unit.lab.pods import make_pod

BUSY = {"name": "main", "image": "busybox"}
IDLE = "trap 'exit 3' TERM; while :; do sleep 0.05; done"


@asynccontextmanager
async def runtime_of(running, **options):
    """A kubelet's end of it; several may come one after another."""
    containerd = running.containerd
    netns_fd = open_netns(containerd.netns)
    try:
        async with (
            Cri(containerd.address) as cri,
            CriRuntime(cri, netns_fd, logs=logs_of(running), cgroup=containerd.cgroup, **options) as runtime,
        ):
            runtime.logs = logs_of(running)
            yield runtime
    finally:
        os.close(netns_fd)


def logs_of(running):
    return running.containerd.directory.parent / "logs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two nodes with an agent and a containerd each."""
    with (
        cluster(tmp_path_factory.mktemp("ctd"), nodes=2) as c,
        running_containerd(c.nodes[0]) as first,
        running_containerd(c.nodes[1], c.nodes[0].directory / "images.tar") as second,
    ):
        yield c, first, second


@pytest.fixture
async def runtimes(site):
    _, first, second = site
    async with AsyncExitStack() as stack:
        both = [await stack.enter_async_context(runtime_of(one)) for one in (first, second)]
        yield both
        for runtime in both:
            for uid in runtime.pods():
                await runtime.remove_sandbox(uid)


@pytest.fixture
def runtime(runtimes):
    return runtimes[0]


def order(container, attempt=0, environment=None, bindings=(), **fields):
    given = {"name": "main", "image": "busybox", **container}
    return ContainerOrder(given, attempt, environment or {}, bindings, Path(), **fields)


def script(text):
    return {"command": ["sh", "-c", text]}


async def run(runtime, name, *orders, **spec):
    """A pod with these containers; its sandbox and their names."""
    pod = make_pod(name, *(one.container for one in orders), **spec)
    sandbox = await runtime.make_sandbox(pod)
    states = [await start(runtime, pod, one) for one in orders]
    return pod, sandbox, [state.id for state in states]


async def start(runtime, pod, one):
    log = runtime.logs / pod.uid / one.container["name"] / f"{one.attempt}.log"
    return await runtime.start(pod, replace(one, log=log))


async def output(runtime, name, *command):
    response = await runtime.cri.exec_sync(runtime.container_id(name), command, 10)
    assert response.exit_code == 0, response.stderr.decode()
    return response.stdout.decode()


def log_of(runtime, pod, stream, name="main", attempt=0):
    """What a container wrote to one stream: between two there is no order."""
    lines = (runtime.logs / pod.uid / name / f"{attempt}.log").read_text().splitlines()
    records = [line.split(" ", 3) for line in lines]
    return [text for _, where, _, text in records if where == stream]


def held_addresses(node):
    return {
        address.split("/")[0] for pod in node.ip("route", "show", "table", "main") for address in [pod["dst"]]
    }


async def test_a_pod_has_the_address_that_the_plugin_gave(site, runtime):
    node = site[0].nodes[0]
    pod, sandbox, [name] = await run(runtime, "web", order(script(IDLE)))
    assert [a.version for a in sandbox.addresses] == [4, 6]
    shown = await output(runtime, name, "ip", "-o", "addr", "show", "dev", "eth0")
    for address in sandbox.addresses:
        assert f" {address}/{address.max_prefixlen} " in shown
    # Containerd raised the loopback by its own plugin.
    assert "127.0.0.1/8" in await output(runtime, name, "ip", "-o", "addr", "show", "dev", "lo")
    assert (await output(runtime, name, "hostname")).strip() == "web"
    await runtime.remove_sandbox(pod.uid)
    assert str(sandbox.addresses[0]) not in held_addresses(node)
    assert list(runtime.pods()) == []
    assert await runtime.cri.list_sandboxes() == ()


async def test_pods_of_two_nodes_and_the_containers_of_one_reach_each_other(site, runtimes):
    ports = {"ports": [{"containerPort": 80}, {"containerPort": 5353, "protocol": "UDP"}]}
    _, server, _ = await run(
        runtimes[1], "server", order({"image": "example.org/missing:1", **ports}, stand_in=True)
    )
    _, client, [name, _] = await run(
        runtimes[0],
        "client",
        order(script(IDLE)),
        order({"name": "beside", "image": "example.org/missing:1", **ports}, stand_in=True),
    )
    for mine, theirs in zip(client.addresses, server.addresses, strict=True):
        host = f"[{theirs}]" if theirs.version == 6 else str(theirs)
        answer = await output(runtimes[0], name, "wget", "-q", "-O", "-", f"http://{host}/some/path")
        shown = f"[{mine}]" if mine.version == 6 else str(mine)
        assert answer.startswith(f"pod: server\nclient: {shown}:")
        assert "GET /some/path HTTP/1.1" in answer
        with site[0].nodes[0].udp(theirs.version) as asking:
            asking.sendto(b"hello", (str(theirs), 5353))
            said = asking.recv(512).decode()
        assert said.startswith("pod: server\n")
        assert said.endswith("hello")
    answer = await output(runtimes[0], name, "wget", "-q", "-O", "-", "http://127.0.0.1/")
    assert answer.startswith("pod: client\nclient: 127.0.0.1:")
    assert site[0].nodes[0].log.count("raceback") == 0


async def test_a_container_that_is_started_again_keeps_the_pods_address(runtime):
    first = order(script("echo one; exit 7"))
    pod, sandbox, [name] = await run(runtime, "again", first)
    ended = await asyncio.wait_for(runtime.wait(name), 10)
    assert (ended.code, ended.ended >= ended.since) == (7, True)
    state = await start(runtime, pod, order(script(IDLE), attempt=1))
    assert str(sandbox.addresses[0]) in await output(runtime, state.id, "ip", "addr", "show", "dev", "eth0")
    assert sorted(runtime.find(pod.uid, "main")) == [0, 1]
    assert (await runtime.stop(state.id, 5)).code == 3


async def test_who_does_not_heed_sigterm_is_killed_after_the_grace(runtime):
    _, _, [name] = await run(runtime, "stubborn", order(script("trap '' TERM; while :; do sleep 0.05; done")))
    began = time.monotonic()
    assert (await runtime.stop(name, 1)).code == 128 + signal.SIGKILL
    assert time.monotonic() - began >= 1


async def test_output_environment_files_and_limits(site, runtime, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "hosts").write_text("10.0.0.1 known\n")
    bindings = [
        Binding(str(tmp_path / "data"), "/data"),
        Binding(str(tmp_path / "hosts"), "/etc/hosts", read_only=True),
    ]
    text = "echo $GREETING $(id -u) $(cat /etc/hosts) $1; echo written > /data/file; echo bad >&2; echo x > /etc/hosts"
    container = {
        "command": ["sh", "-c", text, "sh"],
        "args": ["$(GREETING)!"],
        "resources": {"limits": {"memory": "32Mi", "cpu": "250m"}},
        "securityContext": {"runAsUser": 0},
    }
    pod, _, [name] = await run(runtime, "io", order(container, 0, {"GREETING": "hello"}, bindings))
    assert (await asyncio.wait_for(runtime.wait(name), 10)).code == 1
    assert log_of(runtime, pod, "stdout") == ["hello 0 10.0.0.1 known hello!"]
    bad, refused = log_of(runtime, pod, "stderr")
    assert bad == "bad"
    assert "Read-only file system" in refused
    assert (tmp_path / "data" / "file").read_text() == "written\n"


async def test_limits_are_set_in_the_pods_cgroup(site, runtime):
    limits = {"resources": {"limits": {"memory": "32Mi", "cpu": "250m"}}}
    pod, _, [name] = await run(runtime, "small", order({**script(IDLE), **limits}))
    top = Path("/sys/fs/cgroup/memory") / site[1].containerd.cgroup.lstrip("/") / f"pod{pod.uid}"
    if not top.exists():  # version 2 has no hierarchy for each controller
        top = Path("/sys/fs/cgroup") / site[1].containerd.cgroup.lstrip("/") / f"pod{pod.uid}"
    own = top / runtime.container_id(name)
    found = [own / file for file in ("memory.limit_in_bytes", "memory.max") if (own / file).exists()]
    assert [int(path.read_text()) for path in found] == [32 << 20]


async def test_a_command_has_streams_and_input_that_ends(site, runtime):
    _, _, [name] = await run(runtime, "streams", order(script(IDLE)))
    command = ("sh", "-c", "wc -c; echo err >&2; exit 9")
    console = await runtime.open_command(name, command, {}, stdin=True, tty=False)
    out, err = (asyncio.create_task(collect(console.outputs[c])) for c in (Channel.STDOUT, Channel.STDERR))
    async with asyncio.timeout(10):
        for _ in range(20):
            await console.write(b"x" * 50_000)
        await console.write(b"")
        assert (await out, await err) == (b"1000000\n", b"err\n")
        assert exit_code(await console.wait()) == 9
    console.close()
    assert await runtime.execute(name, ["sh", "-c", "exit 4"], {}, 5) == 4


def exit_code(status):
    return int(status["details"]["causes"][0]["message"]) if status["status"] == "Failure" else 0


async def collect(output):
    return b"".join([data async for data in output])


async def test_a_command_has_a_terminal_of_the_clients_size(site, runtime):
    _, _, [name] = await run(runtime, "terminal", order(script(IDLE)))
    console = await runtime.open_command(name, ["sh"], {}, stdin=True, tty=True)
    console.resize(Size(120, 33))
    output = console.outputs[Channel.STDOUT]
    assert Channel.STDERR not in console.outputs
    seen = b""
    async with asyncio.timeout(10):
        while b"33 120" not in seen:
            await console.write(b"stty size\n")
            seen += await anext(output)
        await console.write(b"exit 6\n")
        async for _ in output:
            pass
        assert exit_code(await console.wait()) == 6
    console.close()


async def test_a_url_of_streams_can_be_used_once(site, runtime):
    _, _, [name] = await run(runtime, "once", order(script(IDLE)))
    url = await runtime.cri.exec_url(ExecRequest(runtime.container_id(name), ("true",)))
    netns_fd = open_netns(site[1].containerd.netns)
    try:
        (await RemoteConsole.open(url, netns_fd, stdin=False, tty=False)).close()
        with pytest.raises(CriError, match="404"):
            await RemoteConsole.open(url, netns_fd, stdin=False, tty=False)
    finally:
        os.close(netns_fd)


async def test_who_attaches_talks_to_the_containers_own_process(runtime):
    one = order({**script("read x; echo got $x; sleep 0.2; exit 2"), "stdin": True})
    _, _, [name] = await run(runtime, "attached", one)
    console = await runtime.attach(name, one, stdin=True)
    async with asyncio.timeout(10):
        await console.write(b"word\n")
        assert await collect(console.outputs[Channel.STDOUT]) == b"got word\n"
        await console.wait()
        assert (await runtime.wait(name)).code == 2
    console.close()


async def test_a_pod_on_the_nodes_network(site, runtime):
    node = site[0].nodes[0]
    _, sandbox, [name] = await run(runtime, "host", order(script(IDLE)), hostNetwork=True)
    assert list(sandbox.addresses) == []
    assert node.addresses[4] in await output(runtime, name, "ip", "addr", "show", "dev", "eth0")
    assert (await output(runtime, name, "hostname")).strip() == node.node_name


async def test_a_process_namespace_is_shared_where_it_is_asked_for(runtime):
    _, _, [name, _] = await run(
        runtime,
        "shared",
        order(script(IDLE)),
        order({"name": "beside", "command": ["sleep", "1234"]}),
        shareProcessNamespace=True,
    )
    assert "sleep 1234" in await output(runtime, name, "ps")


async def test_an_image_that_is_not_here_is_known_to_be_missing(site, runtime):
    assert await runtime.can_run({"image": "busybox"}, {})
    assert await runtime.can_run({"image": "docker.io/library/busybox:latest"}, {})
    missing = {"image": "example.org/missing:1"}
    assert not await runtime.can_run(missing, {})
    with pytest.raises(ImageError, match="pull policy of Never") as caught:
        await runtime.can_run({**missing, "imagePullPolicy": "Never"}, {})
    assert caught.value.reason == "ErrImageNeverPull"
    async with runtime_of(site[1], stand_in=False) as strict:
        with pytest.raises(ImageError, match="poplin lab load") as caught:
            await strict.can_run(missing, {})
        assert caught.value.reason == "ErrImagePull"
    with pytest.raises(CriError, match=r"missing"):
        await run(runtime, "missing", order(missing))


async def test_a_kubelet_that_starts_finds_what_runs(site, runtime):
    pod, sandbox, [runs] = await run(runtime, "kept", order(script(IDLE)))
    ended = await start(runtime, pod, order({"name": "done", **script("exit 5")}))
    await asyncio.wait_for(runtime.wait(ended.id), 10)
    async with runtime_of(site[1]) as successor:
        assert successor.sandbox(pod.uid) == sandbox
        assert set(successor.pods()) == {pod.uid}
        assert successor.find(pod.uid, "main")[0].code is None
        assert successor.find(pod.uid, "done")[0].code == 5
        assert (await successor.stop(runs, 5)).code == 3
    assert (await asyncio.wait_for(runtime.wait(runs), 10)).code == 3


async def test_containerd_dies_and_pods_do_not(site, runtime):
    c, first, _ = site
    pod, sandbox, [name] = await run(runtime, "survivor", order(script(IDLE)))
    other, gone, _ = await run(runtime, "leaver", order(script(IDLE)))
    [pid] = first.processes("containerd")
    os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: first.processes("containerd") not in ([], [pid]) and first.answers(), "containerd is back"
    )
    for _ in range(100):
        if await _tells(runtime, pod.uid):
            break
        await asyncio.sleep(0.05)
    await asyncio.to_thread(ping, c.nodes[0], sandbox)
    # Containers of a pod that is older than this containerd: one ends, another is made, all is removed.
    assert (await runtime.stop(name, 5)).code == 3
    state = await start(runtime, pod, order(script(IDLE), attempt=1))
    assert str(sandbox.addresses[0]) in await output(runtime, state.id, "ip", "addr", "show", "dev", "eth0")
    for uid in (pod.uid, other.uid):
        await runtime.remove_sandbox(uid)
    assert not {str(one) for s in (sandbox, gone) for one in s.addresses} & held_addresses(c.nodes[0])
    assert first.processes("containerd-shim-runc-v2") == []


async def _tells(runtime, uid):
    try:
        return uid in [one.metadata.uid for one in await runtime.cri.list_sandboxes()]
    except CriError:
        return False


def ping(node, sandbox):
    for address in sandbox.addresses:
        node.run("ping", "-c", "1", "-W", "2", str(address))


async def test_nothing_is_left_when_everything_is_killed(tmp_path):
    with cluster(tmp_path, nodes=1) as c:
        with running_containerd(c.nodes[0]) as running:
            async with runtime_of(running) as runtime:
                _, sandbox, _ = await run(runtime, "doomed", order(script(IDLE)))
                names = list(running.containerd.netns_names.iterdir())
                assert len(names) == 1
                assert running.processes("containerd-shim-runc-v2")
            running.kill()
            # The pod's namespace has lost its last process, and its name keeps it.
            assert str(sandbox.addresses[0]) in held_addresses(c.nodes[0])
        # That nothing of it is left was looked at on the way out; the kernel has taken the link along.
        wait_for(lambda: str(sandbox.addresses[0]) not in held_addresses(c.nodes[0]), "the pod's link goes")


async def test_a_failed_attachment_leaves_no_sandbox(site, runtime):
    node: Host = site[0].nodes[0]
    node.kill()
    try:
        with pytest.raises(CriError, match="agent"):
            await run(runtime, "unattached", order(script(IDLE)))
        assert await runtime.cri.list_sandboxes() == ()
    finally:
        node.start()
        node.wait_ready()
    _, sandbox, _ = await run(runtime, "unattached", order(script(IDLE)))
    assert sandbox.ready
