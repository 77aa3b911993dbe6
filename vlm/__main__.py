"""`python -m vlm`, which is what launchers of several processes start."""

from vlm.cli.main import main

if __name__ == "__main__":
    main()
