"""The controllers against the embedded API server, with kubectl as the judge where it has something to say."""

import asyncio
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest

from e2e.lab_cluster import NETWORKS, FragileClient, LateClient, running_lab
from poplin.apiserver.status import forbidden
from poplin.lab.controllers.object import format_time
from poplin.lab.controllers.runtime import run
from poplin.model.errors import InvalidInputError

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def workload(kind, name="web", *, group="apps/v1", template="", **spec):
    """A manifest; `spec` in YAML's flow style, key by key."""
    lines = "".join(f"  {key}: {value}\n" for key, value in spec.items())
    return f"""
apiVersion: {group}
kind: {kind}
metadata: {{name: {name}}}
spec:
{lines}  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec: {{containers: [{{name: web, image: "example.org/web:1"}}]{template}}}
"""


def job(name="sum", **spec):
    lines = "".join(f"  {key}: {value}\n" for key, value in spec.items())
    return f"""
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
{lines}  template:
    spec: {{restartPolicy: Never, containers: [{{name: web, image: "example.org/sum:1"}}]}}
"""


def available(lab, kind, name, count):
    async def holds():
        found = await lab.get(kind, name)
        return found["status"].get("availableReplicas", 0) == count and found

    return holds


def counts_pods(lab, count):
    async def holds():
        return len(await lab.list("Pod")) == count

    return holds


async def test_nodes_get_cidrs_of_both_families(tmp_path):
    async with running_lab(tmp_path, nodes=3) as lab:

        async def done():
            nodes = await lab.list("Node")
            return all(len(node["spec"].get("podCIDRs", ())) == 2 for node in nodes) and nodes

        nodes = await lab.until(done)
        four = [ip_network(node["spec"]["podCIDRs"][0]) for node in nodes]
        six = [ip_network(node["spec"]["podCIDRs"][1]) for node in nodes]
        assert sorted(map(str, four)) == ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]
        assert {cidr.prefixlen for cidr in six} == {64}
        assert len(set(six)) == 3
        assert all(node["spec"]["podCIDR"] == node["spec"]["podCIDRs"][0] for node in nodes)


@needs_kubectl
async def test_a_deployment_from_its_first_pod_to_its_last(tmp_path):
    async with running_lab(tmp_path) as lab:
        await lab.apply(workload("Deployment", replicas=6))
        await lab.until(available(lab, "Deployment", "web", 6))
        pods = await lab.list("Pod", app="web")
        assert Counter(pod["spec"]["nodeName"] for pod in pods) == {"node-0": 2, "node-1": 2, "node-2": 2}

        await lab.kubectl("set", "image", "deployment/web", "web=example.org/web:2")
        assert "successfully rolled out" in await lab.kubectl(
            "rollout", "status", "deployment/web", "--timeout=20s"
        )
        await lab.until(counts_pods(lab, 6))
        images = {pod["spec"]["containers"][0]["image"] for pod in await lab.list("Pod")}
        assert images == {"example.org/web:2"}

        await lab.kubectl("rollout", "undo", "deployment/web")
        await lab.kubectl("rollout", "status", "deployment/web", "--timeout=20s")
        history = await lab.kubectl("rollout", "history", "deployment/web")
        assert [line.split()[0] for line in history.splitlines()[2:] if line] == ["2", "3"]
        assert len(await lab.list("ReplicaSet")) == 2

        await lab.kubectl("scale", "deployment/web", "--replicas=2")
        await lab.until(counts_pods(lab, 2))
        await lab.until(available(lab, "Deployment", "web", 2))
        assert (await lab.kubectl("get", "deployment/web", "--no-headers")).split()[:4] == [
            "web",
            "2/2",
            "2",
            "2",
        ]
        told = await lab.kubectl("describe", "deployment/web")
        assert "ScalingReplicaSet" in told

        await lab.kubectl("delete", "deployment/web")
        await lab.until(counts_pods(lab, 0))
        assert await lab.list("ReplicaSet") == []


