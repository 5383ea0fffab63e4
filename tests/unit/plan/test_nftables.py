"""Plans of nftables tables, played on a model that is as strict as the kernel about what refers to what."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.model.nftables import (
    ACCEPT,
    DROP,
    BaseChain,
    Chain,
    ChainType,
    Counter,
    Element,
    Hook,
    KeyType,
    Lookup,
    Rule,
    Set,
    Successor,
    Table,
    Verdict,
    jump,
)
from poplin.plan.nftables import (
    AddChain,
    AddElements,
    AddRule,
    AddSet,
    AddTable,
    DeleteChain,
    DeleteElements,
    DeleteSet,
    DeleteTable,
    FlushChain,
    plan_table,
    transactions,
)
from unit.plan.nftables_tables import tables


class Kernel:
    """One table's chains, rules, sets and elements. What the kernel would refuse fails an assertion."""

    def __init__(self, table: Table | None) -> None:
        self.key = table.key if table else None
        self.chains = {chain.name: chain for chain in table.chains} if table else {}
        self.sets = {one.name: one for one in table.sets} if table else {}

    def table(self) -> Table | None:
        if self.key is None:
            return None
        chains, sets = tuple(self.chains.values()), tuple(self.sets.values())
        return Table(self.key.name, chains, sets, self.key.family)

    def apply(self, operations) -> None:
        for operation in operations:
            if isinstance(operation, AddTable):
                assert self.key is None
                self.key = operation.table
                continue
            assert self.key == operation.table
            self.step(operation)

    def step(self, operation) -> None:
        match operation:
            case DeleteTable():
                self.__init__(None)
            case AddChain(_, chain):
                assert not chain.rules
                old = self.chains.get(chain.name)
                if old:
                    assert replace(chain.base, policy=old.base.policy) == old.base
                self.chains[chain.name] = replace(chain, rules=old.rules if old else ())
            case FlushChain(_, name):
                self.chains[name] = replace(self.chains[name], rules=())
            case DeleteChain(_, name):
                assert not self.chains[name].rules
                assert name not in self.jumped_to()
                del self.chains[name]
            case AddRule(_, name, rule):
                for expression in rule.expressions:
                    self.check(expression)
                self.chains[name] = replace(self.chains[name], rules=(*self.chains[name].rules, rule))
            case AddSet(_, one):
                assert one.name not in self.sets
                assert not one.elements
                self.sets[one.name] = one
            case DeleteSet(_, name):
                assert name not in self.looked_into()
                del self.sets[name]
            case AddElements(_, one, elements):
                standing = self.sets[one.name]
                assert replace(one, elements=standing.elements) == standing
                assert not {element.key for element in elements} & {
                    element.key for element in standing.elements
                }
                for element in elements:
                    self.check(element.data)
                self.sets[one.name] = replace(standing, elements=standing.elements | elements)
            case DeleteElements(_, one, elements):
                standing = self.sets[one.name]
                assert elements <= standing.elements
                self.sets[one.name] = replace(standing, elements=standing.elements - elements)

    def check(self, what) -> None:
        if isinstance(what, Verdict) and what.chain:
            assert what.chain in self.chains
        if isinstance(what, Lookup):
            assert what.set in self.sets

    def expressions(self):
        return (
            expression
            for chain in self.chains.values()
            for rule in chain.rules
            for expression in rule.expressions
        )

    def jumped_to(self) -> set[str]:
        verdicts = [one for one in self.expressions() if isinstance(one, Verdict)]
        verdicts += [
            element.data
            for one in self.sets.values()
            for element in one.elements
            if isinstance(element.data, Verdict)
        ]
        return {verdict.chain for verdict in verdicts}

    def looked_into(self) -> set[str]:
        return {one.set for one in self.expressions() if isinstance(one, Lookup)}


maybe_tables = st.none() | tables()


@given(maybe_tables, maybe_tables)
def test_a_plan_makes_what_is_desired(desired, actual):
    kernel = Kernel(actual)
    kernel.apply(plan_table(desired, actual))
    assert kernel.table() == desired


@given(maybe_tables)
def test_nothing_to_do_is_no_operation(table):
    assert plan_table(table, table) == ()


@given(tables(), tables())
def test_a_change_reverted_is_the_original(first, second):
    kernel = Kernel(first)
    kernel.apply(plan_table(second, first))
    kernel.apply(plan_table(first, second))
    assert kernel.table() == first


BASE = BaseChain(ChainType.FILTER, Hook.FORWARD, 0)
KNOWN = Set("known", (KeyType.IPV4_ADDR,), elements=frozenset({Element(b"\1\1\1\1"), Element(b"\2\2\2\2")}))
TABLE = Table(
    "poplin",
    (
        Chain("forward", (Rule((Lookup(0, "known"), jump("pods"))),), BASE),
        Chain("pods", (Rule((ACCEPT,)),)),
        Chain("other", (Rule((DROP,)),)),
    ),
    (KNOWN,),
)


def swap(table: Table, *, chain: Chain | None = None, one: Set | None = None) -> Table:
    chains = tuple(chain if chain and old.name == chain.name else old for old in table.chains)
    sets = tuple(one if one and old.name == one.name else old for old in table.sets)
    return replace(table, chains=chains, sets=sets)


def test_an_element_costs_one_element():
    new = Element(b"\3\3\3\3")
    desired = swap(TABLE, one=replace(KNOWN, elements=KNOWN.elements | {new}))
    assert plan_table(desired, TABLE) == (AddElements(TABLE.key, desired.sets[0], frozenset({new})),)
    assert plan_table(TABLE, desired) == (DeleteElements(TABLE.key, KNOWN, frozenset({new})),)


