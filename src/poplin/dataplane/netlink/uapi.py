"""Numbers of the kernel's netlink interface, under the kernel's names.

Source: include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,neighbour,veth,if}.h.
"""

from typing import Final

# linux/netlink.h
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 0x001
NLM_F_ACK: Final = 0x004
NLM_F_DUMP_INTR: Final = 0x010
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_DUMP: Final = 0x300
NLM_F_ACK_TLVS: Final = 0x200
NLMSGERR_ATTR_MSG: Final = 1
NLA_F_NESTED: Final = 0x8000
SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_LISTEN_ALL_NSID: Final = 8
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
NETLINK_GET_STRICT_CHK: Final = 12

# linux/rtnetlink.h: message types, groups, attributes of a route
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30
RTNLGRP_LINK: Final = 1
RTNLGRP_NEIGH: Final = 3
RTNLGRP_IPV4_IFADDR: Final = 5
RTNLGRP_IPV4_ROUTE: Final = 7
RTNLGRP_IPV6_IFADDR: Final = 9
RTNLGRP_IPV6_ROUTE: Final = 11
RTNLGRP_IPV4_NETCONF: Final = 24
RTNLGRP_IPV6_NETCONF: Final = 25
RTEXT_FILTER_SKIP_STATS: Final = 8
RTNH_F_ONLINK: Final = 4
RTM_F_FIB_MATCH: Final = 0x2000
RTA_DST: Final = 1
RTA_SRC: Final = 2
RTA_IIF: Final = 3
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RTA_PRIORITY: Final = 6
RTA_PREFSRC: Final = 7
RTA_METRICS: Final = 8
RTA_TABLE: Final = 15
RTA_VIA: Final = 18
RTAX_MTU: Final = 2
IP6_RT_PRIO_USER: Final = 1024

# linux/if.h, linux/if_link.h, linux/veth.h
IFF_UP: Final = 0x1
IFF_LOWER_UP: Final = 0x10000
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_LINK: Final = 5
IFLA_MASTER: Final = 10
IFLA_LINKINFO: Final = 18
IFLA_IFALIAS: Final = 20
IFLA_AF_SPEC: Final = 26
IFLA_GROUP: Final = 27
IFLA_NET_NS_FD: Final = 28
IFLA_EXT_MASK: Final = 29
IFLA_LINK_NETNSID: Final = 37
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
IFLA_INET6_ADDR_GEN_MODE: Final = 8
IN6_ADDR_GEN_MODE_NONE: Final = 1
VETH_INFO_PEER: Final = 1
IFLA_VXLAN_ID: Final = 1
IFLA_VXLAN_LINK: Final = 3
IFLA_VXLAN_LOCAL: Final = 4
IFLA_VXLAN_LEARNING: Final = 7
IFLA_VXLAN_PORT: Final = 15
IFLA_VXLAN_LOCAL6: Final = 17
IFLA_VXLAN_GBP: Final = 23

# linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h, linux/if_ether.h
RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_GETQDISC: Final = 38
RTM_NEWTFILTER: Final = 44
RTM_DELTFILTER: Final = 45
RTM_GETTFILTER: Final = 46
RTNLGRP_TC: Final = 4
TCA_KIND: Final = 1
TCA_OPTIONS: Final = 2
TC_H_ROOT: Final = 0xFFFFFFFF
TC_H_CLSACT: Final = 0xFFFFFFF1
TC_H_CLSACT_INGRESS: Final = 0xFFFFFFF2
TC_LINKLAYER_ETHERNET: Final = 1
TCA_TBF_PARMS: Final = 1
TCA_TBF_RATE64: Final = 4
TCA_U32_SEL: Final = 5
TCA_U32_ACT: Final = 7
TC_U32_TERMINAL: Final = 1
TCA_ACT_KIND: Final = 1
TCA_ACT_OPTIONS: Final = 2
TCA_MIRRED_PARMS: Final = 2
TCA_EGRESS_REDIR: Final = 1
TC_ACT_STOLEN: Final = 4
ETH_P_ALL: Final = 3

# linux/if_addr.h
IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_PROTO: Final = 11
IFA_F_NODAD: Final = 0x02

# linux/netconf.h, linux/rtnetlink.h
RTM_NEWNETCONF: Final = 80
NETCONFA_IFINDEX: Final = 1
NETCONFA_IFINDEX_ALL: Final = -1
NETCONFA_IFINDEX_DEFAULT: Final = -2

# linux/neighbour.h
NDA_DST: Final = 1
NDA_LLADDR: Final = 2
NDA_IFINDEX: Final = 8
NDA_PROTOCOL: Final = 12
NUD_PERMANENT: Final = 0x80
NTF_SELF: Final = 0x02

# linux/socket.h
AF_UNSPEC: Final = 0
AF_INET: Final = 2
AF_BRIDGE: Final = 7
AF_INET6: Final = 10
