"""A tour of kubectl's verbs in a lab: each line is what a user types, and what is to be seen."""

import itertools
import os
import re

import pytest

from e2e.kubectl_shell import Shell
from e2e.lab_commands import poplin, unique_name

APPLICATION = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: server
        image: example.org/web:1
        command: [sh, -c, "echo started $GREETING; exec sleep 1000"]
        ports: [{containerPort: 8080, name: http}]
        env: [{name: GREETING, value: hello}, {name: OTHER, value: "2"}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: box, labels: {app: box}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: busybox, command: [sh, -c, "echo one; echo two >&2; echo three; exec sleep 1000"]}
  - {name: echo, image: example.org/echo:1, ports: [{containerPort: 8080}]}
"""
SETTINGS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: red, size: "1"}
"""
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def labs():
    """The kubeconfig of a lab by what runs its pods; each is made when it is first asked for."""
    names: dict[str, str] = {}

    def find(runtime: str) -> str:
        if runtime not in names:
            names[runtime] = unique_name()
            poplin("up", "--nodes", "2", "--name", names[runtime], "--runtime", runtime)
        return poplin("kubeconfig", "--name", names[runtime]).stdout.strip()

    try:
        yield find
    finally:
        for name in names.values():
            poplin("down", "--name", name)


@pytest.fixture
def runtime():
    """What runs the pods; a test that talks to containers is run with each."""
    return "process"


@pytest.fixture
def run(labs, runtime, tmp_path):
    """A shell in a namespace of its own."""
    namespace = f"tour-{next(NUMBERS)}"
    shell = Shell(labs(runtime), tmp_path, namespace)
    shell(f"kubectl create namespace {namespace}", "created")
    yield shell
    shell(f"kubectl delete namespace {namespace} --wait=false", "deleted")


with_both = pytest.mark.parametrize("runtime", ["process", "containerd"])


def test_looking_around(run):
    run("kubectl version", r"Client Version: v1", r"Server Version: v1\.\d+\.\d+\+poplin")
    run("kubectl cluster-info", r"control plane.* is running at.*https://127.0.0.1:\d+")
    run("kubectl api-versions", "^apps/v1$", "^v1$")
    run("kubectl api-resources", "^deployments +deploy +apps/v1 +true +Deployment")
    run("kubectl explain pod.spec.containers.ports.containerPort", "FIELD: containerPort <integer>")
    run(
        "kubectl explain pod.spec.containers.ports",
        "containerPort\\s+<integer> -required-",
        "protocol",
        "enum: TCP, UDP, SCTP",
    )
    run("kubectl explain networkpolicy.spec --recursive", "policyTypes")
    run("kubectl config view", "server: https://127.0.0.1", "client-certificate-data: DATA\\+OMITTED")
    run("kubectl config current-context", "poplin")
    run("kubectl auth whoami", "Username +kubernetes-admin", "system:masters")
    run("kubectl auth can-i create deployments.apps", "yes")
    run("kubectl auth can-i --list", r"\*\.\*")
    run("kubectl auth whoami --as=anna --as-group=team", "Username +anna", "team system:authenticated")
    run("kubectl get --raw /readyz", "ok")
    run("kubectl get nodes", "STATUS +ROLES +AGE +VERSION", "^node-1 +Ready", "^node-2 +Ready")
    run("kubectl get nodes -o wide", "INTERNAL-IP", r"172\.18\.0\.2")
    run(
        "kubectl describe node node-1",
        "Conditions:",
        "Ready +True",
        "PodCIDR: +10.244",
        "Non-terminated Pods",
    )
    run("kubectl get namespaces", "^default +Active", "^kube-system +Active")


