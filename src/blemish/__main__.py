"""`python -m blemish` is the `blemish` program, for where its folder is not on the path."""

from blemish.cli.app import main

if __name__ == "__main__":
    main()
