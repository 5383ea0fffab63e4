"""Names and MACs of attachments: lasting, distinct, and fit for the kernel."""

import re

from hypothesis import given
from hypothesis import strategies as st

from poplin.model.attachment import HOST_MAC, host_link_name, pod_mac

ids = st.text(min_size=1, max_size=80)


def is_local_unicast(mac):
    return int(mac[:2], 16) & 0b11 == 0b10


@given(ids, ids)
def test_a_host_link_name_fits_the_kernel(container_id, ifname):
    # IFNAMSIZ is 16 with its NUL; a name has no "/" and no space (dev_valid_name in net/core/dev.c).
    assert re.fullmatch(r"pop[0-9a-f]{12}", host_link_name(container_id, ifname))


@given(ids, ids)
def test_a_pod_mac_is_local_and_unicast(container_id, ifname):
    mac = pod_mac(container_id, ifname)
    assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac)
    assert is_local_unicast(mac)


def test_the_hosts_mac_is_local_and_unicast():
    assert is_local_unicast(HOST_MAC)


def test_names_and_macs_outlive_a_restart():
    # An agent that starts finds links by these: they are part of what is on disk and in the kernel.
    assert host_link_name("c1", "eth0") == "pop5ca9de511394"
    assert pod_mac("c1", "eth0") == "26:fa:07:fb:06:88"


def test_attachments_differ_in_name_and_mac():
    pairs = [(f"container{n}", ifname) for n in range(2000) for ifname in ("eth0", "net1")]
    assert len({host_link_name(*pair) for pair in pairs}) == len(pairs)
    assert len({pod_mac(*pair) for pair in pairs}) == len(pairs)
