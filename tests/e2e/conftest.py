"""Tests that drive a cluster with kubectl are there only where kubectl is."""

import shutil

NEED_KUBECTL = [
    "test_apiserver_kubectl.py",
    "test_demo.py",
    "test_docs.py",
    "test_kubectl_tour.py",
    "test_kubernetes_client_kubeconfig.py",
    "test_lab_fault.py",
    "test_lab_lifecycle.py",
    "test_lab_pods.py",
    "test_lab_services.py",
    "test_network_policy.py",
    "test_restarts.py",
    "test_runtimes.py",
    "test_service_packets.py",
]
collect_ignore = [] if shutil.which("kubectl") else NEED_KUBECTL


def pytest_terminal_summary(terminalreporter):
    if collect_ignore:
        terminalreporter.section("kubectl is not installed")
        terminalreporter.line(f"not collected: {', '.join(collect_ignore)}")
