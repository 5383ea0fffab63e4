"""Services by real agents and real packets: who is reached, as whom, and what is refused or dropped.

Two nodes with pods, and a host outside that has routes to the Services by way of the first node.
"""

import errno
import json
import socket
import time
from contextlib import contextmanager, suppress
from ipaddress import ip_network

import pytest

from kernel.nodes import OUTSIDE, cluster, wait_for

CIDR = {4: "10.96.0.0/16", 6: "fd00:10:96::/112"}
EXTERNAL = {4: "203.0.113.0/24", 6: "2001:db8:113::/64"}
PORT = 8080
ANSWER_S = 1.5
"""How long an answer is waited for that should come; what should not gets `SILENCE_S`."""
SILENCE_S = 0.4
OPTIONS = ("--services", "--service-cidr", ",".join(CIDR.values()))

both_families = pytest.mark.parametrize("version", [4, 6])


def cluster_ip(number, version):
    return str(ip_network(CIDR[version])[number])


def external(number, version):
    return str(ip_network(EXTERNAL[version])[number])


def service(name, number, version, *, kind="ClusterIP", protocols=("TCP", "UDP"), node_port=0, **spec):
    ports = [
        {"name": p.lower(), "protocol": p, "port": 80, **({"nodePort": node_port} if node_port else {})}
        for p in protocols
    ]
    ingress = spec.pop("ingress", [])
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": kind, "clusterIPs": [cluster_ip(number, version)], "ports": ports, **spec},
        "status": {"loadBalancer": {"ingress": ingress}},
    }


def endpoint(host, version, node, **conditions):
    return {"addresses": [host.addresses[version]], "nodeName": node.node_name, "conditions": conditions}


def slice_of(name, version, *endpoints):
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
        "addressType": f"IPv{version}",
        "ports": [{"name": p.lower(), "protocol": p, "port": PORT} for p in ("TCP", "UDP")],
        "endpoints": list(endpoints),
    }


class World:
    """Two nodes: pods a and b on the first, c on the second. `serve` puts Services in force."""

    def __init__(self, made):
        self.cluster = made
        self.here, self.there = made.nodes
        self.a, self.b = self.here.add_pod(), self.here.add_pod()
        self.c = self.there.add_pod()
        self.outside = made.outside
        self.hosts = {
            "a": self.a,
            "b": self.b,
            "c": self.c,
            "here": self.here,
            "there": self.there,
            "outside": self.outside,
        }
        self.base = made.read_state()
        for version in (4, 6):
            for block in (CIDR[version], EXTERNAL[version]):
                for host, gateway in (
                    (made.outside, {4: "198.51.100.1", 6: "2001:db8:100::1"}[version]),
                    (made.fabric, self.here.addresses[version]),
                ):
                    host.run("ip", f"-{version}", "route", "add", block, "via", gateway)

    def serve(self, *objects):
        """Have these Services and slices in force on both nodes, and no others."""
        self.cluster.write_state([*self.cluster_objects(), *objects])
        names = {(o["kind"], o["metadata"]["name"]) for o in objects}
        for node in (self.here, self.there):
            wait_for(lambda node=node: self.stands(node, objects), f"{node.node_name} serves {names}")

    def cluster_objects(self):
        return [
            o for o in self.cluster.read_state() if o["kind"] not in {"Service", "EndpointSlice", "Event"}
        ]

    def stands(self, node, objects):
        """Whether the kernel has exactly the cluster addresses of these, and their endpoints."""
        addresses = {ip for o in objects if o["kind"] == "Service" for ip in o["spec"]["clusterIPs"]}
        found = {row["address"] for row in self.listing(node) if row["kind"] == "ClusterIP"}
        _, report = node.get("/audit", "POST")
        return found == addresses and json.loads(report)["mended"] == 0

    def listing(self, node):
        _, listing = node.get("/services")
        return json.loads(listing)["frontends"]

    @contextmanager
    def listening(self, version):
        """Every host listens on PORT, by TCP and UDP."""
        try:
            yield {
                name: (host.listen(version, PORT), host.udp(version, PORT))
                for name, host in self.hosts.items()
            }
        finally:
            self.cluster.close_sockets()

    def visit(self, source, address, port, protocol, listeners, version):
        """Who answers, and whom it saw: ("a", "10.244.1.3"); or "refused", "dropped"."""
        host = self.hosts[source]
        kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
        with host.open(version, kind) as client:
            client.settimeout(SILENCE_S)
            try:
                client.connect((address, port))
                if protocol == "UDP":
                    with suppress(PermissionError):  # what the node's own output hook says of either refusal
                        client.send(b"x")
                    return self.received(client, listeners)
            except ConnectionRefusedError:
                return "refused"
            except TimeoutError:
                return "dropped"
            except OSError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
                return "lost"  # went round in circles
            for name, (tcp, _) in listeners.items():
                tcp.settimeout(0)
                try:
                    accepted, peer = tcp.accept()
                except BlockingIOError:
                    continue
                accepted.close()
                return name, peer[0]
        raise AssertionError("a connection that nobody accepted")

    def received(self, client, listeners):
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline:
            for name, (_, udp) in listeners.items():
                udp.settimeout(0)
                try:
                    _, peer = udp.recvfrom(10)
                except BlockingIOError:
                    continue
                return name, peer[0]
            client.settimeout(0)
            try:
                client.recv(1)
            except BlockingIOError:
                time.sleep(0.005)
        return "dropped"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("services"), nodes=2, options=OPTIONS) as made:
        yield World(made)


