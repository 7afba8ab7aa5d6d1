"""Hooks of pyspawner_host, and its functions' signatures."""

import inspect

import pyspawner_host

BEFORE = []
AFTER = []
JOBS = []


@pyspawner_host.before_clone
def count():
    BEFORE.append(1)


@pyspawner_host.after_clone
def first():
    AFTER.append("first")
    JOBS.append(pyspawner_host.job_id())


@pyspawner_host.after_clone
def second():
    AFTER.append("second")
    JOBS.append(pyspawner_host.deadline())


def main():
    return {"before": len(BEFORE), "after": AFTER, "job_in_hook": JOBS}


def signatures():
    public = [name for name in dir(pyspawner_host) if not name.startswith("_")]
    return {
        name: [
            (p.name, p.kind.name, repr(p.default))
            for p in inspect.signature(getattr(pyspawner_host, name)).parameters.values()
        ]
        for name in public
    }


def wrong_use():
    names = []
    for wrong in (
        lambda: pyspawner_host.before_clone(1),
        lambda: pyspawner_host.after_clone(None),
        lambda: pyspawner_host.progress(1.5),
        lambda: pyspawner_host.progress(float("nan")),
    ):
        try:
            wrong()
        except (TypeError, ValueError) as error:
            names.append(type(error).__name__)
    return names
