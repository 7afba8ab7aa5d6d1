"""What a child has cost until its own code runs."""

import resource


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def mappings():
    """How many there are, and how many libraries have some."""
    with open("/proc/self/maps") as file:
        lines = [line.split() for line in file]
    libraries = {line[5] for line in lines if len(line) > 5 and ".so" in line[5]}
    return len(lines), len(libraries)


def write():
    print("x", end="", flush=True)
