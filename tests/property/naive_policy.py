"""NetworkPolicy by the letter of the API reference, asked of the YAML itself: slow, plain, and nothing of ours.

It shares no code with what it judges.
"""

from ipaddress import ip_address, ip_network


def of_kind(objects, kind):
    return [one for one in objects if one["kind"] == kind]


def pod_of(objects, address):
    for pod in of_kind(objects, "Pod"):
        if any(ip_address(entry["ip"]) == ip_address(address) for entry in pod["status"]["podIPs"]):
            return pod
    return None


def labels_match(selector, labels):
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for one in selector.get("matchExpressions", []):
        value = labels.get(one["key"])
        good = {
            "In": value is not None and value in one.get("values", []),
            "NotIn": value is None or value not in one.get("values", []),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[one["operator"]]
        if not good:
            return False
    return True


def peer_matches(objects, policy, peer, address):
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        inside = [block["cidr"], *block.get("except", [])]
        within = [
            ip_network(cidr).version == ip_address(address).version
            and ip_address(address) in ip_network(cidr)
            for cidr in inside
        ]
        return within[0] and not any(within[1:])
    pod = pod_of(objects, address)
    if pod is None:
        return False
    space = pod["metadata"]["namespace"]
    if "namespaceSelector" in peer:
        found = [one for one in of_kind(objects, "Namespace") if one["metadata"]["name"] == space]
        shown = found[0]["metadata"]["labels"] | {"kubernetes.io/metadata.name": space}
        if not labels_match(peer["namespaceSelector"], shown):
            return False
    elif space != policy["metadata"]["namespace"]:
        return False
    return labels_match(peer.get("podSelector", {}), pod["metadata"]["labels"])


def port_matches(objects, entry, destination, protocol, port):
    if entry.get("protocol", "TCP") != protocol:
        return False
    wanted = entry.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        pod = pod_of(objects, destination)
        declared = [one for part in pod["spec"]["containers"] for one in part["ports"]] if pod else []
        return any(
            one["name"] == wanted and one["containerPort"] == port and one["protocol"] == protocol
            for one in declared
        )
    return wanted <= port <= entry.get("endPort", wanted)


def direction_allows(objects, pod, direction, peer_address, destination, protocol, port):
    word, rules_word = ("from", "ingress") if direction == "Ingress" else ("to", "egress")
    isolated = False
    for policy in of_kind(objects, "NetworkPolicy"):
        spec = policy["spec"]
        if policy["metadata"]["namespace"] != pod["metadata"]["namespace"]:
            continue
        if not labels_match(spec["podSelector"], pod["metadata"]["labels"]):
            continue
        types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
        if direction not in types:
            continue
        isolated = True
        for rule in spec.get(rules_word, []):
            peers, ports = rule.get(word), rule.get("ports")
            if peers and not any(peer_matches(objects, policy, peer, peer_address) for peer in peers):
                continue
            if ports and not any(port_matches(objects, one, destination, protocol, port) for one in ports):
                continue
            return True
    return not isolated


def naive_allows(objects, source, destination, protocol, port):
    """Whether a connection's first packet arrives, as (egress, ingress)."""
    client, server = pod_of(objects, source), pod_of(objects, destination)
    if client is not None and client is server:
        return True, True
    egress = client is None or direction_allows(
        objects, client, "Egress", destination, destination, protocol, port
    )
    if server is None:
        return egress, True
    on_node = [
        one["metadata"]["name"]
        for one in of_kind(objects, "Node")
        if any(entry["address"] == source for entry in one["status"]["addresses"])
    ]
    ingress = server["spec"]["nodeName"] in on_node or direction_allows(
        objects, server, "Ingress", source, destination, protocol, port
    )
    return egress, ingress
