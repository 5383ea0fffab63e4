"""Queueing disciplines and filters: values -> bytes -> values, and the bytes that pyroute2 makes and reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import MalformedMessageError, pack
from poplin.dataplane.netlink.frame import pack_text
from poplin.dataplane.netlink.shaping import (
    TCMSG,
    decode_redirect,
    decode_shaped_link,
    decode_token_bucket,
    encode_filter_key,
    encode_ingress,
    encode_redirect,
    encode_token_bucket,
)
from poplin.model.kernel import Redirect, TokenBucket

LINKS = {"pop0": 7, "ifb0": 1_000_000}
index_of = LINKS.__getitem__
name_of = {index: name for name, index in LINKS.items()}.__getitem__

BUCKETS = st.builds(
    TokenBucket,
    st.sampled_from(sorted(LINKS)),
    st.integers(1, 2**50),
    st.integers(1, 2**26 - 1).map(lambda ticks: ticks * 64),
    st.integers(0, 2**32 - 1),
)


def parsed(body):
    """The message as pyroute2 reads it: header fields and attributes, by their names."""
    message = tcmsg(bytes(16) + body)
    message["header"]["length"] = 16 + len(body)
    message.data = (16 + len(body)).to_bytes(4, "little") + bytes(12) + body
    message.decode()
    return message


@given(BUCKETS)
def test_a_token_bucket_comes_back_as_it_was(bucket):
    assert decode_token_bucket(encode_token_bucket(bucket, index_of), name_of) == bucket


def test_a_redirect_comes_back_as_it_was():
    redirect = Redirect("pop0", "ifb0")
    assert decode_redirect(encode_redirect(redirect, index_of), name_of) == redirect


@given(BUCKETS)
def test_pyroute2_reads_the_token_bucket_that_was_meant(bucket):
    message = parsed(encode_token_bucket(bucket, index_of))
    assert (message["index"], message["handle"], message["parent"]) == (
        LINKS[bucket.link],
        0x706F0000,
        0xFFFFFFFF,
    )
    assert message.get_attr("TCA_KIND") == "tbf"
    options = message.get_attr("TCA_OPTIONS")
    parameters = options.get_attr("TCA_TBF_PARMS")
    assert parameters["rate"] == min(bucket.rate_bytes_s, 2**32 - 1)
    assert (parameters["limit"], parameters["buffer"]) == (bucket.limit_bytes, bucket.burst_ns // 64)
    assert (parameters["peak_rate"] if "peak_rate" in parameters else parameters["peak"]) == 0


def test_pyroute2_reads_the_filter_that_was_meant():
    message = parsed(encode_redirect(Redirect("pop0", "ifb0"), index_of))
    assert (message["index"], message["parent"], message["info"]) == (7, 0xFFFFFFF2, 0x706F0300)
    assert message.get_attr("TCA_KIND") == "u32"
    keys = message.get_attr("TCA_OPTIONS").get_attr("TCA_U32_SEL")
    assert keys["flags"] == 1
    [key] = keys["keys"]
    assert (key["key_mask"], key["key_val"]) == (0, 0)
    action = message.get_attr("TCA_OPTIONS").get_attr("TCA_U32_ACT").get_attr("TCA_ACT_PRIO_1")
    assert action.get_attr("TCA_ACT_KIND") == "mirred"
    parameters = action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
    assert (parameters["eaction"], parameters["action"], parameters["ifindex"]) == (1, 4, 1_000_000)


def test_what_is_not_ours_is_passed_over():
    ours = encode_token_bucket(TokenBucket("pop0", 1000, 6400, 1000), index_of)
    _, index, handle, parent, info = TCMSG.unpack_from(ours)
    rest = ours[TCMSG.size :]
    for other in ((index, 0x10000, parent, info), (index, handle, 0x10001, info)):
        assert decode_token_bucket(TCMSG.pack(0, *other) + rest, name_of) is None
    assert decode_token_bucket(TCMSG.pack(0, 7, handle, parent, 0) + pack_text(1, "htb"), name_of) is None
    filter_ = encode_redirect(Redirect("pop0", "ifb0"), index_of)
    head = TCMSG.pack(0, 7, 0, 0xFFFFFFF2, 0x10300)
    assert decode_redirect(head + filter_[TCMSG.size :], name_of) is None
    # The table of keys that the kernel lists before a filter's own.
    divisor = pack(uapi.TCA_OPTIONS, pack(4, b"\x01\0\0\0"))
    table = filter_[: TCMSG.size] + pack_text(uapi.TCA_KIND, "u32") + divisor
    assert decode_redirect(table, name_of) is None


@pytest.mark.parametrize("encode", [encode_ingress, encode_filter_key])
def test_every_body_is_about_its_link(encode):
    body = encode("ifb0", index_of)
    assert decode_shaped_link(body, name_of) == "ifb0"
    assert len(body) % 4 == 0


@given(st.binary(max_size=200))
def test_no_bytes_break_a_decoder(noise):
    for decode in (decode_token_bucket, decode_redirect, decode_shaped_link):
        for head in (b"", TCMSG.pack(0, 7, 0x706F0000, 0xFFFFFFFF, 0x706F0300)):
            try:
                decode(head + noise, {7: "pop0"}.get)
            except MalformedMessageError:
                pass
            except KeyError:
                pytest.fail("a missing attribute is a malformed message")
