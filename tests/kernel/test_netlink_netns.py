"""Namespaces as `ip netns` keeps them, and kernel parameters inside."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.netns import create_netns, delete_netns, entered, in_namespace, open_netns
from poplin.dataplane.sysctl import read_sysctl, write_sysctl
from poplin.model.errors import InvalidInputError, KernelError
from poplin.model.kernel import Link, Veth
from poplin.plan.operation import Put


def own():
    return Path("/proc/thread-self/ns/net").readlink()


def ip_netns():
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines()}


def test_ip_netns_knows_what_we_make_and_we_delete_what_it_made(netns):
    name = f"pt{os.getpid()}-made"
    path = create_netns(name)
    try:
        assert name in ip_netns()
        with pytest.raises(KernelError, match=f"network namespace {name}: the name is taken"):
            create_netns(name)
        assert path.exists()
    finally:
        delete_netns(name)
    assert name not in ip_netns()
    delete_netns(name)
    subprocess.run(["ip", "netns", "add", name], check=True)
    delete_netns(name)
    assert name not in ip_netns()


def test_the_thread_comes_back(netns):
    home = own()
    inside = netns()
    with entered(inside.fd):
        assert own() != home
    assert own() == home
    with pytest.raises(ZeroDivisionError), entered(inside.fd):
        raise ZeroDivisionError
    assert own() == home


def test_a_socket_stays_where_it_was_made(netns):
    inside = netns()
    with in_namespace(inside.fd, RouteSocket) as socket:
        assert [link.name for link in socket.links()] == ["lo"]


def test_what_is_not_a_namespace_is_refused(tmp_path):
    home = own()
    file = tmp_path / "file"
    file.touch()
    fd = open_netns(file)
    try:
        with pytest.raises(KernelError) as caught, entered(fd):
            pytest.fail("entered a plain file")
        assert caught.value.errno == errno.EINVAL
    finally:
        os.close(fd)
    assert own() == home
    with pytest.raises(KernelError, match="No such file"):
        open_netns(tmp_path / "nosuch")
    for name in ("", "..", "a/b"):
        with pytest.raises(InvalidInputError):
            create_netns(name)


def test_a_parameter_is_written_only_where_it_differs(netns):
    node, pod = netns(), netns()
    assert node.socket.apply([Put(Veth(Link("eth0.100"), Link("eth0"), pod.fd))]) == []
    key = "net/ipv4/conf/eth0.100/rp_filter"
    with entered(node.fd):
        assert write_sysctl(key, 2)
        assert read_sysctl(key) == "2"
        assert not write_sysctl(key, 2)
        assert write_sysctl("net/ipv4/ping_group_range", "0 5")
        assert not write_sysctl("net/ipv4/ping_group_range", "0 5")
    assert node.run("cat", f"/proc/sys/{key}").strip() == "2"
    with entered(pod.fd), pytest.raises(KernelError, match=r"conf/eth0\.100/rp") as caught:
        read_sysctl(key)
    assert caught.value.errno == errno.ENOENT


def test_a_refused_parameter_names_key_and_value(netns):
    with (
        entered(netns().fd),
        pytest.raises(KernelError, match=r"sysctl net/ipv4/ip_forward: cannot set to maybe"),
    ):
        write_sysctl("net/ipv4/ip_forward", "maybe")


@pytest.mark.parametrize(
    "key", ["", "kernel/hostname", "net", "net/../kernel/hostname", "net.ipv4.ip_forward"]
)
def test_only_paths_below_net_are_parameters(key):
    with pytest.raises(InvalidInputError, match="not a network parameter"):
        read_sysctl(key)
