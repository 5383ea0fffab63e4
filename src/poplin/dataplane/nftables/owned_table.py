"""A table of ours in the kernel: brought to what is wanted by what differs, and read only where that is unsure."""

from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.nftables import Table, TableKey
from poplin.plan.nftables import Operation, plan_table, transactions


class OwnedTable:
    """Bound to the network namespace it was made in; for one thread at a time, but for `forget`.

    What the kernel holds is known from what was read or written, until somebody says `forget` or a write fails.
    What asks the kernel raises KernelError.
    """

    def __init__(self, key: TableKey) -> None:
        self._key = key
        self._nft = NftSocket()
        self._table: Table | None = None
        self._known = False
        self.ports = frozenset({self._nft.port})

    def close(self) -> None:
        """Close the socket; nothing may be asked any more."""
        self._nft.close()

    def forget(self) -> None:
        """Read the table anew before it is next written: somebody else may have changed it."""
        self._known = False

    def read(self) -> Table | None:
        """Give the table as it stands, None where it does not."""
        self._known = True  # first: who says `forget` meanwhile is heard
        try:
            self._table = self._nft.read_table(self._key)
        except BaseException:
            self._known = False
            raise
        return self._table

    def write(self, desired: Table | None) -> tuple[Operation, ...]:
        """Bring the table to `desired`, None for no table, and give what that took, () where nothing differed."""
        actual = self._table if self._known else self.read()
        operations = plan_table(desired, actual)
        try:
            for transaction in transactions(operations):
                self._nft.apply(transaction)
        except BaseException:
            self._known = False
            raise
        self._table = desired
        return operations
