"""This machine: where it keeps what it made once, and C that is compiled for it. Imports nothing of ours."""
