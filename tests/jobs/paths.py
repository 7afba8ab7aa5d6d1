"""Where an interpreter finds itself."""

import sys


def prefixes():
    return {"prefix": sys.prefix, "base_prefix": sys.base_prefix}


def print_and_wait():
    print("before", end="")
    sys.stdin.readline()
