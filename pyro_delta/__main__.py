"""`python -m pyro_delta`: the same as `pyro-delta`."""

from pyro_delta.cli import main

if __name__ == "__main__":
    main()
