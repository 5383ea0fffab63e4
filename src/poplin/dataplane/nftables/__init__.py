"""nftables over nfnetlink: a pure codec (expression, element, message), the socket, and the monitor."""
