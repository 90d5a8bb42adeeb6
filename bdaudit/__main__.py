"""`python -m bdaudit` is `bdaudit`."""

from bdaudit.cli.main import main

if __name__ == "__main__":
    main()