def test_objects_in_every_form(run):
    run.file("settings.yaml", SETTINGS)
    run("kubectl create -f settings.yaml", "configmap/settings created")
    run("kubectl create -f settings.yaml", r"\(AlreadyExists\).*already exists", code=1)
    run("kubectl get configmap settings", "NAME +DATA +AGE", "settings +2")
    run("kubectl get cm settings -o yaml", "color: red", "kind: ConfigMap")
    run("kubectl get cm settings -o json", '"size": "1"')
    run("kubectl get cm settings -o jsonpath='{.data.color}'", "^red$")
    run("kubectl get cm -o custom-columns=N:.metadata.name,C:.data.color", "^settings +red")
    run("kubectl get cm settings -o name", "^configmap/settings$")
    run("kubectl label cm settings team=blue", "labeled")
    run("kubectl label cm settings team=green", "already has a value", code=1)
    run("kubectl get cm -l team=blue --show-labels", "settings.*team=blue")
    run("kubectl get cm -l team!=blue,team", "No resources found")
    run("kubectl get cm --field-selector metadata.name=settings -o name", "configmap/settings")
    run("kubectl annotate cm settings why=because", "annotated")
    run(
        "kubectl describe cm settings",
        "Labels: +team=blue",
        "Annotations: +why: because",
        "color:\n----\nred",
    )
    run("""kubectl patch cm settings -p '{"data":{"new":"x"}}'""", "patched")
    run("""kubectl patch cm settings --type=merge -p '{"data":{"new":null}}'""", "patched")
    run(
        """kubectl patch cm settings --type=json -p '[{"op":"test","path":"/data/new","value":"x"}]'""",
        code=1,
    )
    run("EDITOR='sed -i s/red/blue/' kubectl edit cm settings", "edited")
    run("EDITOR=true kubectl edit cm settings", "cancelled, no changes made")
    run("kubectl get cm settings -o jsonpath='{.data}'", '{"color":"blue","size":"1"}')
    run("kubectl replace -f settings.yaml", "replaced")
    before = run("kubectl get cm settings -o jsonpath='{.metadata.uid}'")
    run("kubectl replace --force -f settings.yaml", "deleted", "replaced")
    assert run("kubectl get cm settings -o jsonpath='{.metadata.uid}'") != before
    run("kubectl create cm other --from-literal=a=b --dry-run=server -o name", "configmap/other")
    run("kubectl get cm other", r"\(NotFound\): configmaps \"other\" not found", code=1)
    run("kubectl create secret generic token --from-literal=a=b", "created")
    run("kubectl get secret token -o jsonpath='{.data.a}'", "^Yg==$")
    run("kubectl delete cm,secret --all", 'configmap "settings" deleted', 'secret "token" deleted')


def test_apply_and_diff(run):
    run.file("settings.yaml", SETTINGS)
    run("kubectl diff -f settings.yaml", r"^\+  color: red", code=1)
    run("kubectl apply -f settings.yaml", "configmap/settings created")
    run("kubectl apply -f settings.yaml", "unchanged")
    run("kubectl diff -f settings.yaml")
    run.file("settings.yaml", SETTINGS.replace("red", "green").replace(', size: "1"', ""))
    run("kubectl diff -f settings.yaml", "^-  color: red", r"^\+  color: green", code=1)
    run("kubectl apply -f settings.yaml", "configured")
    run("kubectl get cm settings -o jsonpath='{.data}'", '^{"color":"green"}$')
    run("kubectl apply view-last-applied cm/settings", "color: green")
    run("kubectl apply -f -", 'unknown field "dota"', given=SETTINGS.replace("\ndata:", "\ndota:"), code=1)
    run.file(
        "base/kustomization.yaml", "namePrefix: my-\nresources: [settings.yaml]\ncommonLabels: {team: blue}\n"
    )
    run.file("base/settings.yaml", SETTINGS)
    run("kubectl apply -k base", "configmap/my-settings created")
    run("kubectl get -k base -o jsonpath='{.metadata.labels.team}'", "blue")
    run("kubectl delete -k base", 'configmap "my-settings" deleted')
    run("kubectl apply -k base", "created")
    run.file("base/settings.yaml", SETTINGS.replace("name: settings", "name: others"))
    run(
        "kubectl apply -k base --prune -l team=blue --prune-allowlist=core/v1/ConfigMap",
        "configmap/my-others created",
        "configmap/my-settings pruned",
    )