def rows_of(world, version):
    """Services, and rows: source, address, port -> the endpoints it may reach and as whom it is seen.

    "own" is the client's own address, "node" one of the first node's; None where both may be seen.
    """
    w, v = world, version
    here = [endpoint(w.a, v, w.here), endpoint(w.b, v, w.here)]
    far = endpoint(w.c, v, w.there)
    host = endpoint(w.there, v, w.there)
    node = w.here.addresses[v]

    def balanced(name, number, node_port, **spec):
        return service(
            name,
            number,
            v,
            kind="LoadBalancer",
            node_port=node_port,
            ingress=[{"ip": external(number, v)}],
            **spec,
        )

    objects = [
        service("plain", 1, v),
        slice_of("plain", v, *here, far),
        service("alone", 2, v),
        slice_of("alone", v, here[0]),
        service("remote", 3, v),
        slice_of("remote", v, far),
        service("empty", 4, v, kind="NodePort", node_port=30004, externalIPs=[external(4, v)]),
        balanced("cluster", 5, 30005, externalIPs=[external(105, v)]),
        slice_of("cluster", v, *here, far),
        balanced("local", 6, 30006, externalTrafficPolicy="Local"),
        slice_of("local", v, here[0], far),
        balanced("localless", 7, 30007, externalTrafficPolicy="Local"),
        slice_of("localless", v, far),
        service("inside", 8, v, internalTrafficPolicy="Local"),
        slice_of("inside", v, here[0], far),
        service("insideless", 9, v, internalTrafficPolicy="Local"),
        slice_of("insideless", v, far),
        balanced("ranged", 10, 30010, loadBalancerSourceRanges=[f"{OUTSIDE[v]}/{32 if v == 4 else 128}"]),
        slice_of("ranged", v, here[0]),
        balanced("unranged", 11, 30011, loadBalancerSourceRanges=[EXTERNAL[v]]),
        slice_of("unranged", v, here[0]),
        service("proxied", 12, v, kind="LoadBalancer", ingress=[{"ip": external(12, v), "ipMode": "Proxy"}]),
        slice_of("proxied", v, here[0]),
        service("hosted", 13, v),
        slice_of("hosted", v, host),
        service("ending", 14, v),
        slice_of("ending", v, endpoint(w.a, v, w.here, ready=False, serving=True, terminating=True)),
        service("mixed", 15, v),
        slice_of("mixed", v, endpoint(w.a, v, w.here, ready=False, serving=True, terminating=True), here[1]),
        service("unready", 16, v),
        slice_of("unready", v, endpoint(w.a, v, w.here, ready=False)),
    ]
    ip, ext = (lambda n: cluster_ip(n, v)), (lambda n: external(n, v))
    rows = [
        # ClusterIP
        ("a", ip(2), 80, {"a"}, "node"),
        ("b", ip(2), 80, {"a"}, "own"),
        ("c", ip(2), 80, {"a"}, "own"),
        ("b", ip(1), 80, {"a", "b", "c"}, None),
        ("b", ip(3), 80, {"c"}, "own"),
        ("here", ip(2), 80, {"a"}, None),
        ("here", ip(3), 80, {"c"}, None),
        ("outside", ip(3), 80, {"c"}, "node"),
        ("outside", ip(2), 80, {"a"}, "node"),
        ("a", ip(13), 80, {"there"}, None),
        ("here", ip(13), 80, {"there"}, None),
        # refused and dropped
        ("a", ip(2), 81, "refused", None),
        ("here", ip(2), 81, "refused", None),
        ("outside", ip(2), 81, "refused", None),
        ("a", ip(200), 80, "dropped", None),
        ("a", ip(4), 80, "refused", None),
        ("here", ip(4), 80, "refused", None),
        ("outside", ext(4), 80, "refused", None),
        ("outside", node, 30004, "refused", None),
        ("a", ip(16), 80, "refused", None),
        # node ports, external addresses: the policy Cluster
        ("outside", node, 30005, {"a", "b", "c"}, "node"),
        ("outside", ext(5), 80, {"a", "b", "c"}, "node"),
        ("outside", ext(105), 80, {"a", "b", "c"}, "node"),
        ("b", ext(5), 80, {"a", "b", "c"}, None),
        ("b", node, 30005, {"a", "b", "c"}, None),
        ("here", node, 30005, {"a", "b", "c"}, None),
        ("here", ext(5), 80, {"a", "b", "c"}, None),
        # the policy Local
        ("outside", node, 30006, {"a"}, "own"),
        ("outside", ext(6), 80, {"a"}, "own"),
        ("b", ext(6), 80, {"a", "c"}, "own"),
        ("here", ext(6), 80, {"a", "c"}, None),
        ("outside", node, 30007, "dropped", None),
        ("outside", ext(7), 80, "dropped", None),
        ("b", ext(7), 80, {"c"}, "own"),
        ("here", node, 30007, {"c"}, None),
        ("b", ip(8), 80, {"a"}, "own"),
        ("c", ip(8), 80, {"c"}, None),
        ("b", ip(9), 80, "dropped", None),
        ("c", ip(9), 80, {"c"}, None),
        # source ranges, and who they are not for
        ("outside", ext(10), 80, {"a"}, "node"),
        ("b", ext(10), 80, "dropped", None),
        ("outside", ext(11), 80, "dropped", None),
        ("outside", node, 30011, {"a"}, "node"),
        ("b", ip(11), 80, {"a"}, "own"),
        # readiness
        ("b", ip(14), 80, {"a"}, "own"),
        ("b", ip(15), 80, {"b"}, "node"),
    ]
    return objects, rows


