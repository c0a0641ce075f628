"""`python -m ulna` is `ulna`."""

from ulna.cli.main import main

if __name__ == "__main__":
    main()
