"""The agent: its watches, the reconcile loop, the CNI server and what it says of itself, on one event loop."""

import asyncio
import gc
import logging
import os
from contextlib import AsyncExitStack, aclosing

from poplin.agent.cluster import View
from poplin.agent.config import AgentConfig
from poplin.agent.configuration import Configuration
from poplin.agent.endpoints import Endpoints
from poplin.agent.enforcer import KEY as POLICY_TABLE
from poplin.agent.flow_stream import flow_routes
from poplin.agent.flows import Flows
from poplin.agent.host_ports import HostPorts
from poplin.agent.install import install_shim, lock_namespace, lock_state_dir, make_run_dir, write_atomically
from poplin.agent.loop import Loop
from poplin.agent.pods import ATTACHMENTS, Pods
from poplin.agent.policies import Policies
from poplin.agent.policy_events import PolicyEvents
from poplin.agent.publish import Publisher
from poplin.agent.reconcile import Inputs, Outcome, Reconciler
from poplin.agent.recovery import damage, open_store
from poplin.agent.registry import Registry
from poplin.agent.report import Report, from_error
from poplin.agent.service_rules import KEY as SERVICE_TABLE
from poplin.agent.service_rules import ServiceRules
from poplin.agent.services import Services
from poplin.agent.watchdog import Watchdog
from poplin.cni.conflist import NAME as CONFLIST
from poplin.cni.conflist import encode_conflist
from poplin.cni.server import CniServer
from poplin.compile.network import Network
from poplin.dataplane.netlink.monitor import Monitor
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.nftables.monitor import NftMonitor
from poplin.datastore.core import NODES
from poplin.datastore.source import Source
from poplin.model.cluster import Node
from poplin.model.errors import InvalidInputError, PoplinError, TemporaryError

log = logging.getLogger(__name__)


