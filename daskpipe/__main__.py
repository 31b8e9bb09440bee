"""``python -m daskpipe``: the same as ``daskpipe``."""

from daskpipe.cli.main import main

if __name__ == "__main__":
    main()