def test_a_changed_rule_refills_its_chain_alone():
    rules = (Rule((Counter(),)), Rule((DROP,)))
    desired = swap(TABLE, chain=Chain("other", rules))
    assert plan_table(desired, TABLE) == (
        FlushChain(TABLE.key, "other"),
        AddRule(TABLE.key, "other", rules[0]),
        AddRule(TABLE.key, "other", rules[1]),
    )


def test_a_policy_changes_in_place():
    forward = next(chain for chain in TABLE.chains if chain.base)
    desired = swap(TABLE, chain=replace(forward, base=replace(BASE, policy=DROP)))
    (operation,) = plan_table(desired, TABLE)
    assert operation == AddChain(TABLE.key, Chain("forward", (), replace(BASE, policy=DROP)))


def test_a_set_of_another_type_takes_its_rules_with_it():
    """The rule that looks into the set is the same, and must go and come back all the same."""
    wider = Set("known", (KeyType.IPV6_ADDR,), elements=frozenset({Element(bytes(16))}))
    kinds = [type(operation) for operation in plan_table(swap(TABLE, one=wider), TABLE)]
    assert kinds == [FlushChain, DeleteSet, AddSet, AddElements, AddRule]


def test_another_tables_plan_is_refused():
    with pytest.raises(ValueError, match="against"):
        plan_table(TABLE, replace(TABLE, name="kube-proxy"))


def test_a_large_table_is_loaded_in_parts_and_its_rules_come_last():
    elements = frozenset(Element(number.to_bytes(4, "big")) for number in range(25_000))
    large = swap(TABLE, one=replace(KNOWN, elements=elements))
    operations = plan_table(large, None)
    first, *parts, last = transactions(operations)
    assert isinstance(first[0], AddTable)
    assert [len(part.elements) for (part,) in parts] == [10_000, 10_000, 5_000]
    assert frozenset().union(*(part.elements for (part,) in parts)) == elements
    assert last == tuple(one for one in operations if isinstance(one, AddRule))
    assert set(first) | set(last) == {one for one in operations if getattr(one, "elements", None) != elements}


@given(tables(), tables())
def test_transactions_make_what_is_desired(desired, actual):
    kernel = Kernel(actual)
    for transaction in transactions(plan_table(desired, actual)):
        assert transaction
        kernel.apply(transaction)
    assert kernel.table() == desired


@given(tables(), tables())
def test_packets_are_led_to_chains_that_stood_before(desired, actual):
    """But for what is made anew under its name, which is one transaction."""
    kernel = Kernel(actual)
    steps = list(transactions(plan_table(desired, actual)))
    for step in steps:
        made = {one.chain.name for one in step if isinstance(one, AddChain)} - kernel.chains.keys()
        led = set()
        for one in step:
            if isinstance(one, AddElements) and one.set.name in kernel.sets:
                led |= {element.data.chain for element in one.elements if isinstance(element.data, Verdict)}
            if isinstance(one, AddRule) and one.chain in kernel.chains:
                led |= {part.chain for part in one.rule.expressions if isinstance(part, Verdict)}
        assert len(steps) == 1 or not made & led
        kernel.apply(step)


def test_a_number_that_leads_elsewhere_is_one_transaction_and_one_that_leads_nowhere_goes_after_it():
    ways = Set("ways", (KeyType.MARK,), (KeyType.VERDICT,))
    numbers = Set("numbers", (KeyType.IPV4_ADDR,), (KeyType.MARK,))

    def table(number: bytes, *chains: str) -> Table:
        return Table(
            "t",
            tuple(Chain(name, (Rule((DROP,)),)) for name in chains),
            (
                replace(
                    ways, elements=frozenset({Element(number, jump(chains[-1])), Element(b"k", jump("kept"))})
                ),
                replace(numbers, elements=frozenset({Element(b"addr", number)})),
            ),
        )

    make, lead, take = transactions(plan_table(table(b"2", "kept", "new"), table(b"1", "kept", "old")))
    assert [type(one) for one in make] == [AddChain, AddRule]
    assert [(type(one), one.set.name) for one in lead] == [
        (DeleteElements, "numbers"),
        (AddElements, "numbers"),
        (AddElements, "ways"),
    ]
    assert [type(one) for one in take] == [FlushChain, DeleteElements, DeleteChain]
    _, lead, take = transactions(plan_table(table(b"1", "kept", "new"), table(b"1", "kept", "old")))
    assert [(type(one), one.elements) for one in lead] == [
        (DeleteElements, {Element(b"1", jump("old"))}),
        (AddElements, {Element(b"1", jump("new"))}),
    ]
    assert [type(one) for one in take] == [FlushChain, DeleteChain]


def test_no_operations_are_no_transaction():
    assert list(transactions(())) == []


def test_elements_that_know_what_came_before_are_planned_without_comparing():
    old = Successor([Element(b"a"), Element(b"b")])
    new = Successor(
        [Element(b"b"), Element(b"c")], old, frozenset({Element(b"a")}), frozenset({Element(b"c")})
    )
    before, after = (Table("t", sets=(Set("s", (KeyType.MARK,), elements=some),)) for some in (old, new))
    assert new == frozenset(new)
    assert [(type(one), one.elements) for one in plan_table(after, before)] == [
        (DeleteElements, {Element(b"a")}),
        (AddElements, {Element(b"c")}),
    ]
    # What it says is about those before it and no others.
    read = replace(
        before, sets=(replace(before.sets[0], elements=frozenset({Element(b"c"), Element(b"d")})),)
    )
    assert [one.elements for one in plan_table(after, read)] == [{Element(b"d")}, {Element(b"b")}]
