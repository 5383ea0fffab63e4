"""From the cluster's objects to the table `inet poplin-policy` of one node, and its keeping up with them.

What a change costs depends on what it touches: a pod that comes or goes is one element of a map, whatever
policies there are; a label that makes a pod another identity's, the elements of the sets it leaves and joins.
`compile_policy` is the same as a function of the whole state.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from poplin.compile.nft_rule import decode_number, encode_number
from poplin.compile.policy import table
from poplin.compile.policy.chain import NamedPort, Rendered, chain_name, identity_map, named_set, render
from poplin.compile.policy.evaluation import Case, arrange, decide, undecided
from poplin.compile.policy.identity import (
    NOBODY,
    UNKNOWN,
    Cohort,
    CohortKey,
    Identities,
    Identity,
    Moves,
    Signature,
)
from poplin.compile.policy.index import LabelIndex, SelectorIndex
from poplin.compile.policy.network_policy import translate
from poplin.compile.policy.table import Growing
from poplin.compile.policy.world import PolicyState, claim, is_endpoint, named_ports
from poplin.model.cluster import Namespace, Pod
from poplin.model.kernel import IPAddress
from poplin.model.nftables import Element, Set, Table
from poplin.model.policy import (
    NUMBERS,
    AppliedTier,
    Direction,
    Endpoint,
    Packet,
    Policy,
    PolicyKey,
    Reason,
    Verdict,
)
from poplin.model.selector import (
    NAMESPACE,
    In,
    Labels,
    Selector,
    account_labels,
    keys_of,
    namespace_labels,
    scope,
)

PodKey = tuple[str, str]


def compile_policy(state: PolicyState, node: str, held: Mapping[IPAddress, int] | None = None) -> Table:
    """The table that has the kernel decide for `node`'s pods as `World.evaluate` says.

    `held` are the identities that addresses have there now (`held_numbers`), to be kept where they can.
    """
    compiler = PolicyCompiler(node, held)
    for namespace in state.namespaces:
        compiler.put_namespace(namespace)
    for policy in state.network_policies:
        compiler.put_policy(translate(policy))
    for pod in state.pods:
        compiler.put_pod(pod)
    return compiler.table()


@dataclass(slots=True)
class _Placed:
    pod: Pod
    cohort: Cohort


class PolicyCompiler:
    """Takes changes in, in any order, and gives the table for all of them.

    The table depends on what was put last and on nothing before, but for the numbers of identities, which
    stay as long as they can. Objects of it that a change does not touch are the same objects as before.

    A pod of this node without addresses in its status is put with those that its attachment has.
    """

    def __init__(self, node: str, held: Mapping[IPAddress, int] | None = None) -> None:
        self._node = node
        self._namespaces: dict[str, dict[str, str]] = {}
        self._pods: dict[PodKey, _Placed] = {}
        self._claims: dict[IPAddress, tuple[PodKey, ...]] = {}
        self._cohorts: dict[CohortKey, Cohort] = {}
        self._labels: LabelIndex[CohortKey] = LabelIndex()
        self._identities = Identities(held or {})
        self._policies: dict[PolicyKey, Policy] = {}
        self._selection = SelectorIndex()  # of policies, asked for this node's cohorts
        self._selected: dict[str, set[PolicyKey]] = {}
        self._mentioned: Counter[str] = Counter()  # pods' own labels, by how many policies
        self._local: dict[CohortKey, tuple[str, str]] = {}
        self._chains: dict[str, tuple[tuple[AppliedTier, ...], Rendered]] = {}
        self._rendered = False  # whether a chain is new or other than at the last table
        self._peers = SelectorIndex()  # of rules in use, asked for all cohorts
        self._peer_selectors: dict[str, Selector] = {}
        self._uses: dict[str, set[str]] = {}  # sets by the selectors whose identities they hold
        self._members: dict[str, Growing] = {}  # of sets of peers and of named ports
        self._named: frozenset[NamedPort] = frozenset()
        self._fixed: dict[str, Set] = {}
        self._known = {version: table.identity_set(version) for version in (4, 6)}
        self._elements: dict[IPAddress, Element] = {}
        self._maps = {direction: table.chain_map(direction) for direction in Direction}
        # What `table` has yet to look at.
        self._dirty: set[CohortKey] = set()
        self._addresses: set[IPAddress] = set()
        self._changed: dict[str, Selector] = {}

    # Changes

    def put_namespace(self, namespace: Namespace) -> None:
        self._show(namespace.name, namespace_labels(namespace.name, namespace.labels))

    def delete_namespace(self, name: str) -> None:
        """Its pods, should any be left, are in a namespace that has its name alone for a label."""
        self._show(name, namespace_labels(name, {}))

    def put_policy(self, policy: Policy) -> None:
        before = self._policies.get(policy.key)
        if before == policy:
            return
        fresh = {key for key in _labels_of(policy) if key not in self._mentioned}
        self._mentioned.update(_labels_of(policy))
        if before is not None:
            self.delete_policy(policy.key)
        self._policies[policy.key] = policy
        self._selection.add(policy.selector)
        self._selected.setdefault(policy.selector.text, set()).add(policy.key)
        self._changed[policy.selector.text] = policy.selector
        if fresh:
            for placed in list(self._pods.values()):
                if not fresh.isdisjoint(placed.pod.labels):
                    self.put_pod(placed.pod)

    def delete_policy(self, key: PolicyKey) -> None:
        policy = self._policies.pop(key, None)
        if policy is None:
            return
        text = policy.selector.text
        self._selected[text].discard(key)
        if not self._selected[text]:
            del self._selected[text]
            self._selection.remove(text)
        self._changed[text] = policy.selector
        self._mentioned -= Counter(_labels_of(policy))

    def put_pod(self, pod: Pod) -> None:
        if not is_endpoint(pod):
            self.delete_pod(pod.namespace, pod.name)
            return
        key = pod.namespace, pod.name
        cohort = self._cohort(pod)
        placed = self._pods.get(key)
        if placed is not None:
            before = placed.pod
            placed.pod = pod
            if placed.cohort is cohort and before.addresses == pod.addresses:
                if claim(before) != claim(pod):
                    self._addresses.update(pod.addresses)
                return
            self._take_out(key, before, placed.cohort)
            placed.cohort = cohort
        else:
            self._pods[key] = _Placed(pod, cohort)
        if not cohort.members:
            self._dirty.add(cohort.key)
        cohort.members[key] = pod.addresses
        for address in pod.addresses:
            self._claims[address] = (*self._claims.get(address, ()), key)
        self._addresses.update(pod.addresses)

    def delete_pod(self, namespace: str, name: str) -> None:
        placed = self._pods.pop((namespace, name), None)
        if placed is not None:
            self._take_out((namespace, name), placed.pod, placed.cohort)

    def _take_out(self, key: PodKey, pod: Pod, cohort: Cohort) -> None:
        del cohort.members[key]
        if not cohort.members:
            self._dirty.add(cohort.key)
        for address in pod.addresses:
            left = tuple(one for one in self._claims[address] if one != key)
            if left:
                self._claims[address] = left
            else:
                del self._claims[address]
        self._addresses.update(pod.addresses)

    def _show(self, name: str, shown: dict[str, str]) -> None:
        if self._namespaces.get(name) == shown:
            return
        self._namespaces[name] = shown
        for key in self._labels.matching(In(NAMESPACE, frozenset({name}))):
            cohort = self._cohorts[key]
            cohort.labels = cohort.labels._replace(namespace=shown)
            self._labels.put(key, cohort.labels)
            self._dirty.add(key)

    def _cohort(self, pod: Pod) -> Cohort:
        mentioned = self._mentioned
        own = tuple(sorted([item for item in pod.labels.items() if item[0] in mentioned]))
        ports = named_ports(pod)
        key = CohortKey(
            pod.namespace,
            pod.service_account,
            own,
            tuple(sorted([(port.name, port.protocol, port.port) for port in ports])) if ports else (),
            pod.node_name == self._node,
        )
        cohort = self._cohorts.get(key)
        if cohort is None:
            shown = self._namespaces.get(pod.namespace)
            if shown is None:
                shown = self._namespaces[pod.namespace] = namespace_labels(pod.namespace, {})
            labels = Labels(dict(own), shown, account_labels(pod.service_account, {}))
            cohort = self._cohorts[key] = Cohort(key, labels, ports)
            self._labels.put(key, labels)
        return cohort

    # The table

    def table(self) -> Table:
        """The table for all that was put. Costs what has changed since the last one."""
        self._choose_chains()
        unfilled = self._adopt_rules()
        signed = [(self._cohorts[key], self._sign(self._cohorts[key])) for key in self._dirty]
        moves = self._identities.assign(signed)
        self._identities.forget_held()
        self._fill(moves, unfilled)
        for key in self._dirty:
            if not self._cohorts[key].members:
                del self._cohorts[key]
                self._labels.remove(key)
        self._dirty.clear()
        self._number_addresses(moves.moved)
        return self._assemble()

    def verdicts(self, packet: Packet, directions: Iterable[Direction]) -> list[Verdict]:
        """What the table given last says of the packet that begins a connection, in these directions of this node's pods."""
        case = Case(packet, self._endpoint(packet.source), self._endpoint(packet.destination))
        always = undecided(case)
        if always is not None:
            return [Verdict(direction, True, always) for direction in directions]
        return [self._decide(direction, case) for direction in directions]

    def _decide(self, direction: Direction, case: Case) -> Verdict:
        endpoint = case.source if direction is Direction.EGRESS else case.destination
        chains = self._local.get(self._pods[endpoint.key].cohort.key) if endpoint is not None else None
        if chains is None:
            return Verdict(direction, False, Reason.NOT_KNOWN)
        name = chains[0] if direction is Direction.INGRESS else chains[1]
        return decide(self._chains[name][0] if name else (), direction, case)

    def _endpoint(self, address: IPAddress) -> Endpoint | None:
        key = self.owner(address)
        if key is None:
            return None
        pod, cohort = self._pods[key].pod, self._pods[key].cohort
        return Endpoint(pod.namespace, pod.name, cohort.labels, pod.node_name, pod.addresses, cohort.ports)

    def owner(self, address: IPAddress) -> PodKey | None:
        """The pod that has the address."""
        claims = self._claims.get(address, ())
        if len(claims) <= 1:
            return claims[0] if claims else None
        return min(claims, key=lambda one: claim(self._pods[one].pod))

    def _choose_chains(self) -> None:
        """Which chains this node's cohorts go through, and what is in them."""
        affected = {key for key in self._dirty if key.local}
        for selector in self._changed.values():
            matching = (key for key in self._local if selector.matches(self._cohorts[key].labels))
            affected.update(matching)
        self._changed.clear()
        for key in affected:
            cohort = self._cohorts[key]
            if not cohort.members:
                self._local.pop(key, None)
                continue
            texts = self._selection.matching(cohort.labels)
            policies = [self._policies[one] for text in texts for one in self._selected[text]]
            self._local[key] = (
                self._chain(arrange(policies, Direction.INGRESS), Direction.INGRESS),
                self._chain(arrange(policies, Direction.EGRESS), Direction.EGRESS),
            )
            self._dirty.add(key)

    def _chain(self, applied: tuple[AppliedTier, ...], direction: Direction) -> str:
        if not applied:
            return ""
        name = chain_name(applied, direction)
        known = self._chains.get(name)
        if known is None or known[0] != applied:
            self._chains[name] = applied, render(applied, direction)
            self._rendered = True
        return name

    def _adopt_rules(self) -> list[str]:
        """Take up what the chains look into, and give the names of the sets that are new, to be filled."""
        used = {name for pair in self._local.values() for name in pair if name}
        if used == self._chains.keys() and not self._rendered:
            return []
        self._rendered = False
        self._chains = {name: known for name, known in self._chains.items() if name in used}
        chains = [rendered for _, rendered in self._chains.values()]
        self._fixed = {name: one for rendered in chains for name, one in rendered.sets.items()}
        named = frozenset[NamedPort]().union(*(rendered.named for rendered in chains))
        self._look_up_ports(named)
        peers = {name: some for rendered in chains for name, some in rendered.peers.items()}
        self._look_up_peers({one.text: one for some in peers.values() for one in some})
        self._uses = {}
        for name, some in peers.items():
            for one in some:
                self._uses.setdefault(one.text, set()).add(name)
        wanted = [*peers, *map(named_set, named)]
        unfilled = [name for name in wanted if name not in self._members]
        self._members = {name: self._members.get(name) or table.member_set(name) for name in wanted}
        return unfilled

    def _look_up_peers(self, selectors: dict[str, Selector]) -> None:
        """Have the cohorts that a selector begins or ceases to matter for signed anew."""
        for text in selectors.keys() ^ self._peer_selectors.keys():
            selector = selectors.get(text) or self._peer_selectors[text]
            self._dirty.update(self._labels.matching(selector.expression))
            if text in selectors:
                self._peers.add(selector)
            else:
                self._peers.remove(text)
        self._peer_selectors = selectors

    def _look_up_ports(self, named: frozenset[NamedPort]) -> None:
        names = {port.name for port in named ^ self._named}
        if names:
            self._dirty.update(
                key
                for key, cohort in self._cohorts.items()
                if cohort.ports and any(port.name in names for port in cohort.ports)
            )
        self._named = named

    def _sign(self, cohort: Cohort) -> Signature:
        named: frozenset[tuple[str, int]] = frozenset()
        if cohort.ports and self._named:
            named = frozenset(
                (named_set(known), port.port)
                for port in cohort.ports
                if (known := NamedPort(NUMBERS[port.protocol], port.name)) in self._named
            )
        texts = frozenset(self._peers.matching(cohort.labels))
        chains = self._local.get(cohort.key)
        return Signature(texts, named, chains) if texts or named or chains else NOBODY

    def _fill(self, moves: Moves, unfilled: Iterable[str]) -> None:
        """Bring the sets up to the identities there are now."""
        for identity in moves.gone:
            for name, element in self._memberships(identity):
                self._members[name].discard(element)
            for direction, element in _chain_elements(identity):
                self._maps[direction].discard(element)
        for identity in moves.new:
            for name, element in self._memberships(identity):
                self._members[name].add(element)
            for direction, element in _chain_elements(identity):
                self._maps[direction].add(element)
        new = set(unfilled)
        for identity in self._identities if new else ():
            for name, element in self._memberships(identity):
                if name in new:
                    self._members[name].add(element)

    def _memberships(self, identity: Identity) -> Iterator[tuple[str, Element]]:
        peer = table.peer_element(identity.number)
        for text in identity.signature.selectors:
            for name in self._uses.get(text, ()):
                yield name, peer
        for name, port in identity.signature.named:
            if name in self._members:
                yield name, table.named_element(identity.number, port)

    def _number_addresses(self, moved: Iterable[Cohort]) -> None:
        """Give the addresses that may have another identity now the element they should have."""
        for cohort in moved:
            for addresses in cohort.members.values():
                self._addresses.update(addresses)
        values: dict[int, bytes] = {}
        for address in self._addresses:
            number = self._number(address)
            known = self._known[address.version]
            before = self._elements.pop(address, None)
            if before is not None:
                known.discard(before)
            if number:
                value = values.get(number) or values.setdefault(number, encode_number(number))
                self._elements[address] = element = table.identity_element(address, value)
                known.add(element)
        self._addresses.clear()

    def _number(self, address: IPAddress) -> int:
        key = self.owner(address)
        return UNKNOWN if key is None else self._pods[key].cohort.number

    def _assemble(self) -> Table:
        chains = [chain for _, rendered in self._chains.values() for chain in rendered.chains]
        growing = (*self._known.values(), *self._maps.values(), *self._members.values())
        sets = [*(one.whole() for one in growing), *self._fixed.values()]
        return table.compile_table(chains, sets)


def _chain_elements(identity: Identity) -> Iterator[tuple[Direction, Element]]:
    chains = identity.signature.chains or ("", "")
    for direction, chain in zip((Direction.INGRESS, Direction.EGRESS), chains, strict=True):
        if chain:
            yield direction, table.chain_element(identity.number, chain)


def _labels_of(policy: Policy) -> Iterator[str]:
    """The labels of pods' own that the policy asks for."""
    rules = (*policy.ingress, *policy.egress)
    sides = [side for rule in rules for side in (rule.source, rule.destination)]
    selectors = [policy.selector, *(one for side in sides for one in (side.selector, side.not_selector))]
    for selector in selectors:
        if selector is not None:
            yield from (key for key in keys_of(selector.expression) if not scope(key))


def held_numbers(actual: Table | None) -> dict[IPAddress, int]:
    """The identities that addresses have in the table the kernel holds, for `PolicyCompiler`."""
    held = {}
    names = {identity_map(version) for version in (4, 6)}
    for one in actual.sets if actual is not None else ():
        for element in one.elements if one.name in names else ():
            if element.key is not None and isinstance(element.data, bytes):
                held[ip_address(element.key)] = decode_number(element.data)
    return held
