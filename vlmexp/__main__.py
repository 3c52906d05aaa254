from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. A Ctrl-C while modules are imported ends it like a later one, without a traceback."""
    try:
        from vlmexp.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