def test_server_side_apply(run):
    run.file("web.yaml", APPLICATION)
    run.file("more.yaml", APPLICATION.replace("replicas: 2", "replicas: 3"))
    managers = (
        "kubectl get deploy web --show-managed-fields "
        "-o jsonpath='{range .metadata.managedFields[*]}{.manager}/{.operation}/{.subresource} {end}'"
    )
    run("kubectl apply --server-side -f web.yaml", "deployment.apps/web serverside-applied")
    run("kubectl rollout status deployment/web --timeout=30s", "successfully rolled out")
    version = run("kubectl get deploy web -o jsonpath='{.metadata.resourceVersion}'")
    run("kubectl apply --server-side -f web.yaml", "serverside-applied")
    assert run("kubectl get deploy web -o jsonpath='{.metadata.resourceVersion}'") == version
    run(managers, "kubectl/Apply/ ", "/Update/status")
    run(
        "kubectl apply --server-side --field-manager=ci -f more.yaml",
        r'Apply failed with 1 conflict: conflict with "kubectl": \.spec\.replicas',
        code=1,
    )
    run("kubectl apply --server-side --field-manager=ci --force-conflicts -f more.yaml", "serverside-applied")
    run(managers, "ci/Apply/ ")
    run(managers, "kubectl/Apply/ ")
    run(
        "kubectl diff --server-side --force-conflicts -f web.yaml",
        "^-  replicas: 3",
        r"^\+  replicas: 2",
        code=1,
    )
    run("kubectl scale deployment web --replicas=1", "scaled")
    run(
        "kubectl apply --server-side --field-manager=ci -f more.yaml",
        r'conflict with "kubectl".* using apps/v1 at .*: \.spec\.replicas',
        code=1,
    )
    shorter = APPLICATION.replace("  replicas: 2\n", "").replace(', {name: OTHER, value: "2"}', "")
    run.file("shorter.yaml", shorter)
    run(
        "kubectl apply --server-side --field-manager=ci --force-conflicts -f shorter.yaml",
        "serverside-applied",
    )
    run("kubectl get deploy web -o jsonpath='{..env[*].name}'", "GREETING OTHER")
    run("kubectl apply --server-side --force-conflicts -f shorter.yaml", "serverside-applied")
    run("kubectl get deploy web -o jsonpath='{..env[*].name}'", "^GREETING$")
    run(
        "kubectl apply --server-side -f -",
        'unknown field "dota"',
        given=SETTINGS.replace("\ndata:", "\ndota:"),
        code=1,
    )
    run("kubectl create -f -", "created", given=SETTINGS)
    run("kubectl get cm settings -o jsonpath='{.metadata.managedFields}' --show-managed-fields", "^$")
    run("kubectl apply --server-side -f -", "conflict with", given=SETTINGS.replace("red", "blue"), code=1)
    run("kubectl apply --server-side -f - --dry-run=server", "serverside-applied", given=SETTINGS)


def test_from_client_side_to_server_side_apply(run):
    run("kubectl apply -f -", "created", given=SETTINGS)
    changed = SETTINGS.replace("red", "blue").replace(', size: "1"', "")
    run("kubectl apply --server-side -f -", "serverside-applied", given=changed)
    run("kubectl get cm settings -o jsonpath='{.data}'", '"color":"blue"')
    run("kubectl apply --server-side -f -", "serverside-applied", given=changed)
    run("kubectl get cm settings -o jsonpath='{.data}'", '^{"color":"blue"}$')


