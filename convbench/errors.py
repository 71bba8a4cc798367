"""Every exception that convbench raises on purpose, with the exit code that the command line gives it.

A message says what is wrong, where, and what to do next; it is shown to the user as it stands.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_REGRESSION = 1
EXIT_USAGE = 2
EXIT_WRONG = 3
EXIT_INCONCLUSIVE = 4
EXIT_NOTHING = 5
EXIT_FAILED = 6
EXIT_INTERNAL = 70
EXIT_IO = 74
EXIT_INTERRUPTED = 130


class ConvbenchError(Exception):
    """Root of the tree: catch this to catch everything that convbench raises on purpose."""

    exit_code = EXIT_INTERNAL


class UsageError(ConvbenchError):
    """A wrong command, option or argument."""

    exit_code = EXIT_USAGE


class ProblemError(UsageError):
    """A shape or descriptor that describes no convolution."""


class SuiteError(UsageError):
    """A suite file that cannot be understood; names file, line and key."""


class RegistrationError(UsageError):
    """An implementation that breaks the contract, or a name registered twice."""


class UnknownAlgorithm(UsageError):
    """A name or glob that no registered implementation answers to."""


class RecordsError(UsageError):
    """A run directory or record that cannot be read (not there, not JSON, a newer schema)."""


class Unsupported(ConvbenchError):
    """What an implementation (or a vendor library) refuses, with its sentence."""

    exit_code = EXIT_NOTHING


class Unavailable(ConvbenchError):
    """An implementation whose requirements are not met on this machine."""

    exit_code = EXIT_NOTHING


class NotComparable(ConvbenchError):
    """Two sets of records that must not be put side by side (machine, source, settings)."""

    exit_code = EXIT_NOTHING


class WorkerFailed(ConvbenchError):
    """A worker process that died, hung or broke the protocol."""

    exit_code = EXIT_FAILED


class KernelError(ConvbenchError):
    """A GPU kernel that cannot be compiled or is not made for this GPU; names file, kernel and line."""

    exit_code = EXIT_FAILED


class OutputError(ConvbenchError):
    """A place that cannot be read from or written to."""

    exit_code = EXIT_IO


class Interrupted(ConvbenchError):
    """Ctrl-C."""

    exit_code = EXIT_INTERRUPTED
