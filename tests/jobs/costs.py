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


def relocated():
    """How many mappings of relocated and read-only memory are shared, and how many are the process's own."""
    shared = own = 0
    with open("/proc/self/smaps") as file:
        for line in file:
            words = line.split()
            if "-" in words[0]:
                is_read_only, name = words[1] == "r--p", words[-1]
                shared += is_read_only and "pyspawner-relocated" in line
            elif words[0] == "Anonymous:" and is_read_only and ".so" in name:
                own += int(words[1]) > 0
    return shared, own


def write():
    print("x", end="", flush=True)