def test_a_deployment_from_first_rollout_to_deletion(run):
    run.file("web.yaml", APPLICATION)
    run("kubectl apply -f web.yaml", "deployment.apps/web created", "service/web created")
    run("kubectl rollout status deployment/web --timeout=30s", "successfully rolled out")
    run(
        "kubectl get deployments -o wide",
        "READY +UP-TO-DATE +AVAILABLE",
        "^web +2/2.*server +example.org/web:1",
    )
    run("kubectl get pods -l app=web -o wide", "IP +NODE", r"web-\w+-\w+ +1/1 +Running.*10\.244\.")
    run("kubectl get services", "CLUSTER-IP", r"^web +ClusterIP.*80/TCP")
    run("kubectl get all", "pod/web", "service/web", "deployment.apps/web", "replicaset.apps/web")
    run("kubectl describe deployment web", "2 desired | 2 updated", "ScalingReplicaSet")
    run("kubectl describe service web", "TargetPort: +http/TCP")
    run("kubectl describe pod -l app=web", "GREETING: +hello", "Ready: +True", "Scheduled", "Started")
    run("kubectl set image deployment/web server=example.org/web:2", "image updated")
    run("kubectl rollout status deployment/web --timeout=30s", "successfully rolled out")
    run("kubectl annotate deployment/web kubernetes.io/change-cause='second image'", "annotated")
    run("kubectl rollout history deployment/web", "^1 ", "^2 +second image")
    run("kubectl rollout history deployment/web --revision=2", "Image:\\s+example.org/web:2")
    run("kubectl rollout undo deployment/web", "rolled back")
    run("kubectl rollout status deployment/web --timeout=30s", "successfully rolled out")
    run("kubectl get deployment web -o jsonpath='{..image}'", "^example.org/web:1$")
    run("kubectl rollout restart deployment/web", "restarted")
    run("kubectl rollout status deployment/web --timeout=30s", "successfully rolled out")
    run("kubectl scale deployment web --replicas=3 --current-replicas=9", "Expected replicas to be 9", code=1)
    run("kubectl scale deployment web --replicas=3", "scaled")
    run(
        "kubectl wait deployment web --for=jsonpath='{.status.readyReplicas}'=3 --timeout=20s",
        "condition met",
    )
    run("kubectl expose deployment web --name=again --port=8080 --type=NodePort", "exposed")
    run("kubectl events --for deployment/web", "ScalingReplicaSet")
    run("kubectl get events --field-selector involvedObject.kind=Pod", "Scheduled")
    run("kubectl delete deployment web --cascade=orphan", "deleted")
    run("kubectl get replicasets -l app=web", "web")
    run("kubectl delete replicasets --all --cascade=foreground", "deleted")
    run("kubectl get pods", "No resources found")


POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
"""


def test_tables_and_other_forms_of_output(run):
    run.file("all.yaml", APPLICATION + "---" + POLICY)
    run("kubectl apply -f all.yaml && kubectl rollout status deployment/web --timeout=30s", "rolled out")
    run("kubectl get networkpolicies", "NAME +POD-SELECTOR +AGE", r"^closed +app=web +\d+s")
    run(
        "kubectl describe networkpolicy closed",
        "Allowing ingress traffic:\n +<none>",
        "Policy Types: Ingress",
    )
    run.until(
        "kubectl get endpointslices", "ADDRESSTYPE +PORTS +ENDPOINTS +AGE", r"^web-\w+ +IPv4 +8080 +10\.244\."
    )
    run.until("kubectl describe service web", r"Endpoints: +10\.244\.\d+\.\d+:8080")
    run(
        "kubectl get services -o wide",
        "CLUSTER-IP +EXTERNAL-IP",
        r"^web +ClusterIP +[\d.]+ +<none> +80/TCP .*app=web",
    )
    run("kubectl get pods -A --sort-by=.metadata.name", "^NAMESPACE +NAME +READY +STATUS +RESTARTS", "web-")
    run("kubectl get pods --chunk-size=1 -o name", "^pod/web-", "^pod/web-")
    run("kubectl get deploy -o go-template='{{range .items}}{{.metadata.name}};{{end}}'", "^web;$")
    run("kubectl get priorityclasses", r"^system-node-critical +2000001000 +false")
    run("kubectl rollout pause deployment/web && kubectl set env deployment/web A=b", "paused", "updated")
    run("kubectl rollout resume deployment/web", "resumed")
    run("kubectl rollout status deployment/web --timeout=30s", "successfully rolled out")
    run("kubectl create token default --duration=1h", r"^[\w-]+\.[\w-]+\.[\w-]+$")


def test_custom_resources_have_columns_and_are_applied(run):
    definition = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: tours.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: tours, kind: Tour, singular: tour, shortNames: [to]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Length, type: integer, jsonPath: .spec.length}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              length: {type: integer, description: "In days."}
              stops:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items: {type: object, required: [name], properties: {name: {type: string}, days: {type: integer}}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"""

    def tour(spec):
        return f"apiVersion: example.org/v1\nkind: Tour\nmetadata: {{name: grand}}\nspec: {spec}\n"

    run("kubectl apply -f -", "created", given=definition)
    rule = "{type: integer, x-kubernetes-validations: [{rule: self > 0}], "
    ruled = definition.replace("length: {type: integer, ", f"length: {rule}")
    run("kubectl apply -f -", "Warning: x-kubernetes-validations are stored but not evaluated", given=ruled)
    run("kubectl wait --for=condition=Established crd/tours.example.org --timeout=10s", "condition met")
    run(
        "kubectl apply --server-side --field-manager=a -f -", given=tour("{length: 3, stops: [{name: rome}]}")
    )
    run(
        "kubectl apply --server-side --field-manager=b -f -",
        given=tour("{stops: [{name: rome, days: 2}, {name: bari}]}"),
    )
    run("kubectl get to", "NAME +LENGTH +AGE", r"^grand +3 +\d+s")
    run("kubectl get tours -o jsonpath='{.items[0].spec.stops}'", r'{"days":2,"name":"rome"},{"name":"bari"}')
    run(
        "kubectl apply --server-side --field-manager=a -f -",
        "conflict",
        given=tour("{stops: [{name: rome, days: 9}]}"),
        code=1,
    )
    run("kubectl explain tour.spec.length", "In days.")
    run("kubectl describe tour grand", "Length: +3")
    run("kubectl delete tours --all", "deleted")
    run("kubectl delete crd tours.example.org", "deleted")
    run("kubectl get tours", "the server could not find the requested resource", code=1)


@with_both
def test_exec_and_copy(run, runtime):
    run("kubectl apply -f -", "created", given=POD)
    run("kubectl wait --for=condition=Ready pod/box --timeout=30s", "condition met")
    run("kubectl exec box -- hostname", "^box$")
    run("kubectl exec box -c main -- sh -c 'echo $PATH; exit 7'", "/bin", "exit code 7", code=7)
    # containerd's own words for it are an error of the server's, as they are on any cluster.
    ends = {"process": ("No such file", 127), "containerd": ("executable file not found", 1)}[runtime]
    run("kubectl exec box -- no-such-program", ends[0], code=ends[1])
    run("echo through | kubectl exec -i box -- cat", "^through$")
    run("kubectl exec box -- sh -c 'echo out; echo err >&2' 2>/dev/null", "^out\n$")
    run("kubectl exec box -c nobody -- true", "container nobody is not valid for pod box", code=1)
    run("kubectl exec nothing -- true", "not found", code=1)
    typed = run.terminal(
        "kubectl exec -it box -- sh",
        [
            ("# ", "stty size; tty; echo $$\n"),
            (r"\d+\r\n.*# ", (50, 132)),
            ("", "sleep 0.3; stty size\n"),
            ("50 132", "exit 4\n"),
        ],
        code=4,
    )
    assert re.search(r"40 120\n/dev/pts/\d+\n", typed)
    data = os.urandom(3_000_000)
    (run.directory / "there.bin").write_bytes(data)
    run("kubectl cp there.bin box:/tmp/data.bin")
    run("kubectl exec box -- wc -c /tmp/data.bin", "3000000")
    run("kubectl cp box:/tmp/data.bin back.bin")
    assert (run.directory / "back.bin").read_bytes() == data


