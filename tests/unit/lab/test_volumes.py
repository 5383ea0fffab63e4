"""Volumes: what becomes of the API's words on the disk."""

import json
import os
from ipaddress import ip_address

import msgspec
import pytest

from poplin.lab.container import Binding
from poplin.lab.kubelet.document import Pod
from poplin.lab.kubelet.volumes import (
    File,
    Volumes,
    read_files,
    write_atomically,
)
from poplin.model.errors import InvalidInputError, TemporaryError

OBJECTS = {
    ("configmaps", "settings"): {"a.conf": b"a = 1\n", "b.conf": b"b = 2\n", "raw": b"\xff\x00"},
    ("configmaps", "kube-root-ca.crt"): {"ca.crt": b"CERTIFICATE"},
    ("secrets", "key"): {"password": b"s3cret"},
}


def make_pod(*volumes, mounts=(), **spec):
    document = {
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "1",
            "labels": {"app": "web", "tier": 'a"b'},
        },
        "spec": {
            "nodeName": "node-1", "serviceAccountName": "robot", "volumes": list(volumes),
            "containers": [{"name": "main", "volumeMounts": list(mounts)}], **spec,
        },
    }  # fmt: skip
    return msgspec.json.decode(json.dumps(document), type=Pod)


async def read(kind, name):
    return OBJECTS.get((kind, name))


async def issue_token(audience, seconds):
    return f"token for {audience or 'the API'} of {seconds}"


async def prepare(tmp_path, pod):
    volumes = Volumes(pod, tmp_path, [ip_address("10.0.0.7")], [ip_address("192.0.2.1")])
    await volumes.prepare(read, issue_token)
    return volumes


def files(path):
    """Content by name, as a program in the container reads it."""
    return {
        str((at / name).relative_to(path)): (at / name).read_bytes()
        for at, _, names in ((type(path)(a), b, c) for a, b, c in os.walk(path, followlinks=True))
        for name in names
        if not str((at / name).relative_to(path)).startswith("..")
    }


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"configMap": {"name": "settings"}}, OBJECTS["configmaps", "settings"]),
        (
            {"configMap": {"name": "settings", "items": [{"key": "a.conf", "path": "etc/deep/a"}]}},
            {"etc/deep/a": b"a = 1\n"},
        ),
        ({"secret": {"secretName": "key"}}, {"password": b"s3cret"}),
        ({"secret": {"secretName": "none", "optional": True}}, {}),
        (
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"labels": b'app="web"\ntier="a\\"b"'},
        ),
        (
            {
                "projected": {
                    "sources": [
                        {"secret": {"name": "key"}},
                        {"configMap": {"name": "settings", "items": [{"key": "raw", "path": "raw"}]}},
                        {
                            "downwardAPI": {
                                "items": [{"path": "ip", "fieldRef": {"fieldPath": "status.podIP"}}]
                            }
                        },
                        {
                            "serviceAccountToken": {
                                "path": "token",
                                "audience": "vault",
                                "expirationSeconds": 600,
                            }
                        },
                    ]
                }
            },
            {
                "password": b"s3cret",
                "raw": b"\xff\x00",
                "ip": b"10.0.0.7",
                "token": b"token for vault of 600",
            },
        ),
    ],
)
async def test_a_volume_holds_what_the_api_says(tmp_path, source, expected):
    await prepare(tmp_path, make_pod({"name": "v", **source}))
    assert files(tmp_path / "v") == expected


@pytest.mark.parametrize(
    ("source", "error", "word"),
    [
        ({"configMap": {"name": "absent"}}, TemporaryError, 'configmaps "absent" not found'),
        (
            {"secret": {"secretName": "key", "items": [{"key": "x", "path": "x"}]}},
            TemporaryError,
            "non-existent key",
        ),
        ({"nfs": {"server": "a", "path": "/"}}, InvalidInputError, "type nfs"),
        (
            {"configMap": {"name": "settings", "items": [{"key": "raw", "path": "../x"}]}},
            InvalidInputError,
            "out of",
        ),
        ({"hostPath": {"path": "/nonexistent/x", "type": "Directory"}}, TemporaryError, "is not there"),
    ],
)
async def test_what_cannot_be_had_is_named(tmp_path, source, error, word):
    with pytest.raises(error, match=word):
        await prepare(tmp_path, make_pod({"name": "v", **source}))


async def test_modes_are_the_items_or_the_volumes(tmp_path):
    items = [{"key": "a.conf", "path": "a"}, {"key": "b.conf", "path": "b", "mode": 0o600}]
    await prepare(
        tmp_path,
        make_pod({"name": "v", "configMap": {"name": "settings", "defaultMode": 0o440, "items": items}}),
    )
    assert [(tmp_path / "v" / name).stat().st_mode & 0o777 for name in "ab"] == [0o440, 0o600]


async def test_containers_mount_volumes_and_parts_of_them(tmp_path):
    mounts = [
        {"name": "cache", "mountPath": "/cache"},
        {"name": "cache", "mountPath": "/own", "subPathExpr": "$(NAME)/x"},
        {"name": "settings", "mountPath": "/etc/a.conf", "subPath": "a.conf"},
        {"name": "machine", "mountPath": "/host", "readOnly": True},
    ]
    pod = make_pod(
        {"name": "cache", "emptyDir": {}},
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "machine", "hostPath": {"path": str(tmp_path)}},
        mounts=mounts,
    )
    volumes = await prepare(tmp_path / "own", pod)
    assert volumes.bindings(pod.containers()[0], {"NAME": "web"}) == [
        Binding(str(tmp_path / "own/cache"), "/cache"),
        Binding(str(tmp_path / "own/cache/web/x"), "/own"),
        Binding(str(tmp_path / "own/settings/a.conf"), "/etc/a.conf", read_only=True),
        Binding(str(tmp_path), "/host", read_only=True),
    ]
    assert (tmp_path / "own/cache/web/x").is_dir()


async def test_a_mount_of_no_volume_is_refused(tmp_path):
    pod = make_pod(mounts=[{"name": "absent", "mountPath": "/x"}])
    with pytest.raises(InvalidInputError, match="absent"):
        (await prepare(tmp_path, pod)).bindings(pod.containers()[0], {})


def test_files_change_all_at_once(tmp_path):
    first = {"a": File(b"1", 0o644), "d/b": File(b"1", 0o644), "gone": File(b"1", 0o644)}
    write_atomically(tmp_path, first)
    old = (tmp_path / "..data").resolve()
    write_atomically(tmp_path, first)
    assert (tmp_path / "..data").resolve() == old, "nothing changed, nothing is written"
    second = {"a": File(b"2", 0o644), "d/b": File(b"2", 0o600), "new": File(b"2", 0o644)}
    write_atomically(tmp_path, second)
    assert read_files(tmp_path / "..data") == second
    assert files(tmp_path) == {"a": b"2", "d/b": b"2", "new": b"2"}
    assert not old.exists()
    write_atomically(tmp_path, {})
    assert files(tmp_path) == {}
