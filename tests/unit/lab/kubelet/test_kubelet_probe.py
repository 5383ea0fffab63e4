import pytest

from poplin.lab.kubelet.probe import Schedule, Verdict, read_schedule


@pytest.mark.parametrize(
    ("answers", "successes", "failures", "verdicts"),
    [
        ("1", 1, 3, [True]),
        ("0001", 1, 3, [None, None, False, True]),
        ("1001000", 1, 3, [True, True, True, True, True, True, False]),
        ("0101", 2, 1, [False, False, False, False]),
        ("011", 2, 1, [False, False, True]),
    ],
)
def test_a_verdict_takes_as_many_answers_in_a_row_as_the_probe_says(answers, successes, failures, verdicts):
    verdict = Verdict(Schedule(0, 1, 1, successes, failures))
    seen = []
    for answer in answers:
        before = verdict.holds
        assert verdict.add(answer == "1") == (verdict.holds != before)
        seen.append(verdict.holds)
    assert seen == verdicts


def test_a_failure_that_was_acted_upon_must_happen_again_in_full():
    verdict = Verdict(Schedule(0, 1, 1, 1, 2))
    assert [verdict.add(False), verdict.add(False)] == [False, True]
    verdict.starts_over()
    assert [verdict.add(False), verdict.add(False)] == [False, True]


def test_the_apis_defaults():
    assert read_schedule({}) == Schedule(0, 10, 1, 1, 3)
    assert read_schedule({"initialDelaySeconds": 2, "failureThreshold": 1}).initial_delay_s == 2
