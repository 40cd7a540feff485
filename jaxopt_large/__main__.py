"""`python -m jaxopt_large`."""

from .cli import main

if __name__ == "__main__":
    main()
