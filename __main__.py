"""``python -m nemoconv``."""

from nemoconv.cli import main

if __name__ == "__main__":
    main()