class Agent:
    """One node's agent, in the network namespace of the thread that makes it."""

    def __init__(self, config: AgentConfig, source: Source) -> None:
        self._config = config
        self._source = source
        self._nodes: View[Node] = View("nodes")
        self._outcome = Outcome(None, TemporaryError("the first pass has not run yet"))
        self._network: Network | None = None
        self._told: frozenset[str] = frozenset()
        self._conflist_error: PoplinError | None = TemporaryError("the node is not ready yet")
        self._publisher = Publisher(source, config.node_name, self._install_conflist)
        self._services: Services | None = None

    async def run(self) -> None:
        """Serve until cancelled. Raises PoplinError for what keeps an agent from starting at all."""
        config = self._config
        async with AsyncExitStack() as stack:
            stack.callback(os.close, lock_state_dir(config.state_dir))
            stack.callback(lock_namespace().close)
            make_run_dir(config.run_dir)
            store = open_store(config.state_dir / ATTACHMENTS)
            stack.callback(store.close)
            if config.cni_bin_dir is not None:
                install_shim(config.cni_bin_dir)
            self._registry = Registry(store)
            host_ports = HostPorts(self._registry.mapped)
            stack.callback(host_ports.close)
            self._policies = Policies(self._source, config.node_name, self._registry.all)
            stack.callback(self._policies.close)
            reconciler = Reconciler(config, self._registry, host_ports)
            stack.callback(reconciler.close)
            pods = Pods(
                self._registry,
                host_ports,
                config.state_dir,
                self._serving_network,
                attached=lambda host_link: self._loop.look_at([host_link]),
                look=lambda: self._loop.suspect(()),
                hear=lambda: watchdog.catch_up(monitor),
                policies=self._policies,
            )
            stack.callback(pods.close)
            self._loop = Loop(
                reconciler,
                inputs=self._inputs,
                pods=self._registry.host_links,
                done=self._done,
                coalesce_s=config.coalesce_s,
                audit_s=config.audit_s,
            )
            stack.callback(self._loop.close)
            self._configuration = Configuration(self._loop.wake)
            service_rules = ServiceRules(config.service_cidrs, config.node_port_networks)
            if config.services:
                self._services = Services(
                    self._source,
                    service_rules,
                    self._own_node,
                    coalesce_s=config.coalesce_s,
                    audit_s=config.audit_s,
                )
                stack.push_async_callback(self._services.close)
            else:
                service_rules.remove()
                service_rules.close()
            monitor = stack.enter_context(Monitor(ignored_ports=reconciler.route_ports | pods.ports))
            if not monitor.hears_others:
                log.warning(
                    "changes in pods are found by audits only",
                    extra={"remedy": "give the agent CAP_NET_BROADCAST"},
                )
            links = stack.enter_context(RouteSocket())
            watchdog = Watchdog(
                self._loop,
                self._registry.standing_on,
                links.links,
                lambda: reconciler.desired,
                self._source.end_stranded,
            )
            ours = reconciler.nft_ports | host_ports.ports | self._policies.ports | service_rules.ports
            tables = stack.enter_context(NftMonitor(ignored_ports=ours))
            self._flows = Flows(self._policies.describe)
            routes = flow_routes(self._flows)
            endpoints = Endpoints(self.report, self._run_audit, self._list_services, routes)
            stack.push_async_callback(endpoints.close)
            stack.callback(self._flows.close)
            await endpoints.open(config.status_socket, config.health_address)
            await pods.settle()
            server = CniServer(pods)
            server.listen(config.cni_socket)
            stack.push_async_callback(server.close)
            events = PolicyEvents(self._source, config.node_name, self._nodes, self._policies.policies)
            log.info("agent started", extra={"node": config.node_name, "pods": len(self._registry)})
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(watchdog.run(monitor), name="kernel notifications")
                tasks.create_task(self._follow_tables(tables), name="nftables notifications")
                tasks.create_task(self._follow_nodes(), name="watch of nodes")
                tasks.create_task(self._follow_configuration(), name="network configuration")
                tasks.create_task(self._tidy(pods), name="housekeeping")
                tasks.create_task(pods.reap(), name="destruction of links")
                tasks.create_task(self._publisher.run(), name="publisher")
                tasks.create_task(self._policies.run(), name="policy")
                tasks.create_task(self._flows.run(), name="flows")
                tasks.create_task(events.run(), name="events about policies")
                tasks.create_task(self._loop.run(), name="reconcile loop")
                if self._services is not None:
                    tasks.create_task(self._services.run(), name="services")

    def report(self) -> Report:
        """Give the agent's state as it is now."""
        outcome = self._outcome
        unreadable = (str(error) for error in self._nodes.rejected.values())
        failed = outcome.failures[0] if outcome.failures else None
        services = self._services
        damaged = damage(self._config.state_dir / ATTACHMENTS)
        return Report(
            node=self._config.node_name,
            conditions=(
                from_error("attachments stored", self._registry.problem),
                from_error("cluster in sync", self._nodes.not_in_sync),
                from_error("configuration valid", self._configuration.problem),
                from_error("network computed", outcome.hold),
                from_error("kernel programmed", failed),
                from_error("policy in force", self._policies.not_in_force),
                from_error("lease published", self._publisher.not_published),
                from_error("CNI configuration installed", self._conflist_error),
                *([from_error("Services served", services.problem)] if services else []),
            ),
            network=self._network,
            pods=len(self._registry),
            passes=self._loop.passes,
            problems=tuple(
                sorted(
                    self._told.union(
                        unreadable,
                        [str(damaged)] if damaged else (),
                        self._policies.problems,
                        self._flows.problems,
                        services.problems if services else (),
                    )
                )
            ),
        )

    def _serving_network(self) -> Network:
        """Give the network that new pods join. Raises PoplinError where none can be attached now."""
        if self._network is None:
            raise TemporaryError(
                f"the node's network is not up: {self._outcome.hold}", remedy="see `poplin status`"
            )
        return self._network

    def _inputs(self) -> Inputs:
        configuration, nodes = self._configuration, self._nodes
        own = self._own_node()
        if not nodes.filled and nodes.not_in_sync is not None:
            return Inputs(nodes.not_in_sync)
        if own is None:
            unreadable = nodes.rejected.get(("", self._config.node_name))
            return Inputs(
                unreadable
                or TemporaryError(
                    "is not among the cluster's nodes",
                    where=f"node {self._config.node_name}",
                    remedy="check --node-name, and that the node has joined the cluster",
                )
            )
        if configuration.conf is None:
            return Inputs(configuration.problem)
        others = [node for node in nodes.objects.values() if node is not own]
        return Inputs(None, configuration.conf, own, others)

    def _own_node(self) -> Node | None:
        return self._nodes.objects.get(("", self._config.node_name))

    async def _run_audit(self) -> int:
        mended = await self._policies.audit() + (await self._loop.run_audit()).changes
        if self._services is not None:
            mended += (await self._services.run_audit()).changes
        return mended

    async def _list_services(self) -> bytes:
        """Give what the kernel serves. Raises InvalidInputError where that is left to another proxy."""
        if self._services is None:
            raise InvalidInputError(
                "Services are left to kube-proxy here",
                where=f"node {self._config.node_name}",
                remedy="start the agent with --services to have it serve them",
            )
        return await self._services.listing()

    def _done(self, outcome: Outcome) -> None:
        """Take a pass's outcome in: log what is new in it, and have it published where it stands."""
        self._outcome = outcome
        self._tell(outcome)
        for attachment in outcome.adopted:
            if self._registry.adopt(attachment):
                self._loop.wake()
        own = self._own_node()
        if outcome.network is not None:
            self._network = outcome.network
            self._registry.serve(outcome.network.pod_cidrs)
        stands = outcome.network if not outcome.failures else None
        self._publisher.offer(own, stands, outcome.hold)

    def _tell(self, outcome: Outcome) -> None:
        """Log what is wrong when it begins and when it ends, never again in between."""
        wrong = frozenset(str(e) for e in (*outcome.failures, *outcome.problems, outcome.hold) if e)
        for text in sorted(wrong - self._told):
            log.warning("problem", extra={"problem": text})
        for text in sorted(self._told - wrong):
            log.info("problem solved", extra={"problem": text})
        self._told = wrong

    def _install_conflist(self) -> None:
        """Write the CNI configuration: to the runtime it says that the node's network is ready."""
        config = self._config
        text = encode_conflist(socket=str(config.cni_socket), state_dir=str(config.state_dir))
        try:
            if write_atomically(config.cni_conf_dir / CONFLIST, text.encode()):
                log.info("CNI configuration installed", extra={"path": str(config.cni_conf_dir / CONFLIST)})
        except PoplinError as error:
            self._conflist_error = error
        else:
            self._conflist_error = None

    async def _follow_nodes(self) -> None:
        async with aclosing(self._source.watch(NODES)) as events:
            async for event in events:
                if self._nodes.apply(event):
                    self._loop.wake()
                    if self._services is not None:
                        self._services.wake()

    async def _follow_configuration(self) -> None:
        if self._config.net_conf is not None:
            await self._configuration.follow_file(self._config.net_conf)
        namespace, _, name = self._config.net_conf_map.partition("/")
        await self._configuration.follow_map(self._source, namespace, name)

    async def _follow_tables(self, monitor: NftMonitor) -> None:
        async for key in monitor.events():
            if key is None or key == POLICY_TABLE:
                self._policies.suspect()
            if self._services is not None and (key is None or key == SERVICE_TABLE):
                self._services.suspect()
            if key not in {POLICY_TABLE, SERVICE_TABLE}:
                self._loop.suspect()

    async def _tidy(self, pods: Pods) -> None:
        await asyncio.sleep(self._config.audit_s)
        # A cluster's objects are here by now. To go through those of 150,000 pods time and again for cycles would
        # stop everything for half a second each time. Once only: what is frozen and becomes a cycle is lost.
        gc.freeze()
        while True:
            await pods.tidy()
            await self._policies.audit()
            await asyncio.sleep(self._config.audit_s)
