"""``python -m fletching_server``: the same as the command ``fletching``."""

from fletching_server.cli import main

if __name__ == "__main__":
    main()