@both_families
def test_who_is_reached_and_as_whom(world, version):
    objects, rows = rows_of(world, version)
    world.serve(*objects)
    wrong = []
    with world.listening(version) as listeners:
        for source, address, port, expected, seen in rows:
            for protocol in ("TCP", "UDP"):
                row = f"{protocol} {source} -> {address}:{port}"
                for _ in range(1 if isinstance(expected, str) or len(expected) == 1 else 8):
                    found = world.visit(source, address, port, protocol, listeners, version)
                    if isinstance(expected, str) or isinstance(found, str):
                        if found != expected:
                            wrong.append(f"{row}: {found}, not {expected}")
                        continue
                    name, peer = found
                    if name not in expected:
                        wrong.append(f"{row}: {name}, not {expected}")
                    own = peer == world.hosts[source].addresses[version]
                    if seen is not None and own != (seen == "own"):
                        wrong.append(f"{row}: {name} saw {peer}, not {seen}")
    assert not wrong, "\n".join(wrong)


@both_families
def test_every_endpoint_is_drawn(world, version):
    world.serve(
        service("plain", 1, version),
        slice_of("plain", version, *(endpoint(p, version, world.here) for p in (world.a, world.b, world.c))),
    )
    with world.listening(version) as listeners:
        seen = [world.visit("b", cluster_ip(1, version), 80, "TCP", listeners, version)[0] for _ in range(60)]
    assert set(seen) == {"a", "b", "c"}


def sticky(world, version, *pods, timeout_s):
    config = {"clientIP": {"timeoutSeconds": timeout_s}}
    return (
        service("sticky", 1, version, sessionAffinity="ClientIP", sessionAffinityConfig=config),
        slice_of("sticky", version, *(endpoint(pod, version, world.here) for pod in pods)),
    )


@both_families
def test_a_client_stays_with_its_endpoint_until_that_goes(world, version):
    pods = {"a": world.a, "b": world.b, "c": world.c}

    def serve(*names):
        world.serve(*sticky(world, version, *(pods[name] for name in names), timeout_s=60))

    def visits():
        address = cluster_ip(1, version)
        return {world.visit("c", address, 80, "TCP", listeners, version)[0] for _ in range(20)}

    serve(*pods)
    with world.listening(version) as listeners:
        first = visits()
        assert len(first) == 1
        [kept] = first
        left = [name for name in pods if name != kept]
        serve(kept, left[0])
        assert visits() == first
        serve(*left)
        second = visits()
        assert len(second) == 1
        assert second != first
        serve(*pods)
        assert visits() == second


