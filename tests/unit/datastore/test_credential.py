"""Credentials that change: files that are renewed, plugins whose tokens expire."""

import asyncio
import base64
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from poplin.datastore.access import Access, ExecPlugin, Identity
from poplin.datastore.credential import CredentialError, open_credentials

V1 = "client.authentication.k8s.io/v1"


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def source(identity, clock):
    return open_credentials(Access(server="https://x", origin="test", identity=identity), now=clock)


async def test_inline_credentials(clock):
    credential = await source(Identity(token="t", certificate=b"cert", key=b"key"), clock).current()
    assert (credential.authorization, credential.certificate, credential.key) == ("Bearer t", b"cert", b"key")
    credential = await source(Identity(username="me", password="a:b"), clock).current()
    assert credential.authorization == "Basic " + base64.b64encode(b"me:a:b").decode()
    assert (await source(Identity(), clock).current()).authorization == ""


async def test_token_file_is_read_again_after_a_minute_or_a_refusal(tmp_path, clock):
    path = tmp_path / "token"
    path.write_text("one\n")
    credentials = source(Identity(token_file=path), clock)
    assert (await credentials.current()).authorization == "Bearer one"
    path.write_text("two")
    clock.now += 59
    assert (await credentials.current()).authorization == "Bearer one"
    clock.now += 1
    assert (await credentials.current()).authorization == "Bearer two"
    path.write_text("three")
    credentials.invalidate(await credentials.current())
    assert (await credentials.current()).authorization == "Bearer three"


async def test_bad_files(tmp_path, clock):
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(CredentialError, match="is empty"):
        await source(Identity(token_file=empty), clock).current()
    for identity in (
        Identity(token_file=tmp_path / "none"),
        Identity(certificate=tmp_path / "none", key=b"k"),
        Identity(certificate=b"c", key=tmp_path / "none"),
    ):
        with pytest.raises(CredentialError, match=r"cannot read the .*none: No such file"):
            await source(identity, clock).current()


@pytest.fixture
def plugin(tmp_path):
    """A plugin that counts its runs and prints what the file `answer` holds."""
    script = tmp_path / "plugin"
    script.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, sys\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "with (here / 'runs').open('a') as runs: runs.write('x')\n"
        "(here / 'info').write_text(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "(here / 'arguments').write_text(' '.join(sys.argv[1:]) + os.environ.get('PROFILE', ''))\n"
        "sys.stdout.write((here / 'answer').read_text())\n"
        "sys.stderr.write('a complaint')\n"
        "sys.exit(int(os.environ.get('EXIT', '0')))\n"
    )
    script.chmod(0o755)
    return ExecPlugin(V1, str(script), arguments=("get", "token"), environment=(("PROFILE", "x"),))


def answer(tmp_path, **status):
    (tmp_path / "answer").write_text(
        json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status})
    )


def runs(tmp_path):
    return len((tmp_path / "runs").read_text())


async def test_plugin_is_told_what_it_needs(tmp_path, plugin, clock):
    answer(tmp_path, token="t")
    plugin = replace(plugin, cluster={"server": "https://x"})
    assert (await source(Identity(plugin=plugin), clock).current()).authorization == "Bearer t"
    assert (tmp_path / "arguments").read_text() == "get tokenx"
    assert json.loads((tmp_path / "info").read_text()) == {
        "apiVersion": V1,
        "kind": "ExecCredential",
        "spec": {"interactive": False, "cluster": {"server": "https://x"}},
    }


async def test_plugin_runs_again_when_its_credential_expires(tmp_path, plugin, clock):
    expiry = datetime.fromtimestamp(clock.now + 100, UTC).isoformat().replace("+00:00", "Z")
    answer(tmp_path, token="one", expirationTimestamp=expiry)
    credentials = source(Identity(plugin=plugin), clock)
    assert (await credentials.current()).authorization == "Bearer one"
    clock.now += 89
    answer(tmp_path, token="two")
    assert (await credentials.current()).authorization == "Bearer one"
    clock.now += 2
    assert (await credentials.current()).authorization == "Bearer two"
    clock.now += 1e9  # without an expiry it is kept until the server refuses it
    await credentials.current()
    assert runs(tmp_path) == 2
    refused = await credentials.current()
    for _ in range(3):  # requests that were under way together
        credentials.invalidate(refused)
        await credentials.current()
    assert runs(tmp_path) == 3


async def test_requests_at_once_share_one_run(tmp_path, plugin, clock):
    answer(tmp_path, clientCertificateData="CERT", clientKeyData="KEY")
    credentials = source(Identity(plugin=plugin), clock)
    found = await asyncio.gather(*(credentials.current() for _ in range(5)))
    assert {(one.authorization, one.certificate, one.key) for one in found} == {("", b"CERT", b"KEY")}
    assert runs(tmp_path) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no json", "its output is not JSON"),
        ("{}", "its output: object missing required field `apiVersion`"),
        (
            json.dumps({"apiVersion": "v9", "kind": "ExecCredential", "status": {"token": "t"}}),
            "printed a v9",
        ),
        (json.dumps({"apiVersion": V1, "kind": "Pod", "status": {"token": "t"}}), f"printed a {V1} Pod"),
        (json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": {}}), "neither a token nor"),
        (
            json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": {"clientKeyData": "k"}}),
            "without the other",
        ),
    ],
)
async def test_bad_answers(tmp_path, plugin, clock, text, expected):
    (tmp_path / "answer").write_text(text)
    with pytest.raises(CredentialError) as raised:
        await source(Identity(plugin=plugin), clock).current()
    assert expected in str(raised.value)
    assert plugin.command in str(raised.value)


async def test_failing_plugin_says_why_and_how_to_get_it(tmp_path, plugin, clock):
    answer(tmp_path, token="t")
    failing = replace(plugin, environment=(("EXIT", "3"),), install_hint="log in again")
    with pytest.raises(CredentialError, match="exit status 3: a complaint; log in again"):
        await source(Identity(plugin=failing), clock).current()
    missing = replace(plugin, command=str(tmp_path / "none"), install_hint="pip install it")
    with pytest.raises(CredentialError, match="No such file or directory; pip install it"):
        await source(Identity(plugin=missing), clock).current()
