"""`python -m calib_core COMMAND`: the library's commands as the processes of a launcher run them.

People use `calib`. This prints no result, and an error goes where `reported_errors` sends it.
"""

from __future__ import annotations

import sys

from calib_core.commands.library import add_commands
from calib_core.runtime import processes
from calib_core.settings.flags import Parser
from calib_core.steps.task import reported_errors


def main() -> None:
    """Run the command that the arguments name.

    Raises:
        SystemExit: it failed.
    """
    parser = Parser(prog="python -m calib_core")
    add_commands(parser.add_subparsers(metavar="COMMAND", required=True))
    given = parser.parse_args(sys.argv[1:])
    with reported_errors():
        given.run(given)
        processes.leave()


if __name__ == "__main__":
    main()