@both_families
def test_a_client_is_forgotten_after_the_timeout(world, version):
    world.serve(*sticky(world, version, world.a, world.b, world.c, timeout_s=1))
    with world.listening(version) as listeners:
        drawn = set()
        for _ in range(20):  # that the same is drawn each time happens once in 10^9
            drawn.add(world.visit("c", cluster_ip(1, version), 80, "TCP", listeners, version)[0])
            if len(drawn) > 1:
                break
            time.sleep(1.3)
    assert len(drawn) > 1


@both_families
def test_udp_follows_the_endpoints(world, version):
    """A client that goes on sending from one port reaches who serves now."""
    world.serve(
        service("plain", 1, version), slice_of("plain", version, endpoint(world.a, version, world.here))
    )
    with world.listening(version) as listeners, world.b.open(version, socket.SOCK_DGRAM) as client:
        client.connect((cluster_ip(1, version), 80))

        def heard_by(name):
            def heard():
                client.send(b"x")
                return world.received(client, listeners)[0] == name

            return heard

        assert heard_by("a")()
        world.serve(
            service("plain", 1, version), slice_of("plain", version, endpoint(world.c, version, world.there))
        )
        wait_for(heard_by("c"), "the datagrams go to c")
        # Where nobody serves there is nothing better: the flow is left as it is.
        world.serve(service("plain", 1, version))
        assert heard_by("c")()


@both_families
def test_connections_outlive_their_endpoint_and_the_table(world, version):
    world.serve(
        service("plain", 1, version), slice_of("plain", version, endpoint(world.a, version, world.here))
    )
    with world.listening(version) as listeners:
        client = world.b.connect(cluster_ip(1, version), 80)
        server = listeners["a"][0].accept()[0]
        world.serve(service("plain", 1, version))
        world.here.run("nft", "delete", "table", "inet", "poplin-services")
        for near, far in ((client, server), (server, client)):
            far.settimeout(ANSWER_S)
            near.send(b"still")
            assert far.recv(10) == b"still"
        server.close()