@with_both
def test_logs(run):
    run("kubectl apply -f -", "created", given=POD)
    run("kubectl wait --for=condition=Ready pod/box --timeout=30s", "condition met")
    run("kubectl logs box", 'Defaulted container "main" out of: main, echo', "^one$", "^three$")
    run("kubectl logs box -c main", "^two$")
    run("kubectl logs box -c main --tail=1", "^(three|two)\n$")
    run("kubectl logs box -c main --timestamps", r"^\d{4}-\d\d-\d\dT[\d:.]+Z one$")
    run("kubectl logs box -c main --since=1h", "^one")
    run("kubectl logs box -c main --limit-bytes=4", "^(one|two)\n$")
    run("kubectl logs -l app=box --all-containers --prefix", r"^\[pod/box/main\] one")
    run("kubectl logs box -c main -p", "previous terminated container", code=1)
    run("kubectl logs box -c nobody", "container nobody is not valid", code=1)
    counting = "for n in 1 2 3; do echo line $n; sleep 0.2; done; echo last"
    run(f"kubectl run counter --image=busybox --restart=Never -- sh -c '{counting}'", "created")
    run("kubectl wait --for=jsonpath='{.status.phase}'=Running pod/counter --timeout=20s", "condition met")
    run("kubectl logs -f counter", "^line 1\nline 2\nline 3\nlast\n$")
    run(
        "kubectl run again --image=busybox --restart=OnFailure -- sh -c 'echo run; sleep 0.3; exit 1'",
        "created",
    )
    run.until("kubectl get pod again -o jsonpath='{.status.containerStatuses[0].restartCount}'", "^[1-9]")
    run("kubectl logs again -p", "^run$")


@with_both
def test_run_and_attach(run):
    run(
        "kubectl run hello --image=busybox --restart=Never --rm -i -- sh -c 'sleep 0.5; cat'",
        "^words$",
        "deleted",
        given="words\n",
    )
    run(
        "kubectl run bad --image=busybox --restart=Never --rm -i -- sh -c 'read line; exit 6'",
        "deleted",
        given="go\n",
        code=6,
    )
    typed = run.terminal(
        "kubectl run shell --image=busybox --restart=Never --rm -it -- sh",
        [("press(ing)? enter", "\n"), ("# ", "stty size; echo $((40 + 2))\n"), ("42", "exit\n")],
    )
    assert "40 120" in typed
    assert 'pod "shell" deleted' in typed
    run("kubectl run talker --image=busybox -- sh -c 'while sleep 0.1; do echo tick; done'", "created")
    run("kubectl wait --for=condition=Ready pod/talker --timeout=20s", "condition met")
    with run.running("kubectl attach talker") as attached:
        run.read_line(attached, "^tick$")
    run("kubectl attach nothing", "not found", code=1)


@with_both
def test_port_forward(run):
    run("kubectl apply -f -", "created", given=POD)
    run("kubectl wait --for=condition=Ready pod/box --timeout=30s", "condition met")
    with run.running("kubectl port-forward pod/box :8080") as forwarding:
        port = re.search(r":(\d+) ->", run.read_line(forwarding, "Forwarding from 127.0.0.1"))[1]
        for _ in range(3):
            run(f"curl -s --max-time 5 http://127.0.0.1:{port}/", "^pod: box$", "client: 127.0.0.1")
        run(
            f"head -c 500000 /dev/zero | curl -s --max-time 5 --data-binary @- http://127.0.0.1:{port}/",
            "pod: box",
        )
    with run.running("kubectl port-forward box :9") as forwarding:
        port = re.search(r":(\d+) ->", run.read_line(forwarding, "Forwarding from 127.0.0.1"))[1]
        run(f"curl -s --max-time 5 http://127.0.0.1:{port}/", code=52)
        run.read_line(forwarding, "failed to connect to port 9 inside the pod: Connection refused")


def test_waiting_and_watching(run):
    with run.running("kubectl get pods --watch --no-headers") as watching:
        run("kubectl apply -f -", "created", given=POD)
        run.read_line(watching, "^box .*Pending")
        run.read_line(watching, "^box +2/2 +Running")
        run("kubectl wait --for=condition=Ready pod/box --timeout=20s", "condition met")
        run("kubectl wait --for=condition=Initialized=false pod/box --timeout=1s", "timed out", code=1)
        run("kubectl delete pod box --wait=false", "deleted")
        run.read_line(watching, "^box .*Terminating")
    run("kubectl wait --for=delete pod/box --timeout=20s")
    run("kubectl create job once --image=x -- sh -c 'echo done'", "created")
    run("kubectl wait --for=condition=complete job/once --timeout=20s", "condition met")
    run("kubectl logs job/once", "^done$")
    run("kubectl get jobs", r"^once +Complete +1/1")


