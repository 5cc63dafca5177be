"""A console in the browser: what the command line shows and does, on pages rendered on the server."""