DAMAGES = {
    "the table deleted": ["delete table inet poplin-services"],
    "an element deleted": ["flush map inet poplin-services endpoints-4"],
    "a chain emptied": ["flush chain inet poplin-services prerouting"],
    "a stranger's rule": ["insert rule inet poplin-services prerouting drop"],
    "all tables flushed": ["flush ruleset"],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_others_do_to_the_table_is_undone(world, damage):
    world.serve(service("plain", 1, 4), slice_of("plain", 4, endpoint(world.a, 4, world.here)))
    for command in DAMAGES[damage]:
        world.here.run("nft", *command.split())
    with world.listening(4) as listeners:
        wait_for(
            lambda: world.visit("b", cluster_ip(1, 4), 80, "TCP", listeners, 4)[0] == "a",
            "it is served again",
        )
    assert world.here.poplin("check").status == 0


def test_services_are_listed_with_their_hits(world):
    version = 4
    world.serve(
        service("listed", 21, version, kind="NodePort", node_port=30001, protocols=("TCP",)),
        slice_of(
            "listed", version, endpoint(world.a, version, world.here), endpoint(world.c, version, world.there)
        ),
        service("empty", 22, version, protocols=("UDP",)),
    )
    with world.listening(version) as listeners:
        for _ in range(10):
            world.visit("b", cluster_ip(21, version), 80, "TCP", listeners, version)
    rows = {(row["kind"], row["address"], row["port"]): row for row in world.listing(world.here)}
    assert rows.keys() == {
        ("ClusterIP", cluster_ip(21, version), 80),
        ("NodePort", world.here.addresses[4], 30001),
        ("ClusterIP", cluster_ip(22, version), 80),
    }
    row = rows["ClusterIP", cluster_ip(21, version), 80]
    assert (row["namespace"], row["name"], row["protocol"]) == ("shop", "listed", "TCP")
    assert {one["address"] for one in row["endpoints"]} == {world.a.addresses[4], world.c.addresses[4]}
    assert row["hits"] == sum(one["hits"] for one in row["endpoints"]) == 10
    assert rows["ClusterIP", cluster_ip(22, version), 80]["verdict"] == "reject"
    text = world.here.poplin("services").output
    assert "shop/listed" in text
    assert f"{world.a.addresses[4]}:{PORT}" in text


def test_health_checks_of_load_balancers(world):
    def checked(*endpoints):
        balanced = service(
            "local", 6, 4, kind="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=30999
        )
        world.serve(balanced, slice_of("local", 4, *endpoints))

    def ask(node):
        with world.outside.connect(node.addresses[4], 30999) as client:
            client.settimeout(ANSWER_S)
            client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b""
            while data := client.recv(4096):
                answer += data
        head, _, body = answer.decode().partition("\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    checked(endpoint(world.a, 4, world.here), endpoint(world.b, 4, world.here))
    said = {"service": {"namespace": "shop", "name": "local"}, "serviceProxyHealthy": True}
    assert ask(world.here) == (200, said | {"localEndpoints": 2})
    assert ask(world.there) == (503, said | {"localEndpoints": 0})
    world.serve()
    with pytest.raises(OSError, match="refused"):
        wait_for(lambda: ask(world.here) is None, "the port is closed", timeout_s=5)


def test_hints_keep_packets_in_the_zone(world):
    def hinted(pod, node, zone):
        return endpoint(pod, 4, node) | {"hints": {"forZones": [{"name": zone}]}}

    zones = {"n1": "east", "n2": "west"}
    before = world.cluster_objects()
    objects = [
        {
            **o,
            "metadata": {
                **o["metadata"],
                "labels": {"topology.kubernetes.io/zone": zones[o["metadata"]["name"]]},
            },
        }
        if o["kind"] == "Node"
        else o
        for o in before
    ]
    world.cluster.write_state(objects)
    try:
        world.serve(
            service("plain", 1, 4),
            slice_of("plain", 4, hinted(world.a, world.here, "east"), hinted(world.c, world.there, "west")),
        )
        with world.listening(4) as listeners:
            for source, near in (("b", "a"), ("c", "c")):
                wait_for(
                    lambda source=source, near=near: (
                        {world.visit(source, cluster_ip(1, 4), 80, "TCP", listeners, 4)[0] for _ in range(12)}
                        == {near}
                    ),
                    f"{source} stays near",
                )
    finally:
        world.cluster.write_state(before)


def test_bad_input_is_told_and_the_rest_is_served(world):
    with world.here.listen(4, 30001):
        bad_slice = slice_of("other", 4, {"addresses": ["10.244.1.999"]})
        world.cluster.write_state(
            [
                *world.cluster_objects(),
                service("plain", 1, 4, kind="NodePort", node_port=30001, protocols=("TCP",)),
                slice_of("plain", 4, endpoint(world.a, 4, world.here)),
                service("thief", 2, 4, externalIPs=[cluster_ip(1, 4)], protocols=("TCP",)),
                {**service("odd", 3, 4), "spec": {"clusterIPs": ["none such"]}},
                bad_slice,
            ]
        )

        wrong = {
            "Service shop/plain": "a process of the node listens on node port TCP 30001",
            "Service shop/thief": f"{cluster_ip(1, 4)} TCP 80 is Service shop/plain's",
            "Service shop/odd": "spec.clusterIPs[0]: 'none such' is not an IP address",
            "EndpointSlice shop/other": "endpoints[0].addresses[0]",
        }
        for about, text in wrong.items():
            # An Event; with a file for a cluster that is a line in the log.
            wait_for(
                lambda about=about, text=text: (
                    f"{about}: ServiceNotServed: " in world.here.log and text in world.here.log
                ),
                f"{about} is told of",
            )
        problems = world.here.status()["problems"]
        assert all(
            any(f"{about}: " in one and text in one for one in problems) for about, text in wrong.items()
        )
    with world.listening(4) as listeners:
        assert world.visit("b", cluster_ip(1, 4), 80, "TCP", listeners, 4)[0] == "a"


def test_an_agent_that_starts_again_and_one_that_leaves_services_alone(world):
    world.serve(service("plain", 1, 4), slice_of("plain", 4, endpoint(world.a, 4, world.here)))
    with world.listening(4) as listeners:
        client = world.b.connect(cluster_ip(1, 4), 80)
        server = listeners["a"][0].accept()[0]
        world.here.kill()
        assert world.visit("b", cluster_ip(1, 4), 80, "TCP", listeners, 4)[0] == "a"
        world.here.start("--no-services")
        world.here.wait_ready()
        assert "poplin-services" not in world.here.run("nft", "list", "tables")
        world.here.stop()
        world.here.start()
        world.here.wait_ready()
        wait_for(
            lambda: world.visit("b", cluster_ip(1, 4), 80, "TCP", listeners, 4)[0] == "a",
            "it is served again",
        )
        client.send(b"x")
        server.settimeout(ANSWER_S)
        assert server.recv(1) == b"x"
        server.close()
