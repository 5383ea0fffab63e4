"""The netlink families: attributes shared by all, rtnetlink messages, sockets."""
