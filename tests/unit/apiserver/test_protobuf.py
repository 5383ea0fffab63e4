import pytest

from poplin.apiserver.protobuf import MAGIC, ProtobufError, _message_names, _messages, decode
from poplin.apiserver.resource import builtin_resources, builtin_schemas


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a message: a varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def envelope(version: str, kind: str, raw: bytes) -> bytes:
    return MAGIC + field(1, field(1, version) + field(2, kind)) + field(2, raw)


# Field numbers as in k8s.io/api's and k8s.io/apimachinery's generated.proto.
def metadata(name: str, **labels: str) -> bytes:
    entries = b"".join(field(11, field(1, key) + field(2, value)) for key, value in labels.items())
    # Go writes empty members and a zero time as well.
    return field(1, name) + field(2, "") + field(7, 0) + field(8, b"") + entries


def test_an_object_is_decoded_as_its_json_would_be():
    data = field(2, field(1, "k") + field(2, "v")) + field(3, field(1, "b") + field(2, b"\x00\xff"))
    body = envelope("v1", "ConfigMap", field(1, metadata("m", app="x", empty="")) + data)
    assert decode(body) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "m", "labels": {"app": "x", "empty": ""}},
        "data": {"k": "v"},
        "binaryData": {"b": "AP8="},
    }


def test_zeros_are_kept_where_they_mean_something_and_members_of_inlined_messages_move_up():
    volume = field(1, "v") + field(2, field(2, b""))
    probe = field(1, field(2, field(1, "/") + field(2, field(1, 0) + field(2, 8080) + field(3, "")))) + field(
        2, 0
    )
    port = field(1, "") + field(2, 0) + field(3, 80)
    security = field(4, 0)
    container = field(1, "c") + field(6, port) + field(10, probe) + field(15, security)
    template = field(2, field(1, volume) + field(2, container) + field(4, 0))
    body = envelope("apps/v1", "Deployment", field(2, field(1, 0) + field(3, template) + field(5, 0)))
    spec = decode(body)["spec"]
    assert (spec["replicas"], "minReadySeconds" in spec) == (0, False)
    pod = spec["template"]["spec"]
    assert pod["volumes"] == [{"name": "v", "emptyDir": {}}]
    assert pod["terminationGracePeriodSeconds"] == 0
    (decoded,) = pod["containers"]
    assert decoded["ports"] == [{"containerPort": 80}]
    assert decoded["livenessProbe"] == {"httpGet": {"path": "/", "port": 8080}}
    assert decoded["securityContext"] == {"runAsUser": 0}


def test_times_and_quantities_are_text():
    hard = field(1, field(1, "cpu") + field(2, field(1, "500m")))
    body = envelope("v1", "ResourceQuota", field(2, hard))
    assert decode(body)["spec"] == {"hard": {"cpu": "500m"}}
    lease = field(2, field(1, "me") + field(3, field(1, 1_700_000_000) + field(2, 123_456_000)))
    spec = decode(envelope("coordination.k8s.io/v1", "Lease", lease))["spec"]
    assert spec == {"holderIdentity": "me", "acquireTime": "2023-11-14T22:13:20.123456Z"}


def test_negative_numbers():
    body = envelope("scheduling.k8s.io/v1", "PriorityClass", field(2, -5))
    assert decode(body)["value"] == -5


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        MAGIC,
        MAGIC + b"\xff",
        envelope("v1", "Nothing", b""),
        envelope("v1", "ConfigMap", field(1, b"\x0a\x7f")),
        envelope("v1", "ConfigMap", b"\x09" + bytes(8)),
        envelope("v1", "ConfigMap", field(1, field(1, b"\xff"))),
    ],
)
def test_what_is_malformed_is_refused(body):
    with pytest.raises(ProtobufError):
        decode(body)


def test_every_message_of_a_served_type_is_known():
    names = {
        name: body for name, body in builtin_schemas().items() if body.get("x-kubernetes-group-version-kind")
    }
    assert names
    for resource in builtin_resources():
        if resource.group != "apiextensions.k8s.io":
            assert _message_names()[resource.api_version, resource.kind] in _messages()
