"""The command line: `app` registers one module for each command."""
