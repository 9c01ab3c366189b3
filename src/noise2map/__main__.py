"""``python -m noise2map``: the command line."""

from noise2map.cli import main

if __name__ == "__main__":
    main()
