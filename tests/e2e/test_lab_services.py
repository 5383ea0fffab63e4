"""Services of a lab: addresses, endpoints and names, and pods that find each other by them."""

import json
import sys
import time
from ipaddress import ip_address, ip_network

import pytest

from e2e.lab_commands import Lab, container, poplin, shell, traces, unique_name, wait_until

SERVED = {"name": "http", "containerPort": 8080}
SERVE = "exec busybox httpd -f -p 8080 -h /"


@pytest.fixture(scope="module", params=["process", "containerd"])
def lab(request):
    name = unique_name()
    try:
        poplin("up", "--nodes", "2", "--name", name, "--ip-family", "dual", "--runtime", request.param)
        made = Lab(name)
        made.create("client", container(image="busybox", command=["sleep", "10000"]))
        made.wait_ready("client")
        yield made
    finally:
        poplin("down", "--name", name)
        assert traces(name) == []


def get(lab, *what):
    return json.loads(lab.kubectl("get", *what, "-o", "json"))


def apply(lab, *objects):
    lab.kubectl(
        "apply",
        "--validate=false",
        "-f",
        "-",
        given=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
    )


def service(name, **spec):
    spec = {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def workload(kind, name, replicas, **spec):
    pod = {
        "terminationGracePeriodSeconds": 1,
        "containers": [shell(SERVE, image="busybox", ports=[SERVED])],
    }
    template = {"metadata": {"labels": {"app": name}}, "spec": pod}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def endpoints(lab, name, namespace="default"):
    """{address: (ready, ports)} of a Service, from its slices."""
    label = f"kubernetes.io/service-name={name}"
    slices = get(lab, "endpointslices", "-n", namespace, "-l", label)["items"]
    return {
        address: (one["conditions"]["ready"], [port["port"] for port in part.get("ports") or ()])
        for part in slices
        for one in part.get("endpoints") or ()
        for address in one["addresses"]
    }


ASK_API = """
import ssl, sys, urllib.request
context = ssl.create_default_context(cadata=sys.argv[1])
print(urllib.request.urlopen(sys.argv[2], context=context, timeout=10).read().decode())
"""


def wait_for_dns(lab):
    wait_until(
        lambda: any(ready for ready, _ in endpoints(lab, "kube-dns", "kube-system").values()), "cluster DNS"
    )


def resolve(lab, name, kind="A", pod="client"):
    """What nslookup says in a pod, asking whom its /etc/resolv.conf names: the answer's data, or the code."""
    out = lab.execute(pod, "busybox", "nslookup", f"-type={kind.lower()}", name, check=False)
    for word in ("NXDOMAIN", "SERVFAIL", "REFUSED", "timed out"):
        if word in out:
            return word
    answer = out.partition("\n\n")[2]
    return sorted(
        line.split()[-1] for line in answer.splitlines() if "=" in line or line.startswith("Address")
    )


def fetch(lab, host, pod="client"):
    """The page that a server gives a pod, "" where it gives none."""
    script = f"printf 'GET /etc/hostname HTTP/1.0\r\n\r\n' | timeout 5 busybox nc -w 3 {host} 80"
    return lab.execute(pod, "sh", "-c", script, check=False)


def test_the_api_is_a_service(lab):
    found = get(lab, "service", "kubernetes")["spec"]
    assert (found["clusterIP"], found["ports"][0]["port"]) == ("10.96.0.1", 443)
    assert endpoints(lab, "kubernetes") == {"172.18.0.1": (True, [6443])}
    authority = get(lab, "configmap", "kube-root-ca.crt")["data"]["ca.crt"]
    for address in ("10.96.0.1", "172.18.0.1:6443"):
        asked = lab.execute(
            "node/node-2", sys.executable, "-c", ASK_API, authority, f"https://{address}/livez"
        )
        assert asked == "ok\n"


def test_endpoints_follow_pods(lab):
    dual = service("web", ipFamilyPolicy="RequireDualStack")
    apply(lab, dual, workload("Deployment", "web", 3))
    wait_until(lambda: len(endpoints(lab, "web")) == 6, "three endpoints of two families")
    assert all(ports == [8080] for _, ports in endpoints(lab, "web").values())
    pods = get(lab, "pods", "-l", "app=web")["items"]
    assert endpoints(lab, "web").keys() == {one["ip"] for pod in pods for one in pod["status"]["podIPs"]}
    lab.kubectl("scale", "deployment", "web", "--replicas=1")
    wait_until(lambda: len(endpoints(lab, "web")) == 2, "one endpoint of two families")
    addresses = get(lab, "service", "web")["spec"]["clusterIPs"]
    wait_for_dns(lab)
    assert resolve(lab, "web.default.svc.cluster.local") == [addresses[0]]
    assert resolve(lab, "web.default.svc.cluster.local", "AAAA") == [addresses[1]]
    [pod] = get(lab, "pods", "-l", "app=web", "--field-selector=status.phase=Running")["items"]
    for host in ("web", "web.default", "web.default.svc.cluster.local.", *addresses):
        wait_until(lambda host=host: pod["metadata"]["name"] in fetch(lab, host), f"a page of {host}")
    lab.kubectl("delete", "service,deployment", "web")
    wait_until(
        lambda: not get(lab, "endpointslices", "-l", "app=web")["items"], "no slice of a Service that went"
    )
    wait_until(lambda: resolve(lab, "web.default.svc.cluster.local") == "NXDOMAIN", "no name of one either")


def test_a_load_balancer_has_an_address_of_the_pool(lab):
    apply(lab, service("front", type="LoadBalancer", ipFamilyPolicy="RequireDualStack"))
    apply(lab, service("theirs", type="LoadBalancer", loadBalancerClass="example.org/theirs"))

    def ingress(name):
        return get(lab, "service", name)["status"]["loadBalancer"].get("ingress", [])

    found = wait_until(lambda: ingress("front"), "an address")
    assert [one["ipMode"] for one in found] == ["VIP", "VIP"]
    assert ip_address(found[0]["ip"]) in ip_network("172.19.0.0/24")
    assert ip_address(found[1]["ip"]) in ip_network("fd00:10:19::/120")
    assert ingress("theirs") == []
    # The fabric is the world outside.
    apply(lab, workload("Deployment", "front", 1))
    wait_until(lambda: any(ready for ready, _ in endpoints(lab, "front").values()), "an endpoint")
    ask = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
    for address in (found[0]["ip"], f"[{found[1]['ip']}]"):
        url = f"http://{address}/etc/hostname"
        page = wait_until(
            lambda url=url: lab.execute("fabric", sys.executable, "-c", ask, url, check=False), url
        )
        assert page.startswith("front-")
    lab.kubectl("patch", "service", "front", "-p", '{"spec": {"type": "ClusterIP"}}')
    wait_until(lambda: not ingress("front"), "the address is given back")
    lab.kubectl("delete", "service", "front", "theirs")
    lab.kubectl("delete", "deployment", "front")


def test_names_of_a_stateful_sets_pods(lab):
    apply(lab, service("db", clusterIP="None"), workload("StatefulSet", "db", 2, serviceName="db"))
    wait_until(lambda: sum(ready for ready, _ in endpoints(lab, "db").values()) == 2, "two ready endpoints")
    wait_for_dns(lab)
    pods = {
        pod["metadata"]["name"]: pod["status"]["podIP"] for pod in get(lab, "pods", "-l", "app=db")["items"]
    }
    zone = "db.default.svc.cluster.local"
    wait_until(lambda: resolve(lab, f"db-1.{zone}") == [pods["db-1"]], "a name for the second pod")
    assert resolve(lab, f"db-0.{zone}") == [pods["db-0"]]
    assert resolve(lab, zone) == sorted(pods.values())
    assert resolve(lab, f"db-2.{zone}") == "NXDOMAIN"
    assert resolve(lab, f"_http._tcp.{zone}", "SRV") == [f"db-0.{zone}", f"db-1.{zone}"]
    assert resolve(lab, ip_address(pods["db-0"]).reverse_pointer, "PTR") == [f"db-0.{zone}"]
    # The pod knows its own name too.
    assert f"{pods['db-0']}\tdb-0.{zone}\tdb-0" in lab.execute("db-0", "cat", "/etc/hosts")
    lab.kubectl("delete", "service,statefulset", "db")


def test_what_is_beyond_the_lab_is_answered_too(lab):
    wait_for_dns(lab)
    # An answer, where none at all would be "connection timed out".
    assert resolve(lab, "www.example.org") == "SERVFAIL"


def test_a_container_is_told_of_services(lab):
    apply(lab, service("cache", ports=[{"port": 6379}]))
    address = get(lab, "service", "cache")["spec"]["clusterIP"]
    script = "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT_HTTPS $CACHE_PORT; sleep 1000"
    wait_until(lambda: told_of(lab, script) == f"10.96.0.1:443 tcp://{address}:6379", "variables")
    lab.kubectl("delete", "service", "cache")


def told_of(lab, script):
    """The first line of a new pod's log: a kubelet hears of Services by a watch of its own."""
    name = f"told-{time.monotonic_ns()}"
    lab.create(name, shell(script, image="busybox"))
    lab.wait_ready(name)
    line = wait_until(lambda: lab.kubectl("logs", name).strip(), "a log")
    lab.kubectl("delete", "pod", name, "--wait=false")
    return line


def test_pods_ask_cluster_dns_or_whom_they_say(lab):
    text = lab.execute("client", "cat", "/etc/resolv.conf")
    assert text == (
        "nameserver 10.96.0.10\nnameserver fd00:10:96::a\n"
        "search default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )
    own = {"nameservers": ["192.0.2.1"], "searches": ["example.org"]}
    lab.create("own", shell("sleep 1000", image="busybox"), dnsPolicy="None", dnsConfig=own)
    lab.wait_ready("own")
    assert lab.execute("own", "cat", "/etc/resolv.conf") == "nameserver 192.0.2.1\nsearch example.org\n"
    lab.kubectl("delete", "pod", "own", "--wait=false")


DNS_ONLY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "dns-only"},
    "spec": {
        "podSelector": {"matchLabels": {"app": "shy"}},
        "policyTypes": ["Egress"],
        "egress": [
            {
                "to": [
                    {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                    }
                ],
                "ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")],
            }
        ],
    },
}


def test_a_policy_that_lets_pods_ask_for_names_lets_them_do_that_and_no_more(lab):
    wait_for_dns(lab)
    apply(lab, DNS_ONLY, service("open"), workload("Deployment", "open", 1), workload("Deployment", "shy", 1))
    wait_until(lambda: any(ready for ready, _ in endpoints(lab, "open").values()), "an endpoint")
    found = wait_until(lambda: get(lab, "pods", "-l", "app=shy")["items"], "a shy pod")
    shy = found[0]["metadata"]["name"]
    lab.wait_ready(shy)
    address = get(lab, "service", "open")["spec"]["clusterIP"]
    assert resolve(lab, "open.default.svc.cluster.local", pod=shy) == [address]
    assert "open-" in fetch(lab, "open")
    assert fetch(lab, "open", pod=shy) == ""
    lab.kubectl("delete", "networkpolicy", "dns-only")
    wait_until(lambda: "open-" in fetch(lab, "open", pod=shy), "no policy, no bounds")
    lab.kubectl("delete", "deployment,service", "open")
    lab.kubectl("delete", "deployment", "shy")
