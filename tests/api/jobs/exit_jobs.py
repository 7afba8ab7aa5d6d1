"""Ends as it is told."""


def main(code):
    exec(code, {"__name__": "job"})
