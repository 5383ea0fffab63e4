from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import msgspec
import pytest

from poplin.lab.controllers.object import find_condition
from poplin.lab.kubelet.document import Pod
from poplin.lab.kubelet.status import (
    ContainerView,
    Running,
    Terminated,
    Waiting,
    decide_phase,
    describe_container,
    make_status,
    read_terminated,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CREATED = ContainerView("c")
RUNS = ContainerView("c", state=Running(1.0), ready=True, started=True)
DONE = ContainerView("c", state=Terminated(0, 1.0, 2.0))
BROKE = ContainerView("c", state=Terminated(3, 1.0, 2.0))
BACK_OFF = ContainerView("c", state=Waiting("CrashLoopBackOff"), last=Terminated(3, 1.0, 2.0))
SIDECAR = ContainerView("s", state=Running(1.0), started=True, sidecar=True)


@pytest.mark.parametrize(
    ("policy", "init", "main", "phase"),
    [
        ("Always", [], [CREATED], "Pending"),
        ("Always", [], [RUNS, CREATED], "Pending"),
        ("Always", [], [RUNS], "Running"),
        ("Always", [], [BACK_OFF], "Running"),
        ("Always", [], [DONE], "Running"),
        ("OnFailure", [], [DONE], "Succeeded"),
        ("OnFailure", [], [DONE, BACK_OFF], "Running"),
        ("Never", [], [DONE], "Succeeded"),
        ("Never", [], [DONE, BROKE], "Failed"),
        ("Never", [], [RUNS, BROKE], "Running"),
        ("Always", [RUNS], [CREATED], "Pending"),
        ("Always", [BROKE], [CREATED], "Pending"),
        ("Never", [BROKE], [CREATED], "Failed"),
        ("Always", [DONE], [RUNS], "Running"),
        ("Always", [DONE, SIDECAR], [RUNS], "Running"),
        ("Never", [SIDECAR], [DONE], "Succeeded"),
    ],
)
def test_the_phase(policy, init, main, phase):
    assert decide_phase(policy, init, main) == phase


def make_pod(status=None, **spec):
    document = {"metadata": {"name": "a", "uid": "u"}, "spec": spec, "status": status or {}}
    return msgspec.convert(document, Pod)


def status_of(pod, main, *, init=(), attached=True, now=NOW):
    return make_status(
        pod,
        init,
        main,
        attached=attached,
        addresses=[ip_address("10.0.0.1"), ip_address("fd00::1")],
        host_addresses=[ip_address("172.18.0.2")],
        now=now,
    )


def conditions(status):
    return {one["type"]: one["status"] for one in status["conditions"]}


def test_a_pod_that_runs_is_ready_at_all_its_addresses():
    status = status_of(make_pod(), [RUNS])
    assert set(conditions(status).values()) == {"True"}
    assert status["podIPs"] == [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]
    assert (status["podIP"], status["hostIP"]) == ("10.0.0.1", "172.18.0.2")


def test_one_container_that_is_not_ready_is_named():
    unready = ContainerView("slow", state=Running(1.0), started=True)
    status = status_of(make_pod(), [RUNS, unready])
    ready = find_condition(status, "Ready")
    assert ready["status"] == "False"
    assert ready["message"] == "containers with unready status: [slow]"
    assert conditions(status)["Initialized"] == "True"


def test_a_readiness_gate_is_waited_for():
    pod = make_pod(readinessGates=[{"conditionType": "example.org/lit"}])
    assert conditions(status_of(pod, [RUNS]))["Ready"] == "False"
    lit = {"conditions": [{"type": "example.org/lit", "status": "True"}]}
    pod = make_pod(lit, readinessGates=[{"conditionType": "example.org/lit"}])
    status = status_of(pod, [RUNS])
    assert conditions(status)["Ready"] == "True"
    assert conditions(status)["example.org/lit"] == "True", "others' conditions stay"


def test_the_time_of_a_condition_is_that_of_its_change():
    first = status_of(make_pod(), [RUNS])
    later = NOW + timedelta(minutes=1)
    same = status_of(make_pod(first), [RUNS], now=later)
    assert same == first
    other = status_of(make_pod(first), [ContainerView("c", state=Running(1.0))], now=later)
    assert find_condition(other, "Ready")["lastTransitionTime"] == "2026-01-02T03:05:05Z"
    assert find_condition(other, "Initialized") == find_condition(first, "Initialized")


@pytest.mark.parametrize("view", [DONE, BROKE])
def test_an_end_is_read_as_it_was_described(view):
    described = describe_container(view)
    assert read_terminated(described["state"]) == view.state
    assert read_terminated(describe_container(RUNS)["state"]) is None


def test_a_container_that_waits_tells_how_it_ended_before():
    described = describe_container(BACK_OFF)
    assert described["state"] == {"waiting": {"reason": "CrashLoopBackOff"}}
    assert described["lastState"]["terminated"]["exitCode"] == 3
