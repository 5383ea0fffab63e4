"""Kubeconfig files and service accounts: what they give, and what is said of each thing wrong with them."""

import base64
import copy
from pathlib import Path

import pytest
import yaml

from poplin.datastore.access import ExecPlugin
from poplin.datastore.kubeconfig import KubeconfigError, find_access, read_kubeconfig, read_service_account

PEM = b"-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n"
PEM_DATA = base64.b64encode(PEM).decode()

GOOD = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "main",
    "preferences": {},
    "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443/"}}],
    "users": [{"name": "u", "user": {"token": "secret"}}],
    "contexts": [{"name": "main", "context": {"cluster": "c", "user": "u"}}],
}


def changed(*, cluster=None, user=None, context=None, **top):
    config = copy.deepcopy(GOOD) | top
    config["clusters"][0]["cluster"] |= cluster or {}
    config["contexts"][0]["context"] |= context or {}
    if user is not None:
        config["users"][0]["user"] = user
    return config


def write(path, config):
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "config"


def test_the_plain_case(path):
    access = read_kubeconfig([write(path, GOOD)])
    assert access.server == "https://192.0.2.1:6443"
    assert access.identity.token == "secret"
    assert access.certificate_authority is None
    assert access.verify
    assert access.namespace == "default"
    assert access.origin == f"{path} (context main)"


def test_cluster_keys(path):
    config = changed(
        cluster={
            "certificate-authority-data": PEM_DATA,
            "certificate-authority": "ignored.crt",
            "tls-server-name": "kubernetes",
            "proxy-url": "http://proxy:3128",
        },
        context={"namespace": "web"},
    )
    access = read_kubeconfig([write(path, config)])
    assert access.certificate_authority == PEM
    assert access.tls_server_name == "kubernetes"
    assert access.proxy_url == "http://proxy:3128"
    assert access.namespace == "web"


def test_insecure(path):
    assert not read_kubeconfig([write(path, changed(cluster={"insecure-skip-tls-verify": True}))]).verify


def test_paths_start_from_the_file_that_holds_them(path):
    config = changed(
        cluster={"certificate-authority": "pki/ca.crt"},
        user={
            "client-certificate": "me.crt",
            "client-key": "/etc/me.key",
            "tokenFile": "token",
            "token": "old",
        },
    )
    access = read_kubeconfig([write(path, config)])
    assert access.certificate_authority == path.parent / "pki/ca.crt"
    assert access.identity.certificate == path.parent / "me.crt"
    assert access.identity.key == Path("/etc/me.key")
    assert access.identity.token_file == path.parent / "token"
    assert access.identity.token == ""


def test_password(path):
    access = read_kubeconfig([write(path, changed(user={"username": "me", "password": "x"}))])
    assert (access.identity.username, access.identity.password) == ("me", "x")


def test_secrets_stay_out_of_reprs(path):
    access = read_kubeconfig([write(path, changed(user={"username": "me", "password": "hunter2"}))])
    assert "hunter2" not in repr(access)
    assert "secret" not in repr(read_kubeconfig([write(path, GOOD)]).identity)


def test_exec_plugin(path):
    config = changed(
        cluster={
            "certificate-authority-data": PEM_DATA,
            "extensions": [
                {"name": "other", "extension": 1},
                {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}},
            ],
        },
        user={
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": "./bin/plugin",
                "args": ["token"],
                "env": [{"name": "PROFILE", "value": "x"}],
                "installHint": " install it\n",
                "interactiveMode": "IfAvailable",
                "provideClusterInfo": True,
            }
        },
    )
    assert read_kubeconfig([write(path, config)]).identity.plugin == ExecPlugin(
        api_version="client.authentication.k8s.io/v1",
        command=str(path.parent / "bin/plugin"),
        arguments=("token",),
        environment=(("PROFILE", "x"),),
        install_hint="install it",
        cluster={
            "server": "https://192.0.2.1:6443/",
            "certificate-authority-data": PEM_DATA,
            "config": {"audience": "a"},
        },
    )


def test_command_without_a_slash_is_left_to_the_path(path):
    plugin = {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "aws"}
    access = read_kubeconfig([write(path, changed(user={"exec": plugin}))])
    assert access.identity.plugin == ExecPlugin("client.authentication.k8s.io/v1beta1", "aws")


