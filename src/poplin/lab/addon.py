"""What a lab's cluster has from its beginning: cluster DNS, as a Deployment behind the Service kube-dns.

The server runs in a pod as any other, so that policy, Services and the death of a node mean the same to it. What it
runs is this machine's Python: there is no registry to have an image from, so whatever its image is, the
directories that hold Python and this package are mounted into it.
"""

import asyncio
import logging
import sys
from pathlib import Path
from typing import Final

import poplin
from poplin.datastore.client import ApiClient, RefusedError
from poplin.lab.addressing import API_PORT
from poplin.lab.controllers.object import DEPLOYMENTS, SERVICES, Json, make_resource
from poplin.lab.cri.image import BUSYBOX
from poplin.lab.settings import Settings
from poplin.model.errors import PoplinError

log = logging.getLogger(__name__)

NAMESPACE: Final = "kube-system"
NAME: Final = "kube-dns"
LABELS: Final = {"k8s-app": "kube-dns"}
"""What policies that let pods ask for names select."""

ACCOUNTS: Final = make_resource("", "v1", "serviceaccounts", "ServiceAccount")
RETRY_S: Final = 1.0


async def install(client: ApiClient, settings: Settings) -> None:
    """Create what is not there yet. What is, is left as it is: people may have changed it."""
    for path, body in (
        (ACCOUNTS.path(NAMESPACE), make_account()),
        (SERVICES.path(NAMESPACE), make_service(settings)),
        (DEPLOYMENTS.path(NAMESPACE), make_deployment(settings)),
    ):
        while True:
            try:
                await client.request("POST", path, body=body)
            except RefusedError as error:
                if error.status != 409:
                    log.warning("cluster DNS is not installed", extra={"error": str(error)})
            except PoplinError as error:
                log.warning("cluster DNS is not installed yet", extra={"error": str(error)})
                await asyncio.sleep(RETRY_S)
                continue
            break


def make_account() -> Json:
    """The account under which the server reads the API."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": NAMESPACE}}


def make_service(settings: Settings) -> Json:
    """The Service that pods' /etc/resolv.conf names."""
    addresses = [str(address) for address in settings.addressing.dns_addresses()]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {**LABELS, "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"},
        },
        "spec": {
            "selector": LABELS,
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilyPolicy": "PreferDualStack" if len(addresses) > 1 else "SingleStack",
            "ports": [
                {"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "targetPort": "dns-tcp", "protocol": "TCP"},
            ],
        },
    }


def make_deployment(settings: Settings) -> Json:
    """The server's pods."""
    # Not by the Service `kubernetes`: names are served also while nobody serves Services.
    api = {
        "KUBERNETES_SERVICE_HOST": str(settings.addressing.api_address()),
        "KUBERNETES_SERVICE_PORT": str(API_PORT),
    }
    container: Json = {
        "name": "dns",
        "image": BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": [sys.executable, "-m", "poplin.lab.dns"],
        "env": [{"name": name, "value": value} for name, value in api.items()],
        "ports": [
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
        ],
        # It listens when it knows all names.
        "readinessProbe": {"tcpSocket": {"port": "dns-tcp"}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [],
    }
    spec: Json = {
        "serviceAccountName": NAME,
        "dnsPolicy": "Default",
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [],
    }
    for number, path in enumerate(map(str, program_directories())):
        name = f"machine-{number}"
        spec["volumes"].append({"name": name, "hostPath": {"path": path}})
        container["volumeMounts"].append({"name": name, "mountPath": path, "readOnly": True})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": LABELS},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": LABELS},
            "template": {"metadata": {"labels": LABELS}, "spec": spec},
        },
    }


def program_directories() -> list[Path]:
    """Directories of this machine that its Python needs, none of them inside another."""
    package = Path(poplin.__file__).parent.parent
    wanted = [Path(path) for path in ("/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix)]
    wanted += [package, *(Path(path) for path in sys.path if path and Path(path).is_dir())]
    found: list[Path] = []
    for path in sorted({path for path in wanted if path.exists()}, key=lambda one: len(one.parts)):
        if not any(path.is_relative_to(other) for other in found):
            found.append(path)
    return found