@with_both
def test_deleting(run):
    run(
        "kubectl apply -f -",
        "created",
        given=POD.replace("Seconds: 1", "Seconds: 30").replace(
            "exec sleep 1000", "trap : TERM; while :; do sleep 1; done"
        ),
    )
    run("kubectl wait --for=condition=Ready pod/box --timeout=30s", "condition met")
    run("kubectl delete pod box --grace-period=0 --force --timeout=10s", "force deleted")
    run("kubectl get pod box", "NotFound", code=1)
    run("kubectl delete pod box --ignore-not-found", "^$")
    run("kubectl delete pod box", "NotFound", code=1)
    run(
        "kubectl run a --image=x; kubectl run b --image=x; kubectl delete pods --all --now",
        'pod "a" deleted',
        'pod "b" deleted',
    )


def test_nodes_leave_and_come_back(run):
    run.file("web.yaml", APPLICATION)
    run("kubectl apply -f web.yaml; kubectl rollout status deployment/web --timeout=30s", "rolled out")
    run("kubectl cordon node-2", "node/node-2 cordoned")
    run("kubectl get nodes", "^node-2 +Ready,SchedulingDisabled")
    run(
        "kubectl drain node-2 --ignore-daemonsets --force --delete-emptydir-data --timeout=30s",
        "node/node-2 drained",
    )
    run("kubectl rollout status deployment/web --timeout=30s", "rolled out")
    run("kubectl get pods -o jsonpath='{.items[*].spec.nodeName}'", "^node-1 node-1$")
    run("kubectl uncordon node-2", "uncordoned")
    run("kubectl taint nodes node-2 tour=on:NoSchedule", "tainted")
    run("kubectl describe node node-2", "Taints: +tour=on:NoSchedule")
    run("kubectl taint nodes node-2 tour-", "untainted")
    run("kubectl label node node-2 disk=fast; kubectl get nodes -l disk=fast -o name", "^node/node-2$")
    run("kubectl label node node-2 disk-", "unlabeled")


def test_what_is_not_served_is_said(run):
    run("kubectl top nodes", "Metrics API not available", code=1)
    run("kubectl top pods", "Metrics API not available", code=1)
    run("kubectl get gadgets", 'the server doesn\'t have a resource type "gadgets"', code=1)
    run("kubectl get --raw /api/v1/nodes/node-1/proxy/metrics", r"\(NotImplemented\): nodes/proxy", code=1)
    run("kubectl create deployment web --image=x", "created")
    run("kubectl autoscale deployment web --max=2", "served as v2, not v1", code=1)
    run(
        "kubectl run box --image=x; kubectl wait --for=condition=Ready pod/box --timeout=20s", "condition met"
    )
    run("kubectl debug box -it --image=x -- sh", "runs no ephemeral containers: use kubectl exec", code=1)
    run("kubectl get --raw /apis/metrics.k8s.io/v1beta1/nodes", r"\(NotFound\)", code=1)
    run("kubectl get pods --field-selector spec.image=x", "field label not supported", code=1)


def test_a_chart(run):
    """What `helm template` makes of an ordinary chart."""
    run.file("chart.yaml", CHART)
    run("kubectl apply --server-side --dry-run=server -f chart.yaml", "serverside-applied")
    run("kubectl apply -f chart.yaml", "deployment.apps/release-shop created", "poddisruptionbudget.policy/")
    run("kubectl rollout status deployment/release-shop --timeout=30s", "successfully rolled out")
    run("kubectl wait --for=condition=complete job/release-shop-migrate --timeout=20s", "condition met")
    run("kubectl get hpa,pdb,ingress,serviceaccount,role,rolebinding", "release-shop", "shop.example.org")
    run("kubectl exec deploy/release-shop -- sh -c 'echo $MODE'", "^production$")
    run("kubectl apply -f chart.yaml", "deployment.apps/release-shop unchanged")
    run("kubectl delete -f chart.yaml", "deleted")