def exec_user(**keys):
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "p"} | keys}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (changed(**{"current-context": ""}), "no current-context"),
        (changed(**{"current-context": "x"}), "no context is named 'x'; choose one of those it has: main"),
        (changed(context={"cluster": "x"}), "no cluster is named 'x'"),
        (changed(context={"user": "x"}), "no user is named 'x'"),
        (changed(users=None), "no user is named 'u'; choose one of those it has: none"),
        (changed(cluster={"server": ""}), "clusters[c]: server: '' is not a URL"),
        (changed(cluster={"server": "192.0.2.1:6443"}), "is not a URL"),
        (changed(cluster={"proxy-url": "socks5://x:1"}), "proxy-url: 'socks5://x:1' is not an HTTP proxy"),
        (changed(cluster={"certificate-authority-data": "%"}), "certificate-authority-data: "),
        (changed(cluster={"certificate-authority-data": "\x80"}), "certificate-authority-data: "),
        (changed(cluster={"certificate-authority-data": "aGk="}), "no PEM text inside the base64"),
        (changed(cluster={"certificate-authority-data": "é"}), "should contain only ASCII characters"),
        (
            changed(cluster={"certificate-authority-data": PEM_DATA, "insecure-skip-tls-verify": True}),
            "insecure-skip-tls-verify is true beside a certificate-authority",
        ),
        (changed(cluster={"server": 7}), "clusters[0].cluster.server: expected `str`, got `int`"),
        (changed(user={"client-certificate-data": PEM_DATA}), "users[u]: client-key is missing"),
        (changed(user={"client-key-data": PEM_DATA}), "client-certificate is missing"),
        (changed(user={"client-key-data": "!"}), "client-key-data: "),
        (
            changed(user={"token": "t", "username": "u"}),
            "more than one way to authenticate: token and username",
        ),
        (changed(user=exec_user() | {"token": "t"}), "more than one way to authenticate: token and exec"),
        (changed(user={"auth-provider": {"name": "gcp"}}), "use the cloud provider's exec plugin"),
        (changed(user={"token": "t", "as": "admin"}), "impersonation is not supported"),
        (changed(user=exec_user(apiVersion="client.authentication.k8s.io/v1alpha1")), "is not supported"),
        (changed(user=exec_user(command="")), "exec.command is missing"),
        (changed(user=exec_user(interactiveMode="Always")), "there is no terminal"),
        (changed(user={"token": 12345}), "users[0].user.token: expected `str`, got `int`"),
        ([], "is no kubeconfig"),
        (None, "no current-context"),
    ],
)
def test_bad_kubeconfigs(path, config, expected):
    with pytest.raises(KubeconfigError) as raised:
        read_kubeconfig([write(path, config)])
    assert expected in str(raised.value)
    assert str(path) in str(raised.value)
    assert raised.value.remedy


def test_missing_file(path):
    with pytest.raises(KubeconfigError, match="No such file"):
        read_kubeconfig([path])


def test_context_by_name(path):
    other = {"name": "other", "context": {"cluster": "c", "namespace": "o"}}
    access = read_kubeconfig([write(path, changed(contexts=[*GOOD["contexts"], other]))], context="other")
    assert access.namespace == "o"
    assert access.identity.token == ""


def test_of_several_files_the_first_to_say_something_wins(tmp_path):
    first, second = tmp_path / "a" / "config", tmp_path / "b" / "config"
    first.parent.mkdir()
    second.parent.mkdir()
    write(first, {"users": [{"name": "u", "user": {"tokenFile": "t"}}]})
    write(second, GOOD)
    access = read_kubeconfig([tmp_path / "none", first, second])
    assert access.identity.token_file == first.parent / "t"
    assert access.server == "https://192.0.2.1:6443"


@pytest.fixture
def service_account(tmp_path):
    directory = tmp_path / "serviceaccount"
    directory.mkdir()
    (directory / "token").write_text("t")
    (directory / "ca.crt").write_bytes(PEM)
    (directory / "namespace").write_text("kube-system")
    return directory


IN_CLUSTER = {"KUBERNETES_SERVICE_HOST": "192.0.2.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_service_account(service_account):
    access = read_service_account(IN_CLUSTER, service_account)
    assert access.server == "https://192.0.2.1:443"
    assert access.certificate_authority == service_account / "ca.crt"
    assert access.identity.token_file == service_account / "token"
    assert access.namespace == "kube-system"


def test_service_account_over_ipv6(service_account):
    environment = IN_CLUSTER | {"KUBERNETES_SERVICE_HOST": "2001:db8::1"}
    assert read_service_account(environment, service_account).server == "https://[2001:db8::1]:443"


@pytest.mark.parametrize("name", ["token", "ca.crt"])
def test_service_account_not_mounted(service_account, name):
    (service_account / name).unlink()
    with pytest.raises(KubeconfigError, match="automountServiceAccountToken"):
        read_service_account(IN_CLUSTER, service_account)


def test_service_account_outside_a_pod(service_account):
    with pytest.raises(KubeconfigError, match="KUBERNETES_SERVICE_PORT are not both set"):
        read_service_account({}, service_account)


def test_order_of_places(tmp_path, service_account):
    def config(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return write(path, changed(cluster={"server": f"https://{path.name}:1"}))

    named, variable = config("named"), config("variable")
    home = tmp_path / "home"
    config("home/.kube/config")
    everything = {"KUBECONFIG": f":{variable}", "HOME": str(home)} | IN_CLUSTER

    def server(environment, **options):
        return find_access(environment, service_account=service_account, **options).server

    assert server(everything, kubeconfig=named) == "https://named:1"
    assert server(everything) == "https://variable:1"
    assert server({"HOME": str(home)} | IN_CLUSTER) == "https://192.0.2.1:443"
    assert server({"HOME": str(home)}) == "https://config:1"
    with pytest.raises(KubeconfigError, match="set KUBECONFIG"):
        server({"HOME": str(tmp_path)})
