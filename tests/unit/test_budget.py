"""The time budget on a fake clock."""

from convbench.problem import ConvShape, Problem
from convbench.runner.budget import Budget, weight


def problem(c: int) -> Problem:
    return Problem(ConvShape.make(n=1, c=c, h=56, w=56, k=c, r=3, s=3, padding=1))


def test_shares_follow_the_work_and_add_up():
    problems = [problem(16), problem(64), problem(128)]
    now = [0.0]
    budget = Budget(100.0, problems, lambda: now[0])
    shares = []
    for _ in problems:
        shares.append(budget.next_share())
        now[0] += shares[-1]
    assert sum(shares) == 100.0 or abs(sum(shares) - 100.0) < 1e-9
    assert abs(shares[2] / shares[1] - weight(problems[2]) / weight(problems[1])) < 1e-9


def test_time_left_over_goes_to_the_next():
    now = [0.0]
    budget = Budget(100.0, [problem(64), problem(64)], lambda: now[0])
    assert budget.next_share() == 50.0
    now[0] = 10.0
    assert budget.next_share() == 90.0


def test_a_problem_gets_its_least_while_there_is_time():
    now = [0.0]
    budget = Budget(10.0, [problem(64)] * 4, lambda: now[0])
    assert budget.next_share(4.0) == 4.0
    now[0] = 9.0
    assert budget.next_share(4.0) == 4.0
    now[0] = 13.0
    assert budget.next_share(4.0) == 0.0


def test_an_overdrawn_budget_gives_nothing_and_nothing_negative():
    now = [0.0]
    budget = Budget(10.0, [problem(64), problem(64)], lambda: now[0])
    budget.next_share()
    now[0] = 30.0
    assert budget.left() == -20.0
    assert budget.next_share() == 0.0


def test_time_lost_to_a_hang_is_given_back():
    now = [0.0]
    budget = Budget(100.0, [problem(64), problem(64)], lambda: now[0])
    budget.next_share()
    now[0] = 70.0  # 20 of them were a hang
    budget.forgive(20.0)
    assert budget.next_share() == 50.0
