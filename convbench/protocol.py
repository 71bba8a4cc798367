"""Names that the runner and its workers share (see worker.py for the commands and events)."""

REPLY_FD = "CONVBENCH_REPLY_FD"
PARENT_PID = "CONVBENCH_PARENT_PID"
