"""Small tables of every shape, for properties of plans."""

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
    Meta,
    MetaKey,
    Rule,
    Set,
    Table,
    goto,
    jump,
)

NAMES = ["a", "b", "c", "d"]
bases = st.none() | st.builds(
    BaseChain,
    st.just(ChainType.FILTER),
    st.sampled_from([Hook.INPUT, Hook.FORWARD]),
    st.sampled_from([0, 10]),
    st.sampled_from([ACCEPT, DROP]),
)
keys = st.integers(0, 5).map(lambda number: bytes([10, 0, 0, number]))


@st.composite
def sets(draw, name: str, chains: list[str]):
    kinds = [(), (KeyType.MARK,)] + ([(KeyType.VERDICT,)] if chains else [])
    data = draw(st.sampled_from(kinds))
    values = {
        (): st.none(),
        (KeyType.MARK,): st.sampled_from([b"\1\0\0\0", b"\2\0\0\0"]),
        (KeyType.VERDICT,): st.sampled_from(chains).map(goto) if chains else st.nothing(),
    }[data]
    elements = draw(st.dictionaries(keys, values, max_size=4))
    size = draw(st.sampled_from([0, 100]))
    return Set(
        name,
        (KeyType.IPV4_ADDR,),
        data,
        size=size,
        elements=frozenset(Element(key, value) for key, value in elements.items()),
    )


@st.composite
def tables(draw):
    """No chain leads to itself and none with a hook is led to, as the kernel wants: jumps go to later names, and
    verdict maps to the last chain without a hook, which looks into no set."""
    chain_names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    set_names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    chosen = {name: draw(bases) for name in chain_names}
    regular = sorted(name for name, base in chosen.items() if base is None)
    chains = []
    for name, base in chosen.items():
        steps = [st.just((Counter(),)), st.just((ACCEPT,))]
        if later := [other for other in regular if other > name]:
            steps.append(st.sampled_from(later).map(lambda other: (jump(other),)))
        if set_names and name not in regular[-1:]:
            steps.append(
                st.sampled_from(set_names).map(lambda other: (Meta(0, MetaKey.MARK), Lookup(0, other), DROP))
            )
        rules = draw(st.lists(st.one_of(steps).map(Rule), max_size=3))
        chains.append(Chain(name, tuple(rules), base))
    return Table("poplin", tuple(chains), tuple(draw(sets(name, regular[-1:])) for name in set_names))
