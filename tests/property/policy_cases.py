"""Small clusters with policies, as the YAML that a user would write, and the packets to ask about."""

from hypothesis import strategies as st

NAMESPACES = ("x", "y")
NAMES = ("a", "b", "c")
KEYS = ("app", "tier")
VALUES = ("web", "db")
NODES = {"n1": "192.0.2.1", "n2": "192.0.2.2"}
OUTSIDE = ("198.51.100.1", "198.51.100.200", "2001:db8:100::1")
PORTS = (80, 81, 5000)
PORT_NAMES = ("http", "admin")
PROTOCOLS = ("TCP", "UDP")
BLOCKS = {
    "0.0.0.0/0": ["198.51.100.0/24", "10.244.1.0/24"],
    "10.244.0.0/16": ["10.244.1.0/24", "10.244.2.2/32"],
    "198.51.100.0/24": ["198.51.100.128/25"],
    "::/0": ["fd00:10:244:1::/64"],
    "fd00:10:244::/48": ["fd00:10:244:2::/64"],
}

labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))
requirements = st.one_of(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(KEYS),
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(st.sampled_from(VALUES), min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries(
        {"key": st.sampled_from(KEYS), "operator": st.sampled_from(["Exists", "DoesNotExist"])}
    ),
)
label_selectors = st.one_of(
    st.just({}),
    st.builds(lambda some: {"matchLabels": some}, labels),
    st.builds(lambda some: {"matchExpressions": some}, st.lists(requirements, max_size=2)),
    st.builds(lambda one, more: {"matchLabels": one, "matchExpressions": [more]}, labels, requirements),
)


@st.composite
def blocks(draw):
    cidr = draw(st.sampled_from(sorted(BLOCKS)))
    holes = draw(st.lists(st.sampled_from(BLOCKS[cidr]), unique=True))
    return {"ipBlock": {"cidr": cidr} | ({"except": holes} if holes else {})}


peers = st.one_of(
    st.builds(lambda pods: {"podSelector": pods}, label_selectors),
    st.builds(lambda spaces: {"namespaceSelector": spaces}, label_selectors),
    st.builds(
        lambda pods, spaces: {"podSelector": pods, "namespaceSelector": spaces},
        label_selectors,
        label_selectors,
    ),
    blocks(),
)
ports = st.one_of(
    st.builds(lambda protocol: {"protocol": protocol}, st.sampled_from(PROTOCOLS)),
    st.builds(
        lambda protocol, port: {"protocol": protocol, "port": port},
        st.sampled_from(PROTOCOLS),
        st.sampled_from([*PORTS, *PORT_NAMES]),
    ),
    st.builds(lambda port: {"port": port}, st.sampled_from(PORTS)),
    st.builds(lambda last: {"port": 80, "endPort": last}, st.sampled_from([80, 81, 6000])),
)


def rules(word):
    return st.lists(
        st.builds(
            lambda some, at: ({word: some} if some else {}) | ({"ports": at} if at else {}),
            st.lists(peers, max_size=2),
            st.lists(ports, max_size=3),
        ),
        max_size=2,
    )


@st.composite
def policies(draw, name):
    types = draw(st.sampled_from([None, ["Ingress"], ["Egress"], ["Ingress", "Egress"]]))
    spec = {"podSelector": draw(label_selectors)}
    if types is not None:
        spec["policyTypes"] = types
    spec |= draw(st.fixed_dictionaries({}, optional={"ingress": rules("from"), "egress": rules("to")}))
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": draw(st.sampled_from(NAMESPACES))},
        "spec": spec,
    }


def namespace(name, some_labels):
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": some_labels}}


def node(name, address):
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


@st.composite
def pods(draw, number, space, name):
    which = draw(st.integers(1, 2))
    declared = draw(st.dictionaries(st.sampled_from(PORT_NAMES), st.sampled_from(PORTS)))
    protocol = draw(st.sampled_from(PROTOCOLS))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space, "labels": draw(labels)},
        "spec": {
            "nodeName": f"n{which}",
            "containers": [
                {
                    "ports": [
                        {"name": title, "containerPort": port, "protocol": protocol}
                        for title, port in declared.items()
                    ]
                }
            ],
        },
        "status": {
            "phase": "Running",
            "podIPs": [
                {"ip": f"10.244.{which}.{number + 2}"},
                {"ip": f"fd00:10:244:{which}::{number + 2:x}"},
            ],
        },
    }


@st.composite
def clusters(draw):
    """A list of objects."""
    objects = [node(name, address) for name, address in NODES.items()]
    objects += [namespace(name, draw(labels)) for name in NAMESPACES]
    places = [(space, name) for space in NAMESPACES for name in NAMES]
    objects += [draw(pods(number, *place)) for number, place in enumerate(places)]
    return objects + [draw(policies(f"p{number}")) for number in range(draw(st.integers(0, 4)))]
