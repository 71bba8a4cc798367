"""The parent: orders, isolates, interleaves, times out, resumes. Never imports an algorithm."""

from convbench.runner.execute import Observer, Outcome, execute
from convbench.runner.plan import RunPlan, repro_line
from convbench.runner.setup import make_plan_for, new_run_dir

__all__ = ["Observer", "Outcome", "RunPlan", "execute", "make_plan_for", "new_run_dir", "repro_line"]