CHART = """
---
# Source: shop/templates/serviceaccount.yaml
apiVersion: v1
kind: ServiceAccount
metadata:
  name: release-shop
  labels:
    helm.sh/chart: shop-0.3.1
    app.kubernetes.io/name: shop
    app.kubernetes.io/instance: release
    app.kubernetes.io/version: "1.16.0"
    app.kubernetes.io/managed-by: Helm
automountServiceAccountToken: true
---
# Source: shop/templates/configmap.yaml
apiVersion: v1
kind: ConfigMap
metadata: {name: release-shop, labels: {app.kubernetes.io/name: shop, app.kubernetes.io/instance: release}}
data:
  MODE: production
  shop.conf: |
    listen 8080
---
# Source: shop/templates/secret.yaml
apiVersion: v1
kind: Secret
metadata: {name: release-shop}
type: Opaque
data: {password: cGFzcw==}
---
# Source: shop/templates/rbac.yaml
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: release-shop}
rules:
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch]
---
# Source: shop/templates/rbac.yaml
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: release-shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: release-shop}
subjects: [{kind: ServiceAccount, name: release-shop}]
---
# Source: shop/templates/service.yaml
apiVersion: v1
kind: Service
metadata: {name: release-shop}
spec:
  type: ClusterIP
  ports: [{port: 80, targetPort: http, protocol: TCP, name: http}]
  selector: {app.kubernetes.io/name: shop, app.kubernetes.io/instance: release}
---
# Source: shop/templates/deployment.yaml
apiVersion: apps/v1
kind: Deployment
metadata: {name: release-shop}
spec:
  replicas: 2
  selector:
    matchLabels: {app.kubernetes.io/name: shop, app.kubernetes.io/instance: release}
  template:
    metadata:
      annotations: {checksum/config: 3c5a0a4f}
      labels: {app.kubernetes.io/name: shop, app.kubernetes.io/instance: release}
    spec:
      serviceAccountName: release-shop
      securityContext: {fsGroup: 2000}
      terminationGracePeriodSeconds: 1
      containers:
      - name: shop
        image: "example.org/shop:1.16.0"
        imagePullPolicy: IfNotPresent
        ports: [{name: http, containerPort: 8080, protocol: TCP}]
        envFrom: [{configMapRef: {name: release-shop}}]
        env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: release-shop, key: password}}}]
        livenessProbe: {httpGet: {path: /, port: http}}
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
        resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 32Mi}}
        volumeMounts: [{name: config, mountPath: /etc/shop}, {name: cache, mountPath: /var/cache/shop}]
      volumes:
      - {name: config, configMap: {name: release-shop}}
      - {name: cache, emptyDir: {}}
---
# Source: shop/templates/hpa.yaml
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: release-shop}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: release-shop}
  minReplicas: 1
  maxReplicas: 5
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]
---
# Source: shop/templates/pdb.yaml
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: release-shop}
spec:
  minAvailable: 1
  selector: {matchLabels: {app.kubernetes.io/name: shop}}
---
# Source: shop/templates/ingress.yaml
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: release-shop, annotations: {kubernetes.io/tls-acme: "true"}}
spec:
  ingressClassName: nginx
  tls: [{hosts: [shop.example.org], secretName: shop-tls}]
  rules:
  - host: shop.example.org
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: release-shop, port: {name: http}}}}]}
---
# Source: shop/templates/migrate.yaml
apiVersion: batch/v1
kind: Job
metadata:
  name: release-shop-migrate
  annotations: {helm.sh/hook: "pre-install,pre-upgrade", helm.sh/hook-delete-policy: before-hook-creation}
spec:
  backoffLimit: 1
  template:
    spec:
      restartPolicy: Never
      containers: [{name: migrate, image: "example.org/shop:1.16.0", command: [sh, -c, "echo migrated"]}]
"""
