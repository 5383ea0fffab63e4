"""What the agent says of itself: `poplin status`, /healthz and /readyz are made from it."""

from dataclasses import dataclass

import msgspec

from poplin.compile.network import Network


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that must hold for the node to serve pods. `reason` says why it does not, "" where it does."""

    name: str
    ok: bool
    reason: str = ""


def from_error(name: str, error: Exception | None) -> Condition:
    """Give a condition that holds where there is no error."""
    return Condition(name, error is None, str(error) if error else "")


@dataclass(frozen=True, slots=True)
class Report:
    """The agent's state. `passes` counts reconcile passes."""

    node: str
    conditions: tuple[Condition, ...]
    network: Network | None
    pods: int
    passes: int
    problems: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether the node serves pods."""
        return all(condition.ok for condition in self.conditions)


def encode_report(report: Report, **more: object) -> bytes:
    """Give the report as JSON, with what else there is to say."""
    return msgspec.json.encode(
        {
            **more,
            "node": report.node,
            "ready": report.ready,
            "conditions": [{"name": c.name, "ok": c.ok, "reason": c.reason} for c in report.conditions],
            "network": _network(report.network) if report.network else None,
            "pods": report.pods,
            "passes": report.passes,
            "problems": report.problems,
        }
    )


def _network(network: Network) -> dict[str, object]:
    return {
        "backend": network.lease.backend_type,
        "podMTU": network.pod_mtu_bytes,
        "families": [
            {
                "podCIDR": str(endpoint.pod_cidr),
                "publicIP": str(endpoint.public_ip),
                "vtepMAC": endpoint.vtep_mac,
                "vni": endpoint.vni,
            }
            for endpoint in network.lease.endpoints
        ],
        "links": sorted(network.state.links),
        "routes": len(network.state.routes),
    }