async def test_a_pod_that_someone_deletes_comes_back(tmp_path):
    async with running_lab(tmp_path) as lab:
        await lab.apply(workload("ReplicaSet", replicas=2))
        await lab.until(available(lab, "ReplicaSet", "web", 2))
        (first, _) = await lab.list("Pod")
        await lab.delete("Pod", first["metadata"]["name"])

        async def replaced():
            pods = await lab.list("Pod")
            return len(pods) == 2 and all(pod["metadata"]["uid"] != first["metadata"]["uid"] for pod in pods)

        await lab.until(replaced)


async def test_a_late_watch_makes_no_doubles(tmp_path):
    """Every creation, by uid, is one of those wanted: a double deleted again would show as well."""
    async with running_lab(tmp_path, client_of=LateClient) as lab:
        made = set()

        def count(collection, event):
            if collection.name == "/pods" and event.type == "ADDED":
                made.add(event.entry.uid)

        lab.server.store.listen(count)
        await lab.apply(workload("Deployment", replicas=4))
        await lab.apply(workload("DaemonSet", "agent"))
        await lab.apply(workload("StatefulSet", "db", replicas=2, serviceName="db"))
        await lab.until(available(lab, "Deployment", "web", 4))
        await lab.until(available(lab, "StatefulSet", "db", 2))
        await asyncio.sleep(3 * LateClient.lag_s)
        assert len(made) == len(await lab.list("Pod")) == 4 + 3 + 2


@needs_kubectl
async def test_a_daemon_set_follows_the_nodes(tmp_path):
    async with running_lab(tmp_path, nodes=2) as lab:
        await lab.apply(workload("DaemonSet", "agent"))
        assert "successfully rolled out" in await lab.kubectl(
            "rollout", "status", "ds/agent", "--timeout=20s"
        )
        await lab.add_node("node-2")
        await lab.until(counts_pods(lab, 3))
        await lab.kubectl("set", "image", "ds/agent", "web=example.org/web:2")
        await lab.kubectl("rollout", "status", "ds/agent", "--timeout=20s")
        await lab.kubectl("rollout", "undo", "ds/agent")
        await lab.kubectl("rollout", "status", "ds/agent", "--timeout=20s")
        pods = await lab.list("Pod")
        assert sorted(pod["spec"]["nodeName"] for pod in pods) == ["node-0", "node-1", "node-2"]
        assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {"example.org/web:1"}
        assert len(await lab.list("ControllerRevision")) == 2
        # Its node gone, a pod goes too, and no other takes its place.
        await lab.delete("Node", "node-1")
        await lab.until(counts_pods(lab, 2))


@needs_kubectl
async def test_a_stateful_set_keeps_names_and_order(tmp_path):
    claim = "[{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]"
    async with running_lab(tmp_path) as lab:
        await lab.apply(
            workload("StatefulSet", "db", replicas=3, serviceName="db", volumeClaimTemplates=claim)
        )
        await lab.until(available(lab, "StatefulSet", "db", 3))
        assert "roll" in await lab.kubectl("rollout", "status", "sts/db", "--timeout=20s")
        pods = sorted(await lab.list("Pod"), key=lambda pod: int(pod["metadata"]["resourceVersion"]))
        assert sorted(pod["metadata"]["name"] for pod in pods) == ["db-0", "db-1", "db-2"]
        claims = [one["metadata"]["name"] for one in await lab.list("PersistentVolumeClaim")]
        assert sorted(claims) == ["data-db-0", "data-db-1", "data-db-2"]
        await lab.kubectl("set", "image", "sts/db", "web=example.org/web:2")
        assert "complete" in await lab.kubectl("rollout", "status", "sts/db", "--timeout=20s")
        await lab.kubectl("scale", "sts/db", "--replicas=1")
        await lab.until(counts_pods(lab, 1))
        (pod,) = await lab.list("Pod")
        assert pod["metadata"]["name"] == "db-0"
        assert pod["spec"]["containers"][0]["image"] == "example.org/web:2"
        assert len(await lab.list("PersistentVolumeClaim")) == 3


