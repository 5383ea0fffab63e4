from datetime import UTC, datetime, timedelta

import pytest

from poplin.apiserver.cells import CELLS, format_age, format_duration, format_selector
from poplin.apiserver.resource import builtin_resources, version_order
from poplin.apiserver.table import evaluate, make_row


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0s"), (119, "119s"), (120, "2m"), (185, "3m5s"), (600, "10m"), (3 * 3600 - 1, "179m"), (3 * 3600, "3h"),
        (4 * 3600 + 60, "4h1m"), (9 * 3600, "9h"), (47 * 3600, "47h"), (2 * 86400, "2d"), (2 * 86400 + 3600, "2d1h"),
        (9 * 86400, "9d"), (800 * 86400, "2y70d"),
    ],
)  # fmt: skip
def test_durations_are_short(seconds, expected):
    assert format_duration(seconds) == expected


def test_an_age_counts_from_then():
    then = (datetime.now(UTC) - timedelta(hours=10)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (format_age(then), format_age("never"), format_age("")) == ("10h", "<unknown>", "<unknown>")


DOCUMENT = {
    "spec": {"a": {"b": 1}, "l": [{"t": "X", "v": "x"}, {"t": "Y", "v": "y"}]},
    "metadata": {"annotations": {"a.b/c": "z"}},
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".spec.a.b", 1),
        ("{.spec.a.b}", 1),
        (".spec.l[1].v", "y"),
        (".spec.l[5].v", None),
        (".spec.l[*].v", "x"),
        ('.spec.l[?(@.t=="Y")].v', "y"),
        (".spec.l[?(@.t=='Z')].v", None),
        (".metadata.annotations.a\\.b/c", "z"),
        (".metadata.annotations['a.b/c']", "z"),
        (".spec.none.b", None),
    ],
)
def test_paths_of_printer_columns(path, expected):
    assert evaluate(path, DOCUMENT) == expected


def test_every_column_of_every_type_has_a_cell_even_for_an_empty_object():
    for resource in builtin_resources():
        for column in resource.columns:
            assert column.cell.startswith(".") or column.cell in CELLS
        row = make_row(resource, {"kind": resource.kind, "metadata": {"name": "x"}})
        assert len(row["cells"]) == len(resource.columns)


def row(plural: str, **document: object) -> dict[str, object]:
    resource = next(one for one in builtin_resources() if one.plural == plural and one.group in {"", "apps"})
    cells = make_row(resource, {"kind": resource.kind, "metadata": {"name": "x"}, **document})["cells"]
    return dict(zip((column.name for column in resource.columns), cells, strict=True))


def test_a_pod_is_summed_up():
    crashed = {"ready": False, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    shown = row(
        "pods",
        spec={"containers": [{}, {}], "nodeName": "n"},
        status={"phase": "Running", "containerStatuses": [{"ready": True, "restartCount": 1}, crashed]},
    )
    assert (shown["Ready"], shown["Status"], shown["Restarts"], shown["Node"]) == (
        "1/2",
        "CrashLoopBackOff",
        "4",
        "n",
    )


def test_a_service_shows_its_ports_and_addresses():
    ports = [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]
    shown = row("services", spec={"type": "LoadBalancer", "ports": ports, "selector": {"a": "b"}})
    assert (shown["Port(s)"], shown["External-IP"], shown["Selector"]) == (
        "80:30080/TCP,53/UDP",
        "<pending>",
        "a=b",
    )


def test_a_node_shows_state_and_roles():
    shown = row(
        "nodes",
        metadata={"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
        spec={"unschedulable": True},
        status={
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        },
    )
    assert (shown["Status"], shown["Roles"], shown["Internal-IP"]) == (
        "Ready,SchedulingDisabled",
        "control-plane",
        "10.0.0.1",
    )


def test_selectors_are_written_as_kubectl_reads_them():
    terms = [{"key": "k", "operator": "In", "values": ["a", "b"]}, {"key": "x", "operator": "DoesNotExist"}]
    assert format_selector({"matchLabels": {"a": "b"}, "matchExpressions": terms}) == "a=b,k in (a,b),!x"


def test_versions_are_preferred_as_kubernetes_does():
    wanted = ["v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v12alpha1", "v11alpha2", "foo1", "foo10"]
    mixed = wanted[5:] + wanted[:5]
    assert sorted(mixed, key=version_order) == wanted
