"""The command line, a module a group. `app/cli.py` says which are plugged in."""
