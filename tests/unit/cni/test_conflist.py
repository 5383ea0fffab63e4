import json

from poplin.cni.conflist import NAME, encode_conflist


def test_the_conflist_is_what_a_runtime_takes_for_a_pod_network():
    text = encode_conflist(socket="/run/poplin/cni.sock", state_dir="/var/lib/poplin")
    assert json.loads(text) == {
        "cniVersion": "1.0.0",
        "name": "poplin",
        "plugins": [
            {
                "type": "poplin-cni",
                "socket": "/run/poplin/cni.sock",
                "stateDir": "/var/lib/poplin",
                "capabilities": dict.fromkeys(("ips", "ipRanges", "mac", "portMappings", "bandwidth"), True),
            }
        ],
    }
    assert NAME < "10-z.conflist"
    assert text.endswith("}\n")