@needs_kubectl
async def test_jobs(tmp_path):
    def verdict(pod):
        return "Failed" if pod.name.startswith("doomed") else "Succeeded"

    async with running_lab(tmp_path, verdict=verdict) as lab:
        await lab.apply(job("sum", completions=3, parallelism=2))
        await lab.apply(job("numbered", completions=3, parallelism=3, completionMode="Indexed"))
        await lab.apply(job("doomed", backoffLimit=0))
        await lab.apply(job("brief", ttlSecondsAfterFinished=1))
        await lab.kubectl("wait", "--for=condition=complete", "job/sum", "job/numbered", "--timeout=20s")
        await lab.kubectl("wait", "--for=condition=failed", "job/doomed", "--timeout=20s")
        status = (await lab.get("Job", "numbered"))["status"]
        assert (status["succeeded"], status["completedIndexes"]) == (3, "0-2")
        assert len(await lab.list("Pod", **{"job-name": "sum"})) == 3

        async def gone():
            return {one["metadata"]["name"] for one in await lab.list("Job")} == {"sum", "numbered", "doomed"}

        await lab.until(gone)


async def test_a_cron_job_makes_the_job_that_is_due(tmp_path):
    async with running_lab(tmp_path, verdict=lambda _: "Succeeded") as lab:
        await lab.apply("""
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec: {restartPolicy: Never, containers: [{name: web, image: "example.org/web:1"}]}
""")
        # A minute ago it would have been due: the past is a status that anyone may write.
        body = {"status": {"lastScheduleTime": format_time(datetime.now(UTC) - timedelta(minutes=2))}}
        await lab.client.request(
            "PATCH", "/apis/batch/v1/namespaces/default/cronjobs/tick/status", body=body,
            content_type="application/merge-patch+json",
        )  # fmt: skip

        async def succeeded():
            return (await lab.get("CronJob", "tick"))["status"].get("lastSuccessfulTime")

        await lab.until(succeeded)
        jobs = await lab.list("Job")
        assert jobs
        assert all(one["metadata"]["name"].startswith("tick-") for one in jobs)


@needs_kubectl
async def test_what_cannot_be_placed_says_why_until_it_can(tmp_path):
    async with running_lab(tmp_path, nodes=1) as lab:
        await lab.kubectl("cordon", "node-0")
        await lab.apply(workload("Deployment", replicas=1))

        async def refused():
            pods = await lab.list("Pod")
            conditions = pods[0]["status"].get("conditions", ()) if pods else ()
            return [one for one in conditions if one["type"] == "PodScheduled"]

        (condition,) = await lab.until(refused)
        assert (condition["status"], condition["reason"]) == ("False", "Unschedulable")
        assert condition["message"] == "0/1 nodes are available: 1 node(s) were unschedulable."

        async def told():
            return "FailedScheduling" in await lab.kubectl("get", "events")

        await lab.until(told)
        await lab.kubectl("uncordon", "node-0")
        await lab.until(available(lab, "Deployment", "web", 1))


async def test_a_silent_node_loses_its_pods_at_the_end_of_their_patience(tmp_path):
    patience = ", ".join(
        f"{{key: node.kubernetes.io/{key}, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}"
        for key in ("not-ready", "unreachable")
    )
    async with running_lab(tmp_path, nodes=1) as lab:
        long_ago = datetime.now(UTC) - timedelta(hours=1)

        def age(resource, document, *_):
            if resource.kind == "Node" and document["metadata"]["name"] == "silent":
                document["metadata"]["creationTimestamp"] = format_time(long_ago)

        lab.server.lifecycle.hooks.append(age)
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        soon = format_time(datetime.now(UTC) - timedelta(seconds=37))
        await lab.client.request(
            "POST", leases, body={"metadata": {"name": "silent"}, "spec": {"renewTime": soon}}
        )
        await lab.add_node("silent", heartbeat=long_ago)
        await lab.apply(workload("Deployment", replicas=4, template=f", tolerations: [{patience}]"))

        async def spread():
            return Counter(pod["spec"].get("nodeName") for pod in await lab.list("Pod"))["silent"] == 2

        await lab.until(spread)

        async def unknown():
            node = await lab.get("Node", "silent")
            (ready,) = [one for one in node["status"]["conditions"] if one["type"] == "Ready"]
            return ready["status"] == "Unknown" and node["spec"].get("taints")

        taints = await lab.until(unknown)
        assert {(one["key"], one["effect"]) for one in taints} == {
            ("node.kubernetes.io/unreachable", "NoSchedule"),
            ("node.kubernetes.io/unreachable", "NoExecute"),
        }

        async def moved():
            nodes = Counter(pod["spec"].get("nodeName") for pod in await lab.list("Pod"))
            return nodes == {"node-0": 4}

        await lab.until(moved)


