"""kubectl itself, unmodified, against the server."""

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from poplin.apiserver.server import ApiServer, Settings, serve

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")

APPLICATION = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, labels: {app: shop}}
spec:
  replicas: 2
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      containers:
      - name: web
        image: example.org/shop:1
        ports: [{containerPort: 8080}]
        env: [{name: A, value: "1"}, {name: B, value: "2"}]
        readinessProbe: {httpGet: {path: /, port: 8080}}
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: shop}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shop}
spec:
  podSelector: {matchLabels: {app: shop}}
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 8080, protocol: TCP}]}]
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: gadgets, kind: Gadget, singular: gadget, shortNames: [gd]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {size: {type: integer, description: "How large."}}}}
"""
GADGET = "apiVersion: example.org/v1\nkind: Gadget\nmetadata: {name: g}\nspec: {size: 3}\n"


class Kubectl:
    def __init__(self, directory: Path) -> None:
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(directory / "kubeconfig"),
            "HOME": str(directory),
        }

    async def try_(self, *arguments: str, stdin: str = "") -> tuple[int, str]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            "kubectl",
            *arguments,
            stdin=pipe,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
        )
        async with asyncio.timeout(30):
            output, _ = await process.communicate(stdin.encode())
        return process.returncode or 0, output.decode()

    @contextlib.asynccontextmanager
    async def watching(self, *arguments: str) -> AsyncIterator[Callable[[], Awaitable[str]]]:
        """A kubectl that goes on; yields what reads its next line."""
        process = await asyncio.create_subprocess_exec(
            "kubectl", *arguments, stdout=asyncio.subprocess.PIPE, env=self._environment
        )

        async def line() -> str:
            async with asyncio.timeout(20):
                return (await process.stdout.readline()).decode()

        try:
            yield line
        finally:
            process.kill()
            await process.wait()

    async def __call__(self, command: str, *more: str, stdin: str = "") -> str:
        code, output = await self.try_(*command.split(), *more, stdin=stdin)
        assert code == 0, output
        return output


@pytest.fixture
async def kubectl(tmp_path):
    server = ApiServer(Settings(tmp_path / "data"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with server, serve(server, [listener]):
            server.write_kubeconfig(tmp_path / "kubeconfig", f"https://127.0.0.1:{listener.getsockname()[1]}")
            yield Kubectl(tmp_path)


async def test_an_application_is_applied_changed_and_deleted(kubectl: Kubectl):
    output = await kubectl("apply -f -", stdin=APPLICATION)
    assert output.count(" created") == 4
    assert (await kubectl("apply -f -", stdin=APPLICATION)).count(" unchanged") == 4
    changed = APPLICATION.replace('{name: B, value: "2"}', '{name: C, value: "3"}').replace(
        "shop:1", "shop:2"
    )
    assert "deployment.apps/shop configured" in await kubectl("apply -f -", stdin=changed)
    names = await kubectl("get deploy shop -o jsonpath={.spec.template.spec.containers[0].env[*].name}")
    assert names == "A C"
    assert await kubectl("get deploy shop -o jsonpath={.metadata.generation}") == "2"
    assert (await kubectl("delete -f -", stdin=APPLICATION)).count(" deleted") == 4
    assert "No resources found" in await kubectl("get deploy,svc,netpol")


async def test_the_daily_commands(kubectl: Kubectl):
    await kubectl("apply -f -", stdin=APPLICATION)
    await kubectl("label deploy shop tier=front")
    await kubectl("annotate deploy shop note=x")
    await kubectl("scale deploy shop --replicas=5")
    await kubectl("set image deploy/shop web=example.org/shop:9")
    await kubectl(
        "patch deploy shop -p", '{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"s"}]}}}}'
    )
    await kubectl("patch deploy shop --type=json -p", '[{"op":"add","path":"/spec/paused","value":true}]')
    table = (await kubectl("get deploy shop -o wide --show-labels")).split("\n")
    assert table[0].split()[:5] == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert table[1].split()[:2] == ["shop", "0/5"]
    assert "example.org/shop:9" in table[1]
    assert "tier=front" in table[1]
    assert "app=shop" in await kubectl("describe svc shop")
    assert "deployments" in await kubectl("api-resources --api-group=apps")
    assert "apps/v1" in (await kubectl("api-versions")).split()
    assert "Server Version: v1.32.0" in await kubectl("version")
    assert "type determines how the Service is exposed" in await kubectl("explain service.spec.type")
    assert (await kubectl("auth can-i create pods")).strip() == "yes"
    assert "kubernetes-admin" in await kubectl("auth whoami")


async def test_the_typed_commands_that_speak_protobuf(kubectl: Kubectl):
    for command in (
        "create namespace team",
        "create configmap c --from-literal=a=b",
        "create secret generic s --from-literal=a=b",
        "create serviceaccount robot",
        "create deployment d --image=x --replicas=0 --port=80",
        "create service nodeport np --tcp=80:8080",
        "create job j --image=x",
        "create cronjob cj --image=x --schedule=@daily",
        "create ingress i --rule=a.example.org/b=c:80",
        "create role r --verb=get --resource=pods",
        "create rolebinding rb --role=r --user=u",
        "create pdb p --selector=a=b --min-available=1",
        "create quota q --hard=pods=1",
        "create priorityclass pc --value=-5",
        "create token robot",
        "run web --image=nginx",
        "expose pod web --port=80 --labels=a=b --selector=run=web",
    ):
        await kubectl(command)
    assert await kubectl(
        "get deploy d -o jsonpath={.spec.replicas}{.spec.template.spec.containers[0].ports}"
    ) == ('0[{"containerPort":80,"protocol":"TCP"}]')
    assert await kubectl("get secret s -o jsonpath={.data.a}") == "Yg=="
    assert await kubectl("get ing i -o jsonpath={.spec.rules[0].http.paths[0].backend.service.name}") == "c"
    assert await kubectl("get svc np -o jsonpath={.spec.ports[0].targetPort}") == "8080"
    assert await kubectl("get pc pc -o jsonpath={.value}") == "-5"


async def test_what_is_wrong_is_told(kubectl: Kubectl):
    wrong = "apiVersion: v1\nkind: Service\nmetadata: {name: Bad}\nspec: {ports: [{port: 99999}]}\n"
    code, output = await kubectl.try_("apply", "-f", "-", stdin=wrong)
    assert code == 1
    assert "spec.ports[0].port: Invalid value: 99999: must be between 1 and 65535, inclusive" in output
    assert 'metadata.name: Invalid value: "Bad": a DNS-1035 label must consist' in output
    code, output = await kubectl.try_("apply", "-f", "-", stdin=wrong.replace("ports", "prots"))
    assert (code, 'unknown field "spec.prots"' in output) == (1, True)
    code, output = await kubectl.try_("apply", "--server-side", "-f", "-", stdin=GADGET)
    assert code == 1


async def test_a_custom_resource_has_columns_and_an_explanation(kubectl: Kubectl):
    await kubectl("apply -f -", stdin=APPLICATION)
    await kubectl("wait --for=condition=Established crd/gadgets.example.org --timeout=5s")
    await kubectl("apply -f -", stdin=GADGET)
    assert [line.split() for line in (await kubectl("get gd")).splitlines()] == [["NAME", "SIZE"], ["g", "3"]]
    assert "How large." in await kubectl("explain gadget.spec.size")
    await kubectl("patch gadget g --type=merge -p", '{"spec":{"size":4}}')
    assert await kubectl("get gadget g -o jsonpath={.spec.size}") == "4"


async def test_waiting_and_watching_see_changes(kubectl: Kubectl):
    await kubectl("run web --image=nginx")
    waiting = asyncio.create_task(kubectl("wait --for=condition=Ready pod/web --timeout=20s"))
    async with kubectl.watching("get", "pods", "--watch", "--no-headers") as lines:
        assert (await lines()).split()[2] == "Pending"
        ready = '{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}'
        await kubectl("patch pod web --subresource=status -p", ready)
        assert (await lines()).split()[2] == "Running"
    assert "condition met" in await waiting
    await kubectl("delete pod web")


async def test_a_namespace_is_deleted_with_what_it_holds(kubectl: Kubectl):
    await kubectl("create namespace team")
    await kubectl("apply -n team -f -", stdin=APPLICATION)
    await kubectl("delete namespace team --timeout=20s")
    code, output = await kubectl.try_("get", "namespace", "team")
    assert (code, "NotFound" in output) == (1, True)
