"""The page that a run writes."""

from poplin.lab.conformance.case import Case, Question, Step
from poplin.lab.conformance.packets import Fault, PacketResult
from poplin.lab.conformance.report import CaseReport, write_page

STEP = Step(expect={})


def report(name, *, group="ports", evaluator=(), faults=(), packets=True):
    case = Case(name, [STEP], group=group)
    result = PacketResult(case, list(faults), probes=810) if packets else None
    return CaseReport(case, evaluator, result)


def fault(version):
    return Fault(1, Question("TCP", 80), version, ("x/a", "y/b"), expected=False, found="allowed")


def test_each_level_and_family_has_its_mark():
    page = write_page(
        [
            report("good"),
            report("bad over IPv6", faults=[fault(6)]),
            report("wrong", evaluator=["step 1, TCP 80, IPv4: x/a to y/b is allowed"]),
            report("elsewhere", group="blocks", packets=False),
        ],
        [4, 6],
        "make conformance",
    )
    assert "Written by `make conformance`." in page
    assert "2 of 4 cases pass; 2,430 probes between pods." in page
    ports, blocks = page.split("## Ports")[1].split("## Blocks")
    assert "| good | ✓ | ✓ | ✓ |" in ports
    assert "| bad over IPv6 | ✓ | ✓ | ✗ |" in ports
    assert "| wrong | ✗ | ✓ | ✓ |" in ports
    assert "| elsewhere | ✓ | - | - |" in blocks
    assert (
        "- ports, bad over IPv6: packets: step 1, TCP 80, IPv6: x/a to y/b is to be denied, and was allowed"
        in page
    )


def test_a_page_of_what_passes_has_no_more_to_say():
    page = write_page([report("good")], [4], "make conformance")
    assert "1 of 1 cases pass" in page
    assert "does not pass" not in page