async def test_a_controller_that_is_not_asked_for_does_nothing(tmp_path):
    async with running_lab(tmp_path, controllers=["replicaset-controller"]) as lab:
        await lab.apply(workload("ReplicaSet", replicas=1))
        await lab.until(counts_pods(lab, 1))
        (pod,) = await lab.list("Pod")
        assert "nodeName" not in pod["spec"]
        assert not any("podCIDR" in node["spec"] for node in await lab.list("Node"))


async def test_what_the_server_refuses_is_told_and_tried_again(tmp_path, caplog):
    async with running_lab(tmp_path) as lab:
        refusing = True

        def refuse(resource, *_):
            if refusing and resource.kind == "Pod":
                raise forbidden("pods", "", "web", "exceeded quota")

        lab.server.lifecycle.hooks.append(refuse)
        await lab.apply(workload("ReplicaSet", replicas=1))

        async def told():
            return any(one["reason"] == "FailedCreate" for one in await lab.list("Event"))

        await lab.until(told)
        await asyncio.sleep(1)  # three attempts more
        assert await lab.list("Pod") == []
        assert sum("exceeded quota" in record.message for record in caplog.records) == 1
        refusing = False
        await lab.until(available(lab, "ReplicaSet", "web", 1))


async def test_controllers_that_start_with_no_memory_find_nothing_to_do(tmp_path):
    async with running_lab(tmp_path) as lab:
        await lab.apply(workload("Deployment", replicas=3))
        await lab.apply(workload("DaemonSet", "agent"))
        await lab.apply(workload("StatefulSet", "db", replicas=2, serviceName="db"))
        await lab.until(available(lab, "Deployment", "web", 3))
        await lab.until(available(lab, "StatefulSet", "db", 2))
    async with running_lab(tmp_path, nodes=0, controllers=[]) as lab:
        before = lab.server.store.revision
        again = asyncio.create_task(run(lab.client, cluster_networks=NETWORKS))
        await asyncio.sleep(1)
        assert lab.server.store.revision == before
        await lab.patch("Deployment", "web", {"spec": {"replicas": 4}})
        await lab.until(available(lab, "Deployment", "web", 4))
        again.cancel()


async def test_cut_off_from_the_server_nothing_is_decided_and_then_all_is_made_good(tmp_path):
    async with running_lab(tmp_path, client_of=FragileClient) as lab:
        await lab.apply(workload("Deployment", replicas=3))
        await lab.until(available(lab, "Deployment", "web", 3))
        lab.theirs.cut.set()
        for pod in await lab.list("Pod"):
            await lab.delete("Pod", pod["metadata"]["name"])
        await lab.until(counts_pods(lab, 0))
        await lab.apply(workload("ReplicaSet", "other", replicas=1))
        await asyncio.sleep(0.3)
        assert await lab.list("Pod") == []
        lab.theirs.cut.clear()
        await lab.until(counts_pods(lab, 4))
        await lab.until(available(lab, "Deployment", "web", 3))
        await lab.until(available(lab, "ReplicaSet", "other", 1))
        assert len(await lab.list("Pod")) == 4


async def test_a_name_that_no_controller_has(tmp_path):
    async with running_lab(tmp_path, controllers=[]) as lab:
        with pytest.raises(InvalidInputError, match="no such controller"):
            await run(lab.client, cluster_networks=NETWORKS, controllers=["proxy"])
