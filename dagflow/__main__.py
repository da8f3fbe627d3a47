"""`python -m dagflow`."""

from dagflow.cli import main

if __name__ == "__main__":
    main()
