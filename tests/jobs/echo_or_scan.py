"""A job that is handed a canary, and one that looks for it."""

import sys

from inherited import scan


def main(what, **kwargs):
    if isinstance(what, list):
        return scan(what)
    text = sys.stdin.read()
    print(text)
    return [what, kwargs, text]
