"""Kubeconfigs that kubectl wrote, read as kubectl reads them: it is the oracle."""

import base64
import json
import os
import subprocess
from itertools import permutations
from pathlib import Path

import pytest

from poplin.datastore.kubeconfig import KubeconfigError, find_access

PEM = "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n"


def kubectl(*arguments, **environment):
    return subprocess.run(
        ["kubectl", "config", *arguments],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout


@pytest.fixture
def files(tmp_path):
    """Three files that disagree, each in a directory of its own with relative paths."""
    paths = []
    for name in ("one", "two", "three"):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "ca.crt").write_text(PEM)
        (directory / "me.crt").write_text(PEM)
        (directory / "me.key").write_text(PEM)
        path = directory / "config"
        paths.append(path)
        edit = {"KUBECONFIG": str(path)}
        kubectl(
            "set-cluster", "shared", f"--server=https://{name}.example:6443",
            f"--certificate-authority={directory / 'ca.crt'}", f"--embed-certs={'true' if name == 'two' else 'false'}",
            **edit,
        )  # fmt: skip
        kubectl("set-credentials", "me", f"--token={name}-token", **edit)
        kubectl("set-context", "shared", "--cluster=shared", "--user=me", f"--namespace={name}", **edit)
        kubectl("set-context", name, "--cluster=shared", f"--user={name}", **edit)
        kubectl(
            "set-credentials", name, f"--client-certificate={directory / 'me.crt'}",
            f"--client-key={directory / 'me.key'}", **edit,
        )  # fmt: skip
        if name != "one":
            kubectl("use-context", "shared" if name == "two" else "three", **edit)
    return paths


def pem(value):
    return value.read_bytes() if isinstance(value, Path) else value


def test_merged_files_mean_what_kubectl_says_they_mean(files, tmp_path):
    for order in permutations([*files, tmp_path / "none"]):
        environment = {"KUBECONFIG": ":".join(map(str, order)), "HOME": str(tmp_path)}
        for context in ("", "shared", "one", "two", "three"):
            chosen = [f"--context={context}"] if context else []
            oracle = json.loads(
                kubectl("view", "--minify", "--flatten", "--raw", "-o", "json", *chosen, **environment)
            )
            access = find_access(environment, context=context)
            cluster = oracle["clusters"][0]["cluster"]
            user = oracle["users"][0]["user"]
            assert access.server == cluster["server"]
            assert pem(access.certificate_authority) == base64.b64decode(
                cluster["certificate-authority-data"]
            )
            assert access.namespace == oracle["contexts"][0]["context"].get("namespace", "default")
            assert access.identity.token == user.get("token", "")
            assert pem(access.identity.certificate) == (
                base64.b64decode(user["client-certificate-data"])
                if "client-certificate-data" in user
                else None
            )


def test_exec_plugin_as_kubectl_writes_it(tmp_path):
    path = tmp_path / "config"
    edit = {"KUBECONFIG": str(path)}
    kubectl("set-cluster", "c", "--server=https://c.example", "--tls-server-name=k", **edit)
    kubectl(
        "set-credentials", "u", "--exec-command=plugin", "--exec-api-version=client.authentication.k8s.io/v1",
        "--exec-arg=get,token", "--exec-env=PROFILE=x", "--exec-interactive-mode=Never",
        "--exec-provide-cluster-info=true", **edit,
    )  # fmt: skip
    kubectl("set-context", "x", "--cluster=c", "--user=u", **edit)
    kubectl("use-context", "x", **edit)
    access = find_access(edit)
    plugin = access.identity.plugin
    assert plugin is not None
    assert (plugin.command, plugin.arguments) == ("plugin", ("get", "token"))
    assert plugin.environment == (("PROFILE", "x"),)
    assert plugin.cluster == {"server": "https://c.example", "tls-server-name": "k"}


def test_unset_context_is_refused(tmp_path):
    edit = {"KUBECONFIG": str(tmp_path / "config")}
    kubectl("set-cluster", "c", "--server=https://c.example", **edit)
    with pytest.raises(KubeconfigError, match="kubectl config use-context"):
        find_access(edit)
